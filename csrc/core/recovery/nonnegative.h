/* nonnegative.h: least squares with coefficients >= 0 over the atoms of one code, offered one by one. Method: nonnegative.c. */
#ifndef ATOMS_RECOVERY_NONNEGATIVE_H
#define ATOMS_RECOVERY_NONNEGATIVE_H

#include "basis.h"

typedef struct {
    const atoms_dict *dict;
    basis b;        /* of the atoms in the code: */
    int32_t *code;  /* (room) these, */
    double *z, *to; /* (room) their coefficients, all positive between calls; the minimiser if any sign may be */
    int32_t *out;   /* (room) atoms that the last call was offered, or that left in it, and that are not in the code */
    int64_t n_out;  /* so many */
    double *x, *rest; /* (d) the signal; what the code leaves of it */
    double *v, *h;    /* (d), (room) one atom against the basis */
    double energy;    /* |rest|^2 */
} nonnegative;

/* Takes the workspace for codes of up to `room` atoms from the arena. */
void nonnegative_lay_out(nonnegative *w, const atoms_dict *dict, int64_t room, atoms_arena *arena);
/* The best code of the signal w->x over these n <= room unit atoms. */
void nonnegative_begin(nonnegative *w, int64_t n, const int32_t *atoms);
/* The best code over those in it and atom j. False where less than `least` (squared) of j is outside the span of the code:
 * nothing has changed then. */
bool nonnegative_join(nonnegative *w, int32_t j, double least);

#endif
