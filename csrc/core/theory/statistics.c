/* statistics.c: explained variance, the cosines of all pairs of atoms, nearest atoms, Babel. */
#include "kernels.h"

#include <math.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#define EV_TILE 128   /* rows; x, h, e and the low half of e fit the second-level cache */
#define PAIR_TILE 512 /* atoms on each side of a tile of products */
#define NEAREST_TILE 256

/* Thread 0 asks the caller whether to stop; every thread learns the answer from *stop. */
static int stopped(const atoms_ctx *ctx, atoms_pollster *pollster, int *stop)
{
    int now;
#pragma omp atomic read
    now = *stop;
    if (!now && atoms_thread() == 0 && atoms_poll(ctx, pollster) != ATOMS_OK) {
        now = 1;
#pragma omp atomic write
        *stop = 1;
    }
    return now;
}

/* out (n, d) = rows i.. of x in float64 */
static void load(atoms_rows x, int64_t i, int64_t n, int64_t d, double *out)
{
    atoms_to_f64((atoms_rows){atoms_element(x, i, 0), x.type, n, d, x.rs, x.cs}, out);
}

/* x (n, d) times the symmetric or plain whitener (d, d), through scratch (n, d) */
static void whiten(const atoms_ctx *ctx, int64_t n, int64_t d, const double *whitener, double *x, double *scratch)
{
    atoms_gemm_f64(ctx, (atoms_mnk){n, d, d}, (atoms_f64_in){x, d, 1}, (atoms_f64_in){whitener, d, 1}, 0.0,
                   (atoms_f64_out){scratch, d, 1});
    memcpy(x, scratch, (size_t)(n * d) * sizeof *x);
}

/* ---------------------------------------------------- explained variance */

/* One tile of rows: fills its tokens and its two groups of sums; the number of a bad row or -1.
 * work (4, EV_TILE, d). */
static int64_t ev_tile(const atoms_ctx *ctx, const theory_kernels *k, int64_t n, int64_t d, int64_t first,
                       atoms_rows xs, atoms_rows hs, const double *whitener, const double *mean, double massive_norm,
                       double *work, double *sums, double *tokens)
{
    double *x = work, *h = x + EV_TILE * d, *e = h + EV_TILE * d, *lo = e + EV_TILE * d;
    load(xs, first, n, d, x);
    if (hs.data)
        load(hs, first, n, d, h);
    k->difference(n * d, x, hs.data ? h : NULL, e, lo);
    for (int64_t i = 0; i < n; i++) {
        double plain[3];
        k->token(d, x + i * d, e + i * d, NULL, plain);
        if (!isfinite(plain[0]) || !isfinite(plain[1]))
            return first + i;
        tokens[4 * i] = plain[0];
    }
    if (whitener) {
        whiten(ctx, n, d, whitener, x, h);
        whiten(ctx, n, d, whitener, e, h);
        memset(lo, 0, (size_t)(n * d) * sizeof *lo);
    }
    memset(sums, 0, (size_t)(2 * ATOMS_EV_ROWS * d) * sizeof *sums);
    for (int64_t i = 0; i < n; i++) {
        int massive = sqrt(tokens[4 * i]) > massive_norm;
        k->token(d, x + i * d, e + i * d, mean, tokens + 4 * i + 1);
        k->accumulate(d, x + i * d, e + i * d, lo + i * d, sums + massive * ATOMS_EV_ROWS * d);
    }
    return -1;
}

