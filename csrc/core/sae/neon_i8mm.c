/* neon_i8mm.c: the screen of bytes for 64-bit ARM with products of matrices of bytes: of two rows of eight with two others. */
#if defined(__aarch64__)
#define ATOMS_NEON_I8MM
#include "isa/neon_dot.h"
#include "kernels.h"
#define K(name) name##_neon_i8mm
#define SCREEN_VECTORS 4
#define SUMS_OF_STRIP

/* As assembly, in this order, for gcc 12 loads early and then spills sums. */
VECTOR_FN uint32x4_t load(const int32_t *from)
{
    uint32x4_t words;
    __asm__ volatile("ldr %q0, %1" : "=w"(words) : "m"(*(const vec_pairs *)from));
    return words;
}

/* Two words of each of two rows of w */
VECTOR_FN int8x16_t load_rows(const int32_t *first, const int32_t *second)
{
    int8x16_t both;
    __asm__ volatile("ldr %d0, %1\n\tld1 {%0.d}[1], %2"
                     : "=&w"(both)
                     : "m"(*(const int64_t *)first), "Q"(*(const int64_t *)second));
    return both;
}

/* sum (2, 2) += a (2, 8) b (2, 8)', a unsigned */
VECTOR_FN int32x4_t multiply(int32x4_t sum, uint8x16_t a, int8x16_t b)
{
    __asm__ volatile("usmmla %0.4s, %1.16b, %2.16b" : "+w"(sum) : "w"(a), "w"(b));
    return sum;
}

/* sum[a][b] = q_x.q_w of latent a and vector b of samples; x: from the first of the samples on. x is unsigned. */
VECTOR_FN void sums_of_strip_neon_i8mm(bool bytes, int64_t words, const int32_t *x, const int32_t *w,
                                       vec_pairs sum[SCREEN_LATENTS][SCREEN_VECTORS])
{
    enum { PAIRS_OF_LATENTS = SCREEN_LATENTS / 2, PAIRS_OF_SAMPLES = 2 * SCREEN_VECTORS };
    int32x4_t of[PAIRS_OF_LATENTS][PAIRS_OF_SAMPLES]; /* the first sample with both latents, then the second */
#pragma GCC unroll 3
    for (int a = 0; a < PAIRS_OF_LATENTS; a++)
#pragma GCC unroll 8
        for (int b = 0; b < PAIRS_OF_SAMPLES; b++)
            of[a][b] = vdupq_n_s32(0);
    for (int64_t c = 0; c < words; c += 2, x += 2 * PANEL_SAMPLES) { /* two words of a row: eight values */
        int8x16_t wv[PAIRS_OF_LATENTS];
#pragma GCC unroll 3
        for (int a = 0; a < PAIRS_OF_LATENTS; a++)
            wv[a] = load_rows(w + 2 * a * words + c, w + (2 * a + 1) * words + c);
#pragma GCC unroll 4
        for (int b = 0; b < SCREEN_VECTORS; b++) {
            const uint32x4_t first = load(x + 4 * b), second = load(x + PANEL_SAMPLES + 4 * b);
            const uint8x16_t low = (uint8x16_t)vzip1q_u32(first, second), high = (uint8x16_t)vzip2q_u32(first, second);
#pragma GCC unroll 3
            for (int a = 0; a < PAIRS_OF_LATENTS; a++) {
                of[a][2 * b] = multiply(of[a][2 * b], low, wv[a]);
                of[a][2 * b + 1] = multiply(of[a][2 * b + 1], high, wv[a]);
            }
        }
    }
#pragma GCC unroll 3
    for (int a = 0; a < PAIRS_OF_LATENTS; a++)
#pragma GCC unroll 4
        for (int b = 0; b < SCREEN_VECTORS; b++) {
            sum[2 * a][b] = (vec_pairs)vuzp1q_s32(of[a][2 * b], of[a][2 * b + 1]);
            sum[2 * a + 1][b] = (vec_pairs)vuzp2q_s32(of[a][2 * b], of[a][2 * b + 1]);
        }
    (void)bytes;
}

#include "screens.inc"

const sae_screens atoms_screens_neon_i8mm = {screen_int8_neon_i8mm, sae_screen_int16_portable, ATOMS_SCREEN_INT8};
#endif
