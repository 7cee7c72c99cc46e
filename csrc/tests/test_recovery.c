/* test_recovery.c: codes of known supports, and short memory, under the sanitizers. */
#include "check.h"
#include "recovery/kernels.h"

enum { ATOMS = 70, D = 33, N = 19, K = 4 };

typedef struct {
    int32_t indices[N * ATOMS], counts[N], steps[N];
    double values[N * ATOMS], residual[N], gap[N];
    int8_t status[N];
} codes;

/* Where a solver writes them, `width` entries a row. */
static atoms_codes into(codes *c, int64_t width)
{
    return (atoms_codes){width, c->indices, c->values, c->counts, c->status, c->steps, c->residual, c->gap};
}

static atoms_rows rows_of(const double *x, int64_t n)
{
    return (atoms_rows){x, ATOMS_F64, n, D, D, 1};
}

static void fill(double *x, int64_t n, uint64_t *seed)
{
    for (int64_t i = 0; i < n; i++)
        x[i] = atoms_test_random(seed);
}

/* Signals of two atoms each, coefficients 2 and 1.5. */
static void plant(const double *atoms, double *x)
{
    for (int i = 0; i < N; i++)
        for (int j = 0; j < D; j++)
            x[i * D + j] = 2 * atoms[i * D + j] + 1.5 * atoms[(i + 20) * D + j];
}

static atoms_status run(const atoms_ctx *ctx, const atoms_dict *dict, int method, const double *x, codes *c)
{
    memset(c, 0, sizeof *c);
    double alpha = 1e-3;
    const atoms_codes few = into(c, K), all = into(c, ATOMS);
    if (method == 0) {
        atoms_omp_params p = {.n_nonzero = K, .tol = 1e-6};
        return atoms_omp(ctx, dict, rows_of(x, N), &p, &few);
    }
    if (method == 1) {
        atoms_lasso_params p = {1, &alpha, 0, 1e-8, 100, ATOMS};
        return atoms_lasso(ctx, dict, rows_of(x, N), &p, &all);
    }
    if (method == 2) {
        atoms_basis_params p = {0, 1e-7, 200};
        return atoms_basis(ctx, dict, rows_of(x, N), &p, &all);
    }
    atoms_pursuit_params p = {(atoms_pursuit_method)(method - 3), K, 60, 1e-6};
    return atoms_pursuit(ctx, dict, rows_of(x, N), &p, &few);
}

enum { METHODS = 7 };

TEST(recovery_same_bits_for_any_threads)
{
    static double atoms[ATOMS * D], x[N * D];
    static codes one, many;
    uint64_t seed = 9;
    fill(atoms, ATOMS * D, &seed);
    plant(atoms, x);
    for (int i = 0; i < atoms_test_contexts(); i += 2) { /* i: 1 thread, i + 1: 3 threads */
        atoms_ctx *a = atoms_test_context(i), *b = atoms_test_context(i + 1);
        for (int gram = 0; gram < 2; gram++) {
            atoms_dict *dict = NULL;
            CHECK(atoms_dict_new(a, rows_of(atoms, ATOMS), ATOMS_F64, &dict) == ATOMS_OK);
            CHECK(!gram || atoms_dict_gram(b, dict) == ATOMS_OK);
            for (int method = 0; method < METHODS; method++) {
                CHECK(run(a, dict, method, x, &one) == ATOMS_OK);
                CHECK(run(b, dict, method, x, &many) == ATOMS_OK);
                CHECK(!memcmp(&one, &many, sizeof one));
                for (int s = 0; s < N; s++)
                    for (int p = 0; p < one.counts[s] && method < 3 && method != 1; p++)
                        CHECK(fabs(one.residual[s]) < 1e-4);
            }
            atoms_dict_free(dict);
        }
        atoms_ctx_free(a), atoms_ctx_free(b);
    }
}

TEST(recovery_short_memory)
{
    static double atoms[ATOMS * D], x[N * D];
    static codes c;
    uint64_t seed = 9;
    fill(atoms, ATOMS * D, &seed);
    plant(atoms, x);
    for (int i = 0; i < atoms_test_contexts(); i += atoms_test_contexts() - 1) {
        atoms_ctx *ctx = atoms_test_context(i);
        atoms_dict *dict = NULL;
        int nth;
        CHECK_SHORT_MEMORY(nth, 200, atoms_dict_new(ctx, rows_of(atoms, ATOMS), ATOMS_F64, &dict));
        CHECK(dict != NULL);
        for (int method = 0; method < METHODS; method++)
            CHECK_SHORT_MEMORY(nth, 200, run(ctx, dict, method, x, &c));
        atoms_dict_free(dict);
        atoms_ctx_free(ctx);
    }
}

