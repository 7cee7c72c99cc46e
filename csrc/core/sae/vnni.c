/* vnni.c: the int8 screen for AVX-512 with VNNI: one pass over a panel x 6 latents at a time, the bound applied while
 * the sums are in registers. */
#if defined(__x86_64__)
#include "isa/vnni.h"
#include "kernels.h"

/* gcc 12 spills the accumulators of the intrinsic */
static inline __attribute__((always_inline)) __m512i dpbusd(__m512i acc, __m512i x, __m512i w)
{
    __asm__("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(x), "v"(w));
    return acc;
}

static void screen_int8_vnni(int64_t width, int64_t n_latents, const void *x, const sae_screen_samples *s,
                             const void *w, const sae_screen_latents *l, uint64_t *mask)
{
    for (int64_t j = 0; j < n_latents; j += SCREEN_LATENTS) {
        __m512i acc[SCREEN_LATENTS][4]; /* latent, 16 samples */
#pragma GCC unroll 6
        for (int a = 0; a < SCREEN_LATENTS; a++)
#pragma GCC unroll 4
            for (int b = 0; b < 4; b++)
                acc[a][b] = _mm512_setzero_si512();
        const int8_t *wj = (const int8_t *)w + j * width;
        const uint8_t *xp = x;
        for (int64_t c = 0; c < width; c += 4, xp += 4 * PANEL_SAMPLES) {
            __m512i xv[4];
#pragma GCC unroll 4
            for (int b = 0; b < 4; b++)
                xv[b] = _mm512_load_si512(xp + 64 * b);
#pragma GCC unroll 6
            for (int a = 0; a < SCREEN_LATENTS; a++) {
                int32_t four;
                memcpy(&four, wj + a * width + c, 4);
                __m512i wv = _mm512_set1_epi32(four);
#pragma GCC unroll 4
                for (int b = 0; b < 4; b++)
                    acc[a][b] = dpbusd(acc[a][b], xv[b], wv);
            }
        }
#pragma GCC unroll 6
        for (int a = 0; a < SCREEN_LATENTS; a++) {
            if (j + a >= n_latents)
                break;
            __m512i offset = _mm512_set1_epi32(l->offset[j + a]);
            __m512 limit = _mm512_set1_ps(l->limit[j + a]);
            __m512 res = _mm512_set1_ps(l->residual[j + a]), nrm = _mm512_set1_ps(l->norm[j + a]);
            uint64_t bits = 0;
#pragma GCC unroll 4
            for (int b = 0; b < 4; b++) {
                __m512 dot = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_sub_epi32(acc[a][b], offset)),
                                           _mm512_load_ps(s->scale + 16 * b));
                __m512 need = _mm512_fnmadd_ps(_mm512_load_ps(s->norm + 16 * b), res, limit);
                need = _mm512_fnmadd_ps(_mm512_load_ps(s->residual + 16 * b), nrm, need);
                /* not-less-than: an unordered comparison stays a candidate */
                bits |= (uint64_t)_mm512_cmp_ps_mask(dot, need, _CMP_NLT_UQ) << (16 * b);
            }
            mask[j + a] = bits;
        }
    }
}

const sae_screens atoms_screens_vnni = {screen_int8_vnni, sae_screen_int16_avx2};
#endif
