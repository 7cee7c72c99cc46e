/* recovery_vnni.c: float32 OMP for machines with AVX-512 VNNI. Rows as 16-bit integers give products that are exact in
 * 32 bits, at twice float32's rate. Each run of CHUNK coordinates has a scale of its own, that of its norm: by Cauchy
 * and Schwarz no sum over a run exceeds 2^30 and the little that rounding adds, and the shorter the run the finer the
 * unit. Sums over runs are float32. */
#if defined(__x86_64__)
#include "isa/vnni.h"
#include "recovery.h"
#include <math.h>

#define ROWS_AT_ONCE 6

/* gcc 12 spills the accumulators of the intrinsic */
static inline __attribute__((always_inline)) __m512i dpwssd(__m512i acc, __m512i a, __m512i b)
{
    __asm__("vpdpwssd %2, %1, %0" : "+v"(acc) : "v"(a), "v"(b));
    return acc;
}

static __mmask16 first(int64_t n) /* lanes */
{
    return (__mmask16)(n >= 16 ? 0xffff : (1 << ATOMS_MAX(n, 0)) - 1);
}

/* Products of unit rows as SHORT_ONEths; what is beyond 1 saturates. */
static void store_short(int16_t *to, __m512 products)
{
    __m512i q = _mm512_cvtps_epi32(_mm512_mul_ps(products, _mm512_set1_ps(SHORT_ONE)));
    _mm256_storeu_si256((__m256i *)to, _mm512_cvtsepi32_epi16(q));
}

/* Coordinates from .. from + CHUNK of a row in units of norm / 32767; adds to *lost the square of what that takes. */
static void round_chunk(int64_t d, const float *a, int64_t from, int64_t ld, float norm, int16_t *to, float *unit,
                        double *lost)
{
    __m512 per_unit = _mm512_set1_ps(norm > 0 ? 32767 / norm : 0), most = _mm512_set1_ps(32767);
    __m512d sum = _mm512_setzero_pd();
    *unit = norm / 32767;
    for (int64_t j = from; j < ATOMS_MIN(ld, from + CHUNK); j += 16) {
        __m512 x = _mm512_maskz_loadu_ps(first(d - j), a + j), q = _mm512_mul_ps(x, per_unit);
        q = _mm512_max_ps(_mm512_min_ps(q, most), _mm512_sub_ps(_mm512_setzero_ps(), most));
        __m512i units = _mm512_cvtps_epi32(q);
        __m512 rest = _mm512_fnmadd_ps(_mm512_cvtepi32_ps(units), _mm512_set1_ps(*unit), x);
        rest = _mm512_mul_ps(rest, rest);
        sum = _mm512_add_pd(sum, _mm512_cvtps_pd(_mm512_castps512_ps256(rest)));
        sum = _mm512_add_pd(sum, _mm512_cvtps_pd(_mm512_extractf32x8_ps(rest, 1)));
        _mm256_mask_storeu_epi16(to + j, first(ld - j), _mm512_cvtsepi32_epi16(units));
    }
    *lost += _mm512_reduce_add_pd(sum);
}

static float chunk_norm(int64_t d, const float *a, int64_t from)
{
    __m512 sum = _mm512_setzero_ps();
    for (int64_t j = from; j < ATOMS_MIN(d, from + CHUNK); j += 16) {
        __m512 x = _mm512_maskz_loadu_ps(first(d - j), a + j);
        sum = _mm512_fmadd_ps(x, x, sum);
    }
    float norm = sqrtf(_mm512_reduce_add_ps(sum));
    return norm > 1e-30f ? norm : 0; /* less is not worth a unit, which must not be subnormal */
}

double atoms_round_rows(int64_t n, int64_t d, const float *a, int64_t ld, int16_t *to, float *units)
{
    double lost[PANEL] = {0}, most = 0;
    for (int64_t c = 0; c < CHUNKS(ld); c++) {
        float norm = 0;
        for (int64_t i = 0; i < n; i++)
            norm = ATOMS_MAX(norm, chunk_norm(d, a + i * d, c * CHUNK));
        for (int64_t i = 0; i < n; i++)
            round_chunk(d, a + i * d, c * CHUNK, ld, norm, to + i * ld, &units[c], &lost[i]);
    }
    for (int64_t i = 0; i < n; i++)
        most = ATOMS_MAX(most, lost[i]);
    return sqrt(most) * (1 + 0x1p-20);
}

