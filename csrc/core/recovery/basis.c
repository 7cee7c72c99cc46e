/* basis.c: an orthogonal basis that atoms join and leave. */
#include "basis.h"

#include <math.h>

double basis_dot(int64_t n, const double *a, const double *b)
{
    double s[8] = {0};
    int64_t i = 0;
    for (; i + 8 <= n; i += 8)
        for (int k = 0; k < 8; k++)
            s[k] += a[i + k] * b[i + k];
    for (; i < n; i++)
        s[0] += a[i] * b[i];
    return ((s[0] + s[4]) + (s[1] + s[5])) + ((s[2] + s[6]) + (s[3] + s[7]));
}

static double dot_f32(int64_t n, const float *a, const double *b)
{
    double s[8] = {0};
    int64_t i = 0;
    for (; i + 8 <= n; i += 8)
        for (int k = 0; k < 8; k++)
            s[k] += a[i + k] * b[i + k];
    for (; i < n; i++)
        s[0] += a[i] * b[i];
    return ((s[0] + s[4]) + (s[1] + s[5])) + ((s[2] + s[6]) + (s[3] + s[7]));
}

void basis_atom(const atoms_dict *dict, int64_t j, double *out)
{
    const int64_t d = dict->d;
    if (dict->type == ATOMS_F64)
        memcpy(out, (const double *)dict->atoms + j * d, (size_t)d * sizeof *out);
    for (int64_t i = 0; dict->type != ATOMS_F64 && i < d; i++)
        out[i] = ((const float *)dict->atoms)[j * d + i];
}

double basis_product(const atoms_dict *dict, int64_t j, const double *v)
{
    const int64_t d = dict->d;
    return dict->type == ATOMS_F64 ? basis_dot(d, (const double *)dict->atoms + j * d, v)
                                   : dot_f32(d, (const float *)dict->atoms + j * d, v);
}

double basis_outside(int64_t m, int64_t d, const double *q, double *v, double *h)
{
    memset(h, 0, (size_t)m * sizeof *h);
    for (int pass = 0; pass < 2; pass++)
        for (int64_t l = 0; l < m; l++) {
            const double *row = q + l * d, part = basis_dot(d, row, v);
            for (int64_t e = 0; e < d; e++)
                v[e] -= part * row[e];
            h[l] += part;
        }
    return basis_dot(d, v, v);
}

void basis_append(basis *b, double rho, const double *v, const double *h)
{
    const int64_t m = b->m++;
    for (int64_t e = 0; e < b->d; e++)
        b->q[m * b->d + e] = v[e] / rho;
    for (int64_t l = 0; l < m; l++) {
        b->up[l * b->room + m] = h[l];
        b->up[m * b->room + l] = 0;
    }
    b->up[m * b->room + m] = rho;
}

static void rotate(int64_t n, double c, double s, double *x, double *y)
{
    for (int64_t i = 0; i < n; i++) {
        double a = x[i], b = y[i];
        x[i] = c * a + s * b;
        y[i] = c * b - s * a;
    }
}

void basis_remove(basis *b, int64_t k)
{
    const int64_t m = --b->m, room = b->room, d = b->d;
    for (int64_t l = 0; l <= m; l++)
        memmove(b->up + l * room + k, b->up + l * room + k + 1, (size_t)(m - k) * sizeof *b->up);
    for (int64_t l = k; l < m; l++) { /* below the diagonal stands one number in each column from k on */
        double *row = b->up + l * room, *next = row + room, norm = hypot(row[l], next[l]);
        double c = norm > 0 ? row[l] / norm : 1, s = norm > 0 ? next[l] / norm : 0;
        rotate(m - l, c, s, row + l, next + l);
        rotate(d, c, s, b->q + l * d, b->q + (l + 1) * d);
        next[l] = 0;
    }
}

void basis_solve(const basis *b, double *z)
{
    for (int64_t k = b->m - 1; k >= 0; k--) {
        const double *row = b->up + k * b->room;
        z[k] = (z[k] - basis_dot(b->m - k - 1, row + k + 1, z + k + 1)) / row[k];
    }
}

void basis_solve_transposed(const basis *b, double *z)
{
    for (int64_t l = 0; l < b->m; l++) {
        const double *row = b->up + l * b->room;
        z[l] /= row[l];
        for (int64_t k = l + 1; k < b->m; k++)
            z[k] -= row[k] * z[l];
    }
}