static double along(const double *a, const double *b)
{
    double sum = 0;
    for (int e = 0; e < D; e++)
        sum += a[e] * b[e];
    return sum;
}

/* Least squares over the atoms of the code: what is left has no part along any of them. */
TEST(recovery_nonnegative_codes)
{
    static double atoms[ATOMS * D], x[N * D];
    static codes one, many;
    uint64_t seed = 11;
    int again = 0;
    fill(atoms, ATOMS * D, &seed);
    fill(x, N * D, &seed);
    const atoms_omp_params p = {.n_nonzero = 20, .tol = -1, .nonnegative = 1};
    atoms_ctx *a = atoms_test_context(0), *b = atoms_test_context(1);
    atoms_dict *dict = NULL;
    CHECK(atoms_dict_new(a, rows_of(atoms, ATOMS), ATOMS_F64, &dict) == ATOMS_OK);
    const atoms_codes from_one = into(&one, ATOMS), from_many = into(&many, ATOMS);
    CHECK(atoms_omp(a, dict, rows_of(x, N), &p, &from_one) == ATOMS_OK);
    CHECK(atoms_omp(b, dict, rows_of(x, N), &p, &from_many) == ATOMS_OK);
    for (int i = 0; i < N; i++) {
        const int count = one.counts[i];
        const int32_t *j = one.indices + i * ATOMS;
        const double *z = one.values + i * ATOMS;
        CHECK(count == many.counts[i] && !memcmp(z, many.values + i * ATOMS, (size_t)count * sizeof *z));
        again += one.steps[i] > count;
        double r[D];
        memcpy(r, x + i * D, sizeof r);
        for (int k = 0; k < count; k++)
            for (int e = 0; e < D; e++)
                r[e] -= z[k] * atoms[j[k] * D + e];
        for (int k = 0; k < count; k++)
            CHECK(z[k] > 0 && fabs(along(atoms + j[k] * D, r)) < 1e-10);
        CHECK(fabs(sqrt(along(r, r)) - one.residual[i]) < 1e-10);
    }
    CHECK(again > 3); /* codes that some atom has left */
    int nth;
    CHECK_SHORT_MEMORY(nth, 200, atoms_omp(a, dict, rows_of(x, N), &p, &from_one));
    atoms_dict_free(dict);
    atoms_ctx_free(a), atoms_ctx_free(b);
}

/* Signals that no code meets get the nearest one, or say that memory is short. */
TEST(recovery_basis_infeasible_in_short_memory)
{
    static double atoms[ATOMS * D], x[N * D];
    static codes c;
    uint64_t seed = 4;
    fill(atoms, ATOMS * D, &seed);
    plant(atoms, x);
    for (int j = 0; j < ATOMS; j++)
        atoms[j * D] = 0;
    atoms_ctx *ctx = atoms_test_context(0);
    atoms_dict *dict = NULL;
    CHECK(atoms_dict_new(ctx, rows_of(atoms, ATOMS), ATOMS_F64, &dict) == ATOMS_OK);
    int nth;
    CHECK_SHORT_MEMORY(nth, 200, run(ctx, dict, 2, x, &c));
    for (int i = 0; i < N; i++)
        CHECK(c.status[i] == ATOMS_SIGNAL_INFEASIBLE && fabs(c.residual[i] - fabs(x[i * D])) < 1e-6);
    atoms_dict_free(dict);
    atoms_ctx_free(ctx);
}