atoms_status atoms_ev_update(const atoms_ctx *ctx, int64_t n, int64_t d, atoms_rows x, atoms_rows h,
                             const double *whitener, const double *mean, double massive_norm, double *sums,
                             double *tokens, int64_t *bad_row)
{
    *bad_row = -1;
    if (n < 0 || d < 1 || !(massive_norm >= 0))
        return ATOMS_ERR_ARGUMENT;
    const theory_kernels *k = ctx->kernels->theory;
    int threads = ctx->p.num_threads;
    int64_t tiles = (n + EV_TILE - 1) / EV_TILE, group = ATOMS_EV_ROWS * d;
    /* a round of tiles at a time bounds the memory for their sums; merged in order, so the
     * result does not depend on the size of a round */
    int64_t round = ATOMS_MIN(tiles, 4 * (int64_t)threads);
    double *work = atoms_alloc(4 * EV_TILE * d * threads, sizeof *work);
    double *parts = atoms_alloc(2 * group * round, sizeof *parts);
    int64_t *bad = atoms_alloc(round, sizeof *bad);
    atoms_status status = work && parts && bad ? ATOMS_OK : ATOMS_ERR_MEMORY;
    atoms_pollster pollster = {0};
    for (int64_t first = 0; first < tiles && status == ATOMS_OK; first += round) {
        int64_t count = ATOMS_MIN(round, tiles - first);
#pragma omp parallel num_threads(threads)
        {
            double *mine = work + 4 * EV_TILE * d * atoms_thread();
#pragma omp for schedule(dynamic)
            for (int64_t t = 0; t < count; t++) {
                int64_t row = (first + t) * EV_TILE;
                bad[t] = ev_tile(ctx, k, ATOMS_MIN(EV_TILE, n - row), d, row, x, h, whitener, mean, massive_norm, mine,
                                 parts + 2 * group * t, tokens + 4 * row);
            }
        }
        for (int64_t t = 0; t < count && status == ATOMS_OK; t++) {
            if (bad[t] >= 0) {
                *bad_row = bad[t];
                status = ATOMS_ERR_NONFINITE;
            }
            k->merge(d, parts + 2 * group * t, sums);
            k->merge(d, parts + 2 * group * t + group, sums + group);
        }
        if (status == ATOMS_OK)
            status = atoms_poll(ctx, &pollster);
    }
    atoms_free(work);
    atoms_free(parts);
    atoms_free(bad);
    return status;
}

/* ------------------------------------------------------------ unit rows */

atoms_status atoms_unit_rows(const atoms_ctx *ctx, int64_t n, int64_t d, atoms_rows x, const double *whitener,
                             float *unit, double *norms, int64_t *bad_row)
{
    *bad_row = -1;
    if (n < 0 || d < 1)
        return ATOMS_ERR_ARGUMENT;
    int threads = ctx->p.num_threads;
    int64_t tiles = (n + EV_TILE - 1) / EV_TILE, bad = n;
    double *work = atoms_alloc(2 * EV_TILE * d * threads, sizeof *work);
    if (!work)
        return ATOMS_ERR_MEMORY;
    atoms_pollster pollster = {0};
    int stop = 0;
#pragma omp parallel for num_threads(threads) schedule(dynamic) reduction(min : bad)
    for (int64_t t = 0; t < tiles; t++) {
        if (stopped(ctx, &pollster, &stop))
            continue;
        int64_t first = t * EV_TILE, rows = ATOMS_MIN(EV_TILE, n - first);
        double *mine = work + 2 * EV_TILE * d * atoms_thread();
        load(x, first, rows, d, mine);
        if (whitener)
            whiten(ctx, rows, d, whitener, mine, mine + EV_TILE * d);
        for (int64_t i = 0; i < rows; i++) {
            double largest = 0, sum = 0;
            const double *v = mine + i * d;
            for (int64_t j = 0; j < d; j++) {
                if (!isfinite(v[j]))
                    largest = INFINITY;
                largest = fmax(largest, fabs(v[j]));
            }
            if (largest == 0 || !isfinite(largest)) {
                bad = ATOMS_MIN(bad, first + i);
                continue;
            }
            for (int64_t j = 0; j < d; j++) /* scaled: a square can neither overflow nor vanish */
                sum += (v[j] / largest) * (v[j] / largest);
            double norm = sqrt(sum);
            norms[first + i] = norm * largest;
            for (int64_t j = 0; j < d; j++)
                unit[(first + i) * d + j] = (float)(v[j] / largest / norm);
        }
    }
    atoms_free(work);
    if (stop)
        return ATOMS_ERR_CANCELLED;
    if (bad == n)
        return ATOMS_OK;
    *bad_row = bad;
    return ATOMS_ERR_NONFINITE;
}

/* ------------------------------------------------------- cosines of pairs */

typedef void (*count_cosines)(const theory_kernels *k, int64_t n, const float *c, const void *table, int64_t *counts);

static void count_coarse(const theory_kernels *k, int64_t n, const float *c, const void *table, int64_t *counts)
{
    (void)table;
    k->histogram(n, c, counts);
}

