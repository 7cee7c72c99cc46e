/* kernels.h: the vector code of the metric room, a table for each instruction set.
 *
 * All in float64 but for what says float32: a panel holds float64, and so does every sum.
 * A panel is PANEL_COLUMNS columns of a matrix of k rows, their values side by side row by row: (k, PANEL_COLUMNS),
 * contiguous, three cache lines a row. A group is GROUP_ROWS rows of a result; in the symmetric product,
 * where the result's rows are columns of X as well, a third of a panel.
 *
 * Accuracy: each element of a product is one running sum over k, in the order of k, by multiply-adds that are fused
 * where the instruction set has them: its error is at most about k 2^-53 sum |a b|. How the work is cut into vectors
 * changes no bit; whether multiply-adds are fused does. */
#ifndef ATOMS_METRIC_KERNELS_H
#define ATOMS_METRIC_KERNELS_H

#include "base/core.h"

enum { PANEL_COLUMNS = 24, GROUP_ROWS = 8 };

typedef struct metric_kernels {
    /* syrk[g - 1]: C (8, 8 g) += A' B, A (k, 8) and B (k, 8 g) columns of panels, so that their rows are PANEL_COLUMNS
     * apart; the rows of C are ldc apart. */
    void (*syrk[3])(int64_t k, const double *a, const double *b, double *c, int64_t ldc);
    /* C (8, 24) = A B: the rows of A (8, k) are lda apart, B (k, 24) is a panel, C contiguous. */
    void (*gemm)(int64_t k, const double *a, int64_t lda, const double *b, double *c);
    /* out (rows, cols) float32, its rows ldo apart = the first of C (8, 24) + offset (24), rounded once.
     * check (24) += 0 times each value: NaN from the first one on that is not finite, else still zero. */
    void (*store)(int64_t rows, int64_t cols, const double *c, const double *offset, float *out, int64_t ldo,
                  double *check);
    /* panel = x - shift and sum += its columns' sums, for `rows` rows of x (ldx apart) and `panels` panels, which are
     * `stride` apart; x, shift and sum begin where the first panel's columns do. */
    void (*pack_f32)(int64_t rows, int64_t panels, const float *x, int64_t ldx, const double *shift, double *panel,
                     int64_t stride, double *sum);
    void (*pack_f64)(int64_t rows, int64_t panels, const double *x, int64_t ldx, const double *shift, double *panel,
                     int64_t stride, double *sum);
    /* Arc cosines (float32, in and out) in degrees, off by at most 2e-5 of them where the cosine is exact; cosines
     * beyond [-1, 1] count as -1 and 1. */
    void (*degrees)(int64_t n, const float *cosines, float *degrees);
} metric_kernels;

#endif