/* Few coordinates and one atom more than a panel: whatever penalty and norms, codes are of atoms that there are. */
TEST(recovery_extreme_penalties_stay_inside)
{
    enum { MANY = PANEL_ATOMS + 1, FEW = 3, SIGNALS = 5 };
    static double atoms[MANY * FEW], x[SIGNALS * FEW], scaled[SIGNALS * FEW], values[SIGNALS * MANY];
    static int32_t indices[SIGNALS * MANY], counts[SIGNALS], steps[SIGNALS];
    static int8_t status[SIGNALS];
    const double norms[] = {1, 1e30, 1e-30, 1e39, 1e300, 1e-300},
                 alphas[] = {1e-3, 1e-30, 1e-46, 1e-300, 5e-324, 1e300};
    const atoms_codes codes = {MANY, indices, values, counts, status, steps, NULL, NULL};
    uint64_t seed = 11;
    atoms_ctx *ctx = atoms_test_context(atoms_test_contexts() - 1);
    for (int k = 0; k < 6 * 2 * 3 * 2; k++) {
        const double norm = norms[k % 6];
        for (int i = 0; i < MANY * FEW; i++)
            atoms[i] = i / FEW == 7 ? 0 : atoms_test_random(&seed) * (k / 36 ? norms[i / FEW % 6] : norm);
        atoms_dict *dict = NULL;
        const atoms_rows rows = {atoms, ATOMS_F64, MANY, FEW, FEW, 1};
        CHECK(atoms_dict_new(ctx, rows, k / 6 % 2 ? ATOMS_F32 : ATOMS_F64, &dict) == ATOMS_OK);
        CHECK(k / 12 % 3 != 1 || atoms_dict_gram(ctx, dict) == ATOMS_OK);
        CHECK(k / 12 % 3 != 2 || atoms_dict_units(ctx, dict) == ATOMS_OK);
        for (int a = 0; a < 6 * 6 * 2; a++) {
            for (int i = 0; i < SIGNALS * FEW; i++) {
                x[i] = atoms_test_random(&seed);
                scaled[i] = x[i] * norms[a % 6];
            }
            const atoms_lasso_params p = {1, &alphas[a / 6 % 6], a / 36, 1e-6, 50, FEW};
            CHECK(atoms_lasso(ctx, dict, (atoms_rows){scaled, ATOMS_F64, SIGNALS, FEW, FEW, 1}, &p, &codes) ==
                  ATOMS_OK);
            for (int i = 0; i < SIGNALS; i++) {
                CHECK(counts[i] <= MANY);
                for (int j = 0; j < counts[i]; j++)
                    CHECK(indices[i * MANY + j] >= 0 && indices[i * MANY + j] < MANY && indices[i * MANY + j] != 7);
            }
        }
        atoms_dict_free(dict);
    }
    atoms_ctx_free(ctx);
}

#if defined(__x86_64__)
/* Row i is of unit norm; now and then one coordinate is all of it, or whole runs are zero. */
static void unit_row(int64_t d, int i, float *row, uint64_t *seed)
{
    double sum = 0;
    for (int64_t j = 0; j < d; j++) {
        double v = atoms_test_random(seed);
        row[j] = (float)(i % 3 == 1 && j == d / 2 ? 1000 : i % 3 == 2 && j < d / 2 ? 0 : v);
        sum += (double)row[j] * (double)row[j];
    }
    for (int64_t j = 0; j < d && sum > 0; j++)
        row[j] = (float)((double)row[j] / sqrt(sum));
}

static double product(int64_t d, const float *a, const float *b)
{
    double sum = 0;
    for (int64_t j = 0; j < d; j++)
        sum += (double)a[j] * (double)b[j];
    return sum;
}

