/* variance.c: the sums behind explained variance, in double-double numbers.
 *
 * A task takes THEORY_ROWS rows of both samples and reconstructions to sums of its own. A round of tasks at a time
 * bounds the memory for these; they are added in order, so that the result depends neither on the size of a round nor
 * on the threads. */
#include "theory.h"

#include <math.h>

/* What all tasks of a call share. */
typedef struct {
    const atoms_ctx *ctx;
    const theory_kernels *kernels;
    atoms_rows x, h;
    const atoms_ev_params *params;
    double *tokens;
    int64_t round; /* tasks of a round */
    double *rows;  /* (threads, 4, THEORY_ROWS, d): x, h, e = x - h and e's low halves; h is scratch once e is there */
    double *parts; /* (round, 2, ATOMS_EV_ROWS, d): the tasks' sums for each group of samples */
    int64_t *bad;  /* (round): a row with NaN or infinity, or -1 */
} variance;

/* | rows of each thread | sums of a round's tasks | their bad rows | */
static void lay_out(variance *v, atoms_arena *arena)
{
    const int64_t d = v->x.d;
    ATOMS_TAKE(arena, v->rows, v->ctx->p.num_threads * 4 * THEORY_ROWS * d);
    ATOMS_TAKE(arena, v->parts, v->round * 2 * ATOMS_EV_ROWS * d);
    ATOMS_TAKE(arena, v->bad, v->round);
}

/* n rows from row `first` on: their tokens and both groups' sums (overwritten). Returns a row that is not finite, or
 * -1. */
static int64_t task(const variance *v, int64_t first, int64_t n, double *sums)
{
    const int64_t d = v->x.d, size = THEORY_ROWS * d;
    const theory_kernels *k = v->kernels;
    const atoms_ev_params *p = v->params;
    double *x = v->rows + atoms_thread() * 4 * size, *h = x + size, *e = h + size, *lo = e + size;
    double *tokens = v->tokens + first * ATOMS_EV_TOKENS;
    atoms_to_f64(atoms_some_rows(v->x, first, n), x);
    if (v->h.data)
        atoms_to_f64(atoms_some_rows(v->h, first, n), h);
    k->difference(n * d, x, v->h.data ? h : NULL, e, lo);
    for (int64_t i = 0; i < n; i++) {
        double plain[3];
        k->token(d, x + i * d, e + i * d, NULL, plain);
        if (!isfinite(plain[0]) || !isfinite(plain[1]))
            return first + i;
        tokens[i * ATOMS_EV_TOKENS] = plain[0];
    }
    if (p->whitener) {
        theory_whiten(v->ctx, n, d, p->whitener, x, h);
        theory_whiten(v->ctx, n, d, p->whitener, e, h);
        memset(lo, 0, (size_t)(n * d) * sizeof *lo);
    }
    memset(sums, 0, (size_t)(2 * ATOMS_EV_ROWS * d) * sizeof *sums);
    for (int64_t i = 0; i < n; i++) {
        double *token = tokens + i * ATOMS_EV_TOKENS;
        int massive = sqrt(token[0]) > p->massive_norm;
        k->token(d, x + i * d, e + i * d, p->mean, token + 1);
        k->accumulate(d, x + i * d, e + i * d, lo + i * d, sums + massive * ATOMS_EV_ROWS * d);
    }
    return -1;
}

/* Tasks first .. first + count of the whole, added to sums in order. */
static atoms_status one_round(const variance *v, int64_t first, int64_t count, double *sums, int64_t *bad_row)
{
    const int64_t d = v->x.d, group = ATOMS_EV_ROWS * d;
#pragma omp parallel for num_threads(v->ctx->p.num_threads) schedule(dynamic)
    for (int64_t t = 0; t < count; t++) {
        int64_t row = (first + t) * THEORY_ROWS;
        v->bad[t] = task(v, row, ATOMS_MIN(THEORY_ROWS, v->x.n - row), v->parts + 2 * group * t);
    }
    for (int64_t t = 0; t < count; t++) {
        if (v->bad[t] >= 0) {
            *bad_row = v->bad[t];
            return ATOMS_ERR_NONFINITE;
        }
        v->kernels->merge(d, v->parts + 2 * group * t, sums);
        v->kernels->merge(d, v->parts + 2 * group * t + group, sums + group);
    }
    return ATOMS_OK;
}

atoms_status atoms_ev_update(const atoms_ctx *ctx, atoms_rows x, atoms_rows h, const atoms_ev_params *params,
                             double *sums, double *tokens, int64_t *bad_row)
{
    *bad_row = -1;
    if (x.n < 0 || x.d < 1 || !(params->massive_norm >= 0) || (h.data && (h.n != x.n || h.d != x.d)))
        return ATOMS_ERR_ARGUMENT;
    const int64_t tasks = atoms_ceil_div(x.n, THEORY_ROWS);
    variance v = {.ctx = ctx, .kernels = ctx->kernels->theory, .x = x, .h = h, .params = params, .tokens = tokens};
    v.round = ATOMS_MIN(tasks, 4 * (int64_t)ctx->p.num_threads);
    atoms_arena arena = {0};
    lay_out(&v, &arena);
    if (!atoms_arena_open(&arena))
        return ATOMS_ERR_MEMORY;
    lay_out(&v, &arena);
    atoms_status status = ATOMS_OK;
    atoms_pollster pollster = {0};
    for (int64_t first = 0; first < tasks && status == ATOMS_OK; first += v.round) {
        status = one_round(&v, first, ATOMS_MIN(v.round, tasks - first), sums, bad_row);
        if (status == ATOMS_OK)
            status = atoms_poll(ctx, &pollster);
    }
    atoms_arena_close(&arena);
    return status;
}