static void count_fine(const theory_kernels *k, int64_t n, const float *c, const void *table, int64_t *counts)
{
    k->refine(n, c, table, counts);
}

/* counts (size) = what `count` makes of every pair i < j. Counts are integers: their order of
 * addition does not matter. */
static atoms_status for_all_pairs(const atoms_ctx *ctx, int64_t n, int64_t d, const float *unit, count_cosines count,
                                  const void *table, int64_t size, int64_t *counts)
{
    const theory_kernels *k = ctx->kernels->theory;
    int threads = ctx->p.num_threads;
    int64_t side = (n + PAIR_TILE - 1) / PAIR_TILE;
    threads = (int)ATOMS_MIN(threads, ATOMS_MAX(1, side * (side + 1) / 2));
    int64_t *own = atoms_calloc(size * threads, sizeof *own);
    float *products = atoms_alloc((int64_t)PAIR_TILE * PAIR_TILE * threads, sizeof *products);
    int failed = !own || !products, stop = 0;
    atoms_pollster pollster = {0};
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t t = 0; t < (failed ? 0 : side * side); t++) {
        int64_t first = t / side * PAIR_TILE, second = t % side * PAIR_TILE;
        if (second < first || stopped(ctx, &pollster, &stop))
            continue;
        int64_t rows = ATOMS_MIN(PAIR_TILE, n - first), cols = ATOMS_MIN(PAIR_TILE, n - second);
        float *c = products + (int64_t)PAIR_TILE * PAIR_TILE * atoms_thread();
        int64_t *mine = own + size * atoms_thread();
        atoms_gemm_f32(ctx, (atoms_mnk){rows, cols, d}, (atoms_f32_in){unit + first * d, d, 1},
                       (atoms_f32_in){unit + second * d, 1, d}, 0.0f, (atoms_f32_out){c, cols, 1});
        for (int64_t i = 0; i < rows; i++) {
            int64_t skip = first == second ? i + 1 : 0;
            count(k, cols - skip, c + i * cols + skip, table, mine);
        }
    }
    if (!failed)
        for (int64_t j = 0; j < size; j++) {
            counts[j] = 0;
            for (int p = 0; p < threads; p++)
                counts[j] += own[size * p + j];
        }
    atoms_free(own);
    atoms_free(products);
    return failed ? ATOMS_ERR_MEMORY : stop ? ATOMS_ERR_CANCELLED : ATOMS_OK;
}

atoms_status atoms_cosine_histogram(const atoms_ctx *ctx, int64_t n, int64_t d, const float *unit, int64_t *counts)
{
    if (n < 1 || d < 1)
        return ATOMS_ERR_ARGUMENT;
    return for_all_pairs(ctx, n, d, unit, count_coarse, NULL, ATOMS_COSINE_BINS, counts);
}

atoms_status atoms_cosine_refine(const atoms_ctx *ctx, int64_t n, int64_t d, const float *unit, const int32_t *slot,
                                 int64_t num_slots, int64_t *counts)
{
    if (n < 1 || d < 1 || num_slots < 1)
        return ATOMS_ERR_ARGUMENT;
    for (int64_t b = 0; b < ATOMS_COSINE_BINS; b++)
        if (slot[b] >= num_slots)
            return ATOMS_ERR_ARGUMENT;
    return for_all_pairs(ctx, n, d, unit, count_fine, slot, num_slots << ATOMS_COSINE_LOW_BITS, counts);
}

/* ---------------------------------------------------------------- nearest */

