/* recovery_vnni.c: float32 OMP for machines with AVX-512 VNNI. Unit rows as 16-bit integers give products that are
 * exact in 32 bits, at twice float32's rate: by Cauchy and Schwarz no partial sum exceeds 2^30 and the little that
 * rounding adds. */
#include "recovery.h"

#if defined(__x86_64__)
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")
#include <immintrin.h>
#include <math.h>

#define ROWS_AT_ONCE 6

/* gcc 12 spills the accumulators of the intrinsic */
static inline __attribute__((always_inline)) __m512i dpwssd(__m512i acc, __m512i a, __m512i b)
{
    __asm__("vpdpwssd %2, %1, %0" : "+v"(acc) : "v"(a), "v"(b));
    return acc;
}

/* The row in units of 2^-15; returns the norm of what rounding took from it, rounded up. */
static double round_row(int64_t d, const float *a, int64_t ld, int16_t *to)
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

double atoms_round_rows(int64_t n, int64_t d, const float *a, int64_t ld, int16_t *to)
{
    double error = 0;
    for (int64_t i = 0; i < n; i++)
        error = ATOMS_MAX(error, round_row(d, a + i * d, ld, to + i * ld));
    return error;
}

atoms_status atoms_units_new(const atoms_ctx *ctx, int64_t n, int64_t d, const float *a,
                             atoms_units *u)
{
    int64_t ld = (d + 1) / 2 * 2, blocks = n / PANEL;
    *u = (atoms_units){.ld = ld};
    u->rows = atoms_alloc(n * ld, sizeof *u->rows);
    u->panels = atoms_alloc(n * ld / 2, sizeof *u->panels);
    double *errors = atoms_calloc(blocks, sizeof *errors);
    bool ok = u->rows && u->panels && errors;
#pragma omp parallel for num_threads(ctx->p.num_threads) schedule(static)
    for (int64_t b = 0; b < (ok ? blocks : 0); b++) {
        int16_t *rows = u->rows + b * PANEL * ld;
        errors[b] = atoms_round_rows(PANEL, d, a + b * PANEL * d, ld, rows);
        int32_t *panel = u->panels + b * PANEL * (ld / 2);
        for (int64_t c = 0; c < ld / 2; c += 16) /* blocked: both sides stay in cache */
            for (int64_t i = 0; i < PANEL; i++)
                for (int64_t k = c; k < ATOMS_MIN(c + 16, ld / 2); k++)
                    memcpy(panel + k * PANEL + i, rows + i * ld + 2 * k, 4);
    }
    for (int64_t b = 0; b < (ok ? blocks : 0); b++)
        u->error = ATOMS_MAX(u->error, errors[b]);
    atoms_free(errors);
    return ok ? ATOMS_OK : ATOMS_ERR_MEMORY;
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
                        __m512 s =
                            _mm512_mul_ps(_mm512_cvtepi32_ps(acc[a][b]), _mm512_set1_ps(0x1p-30f));
                        _mm512_storeu_ps(out + at + 16 * b, s);
                    }
            }
        }
}

void atoms_unit_products(int64_t m, const int16_t *rows, int64_t ld, int64_t panels,
                         const int32_t *packed, float *out, int64_t out_ld)
{
    products(m, rows, ld, panels, packed, out, NULL, out_ld);
}

void atoms_unit_gram(int64_t m, const int16_t *rows, int64_t ld, int64_t panels,
                     const int32_t *packed, int16_t *out, int64_t out_ld)
{
    products(m, rows, ld, panels, packed, NULL, out, out_ld);
}

#include "recovery_f32x16.h"
#define FN(name) name##_vnni_f32
#define UNITS 1
#define UNITS_ROW(p) TO_T(_mm512_cvtepi16_epi32(_mm256_loadu_si256((const __m256i *)(p))))
#define MADD(sum, a, b) dpwssd(sum, a, b) /* per word: sum + low a low b + high a high b */
#include "recovery_omp_impl.h"
#include "recovery_undef.h"
#else
typedef int atoms_not_x86;
#endif
