/* test_sae.c: training steps, codes and resets on every context, and their ways to fail. */
#include "check.h"

enum { N = 150, D = 21, S = 70, K = 5 };

static float x[N * D], enc[S * D], dec[S * D], theta[S];

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

static atoms_batch batch_of(const float *from, int64_t n)
{
    return (atoms_batch){.x = {from, ATOMS_F32, N, D, D, 1}, .n = n};
}

/* What the codes decode to, against sums in float64. */
static void check_decoding(const atoms_ctx *ctx, const atoms_csr_view *codes)
{
    static float xhat[N * D], bias[D];
    for (int c = 0; c < D; c++)
        bias[c] = 0.1f * (float)c;
    CHECK(atoms_decode(ctx, D, codes, dec, bias, xhat) == ATOMS_OK);
    double worst = 0;
    for (int i = 0; i < N; i++)
        for (int c = 0; c < D; c++) {
            double want = (double)bias[c];
            for (int64_t e = codes->indptr[i]; e < codes->indptr[i + 1]; e++)
                want += (double)codes->values[e] * (double)dec[codes->indices[e] * D + c];
            worst = fmax(worst, fabs(want - (double)xhat[i * D + c]));
        }
    CHECK(worst < 1e-5);
    atoms_csr_view narrow = *codes;
    narrow.width = 1;
    CHECK(atoms_decode(ctx, D, &narrow, dec, bias, xhat) == ATOMS_ERR_ARGUMENT);
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
                                                  .row_limit = 10,
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
    atoms_batch from = batch_of(x, N);
    CHECK(atoms_sae_encode(ctx, sae, &from, &codes, &stats) == ATOMS_OK);
    CHECK(atoms_csr_nnz(codes) > 0);
    atoms_csr_copy(ctx, codes, indptr, indices, values);
    CHECK(indptr[0] == 0 && indptr[N] == atoms_csr_nnz(codes));
    for (int i = 0; i < N; i++)
        for (int64_t e = indptr[i]; e < indptr[i + 1]; e++)
            CHECK(values[e] > 0 && indices[e] < S && (e == indptr[i] || indices[e] > indices[e - 1]));
    check_decoding(ctx, &(atoms_csr_view){N, S, indptr, indices, values});
    /* batches of other sizes, and then a model of another shape, in the same memory */
    from.n = 0;
    CHECK(atoms_sae_encode(ctx, sae, &from, &codes, &stats) == ATOMS_OK);
    CHECK(atoms_csr_nnz(codes) == 0);
    from.n = N / 2;
    CHECK(atoms_sae_encode(ctx, sae, &from, &codes, &stats) == ATOMS_OK);
    CHECK(atoms_csr_nnz(codes) == indptr[N / 2]);
    atoms_sae *other = NULL;
    atoms_sae_params p = *atoms_sae_get_params(sae);
    p.d_sae = p.prefix[p.n_prefixes - 1] = S + 70;
    CHECK(atoms_sae_new(ctx, &p, &other) == ATOMS_OK);
    from.n = N;
    CHECK(atoms_sae_encode(ctx, other, &from, &codes, &stats) == ATOMS_OK);
    CHECK(atoms_csr_nnz(codes) == 0); /* all its weights are zero */
    CHECK(atoms_sae_encode(ctx, sae, &from, &codes, &stats) == ATOMS_OK);
    CHECK(atoms_csr_nnz(codes) == indptr[N]);
    from.x.d--;
    CHECK(atoms_sae_encode(ctx, sae, &from, &codes, &stats) == ATOMS_ERR_ARGUMENT && !codes);
    atoms_sae_free(other);
}

