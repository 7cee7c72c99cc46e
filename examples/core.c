/* core.c: the core alone, without Python: fit a metric, train an autoencoder, code a signal. In the repository's root:
 *
 *     BLIS=$(python3 setup.py blis-flags)
 *     cc -std=c11 -O2 -fopenmp -ffp-contract=fast -Wno-psabi -Icsrc/include -Icsrc/core $BLIS \
 *         examples/core.c $(find csrc/core -name '*.c') $BLIS -lm -o build/core && build/core
 *
 * Samples are sums of 3 of 64 directions in 32 dimensions. Where there is no BLIS, give f_sgemm and f_dgemm of any
 * Fortran BLAS in the context's parameters. */
#include "atoms.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { N = 20000, D = 32, ATOMS = 64, K = 3, BATCH = 500, STEPS = 2000 };

static float truth[ATOMS][D], x[N][D], white[N][D], decoder[ATOMS][D], code[K];
static double sum[D], second[D][D], whitener[D][D], residual;

static double uniform(void)
{
    return rand() / (RAND_MAX + 1.0);
}

static void check(atoms_status status)
{
    if (status != ATOMS_OK) {
        fprintf(stderr, "%s\n", atoms_status_message(status));
        exit(1);
    }
}

static void make_samples(void)
{
    for (int j = 0; j < ATOMS; j++)
        for (int c = 0; c < D; c++)
            truth[j][c] = (float)((uniform() + uniform() + uniform() - 1.5) * (1 + c)); /* far from isotropic */
    for (int i = 0; i < N; i++)
        for (int k = 0; k < K; k++) {
            int j = (int)(uniform() * ATOMS);
            float size = (float)(1 + uniform());
            for (int c = 0; c < D; c++)
                x[i][c] += size * truth[j][c];
        }
}

/* second / N = L L'; whitener = inv(L)', so that the rows of x whitener have second moment 1. */
static void make_whitener(void)
{
    for (int j = 0; j < D; j++)
        for (int i = j; i < D; i++) {
            double s = second[i][j] / N;
            for (int k = 0; k < j; k++)
                s -= second[k][i] * second[k][j]; /* above the diagonal: the columns of L so far */
            second[j][i] = i == j ? sqrt(s) : s / second[j][j];
        }
    for (int j = 0; j < D; j++)
        for (int i = j; i < D; i++) {
            double s = i == j;
            for (int k = j; k < i; k++)
                s -= second[k][i] * whitener[j][k];
            whitener[j][i] = s / second[i][i];
        }
}

int main(void)
{
    atoms_ctx_params settings;
    atoms_ctx *ctx;
    atoms_ctx_params_init(&settings); /* one thread; settings.num_threads says otherwise */
    check(atoms_ctx_new(&settings, &ctx));
    make_samples();

    /* the metric: second moments, and the map to where they are those of an isotropic cloud */
    check(atoms_moments(ctx, N, D, x, ATOMS_F32, D, 1, NULL, sum, &second[0][0]));
    make_whitener();
    check(atoms_product(ctx, N, D, D, x, ATOMS_F32, D, 1, NULL, &whitener[0][0], NULL, &white[0][0]));

    /* the autoencoder: decoder rows begin as unit samples, the encoder as the same */
    atoms_sae_params shape;
    atoms_sae *sae;
    atoms_sae_params_init(&shape);
    shape.d_in = D, shape.d_sae = ATOMS, shape.activation = ATOMS_TOPK, shape.k = K;
    check(atoms_sae_new(ctx, &shape, &sae));
    for (int j = 0; j < ATOMS; j++) {
        double square = 0;
        for (int c = 0; c < D; c++)
            square += (double)white[j][c] * white[j][c];
        for (int c = 0; c < D; c++)
            decoder[j][c] = white[j][c] / (float)sqrt(square);
    }
    atoms_sae_set(sae, ATOMS_W_DEC, decoder);
    atoms_sae_set(sae, ATOMS_W_ENC, decoder);
    atoms_sae_stats stats;
    for (int step = 0; step < STEPS; step++) {
        atoms_batch batch = {
            .x = white[step % (N / BATCH) * BATCH], .dtype = ATOMS_F32, .row_stride = D, .col_stride = 1};
        float rate = 0.01f * (1 - (float)step / STEPS);
        check(atoms_sae_step(ctx, BATCH, sae, &batch, &(atoms_sae_step_params){.learning_rate = rate, .k = K}, NULL,
                             &stats));
    }
    printf("explained variance %.3f with %.1f latents a sample\n", 1 - stats.squared_error / stats.total_variance,
           stats.l0);

    /* one signal's code over the atoms found, by orthogonal matching pursuit */
    atoms_dict *dict;
    int32_t atom[K], count, steps;
    int8_t status;
    atoms_sae_get(sae, ATOMS_W_DEC, decoder);
    check(atoms_dict_new(ctx, ATOMS, D, decoder, ATOMS_F32, D, 1, ATOMS_F32, &dict));
    atoms_omp_params pursuit = {.n_nonzero = K, .tol = -1};
    check(atoms_omp(ctx, dict, 1, white[0], ATOMS_F32, D, 1, NULL, NULL, &pursuit, atom, code, &count, &status, &steps,
                    &residual));
    for (int k = 0; k < count; k++)
        printf("%+.3f x atom %d\n", (double)code[k], (int)atom[k]);
    printf("left over: a norm of %.3f\n", residual);

    atoms_dict_free(dict);
    atoms_sae_free(sae);
    atoms_ctx_free(ctx);
    return 0;
}
