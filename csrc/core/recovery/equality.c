/* equality.c: basis pursuit with equality, min sum w_j |z_j| subject to sum z_j d_j = x.
 *
 * Most signals that deserve it have a sparse code that matching pursuit finds. The code with support S and signs s is
 * optimal if some y has d_j . y = w_j s_j on S and |d_j . y| <= w_j elsewhere; the y of least norm is tried. Where it
 * fails a primal-dual interior-point method (Mehrotra's predictor and corrector) solves the linear programme
 *   min w . (u + v)  s.t.  D'(u - v) = x, u >= 0, v >= 0;   slacks p = w - D y, q = w + D y,
 * whose steps solve D' diag(u/p + v/q) D dy = rhs, d x d. */
#include "equality.h"

#include <math.h>

#define LIKELY_SHARE 2 /* matching pursuit is tried with up to d / LIKELY_SHARE atoms */

/* The workspace of a tile: vectors of n | vectors of d | matrices | the code | codes of matching pursuit. */
static void lay_out(atoms_arena *arena, equality_job *r)
{
    const int64_t n = r->n, d = r->d, signals = r->tile->x.n;
    double **long_ones[] = {&r->w,  &r->dy_all, &r->u,  &r->v,  &r->p,  &r->q, &r->du, &r->dv,
                            &r->dp, &r->dq,     &r->cu, &r->cv, &r->ry, &r->z, &r->zs};
    double **short_ones[] = {&r->x, &r->y, &r->dy, &r->rhs, &r->rx};
    for (size_t i = 0; i < sizeof long_ones / sizeof *long_ones; i++)
        ATOMS_TAKE(arena, *long_ones[i], n);
    for (size_t i = 0; i < sizeof short_ones / sizeof *short_ones; i++)
        ATOMS_TAKE(arena, *short_ones[i], d);
    ATOMS_TAKE(arena, r->m, d * d);
    ATOMS_TAKE(arena, r->scaled, n * d);
    ATOMS_TAKE(arena, r->set, ATOMS_MAX(n, d));
    ATOMS_TAKE(arena, r->likely, signals * r->most);
    ATOMS_TAKE(arena, r->values, signals * r->most);
    ATOMS_TAKE(arena, r->residuals, signals);
}

/* sum w |z| - x . y over the m atoms of the code, for r->y scaled into the dual's feasible set. */
static double certified_gap(equality_job *r, int64_t m, double *l1)
{
    double top = 0;
    equality_times(r, r->y, r->dy_all);
    for (int64_t j = 0; j < r->n; j++)
        if (r->w[j] > 0)
            top = ATOMS_MAX(top, fabs(r->dy_all[j]) / r->w[j]);
    *l1 = 0;
    for (int64_t k = 0; k < m; k++)
        *l1 += r->w[r->set[k]] * fabs(r->zs[k]);
    double dual = equality_dot(r->d, r->x, r->y) / ATOMS_MAX(top, 1);
    return *l1 - dual;
}

/* Least squares on the first m atoms of the set: r->zs and, from signs, the y of least norm. False where dependent. */
static bool fit_set(equality_job *r, int64_t m, double *y)
{
    const double *a = r->atoms;
    const int32_t *set = r->set;
    int64_t d = r->d;
    if (m > d)
        return false;
    for (int64_t i = 0; i < m; i++) {
        for (int64_t j = 0; j <= i; j++)
            r->m[i * d + j] = equality_dot(d, a + set[i] * d, a + set[j] * d);
        r->rhs[i] = equality_dot(d, a + set[i] * d, r->x);
    }
    if (atoms_cholesky(m, r->m, d, 1e-12) < m)
        return false;
    atoms_cholesky_solve(m, r->m, d, r->rhs);
    for (int64_t i = 0; i < m; i++) {
        r->zs[i] = r->rhs[i];
        r->rhs[i] = (r->zs[i] > 0 ? 1 : -1) * r->w[set[i]];
    }
    atoms_cholesky_solve(m, r->m, d, r->rhs);
    memset(y, 0, (size_t)d * sizeof *y);
    for (int64_t i = 0; i < m; i++)
        for (int64_t k = 0; k < d; k++)
            y[k] += r->rhs[i] * a[set[i] * d + k];
    return true;
}

/* |x - z D| over the first m atoms of the code */
static double residual_of(const equality_job *r, int64_t m)
{
    const double *a = r->atoms;
    double sum = 0;
    for (int64_t i = 0; i < r->d; i++) {
        double s = r->x[i];
        for (int64_t k = 0; k < m; k++)
            s -= r->zs[k] * a[r->set[k] * r->d + i];
        sum += s * s;
    }
    return sqrt(sum);
}

/* The interior point's support: atoms that carry more than rounding, refitted where that keeps the constraint; else all
 * of them as they are. Returns how many. */
static int64_t clean(equality_job *r)
{
    double top = 0;
    int64_t m = 0, n = r->n;
    for (int64_t j = 0; j < n; j++)
        top = ATOMS_MAX(top, fabs(r->z[j]));
    for (int64_t j = 0; j < n; j++)
        if (fabs(r->z[j]) > 1e-7 * top)
            r->set[m++] = (int32_t)j;
    double *y = r->dy; /* kept apart from the interior point's y */
    if (fit_set(r, m, y) && residual_of(r, m) < 1e-11)
        return m;
    m = 0;
    for (int64_t j = 0; j < n; j++)
        if (fabs(r->z[j]) > 1e-13 * top) {
            r->set[m] = (int32_t)j;
            r->zs[m++] = r->z[j];
        }
    return m;
}