atoms_status atoms_units_new(const atoms_ctx *ctx, int64_t n, int64_t d, const float *a, atoms_units *u)
{
    int64_t ld = (d + 1) / 2 * 2, blocks = n / PANEL;
    *u = (atoms_units){.ld = ld};
    u->rows = atoms_alloc(n * ld, sizeof *u->rows);
    u->units = atoms_alloc(blocks * CHUNKS(ld), sizeof *u->units);
    u->panels = atoms_alloc(n * ld / 2, sizeof *u->panels);
    double *errors = atoms_calloc(blocks, sizeof *errors);
    bool ok = u->rows && u->units && u->panels && errors;
#pragma omp parallel for num_threads(ctx->p.num_threads) schedule(static)
    for (int64_t b = 0; b < (ok ? blocks : 0); b++) {
        int16_t *rows = u->rows + b * PANEL * ld;
        errors[b] = atoms_round_rows(PANEL, d, a + b * PANEL * d, ld, rows, u->units + b * CHUNKS(ld));
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

/* One panel of 64 atoms stays in the second-level cache while all rows pass by, six at a time. `share` rows have the
 * same units. */
static inline __attribute__((always_inline)) void products(int64_t m, const int16_t *rows, const float *units,
                                                           int64_t share, int64_t ld, int64_t panels,
                                                           const int32_t *packed, const float *panel_units, float *out,
                                                           int16_t *coarse, int64_t out_ld)
{
    int64_t chunks = CHUNKS(ld);
    for (int64_t p = 0; p < panels; p++, packed += ld / 2 * PANEL, panel_units += chunks)
        for (int64_t i = 0; i < m; i += ROWS_AT_ONCE) {
            __m512 total[ROWS_AT_ONCE][4];
            const int16_t *row[ROWS_AT_ONCE];
            const float *unit[ROWS_AT_ONCE];
#pragma GCC unroll 6
            for (int a = 0; a < ROWS_AT_ONCE; a++) {
                int64_t r = ATOMS_MIN(i + a, m - 1);
                row[a] = rows + r * ld;
                unit[a] = units + r / share * chunks;
#pragma GCC unroll 4
                for (int b = 0; b < 4; b++)
                    total[a][b] = _mm512_setzero_ps();
            }
            const int32_t *from = packed;
            for (int64_t c = 0; c < chunks; c++) {
                __m512i acc[ROWS_AT_ONCE][4];
#pragma GCC unroll 6
                for (int a = 0; a < ROWS_AT_ONCE; a++)
#pragma GCC unroll 4
                    for (int b = 0; b < 4; b++)
                        acc[a][b] = _mm512_setzero_si512();
                for (int64_t k = c * CHUNK; k < ATOMS_MIN(ld, (c + 1) * CHUNK); k += 2, from += PANEL) {
                    __m512i v[4];
#pragma GCC unroll 4
                    for (int b = 0; b < 4; b++)
                        v[b] = _mm512_load_si512(from + 16 * b);
#pragma GCC unroll 6
                    for (int a = 0; a < ROWS_AT_ONCE; a++) {
                        int32_t two;
                        memcpy(&two, row[a] + k, 4);
                        __m512i w = _mm512_set1_epi32(two);
#pragma GCC unroll 4
                        for (int b = 0; b < 4; b++)
                            acc[a][b] = dpwssd(acc[a][b], v[b], w);
                    }
                }
#pragma GCC unroll 6
                for (int a = 0; a < ROWS_AT_ONCE; a++) {
                    __m512 scale = _mm512_set1_ps(unit[a][c] * panel_units[c]);
#pragma GCC unroll 4
                    for (int b = 0; b < 4; b++)
                        total[a][b] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(acc[a][b]), scale, total[a][b]);
                }
            }
#pragma GCC unroll 6
            for (int a = 0; a < ROWS_AT_ONCE; a++) {
                if (i + a >= m)
                    break;
                int64_t at = (i + a) * out_ld + p * PANEL;
#pragma GCC unroll 4
                for (int b = 0; b < 4; b++)
                    if (coarse)
                        store_short(coarse + at + 16 * b, total[a][b]);
                    else
                        _mm512_storeu_ps(out + at + 16 * b, total[a][b]);
            }
        }
}

void atoms_unit_products(int64_t m, const int16_t *rows, const float *units, const atoms_units *u, int64_t panels,
                         float *out, int64_t out_ld)
{
    products(m, rows, units, 1, u->ld, panels, u->panels, u->units, out, NULL, out_ld);
}

void atoms_unit_gram(const atoms_units *u, int64_t i, int64_t j, int64_t rows, int64_t cols, int16_t *out,
                     int64_t out_ld)
{
    int64_t chunks = CHUNKS(u->ld);
    products(rows, u->rows + i * u->ld, u->units + i / PANEL * chunks, PANEL, u->ld, cols / PANEL,
             u->panels + j * (u->ld / 2), u->units + j / PANEL * chunks, NULL, out, out_ld);
}

void atoms_round_gram(int64_t n, const float *a, int16_t *to)
{
    for (int64_t j = 0; j < n; j += 16)
        store_short(to + j, _mm512_loadu_ps(a + j));
}

#else
typedef int atoms_not_x86;
#endif
