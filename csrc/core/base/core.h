/* core.h: what all rooms of the core share. Not installed.
 *
 * Words, the same in every room:
 *   row     one sample, atom or latent: its values side by side.
 *   panel   several rows interleaved, value by value, so that a kernel reads one stream for all of them. How many is
 *           the room's: PANEL_... says of what.
 *   tile    a rectangle of a result, or the signals, that one task works out.
 *   strip   a range of columns of many long rows, narrow enough to stay in a cache while the rows go by.
 *   block   rows that are taken together for no other reason than that all at once would be too many.
 */
#ifndef ATOMS_CORE_H
#define ATOMS_CORE_H

#include "atoms.h"
#include "isa/instances.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#ifdef _OPENMP
#include <omp.h>
#endif

#define ATOMS_MIN(a, b) ((a) < (b) ? (a) : (b))
#define ATOMS_MAX(a, b) ((a) > (b) ? (a) : (b))

struct atoms_ctx {
    atoms_ctx_params p;
    atoms_isa isa;                  /* what the CPU has and p.max_isa allows */
    const atoms_instances *kernels; /* every room's, for that instruction set */
    bool memory_limited;            /* an allocation may fail, and BLIS would end the process */
};

static inline int64_t atoms_ceil_div(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}

/* a rounded up to a multiple of b */
static inline int64_t atoms_whole(int64_t a, int64_t b)
{
    return atoms_ceil_div(a, b) * b;
}

/* ------------------------------------------------------- memory (memory.c) */

#define ATOMS_ALIGN 64 /* a cache line */

/* 64-byte aligned; NULL when n * size overflows or memory is short. Size 0 gives a valid block. */
void *atoms_alloc(int64_t n, size_t size);
void *atoms_calloc(int64_t n, size_t size);
void atoms_free(void *p);

/* The workspace of a call: one block, its size known before work begins, handed out from the front.
 *
 *     | first part | | second part    | | third part |      each begins on a cache line
 *     base                                           base + used
 *
 * A function that lays a workspace out takes every part in order. It is run twice: over an arena of zeros, which only
 * counts (all parts are NULL, so it must not touch them), and, once atoms_arena_open has got a block of that size, over
 * that. So each size is written once, nothing can run short in the middle of the work, and there is one thing to free:
 *
 *     atoms_arena arena = {0};
 *     lay_out(&work, &arena);
 *     if (!atoms_arena_open(&arena))
 *         return ATOMS_ERR_MEMORY;
 *     lay_out(&work, &arena);
 *     ...
 *     atoms_arena_close(&arena);
 *
 * What grows with the data (lists of active latents) can't be sized beforehand: atoms_grow. */
typedef struct {
    char *base; /* NULL while counting */
    size_t used;
    bool overflow; /* some size did not fit into size_t: open will say there is no memory */
} atoms_arena;

void *atoms_take(atoms_arena *arena, int64_t n, size_t size);
#define ATOMS_TAKE(arena, part, n) ((part) = atoms_take(arena, n, sizeof *(part)))
bool atoms_arena_open(atoms_arena *arena);
void atoms_arena_close(atoms_arena *arena);

/* Room for n elements where *cap were allocated before, and somewhat more; what was there is lost. On false there is
 * none at all. */
bool atoms_grow(void **p, int64_t *cap, int64_t n, size_t size);

/* Whether allocations may fail: there is a limit on this process's memory, or on what the system promises. */
bool atoms_memory_limited(void);
/* Whether the system would give so many bytes now. */
bool atoms_memory_left(size_t bytes);

/* --------------------------------------------------------- rows (rows.c) */

size_t atoms_dtype_size(atoms_dtype type); /* bytes of one element */

static inline const void *atoms_element(atoms_rows x, int64_t i, int64_t j)
{
    return (const char *)x.data + (i * x.rs + j * x.cs) * (int64_t)atoms_dtype_size(x.type);
}

/* n rows from row i on */
static inline atoms_rows atoms_some_rows(atoms_rows x, int64_t i, int64_t n)
{
    return (atoms_rows){atoms_element(x, i, 0), x.type, n, x.d, x.rs, x.cs};
}

/* their columns j .. j + d alone */
static inline atoms_rows atoms_some_columns(atoms_rows x, int64_t j, int64_t d)
{
    return (atoms_rows){atoms_element(x, 0, j), x.type, x.n, d, x.rs, x.cs};
}

/* Whether every index of the codes is that of a latent. */
static inline bool atoms_codes_inside(const atoms_csr_view *codes)
{
    for (int64_t e = codes->indptr[0]; e < codes->indptr[codes->n]; e++)
        if (codes->indices[e] < 0 || codes->indices[e] >= codes->width)
            return false;
    return true;
}

/* out (n, d) = the rows, converted */
void atoms_to_f32(atoms_rows x, float *out);
void atoms_to_f64(atoms_rows x, double *out);

#if defined(__x86_64__)
/* out (n) float32 = x (n) float16, on CPUs with F16C only. */
void atoms_f16_row_f16c(int64_t n, const uint16_t *x, float *out);
#endif

