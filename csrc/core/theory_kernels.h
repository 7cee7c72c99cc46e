/* theory_kernels.h: the loops of theory.h, compiled once for each instruction set. The includer
 * defines KERNELS, the name of its table, after choosing the target.
 *
 * The explained variance is summed in double-double numbers, hi + lo with lo below half a unit
 * of hi's last place: about 106 bits. A contracted multiply-add would break the error terms, so
 * contraction is off in this file. */
#include "theory.h"

#include <math.h>

#ifdef __clang__
#pragma clang fp contract(off)
#endif

#define LANES 8

/* hi + lo = a + b without error */
#define TWO_SUM(a, b, hi, lo)                                                                     \
    do {                                                                                          \
        double a_ = (a), b_ = (b), s_ = a_ + b_, v_ = s_ - a_;                                    \
        (lo) = (a_ - (s_ - v_)) + (b_ - v_);                                                      \
        (hi) = s_;                                                                                \
    } while (0)

/* (hi, lo) += (a, b), where |b| is far below |a| */
#define ADD_PAIR(hi, lo, a, b)                                                                    \
    do {                                                                                          \
        double h_, l_;                                                                            \
        TWO_SUM(hi, a, h_, l_);                                                                   \
        l_ += (lo) + (b);                                                                         \
        double t_ = h_ + l_;                                                                      \
        (lo) = l_ - (t_ - h_);                                                                    \
        (hi) = t_;                                                                                \
    } while (0)

static void difference(int64_t n, const double *restrict x, const double *restrict h,
                       double *restrict e, double *restrict lo)
{
    if (!h) {
        memcpy(e, x, (size_t)n * sizeof *e);
        memset(lo, 0, (size_t)n * sizeof *lo);
        return;
    }
    for (int64_t j = 0; j < n; j++)
        TWO_SUM(x[j], -h[j], e[j], lo[j]);
}

/* Eight running sums, so that the order of addition is the same on every instruction set. */
static double sum_of_squares(int64_t d, const double *restrict x, const double *restrict mean)
{
    double lane[LANES] = {0};
    int64_t j = 0;
    for (; j + LANES <= d; j += LANES)
        for (int k = 0; k < LANES; k++) {
            double v = x[j + k] - (mean ? mean[j + k] : 0.0);
            lane[k] += v * v;
        }
    for (; j < d; j++) {
        double v = x[j] - (mean ? mean[j] : 0.0);
        lane[j % LANES] += v * v;
    }
    return ((lane[0] + lane[4]) + (lane[2] + lane[6])) + ((lane[1] + lane[5]) + (lane[3] + lane[7]));
}

static void token_sums(int64_t d, const double *x, const double *e, const double *mean,
                       double *token)
{
    token[0] = sum_of_squares(d, x, NULL);
    token[1] = sum_of_squares(d, e, NULL);
    token[2] = mean ? sum_of_squares(d, x, mean) : token[0];
}

static void accumulate(int64_t d, const double *restrict x, const double *restrict e,
                       const double *restrict lo, double *restrict sums)
{
    double *restrict sx = sums, *restrict sx_lo = sums + d;
    double *restrict qx = sums + 2 * d, *restrict qx_lo = sums + 3 * d;
    double *restrict se = sums + 4 * d, *restrict se_lo = sums + 5 * d;
    double *restrict qe = sums + 6 * d, *restrict qe_lo = sums + 7 * d;
    for (int64_t j = 0; j < d; j++) {
        ADD_PAIR(sx[j], sx_lo[j], x[j], 0.0);
        double xx = x[j] * x[j];
        ADD_PAIR(qx[j], qx_lo[j], xx, fma(x[j], x[j], -xx));
    }
    for (int64_t j = 0; j < d; j++) {
        ADD_PAIR(se[j], se_lo[j], e[j], lo[j]);
        double ee = e[j] * e[j];
        ADD_PAIR(qe[j], qe_lo[j], ee, fma(e[j], e[j], -ee) + 2.0 * e[j] * lo[j]);
    }
}

static void merge(int64_t d, const double *restrict part, double *restrict sums)
{
    for (int k = 0; k < ATOMS_EV_ROWS; k += 2) {
        double *hi = sums + k * d, *lo = hi + d;
        const double *a = part + k * d, *b = a + d;
        for (int64_t j = 0; j < d; j++)
            ADD_PAIR(hi[j], lo[j], a[j], b[j]);
    }
}

#define CHUNK 64

/* the bits of |c|, at most those of 1 */
static inline void magnitudes(int64_t n, const float *c, uint32_t *bits)
{
    memcpy(bits, c, (size_t)n * sizeof *bits);
    for (int64_t k = 0; k < n; k++) {
        uint32_t b = bits[k] & 0x7fffffffu;
        bits[k] = b < COSINE_ONE ? b : COSINE_ONE;
    }
}

static void histogram(int64_t n, const float *c, int64_t *counts)
{
    uint32_t bits[CHUNK];
    for (int64_t j = 0; j < n; j += CHUNK) {
        int64_t m = ATOMS_MIN(CHUNK, n - j);
        magnitudes(m, c + j, bits);
        for (int64_t k = 0; k < m; k++)
            counts[bits[k] >> ATOMS_COSINE_LOW_BITS]++;
    }
}

static void refine(int64_t n, const float *c, const int32_t *slot, int64_t *counts)
{
    uint32_t bits[CHUNK];
    for (int64_t j = 0; j < n; j += CHUNK) {
        int64_t m = ATOMS_MIN(CHUNK, n - j);
        magnitudes(m, c + j, bits);
        for (int64_t k = 0; k < m; k++) {
            int32_t s = slot[bits[k] >> ATOMS_COSINE_LOW_BITS];
            if (s >= 0)
                counts[((int64_t)s << ATOMS_COSINE_LOW_BITS) + (bits[k] & COSINE_LOW_MASK)]++;
        }
    }
}

static void largest(int64_t n, const float *c, int absolute, int64_t offset, float *best,
                    int64_t *where)
{
    for (int64_t j = 0; j < n; j += CHUNK) { /* a chunk without a new best is passed over whole */
        int64_t m = ATOMS_MIN(CHUNK, n - j);
        float value[CHUNK];
        int better = 0;
        for (int64_t k = 0; k < m; k++) {
            value[k] = absolute ? fabsf(c[j + k]) : c[j + k];
            better |= value[k] > *best;
        }
        for (int64_t k = 0; better && k < m; k++)
            if (value[k] > *best) {
                *best = value[k];
                *where = offset + j + k;
            }
    }
}

const theory_kernels KERNELS = {difference, token_sums, accumulate, merge,
                                histogram,  refine,     largest};