static void short_products_keep_their_bounds(const atoms_ctx *ctx)
{
    enum { M = 7, NP = 2 * PANEL_ATOMS, MOST = 400 };
    static float x[M * MOST], atoms[NP * MOST], out[M * NP], exact[NP * NP], units[M * CHUNKS(MOST)];
    static int16_t rows[M * MOST], gram[NP * NP], fine[NP * NP];
    uint64_t seed = 3;
    const int64_t sizes[] = {1, 2, 33, CHUNK - 1, CHUNK, CHUNK + 1, MOST};
    for (int k = 0; k < 7 && ctx->kernels->short_rows; k++) {
        int64_t d = sizes[k];
        double lost[M];
        dict_units u;
        const struct short_kernels *kernels = ctx->kernels->short_rows;
        for (int i = 0; i < M; i++)
            unit_row(d, i, x + i * d, &seed);
        for (int i = 0; i < NP; i++)
            unit_row(d, i < NP - 5 ? i : 2, atoms + i * d, &seed);
        memset(atoms + (NP - 5) * d, 0, (size_t)(5 * d) * sizeof *atoms);
        memcpy(atoms, x, (size_t)d * sizeof *x); /* one product is 1 */
        CHECK(dict_units_new(ctx, NP, d, atoms, &u) == ATOMS_OK);
        for (int i = 0; i < M; i++)
            lost[i] = kernels->round_rows(1, d, x + i * d, u.ld, rows + i * u.ld, units + i * CHUNKS(u.ld));
        kernels->products(M, rows, units, &u, NP / PANEL_ATOMS, out, NP);
        for (int i = 0; i < M; i++)
            for (int j = 0; j < NP; j++) {
                double bound = lost[i] + u.error + lost[i] * u.error + PRODUCT_ERROR(u.ld);
                CHECK(fabs(out[i * NP + j] - product(d, x + i * d, atoms + j * d)) <= bound);
            }
        CHECK(u.error < 1e-3);
        kernels->gram(&u, PANEL_ATOMS, 0, PANEL_ATOMS, NP, gram, NP);
        for (int i = 0; i < PANEL_ATOMS; i++)
            for (int j = 0; j < NP; j++) {
                double true_one = product(d, atoms + (i + PANEL_ATOMS) * d, atoms + j * d);
                double bound = 2 * u.error + u.error * u.error + SHORT_ERROR + PRODUCT_ERROR(u.ld);
                exact[i * NP + j] = (float)true_one;
                CHECK(fabs((double)gram[i * NP + j] / SHORT_ONE - true_one) <= bound);
            }
        kernels->round_gram(PANEL_ATOMS * NP, exact, fine);
        for (int i = 0; i < PANEL_ATOMS * NP; i++)
            CHECK(fabs((double)fine[i] / SHORT_ONE - (double)exact[i]) <= SHORT_ERROR);
        dict_units_free(&u);
    }
}

TEST(recovery_short_products_keep_their_bounds)
{
    for (int k = 0; k < atoms_test_contexts(); k++) {
        atoms_ctx *ctx = atoms_test_context(k);
        short_products_keep_their_bounds(ctx);
        atoms_ctx_free(ctx);
    }
}

static atoms_status short_matrices(const atoms_ctx *ctx, atoms_dict *dict, int coarse)
{
    atoms_status status = coarse ? atoms_dict_coarse(ctx, dict) : atoms_dict_gram(ctx, dict);
    status = status == ATOMS_OK ? atoms_dict_units(ctx, dict) : status;
    return status == ATOMS_OK ? atoms_dict_fine(ctx, dict) : status;
}

/* Signals that wait for 16-bit correlations, on any number of threads and in short memory. */
TEST(recovery_lasso_screened)
{
    static double atoms[ATOMS * D], x[N * D];
    double alphas[] = {0.3, 0.01};
    static codes c, again;
    uint64_t seed = 6;
    fill(atoms, ATOMS * D, &seed);
    plant(atoms, x);
    atoms_ctx *ctx = atoms_test_context(atoms_test_contexts() - 1);
    atoms_dict *dict = NULL;
    CHECK(atoms_dict_new(ctx, rows_of(atoms, ATOMS), ATOMS_F32, &dict) == ATOMS_OK);
    CHECK(atoms_dict_units(ctx, dict) == ATOMS_OK);
    for (int a = 0; a < 2; a++) {
        atoms_lasso_params p = {1, &alphas[a], 0, 1e-5, 1000, ATOMS};
        int nth;
        const atoms_codes first = into(&c, ATOMS), second = into(&again, ATOMS);
        CHECK_SHORT_MEMORY(nth, 200, atoms_lasso(ctx, dict, rows_of(x, N), &p, &first));
        CHECK(atoms_lasso(ctx, dict, rows_of(x, N), &p, &second) == ATOMS_OK);
        for (int i = 0; i < N; i++)
            CHECK(c.status[i] == ATOMS_SIGNAL_CONVERGED && c.counts[i] == again.counts[i] && c.gap[i] == again.gap[i]);
        p.most_atoms = 1;
        CHECK(atoms_lasso(ctx, dict, rows_of(x, N), &p, &first) == ATOMS_OK);
        int open = 0;
        for (int i = 0; i < N; i++) {
            open += c.status[i] == ATOMS_SIGNAL_OPEN;
            CHECK(c.status[i] == ATOMS_SIGNAL_CONVERGED || (c.status[i] == ATOMS_SIGNAL_OPEN && c.counts[i] == 0));
        }
        CHECK(open > 0 || !atoms_dict_has_units(dict));
        p.most_atoms = 0;
        CHECK(atoms_lasso(ctx, dict, rows_of(x, N), &p, &second) == ATOMS_OK);
        for (int i = 0; i < N; i++)
            CHECK(again.status[i] == ATOMS_SIGNAL_CONVERGED);
        p.most_atoms = -1;
        CHECK(atoms_lasso(ctx, dict, rows_of(x, N), &p, &second) == ATOMS_ERR_ARGUMENT);
    }
    atoms_dict_free(dict);
    atoms_ctx_free(ctx);
}