TEST(sae_learns_on_every_context)
{
    fill();
    for (int i = 0; i < atoms_test_contexts(); i++) {
        atoms_ctx *ctx = atoms_test_context(i);
        atoms_batch from = batch_of(x, N);
        for (int a = ATOMS_JUMPRELU; a <= ATOMS_BATCHTOPK; a++)
            for (int tied = 0; tied < 2; tied++) {
                atoms_sae *sae = new_sae(ctx, (atoms_activation)a, tied, tied);
                atoms_sae_stats stats;
                double before = 0;
                for (int step = 0; step < 12; step++) {
                    /* batches of other sizes reuse the workspace */
                    from.n = step % 3 == 1 ? 64 : step % 3 == 2 ? 1 : N;
                    CHECK(atoms_sae_step(ctx, sae, &from, &step_params, &stats) == ATOMS_OK);
                    if (step == 0)
                        before = stats.squared_error;
                }
                from.n = N;
                CHECK(atoms_sae_step(ctx, sae, &from, &step_params, &stats) == ATOMS_OK);
                CHECK(stats.squared_error < before);
                if (a == ATOMS_BATCHTOPK)
                    atoms_sae_set(sae, ATOMS_THRESHOLD, theta);
                check_codes(ctx, sae);
                int64_t idx[2] = {S - 1, 0};
                float scales[2] = {0.5f, 1}, thresholds[2] = {0.1f, 0.2f};
                CHECK(atoms_sae_reset(ctx, 2, sae, idx, dec, NULL, scales, thresholds) == ATOMS_OK);
                idx[0] = S;
                CHECK(atoms_sae_reset(ctx, 2, sae, idx, dec, NULL, scales, thresholds) == ATOMS_ERR_ARGUMENT);
                atoms_sae_free(sae);
            }
        atoms_ctx_free(ctx);
    }
}

