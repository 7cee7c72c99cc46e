/* recorder.c: a stand-in for OpenMP's runtime that works with any number of threads on one, and keeps the time.
 *
 * Preloaded before libgomp (LD_PRELOAD), it runs each thread of a parallel region after the other on the calling thread:
 * the library that is measured is the shipped one, cuts its work as for so many threads, and each task's processor time
 * is known, as is the time between regions. The first thread takes all tasks of a dynamic loop; who takes them in truth
 * is for simulate.py to say. A region inside a region runs on one thread and is not told apart. */
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { REGION, THREAD, TASK, LOOP_DONE, BARRIER, THREAD_END, REGION_END, MARK };

typedef struct {
    long kind;
    long value; /* REGION: the function's address; THREAD: its number; TASK: its first iteration; MARK: the caller's */
    double seconds;
} event;

typedef struct {
    long next, end, step, chunk;
} loop;

typedef struct {
    bool inside;
    int thread, threads;
    long at; /* loops that this thread has met in its region */
    long n_loops, most_loops;
    loop *loops; /* of the region, in the order in which they are met */
} team;

static event *events;
static long n_events, most_events;
static bool on;
static team now = {.threads = 1};

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void *room(void *p, long n, long *most, size_t size)
{
    if (n < *most)
        return p;
    *most = 2 * *most + 1024;
    p = realloc(p, (size_t)*most * size);
    if (!p)
        abort();
    return p;
}

static void tell(long kind, long value)
{
    if (!on || now.threads < 1)
        return;
    events = room(events, n_events, &most_events, sizeof *events);
    events[n_events++] = (event){kind, value, seconds()};
}

/* ------------------------------------------------------------ for simulate.py */

long record_start(void)
{
    n_events = 0;
    on = true;
    return 1;
}

long record_stop(void)
{
    on = false;
    return n_events;
}

void record_mark(long value)
{
    tell(MARK, value);
}

const event *record_events(void)
{
    return events;
}

/* ---------------------------------------------------------- OpenMP's own names */

int omp_get_thread_num(void)
{
    return now.thread;
}

int omp_get_num_threads(void)
{
    return now.inside ? now.threads : 1;
}

static void run_team(void (*work)(void *), void *data, unsigned threads, const loop *first)
{
    if (now.inside) { /* not recorded */
        team outer = now;
        bool was_on = on;
        on = false;
        now = (team){.inside = true, .threads = 1};
        if (first) {
            now.loops = room(NULL, 0, &now.most_loops, sizeof *now.loops);
            now.loops[now.n_loops++] = *first;
            now.at = 1;
        }
        work(data);
        free(now.loops);
        now = outer;
        on = was_on;
        return;
    }
    now.inside = true;
    now.threads = threads ? (int)threads : 1;
    now.n_loops = 0;
    if (first) {
        now.loops = room(now.loops, 0, &now.most_loops, sizeof *now.loops);
        now.loops[now.n_loops++] = *first;
    }
    tell(REGION, (long)work);
    for (now.thread = 0; now.thread < now.threads; now.thread++) {
        now.at = first ? 1 : 0;
        tell(THREAD, now.thread);
        work(data);
        tell(THREAD_END, now.thread);
    }
    now.inside = false;
    now.thread = 0;
    tell(REGION_END, 0);
}

void GOMP_parallel(void (*work)(void *), void *data, unsigned threads, unsigned flags)
{
    (void)flags;
    run_team(work, data, threads, NULL);
}

static bool next_chunk(long *from, long *to)
{
    loop *l = &now.loops[now.at - 1];
    bool left = l->step > 0 ? l->next < l->end : l->next > l->end;
    if (!left) {
        tell(LOOP_DONE, 0);
        return false;
    }
    long end = l->next + l->chunk * l->step;
    *from = l->next;
    *to = l->step > 0 ? (end < l->end ? end : l->end) : (end > l->end ? end : l->end);
    l->next = *to;
    tell(TASK, *from);
    return true;
}

bool GOMP_loop_nonmonotonic_dynamic_next(long *from, long *to)
{
    return next_chunk(from, to);
}

bool GOMP_loop_nonmonotonic_dynamic_start(long start, long end, long step, long chunk, long *from, long *to)
{
    if (now.at == now.n_loops) {
        now.loops = room(now.loops, now.n_loops, &now.most_loops, sizeof *now.loops);
        now.loops[now.n_loops++] = (loop){start, end, step, chunk};
    }
    now.at++;
    return next_chunk(from, to);
}

void GOMP_parallel_loop_nonmonotonic_dynamic(void (*work)(void *), void *data, unsigned threads, long start, long end,
                                             long step, long chunk, unsigned flags)
{
    (void)flags;
    const loop first = {start, end, step, chunk};
    run_team(work, data, threads, &first);
}

void GOMP_loop_end(void)
{
    tell(BARRIER, 0);
}

void GOMP_loop_end_nowait(void)
{
}

void GOMP_barrier(void)
{
    tell(BARRIER, 0);
}

void GOMP_atomic_start(void)
{
}

void GOMP_atomic_end(void)
{
}
