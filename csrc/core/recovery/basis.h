/* basis.h: an orthogonal basis of the atoms of one code, in float64 and plain C: the same bits for all instruction
 * sets. What solves exactly stands on it. */
#ifndef ATOMS_RECOVERY_BASIS_H
#define ATOMS_RECOVERY_BASIS_H

#include "recovery.h"

/* a . b */
double basis_dot(int64_t n, const double *a, const double *b);

/* Unit atom j as float64; its product with v. */
void basis_atom(const atoms_dict *dict, int64_t j, double *out);
double basis_product(const atoms_dict *dict, int64_t j, const double *v);

/* v (d) is orthogonalised, twice, against m orthonormal rows q; h (m) = q v. The squared norm of what is left. */
double basis_outside(int64_t m, int64_t d, const double *q, double *v, double *h);

/* Atom k of m is sum_l up_lk q_l: an upper triangle, rows of length room. */
typedef struct {
    int64_t m, d, room;
    double *q;  /* (room, d) orthonormal rows */
    double *up; /* (room, room) */
} basis;

/* Takes v, which basis_outside has left with the norm rho and h, as one more atom's. */
void basis_append(basis *b, double rho, const double *v, const double *h);
/* Atom k leaves. */
void basis_remove(basis *b, int64_t k);
/* Solves up z = b and up' z = b in place. */
void basis_solve(const basis *b, double *z);
void basis_solve_transposed(const basis *b, double *z);

#endif
