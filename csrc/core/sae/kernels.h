/* sae_kernels.h: the vector loops of SAE training, one table for each instruction set.
 *
 * Rows are `width` floats, a multiple of 16, padded with zeros and 64-byte aligned; those of a matrix are
 * ld floats apart. A list of n rows of a matrix is given by their numbers. */
#ifndef ATOMS_SAE_KERNELS_H
#define ATOMS_SAE_KERNELS_H

#include "base/core.h"

typedef struct {
    float learning_rate;
    float beta1, beta2;
    float gain;    /* sqrt(1 - beta2^t) / (1 - beta1^t): m / (sqrt(v) + epsilon) times this */
    float epsilon; /* is Adam's direction when epsilon is Adam's times sqrt(1 - beta2^t) */
    float clip;    /* largest root-mean-square of a row's direction, 0: none */
} atoms_adam;

typedef struct sae_kernels {
    /* out[k] += v . base[row[k]], in the canonical order */
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
    /* One Adam update of a row w with gradient g. With `unit`, the part of g along w is removed first
     * and w is brought back to unit norm. g is overwritten. The moments in mv are bfloat16, m above v, rounded
     * up or down at random, by `seed`, so that the mean is right: to the nearest, v would keep all that
     * beta2 = 0.999 should take from it. */
    void (*adam_row)(int64_t width, int64_t d, const atoms_adam *a, bool unit, uint32_t seed, float *g, uint32_t *mv,
                     float *w);
    /* bit i set where tile[i] + slack * norm[i] >= limit, i < 64 */
    uint64_t (*reach)(const float *tile, const float *norm, float slack, float limit);
    /* xc = scale (x - shift) - b (shift NULL: x - b), returns max |xc|; *sum = |xc|^2 and column += xc in
     * float64 */
    float (*centre)(int64_t width, int64_t d, const float *x, const float *shift, float scale, const float *b,
                    float *xc, double *sum, double *column);
    /* q = round(x / scale) with scale = max|x| / 127; returns the scale; *residual = |x - scale q|,
     * *norm = |x|, *total = sum q; zero rows give scale 0 */
    float (*quantise)(int64_t width, const float *x, int8_t *q, float *residual, float *norm, int32_t *total);
    /* The same in 16 bits, |q| at most 46000 so that no sum of products of two rows overflows 31 bits */
    float (*quantise16)(int64_t width, const float *x, int16_t *q, float *residual, float *norm);
} sae_kernels;

/* Screens 64 samples against n_latents rows: bit i of mask[j] is set when sample i may reach
 * floor[j]. With x = s_x q_x + r_x and w = s_w q_w + r_w,
 *   |x.w - s_x s_w q_x.q_w| = |x_hat.r_w + r_x.w| <= |x_hat| |r_w| + |r_x| |w|.
 * x: uint8 panel [width/4][64][4] of q + 128, or int16 panel [width/2][64][2] of q; per-sample scale, norm,
 * residual (64). w: int8 or int16 rows (n_latents, width), n_latents a multiple of 6 rows allocated;
 * limit[j] = (floor_j - b_enc_j, less slack) / w_scale_j and the rest likewise divided. */
typedef struct {
    const int32_t *offset; /* 128 sum_k w_jk for int8, else 0 */
    const float *limit;
    const float *residual; /* |w - w_hat| / w_scale, rounded up */
    const float *norm;     /* |w| / w_scale, rounded up */
} atoms_screen_rows;
typedef struct {
    const float *scale, *norm, *residual;
} atoms_screen_samples;

typedef void atoms_screen_fn(int64_t width, int64_t n_latents, const void *x, const atoms_screen_samples *s,
                             const void *w, const atoms_screen_rows *r, uint64_t *mask);

typedef struct sae_screens {
    atoms_screen_fn *int8, *int16;
} sae_screens;

/* the one of each that serves several instruction sets */
atoms_screen_fn atoms_screen_int8_portable;
#if defined(__x86_64__)
atoms_screen_fn atoms_screen_int16_avx2;
#endif

#endif
