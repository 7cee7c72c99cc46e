/* test_theory.c: explained variance, unit rows, cosines of all pairs, nearest, Babel. */
#include "check.h"

enum { N = 140, D = 7, K = N - 1 };

static atoms_rows plain(const float *x, int64_t n)
{
    return (atoms_rows){x, ATOMS_F32, n, D, D, 1};
}

static atoms_matrix matrix(const float *x, int64_t n)
{
    return (atoms_matrix){x, n, D};
}

static const atoms_ev_params no_limit = {.massive_norm = INFINITY};

static void fill(float *x, int64_t n, uint64_t seed)
{
    for (int64_t i = 0; i < n; i++)
        x[i] = (float)atoms_test_random(&seed);
}

static int stop_now(void *data)
{
    ++*(int *)data;
    return 1;
}

/* A context that is told to stop at the first question. */
static atoms_ctx *stopping(int *asked)
{
    atoms_ctx_params p;
    atoms_ctx *ctx = NULL;
    atoms_ctx_params_init(&p);
    p.blas = ATOMS_BLAS_FORTRAN;
    p.f_sgemm = atoms_test_sgemm;
    p.f_dgemm = atoms_test_dgemm;
    p.poll = stop_now;
    p.poll_data = asked;
    CHECK(atoms_ctx_new(&p, &ctx) == ATOMS_OK);
    return ctx;
}

TEST(theory_explained_variance_sums)
{
    static float x[N * D], h[N * D];
    static double sums[2][ATOMS_EV_ROWS][D], tokens[N][4], eye[D * D], mean[D];
    fill(x, N * D, 1);
    fill(h, N * D, 2);
    for (int j = 0; j < D; j++) {
        x[5 * D + j] = 100; /* a massive row */
        eye[j * D + j] = 2;
        mean[j] = 0.25 * j;
    }
    for (int c = 0; c < atoms_test_contexts(); c++) {
        atoms_ctx *ctx = atoms_test_context(c);
        for (int whiten = 0; whiten < 2; whiten++) {
            double scale = whiten ? 2 : 1;
            int64_t bad;
            memset(sums, 0, sizeof sums);
            const atoms_ev_params params = {50, whiten ? eye : NULL, mean};
            CHECK(atoms_ev_update(ctx, plain(x, N), plain(h, N), &params, &sums[0][0][0], &tokens[0][0], &bad) ==
                  ATOMS_OK);
            CHECK(bad == -1);
            for (int j = 0; j < D; j++) {
                double sx = 0, qe = 0;
                for (int i = 0; i < N; i++)
                    if (i != 5) {
                        sx += scale * (double)x[i * D + j];
                        qe += scale * scale * pow((double)x[i * D + j] - (double)h[i * D + j], 2);
                    }
                CHECK(fabs(sums[0][0][j] + sums[0][1][j] - sx) < 1e-12 * N);
                CHECK(fabs(sums[0][6][j] + sums[0][7][j] - qe) < 1e-12 * N);
                CHECK(sums[1][0][j] == 100 * scale && sums[1][2][j] == 10000 * scale * scale);
            }
            double deviation = 0;
            for (int j = 0; j < D; j++)
                deviation += pow(100 * scale - mean[j], 2);
            CHECK(fabs(tokens[5][3] - deviation) < 1e-9 && tokens[5][0] == 70000);
        }
        atoms_ctx_free(ctx);
    }
}

TEST(theory_rows_that_are_not_finite)
{
    static float x[N * D], unit[N * D];
    static double sums[2 * ATOMS_EV_ROWS * D], tokens[N * 4], norms[N];
    int64_t bad;
    fill(x, N * D, 3);
    x[131 * D + 2] = NAN;
    x[133 * D] = INFINITY;
    for (int c = 0; c < atoms_test_contexts(); c++) {
        atoms_ctx *ctx = atoms_test_context(c);
        CHECK(atoms_ev_update(ctx, plain(x, N), plain(NULL, N), &no_limit, sums, tokens, &bad) == ATOMS_ERR_NONFINITE);
        CHECK(bad == 131);
        CHECK(atoms_unit_rows(ctx, plain(x, N), NULL, unit, norms, &bad) == ATOMS_ERR_NONFINITE);
        CHECK(bad == 131);
        CHECK(atoms_unit_rows(ctx, plain(x, 131), NULL, unit, norms, &bad) == ATOMS_OK);
        CHECK(bad == -1);
        for (int i = 0; i < 131; i++) {
            double square = 0;
            for (int j = 0; j < D; j++)
                square += (double)unit[i * D + j] * (double)unit[i * D + j];
            CHECK(fabs(square - 1) < 1e-6);
        }
        atoms_ctx_free(ctx);
    }
}

