/* team.c: whether threads can be had; the question whether to stop, asked by one thread, answered to all. */
#define _POSIX_C_SOURCE 200809L /* pthread.h */
#include "core.h"

#include <pthread.h>
#include <time.h>

typedef struct {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool open;
} gate;

static void *wait_for_it(void *data)
{
    gate *g = data;
    pthread_mutex_lock(&g->lock);
    while (!g->open)
        pthread_cond_wait(&g->changed, &g->lock);
    pthread_mutex_unlock(&g->lock);
    return NULL;
}

atoms_status atoms_try_threads(int n)
{
    /* a thread has OpenMP threads of its own, which stay: as many as it once had it can have again */
    static _Thread_local int had = 1;
    if (n <= had)
        return ATOMS_OK;
    pthread_t *threads = malloc((size_t)n * sizeof *threads);
    if (!threads)
        return ATOMS_ERR_MEMORY;
    gate g = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, false};
    int started = 1;
    while (started < n && !pthread_create(&threads[started], NULL, wait_for_it, &g))
        started++;
    pthread_mutex_lock(&g.lock);
    g.open = true;
    pthread_cond_broadcast(&g.changed);
    pthread_mutex_unlock(&g.lock);
    for (int i = 1; i < started; i++)
        pthread_join(threads[i], NULL);
    free(threads);
    if (started < n)
        return ATOMS_ERR_THREADS;
    had = n;
    return ATOMS_OK;
}

/* -------------------------------------------------------------- stopping */

atoms_status atoms_poll(const atoms_ctx *ctx, atoms_pollster *pollster)
{
    if (!ctx->p.poll)
        return ATOMS_OK;
    struct timespec t;
    timespec_get(&t, TIME_UTC);
    double now = (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
    if (now >= pollster->last && now - pollster->last < 0.1) /* a clock that was set back does not silence it */
        return ATOMS_OK;
    pollster->last = now;
    return ctx->p.poll(ctx->p.poll_data) ? ATOMS_ERR_CANCELLED : ATOMS_OK;
}

static atoms_status team_status(atoms_team *team)
{
    atoms_status status;
#pragma omp atomic read
    status = team->status;
    return status;
}

bool atoms_team_stopped(atoms_team *team)
{
    return team_status(team) < 0;
}

void atoms_team_report(atoms_team *team, atoms_status status)
{
    if (status == ATOMS_OK && atoms_thread() == 0)
        status = atoms_poll(team->ctx, &team->pollster);
    if (status < 0) {
#pragma omp atomic write
        team->status = status;
    }
}

atoms_status atoms_team_ask(atoms_team *team)
{
    if (!atoms_team_stopped(team))
        atoms_team_report(team, ATOMS_OK);
    return team_status(team);
}
