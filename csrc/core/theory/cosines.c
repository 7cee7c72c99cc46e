/* cosines.c: |cosines| of all pairs of atoms, counted by their bits; each atom's nearest in another dictionary.
 *
 * Both go by tiles of products whose sizes are fixed, so that a pair's product has the same bits in every call. */
#include "theory.h"

#include <math.h>

/* ------------------------------------------------------------ all pairs */

/* What one row c (n) of cosines adds to counts; `slot` as in atoms_cosine_refine. */
typedef void (*count_cosines)(const theory_kernels *k, int64_t n, const float *c, const int32_t *slot, int64_t *counts);

static void count_coarse(const theory_kernels *k, int64_t n, const float *c, const int32_t *slot, int64_t *counts)
{
    (void)slot;
    k->histogram(n, c, counts);
}

static void count_fine(const theory_kernels *k, int64_t n, const float *c, const int32_t *slot, int64_t *counts)
{
    k->refine(n, c, slot, counts);
}

typedef struct {
    atoms_matrix unit;
    count_cosines count;
    const int32_t *slot;
    int64_t size; /* of the counts */
    int threads;
    int64_t *counts; /* (threads, size): whole numbers, so their order of addition does not matter */
    float *products; /* (threads, THEORY_SIDE, THEORY_SIDE) */
} all_pairs;

/* | counts of each thread | a tile of products of each | */
static void lay_out(all_pairs *p, atoms_arena *arena)
{
    ATOMS_TAKE(arena, p->counts, p->threads * p->size);
    ATOMS_TAKE(arena, p->products, (int64_t)p->threads * THEORY_SIDE * THEORY_SIDE);
}

/* The tile of rows from `first` and columns from `second` on, or, on the diagonal, its upper triangle. */
static void count_tile(const atoms_ctx *ctx, const all_pairs *p, int64_t first, int64_t second)
{
    float *c = p->products + (int64_t)atoms_thread() * THEORY_SIDE * THEORY_SIDE;
    int64_t *mine = p->counts + atoms_thread() * p->size;
    const atoms_matrix a = theory_rows(p->unit, first, THEORY_SIDE), b = theory_rows(p->unit, second, THEORY_SIDE);
    theory_products(ctx, a, b, c, b.n);
    for (int64_t i = 0; i < a.n; i++) {
        int64_t skip = first == second ? i + 1 : 0;
        p->count(ctx->kernels->theory, b.n - skip, c + i * b.n + skip, p->slot, mine);
    }
}

static atoms_status for_all_pairs(const atoms_ctx *ctx, all_pairs *p, int64_t *counts)
{
    const int64_t side = atoms_ceil_div(p->unit.n, THEORY_SIDE);
    p->threads = (int)ATOMS_MIN(ctx->p.num_threads, ATOMS_MAX(1, side * (side + 1) / 2));
    atoms_arena arena = {0};
    lay_out(p, &arena);
    if (!atoms_arena_open(&arena))
        return ATOMS_ERR_MEMORY;
    lay_out(p, &arena);
#pragma omp parallel for num_threads(p->threads) schedule(static)
    for (int thread = 0; thread < p->threads; thread++)
        memset(p->counts + thread * p->size, 0, (size_t)p->size * sizeof *p->counts);
    atoms_team team = {.ctx = ctx};
#pragma omp parallel for num_threads(p->threads) schedule(dynamic)
    for (int64_t t = 0; t < side * side; t++) {
        int64_t first = t / side * THEORY_SIDE, second = t % side * THEORY_SIDE;
        if (second >= first && atoms_team_ask(&team) == ATOMS_OK)
            count_tile(ctx, p, first, second);
    }
#pragma omp parallel for num_threads(p->threads) schedule(static)
    for (int64_t j = 0; j < p->size; j++) {
        counts[j] = 0;
        for (int thread = 0; thread < p->threads; thread++)
            counts[j] += p->counts[thread * p->size + j];
    }
    atoms_arena_close(&arena);
    return team.status;
}

atoms_status atoms_cosine_histogram(const atoms_ctx *ctx, atoms_matrix unit, int64_t *counts)
{
    if (unit.n < 1 || unit.d < 1)
        return ATOMS_ERR_ARGUMENT;
    all_pairs p = {.unit = unit, .count = count_coarse, .size = ATOMS_COSINE_BINS};
    return for_all_pairs(ctx, &p, counts);
}