atoms_status atoms_nearest(const atoms_ctx *ctx, int64_t n, int64_t m, int64_t d, const float *a, const float *b,
                           int absolute, int64_t *index, float *value)
{
    if (n < 0 || m < 1 || d < 1)
        return ATOMS_ERR_ARGUMENT;
    const theory_kernels *k = ctx->kernels->theory;
    int threads = ctx->p.num_threads;
    int64_t tiles = (n + NEAREST_TILE - 1) / NEAREST_TILE;
    float *products = atoms_alloc((int64_t)NEAREST_TILE * PAIR_TILE * threads, sizeof *products);
    if (!products)
        return ATOMS_ERR_MEMORY;
    int stop = 0;
    atoms_pollster pollster = {0};
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t t = 0; t < tiles; t++) {
        int64_t first = t * NEAREST_TILE, rows = ATOMS_MIN(NEAREST_TILE, n - first);
        float *c = products + (int64_t)NEAREST_TILE * PAIR_TILE * atoms_thread();
        for (int64_t i = 0; i < rows; i++) {
            index[first + i] = 0;
            value[first + i] = -INFINITY;
        }
        for (int64_t j = 0; j < m && !stopped(ctx, &pollster, &stop); j += PAIR_TILE) {
            int64_t cols = ATOMS_MIN(PAIR_TILE, m - j);
            atoms_gemm_f32(ctx, (atoms_mnk){rows, cols, d}, (atoms_f32_in){a + first * d, d, 1},
                           (atoms_f32_in){b + j * d, 1, d}, 0.0f, (atoms_f32_out){c, cols, 1});
            for (int64_t i = 0; i < rows; i++)
                k->largest(cols, c + i * cols, absolute, j, value + first + i, index + first + i);
        }
    }
    atoms_free(products);
    return stop ? ATOMS_ERR_CANCELLED : ATOMS_OK;
}

/* ------------------------------------------------------------------ Babel */

#define STRIP 128 /* rows of cosines held at a time by each thread */
#define STRIP_COLUMNS 4096
#define DIGIT_BITS 11
#define DIGITS (1 << DIGIT_BITS)

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

/* best (kmax) = the larger of itself and the sums of the k largest of |c| (n), c[self] left out */
static void babel_row(int64_t n, const float *c, int64_t self, int64_t kmax, uint32_t *keys, uint32_t *spare,
                      double *best)
{
    for (int64_t j = 0; j < n; j++) {
        float magnitude = j == self ? 0.0f : fminf(fabsf(c[j]), 1.0f);
        memcpy(keys + j, &magnitude, sizeof magnitude);
    }
    const uint32_t *sorted = sort_descending(n, keys, spare);
    double sum = 0;
    for (int64_t j = 0; j < kmax; j++) {
        float magnitude;
        memcpy(&magnitude, sorted + j, sizeof magnitude);
        sum += (double)magnitude;
        best[j] = fmax(best[j], sum);
    }
}

atoms_status atoms_babel(const atoms_ctx *ctx, int64_t n, int64_t d, const float *unit, int64_t kmax, double *babel)
{
    if (n < 2 || d < 1 || kmax < 1 || kmax >= n)
        return ATOMS_ERR_ARGUMENT;
    int threads = ctx->p.num_threads;
    int64_t strips = (n + STRIP - 1) / STRIP;
    float *products = atoms_alloc((int64_t)STRIP * n * threads, sizeof *products);
    uint32_t *keys = atoms_alloc(2 * n * threads, sizeof *keys);
    double *best = atoms_calloc(kmax * threads, sizeof *best);
    int failed = !products || !keys || !best, stop = 0;
    atoms_pollster pollster = {0};
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t t = 0; t < (failed ? 0 : strips); t++) {
        if (stopped(ctx, &pollster, &stop))
            continue;
        int64_t first = t * STRIP, rows = ATOMS_MIN(STRIP, n - first);
        float *c = products + (int64_t)STRIP * n * atoms_thread();
        uint32_t *mine = keys + 2 * n * atoms_thread();
        for (int64_t j = 0; j < n && !stopped(ctx, &pollster, &stop); j += STRIP_COLUMNS)
            atoms_gemm_f32(ctx, (atoms_mnk){rows, ATOMS_MIN(STRIP_COLUMNS, n - j), d},
                           (atoms_f32_in){unit + first * d, d, 1}, (atoms_f32_in){unit + j * d, 1, d}, 0.0f,
                           (atoms_f32_out){c + j, n, 1});
        for (int64_t i = 0; i < rows && !stopped(ctx, &pollster, &stop); i++)
            babel_row(n, c + i * n, first + i, kmax, mine, mine + n, best + kmax * atoms_thread());
    }
    if (!failed)
        for (int64_t j = 0; j < kmax; j++) {
            babel[j] = 0;
            for (int p = 0; p < threads; p++) /* a maximum: the order does not matter */
                babel[j] = fmax(babel[j], best[kmax * p + j]);
        }
    atoms_free(products);
    atoms_free(keys);
    atoms_free(best);
    return failed ? ATOMS_ERR_MEMORY : stop ? ATOMS_ERR_CANCELLED : ATOMS_OK;
}