TEST(recovery_short_gram_matrices_in_short_memory)
{
    static double atoms[ATOMS * D];
    uint64_t seed = 5;
    fill(atoms, ATOMS * D, &seed);
    atoms_ctx *ctx = atoms_test_context(atoms_test_contexts() - 1);
    for (int coarse = 0; coarse < 2; coarse++) {
        atoms_dict *dict = NULL;
        CHECK(atoms_dict_new(ctx, rows_of(atoms, ATOMS), ATOMS_F32, &dict) == ATOMS_OK);
        int nth;
        CHECK_SHORT_MEMORY(nth, 50, short_matrices(ctx, dict, coarse));
        atoms_dict_free(dict);
    }
    atoms_ctx_free(ctx);
}
#endif

enum { FIT_D = 70, FIT_N = 23, FIT_M = 9 };

typedef struct {
    float x[FIT_N * FIT_D], values[2 * FIT_N], atoms[FIT_M * FIT_D];
    int64_t indptr[FIT_N + 1];
    int32_t indices[2 * FIT_N];
    double energy[FIT_M];
} fit;

/* Signals of two atoms each of the first FIT_M - 1. */
static void start_fit(fit *f)
{
    uint64_t seed = 3;
    for (int i = 0; i < FIT_N * FIT_D; i++)
        f->x[i] = (float)atoms_test_random(&seed);
    for (int i = 0; i < FIT_M * FIT_D; i++)
        f->atoms[i] = (float)atoms_test_random(&seed);
    for (int i = 0; i < 2 * FIT_N; i++) {
        f->indices[i] = (i + i / 4) % (FIT_M - 1);
        f->values[i] = (float)(1 + atoms_test_random(&seed));
    }
    for (int i = 0; i <= FIT_N; i++)
        f->indptr[i] = 2 * i;
    for (int j = 0; j < FIT_M; j++)
        f->energy[j] = 1;
}

static atoms_status run_fit(const atoms_ctx *ctx, fit *f)
{
    const atoms_csr_view codes = {FIT_N, FIT_M, f->indptr, f->indices, f->values};
    return atoms_fit_atoms(ctx, (atoms_rows){f->x, ATOMS_F32, FIT_N, FIT_D, FIT_D, 1}, &codes, 0.5, 2, f->atoms,
                           f->energy);
}

TEST(recovery_atoms_fitted)
{
    static fit one, many, before;
    start_fit(&before);
    for (int i = 0; i < atoms_test_contexts(); i += 2) {
        atoms_ctx *a = atoms_test_context(i), *b = atoms_test_context(i + 1);
        one = many = before;
        CHECK(run_fit(a, &one) == ATOMS_OK && run_fit(b, &many) == ATOMS_OK);
        CHECK(!memcmp(&one, &many, sizeof one));
        for (int j = 0; j < FIT_M; j++) {
            double square = 0;
            for (int c = 0; c < FIT_D; c++)
                square += (double)one.atoms[j * FIT_D + c] * one.atoms[j * FIT_D + c];
            CHECK(j == FIT_M - 1 || fabs(square - 1) < 1e-5);
        }
        const size_t last = (FIT_M - 1) * FIT_D; /* of no code: stays */
        CHECK(!memcmp(one.atoms + last, before.atoms + last, FIT_D * sizeof(float)));
        CHECK(one.energy[FIT_M - 1] == 0.5);
        one = before;
        one.indices[5] = FIT_M;
        CHECK(run_fit(a, &one) == ATOMS_ERR_ARGUMENT);
        one = before;
        one.values[5] = NAN;
        CHECK(run_fit(a, &one) == ATOMS_ERR_NONFINITE);
        one = before;
        one.x[5] = INFINITY;
        CHECK(run_fit(a, &one) == ATOMS_ERR_NONFINITE);
        int nth;
        CHECK_SHORT_MEMORY(nth, 10, (one = before, run_fit(a, &one)));
        atoms_ctx_free(a), atoms_ctx_free(b);
    }
}

