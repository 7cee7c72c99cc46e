/* exact.c: the lasso of one signal by active sets.
 *
 * With the code's atoms as columns of A, its signs s, limits l, and A = Q'U as in basis.h, the minimiser on the code is
 *     to = U^-1 (Q x - lambda lean),  lean = U'^-1 (l s),   and its residual  rest + lambda Q' lean,  rest = x - Q'Q x.
 * The code walks towards it as far as the first sign change, where that atom leaves; at the minimiser the atom joins
 * that violates |d_k . r| <= lambda l_k most. Where it lies in the span of the code, d_k = A u, the exchange of z_k
 * for z - u z_k leaves the residual and lowers the sum of magnitudes, all the way to the first atom that comes to
 * zero and leaves. So every step lowers the objective, no code comes twice, and the atoms of a code are independent,
 * whatever the dictionary. (Feature-sign search, Lee et al. 2006, with the simplex method's exchange.) */
#include "exact.h"

#include <math.h>

enum { IN_CODE = 1, BLOCKED = 2 };
#define SPANNED 1e-20 /* squared norm outside the code's span of an atom that is in it */
#define ROUNDING 8e-16

static void lay_out(exact_job *e, atoms_arena *arena)
{
    const int64_t n = e->n_room, d = e->d, room = e->b.room;
    double **long_ones[] = {&e->limit, &e->z, &e->kept}, **short_ones[] = {&e->x, &e->rest, &e->r, &e->v};
    double **code_ones[] = {&e->sign, &e->to, &e->fit, &e->lean, &e->h};
    for (size_t i = 0; i < sizeof long_ones / sizeof *long_ones; i++)
        ATOMS_TAKE(arena, *long_ones[i], n);
    for (size_t i = 0; i < sizeof short_ones / sizeof *short_ones; i++)
        ATOMS_TAKE(arena, *short_ones[i], d);
    for (size_t i = 0; i < sizeof code_ones / sizeof *code_ones; i++)
        ATOMS_TAKE(arena, *code_ones[i], room);
    ATOMS_TAKE(arena, e->state, n);
    ATOMS_TAKE(arena, e->code, room);
    ATOMS_TAKE(arena, e->b.q, room * d);
    ATOMS_TAKE(arena, e->b.up, room * room);
}

atoms_status exact_open(exact_job *e, const atoms_dict *dict, int64_t n)
{
    e->n = n;
    if (e->arena.base && n <= e->n_room)
        return ATOMS_OK;
    atoms_arena_close(&e->arena);
    e->arena = (atoms_arena){0};
    e->dict = dict;
    e->d = dict->d;
    e->n_room = ATOMS_MIN(dict->n, atoms_whole(n + n / 2, 64));
    e->b = (basis){.d = dict->d, .room = ATOMS_MIN(e->n_room, dict->d)};
    lay_out(e, &e->arena);
    if (!atoms_arena_open(&e->arena))
        return ATOMS_ERR_MEMORY;
    lay_out(e, &e->arena);
    return ATOMS_OK;
}

static int64_t atom_of(const exact_job *e, int64_t k)
{
    return e->ids ? e->ids[k] : k;
}

/* Candidate k joins with this sign. False where it is in the span of the code: e->h says how. */
static bool join(exact_job *e, int64_t k, double sign)
{
    basis_atom(e->dict, atom_of(e, k), e->v);
    double left = basis_outside(e->b.m, e->d, e->b.q, e->v, e->h);
    if (e->b.m == e->b.room || left < SPANNED)
        return false;
    e->code[e->b.m] = (int32_t)k;
    e->sign[e->b.m] = sign;
    e->state[k] = IN_CODE;
    basis_append(&e->b, sqrt(left), e->v, e->h);
    return true;
}

/* The code's atom i leaves. */
static void leave(exact_job *e, int64_t i)
{
    e->z[e->code[i]] = 0;
    e->state[e->code[i]] = 0;
    basis_remove(&e->b, i);
    memmove(e->code + i, e->code + i + 1, (size_t)(e->b.m - i) * sizeof *e->code);
    memmove(e->sign + i, e->sign + i + 1, (size_t)(e->b.m - i) * sizeof *e->sign);
}

void exact_begin(exact_job *e)
{
    e->b.m = 0;
    memset(e->state, 0, (size_t)e->n * sizeof *e->state);
    for (int64_t k = 0; k < e->n && atoms_team_ask(e->team) == ATOMS_OK; k++)
        if (e->z[k] != 0 && !join(e, k, e->z[k] > 0 ? 1 : -1))
            e->z[k] = 0;
}

