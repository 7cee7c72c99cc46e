/* equality.h: what the two files of basis pursuit with equality share: equality.c, which tries matching pursuit first and
 * writes the codes, and interior.c, the interior-point method. Formulas: equality.c. */
#ifndef ATOMS_RECOVERY_EQUALITY_H
#define ATOMS_RECOVERY_EQUALITY_H

#include "exact.h"
#include "kernels.h"

/* A tile on its way: one signal after the other. n atoms, d coordinates. */
typedef struct {
    const atoms_ctx *ctx;
    const atoms_dict *dict;
    const atoms_basis_params *params;
    const codes_tile *tile;
    int64_t n, d;
    const double *atoms;        /* (n, d) unit rows */
    double *x;                  /* (d) the signal at unit norm */
    double *w, *dy_all;         /* (n) weights; D dy */
    double *u, *v, *p, *q;      /* (n) as above */
    double *du, *dv, *dp, *dq;  /* (n) their directions */
    double *cu, *cv, *ry;       /* (n) complementarity's targets; what they ask of dy */
    double *y, *dy, *rhs, *rx;  /* (d) dual point; direction; right-hand side; what z lacks of x */
    double *m, *scaled;         /* (d, d) matrix of a step or of a set; (n, d) atoms times their weight in it */
    double *z;                  /* (n) u - v */
    int32_t *set;               /* (max(n, d)) the code: atoms */
    double *zs;                 /* (n) and coefficients */
    int64_t most;               /* atoms that matching pursuit may choose */
    int32_t *likely;            /* (tile, most) atoms of its codes */
    double *values, *residuals; /* (tile, most), (tile) of these */
    exact_job exact;            /* for what neither solves */
} equality_job;

static inline double equality_dot(int64_t n, const double *a, const double *b)
{
    double s = 0;
    for (int64_t i = 0; i < n; i++)
        s += a[i] * b[i];
    return s;
}

/* out (n) = D y */
void equality_times(const equality_job *r, const double *y, double *out);

/* The interior point of the signal r->x: r->z and r->y. Returns the steps taken. */
int32_t equality_interior(equality_job *r, double tol);

#endif