typedef struct {
    codes c;
    float probability[N * ATOMS];
} spiky;

static atoms_status run_spikes(const atoms_ctx *ctx, const atoms_dict *dict, const double *x, int64_t candidates,
                               spiky *s)
{
    double rate[ATOMS], height[ATOMS], spread[ATOMS];
    for (int j = 0; j < ATOMS; j++)
        rate[j] = 0.03, height[j] = 7, spread[j] = 2;
    const atoms_spikes_params p = {rate, height, spread, 0.7, candidates, 2, 2, 0.5, s->probability};
    const atoms_codes out = into(&s->c, candidates);
    memset(s, 0, sizeof *s);
    return atoms_spikes(ctx, dict, rows_of(x, N), &p, &out);
}

TEST(recovery_spikes)
{
    static double atoms[ATOMS * D], x[N * D];
    static spiky one, many;
    uint64_t seed = 5;
    fill(atoms, ATOMS * D, &seed);
    plant(atoms, x);
    for (int i = 0; i < atoms_test_contexts(); i += 2) {
        atoms_ctx *a = atoms_test_context(i), *b = atoms_test_context(i + 1);
        atoms_dict *dict = NULL;
        CHECK(atoms_dict_new(a, rows_of(atoms, ATOMS), ATOMS_F32, &dict) == ATOMS_OK);
        CHECK(run_spikes(a, dict, x, 20, &one) == ATOMS_OK && run_spikes(b, dict, x, 20, &many) == ATOMS_OK);
        CHECK(!memcmp(&one, &many, sizeof one));
        int right = 0;
        for (int64_t row = 0; row < N; row++)
            for (int k = 0; k < one.c.counts[row]; k++) {
                const int64_t atom = one.c.indices[row * 20 + k];
                CHECK(one.probability[row * 20 + k] >= 0.5f && one.probability[row * 20 + k] <= 1);
                right += atom == row || atom == row + 20;
            }
        CHECK(right > N);
        CHECK(run_spikes(a, dict, x, ATOMS + 1, &one) == ATOMS_ERR_ARGUMENT);
        int nth;
        CHECK_SHORT_MEMORY(nth, 10, run_spikes(a, dict, x, ATOMS, &one));
        atoms_dict_free(dict);
        atoms_ctx_free(a), atoms_ctx_free(b);
    }
}

TEST(recovery_atoms_apart)
{
    static fit f;
    static float out[FIT_M * FIT_D], again[FIT_M * FIT_D];
    start_fit(&f);
    const atoms_csr_view codes = {FIT_N, FIT_M, f.indptr, f.indices, f.values};
    for (int i = 0; i < atoms_test_contexts(); i += 2) {
        atoms_ctx *a = atoms_test_context(i), *b = atoms_test_context(i + 1);
        CHECK(atoms_part_atoms(a, &codes, FIT_D, f.atoms, f.energy, 0.05, 0.5, out) == ATOMS_OK);
        CHECK(atoms_part_atoms(b, &codes, FIT_D, f.atoms, f.energy, 0.05, 0.5, again) == ATOMS_OK);
        CHECK(!memcmp(out, again, sizeof out));
        CHECK(memcmp(out, f.atoms, sizeof out));
        CHECK(atoms_part_atoms(a, &codes, FIT_D, f.atoms, f.energy, 0, 0.5, out) == ATOMS_ERR_ARGUMENT);
        CHECK(atoms_part_atoms(a, &codes, FIT_D, f.atoms, f.energy, 0.05, 1.5, out) == ATOMS_ERR_ARGUMENT);
        int nth;
        CHECK_SHORT_MEMORY(nth, 10, atoms_part_atoms(a, &codes, FIT_D, f.atoms, f.energy, 0.05, 0.5, out));
        atoms_ctx_free(a), atoms_ctx_free(b);
    }
}