/* Whole numbers: products are exact, whatever the order of summation. */
TEST(theory_cosines_by_their_bits)
{
    static float unit[N * D];
    static int64_t counts[ATOMS_COSINE_BINS], fine[2 << ATOMS_COSINE_LOW_BITS];
    static int32_t slot[ATOMS_COSINE_BINS];
    uint64_t seed = 4;
    for (int i = 0; i < N * D; i++)
        unit[i] = atoms_test_random(&seed) > 0 ? 0.25f : -0.25f;
    const int quarter = (int)(0x3e800000u >> ATOMS_COSINE_LOW_BITS) - 1; /* just below 0.25 */
    for (int b = 0; b < ATOMS_COSINE_BINS; b++)
        slot[b] = -1;
    int64_t want[D + 1] = {0};
    for (int i = 0; i < N; i++)
        for (int j = i + 1; j < N; j++) {
            float sum = 0;
            for (int k = 0; k < D; k++)
                sum += unit[i * D + k] * unit[j * D + k];
            want[(int)(fabsf(sum) * 16)]++;
        }
    slot[0x3d800000u >> ATOMS_COSINE_LOW_BITS] = 0; /* 1/16 */
    slot[quarter] = 1;
    for (int c = 0; c < atoms_test_contexts(); c++) {
        atoms_ctx *ctx = atoms_test_context(c);
        CHECK(atoms_cosine_histogram(ctx, matrix(unit, N), counts) == ATOMS_OK);
        int64_t total = 0;
        for (int b = 0; b < ATOMS_COSINE_BINS; b++)
            total += counts[b];
        CHECK(total == N * (N - 1) / 2);
        CHECK(counts[0x3d800000u >> ATOMS_COSINE_LOW_BITS] == want[1]);
        CHECK(atoms_cosine_refine(ctx, matrix(unit, N), slot, 2, fine) == ATOMS_OK);
        CHECK(fine[0] == want[1]);
        for (int b = 1; b < 2 << ATOMS_COSINE_LOW_BITS; b++)
            CHECK(fine[b] == 0);
        CHECK(atoms_cosine_refine(ctx, matrix(unit, N), slot, 1, fine) == ATOMS_ERR_ARGUMENT);
        atoms_ctx_free(ctx);
    }
}

TEST(theory_nearest_and_babel)
{
    static float a[N * D], values[N], other_values[N], back_values[N];
    static int64_t index[N], other[N], back[N];
    static double babel[K];
    uint64_t seed = 5;
    for (int i = 0; i < N * D; i++)
        a[i] = (float)(int)(4 * atoms_test_random(&seed)) / 64;
    for (int c = 0; c < atoms_test_contexts(); c++) {
        atoms_ctx *ctx = atoms_test_context(c);
        for (int absolute = 0; absolute < 2; absolute++) {
            const atoms_matrix all = matrix(a, N), some = matrix(a + 3 * D, N - 3);
            CHECK(atoms_nearest(ctx, all, some, absolute, index, values, NULL, NULL) == ATOMS_OK);
            CHECK(atoms_nearest(ctx, some, all, absolute, other, other_values, back, back_values) == ATOMS_OK);
            CHECK(memcmp(back, index, sizeof index) == 0 && memcmp(back_values, values, sizeof values) == 0);
            for (int i = 0; i < N; i++) {
                float best = -INFINITY;
                int where = 0;
                for (int j = 0; j < N - 3; j++) {
                    float sum = 0;
                    for (int k = 0; k < D; k++)
                        sum += a[i * D + k] * a[(j + 3) * D + k];
                    sum = absolute ? fabsf(sum) : sum;
                    if (sum > best)
                        best = sum, where = j;
                }
                CHECK(index[i] == where && values[i] == best);
            }
        }
        CHECK(atoms_babel(ctx, matrix(a, N), K, babel) == ATOMS_OK);
        double largest = 0, all = 0;
        for (int i = 0; i < N; i++) {
            double row = 0;
            for (int j = 0; j < N; j++) {
                float sum = 0;
                for (int k = 0; k < D; k++)
                    sum += a[i * D + k] * a[j * D + k];
                if (i != j) {
                    row += (double)fabsf(sum);
                    largest = fmax(largest, (double)fabsf(sum));
                }
            }
            all = fmax(all, row);
        }
        CHECK(babel[0] == largest && fabs(babel[K - 1] - all) < 1e-12);
        for (int k = 1; k < K; k++)
            CHECK(babel[k] >= babel[k - 1]);
        atoms_ctx_free(ctx);
    }
}

