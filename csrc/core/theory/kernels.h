/* kernels.h: the vector code of the theory room, a table for each instruction set.
 *
 * Explained variance is summed in double-double numbers, pairs hi + lo with lo below half a unit of hi's last place:
 * about 106 bits. Each step adds without error and rounds the low half alone: a few 2^-106 of the sum so far. Every
 * instance gives the same bits: the order of addition is fixed and no multiply-add is contracted. */
#ifndef ATOMS_THEORY_KERNELS_H
#define ATOMS_THEORY_KERNELS_H

#include "base/core.h"

/* A float32 |cosine| is ordered as its bits are, so its bits are its place in a histogram: the upper ones choose one of
 * ATOMS_COSINE_BINS coarse bins, the lower ATOMS_COSINE_LOW_BITS the place within it. Rounding can lift a cosine above
 * 1; it is counted as 1. */
#define COSINE_ONE 0x3f800000u /* the bits of 1 */
#define COSINE_LOW_MASK ((1u << ATOMS_COSINE_LOW_BITS) - 1u)

typedef struct theory_kernels {
    /* e + lo (n) = x - h, without error; h NULL: zero */
    void (*difference)(int64_t n, const double *x, const double *h, double *e, double *lo);
    /* token (3) = sum x^2, sum e^2, sum (x - mean)^2 of one row, in float64; mean NULL: zero */
    void (*token)(int64_t d, const double *x, const double *e, const double *mean, double *token);
    /* sums (ATOMS_EV_ROWS, d), as in atoms.h, get one more row x with its error e + lo */
    void (*accumulate)(int64_t d, const double *x, const double *e, const double *lo, double *sums);
    /* sums += part, both (ATOMS_EV_ROWS, d) */
    void (*merge)(int64_t d, const double *part, double *sums);
    /* counts (ATOMS_COSINE_BINS) += the coarse bins of |c| (n) */
    void (*histogram)(int64_t n, const float *c, int64_t *counts);
    /* counts (slots, 1 << ATOMS_COSINE_LOW_BITS) += the places of |c| (n) within their bins, for bins that slot gives a
     * row of counts (>= 0) */
    void (*refine)(int64_t n, const float *c, const int32_t *slot, int64_t *counts);
    /* Where c (n), or |c|, exceeds *best: *best = its largest value, *where = offset + the first place of that. */
    void (*largest)(int64_t n, const float *c, int absolute, int64_t offset, float *best, int64_t *where);
    /* For each j of n where c[j], or |c[j]|, exceeds best[j]: best[j] = that, where[j] = row. */
    void (*columns)(int64_t n, const float *c, int absolute, int64_t row, float *best, int64_t *where);
} theory_kernels;

#endif