/* --------------------------------------------------------- team (team.c) */

/* The caller's number within its team. */
static inline int atoms_thread(void)
{
#ifdef _OPENMP
    return omp_get_thread_num();
#else
    return 0;
#endif
}

/* Asks the caller whether to stop, at most ten times a second: cheap enough for once per tile. Call it only from OpenMP
 * thread 0. Returns ATOMS_OK or ATOMS_ERR_CANCELLED. */
typedef struct {
    double last; /* when it last asked, in seconds */
} atoms_pollster;
atoms_status atoms_poll(const atoms_ctx *ctx, atoms_pollster *pollster);

/* Whether n threads, this one among them, can run at once: ATOMS_OK or ATOMS_ERR_THREADS. Where OpenMP cannot start one
 * it ends the process; so this starts and ends them before. */
atoms_status atoms_try_threads(int n);

/* What the threads of a parallel region tell each other: that one has failed, or that the caller
 * wants to stop. A thread asks before each task and reports after it; one that got no memory for
 * its workspace reports that before it starts. */
typedef struct {
    const atoms_ctx *ctx;
    atoms_status status; /* ATOMS_OK, or what somebody reported last */
    atoms_pollster pollster;
} atoms_team;
bool atoms_team_stopped(atoms_team *team);
/* From OpenMP thread 0 it also asks the caller. */
void atoms_team_report(atoms_team *team, atoms_status status);
/* Before a task or in the middle of a long one: ATOMS_OK, or the status to give it up with. From OpenMP thread 0 it
 * also asks the caller, until somebody has stopped. */
atoms_status atoms_team_ask(atoms_team *team);

/* ------------------------------------------------- products (blas.c, gemm.inc) */

/* Matrices of a product where they lie: element (i, j) is at[i * rs + j * cs]. */
typedef struct {
    const float *at;
    int64_t rs, cs;
} atoms_f32_in;
typedef struct {
    const double *at;
    int64_t rs, cs;
} atoms_f64_in;
typedef struct {
    float *at;
    int64_t rs, cs;
} atoms_f32_out;
typedef struct {
    double *at;
    int64_t rs, cs;
} atoms_f64_out;
typedef struct {
    int64_t m, n, k;
} atoms_mnk;

/* C (m, n) = A (m, k) B (k, n) + beta C. Fast when one stride of each pair is 1 and the other at least the length it
 * steps over; right, by plain loops, for any others. Runs on the calling thread only, from any thread, inside or
 * outside OpenMP regions. beta = 0 overwrites C, NaN included. Of a float32 C up to 8 bytes behind the last element are
 * read: what atoms_alloc gives has them. */
void atoms_gemm_f32(const atoms_ctx *ctx, atoms_mnk size, atoms_f32_in a, atoms_f32_in b, float beta, atoms_f32_out c);
void atoms_gemm_f64(const atoms_ctx *ctx, atoms_mnk size, atoms_f64_in a, atoms_f64_in b, double beta, atoms_f64_out c);

/* Starts BLIS, once, with the kernel family that suits this CPU; nothing without BLIS. ATOMS_ERR_MEMORY where its first
 * buffers cannot be had. */
atoms_status atoms_blas_start(void);
/* The params get Accelerate's sgemm and dgemm, made ready; nothing without Accelerate. */
void atoms_accelerate(atoms_ctx_params *params);
/* Once, before any product: a fork waits for the products that run, so that the locks of BLIS and OpenBLAS are free in
 * the child. */
atoms_status atoms_blas_watch_forks(void);
/* Around a product. BLIS takes buffers for as many products as run at once, keeps them, and ends the process where it
 * gets none: where memory is limited a product waits until there is room, or another one's buffers are free. */
void atoms_blas_enter(const atoms_ctx *ctx);
void atoms_blas_leave(const atoms_ctx *ctx);
/* The kernel families to try on a CPU where BLIS may choose badly, best first, NULL at the end;
 * NULL where its own choice stands. vendor and family as CPUID gives them. */
const char *const *atoms_blis_families(const char *vendor, int family, atoms_isa isa);

/* ----------------------------------------- small dense problems (linalg.c) */

/* Norm of x in float64, free of overflow and underflow; NaN when x holds NaN or infinity. */
double atoms_norm(int64_t d, const double *x);
/* x / norm, also where 1 / norm overflows */
void atoms_divide(int64_t d, double *x, double norm);

/* In-place Cholesky of the leading n x n block (row-major lower triangle). Returns n, or the
 * first row whose pivot is not above `floor`. */
int64_t atoms_cholesky(int64_t n, double *a, int64_t ld, double floor);
/* Solves L L' x = b in place, L as atoms_cholesky leaves it. */
void atoms_cholesky_solve(int64_t n, const double *l, int64_t ld, double *b);

/* The k-th largest of v (n values, reordered), 1 <= k <= n. */
float atoms_kth_largest(float *v, int64_t n, int64_t k);

#endif
