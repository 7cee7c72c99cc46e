/* core.c: the core alone, without Python: fit a metric, train an autoencoder, code a signal. In the repository's root:
 *
 *     BLIS=$(python3 setup.py blis-flags)
 *     cc -std=c11 -O2 -fopenmp -ffp-contract=fast -Wno-psabi -Icsrc/include -Icsrc/core $BLIS \
 *         examples/core.c $(find csrc/core -name '*.c') $BLIS -lm -o build/core && build/core
 *
 * Where there is no BLIS, give f_sgemm and f_dgemm of any Fortran BLAS in the context's parameters. */
#include "atoms.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { N = 20000, D = 32, LATENTS = 64, K = 3, BATCH = 500, STEPS = 2000 };
static float truth[LATENTS][D], x[N][D], white[N][D], decoder[LATENTS][D];
static double sum[D], second[D][D], whitener[D][D];
#define ROWS(a, from, count) ((atoms_rows){(a)[from], ATOMS_F32, count, D, D, 1})
#define TRY(call)                                                                                                      \
    if ((call) != ATOMS_OK)                                                                                            \
        return puts(#call), 1;

int main(void)
{
    for (int j = 0; j < LATENTS; j++) /* directions, their last coordinates of a larger scale than the first */
        for (int c = 0; c < D; c++)
            truth[j][c] = (float)((rand() % 201 - 100) * (1 + c));
    for (int i = 0; i < N * K; i++) /* each sample is the sum of 3 of them */
        for (int c = 0, j = rand() % LATENTS; c < D; c++)
            x[i / K][c] += truth[j][c];

    atoms_ctx_params settings;
    atoms_ctx *ctx;
    atoms_ctx_params_init(&settings); /* one thread */
    TRY(atoms_ctx_new(&settings, &ctx))

    /* the metric: second moments. The core has no eigenvalues, so that of each coordinate alone is brought to 1 */
    TRY(atoms_moments(ctx, ROWS(x, 0, N), NULL, sum, second[0]))
    for (int c = 0; c < D; c++)
        whitener[c][c] = 1 / sqrt(second[c][c] / N);
    TRY(atoms_product(ctx, ROWS(x, 0, N), D, NULL, whitener[0], NULL, white[0]))

    /* the autoencoder: decoder and encoder begin with samples as directions */
    atoms_sae_params shape;
    atoms_sae *sae;
    atoms_sae_stats stats;
    atoms_sae_params_init(&shape);
    shape.d_in = D, shape.d_sae = LATENTS, shape.activation = ATOMS_TOPK, shape.k = K;
    TRY(atoms_sae_new(ctx, &shape, &sae))
    for (int j = 0; j < LATENTS; j++)
        for (int c = 0; c < D; c++)
            decoder[j][c] = white[j][c] / sqrtf(D);
    atoms_sae_set(sae, ATOMS_W_DEC, decoder);
    atoms_sae_set(sae, ATOMS_W_ENC, decoder);
    for (int step = 0; step < STEPS; step++) {
        atoms_batch batch = {.x = ROWS(white, step * BATCH % N, BATCH), .n = BATCH};
        atoms_sae_step_params rates = {.learning_rate = 0.01f * (1 - (float)step / STEPS), .k = K};
        TRY(atoms_sae_step(ctx, sae, &batch, &rates, &stats))
    }
    printf("explained variance %.3f\n", 1 - stats.squared_error / stats.total_variance);

    /* one signal's code over the atoms found, by orthogonal matching pursuit */
    atoms_dict *dict;
    int32_t atoms[K], count, steps;
    int8_t status;
    float values[K];
    double residual;
    atoms_sae_get(sae, ATOMS_W_DEC, decoder);
    TRY(atoms_dict_new(ctx, ROWS(decoder, 0, LATENTS), ATOMS_F32, &dict))
    atoms_codes code = {K, atoms, values, &count, &status, &steps, &residual, NULL};
    TRY(atoms_omp(ctx, dict, ROWS(white, 0, 1), &(atoms_omp_params){.n_nonzero = K, .tol = -1}, &code))
    for (int k = 0; k < count; k++)
        printf("%+.3f x atom %d\n", (double)values[k], (int)atoms[k]);
    printf("left over: a norm of %.3f\n", residual);

    atoms_dict_free(dict);
    atoms_sae_free(sae);
    atoms_ctx_free(ctx);
    return 0;
}
