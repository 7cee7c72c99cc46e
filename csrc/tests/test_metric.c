/* test_metric.c: moments, products and angles on every context, and their ways to fail. */
#include "check.h"

enum { N = 700, D = 53, M = 29, BINS = 18 };

typedef struct {
    double x[N * D], shift[D], w[D * M], sum[D], second[D * D], sums[3];
    float out[N * M];
    double wide[N * M];
    int64_t counts[BINS];
} data;

static data *new_data(void)
{
    data *t = malloc(sizeof *t);
    uint64_t state = 1;
    for (int i = 0; i < N * D; i++)
        t->x[i] = atoms_test_random(&state) + 0.25;
    for (int i = 0; i < D; i++)
        t->shift[i] = atoms_test_random(&state);
    for (int i = 0; i < D * M; i++)
        t->w[i] = atoms_test_random(&state);
    return t;
}

static atoms_rows rows_of(const data *t)
{
    return (atoms_rows){t->x, ATOMS_F64, N, D, D, 1};
}

static atoms_status run_moments(const atoms_ctx *ctx, data *t)
{
    return atoms_moments(ctx, rows_of(t), t->shift, t->sum, t->second);
}

static atoms_status run_product(const atoms_ctx *ctx, data *t)
{
    return atoms_product(ctx, rows_of(t), M, t->shift, t->w, t->shift, t->out);
}

static atoms_status run_angles(const atoms_ctx *ctx, data *t)
{
    return atoms_angles(ctx, rows_of(t), NULL, BINS, t->counts, t->sums);
}

static atoms_status (*const runs[])(const atoms_ctx *, data *) = {run_moments, run_product, run_angles};

TEST(metric_moments)
{
    data *t = new_data();
    for (int c = 0; c < atoms_test_contexts(); c++) {
        atoms_ctx *ctx = atoms_test_context(c);
        CHECK(run_moments(ctx, t) == ATOMS_OK);
        for (int i = 0; i < D; i++)
            for (int j = 0; j < D; j++) {
                double exact = 0, size = 0;
                for (int k = 0; k < N; k++) {
                    double a = t->x[k * D + i] - t->shift[i], b = t->x[k * D + j] - t->shift[j];
                    exact += a * b;
                    size += fabs(a * b);
                }
                CHECK(fabs(t->second[i * D + j] - exact) <= 1e-13 * size);
            }
        atoms_ctx_free(ctx);
    }
    free(t);
}

TEST(metric_product)
{
    data *t = new_data();
    for (int c = 0; c < atoms_test_contexts(); c++) {
        atoms_ctx *ctx = atoms_test_context(c);
        CHECK(run_product(ctx, t) == ATOMS_OK);
        CHECK(atoms_product_f64(ctx, rows_of(t), M, t->shift, t->w, t->shift, t->wide) == ATOMS_OK);
        for (int i = 0; i < N; i += 31)
            for (int j = 0; j < M; j++) {
                double exact = t->shift[j];
                for (int k = 0; k < D; k++)
                    exact += (t->x[i * D + k] - t->shift[k]) * t->w[k * M + j];
                CHECK(fabs(t->out[i * M + j] - exact) <= 1e-6);
                CHECK(fabs(t->wide[i * M + j] - exact) <= 1e-13 && t->out[i * M + j] == (float)t->wide[i * M + j]);
            }
        atoms_ctx_free(ctx);
    }
    free(t);
}

TEST(metric_angles)
{
    data *t = new_data();
    int64_t first[] = {0, 5}, second[] = {1, 5};
    const atoms_pairs pairs = {2, first, second};
    for (int c = 0; c < atoms_test_contexts(); c++) {
        atoms_ctx *ctx = atoms_test_context(c);
        CHECK(run_angles(ctx, t) == ATOMS_OK);
        CHECK(t->sums[0] == N * (N - 1) / 2);
        int64_t total = 0;
        for (int k = 0; k < BINS; k++)
            total += t->counts[k];
        CHECK(total == N * (N - 1) / 2);
        CHECK(atoms_angles(ctx, rows_of(t), &pairs, BINS, t->counts, t->sums) == ATOMS_OK);
        CHECK(t->sums[0] == 2 && t->counts[0] == 1);
        second[1] = N;
        CHECK(atoms_angles(ctx, rows_of(t), &pairs, BINS, t->counts, t->sums) == ATOMS_ERR_ARGUMENT);
        second[1] = 5;
        atoms_ctx_free(ctx);
    }
    free(t);
}

