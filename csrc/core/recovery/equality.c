/* equality.c: basis pursuit with equality, min sum w_j |z_j| subject to sum z_j d_j = x.
 *
 * Most signals that deserve it have a sparse code that matching pursuit finds. The code with support S and signs s is
 * optimal if some y has d_j . y = w_j s_j on S and |d_j . y| <= w_j elsewhere; the y of least norm is tried. Where it
 * fails a primal-dual interior-point method (Mehrotra's predictor and corrector) solves the linear programme
 *   min w . (u + v)  s.t.  D'(u - v) = x, u >= 0, v >= 0;   slacks p = w - D y, q = w + D y,
 * whose steps solve D' diag(u/p + v/q) D dy = rhs, d x d. */
#include "kernels.h"

#include <math.h>

#define LIKELY_SHARE 2 /* matching pursuit is tried with up to d / LIKELY_SHARE atoms */

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
} job;

/* The workspace of a tile: vectors of n | vectors of d | matrices | the code | codes of matching pursuit. */
static void lay_out(atoms_arena *arena, job *r)
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

/* out (n) = D y */
static void times(const job *r, const double *y, double *out)
{
    const double *a = r->atoms;
    for (int64_t j = 0; j < r->n; j++) {
        double s = 0;
        for (int64_t i = 0; i < r->d; i++)
            s += a[j * r->d + i] * y[i];
        out[j] = s;
    }
}

/* out (d) = D' z */
static void gather(const job *r, const double *z, double *out)
{
    const double *a = r->atoms;
    memset(out, 0, (size_t)r->d * sizeof *out);
    for (int64_t j = 0; j < r->n; j++)
        if (z[j] != 0)
            for (int64_t i = 0; i < r->d; i++)
                out[i] += z[j] * a[j * r->d + i];
}

static double dot(int64_t n, const double *a, const double *b)
{
    double s = 0;
    for (int64_t i = 0; i < n; i++)
        s += a[i] * b[i];
    return s;
}

/* sum w |z| - x . y over the m atoms of the code, for r->y scaled into the dual's feasible set. */
static double certified_gap(job *r, int64_t m, double *l1)
{
    double top = 0;
    times(r, r->y, r->dy_all);
    for (int64_t j = 0; j < r->n; j++)
        if (r->w[j] > 0)
            top = ATOMS_MAX(top, fabs(r->dy_all[j]) / r->w[j]);
    *l1 = 0;
    for (int64_t k = 0; k < m; k++)
        *l1 += r->w[r->set[k]] * fabs(r->zs[k]);
    double dual = dot(r->d, r->x, r->y) / ATOMS_MAX(top, 1);
    return *l1 - dual;
}

