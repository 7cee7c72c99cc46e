/* test_sae.c: training steps, codes and resets on every context, and their ways to fail. */
#include "check.h"

enum { N = 150, D = 21, S = 70, K = 5 };

static float x[N * D], err[N * D], enc[S * D], dec[S * D], theta[S];

static void fill(void)
{
    uint64_t state = 7;
    for (int i = 0; i < N * D; i++)
        x[i] = (float)atoms_test_random(&state);
    for (int j = 0; j < S; j++) {
        double norm = 0;
        for (int c = 0; c < D; c++) {
            dec[j * D + c] = (float)atoms_test_random(&state);
            norm += (double)dec[j * D + c] * (double)dec[j * D + c];
        }
        for (int c = 0; c < D; c++) {
            dec[j * D + c] /= (float)sqrt(norm);
            enc[j * D + c] = dec[j * D + c] + 0.1f * (float)atoms_test_random(&state);
        }
        theta[j] = 0.3f;
    }
}

static atoms_batch rows_of(const float *from)
{
    return (atoms_batch){.x = from, .dtype = ATOMS_F32, .row_stride = D, .col_stride = 1};
}

/* `wide`: Matryoshka of two widths, and AuxK's room. */
static atoms_sae *new_sae(const atoms_ctx *ctx, atoms_activation activation, bool tied, bool wide)
{
    atoms_sae_params p;
    atoms_sae *sae = NULL;
    atoms_sae_params_init(&p);
    p.d_in = D;
    p.d_sae = S;
    p.k = K;
    p.activation = activation;
    p.tied = tied;
    if (wide) {
        p.n_prefixes = 2;
        p.prefix[0] = S / 3;
        p.prefix[1] = S;
    }
    CHECK(atoms_sae_new(ctx, &p, &sae) == ATOMS_OK);
    atoms_sae_set(sae, ATOMS_W_ENC, enc);
    atoms_sae_set(sae, ATOMS_W_DEC, dec);
    atoms_sae_set(sae, ATOMS_THRESHOLD, theta);
    return sae;
}

static const atoms_sae_step_params step_params = {.learning_rate = 1e-2f,
                                                  .threshold_rate = 1e-2f,
                                                  .l0_coefficient = 0.05f,
                                                  .l1_coefficient = 0.05f,
                                                  .threshold_shift = 1e-3f,
                                                  .k = K,
                                                  .silent_after = 100,
                                                  .silent_factor = 0.9f,
                                                  .rise_after = 150,
                                                  .rise = 0.1f,
                                                  .aux_k = 3,
                                                  .dead_after = 100,
                                                  .aux_coefficient = 0.5f};

static void check_codes(const atoms_ctx *ctx, const atoms_sae *sae)
{
    static int32_t indices[N * S];
    static float values[N * S];
    int64_t indptr[N + 1];
    atoms_csr *codes = NULL;
    atoms_sae_stats stats;
    atoms_batch from = rows_of(x);
    CHECK(atoms_sae_encode(ctx, N, sae, &from, &codes, &stats) == ATOMS_OK);
    CHECK(atoms_csr_nnz(codes) > 0);
    atoms_csr_copy(codes, indptr, indices, values);
    CHECK(indptr[0] == 0 && indptr[N] == atoms_csr_nnz(codes));
    for (int i = 0; i < N; i++)
        for (int64_t e = indptr[i]; e < indptr[i + 1]; e++)
            CHECK(values[e] > 0 && indices[e] < S && (e == indptr[i] || indices[e] > indices[e - 1]));
    atoms_csr_free(codes);
    CHECK(atoms_sae_encode(ctx, 0, sae, &from, &codes, &stats) == ATOMS_OK);
    CHECK(atoms_csr_nnz(codes) == 0);
    atoms_csr_free(codes);
}

TEST(sae_learns_on_every_context)
{
    fill();
    for (int i = 0; i < atoms_test_contexts(); i++) {
        atoms_ctx *ctx = atoms_test_context(i);
        atoms_batch from = rows_of(x);
        for (int a = ATOMS_JUMPRELU; a <= ATOMS_BATCHTOPK; a++)
            for (int tied = 0; tied < 2; tied++) {
                atoms_sae *sae = new_sae(ctx, (atoms_activation)a, tied, tied);
                atoms_sae_stats stats;
                double before = 0;
                for (int step = 0; step < 12; step++) {
                    /* batches of other sizes reuse the workspace */
                    int64_t n = step % 3 == 1 ? 64 : step % 3 == 2 ? 1 : N;
                    CHECK(atoms_sae_step(ctx, n, sae, &from, &step_params, err, &stats) == ATOMS_OK);
                    if (step == 0)
                        before = stats.squared_error;
                }
                CHECK(atoms_sae_step(ctx, N, sae, &from, &step_params, NULL, &stats) == ATOMS_OK);
                CHECK(stats.squared_error < before);
                if (a == ATOMS_BATCHTOPK)
                    atoms_sae_set(sae, ATOMS_THRESHOLD, theta);
                check_codes(ctx, sae);
                int64_t idx[2] = {S - 1, 0};
                float scales[2] = {0.5f, 1}, thresholds[2] = {0.1f, 0.2f};
                CHECK(atoms_sae_reset(ctx, 2, sae, idx, dec, scales, thresholds) == ATOMS_OK);
                idx[0] = S;
                CHECK(atoms_sae_reset(ctx, 2, sae, idx, dec, scales, thresholds) == ATOMS_ERR_ARGUMENT);
                atoms_sae_free(sae);
            }
        atoms_ctx_free(ctx);
    }
}

