/* kernels.h: the inner loops of the theory room, one set for each instruction set. */
#ifndef ATOMS_THEORY_H
#define ATOMS_THEORY_H

#include "base/core.h"

/* A float32 |cosine| is ordered like its bits, so its bits are its place in a histogram: the
 * upper ones choose one of ATOMS_COSINE_BINS coarse bins, the lower ATOMS_COSINE_LOW_BITS the
 * place within it. Rounding can lift a cosine above 1; it is counted as 1. */
#define COSINE_ONE 0x3f800000u
#define COSINE_LOW_MASK ((1u << ATOMS_COSINE_LOW_BITS) - 1u)

typedef struct theory_kernels {
    /* e, lo (n) = the two halves of x - h, without error; h NULL: zero */
    void (*difference)(int64_t n, const double *x, const double *h, double *e, double *lo);
    /* token (3) = sum x^2, sum e^2, sum (x - mean)^2; sums (ATOMS_EV_ROWS, d) as in atoms.h gets
     * one more row x with its error e + lo. mean NULL: zero. */
    void (*token)(int64_t d, const double *x, const double *e, const double *mean, double *token);
    void (*accumulate)(int64_t d, const double *x, const double *e, const double *lo, double *sums);
    void (*merge)(int64_t d, const double *part, double *sums);
    /* counts (ATOMS_COSINE_BINS) += the coarse bins of |c| */
    void (*histogram)(int64_t n, const float *c, int64_t *counts);
    /* counts (slots, 1 << ATOMS_COSINE_LOW_BITS) += the places within the bins that slot (>= 0)
     * names */
    void (*refine)(int64_t n, const float *c, const int32_t *slot, int64_t *counts);
    /* the first largest value: *best, *where updated when something in c (n) exceeds *best */
    void (*largest)(int64_t n, const float *c, int absolute, int64_t offset, float *best, int64_t *where);
} theory_kernels;

#endif