/* Least squares on the first m atoms of the set: r->zs and, from signs, the y of least norm. False where dependent. */
static bool fit_set(job *r, int64_t m, double *y)
{
    const double *a = r->atoms;
    const int32_t *set = r->set;
    int64_t d = r->d;
    if (m > d)
        return false;
    for (int64_t i = 0; i < m; i++) {
        for (int64_t j = 0; j <= i; j++)
            r->m[i * d + j] = dot(d, a + set[i] * d, a + set[j] * d);
        r->rhs[i] = dot(d, a + set[i] * d, r->x);
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
static double residual_of(const job *r, int64_t m)
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

/* Longest step a <= 1 that keeps x + a dx >= 0 */
static double longest(int64_t n, const double *x, const double *dx)
{
    double a = 1;
    for (int64_t j = 0; j < n; j++)
        if (dx[j] < 0)
            a = ATOMS_MIN(a, -x[j] / dx[j]);
    return a;
}

/* Cholesky with the inner products along rows, for the d x d systems. Adds to a pivot that is not positive enough what
 * makes the coordinate inert: a direction without atoms. */
static void factorise(int64_t d, double *m)
{
    double top = 0;
    for (int64_t i = 0; i < d; i++)
        top = ATOMS_MAX(top, m[i * d + i]);
    for (int64_t i = 0; i < d; i++) {
        double *row = m + i * d;
        for (int64_t j = 0; j < i; j++)
            row[j] = (row[j] - dot(j, row, m + j * d)) / m[j * d + j];
        double pivot = row[i] - dot(i, row, row);
        row[i] = pivot > 1e-15 * top ? sqrt(pivot) : 1e64;
    }
}

/* The direction for complementarity's targets:
 *   D'(du - dv) = rx;  dp = -D dy, dq = D dy;  p du + u dp = cu, q dv + v dq = cv */
static void direction(job *r)
{
    const int64_t n = r->n;
    for (int64_t j = 0; j < n; j++)
        r->ry[j] = r->cu[j] / r->p[j] - r->cv[j] / r->q[j];
    gather(r, r->ry, r->rhs);
    for (int64_t i = 0; i < r->d; i++)
        r->dy[i] = r->rx[i] - r->rhs[i];
    atoms_cholesky_solve(r->d, r->m, r->d, r->dy);
    times(r, r->dy, r->dy_all);
    for (int64_t j = 0; j < n; j++) {
        r->dp[j] = -r->dy_all[j];
        r->dq[j] = r->dy_all[j];
        r->du[j] = (r->cu[j] - r->u[j] * r->dp[j]) / r->p[j];
        r->dv[j] = (r->cv[j] - r->v[j] * r->dq[j]) / r->q[j];
    }
}

static void normal_matrix(job *r)
{
    const double *a = r->atoms;
    int64_t n = r->n, d = r->d;
    for (int64_t j = 0; j < n; j++) {
        double t = r->u[j] / r->p[j] + r->v[j] / r->q[j];
        for (int64_t i = 0; i < d; i++)
            r->scaled[j * d + i] = t * a[j * d + i];
    }
    atoms_gemm_f64(r->ctx, (atoms_mnk){d, d, n}, (atoms_f64_in){r->scaled, 1, d}, (atoms_f64_in){a, d, 1}, 0,
                   (atoms_f64_out){r->m, d, 1});
    factorise(d, r->m);
}

/* Where the interior point begins: y = 0, z = D x, u and v pushed off zero. Zero atoms stay where they start and count for
 * nothing: their weight is one, their row zero. */
static void start(job *r)
{
    memset(r->y, 0, (size_t)r->d * sizeof(double));
    times(r, r->x, r->dy_all);
    double top = 0;
    for (int64_t j = 0; j < r->n; j++)
        top = ATOMS_MAX(top, fabs(r->dy_all[j]));
    for (int64_t j = 0; j < r->n; j++) {
        r->u[j] = ATOMS_MAX(r->dy_all[j], 0) + top;
        r->v[j] = ATOMS_MAX(-r->dy_all[j], 0) + top;
        r->p[j] = r->q[j] = r->w[j];
    }
}

/* z and rx of the point; how far it is off: complementarity mu, to be compared with l1, and the largest of rx. */
typedef struct {
    double mu, l1, off;
} distance;
static distance measure(job *r)
{
    distance far = {0};
    for (int64_t j = 0; j < r->n; j++) {
        r->z[j] = r->u[j] - r->v[j];
        far.mu += r->u[j] * r->p[j] + r->v[j] * r->q[j];
        far.l1 += r->w[j] * (r->u[j] + r->v[j]);
    }
    gather(r, r->z, r->rx);
    for (int64_t i = 0; i < r->d; i++) {
        r->rx[i] = r->x[i] - r->rx[i];
        far.off = ATOMS_MAX(far.off, fabs(r->rx[i]));
    }
    return far;
}

/* Longest steps along the direction: of u and v, and of p and q. */
static double longest_primal(const job *r)
{
    return ATOMS_MIN(longest(r->n, r->u, r->du), longest(r->n, r->v, r->dv));
}

static double longest_dual(const job *r)
{
    return ATOMS_MIN(longest(r->n, r->p, r->dp), longest(r->n, r->q, r->dq));
}

/* Mehrotra's direction: towards complementarity zero, then towards the centre that this suggests. */
static void predict_and_correct(job *r, double mu)
{
    const int64_t n = r->n;
    normal_matrix(r);
    for (int64_t j = 0; j < n; j++) {
        r->cu[j] = -r->u[j] * r->p[j];
        r->cv[j] = -r->v[j] * r->q[j];
    }
    direction(r);
    double primal = longest_primal(r), dual = longest_dual(r), mu_affine = 0;
    for (int64_t j = 0; j < n; j++)
        mu_affine += (r->u[j] + primal * r->du[j]) * (r->p[j] + dual * r->dp[j]) +
                     (r->v[j] + primal * r->dv[j]) * (r->q[j] + dual * r->dq[j]);
    double share = mu_affine / mu, centre = share * share * share * mu / (2 * (double)n);
    for (int64_t j = 0; j < n; j++) {
        r->cu[j] = centre - r->u[j] * r->p[j] - r->du[j] * r->dp[j];
        r->cv[j] = centre - r->v[j] * r->q[j] - r->dv[j] * r->dq[j];
    }
    direction(r);
}

/* Most of the longest steps along the direction; false where there is none to speak of. */
static bool advance(job *r)
{
    double primal = 0.9995 * longest_primal(r), dual = 0.9995 * longest_dual(r);
    for (int64_t j = 0; j < r->n; j++) {
        r->u[j] += primal * r->du[j];
        r->v[j] += primal * r->dv[j];
        r->p[j] += dual * r->dp[j];
        r->q[j] += dual * r->dq[j];
    }
    for (int64_t i = 0; i < r->d; i++)
        r->y[i] += dual * r->dy[i];
    return !(primal < 1e-10 && dual < 1e-10);
}

/* Interior point: r->z (n, dense) and r->y. Returns the steps taken. */
static int32_t interior(job *r, double tol)
{
    start(r);
    int32_t step = 0, stalls = 0;
    double last_mu = INFINITY, last_off = INFINITY;
    for (; step < r->params->max_steps && stalls < 3 && atoms_team_ask(r->tile->team) == ATOMS_OK; step++) {
        distance far = measure(r);
        if (far.mu <= 0.1 * tol * far.l1 && (far.off < 1e-10 || far.off > 0.5 * last_off))
            break;
        last_off = far.off;
        stalls = far.mu > 0.9 * last_mu ? stalls + 1 : 0; /* as far as rounding lets it go */
        last_mu = far.mu;
        predict_and_correct(r, far.mu);
        if (!advance(r))
            break;
    }
    return step;
}

/* The interior point's support: atoms that carry more than rounding, refitted where that keeps the constraint; else all
 * of them as they are. Returns how many. */
static int64_t clean(job *r)
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
static void write_code(const job *r, int64_t i, int64_t m, double scale, int status, double gap)
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

/* Matching pursuit to the end: the point of the span nearest to the signal, *m atoms. */
static atoms_status nearest(job *r, int64_t i, int64_t *m)
{
    const atoms_omp_params p = {.n_nonzero = ATOMS_MIN(r->n, r->d), .tol = -1};
    int32_t count = 0, steps = 0;
    int8_t status;
    const codes_tile one = {.x = {r->x, ATOMS_F64, 1, r->d, r->d, 1},
                            .out = {p.n_nonzero, r->set, r->zs, &count, &status, &steps, NULL, NULL}};
    if (omp_code(r->ctx, r->dict, &p, &one) < 0)
        return ATOMS_ERR_MEMORY;
    r->tile->out.steps[i] += steps;
    for (int32_t k = 0; k < count; k++)
        r->zs[k] *= r->dict->norm[r->set[k]];
    *m = count;
    return ATOMS_OK;
}

/* Signal i of the tile, of norm `scale`: the code that matching pursuit found, proved or improved. */
static atoms_status solve(job *r, int64_t i, double scale)
{
    const double tol = r->params->tol;
    int64_t m = r->tile->out.counts[i];
    memcpy(r->set, r->likely + i * r->most, (size_t)m * sizeof *r->set);
    double gap = 0, l1 = 0;
    bool spanned = r->residuals[i] <= 1e-9 * scale;
    if (spanned && fit_set(r, m, r->y)) {
        gap = certified_gap(r, m, &l1);
        if (gap <= tol * l1) {
            write_code(r, i, m, scale, ATOMS_SIGNAL_CONVERGED, ATOMS_MAX(gap, 0));
            return ATOMS_OK;
        }
    }
    r->tile->out.steps[i] += interior(r, ATOMS_MIN(tol, 1e-9));
    m = clean(r);
    gap = certified_gap(r, m, &l1);
    if (residual_of(r, m) > 1e-7) {
        atoms_status status = nearest(r, i, &m);
        if (status < 0)
            return status;
        bool outside = residual_of(r, m) > 1e-7;
        write_code(r, i, m, scale, outside ? ATOMS_SIGNAL_INFEASIBLE : ATOMS_SIGNAL_LIMIT, NAN);
        return ATOMS_OK;
    }
    write_code(r, i, m, scale, gap <= tol * l1 ? ATOMS_SIGNAL_CONVERGED : ATOMS_SIGNAL_LIMIT, ATOMS_MAX(gap, 0));
    return ATOMS_OK;
}

/* The tile's signals by matching pursuit: r->likely, counts, status and steps; what is left of each. */
static atoms_status try_greedy(job *r)
{
    const atoms_omp_params p = {.n_nonzero = r->most, .tol = -1};
    codes_tile greedy = *r->tile;
    greedy.out.width = r->most;
    greedy.out.indices = r->likely;
    greedy.out.values = r->values;
    greedy.out.residual = r->residuals;
    return omp_code(r->ctx, r->dict, &p, &greedy);
}

static atoms_status solve_all(job *r)
{
    const atoms_codes *out = &r->tile->out;
    atoms_status status = try_greedy(r);
    for (int64_t i = 0; status == ATOMS_OK && i < r->tile->x.n; i++) {
        double scale;
        signal_kind kind = atoms_load_signal(r->tile->x, i, r->x, &scale);
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
    job r = {
        .ctx = ctx, .dict = dict, .params = params, .tile = tile, .n = dict->n, .d = dict->d, .atoms = dict->atoms};
    r.most = ATOMS_MAX(1, ATOMS_MIN(dict->n, dict->d) / LIKELY_SHARE);
    atoms_arena arena = {0};
    lay_out(&arena, &r);
    if (!atoms_arena_open(&arena))
        return ATOMS_ERR_MEMORY;
    lay_out(&arena, &r);
    memset(r.z, 0, (size_t)r.n * sizeof *r.z); /* the code of an interior point that is stopped before its first step */
    for (int64_t j = 0; j < r.n; j++)
        r.w[j] = dict->norm[j] > 0 ? 1 / dict->norm[j] : 1;
    atoms_status status = solve_all(&r);
    atoms_arena_close(&arena);
    return status;
}