TEST(metric_arguments_and_nothing)
{
    data *t = new_data();
    atoms_ctx *ctx = atoms_test_context(0);
    atoms_rows fewer = rows_of(t), narrow = rows_of(t), none = rows_of(t);
    fewer.n = -1, narrow.d = 0, none.n = 0;
    const atoms_pairs negative = {-1, NULL, NULL}, empty = {0, NULL, NULL};
    CHECK(atoms_moments(ctx, fewer, NULL, t->sum, t->second) == ATOMS_ERR_ARGUMENT);
    CHECK(atoms_moments(ctx, narrow, NULL, t->sum, t->second) == ATOMS_ERR_ARGUMENT);
    CHECK(atoms_moments(ctx, none, NULL, t->sum, t->second) == ATOMS_OK);
    CHECK(t->sum[0] == 0 && t->second[D * D - 1] == 0);
    CHECK(atoms_product(ctx, fewer, M, NULL, t->w, NULL, t->out) == ATOMS_ERR_ARGUMENT);
    CHECK(atoms_product(ctx, none, M, NULL, t->w, NULL, t->out) == ATOMS_OK);
    CHECK(atoms_angles(ctx, rows_of(t), NULL, 0, t->counts, t->sums) == ATOMS_ERR_ARGUMENT);
    CHECK(atoms_angles(ctx, none, NULL, BINS, t->counts, t->sums) == ATOMS_OK);
    CHECK(atoms_angles(ctx, rows_of(t), &negative, BINS, t->counts, t->sums) == ATOMS_ERR_ARGUMENT);
    CHECK(atoms_angles(ctx, rows_of(t), &empty, BINS, t->counts, t->sums) == ATOMS_OK && t->sums[0] == 0);
    atoms_ctx_free(ctx);
    free(t);
}

TEST(metric_not_finite)
{
    data *t = new_data();
    for (int c = 0; c < atoms_test_contexts(); c++) {
        atoms_ctx *ctx = atoms_test_context(c);
        t->x[N * D - 1] = c % 2 ? NAN : INFINITY;
        for (int r = 0; r < 3; r++)
            CHECK(runs[r](ctx, t) == ATOMS_ERR_NONFINITE);
        atoms_ctx_free(ctx);
    }
    free(t);
}

TEST(metric_out_of_memory)
{
    data *t = new_data();
    for (int c = 0; c < atoms_test_contexts(); c++) {
        atoms_ctx *ctx = atoms_test_context(c);
        for (int r = 0; r < 3; r++) {
            int nth;
            CHECK_SHORT_MEMORY(nth, 100, runs[r](ctx, t));
            CHECK(nth > 1 && nth < 100);
        }
        atoms_ctx_free(ctx);
    }
    free(t);
}

static int always(void *unused)
{
    (void)unused;
    return 1;
}

TEST(metric_cancelled)
{
    data *t = new_data();
    atoms_ctx_params params;
    atoms_ctx_params_init(&params);
    params.f_sgemm = atoms_test_sgemm;
    params.f_dgemm = atoms_test_dgemm;
    params.poll = always;
    for (params.num_threads = 1; params.num_threads < 4; params.num_threads += 2) {
        atoms_ctx *ctx = NULL;
        CHECK(atoms_ctx_new(&params, &ctx) == ATOMS_OK);
        CHECK(run_moments(ctx, t) == ATOMS_ERR_CANCELLED);
        /* with more threads the polling one may find nothing left to do */
        for (int r = 1; r < 3; r++) {
            atoms_status status = runs[r](ctx, t);
            CHECK(status == ATOMS_ERR_CANCELLED || (params.num_threads > 1 && status == ATOMS_OK));
        }
        atoms_ctx_free(ctx);
    }
    free(t);
}
