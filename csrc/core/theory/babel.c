/* babel.c: Babel's function, the largest sums of an atom's |cosines| with others.
 *
 * A task takes the cosines of TASK_ROWS atoms with all others, and sorts each row of them. */
#include "theory.h"

#include <math.h>

enum {
    TASK_ROWS = 128,
    STRIP_ATOMS = 4096, /* of a row of cosines, in one product */
    DIGIT_BITS = 11,
    DIGITS = 1 << DIGIT_BITS
};

typedef struct {
    const atoms_ctx *ctx;
    atoms_matrix unit;
    int64_t kmax;
    float *cosines; /* (threads, TASK_ROWS, n) */
    uint32_t *keys; /* (threads, 2, n): one row's magnitudes by their bits, and room to sort them */
    double *best;   /* (threads, kmax) */
} babel;

/* | cosines of each thread | keys of each | best sums of each | */
static void lay_out(babel *b, atoms_arena *arena)
{
    const int64_t n = b->unit.n, threads = b->ctx->p.num_threads;
    ATOMS_TAKE(arena, b->cosines, threads * TASK_ROWS * n);
    ATOMS_TAKE(arena, b->keys, threads * 2 * n);
    ATOMS_TAKE(arena, b->best, threads * b->kmax);
}

/* Sorts n float32 magnitudes by their bits, largest first: a radix sort of three digits.
 * Returns the buffer, of the two, in which the result lies. */
static uint32_t *sort_descending(int64_t n, uint32_t *from, uint32_t *to)
{
    for (int shift = 0; shift < 3 * DIGIT_BITS; shift += DIGIT_BITS) {
        int64_t place[DIGITS] = {0};
        for (int64_t j = 0; j < n; j++)
            place[from[j] >> shift & (DIGITS - 1)]++;
        int64_t next = 0;
        for (int digit = DIGITS - 1; digit >= 0; digit--) {
            int64_t count = place[digit];
            place[digit] = next;
            next += count;
        }
        for (int64_t j = 0; j < n; j++)
            to[place[from[j] >> shift & (DIGITS - 1)]++] = from[j];
        uint32_t *swap = from;
        from = to;
        to = swap;
    }
    return from;
}

/* best[k - 1] = the larger of itself and the sum of the k largest of |c| (n), c[self] left out. keys: (2, n) */
static void babel_row(int64_t n, const float *c, int64_t self, int64_t kmax, uint32_t *keys, double *best)
{
    for (int64_t j = 0; j < n; j++) {
        float magnitude = j == self ? 0.0f : fminf(fabsf(c[j]), 1.0f);
        memcpy(keys + j, &magnitude, sizeof magnitude);
    }
    const uint32_t *sorted = sort_descending(n, keys, keys + n);
    double sum = 0;
    for (int64_t j = 0; j < kmax; j++) {
        float magnitude;
        memcpy(&magnitude, sorted + j, sizeof magnitude);
        sum += (double)magnitude;
        best[j] = fmax(best[j], sum);
    }
}

/* TASK_ROWS atoms from `first` on; given up half way once the caller wants to stop. */
static void task(const babel *b, int64_t first, atoms_team *team)
{
    const int64_t n = b->unit.n, thread = atoms_thread();
    const atoms_matrix rows = theory_rows(b->unit, first, TASK_ROWS);
    float *c = b->cosines + thread * TASK_ROWS * n;
    for (int64_t j = 0; j < n && atoms_team_ask(team) == ATOMS_OK; j += STRIP_ATOMS)
        theory_products(b->ctx, rows, theory_rows(b->unit, j, STRIP_ATOMS), c + j, n);
    for (int64_t i = 0; i < rows.n && atoms_team_ask(team) == ATOMS_OK; i++)
        babel_row(n, c + i * n, first + i, b->kmax, b->keys + thread * 2 * n, b->best + thread * b->kmax);
}

atoms_status atoms_babel(const atoms_ctx *ctx, atoms_matrix unit, int64_t kmax, double *babel_out)
{
    if (unit.n < 2 || unit.d < 1 || kmax < 1 || kmax >= unit.n)
        return ATOMS_ERR_ARGUMENT;
    const int threads = ctx->p.num_threads;
    babel b = {.ctx = ctx, .unit = unit, .kmax = kmax};
    atoms_arena arena = {0};
    lay_out(&b, &arena);
    if (!atoms_arena_open(&arena))
        return ATOMS_ERR_MEMORY;
    lay_out(&b, &arena);
    memset(b.best, 0, (size_t)(threads * kmax) * sizeof *b.best);
    atoms_team team = {.ctx = ctx};
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t first = 0; first < unit.n; first += TASK_ROWS)
        if (atoms_team_ask(&team) == ATOMS_OK)
            task(&b, first, &team);
    for (int64_t k = 0; k < kmax; k++) {
        babel_out[k] = 0;
        for (int thread = 0; thread < threads; thread++) /* a maximum: the order does not matter */
            babel_out[k] = fmax(babel_out[k], b.best[thread * kmax + k]);
    }
    atoms_arena_close(&arena);
    return team.status;
}
