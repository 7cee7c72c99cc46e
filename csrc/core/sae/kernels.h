/* kernels.h: the vector loops of the sparse autoencoder, one table for each instruction set.
 *
 * Rows are `width` floats: a multiple of 16, zeros behind the last value, on a cache line. Rows of a matrix are ld
 * floats apart, and a list of n of them is given by their numbers.
 *
 * All instruction sets give the same bits: what sums in float32 does so in 16 lanes, whatever a register holds. The
 * canonical dot product has 64 lanes: lane l of accumulator a sums elements 64 c + 16 a + l over c by fused
 * multiply-adds, then come (acc0 + acc1) + (acc2 + acc3), and its halves, 8, 4, 2, 1 lanes apart. Its error is below
 *   gamma |v| |w|,   gamma = (width / 64 + 24) 2^-23,
 * that of any other order of summation below (width + 32) 2^-23 |v| |w|.
 *
 * The integer screens. With x = s_x q_x + r_x and w = s_w q_w + r_w, s the scales, q integers, r what rounding took,
 *   |x.w - s_x s_w q_x.q_w| = |x_hat.r_w + r_x.w| <= |x_hat| |r_w| + |r_x| |w|,   x_hat = s_x q_x,
 * and the sums of products of integers are exact in 32 bits. So
 *   s_x q_x.q_w < (floor - b_enc - |x_hat| |r_w| - |r_x| |w|) / s_w
 * proves that x.w + b_enc < floor, with all norms rounded up and gamma |x| |w| added to |r_x| |w|. */
#ifndef ATOMS_SAE_KERNELS_H
#define ATOMS_SAE_KERNELS_H

#include "base/core.h"

#define PANEL_SAMPLES 64 /* samples of a panel: a word has a bit for each */
#define SCREEN_LATENTS 6 /* latents that the vector screens take at a time; encoders have a multiple of it allocated */

/* How rows come into the model's space: xc = scale (x - shift) - b. */
typedef struct {
    const float *shift; /* (d,), or NULL: xc = x - b */
    float scale;
    const float *b; /* (width,) the decoder's bias */
} sae_origin;

/* One step of Adam: w -= learning_rate u with u = gain m / (sqrt(v) + epsilon), which is Adam's direction where gain is
 * sqrt(1 - beta2^t) / (1 - beta1^t) and epsilon is Adam's times sqrt(1 - beta2^t). */
typedef struct {
    float learning_rate;
    float beta1, beta2;
    float gain;
    float epsilon;
    float clip; /* largest root-mean-square of a row's u; 0: none */
} sae_adam;

typedef struct sae_kernels {
    /* out[k] += v . base[row[k]], the canonical dot product */
    void (*dots)(int64_t width, int64_t n, const float *v, const float *base, int64_t ld, const int32_t *row,
                 float *out);
    /* out += sum_k c[k] base[row[k]], in that order for each column */
    void (*add_rows)(int64_t width, int64_t n, const float *c, const float *base, int64_t ld, const int32_t *row,
                     float *out);
    /* err = -xc */
    void (*negate)(int64_t width, const float *xc, float *err);
    /* out = row, past the caches; a fence has to follow before another thread reads it */
    void (*stream)(int64_t width, const float *row, float *out);
    /* column += err; returns |err|^2, summed in float64 */
    double (*error_sums)(int64_t width, const float *err, float *column);
    /* One Adam update of a row w of d values with gradient g, which is overwritten. With `unit`, the part of g along w
     * is removed first and w is brought back to unit norm. The moments in mv are bfloat16, m above v, rounded up or
     * down at random, by `seed`, so that the mean is right: to the nearest, v would keep all that beta2 = 0.999 should
     * take from it. */
    void (*adam_row)(int64_t width, int64_t d, const sae_adam *a, bool unit, uint32_t seed, float *g, uint32_t *mv,
                     float *w);
    /* The float32 screen: bit i set where tile[i] + slack * norm[i] >= limit, i < PANEL_SAMPLES */
    uint64_t (*reach)(const float *tile, const float *norm, float slack, float limit);
    /* xc = a row x of d values in the model's space; returns max |xc|; *sum = |xc|^2 and column += xc in float64 */
    float (*centre)(int64_t width, int64_t d, const float *x, const sae_origin *origin, float *xc, double *sum,
                    double *column);
    /* q = round(x / scale) with scale = max|x| / 127; returns the scale; *residual = |x - scale q| and *norm = |x|,
     * both rounded up; *total = sum q. Rows of zeros give scale 0. */
    float (*quantise)(int64_t width, const float *x, int8_t *q, float *residual, float *norm, int32_t *total);
    /* The same in 16 bits, |q| at most 46000 so that no sum of products of two rows overflows 31 bits */
    float (*quantise16)(int64_t width, const float *x, int16_t *q, float *residual, float *norm);
} sae_kernels;

/* What an integer screen knows of the samples of a panel, (PANEL_SAMPLES,) each ... */
typedef struct {
    const float *scale;    /* s_x */
    const float *norm;     /* |x_hat| */
    const float *residual; /* |r_x|, and what float32 may be off by */
} sae_screen_samples;

/* ... and of the latents, (n_latents,) each. */
typedef struct {
    const int32_t *offset; /* 128 sum q_w for int8, else 0 */
    const float *limit;    /* (floor - b_enc, less some slack) / s_w */
    const float *residual; /* |r_w| / s_w */
    const float *norm;     /* |w| / s_w */
} sae_screen_latents;

/* Screens a panel against n_latents rows: bit i of mask[j] is set when sample i may reach the floor of latent j.
 * x: the panel, interleaved: uint8 (width / 4, PANEL_SAMPLES, 4) of q_x + 128, or int16 (width / 2, PANEL_SAMPLES, 2)
 * of q_x. w: int8 or int16 (n_latents, width) of q_w, a multiple of SCREEN_LATENTS rows allocated. */
typedef void sae_screen(int64_t width, int64_t n_latents, const void *x, const sae_screen_samples *s, const void *w,
                        const sae_screen_latents *l, uint64_t *mask);

typedef struct sae_screens {
    sae_screen *int8, *int16;
    atoms_screen best; /* what ATOMS_SCREEN_AUTO means */
} sae_screens;

/* They serve instruction sets without such products of their own too. */
sae_screen sae_screen_int8_portable, sae_screen_int16_portable;

#endif