/* The first m atoms of the code, increasing already, into row i of the tile. */
static void write_code(const equality_job *r, int64_t i, int64_t m, double scale, int status, double gap)
{
    const atoms_codes *out = &r->tile->out;
    int32_t *indices = out->indices + i * out->width, count = 0;
    double *values = (double *)out->values + i * out->width;
    for (int64_t k = 0; k < m; k++) {
        double value = r->zs[k] * (scale / r->dict->norm[r->set[k]]);
        if (!isfinite(value))
            status = ATOMS_SIGNAL_RANGE;
        if (r->zs[k] == 0)
            continue;
        indices[count] = r->set[k];
        values[count++] = value;
    }
    out->counts[i] = status == ATOMS_SIGNAL_RANGE ? 0 : count;
    out->status[i] = (int8_t)status;
    if (out->residual)
        out->residual[i] = scale * residual_of(r, m);
    if (out->gap)
        out->gap[i] = gap * scale;
}

/* Where the interior point comes to no end, as over atoms that are much alike: the code by exact steps, *m atoms. */
static atoms_status solve_exactly(equality_job *r, int64_t i, int64_t *m, exact_result *result)
{
    exact_job *e = &r->exact;
    if (exact_open(e, r->dict, r->n) < 0)
        return ATOMS_ERR_MEMORY;
    memcpy(e->x, r->x, (size_t)r->d * sizeof *e->x);
    for (int64_t j = 0; j < r->n; j++)
        e->limit[j] = r->dict->norm[j] > 0 ? r->w[j] : INFINITY;
    atoms_status status = exact_pursuit(e, 0, r->params->tol, r->params->max_steps, &r->tile->out.steps[i], result);
    *m = 0;
    for (int64_t j = 0; status == ATOMS_OK && j < r->n; j++)
        if (e->z[j] != 0) {
            r->set[*m] = (int32_t)j;
            r->zs[(*m)++] = e->z[j];
        }
    return status;
}

/* Signal i of the tile, of norm `scale`: the code that matching pursuit found, proved or improved. */
static atoms_status solve(equality_job *r, int64_t i, double scale)
{
    const double tol = r->params->tol;
    int64_t m = r->tile->out.counts[i];
    memcpy(r->set, r->likely + i * r->most, (size_t)m * sizeof *r->set);
    double gap = 0, l1 = 0;
    bool spanned = r->residuals[i] <= EXACT_EQUAL * scale;
    if (spanned && fit_set(r, m, r->y) && residual_of(r, m) <= EXACT_EQUAL) {
        gap = certified_gap(r, m, &l1);
        if (gap <= tol * l1) {
            write_code(r, i, m, scale, ATOMS_SIGNAL_CONVERGED, ATOMS_MAX(gap, 0));
            return ATOMS_OK;
        }
    }
    r->tile->out.steps[i] += equality_interior(r, ATOMS_MIN(tol, 1e-9));
    m = clean(r);
    gap = certified_gap(r, m, &l1);
    int verdict = ATOMS_SIGNAL_CONVERGED;
    if (residual_of(r, m) > EXACT_EQUAL || gap > tol * l1) {
        exact_result exact;
        atoms_status status = solve_exactly(r, i, &m, &exact);
        if (status < 0)
            return status;
        gap = exact.met ? exact.gap : NAN;
        verdict = exact.outside ? ATOMS_SIGNAL_INFEASIBLE : exact.good ? ATOMS_SIGNAL_CONVERGED : ATOMS_SIGNAL_LIMIT;
    }
    write_code(r, i, m, scale, verdict, gap < 0 ? 0 : gap);
    return ATOMS_OK;
}

/* The tile's signals by matching pursuit: r->likely, counts, status and steps; what is left of each. */
static atoms_status try_greedy(equality_job *r)
{
    const atoms_omp_params p = {.n_nonzero = r->most, .tol = -1};
    codes_tile greedy = *r->tile;
    greedy.out.width = r->most;
    greedy.out.indices = r->likely;
    greedy.out.values = r->values;
    greedy.out.residual = r->residuals;
    return omp_code(r->ctx, r->dict, &p, &greedy);
}

static atoms_status solve_all(equality_job *r)
{
    const atoms_codes *out = &r->tile->out;
    atoms_status status = try_greedy(r);
    for (int64_t i = 0; status == ATOMS_OK && i < r->tile->x.n; i++) {
        double scale;
        signal_kind kind = dict_load_signal(r->tile->x, i, r->x, &scale);
        if (out->gap)
            out->gap[i] = kind == SIGNAL_NONFINITE ? NAN : 0;
        if (out->residual)
            out->residual[i] = kind == SIGNAL_NONFINITE ? NAN : 0;
        if (kind != SIGNAL_OK)
            continue;
        status = solve(r, i, scale);
        if (status == ATOMS_OK)
            status = atoms_team_ask(r->tile->team);
    }
    return status;
}

atoms_status equality_tile(const atoms_ctx *ctx, const atoms_dict *dict, const void *params, const codes_tile *tile)
{
    equality_job r = {
        .ctx = ctx, .dict = dict, .params = params, .tile = tile, .n = dict->n, .d = dict->d, .atoms = dict->atoms};
    r.exact.team = tile->team;
    r.most = ATOMS_MAX(1, ATOMS_MIN(dict->n, dict->d) / LIKELY_SHARE);
    atoms_arena counted = {0};
    lay_out(&counted, &r);
    if (!codes_open(tile, counted))
        return ATOMS_ERR_MEMORY;
    lay_out(tile->arena, &r);
    memset(r.z, 0, (size_t)r.n * sizeof *r.z); /* the code of an interior point that is stopped before its first step */
    for (int64_t j = 0; j < r.n; j++)
        r.w[j] = dict->norm[j] > 0 ? 1 / dict->norm[j] : 1;
    atoms_status status = solve_all(&r);
    atoms_arena_close(&r.exact.arena);
    return status;
}
