/* exact_pursuit.c: basis pursuit by the lasso's exact solutions: where interior points and descent come to no end.
 *
 * While no sign changes, |r|^2 = rest2 + lambda^2 bend (see exact.c): the penalty at which it is sigma^2 follows from
 * any other one with the same code, and Newton's way inside a bracket finds that. For equality the penalty falls until the
 * code spans the signal; its codes are then fitted without a penalty. The dual of the problem is
 *     max x . y - sigma |y|  subject to  |d_k . y| <= limit_k,
 * and y = r / lambda, or for equality Q' lean alone, scaled into that set, proves how far the code is from the best.
 * The direction of r at a penalty near 0 also proves that there is no code: |x - z D| >= |r| - sum |z_k| |d_k . r| / |r|. */
#include "exact.h"

#include <math.h>

#define AT_ONCE 1e-12      /* for equality: a residual that needs no better; others may fall with the penalty */
#define MOST_MAGNITUDE 1e8 /* codes whose magnitudes sum to more of the signal than this hold no equality in float64 */

/* The largest |d_k . y| / limit_k, or with `plain` |d_k . y|, over the candidates that have a limit. */
static double largest(const exact_job *e, const double *y, bool plain)
{
    double top = 0;
    for (int64_t k = 0; k < e->n; k++)
        if (isfinite(e->limit[k]))
            top = ATOMS_MAX(top, fabs(basis_product(e->dict, k, y)) / (plain ? 1 : e->limit[k]));
    return top;
}

/* e->r = share times what is outside the code's span + Q' lean */
static void dual_point(exact_job *e, double share)
{
    for (int64_t i = 0; i < e->d; i++)
        e->r[i] = share * e->rest[i];
    for (int64_t l = 0; l < e->b.m; l++)
        for (int64_t i = 0; i < e->d; i++)
            e->r[i] += e->lean[l] * e->b.q[l * e->d + i];
}

static double dual_value(exact_job *e, double sigma)
{
    double y = sqrt(basis_dot(e->d, e->r, e->r)), value = basis_dot(e->d, e->x, e->r) - sigma * y;
    return value / ATOMS_MAX(largest(e, e->r, false), 1);
}

/* Magnitudes, residual and gap of the code as it is: the minimiser at this penalty on its support. */
static void assess(exact_job *e, double lambda, double sigma, exact_result *out)
{
    out->l1 = 0;
    memcpy(e->r, e->x, (size_t)e->d * sizeof *e->r);
    for (int64_t i = 0; i < e->b.m; i++) {
        const int64_t k = e->code[i];
        out->l1 += e->limit[k] * fabs(e->z[k]);
        basis_atom(e->dict, k, e->v);
        for (int64_t c = 0; c < e->d; c++)
            e->r[c] -= e->z[k] * e->v[c];
    }
    out->residual = sqrt(basis_dot(e->d, e->r, e->r));
    out->met = out->residual <= (sigma > 0 ? sigma * (1 + 1e-6) : EXACT_EQUAL);
    dual_point(e, 0);
    double dual = dual_value(e, sigma);
    if (lambda > 0) {
        dual_point(e, 1 / lambda);
        dual = ATOMS_MAX(dual, dual_value(e, sigma));
    }
    out->gap = ATOMS_MAX(out->l1 - ATOMS_MAX(dual, 0), 0);
}

/* To the codes on the present support at another penalty, where that turns no sign. */
static bool go_straight(exact_job *e, double lambda)
{
    exact_aim(e, lambda);
    for (int64_t i = 0; i < e->b.m; i++)
        if (!(e->to[i] * e->sign[i] > 0))
            return false;
    for (int64_t i = 0; i < e->b.m; i++)
        e->z[e->code[i]] = e->to[i];
    return true;
}

/* Whether what is outside the span of the code, at a penalty near 0, is outside that of every code of a size to be held. */
static bool outside_all(exact_job *e, double sigma)
{
    const double least = sigma > 0 ? sigma * (1 + 1e-6) : EXACT_EQUAL;
    exact_aim(e, 0);
    double rest = sqrt(e->rest2);
    if (!(rest > least))
        return false;
    for (int64_t i = 0; i < e->d; i++)
        e->v[i] = e->rest[i] / rest;
    basis_outside(e->b.m, e->d, e->b.q, e->v, e->h);
    return rest - least > MOST_MAGNITUDE * ATOMS_MAX(largest(e, e->v, true) - 4e-16, 0);
}

/* The highest limit there is. */
static double dearest(const exact_job *e)
{
    double top = 0;
    for (int64_t k = 0; k < e->n; k++)
        if (isfinite(e->limit[k]))
            top = ATOMS_MAX(top, e->limit[k]);
    return top;
}

/* Keeps the code as it is, the minimiser at this penalty on its support, where it is converged and nearer the signal than
 * one kept before. Whether none better need be looked for. */
static bool consider(exact_job *e, double lambda, double sigma, double tol, exact_result *best)
{
    exact_result now;
    assess(e, lambda, sigma, &now);
    const bool good = now.met && now.gap <= tol * now.l1;
    if (good ? !best->good || now.residual < best->residual : !best->good) {
        *best = now;
        best->good = good;
        memcpy(e->kept, e->z, (size_t)e->n * sizeof *e->z);
    }
    return good && (sigma > 0 || now.residual <= AT_ONCE);
}

atoms_status exact_pursuit(exact_job *e, double sigma, double tol, int64_t most, int32_t *steps, exact_result *best)
{
    const double goal = sigma > 0 ? sigma * sigma : 1e-28;
    bool done = false;
    memset(e->z, 0, (size_t)e->n * sizeof *e->z);
    exact_begin(e);
    double low = 0, high = largest(e, e->x, false), lambda = 0.5 * high, least = 1e-15 / dearest(e);
    *best = (exact_result){0};
    for (int64_t step = 0; !done && step < most && high > least && high - low > 1e-15 * high; step++, ++*steps) {
        atoms_status status = exact_lasso(e, lambda);
        if (status < 0)
            return status;
        exact_aim(e, lambda);
        const bool reaches = e->rest2 <= goal && e->bend > 0, over = e->rest2 + lambda * lambda * e->bend > goal;
        double next = !reaches ? -1 : sigma > 0 ? sqrt((goal - e->rest2) / e->bend) : 0;
        done = consider(e, lambda, sigma, tol, best) ||
               (next >= 0 && go_straight(e, next) && consider(e, next, sigma, tol, best));
        *(over ? &high : &low) = lambda;
        lambda = next > low && next < high ? next : low > 0 ? sqrt(low * high) : 0.1 * high;
    }
    best->outside = !best->met && high <= least && outside_all(e, sigma);
    memcpy(e->z, e->kept, (size_t)e->n * sizeof *e->z);
    return ATOMS_OK;
}
