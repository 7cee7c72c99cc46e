/* short_rows.c: rows as 16-bit integers, for machines with AVX-512 VNNI. Products are exact in 32 bits, at twice
 * float32's rate. Each run of CHUNK coordinates has a scale of its own, that of its norm: by Cauchy and Schwarz no sum
 * over a run exceeds 2^30 and the little that rounding adds, and the shorter the run the finer the unit. Sums over runs
 * are float32. */
#if defined(__x86_64__)
#include "isa/vnni.h"
#include "kernels.h"
#include <math.h>

#define ROWS_AT_ONCE 6 /* rows of signals, times one panel of atoms: their sums fill the registers */

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

static double round_rows(int64_t n, int64_t d, const float *a, int64_t ld, int16_t *to, float *units)
{
    double lost[PANEL_ATOMS] = {0}, most = 0;
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

/* m rows times the atoms of some panels. */
typedef struct {
    int64_t m, ld, panels;
    const int16_t *rows;      /* (m, ld) */
    const float *units;       /* theirs: (m / share, chunks) */
    int64_t share;            /* so many rows have the same units */
    const int32_t *packed;    /* (panels, ld / 2, PANEL_ATOMS) */
    const float *panel_units; /* (panels, chunks) */
} factors;

/* Rows of length ld: one of the two is NULL. */
typedef struct {
    float *full;
    int16_t *rounded; /* SHORT_ONEths */
    int64_t ld;
} result;

/* acc[a][b] = coordinates k to end of row[a] times those of 16 atoms, which lie from `from` on; exact. */
static inline __attribute__((always_inline)) void sum_chunk(__m512i acc[ROWS_AT_ONCE][4],
                                                            const int16_t *const row[ROWS_AT_ONCE], int64_t k,
                                                            int64_t end, const int32_t *from)
{
#pragma GCC unroll 6
    for (int a = 0; a < ROWS_AT_ONCE; a++)
#pragma GCC unroll 4
        for (int b = 0; b < 4; b++)
            acc[a][b] = _mm512_setzero_si512();
    for (; k < end; k += 2, from += PANEL_ATOMS) {
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
                acc[a][b] = pmadd(acc[a][b], v[b], w);
        }
    }
}

/* One panel stays in the second-level cache while all rows pass by, six at a time. */
static inline __attribute__((always_inline)) void multiply(factors f, result out)
{
    const int64_t chunks = CHUNKS(f.ld);
    for (int64_t p = 0; p < f.panels; p++, f.packed += f.ld / 2 * PANEL_ATOMS, f.panel_units += chunks)
        for (int64_t i = 0; i < f.m; i += ROWS_AT_ONCE) {
            __m512 total[ROWS_AT_ONCE][4];
            const int16_t *row[ROWS_AT_ONCE];
            const float *unit[ROWS_AT_ONCE];
#pragma GCC unroll 6
            for (int a = 0; a < ROWS_AT_ONCE; a++) {
                int64_t r = ATOMS_MIN(i + a, f.m - 1);
                row[a] = f.rows + r * f.ld;
                unit[a] = f.units + r / f.share * chunks;
#pragma GCC unroll 4
                for (int b = 0; b < 4; b++)
                    total[a][b] = _mm512_setzero_ps();
            }
            for (int64_t c = 0; c < chunks; c++) {
                __m512i acc[ROWS_AT_ONCE][4];
                sum_chunk(acc, row, c * CHUNK, ATOMS_MIN(f.ld, (c + 1) * CHUNK),
                          f.packed + c * (CHUNK / 2) * PANEL_ATOMS);
#pragma GCC unroll 6
                for (int a = 0; a < ROWS_AT_ONCE; a++) {
                    __m512 scale = _mm512_set1_ps(unit[a][c] * f.panel_units[c]);
#pragma GCC unroll 4
                    for (int b = 0; b < 4; b++)
                        total[a][b] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(acc[a][b]), scale, total[a][b]);
                }
            }
#pragma GCC unroll 6
            for (int a = 0; a < ROWS_AT_ONCE; a++) {
                if (i + a >= f.m)
                    break;
                int64_t at = (i + a) * out.ld + p * PANEL_ATOMS;
#pragma GCC unroll 4
                for (int b = 0; b < 4; b++)
                    if (out.rounded)
                        store_short(out.rounded + at + 16 * b, total[a][b]);
                    else
                        _mm512_storeu_ps(out.full + at + 16 * b, total[a][b]);
            }
        }
}

static void multiply_signals(int64_t m, const int16_t *rows, const float *units, const dict_units *u, int64_t panels,
                             float *out, int64_t out_ld)
{
    multiply((factors){m, u->ld, panels, rows, units, 1, u->panels, u->units}, (result){out, NULL, out_ld});
}

static void multiply_atoms(const dict_units *u, int64_t i, int64_t j, int64_t rows, int64_t cols, int16_t *out,
                           int64_t out_ld)
{
    const int64_t chunks = CHUNKS(u->ld);
    multiply((factors){.m = rows,
                       .ld = u->ld,
                       .panels = cols / PANEL_ATOMS,
                       .rows = u->rows + i * u->ld,
                       .units = u->units + i / PANEL_ATOMS * chunks,
                       .share = PANEL_ATOMS,
                       .packed = u->panels + j * (u->ld / 2),
                       .panel_units = u->units + j / PANEL_ATOMS * chunks},
             (result){NULL, out, out_ld});
}

static void round_gram(int64_t n, const float *a, int16_t *to)
{
    for (int64_t j = 0; j < n; j += 16)
        store_short(to + j, _mm512_loadu_ps(a + j));
}

const struct short_kernels atoms_short_rows_vnni = {round_rows, multiply_signals, multiply_atoms, round_gram};
#else
typedef int atoms_not_x86;
#endif