/* One call of several steps, and one call for each of them: the same model and the same control. */
TEST(sae_trains_in_any_number_of_calls)
{
    fill();
    float rates[] = {1e-2f, 2e-2f, 5e-3f};
    for (int a = ATOMS_JUMPRELU; a <= ATOMS_BATCHTOPK; a++) {
        atoms_ctx *ctx = atoms_test_context(0);
        atoms_sae *once = new_sae(ctx, (atoms_activation)a, false, false);
        atoms_sae *apart = new_sae(ctx, (atoms_activation)a, false, false);
        atoms_sae_plan plan = {.steps = 3, .rates = rates, .target_l0 = 4, .row_multiple = 4, .k = K};
        atoms_sae_control control = {0}, other = {0};
        atoms_sae_stats stats, last;
        atoms_batch from = batch_of(x, N / 3 * 3);
        int64_t done;
        CHECK(atoms_sae_train(ctx, once, &from, &plan, &control, &done, &stats) == ATOMS_OK && done == 3);
        plan.steps = 1;
        for (int i = 0; i < 3; i++) {
            from = batch_of(x + (ptrdiff_t)i * (N / 3) * D, N / 3);
            plan.rates = rates + i;
            CHECK(atoms_sae_train(ctx, apart, &from, &plan, &other, &done, &last) == ATOMS_OK && done == 1);
        }
        CHECK(memcmp(&control, &other, sizeof control) == 0 && control.row > 0);
        CHECK(stats.squared_error == last.squared_error && stats.total_variance == last.total_variance);
        static float one[S * D], two[S * D];
        atoms_sae_get(once, ATOMS_W_DEC, one);
        atoms_sae_get(apart, ATOMS_W_DEC, two);
        CHECK(memcmp(one, two, sizeof one) == 0);
        plan.steps = 2;
        from.n = 3;
        CHECK(atoms_sae_train(ctx, once, &from, &plan, &control, &done, &stats) == ATOMS_ERR_ARGUMENT && done == 0);
        atoms_sae_free(once);
        atoms_sae_free(apart);
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
    atoms_batch from = batch_of(bad, N);
    CHECK(atoms_sae_step(ctx, sae, &from, &step_params, &stats) == ATOMS_ERR_NONFINITE);
    CHECK(stats.bad_row == 77);
    const int64_t index[3] = {5, 77, 6};
    from.index = index; /* rows are named as the caller numbers them */
    from.n = 3;
    CHECK(atoms_sae_step(ctx, sae, &from, &step_params, &stats) == ATOMS_ERR_NONFINITE);
    CHECK(stats.bad_row == 77);
    from.n = 0;
    CHECK(atoms_sae_step(ctx, sae, &from, &step_params, &stats) == ATOMS_ERR_ARGUMENT);
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

TEST(sae_frozen_encodes_and_no_more)
{
    fill();
    atoms_ctx *ctx = atoms_test_context(atoms_test_contexts() - 1);
    atoms_sae *trained = new_sae(ctx, ATOMS_JUMPRELU, true, false), *frozen = NULL;
    atoms_sae_params p = *atoms_sae_get_params(trained);
    p.frozen = 1;
    CHECK(atoms_sae_new(ctx, &p, &frozen) == ATOMS_OK);
    static float w[S * D];
    const atoms_sae_field weights[] = {ATOMS_W_DEC, ATOMS_B_ENC, ATOMS_B_DEC, ATOMS_THRESHOLD};
    for (int f = 0; f < 4; f++) {
        atoms_sae_get(trained, weights[f], w);
        atoms_sae_set(frozen, weights[f], w);
    }
    atoms_batch from = batch_of(x, N);
    atoms_sae_stats stats;
    atoms_csr *codes[2] = {NULL, NULL};
    CHECK(atoms_sae_encode(ctx, trained, &from, &codes[0], &stats) == ATOMS_OK);
    CHECK(atoms_sae_encode(ctx, frozen, &from, &codes[1], &stats) == ATOMS_OK);
    static int32_t of[2][N * S];
    static float z[2][N * S];
    int64_t indptr[2][N + 1];
    for (int k = 0; k < 2; k++)
        atoms_csr_copy(ctx, codes[k], indptr[k], of[k], z[k]);
    const size_t n = (size_t)indptr[0][N];
    CHECK(n > 0 && memcmp(indptr[0], indptr[1], sizeof indptr[0]) == 0);
    CHECK(memcmp(of[0], of[1], n * sizeof(int32_t)) == 0 && memcmp(z[0], z[1], n * sizeof(float)) == 0);
    CHECK(atoms_sae_step(ctx, frozen, &from, &step_params, &stats) == ATOMS_ERR_ARGUMENT);
    const int64_t row = 0;
    const float one = 1;
    CHECK(atoms_sae_reset(ctx, 1, frozen, &row, x, NULL, &one, &one) == ATOMS_ERR_ARGUMENT);
    int64_t shape[2];
    CHECK(atoms_sae_shape(frozen, ATOMS_W_DEC_M, shape) == 2 && shape[0] == 0);
    atoms_sae_get(frozen, ATOMS_W_DEC_M, NULL); /* nothing */
    CHECK(atoms_sae_nonfinite(frozen) == -1);
    for (int k = 0; k < 2; k++)
        atoms_csr_free(codes[k]);
    atoms_sae_free(trained);
    atoms_sae_free(frozen);
    atoms_ctx_free(ctx);
}

/* The workspace that stays from step to step, for batches, threads and AuxK that come and go: every step is that of an
 * autoencoder which one thread trains. */
TEST(sae_workspace_fits_every_step)
{
    static float weights[2][S * D];
    fill();
    atoms_ctx *one = atoms_test_context(0), *three = atoms_test_context(1);
    atoms_sae *alone = new_sae(one, ATOMS_TOPK, false, true), *shared = new_sae(one, ATOMS_TOPK, false, true);
    for (int step = 0; step < 9; step++) {
        atoms_batch from = batch_of(x, step % 3 == 0 ? 3 : step % 3 == 1 ? 100 : N);
        atoms_sae_step_params params = step_params;
        atoms_sae_stats stats, expected;
        params.aux_k = step % 2 ? 0 : 3;
        params.dead_after = 1;
        CHECK(atoms_sae_step(one, alone, &from, &params, &expected) == ATOMS_OK);
        CHECK(atoms_sae_step(step % 4 == 3 ? one : three, shared, &from, &params, &stats) == ATOMS_OK);
        CHECK(stats.squared_error == expected.squared_error && stats.penalty == expected.penalty);
    }
    atoms_sae_get(alone, ATOMS_W_ENC, weights[0]);
    atoms_sae_get(shared, ATOMS_W_ENC, weights[1]);
    CHECK(!memcmp(weights[0], weights[1], sizeof *weights));
    atoms_batch narrow = batch_of(x, N);
    narrow.x.d = D - 1;
    atoms_sae_stats stats;
    CHECK(atoms_sae_step(one, alone, &narrow, &step_params, &stats) == ATOMS_ERR_ARGUMENT);
    int64_t shape[2];
    CHECK(atoms_sae_shape(alone, ATOMS_W_DEC_V, shape) == 2 && shape[0] == S && shape[1] == D);
    CHECK(atoms_sae_shape(alone, ATOMS_B_DEC_M, shape) == 1 && shape[0] == D && shape[1] == 1);
    atoms_sae_free(alone);
    atoms_sae_free(shared);
    atoms_ctx_free(one);
    atoms_ctx_free(three);
}

/* A transcoder to W values, with a skip connection. */
enum { W = 37 };

static atoms_sae *new_transcoder(const atoms_ctx *ctx, atoms_activation activation)
{
    static float rows[S * W];
    atoms_sae_params p;
    atoms_sae *sae = NULL;
    atoms_sae_params_init(&p);
    p.d_in = D;
    p.d_out = W;
    p.skip = 1;
    p.d_sae = S;
    p.k = K;
    p.activation = activation;
    CHECK(atoms_sae_new(ctx, &p, &sae) == ATOMS_OK);
    for (int j = 0; j < S; j++)
        rows[j * W + j % W] = 1;
    atoms_sae_set(sae, ATOMS_W_ENC, enc);
    atoms_sae_set(sae, ATOMS_W_DEC, rows);
    return sae;
}

TEST(transcoders_rebuild_a_target)
{
    fill();
    static float y[N * W];
    for (int i = 0; i < N; i++)
        for (int c = 0; c < W; c++)
            y[i * W + c] = x[i * D + c % D] + (x[i * D] > 0 ? 1 : 0);
    for (int activation = ATOMS_JUMPRELU; activation <= ATOMS_BATCHTOPK; activation++) {
        atoms_ctx *ctx = atoms_test_context(0);
        atoms_sae *sae = new_transcoder(ctx, (atoms_activation)activation);
        atoms_batch target = {.x = {y, ATOMS_F32, N, W, W, 1}, .n = N}, from = batch_of(x, N);
        atoms_sae_stats stats;
        CHECK(atoms_sae_step(ctx, sae, &from, &step_params, &stats) == ATOMS_ERR_ARGUMENT); /* no target */
        from.target = &target;
        double first = 0;
        for (int step = 0; step < 40; step++) {
            CHECK(atoms_sae_step(ctx, sae, &from, &step_params, &stats) == ATOMS_OK);
            first = step ? first : stats.squared_error;
        }
        CHECK(stats.squared_error < first);
        int64_t shape[2];
        CHECK(atoms_sae_shape(sae, ATOMS_W_SKIP_M, shape) == 2 && shape[0] == D && shape[1] == W);
        CHECK(atoms_sae_shape(sae, ATOMS_B_DEC, shape) == 1 && shape[0] == W);
        int64_t idx[1] = {3};
        float one[1] = {1};
        CHECK(atoms_sae_reset(ctx, 1, sae, idx, y, NULL, one, one) == ATOMS_ERR_ARGUMENT); /* no readers */
        CHECK(atoms_sae_reset(ctx, 1, sae, idx, y, x, one, one) == ATOMS_OK);
        target.n = N - 1;
        CHECK(atoms_sae_step(ctx, sae, &from, &step_params, &stats) == ATOMS_ERR_ARGUMENT);
        target.n = N;
        y[70 * W + 2] = NAN;
        CHECK(atoms_sae_step(ctx, sae, &from, &step_params, &stats) == ATOMS_ERR_NONFINITE);
        CHECK(stats.bad_row == 70 && stats.bad_target);
        y[70 * W + 2] = 0;
        atoms_sae_free(sae);
        atoms_ctx_free(ctx);
    }
}

TEST(sae_survives_running_out_of_memory)
{
    fill();
    atoms_ctx *ctx = atoms_test_context(0);
    for (int nth = 1; nth < 60; nth++) {
        atoms_sae *sae = new_sae(ctx, ATOMS_TOPK, false, true);
        atoms_batch from = batch_of(x, N);
        atoms_sae_stats stats;
        atoms_csr *codes = NULL;
        atoms_test_fail_alloc(nth);
        atoms_status stepped = atoms_sae_step(ctx, sae, &from, &step_params, &stats);
        bool failed = atoms_test_fail_alloc(0);
        CHECK(stepped == (failed ? ATOMS_ERR_MEMORY : ATOMS_OK));
        /* whatever happened, it goes on working */
        CHECK(atoms_sae_step(ctx, sae, &from, &step_params, &stats) == ATOMS_OK);
        atoms_test_fail_alloc(nth);
        atoms_status encoded = atoms_sae_encode(ctx, sae, &from, &codes, &stats);
        failed = atoms_test_fail_alloc(0);
        CHECK(encoded == (failed ? ATOMS_ERR_MEMORY : ATOMS_OK));
        CHECK((encoded == ATOMS_OK) == (codes != NULL));
        atoms_csr_free(codes);
        atoms_sae_free(sae);
    }
    atoms_ctx_free(ctx);
}
