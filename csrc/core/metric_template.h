/* metric_template.h: the kernels of metric_kernels.h, written once over LANES-wide vectors.
 *
 * The including file sets LANES, ROWS and VECS: a register tile holds ROWS x VECS vectors and
 * must leave room for VECS more and one broadcast. ROWS divides 8, VECS * LANES divides 24;
 * VECS_8 and VECS_16 are the same for the 8 and 16 columns of diagonal blocks.
 */
#include "metric_kernels.h"

#include <math.h>
#include <string.h>

typedef double vec __attribute__((vector_size(LANES * 8)));
typedef double vec_u __attribute__((vector_size(LANES * 8), aligned(8), may_alias));

/* C (rows, vecs * LANES) (+)= sum over p of a[r * rsa + p * ksa] * b[p * 24 + j]. Every argument
 * but k and the pointers is a constant where this is inlined, so acc lives in registers. */
static inline __attribute__((always_inline)) void tile(int rows, int vecs, int add, int64_t k,
                                                       const double *a, int64_t rsa, int64_t ksa,
                                                       const double *b, double *c, int64_t ldc)
{
    vec acc[ROWS][VECS];
    if (add) /* C comes from L3 as a rule: fetch it while summing */
        for (int r = 0; r < rows; r++)
            for (int j = 0; j < vecs * LANES; j += 7)
                __builtin_prefetch(c + r * ldc + j, 1);
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int v = 0; v < vecs; v++)
            acc[r][v] = (vec){0};
#pragma GCC unroll 4
    for (int64_t p = 0; p < k; p++) {
        vec bv[VECS];
#pragma GCC unroll 8
        for (int v = 0; v < vecs; v++)
            bv[v] = *(const vec_u *)(b + p * ATOMS_PANEL + v * LANES);
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
            for (int v = 0; v < vecs; v++)
                acc[r][v] += a[r * rsa + p * ksa] * bv[v];
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int v = 0; v < vecs; v++) {
            vec_u *out = (vec_u *)(c + r * ldc + v * LANES);
            if (add)
                acc[r][v] += *out;
            *out = acc[r][v];
        }
}

/* 8 rows by `cols` columns in register tiles of `vecs` vectors */
static inline __attribute__((always_inline)) void block(int vecs, int cols, int add, int64_t k,
                                                        const double *a, int64_t rsa, int64_t ksa,
                                                        const double *b, double *c, int64_t ldc)
{
    for (int r = 0; r < ATOMS_GROUP; r += ROWS)
        for (int j = 0; j < cols; j += vecs * LANES)
            tile(ROWS, vecs, add, k, a + r * rsa, rsa, ksa, b + j, c + r * ldc + j, ldc);
}

static void syrk_8(int64_t k, const double *a, const double *b, double *c, int64_t ldc)
{
    block(VECS_8, 8, 1, k, a, 1, ATOMS_PANEL, b, c, ldc);
}

static void syrk_16(int64_t k, const double *a, const double *b, double *c, int64_t ldc)
{
    block(VECS_16, 16, 1, k, a, 1, ATOMS_PANEL, b, c, ldc);
}

static void syrk_24(int64_t k, const double *a, const double *b, double *c, int64_t ldc)
{
    block(VECS, 24, 1, k, a, 1, ATOMS_PANEL, b, c, ldc);
}

static void gemm_24(int64_t k, const double *a, int64_t lda, const double *b, double *c)
{
    block(VECS, 24, 0, k, a, lda, 1, b, c, ATOMS_PANEL);
}

static void store(int64_t rows, int64_t cols, const double *restrict c,
                  const double *restrict offset, float *restrict out, int64_t ldo,
                  double *restrict check)
{
    for (int64_t r = 0; r < rows; r++, c += ATOMS_PANEL, out += ldo) {
        float line[ATOMS_PANEL];
        for (int j = 0; j < ATOMS_PANEL; j++) {
            double value = c[j] + offset[j];
            check[j] += 0.0 * value;
            line[j] = (float)value;
        }
        if (cols == ATOMS_PANEL)
            memcpy(out, line, sizeof line);
        else
            memcpy(out, line, (size_t)cols * sizeof *line);
    }
}

#define PACK(T)                                                                                    \
    for (int64_t i = 0; i < rows; i++)                                                             \
        for (int64_t p = 0; p < panels; p++) {                                                     \
            const T *from = x + i * ldx + p * ATOMS_PANEL;                                         \
            const double *s = shift + p * ATOMS_PANEL;                                             \
            double *restrict to = panel + p * stride + i * ATOMS_PANEL;                            \
            double *restrict total = sum + p * ATOMS_PANEL;                                        \
            for (int j = 0; j < ATOMS_PANEL; j++) {                                                \
                double value = (double)from[j] - s[j];                                             \
                to[j] = value;                                                                     \
                total[j] += value;                                                                 \
            }                                                                                      \
        }

static void pack_f32(int64_t rows, int64_t panels, const float *x, int64_t ldx, const double *shift,
                     double *panel, int64_t stride, double *sum)
{
    PACK(float)
}

static void pack_f64(int64_t rows, int64_t panels, const double *x, int64_t ldx,
                     const double *shift, double *panel, int64_t stride, double *sum)
{
    PACK(double)
}

/* acos c = pi/2 - asin c up to 1/2, and 2 asin sqrt((1 - |c|) / 2) beyond, where cosines lose
 * digits; asin x = x + x^3 P(x^2), P fitted on [0, 1/4] to 5e-9. */
static void degrees(int64_t n, const float *restrict cosines, float *restrict out)
{
    const float turn = 57.29577951f;
    for (int64_t i = 0; i < n; i++) {
        float c = cosines[i], a = fabsf(c);
        a = a < 1.0f ? a : 1.0f;
        float z = a > 0.5f ? 0.5f - 0.5f * a : a * a;
        float x = a > 0.5f ? sqrtf(z) : a;
        float p = 0.0421663336f * z + 0.0241795015f;
        p = p * z + 0.0454703793f;
        p = p * z + 0.0749529750f;
        p = p * z + 0.1666675210f;
        float arc = turn * (x + x * z * p); /* asin x */
        float acute = a > 0.5f ? 2.0f * arc : 90.0f - arc;
        out[i] = c < 0.0f ? 180.0f - acute : acute;
    }
}

const atoms_metric_kernels TABLE = {
    {syrk_8, syrk_16, syrk_24}, gemm_24, store, pack_f32, pack_f64, degrees};
