/* linalg.c: small dense problems that several rooms meet: norms, Cholesky, non-negative least squares, k-th largest. */
#include "core.h"

#include <float.h>
#include <math.h>

/* ------------------------------------------------------------------ norms */

static double scaled_norm(int64_t d, const double *x)
{
    double top = 0, sum = 0;
    for (int64_t i = 0; i < d; i++) {
        double a = fabs(x[i]);
        if (!(a <= DBL_MAX))
            return NAN;
        top = ATOMS_MAX(top, a);
    }
    if (top == 0)
        return 0;
    int e;
    frexp(top, &e); /* a power of two: scaling by it is exact */
    for (int64_t i = 0; i < d; i++) {
        double a = ldexp(x[i], -e);
        sum += a * a;
    }
    return ldexp(sqrt(sum), e);
}

/* Sum of squares when it is safely inside the range, else -1: then scaled_norm, which is slow, has to be asked.
 * The metric's angles and the theory room have sums of squares of their own, added in other orders, and normalise by
 * them in other ways: one function for two of them would change results. */
static double plain_square(int64_t d, const double *x)
{
    double s[8] = {0};
    int64_t i = 0;
    for (; i + 8 <= d; i += 8)
        for (int k = 0; k < 8; k++)
            s[k] += x[i + k] * x[i + k];
    for (; i < d; i++)
        s[0] += x[i] * x[i];
    double sum = ((s[0] + s[4]) + (s[1] + s[5])) + ((s[2] + s[6]) + (s[3] + s[7]));
    return sum > 1e-200 && sum < 1e200 ? sum : -1;
}

double atoms_norm(int64_t d, const double *x)
{
    double square = plain_square(d, x);
    return square > 0 ? sqrt(square) : scaled_norm(d, x);
}

void atoms_divide(int64_t d, double *x, double norm)
{
    if (norm > 1e-300 && norm < 1e300) {
        double inverse = 1 / norm;
        for (int64_t i = 0; i < d; i++)
            x[i] *= inverse;
    } else {
        for (int64_t i = 0; i < d; i++)
            x[i] /= norm;
    }
}

/* -------------------------------------------------------------- Cholesky */

/* Recovery's equality.c has a factorisation of its own for large systems, summed in another order: the two stay apart,
 * for their results differ. */
int64_t atoms_cholesky(int64_t n, double *a, int64_t ld, double floor)
{
    for (int64_t i = 0; i < n; i++) {
        double *row = a + i * ld;
        for (int64_t j = 0; j <= i; j++) {
            double s = row[j];
            for (int64_t k = 0; k < j; k++)
                s -= row[k] * a[j * ld + k];
            if (j < i)
                row[j] = s / a[j * ld + j];
            else if (s > floor)
                row[i] = sqrt(s);
            else
                return i;
        }
    }
    return n;
}

void atoms_cholesky_solve(int64_t n, const double *l, int64_t ld, double *b)
{
    for (int64_t i = 0; i < n; i++) {
        double s = b[i];
        for (int64_t k = 0; k < i; k++)
            s -= l[i * ld + k] * b[k];
        b[i] = s / l[i * ld + i];
    }
    for (int64_t i = n - 1; i >= 0; i--) {
        double s = b[i];
        for (int64_t k = i + 1; k < n; k++)
            s -= l[k * ld + i] * b[k];
        b[i] = s / l[i * ld + i];
    }
}

/* ------------------------------------------------------------- selection */

/* Quickselect, its pivot the median of first, middle and last. */
float atoms_kth_largest(float *v, int64_t n, int64_t k)
{
    int64_t lo = 0, hi = n - 1, want = k - 1;
    while (lo < hi) {
        float a = v[lo], b = v[lo + (hi - lo) / 2], c = v[hi];
        float pivot = a > b ? (b > c ? b : a > c ? c : a) : (a > c ? a : b > c ? c : b);
        int64_t i = lo, j = hi;
        while (i <= j) {
            while (v[i] > pivot)
                i++;
            while (v[j] < pivot)
                j--;
            if (i <= j) {
                float t = v[i];
                v[i++] = v[j];
                v[j--] = t;
            }
        }
        if (want <= j)
            hi = j;
        else if (want >= i)
            lo = i;
        else
            break;
    }
    return v[want];
}