/* Every entry point, called once; 1: it did what `expect` says. */
static void call_all(atoms_ctx *ctx, atoms_status expect, int allocations)
{
    static float x[N * D], unit[N * D], values[N], others[N];
    static double sums[2 * ATOMS_EV_ROWS * D], tokens[N * 4], norms[N], babel[K];
    static int64_t counts[ATOMS_COSINE_BINS], fine[1 << ATOMS_COSINE_LOW_BITS], index[N], other[N], bad;
    static int32_t slot[ATOMS_COSINE_BINS];
    fill(x, N * D, 6);
    for (int i = 1; i <= allocations || i == 1; i++) {
        int at = allocations ? i : 0;
#define CALL(...)                                                                                                      \
    do {                                                                                                               \
        atoms_test_fail_alloc(at);                                                                                     \
        atoms_status status = __VA_ARGS__;                                                                             \
        bool served = atoms_test_fail_alloc(0);                                                                        \
        CHECK(status == (allocations && !served ? ATOMS_OK : expect));                                                 \
    } while (0)
        CALL(atoms_ev_update(ctx, plain(x, N), plain(NULL, N), &no_limit, sums, tokens, &bad));
        CALL(atoms_unit_rows(ctx, plain(x, N), NULL, unit, norms, &bad));
        CALL(atoms_cosine_histogram(ctx, matrix(x, N), counts));
        CALL(atoms_cosine_refine(ctx, matrix(x, N), slot, 1, fine));
        CALL(atoms_nearest(ctx, matrix(x, N), matrix(x, N), 1, index, values, other, others));
        CALL(atoms_babel(ctx, matrix(x, N), K, babel));
#undef CALL
    }
}

TEST(theory_memory_and_cancelling)
{
    atoms_ctx *ctx = atoms_test_context(0);
    call_all(ctx, ATOMS_ERR_MEMORY, 4);
    atoms_ctx_free(ctx);
    int asked = 0;
    ctx = stopping(&asked);
    call_all(ctx, ATOMS_ERR_CANCELLED, 0);
    CHECK(asked >= 6);
    atoms_ctx_free(ctx);
}

TEST(theory_arguments)
{
    float x[D] = {1}, value;
    double numbers[2 * ATOMS_EV_ROWS * D], tokens[4];
    int64_t bad, index;
    atoms_ctx *ctx = atoms_test_context(0);
    const atoms_rows one = plain(x, 1);
    const atoms_ev_params undefined = {.massive_norm = NAN};
    atoms_rows narrow = one;
    narrow.d = 0;
    CHECK(atoms_ev_update(ctx, plain(x, -1), one, &no_limit, numbers, tokens, &bad) == ATOMS_ERR_ARGUMENT);
    CHECK(atoms_ev_update(ctx, one, one, &undefined, numbers, tokens, &bad) == ATOMS_ERR_ARGUMENT);
    CHECK(atoms_ev_update(ctx, one, plain(x, 2), &no_limit, numbers, tokens, &bad) == ATOMS_ERR_ARGUMENT);
    CHECK(atoms_unit_rows(ctx, narrow, NULL, x, numbers, &bad) == ATOMS_ERR_ARGUMENT);
    CHECK(atoms_cosine_histogram(ctx, matrix(x, 0), NULL) == ATOMS_ERR_ARGUMENT);
    CHECK(atoms_cosine_refine(ctx, matrix(x, 1), NULL, 0, NULL) == ATOMS_ERR_ARGUMENT);
    const atoms_matrix none = matrix(x, 0), some = matrix(x, 1), narrower = {x, 1, D - 1};
    CHECK(atoms_nearest(ctx, some, none, 1, &index, &value, NULL, NULL) == ATOMS_ERR_ARGUMENT);
    CHECK(atoms_nearest(ctx, some, narrower, 1, &index, &value, NULL, NULL) == ATOMS_ERR_ARGUMENT);
    CHECK(atoms_nearest(ctx, some, some, 1, &index, &value, &index, NULL) == ATOMS_ERR_ARGUMENT);
    CHECK(atoms_nearest(ctx, none, some, 1, &index, &value, &index, &value) == ATOMS_ERR_ARGUMENT);
    CHECK(atoms_nearest(ctx, none, some, 1, NULL, NULL, NULL, NULL) == ATOMS_OK);
    CHECK(atoms_babel(ctx, matrix(x, 1), 1, numbers) == ATOMS_ERR_ARGUMENT);
    CHECK(atoms_babel(ctx, matrix(x, 2), 2, numbers) == ATOMS_ERR_ARGUMENT);
    atoms_ctx_free(ctx);
}