TEST(sae_refuses_what_it_cannot_train)
{
    atoms_sae_params p;
    atoms_sae *sae;
    atoms_sae_params_init(&p);
    atoms_ctx *ctx = atoms_test_context(0);
    CHECK(atoms_sae_new(ctx, &p, &sae) == ATOMS_ERR_ARGUMENT); /* no sizes */
    p.d_in = p.d_sae = 3;
    p.activation = ATOMS_TOPK;
    CHECK(atoms_sae_new(ctx, &p, &sae) == ATOMS_ERR_ARGUMENT); /* no k */
    p.activation = ATOMS_JUMPRELU;
    p.n_prefixes = 2;
    p.prefix[0] = p.prefix[1] = 3;
    CHECK(atoms_sae_new(ctx, &p, &sae) == ATOMS_ERR_ARGUMENT); /* not ascending */
    p.n_prefixes = 0;
    p.bandwidth = NAN;
    CHECK(atoms_sae_new(ctx, &p, &sae) == ATOMS_ERR_ARGUMENT);

    fill();
    sae = new_sae(ctx, ATOMS_JUMPRELU, false, false);
    atoms_sae_stats stats;
    static float bad[N * D];
    memcpy(bad, x, sizeof bad);
    bad[77 * D + 3] = NAN;
    atoms_batch from = rows_of(bad);
    CHECK(atoms_sae_step(ctx, N, sae, &from, &step_params, NULL, &stats) == ATOMS_ERR_NONFINITE);
    CHECK(stats.bad_row == 77);
    const int64_t index[3] = {5, 77, 6};
    from.index = index; /* rows are named as the caller numbers them */
    CHECK(atoms_sae_step(ctx, 3, sae, &from, &step_params, NULL, &stats) == ATOMS_ERR_NONFINITE);
    CHECK(stats.bad_row == 77);
    CHECK(atoms_sae_step(ctx, 0, sae, &from, &step_params, NULL, &stats) == ATOMS_ERR_ARGUMENT);
    CHECK(atoms_sae_nonfinite(sae) == -1);
    static float damaged[S];
    damaged[S - 1] = -INFINITY;
    atoms_sae_set(sae, ATOMS_B_ENC, damaged);
    CHECK(atoms_sae_nonfinite(sae) == ATOMS_B_ENC);
    static float weights[S * D];
    weights[S * D - 1] = NAN;
    atoms_sae_set(sae, ATOMS_W_DEC, weights);
    CHECK(atoms_sae_nonfinite(sae) == ATOMS_W_DEC);
    atoms_ctx_free(ctx);
    atoms_sae_free(sae);
}

TEST(sae_survives_running_out_of_memory)
{
    fill();
    atoms_ctx *ctx = atoms_test_context(0);
    for (int nth = 1; nth < 60; nth++) {
        atoms_sae *sae = new_sae(ctx, ATOMS_TOPK, false, true);
        atoms_batch from = rows_of(x);
        atoms_sae_stats stats;
        atoms_csr *codes = NULL;
        atoms_test_fail_alloc(nth);
        atoms_status stepped = atoms_sae_step(ctx, N, sae, &from, &step_params, NULL, &stats);
        bool failed = atoms_test_fail_alloc(0);
        CHECK(stepped == (failed ? ATOMS_ERR_MEMORY : ATOMS_OK));
        /* whatever happened, it goes on working */
        CHECK(atoms_sae_step(ctx, N, sae, &from, &step_params, NULL, &stats) == ATOMS_OK);
        atoms_test_fail_alloc(nth);
        atoms_status encoded = atoms_sae_encode(ctx, N, sae, &from, &codes, &stats);
        failed = atoms_test_fail_alloc(0);
        CHECK(encoded == (failed ? ATOMS_ERR_MEMORY : ATOMS_OK));
        if (encoded == ATOMS_OK)
            atoms_csr_free(codes);
        atoms_sae_free(sae);
    }
    atoms_ctx_free(ctx);
}
