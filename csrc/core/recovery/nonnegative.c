/* nonnegative.c: non-negative least squares by active sets (Lawson and Hanson 1974), from the code as it is.
 *
 * While all coefficients of the least squares fit are positive, the code goes there at once. Otherwise it goes
 * as far as the first that comes to zero, whose atom leaves the basis, and on from there. An atom that has left joins again if
 * it correlates with what is left in the end: then the code is the best over all that were offered. An atom joins or leaves at
 * about 4 m d multiplications, where a fit from nothing takes m^2 d. */
#include "nonnegative.h"

#include <math.h>

#define AGAIN 1e-12 /* correlation, of unit atoms and signals, from which on an atom joins once more */

void nonnegative_lay_out(nonnegative *w, const atoms_dict *dict, int64_t room, atoms_arena *arena)
{
    const int64_t d = room > 0 ? dict->d : 0;
    w->dict = dict;
    w->b = (basis){.d = dict->d, .room = room};
    ATOMS_TAKE(arena, w->b.q, room * d);
    ATOMS_TAKE(arena, w->b.up, room * room);
    ATOMS_TAKE(arena, w->z, room);
    ATOMS_TAKE(arena, w->to, room);
    ATOMS_TAKE(arena, w->h, room);
    ATOMS_TAKE(arena, w->x, d);
    ATOMS_TAKE(arena, w->rest, d);
    ATOMS_TAKE(arena, w->v, d);
    ATOMS_TAKE(arena, w->code, room);
    ATOMS_TAKE(arena, w->out, room);
}

static bool append(nonnegative *w, int32_t j, double least)
{
    basis *b = &w->b;
    if (b->m == b->room)
        return false;
    basis_atom(w->dict, j, w->v);
    const double left = basis_outside(b->m, b->d, b->q, w->v, w->h);
    if (!(left >= least))
        return false;
    w->code[b->m] = j;
    w->z[b->m] = 0;
    basis_append(b, sqrt(left), w->v, w->h);
    return true;
}

/* The code's atom i is out. */
static void leave(nonnegative *w, int64_t i)
{
    w->out[w->n_out++] = w->code[i];
    basis_remove(&w->b, i);
    memmove(w->code + i, w->code + i + 1, (size_t)(w->b.m - i) * sizeof *w->code);
    memmove(w->z + i, w->z + i + 1, (size_t)(w->b.m - i) * sizeof *w->z);
}

/* To the least squares fit of what is left of the code on the way. */
static void walk(nonnegative *w)
{
    basis *b = &w->b;
    for (;;) {
        memcpy(w->rest, w->x, (size_t)b->d * sizeof *w->rest);
        w->energy = basis_outside(b->m, b->d, b->q, w->rest, w->to);
        basis_solve(b, w->to);
        int64_t first = -1;
        double step = 1;
        for (int64_t i = 0; i < b->m; i++) {
            const double share = w->to[i] > 0 ? 1 : w->z[i] > 0 ? w->z[i] / (w->z[i] - w->to[i]) : 0;
            if (w->to[i] <= 0 && (first < 0 || share < step)) {
                step = share;
                first = i;
            }
        }
        for (int64_t i = 0; i < b->m; i++)
            w->z[i] = first < 0 ? w->to[i] : ATOMS_MAX(w->z[i] + step * (w->to[i] - w->z[i]), 0);
        if (first < 0)
            return;
        leave(w, first);
    }
}

/* Until no atom that is out would make the code better, or rounding alone brings them back. */
static void settle(nonnegative *w)
{
    walk(w);
    for (int64_t tries = 3 * w->b.room + 10; tries > 0 && w->n_out > 0; tries--) {
        int64_t best = -1;
        double top = AGAIN;
        for (int64_t k = 0; k < w->n_out; k++) {
            const double slope = basis_product(w->dict, w->out[k], w->rest);
            if (slope > top) {
                top = slope;
                best = k;
            }
        }
        if (best < 0 || !append(w, w->out[best], AGAIN))
            return;
        w->out[best] = w->out[--w->n_out];
        walk(w);
    }
}

void nonnegative_begin(nonnegative *w, int64_t n, const int32_t *atoms)
{
    w->b.m = 0;
    w->n_out = n;
    memcpy(w->out, atoms, (size_t)n * sizeof *atoms);
    settle(w);
}

bool nonnegative_join(nonnegative *w, int32_t j, double least)
{
    w->n_out = 0;
    if (!append(w, j, least))
        return false;
    settle(w);
    return true;
}
