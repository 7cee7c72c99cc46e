/* avx2.c: the kernels for AVX2, and the int16 screen, which serves AVX-512 without VNNI too. */
#if defined(__x86_64__)
#include "isa/avx2.h"
#define K(name) name##_avx2
#define LANES 8
#include "kernels.inc"

/* ---------------------------------------------------------------- screen
 *
 * Where there are no products of bytes: vpmaddwd and vpaddd do twice the multiplications of float32's fused
 * multiply-add, on half the bytes, and 16 bits let next to nothing through that float32 would not. 16 samples x 6
 * latents at a time. */

/* acc[a][b] = q_x.q_w of latent a and samples 8 b .. 8 b + 8; x: from the first of the 16 samples on */
static inline __attribute__((always_inline)) void sums_of_16(int64_t width, const int16_t *x, const int16_t *w,
                                                             __m256i acc[SCREEN_LATENTS][2])
{
#pragma GCC unroll 6
    for (int a = 0; a < SCREEN_LATENTS; a++)
        acc[a][0] = acc[a][1] = _mm256_setzero_si256();
    for (int64_t c = 0; c < width; c += 2, x += 2 * PANEL_SAMPLES) {
        __m256i x0 = _mm256_load_si256((const __m256i *)x);
        __m256i x1 = _mm256_load_si256((const __m256i *)x + 1);
#pragma GCC unroll 6
        for (int a = 0; a < SCREEN_LATENTS; a++) {
            int32_t two;
            memcpy(&two, w + a * width + c, 4);
            __m256i wv = _mm256_set1_epi32(two);
            acc[a][0] = _mm256_add_epi32(acc[a][0], _mm256_madd_epi16(x0, wv));
            acc[a][1] = _mm256_add_epi32(acc[a][1], _mm256_madd_epi16(x1, wv));
        }
    }
}

void sae_screen_int16_avx2(int64_t width, int64_t n_latents, const void *x, const sae_screen_samples *s, const void *w,
                           const sae_screen_latents *l, uint64_t *mask)
{
    for (int64_t j = 0; j < n_latents; j += SCREEN_LATENTS) {
        int64_t rows = ATOMS_MIN(SCREEN_LATENTS, n_latents - j);
        for (int64_t a = 0; a < rows; a++)
            mask[j + a] = 0;
        for (int i = 0; i < PANEL_SAMPLES; i += 16) {
            __m256i acc[SCREEN_LATENTS][2];
            sums_of_16(width, (const int16_t *)x + 2 * i, (const int16_t *)w + j * width, acc);
#pragma GCC unroll 6
            for (int a = 0; a < SCREEN_LATENTS; a++) {
                if (a >= rows)
                    break;
                __m256 limit = _mm256_set1_ps(l->limit[j + a]);
                __m256 res = _mm256_set1_ps(l->residual[j + a]);
                __m256 nrm = _mm256_set1_ps(l->norm[j + a]);
#pragma GCC unroll 2
                for (int b = 0; b < 2; b++) {
                    int at = i + 8 * b;
                    __m256 dot = _mm256_mul_ps(_mm256_cvtepi32_ps(acc[a][b]), _mm256_load_ps(s->scale + at));
                    __m256 need = _mm256_fnmadd_ps(_mm256_load_ps(s->norm + at), res, limit);
                    need = _mm256_fnmadd_ps(_mm256_load_ps(s->residual + at), nrm, need);
                    /* not-less-than: an unordered comparison stays a candidate */
                    int bits = _mm256_movemask_ps(_mm256_cmp_ps(dot, need, _CMP_NLT_UQ));
                    mask[j + a] |= (uint64_t)(uint32_t)bits << at;
                }
            }
        }
    }
}

const sae_screens atoms_screens_avx2 = {sae_screen_int8_portable, sae_screen_int16_avx2};
#endif
