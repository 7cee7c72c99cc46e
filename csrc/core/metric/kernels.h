/* metric_kernels.h: the float64 micro-kernels of the metric, one table for each instruction set.
 *
 * A panel is 24 columns of a matrix with their k entries side by side: (k, 24), contiguous and
 * 64-byte aligned. The symmetric product reads panels on both sides: as 24 columns, and as three
 * groups of 8 rows.
 */
#ifndef ATOMS_METRIC_KERNELS_H
#define ATOMS_METRIC_KERNELS_H

#include "base/core.h"

enum { ATOMS_PANEL = 24, ATOMS_GROUP = 8 };

typedef struct metric_kernels {
    /* syrk[g - 1]: C (8, 8 g) += A' B with A (k, 8) and B (k, 8 g), both rows 24 apart: parts of
     * panels. C has row stride ldc. */
    void (*syrk[3])(int64_t k, const double *a, const double *b, double *c, int64_t ldc);
    /* C (8, 24) = A B with A (8, k) of row stride lda and a panel B; C is contiguous. */
    void (*gemm)(int64_t k, const double *a, int64_t lda, const double *b, double *c);
    /* out (rows, cols) float32 of row stride ldo = C (8, 24) + offset (24); check (24) turns NaN
     * where a value is not finite. */
    void (*store)(int64_t rows, int64_t cols, const double *c, const double *offset, float *out, int64_t ldo,
                  double *check);
    /* panels p0 to p1 of `rows` rows of x (row stride ldx): panel (rows, 24) = x - shift, the
     * panels `stride` apart; sum gets the columns' sums. x and shift start at panel p0. */
    void (*pack_f32)(int64_t rows, int64_t panels, const float *x, int64_t ldx, const double *shift, double *panel,
                     int64_t stride, double *sum);
    void (*pack_f64)(int64_t rows, int64_t panels, const double *x, int64_t ldx, const double *shift, double *panel,
                     int64_t stride, double *sum);
    /* Arc cosines in degrees, to 2e-5 of them where the cosine is exact; cosines beyond [-1, 1]
     * count as -1 and 1. */
    void (*degrees)(int64_t n, const float *cosines, float *degrees);
} metric_kernels;

#endif
