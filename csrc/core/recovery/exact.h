/* exact.h: the lasso of one signal, solved to the end by active sets: what coordinate descent and interior points hand
 * over where they stall. Method and formulas: exact.c. */
#ifndef ATOMS_RECOVERY_EXACT_H
#define ATOMS_RECOVERY_EXACT_H

#include "basis.h"

/* A problem over n candidates, atoms of unit norm: argmin 1/2 |x - sum z_k d_k|^2 + lambda sum limit_k |z_k|. */
typedef struct {
    const atoms_dict *dict;
    int64_t n, d;
    const int32_t *ids; /* (n) the candidates' atoms; NULL: all */
    bool positive;      /* z >= 0 */
    atoms_team *team;   /* asked at every step */
    double *x, *limit;  /* (d), (n) IN: the signal; infinite limit: never */
    double *z;          /* (n) IN where exact_begin is to begin, OUT */
    double *kept;       /* (n) in exact_pursuit: the best code yet */
    basis b;            /* of the atoms in the code: */
    int32_t *code;      /* (room) candidates, */
    double *sign, *to;  /* (room) their signs; the minimiser for these */
    double *fit, *lean; /* (room) q x, and up'^-1 (limit sign): see exact.c */
    int8_t *state;      /* (n) 0, or IN_CODE, or BLOCKED */
    double *rest, *r;   /* (d) x outside the span of the code, and the residual */
    double *v, *h;      /* (d), (room) one atom against the basis */
    double rest2, bend; /* |r|^2 = rest2 + lambda^2 bend while no sign changes */
    int64_t n_room;
    atoms_arena arena; /* of all above */
} exact_job;

/* Room for n candidates, limits, x and z to be filled in; what was there is lost. The caller closes the arena, whatever
 * comes of it. */
atoms_status exact_open(exact_job *e, const atoms_dict *dict, int64_t n);
/* Begins with the code z; atoms in the span of others leave it. */
void exact_begin(exact_job *e);
/* From the code as it is to the minimiser at this penalty, or as near as rounding lets it come. */
atoms_status exact_lasso(exact_job *e, double lambda);

/* e->to: the minimiser for the code's signs, and rest, fit, lean, rest2 and bend, which it is made of. */
void exact_aim(exact_job *e, double lambda);

/* A residual of at most so much of the signal is equality. */
#define EXACT_EQUAL 1e-9

/* Basis pursuit of the unit signal e->x over all atoms, from no code: argmin sum limit |z| subject to |r| <= sigma. At
 * most `most` penalties are tried, *steps more than before. */
typedef struct {
    double l1, gap, residual; /* of the code e->z */
    bool met;                 /* its residual is at most sigma, but for rounding, or is equality */
    bool good;                /* that, and gap <= tol l1 */
    bool outside;             /* proved: no code's is */
} exact_result;
atoms_status exact_pursuit(exact_job *e, double sigma, double tol, int64_t most, int32_t *steps, exact_result *best);

#endif