void exact_aim(exact_job *e, double lambda)
{
    const int64_t m = e->b.m;
    memcpy(e->rest, e->x, (size_t)e->d * sizeof *e->rest);
    e->rest2 = basis_outside(m, e->d, e->b.q, e->rest, e->fit);
    for (int64_t i = 0; i < m; i++)
        e->lean[i] = e->limit[e->code[i]] * e->sign[i];
    basis_solve_transposed(&e->b, e->lean);
    e->bend = basis_dot(m, e->lean, e->lean);
    for (int64_t i = 0; i < m; i++)
        e->to[i] = e->fit[i] - lambda * e->lean[i];
    basis_solve(&e->b, e->to);
}

/* To the minimiser on the code and what is left of it on the way. Whether anything changed. */
static bool walk(exact_job *e, double lambda)
{
    for (bool moved = false;;) {
        int64_t first = -1;
        double step = 1;
        exact_aim(e, lambda);
        for (int64_t i = 0; i < e->b.m; i++) {
            double z = fabs(e->z[e->code[i]]), over = -e->to[i] * e->sign[i];
            if (over < 0)
                continue;
            double share = z > 0 ? z / (z + over) : 0;
            if (share < step) {
                step = share;
                first = i;
            }
        }
        for (int64_t i = 0; i < e->b.m; i++) {
            double *z = &e->z[e->code[i]], to = first < 0 ? e->to[i] : *z + step * (e->to[i] - *z);
            moved |= to != *z;
            *z = to;
        }
        if (first < 0 || atoms_team_ask(e->team) < 0)
            return moved;
        leave(e, first);
    }
}

/* Candidate k, in the span of the code as e->h says, takes over from its atoms until one of them leaves. False where
 * none would. */
static bool exchange(exact_job *e, int64_t k, double sign)
{
    double *u = e->h, most = INFINITY, size = 0;
    int64_t first = -1;
    basis_solve(&e->b, u);
    for (int64_t i = 0; i < e->b.m; i++)
        size = ATOMS_MAX(size, fabs(u[i]));
    for (int pass = 0; pass < 2; pass++) { /* of those that come to zero first, the one that changes most */
        double largest = 0, limit = most * (1 + 1e-9);
        for (int64_t i = 0; i < e->b.m; i++) {
            double falls = u[i] * sign * e->sign[i], share = fabs(e->z[e->code[i]]) / falls;
            if (falls <= 1e-11 * size || (pass ? share > limit || falls <= largest : share >= most))
                continue;
            first = i;
            largest = falls;
            most = ATOMS_MIN(most, share);
        }
    }
    if (first < 0)
        return false;
    for (int64_t i = 0; i < e->b.m; i++)
        e->z[e->code[i]] -= sign * most * u[i];
    e->z[k] += sign * most;
    leave(e, first);
    return true;
}

/* The candidate that violates its limit most, with the sign that it is to have; -1: none does. */
static int64_t violator(exact_job *e, double lambda, double *sign)
{
    const bool spanned = e->rest2 < 1e-29; /* what is left is rounding, and r is lambda Q' lean to all its digits */
    const double rounding = spanned ? 1e-15 * lambda * sqrt(e->bend) : ROUNDING;
    for (int64_t i = 0; i < e->d; i++)
        e->r[i] = spanned ? 0 : e->rest[i];
    for (int64_t l = 0; l < e->b.m; l++)
        for (int64_t i = 0; i < e->d; i++)
            e->r[i] += lambda * e->lean[l] * e->b.q[l * e->d + i];
    double worst = 1 + 1e-11;
    int64_t best = -1;
    for (int64_t k = 0; k < e->n; k++) {
        if (e->state[k] || !isfinite(e->limit[k]))
            continue;
        double c = basis_product(e->dict, atom_of(e, k), e->r);
        double excess = ((e->positive ? c : fabs(c)) - rounding) / (lambda * e->limit[k]);
        if (excess > worst) {
            worst = excess;
            best = k;
            *sign = c > 0 ? 1 : -1;
        }
    }
    return best;
}

atoms_status exact_lasso(exact_job *e, double lambda)
{
    const int64_t most = 20 * e->b.room + 200;
    double sign = 1;
    walk(e, lambda);
    for (int64_t step = 0; step < most; step++) {
        atoms_status status = atoms_team_ask(e->team);
        if (status < 0)
            return status;
        int64_t k = violator(e, lambda, &sign);
        if (k < 0)
            break;
        bool joined, moved = false;
        while (!(joined = join(e, k, sign)) && exchange(e, k, sign))
            moved = true;
        if (!joined)
            e->z[k] = 0;
        moved |= walk(e, lambda);
        for (int64_t j = 0; moved && j < e->n; j++)
            if (e->state[j] == BLOCKED)
                e->state[j] = 0;
        if (e->state[k] != IN_CODE)
            e->state[k] = BLOCKED; /* for now: it may have been rounding */
    }
    for (int64_t j = 0; j < e->n; j++)
        if (e->state[j] == BLOCKED)
            e->state[j] = 0;
    return ATOMS_OK;
}