atoms_status atoms_cosine_refine(const atoms_ctx *ctx, atoms_matrix unit, const int32_t *slot, int64_t num_slots,
                                 int64_t *counts)
{
    if (unit.n < 1 || unit.d < 1 || num_slots < 1)
        return ATOMS_ERR_ARGUMENT;
    for (int64_t b = 0; b < ATOMS_COSINE_BINS; b++)
        if (slot[b] >= num_slots)
            return ATOMS_ERR_ARGUMENT;
    all_pairs p = {.unit = unit, .count = count_fine, .slot = slot, .size = num_slots << ATOMS_COSINE_LOW_BITS};
    return for_all_pairs(ctx, &p, counts);
}

/* --------------------------------------------------------------- nearest */

enum { NEAREST_ROWS = 256 /* of a task: so many by THEORY_SIDE products at a time */ };

typedef struct {
    atoms_matrix a, b;
    int absolute, back; /* back: whether b's nearest are wanted too */
    int threads;
    float *products; /* (threads, NEAREST_ROWS, THEORY_SIDE) */
    float *best;     /* (threads, b.n): b's nearest among the rows of a that a thread has seen */
    int64_t *where;  /* the same, their rows */
} nearest;

/* | products of each thread | best of each | where of each | */
static void lay_out_nearest(nearest *p, atoms_arena *arena)
{
    ATOMS_TAKE(arena, p->products, (int64_t)p->threads * NEAREST_ROWS * THEORY_SIDE);
    ATOMS_TAKE(arena, p->best, p->back ? p->threads * p->b.n : 0);
    ATOMS_TAKE(arena, p->where, p->back ? p->threads * p->b.n : 0);
}

static void begin(int64_t n, float *best, int64_t *where)
{
    for (int64_t i = 0; i < n; i++) {
        best[i] = -INFINITY;
        where[i] = 0;
    }
}

/* The rows of a from `first` on beside those of b from `second` on. */
static void nearest_tile(const atoms_ctx *ctx, const nearest *p, int64_t first, int64_t second, int64_t *index,
                         float *value)
{
    const theory_kernels *k = ctx->kernels->theory;
    const atoms_matrix rows = theory_rows(p->a, first, NEAREST_ROWS), some = theory_rows(p->b, second, THEORY_SIDE);
    const int64_t thread = atoms_thread(), mine = thread * p->b.n + second;
    float *c = p->products + thread * NEAREST_ROWS * THEORY_SIDE;
    theory_products(ctx, rows, some, c, some.n);
    for (int64_t i = 0; i < rows.n; i++) {
        const float *row = c + i * some.n;
        k->largest(some.n, row, p->absolute, second, value + first + i, index + first + i);
        if (p->back)
            k->columns(some.n, row, p->absolute, first + i, p->best + mine, p->where + mine);
    }
}

/* What the threads have found, brought together; of equals the first row of a. */
static void merge_nearest(const nearest *p, int64_t *index, float *value)
{
    begin(p->b.n, value, index);
    for (int thread = 0; thread < p->threads; thread++)
        for (int64_t j = 0; j < p->b.n; j++) {
            const float best = p->best[thread * p->b.n + j];
            const int64_t where = p->where[thread * p->b.n + j];
            if (best > value[j] || (best == value[j] && where < index[j])) {
                value[j] = best;
                index[j] = where;
            }
        }
}

atoms_status atoms_nearest(const atoms_ctx *ctx, atoms_matrix a, atoms_matrix b, int absolute, int64_t *index,
                           float *value, int64_t *back_index, float *back_value)
{
    const int back = back_index && back_value;
    if (a.n < back || b.n < 1 || a.d < 1 || a.d != b.d || !back_index != !back_value)
        return ATOMS_ERR_ARGUMENT;
    const int64_t tasks = atoms_ceil_div(a.n, NEAREST_ROWS);
    nearest p = {.a = a, .b = b, .absolute = absolute, .back = back};
    p.threads = (int)ATOMS_MIN(ctx->p.num_threads, ATOMS_MAX(1, tasks));
    atoms_arena arena = {0};
    lay_out_nearest(&p, &arena);
    if (!atoms_arena_open(&arena))
        return ATOMS_ERR_MEMORY;
    lay_out_nearest(&p, &arena);
    if (back)
        begin(p.threads * b.n, p.best, p.where);
    begin(a.n, value, index);
    atoms_team team = {.ctx = ctx};
#pragma omp parallel for num_threads(p.threads) schedule(dynamic)
    for (int64_t t = 0; t < tasks; t++)
        for (int64_t j = 0; j < b.n && atoms_team_ask(&team) == ATOMS_OK; j += THEORY_SIDE)
            nearest_tile(ctx, &p, t * NEAREST_ROWS, j, index, value);
    if (back)
        merge_nearest(&p, back_index, back_value);
    atoms_arena_close(&arena);
    return team.status;
}
