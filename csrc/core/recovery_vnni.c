/* recovery_vnni.c: float32 OMP for machines with AVX-512 VNNI: correlations and a coarse Gram
 * matrix by 16-bit products, passes over 8-bit panels. */
#if defined(__x86_64__)
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")
#include "recovery.h"

#include <immintrin.h>
#include <math.h>

#define ROWS_AT_ONCE 6

/* gcc 12 spills the accumulators of the intrinsics */
static inline __attribute__((always_inline)) __m512i dpwssd(__m512i acc, __m512i a, __m512i b)
{
    __asm__("vpdpwssd %2, %1, %0" : "+v"(acc) : "v"(a), "v"(b));
    return acc;
}

static inline __attribute__((always_inline)) __m512i dpbusd(__m512i acc, __m512i u, __m512i w)
{
    __asm__("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(u), "v"(w));
    return acc;
}

/* One panel of 64 atoms stays in the second-level cache while all rows pass by, six at a time. */
static inline __attribute__((always_inline)) void products(int64_t m, const int16_t *rows,
                                                           int64_t ld, int64_t panels,
                                                           const int32_t *packed, float *out,
                                                           int16_t *coarse, int64_t out_ld)
{
    for (int64_t p = 0; p < panels; p++, packed += ld / 2 * PANEL)
        for (int64_t i = 0; i < m; i += ROWS_AT_ONCE) {
            __m512i acc[ROWS_AT_ONCE][4];
            const int16_t *row[ROWS_AT_ONCE];
#pragma GCC unroll 6
            for (int a = 0; a < ROWS_AT_ONCE; a++) {
                row[a] = rows + ATOMS_MIN(i + a, m - 1) * ld;
#pragma GCC unroll 4
                for (int b = 0; b < 4; b++)
                    acc[a][b] = _mm512_setzero_si512();
            }
            const int32_t *from = packed;
            for (int64_t c = 0; c < ld; c += 2, from += PANEL) {
                __m512i v[4];
#pragma GCC unroll 4
                for (int b = 0; b < 4; b++)
                    v[b] = _mm512_load_si512(from + 16 * b);
#pragma GCC unroll 6
                for (int a = 0; a < ROWS_AT_ONCE; a++) {
                    int32_t two;
                    memcpy(&two, row[a] + c, 4);
                    __m512i w = _mm512_set1_epi32(two);
#pragma GCC unroll 4
                    for (int b = 0; b < 4; b++)
                        acc[a][b] = dpwssd(acc[a][b], v[b], w);
                }
            }
#pragma GCC unroll 6
            for (int a = 0; a < ROWS_AT_ONCE; a++) {
                if (i + a >= m)
                    break;
                int64_t at = (i + a) * out_ld + p * PANEL;
#pragma GCC unroll 4
                for (int b = 0; b < 4; b++)
                    if (coarse) {
                        __m512i half = _mm512_set1_epi32(1 << 14);
                        __m512i q = _mm512_srai_epi32(_mm512_add_epi32(acc[a][b], half), 15);
                        _mm256_storeu_si256((__m256i *)(coarse + at + 16 * b),
                                            _mm512_cvtsepi32_epi16(q));
                    } else {
                        __m512 s = _mm512_mul_ps(_mm512_cvtepi32_ps(acc[a][b]),
                                                 _mm512_set1_ps(0x1p-30f));
                        _mm512_storeu_ps(out + at + 16 * b, s);
                    }
            }
        }
}

void atoms_unit_products_vnni(int64_t m, const int16_t *rows, int64_t ld, int64_t panels,
                              const int32_t *packed, float *out, int64_t out_ld)
{
    products(m, rows, ld, panels, packed, out, NULL, out_ld);
}

void atoms_unit_gram_vnni(int64_t m, const int16_t *rows, int64_t ld, int64_t panels,
                          const int32_t *packed, int16_t *out, int64_t out_ld)
{
    products(m, rows, ld, panels, packed, NULL, out, out_ld);
}

double atoms_units_row_vnni(int64_t d, const float *a, int64_t ld, int16_t *to)
{
    __m512 most = _mm512_set1_ps(32767), least = _mm512_set1_ps(-32767);
    __m512d sum[2] = {_mm512_setzero_pd(), _mm512_setzero_pd()};
    for (int64_t j = 0; j < ld; j += 16) {
        __mmask16 in = (__mmask16)(d - j >= 16 ? 0xffff : (1 << ATOMS_MAX(d - j, 0)) - 1);
        __mmask16 out = (__mmask16)(ld - j >= 16 ? 0xffff : (1 << (ld - j)) - 1);
        __m512 x = _mm512_mul_ps(_mm512_maskz_loadu_ps(in, a + j), _mm512_set1_ps(0x1p15f));
        __m512i q = _mm512_cvtps_epi32(_mm512_max_ps(_mm512_min_ps(x, most), least));
        __m512 lost = _mm512_sub_ps(x, _mm512_cvtepi32_ps(q)); /* exact */
        lost = _mm512_mul_ps(lost, lost);
        sum[0] = _mm512_add_pd(sum[0], _mm512_cvtps_pd(_mm512_castps512_ps256(lost)));
        sum[1] = _mm512_add_pd(sum[1], _mm512_cvtps_pd(_mm512_extractf32x8_ps(lost, 1)));
        _mm256_mask_storeu_epi16(to + j, out, _mm512_cvtsepi32_epi16(q));
    }
    return sqrt(_mm512_reduce_add_pd(_mm512_add_pd(sum[0], sum[1]))) * 0x1p-15 * (1 + 0x1p-20);
}

float atoms_row_top_vnni(int64_t n, const float *row, int64_t i)
{
    __m512 top = _mm512_setzero_ps();
    for (int64_t j = 0; j < n; j += 16) {
        __mmask16 others = (__mmask16)(i / 16 == j / 16 ? ~(1 << i % 16) : 0xffff);
        top = _mm512_mask_max_ps(top, others, top, _mm512_abs_ps(_mm512_loadu_ps(row + j)));
    }
    return _mm512_reduce_max_ps(top);
}

float atoms_unit_row_top_vnni(int64_t n, const int16_t *row, int64_t i)
{
    __m512i top = _mm512_setzero_si512();
    for (int64_t j = 0; j < n; j += 32) {
        __mmask32 others = i / 32 == j / 32 ? ~(1u << i % 32) : ~0u;
        __m512i a = _mm512_abs_epi16(_mm512_loadu_si512(row + j));
        top = _mm512_mask_max_epu16(top, others, top, a);
    }
    int16_t all[32];
    int most = 0;
    _mm512_storeu_si512(all, top);
    for (int k = 0; k < 32; k++)
        most = ATOMS_MAX(most, all[k]);
    return (float)most * 0x1p-15f;
}

#define T float
#define GEMM atoms_gemm_f32
#define FN(name) name##_vnni_f32
#define VLEN 16
#define VMAX(a, b) ((vec)_mm512_max_ps((__m512)(a), (__m512)(b)))
#define VMIN(a, b) ((vec)_mm512_min_ps((__m512)(a), (__m512)(b)))
#define VRCP(a) ((vec)_mm512_rcp14_ps((__m512)(a))) /* relative error below 4e-4: the slack covers it */
#define BCAST(a) ((vec)_mm512_set1_ps(a))
#define ANY_GE(a, b) (_mm512_cmp_ps_mask((__m512)(a), (__m512)(b), _CMP_GE_OQ) != 0)
#define EPS 0x1p-23
#define DEPENDENT 3e-5f
#define NRM_FLOOR 1e-5f
#define QUANTISED 4
#define IVEC __m512i
#define IBCAST(a) _mm512_set1_epi32(a)
#define TO_BYTES(to, a) _mm_storeu_si128((__m128i *)(to), _mm512_cvtepi32_epi8(a))
#define ISUM(a) _mm512_reduce_add_epi32(a)
#define ILEFT(a, bits) _mm512_slli_epi32(a, bits)
#define IRIGHT(a, bits) _mm512_srai_epi32(a, bits)
#define ISUB(a, b) _mm512_sub_epi32(a, b)
#define IADD(a, b) _mm512_add_epi32(a, b)
#define IOR(a, b) _mm512_or_si512(a, b)
#define ISHIFT(a, bits) _mm512_sll_epi32(a, _mm_cvtsi32_si128(bits))
#define MADD(sum, u, w) dpbusd(sum, u, w)
#define TO_T(a) ((vec)_mm512_cvtepi32_ps(a))
#define TO_INT(a) _mm512_cvtps_epi32((__m512)(a))
#define ROW_OF_UNITS(p) ((vec)_mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(_mm256_loadu_si256((const __m256i *)(p)))))
#include "recovery_omp_impl.h"
#include "recovery_undef.h"
#else
typedef int atoms_not_x86;
#endif
