/* recovery_basis.c: basis pursuit with equality, min sum w_j |z_j| subject to sum z_j d_j = x.
 *
 * Most signals that deserve it have a sparse code that matching pursuit finds. The code with
 * support S and signs s is optimal if some y has d_j . y = w_j s_j on S and |d_j . y| <= w_j
 * elsewhere; the y of least norm is tried. Where it fails a primal-dual interior-point method
 * (Mehrotra's predictor and corrector) solves the linear programme
 *   min w . (u + v)  s.t.  D'(u - v) = x, u >= 0, v >= 0;   slacks p = w - D y, q = w + D y,
 * whose steps solve D' diag(u/p + v/q) D dy = rhs, d x d. */
#include "kernels.h"

#include <math.h>

#define LIKELY_SHARE 2 /* matching pursuit is tried with up to d / LIKELY_SHARE atoms */

typedef struct {
    double *x;                              /* (d) */
    double *w, *dy_all;                     /* (n) weights; D dy */
    double *u, *v, *p, *q;                  /* (n) */
    double *du, *dv, *dp, *dq, *theta, *ry; /* (n) */
    double *y, *dy, *rhs, *rx;              /* (d) */
    double *m, *scaled;                     /* (d, d), (n, d) */
    double *z;                              /* (n) */
    int32_t *set;                           /* (n) */
    double *zs;                             /* (n) */
    atoms_team *team;                       /* asked in every step */
} room;

static void *take(char *base, int64_t *used, int64_t n, size_t size)
{
    void *p = base ? base + *used : NULL;
    *used += (n * (int64_t)size + 63) / 64 * 64;
    return p;
}

static int64_t carve(const atoms_dict *dict, char *base, room *r)
{
    int64_t used = 0, n = dict->n, d = dict->d;
    double **long_ones[] = {&r->w,  &r->dy_all, &r->u,  &r->v,     &r->p,  &r->q, &r->du,
                            &r->dv, &r->dp,     &r->dq, &r->theta, &r->ry, &r->z, &r->zs};
    double **short_ones[] = {&r->x, &r->y, &r->dy, &r->rhs, &r->rx};
    for (size_t i = 0; i < sizeof long_ones / sizeof *long_ones; i++)
        *long_ones[i] = take(base, &used, n, sizeof(double));
    for (size_t i = 0; i < sizeof short_ones / sizeof *short_ones; i++)
        *short_ones[i] = take(base, &used, d, sizeof(double));
    r->m = take(base, &used, d * d, sizeof(double));
    r->scaled = take(base, &used, n * d, sizeof(double));
    r->set = take(base, &used, ATOMS_MAX(n, d), sizeof(int32_t));
    return used;
}

/* out (n) = D y */
static void times(const atoms_dict *dict, const double *y, double *out)
{
    const double *a = dict->atoms;
    for (int64_t j = 0; j < dict->n; j++) {
        double s = 0;
        for (int64_t i = 0; i < dict->d; i++)
            s += a[j * dict->d + i] * y[i];
        out[j] = s;
    }
}

/* out (d) = D' z */
static void gather(const atoms_dict *dict, const double *z, double *out)
{
    const double *a = dict->atoms;
    memset(out, 0, (size_t)dict->d * sizeof *out);
    for (int64_t j = 0; j < dict->n; j++)
        if (z[j] != 0)
            for (int64_t i = 0; i < dict->d; i++)
                out[i] += z[j] * a[j * dict->d + i];
}

static double dot(int64_t n, const double *a, const double *b)
{
    double s = 0;
    for (int64_t i = 0; i < n; i++)
        s += a[i] * b[i];
    return s;
}

/* sum w |z| - x . y for y scaled into the dual's feasible set. */
static double certified_gap(const atoms_dict *dict, room *r, int64_t m, const int32_t *set, const double *z, double *y,
                            double *l1)
{
    double top = 0;
    times(dict, y, r->dy_all);
    for (int64_t j = 0; j < dict->n; j++)
        if (r->w[j] > 0)
            top = ATOMS_MAX(top, fabs(r->dy_all[j]) / r->w[j]);
    *l1 = 0;
    for (int64_t k = 0; k < m; k++)
        *l1 += r->w[set[k]] * fabs(z[k]);
    double dual = dot(dict->d, r->x, y) / ATOMS_MAX(top, 1);
    return *l1 - dual;
}

/* Least squares on the set: z and, from signs, the y of least norm. False where dependent. */
static bool fit_set(const atoms_dict *dict, room *r, int64_t m, const int32_t *set, double *z, double *y)
{
    const double *a = dict->atoms;
    int64_t d = dict->d;
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
        z[i] = r->rhs[i];
        r->rhs[i] = (z[i] > 0 ? 1 : -1) * r->w[set[i]];
    }
    atoms_cholesky_solve(m, r->m, d, r->rhs);
    memset(y, 0, (size_t)d * sizeof *y);
    for (int64_t i = 0; i < m; i++)
        for (int64_t k = 0; k < d; k++)
            y[k] += r->rhs[i] * a[set[i] * d + k];
    return true;
}

static double residual_of(const atoms_dict *dict, const room *r, int64_t m, const int32_t *set, const double *z)
{
    const double *a = dict->atoms;
    double sum = 0;
    for (int64_t i = 0; i < dict->d; i++) {
        double s = r->x[i];
        for (int64_t k = 0; k < m; k++)
            s -= z[k] * a[set[k] * dict->d + i];
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

/* Cholesky with the inner products along rows, for the d x d systems. Adds to a pivot that is not
 * positive enough what makes the coordinate inert: a direction without atoms. */
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

/* The direction for complementarity targets (in ry: target_u in dp's place, see below):
 *   D'(du - dv) = rx;  dp = -D dy, dq = D dy;  p du + u dp = cu, q dv + v dq = cv */
static void direction(const atoms_dict *dict, room *r, const double *cu, const double *cv)
{
    int64_t n = dict->n;
    for (int64_t j = 0; j < n; j++)
        r->ry[j] = cu[j] / r->p[j] - cv[j] / r->q[j];
    gather(dict, r->ry, r->rhs);
    for (int64_t i = 0; i < dict->d; i++)
        r->dy[i] = r->rx[i] - r->rhs[i];
    atoms_cholesky_solve(dict->d, r->m, dict->d, r->dy);
    times(dict, r->dy, r->dy_all);
    for (int64_t j = 0; j < n; j++) {
        r->dp[j] = -r->dy_all[j];
        r->dq[j] = r->dy_all[j];
        r->du[j] = (cu[j] - r->u[j] * r->dp[j]) / r->p[j];
        r->dv[j] = (cv[j] - r->v[j] * r->dq[j]) / r->q[j];
    }
}

static void normal_matrix(const atoms_ctx *ctx, const atoms_dict *dict, room *r)
{
    const double *a = dict->atoms;
    int64_t n = dict->n, d = dict->d;
    for (int64_t j = 0; j < n; j++) {
        double t = r->u[j] / r->p[j] + r->v[j] / r->q[j];
        for (int64_t i = 0; i < d; i++)
            r->scaled[j * d + i] = t * a[j * d + i];
    }
    atoms_gemm_f64(ctx, (atoms_mnk){d, d, n}, (atoms_f64_in){r->scaled, 1, d}, (atoms_f64_in){a, d, 1}, 0,
                   (atoms_f64_out){r->m, d, 1});
    factorise(d, r->m);
}

/* Interior point: z (n, dense) and y. Zero atoms stay where they started and count for nothing:
 * their weight is one, their column zero. Returns the steps taken. */
static int32_t interior(const atoms_ctx *ctx, const atoms_dict *dict, room *r, double tol, int64_t max_steps)
{
    int64_t n = dict->n, d = dict->d;
    double *cu = r->theta, *cv = r->zs; /* targets */
    memset(r->y, 0, (size_t)d * sizeof(double));
    times(dict, r->x, r->dy_all);
    double top = 0;
    for (int64_t j = 0; j < n; j++)
        top = ATOMS_MAX(top, fabs(r->dy_all[j]));
    for (int64_t j = 0; j < n; j++) {
        r->u[j] = ATOMS_MAX(r->dy_all[j], 0) + top;
        r->v[j] = ATOMS_MAX(-r->dy_all[j], 0) + top;
        r->p[j] = r->q[j] = r->w[j];
    }
    int32_t step = 0, stalls = 0;
    double last_mu = INFINITY, last_off = INFINITY;
    for (; step < max_steps && stalls < 3 && atoms_team_ask(r->team) == ATOMS_OK; step++) {
        double mu = 0, l1 = 0;
        for (int64_t j = 0; j < n; j++) {
            r->z[j] = r->u[j] - r->v[j];
            mu += r->u[j] * r->p[j] + r->v[j] * r->q[j];
            l1 += r->w[j] * (r->u[j] + r->v[j]);
        }
        gather(dict, r->z, r->rx);
        double off = 0;
        for (int64_t i = 0; i < d; i++) {
            r->rx[i] = r->x[i] - r->rx[i];
            off = ATOMS_MAX(off, fabs(r->rx[i]));
        }
        if (mu <= 0.1 * tol * l1 && (off < 1e-10 || off > 0.5 * last_off))
            break;
        last_off = off;
        stalls = mu > 0.9 * last_mu ? stalls + 1 : 0; /* as far as rounding lets it go */
        last_mu = mu;
        normal_matrix(ctx, dict, r);
        for (int64_t j = 0; j < n; j++) {
            cu[j] = -r->u[j] * r->p[j];
            cv[j] = -r->v[j] * r->q[j];
        }
        direction(dict, r, cu, cv);
        double primal = ATOMS_MIN(longest(n, r->u, r->du), longest(n, r->v, r->dv));
        double dual = ATOMS_MIN(longest(n, r->p, r->dp), longest(n, r->q, r->dq)), mu_affine = 0;
        for (int64_t j = 0; j < n; j++)
            mu_affine += (r->u[j] + primal * r->du[j]) * (r->p[j] + dual * r->dp[j]) +
                         (r->v[j] + primal * r->dv[j]) * (r->q[j] + dual * r->dq[j]);
        double share = mu_affine / mu, centre = share * share * share * mu / (2 * (double)n);
        for (int64_t j = 0; j < n; j++) {
            cu[j] = centre - r->u[j] * r->p[j] - r->du[j] * r->dp[j];
            cv[j] = centre - r->v[j] * r->q[j] - r->dv[j] * r->dq[j];
        }
        direction(dict, r, cu, cv);
        primal = 0.9995 * ATOMS_MIN(longest(n, r->u, r->du), longest(n, r->v, r->dv));
        dual = 0.9995 * ATOMS_MIN(longest(n, r->p, r->dp), longest(n, r->q, r->dq));
        for (int64_t j = 0; j < n; j++) {
            r->u[j] += primal * r->du[j];
            r->v[j] += primal * r->dv[j];
            r->p[j] += dual * r->dp[j];
            r->q[j] += dual * r->dq[j];
        }
        for (int64_t i = 0; i < d; i++)
            r->y[i] += dual * r->dy[i];
        if (primal < 1e-10 && dual < 1e-10)
            break;
    }
    return step;
}

/* The interior point's support: atoms that carry more than rounding, refitted where that keeps
 * the constraint; else all of them as they are. */
static int64_t clean(const atoms_dict *dict, room *r)
{
    double top = 0;
    int64_t m = 0, n = dict->n;
    for (int64_t j = 0; j < n; j++)
        top = ATOMS_MAX(top, fabs(r->z[j]));
    for (int64_t j = 0; j < n; j++)
        if (fabs(r->z[j]) > 1e-7 * top)
            r->set[m++] = (int32_t)j;
    double *y = r->dy; /* kept apart from the interior point's y */
    if (fit_set(dict, r, m, r->set, r->zs, y) && residual_of(dict, r, m, r->set, r->zs) < 1e-11)
        return m;
    m = 0;
    for (int64_t j = 0; j < n; j++)
        if (fabs(r->z[j]) > 1e-13 * top) {
            r->set[m] = (int32_t)j;
            r->zs[m++] = r->z[j];
        }
    return m;
}

static void write_code(const atoms_dict *dict, const room *r, code_tile *tile, int64_t i, int64_t m, double scale,
                       int status, double gap)
{
    int32_t *indices = tile->indices + i * tile->width, count = 0;
    double *values = (double *)tile->values + i * tile->width;
    for (int64_t k = 0; k < m; k++) {
        double value = r->zs[k] * (scale / dict->norm[r->set[k]]);
        if (!isfinite(value))
            status = ATOMS_SIGNAL_RANGE;
        if (r->zs[k] == 0)
            continue;
        indices[count] = r->set[k];
        values[count++] = value;
    }
    tile->counts[i] = status == ATOMS_SIGNAL_RANGE ? 0 : count;
    tile->status[i] = (int8_t)status;
    if (tile->residual)
        tile->residual[i] = scale * residual_of(dict, r, m, r->set, r->zs);
    if (tile->gap)
        tile->gap[i] = gap * scale;
}

/* Matching pursuit to the end: the point of the span nearest to the signal. Into r->set, r->zs;
 * on a failure to allocate nothing, which is no code either. */
static int64_t nearest(const atoms_ctx *ctx, const atoms_dict *dict, room *r, code_tile *tile, int64_t i)
{
    atoms_omp_params p = {.n_nonzero = ATOMS_MIN(dict->n, dict->d), .tol = -1};
    int32_t count = 0, steps = 0;
    int8_t status;
    if (atoms_omp(ctx, dict, 1, r->x, ATOMS_F64, 0, 1, NULL, NULL, &p, r->set, r->zs, &count, &status, &steps, NULL) <
        0)
        return 0;
    tile->steps[i] += steps;
    for (int32_t k = 0; k < count; k++)
        r->zs[k] *= dict->norm[r->set[k]];
    return count;
}

/* Signal i of the tile: the code that matching pursuit left in its row, proved or improved. */
static atoms_status solve(const atoms_ctx *ctx, const atoms_dict *dict, const atoms_basis_params *p, room *r,
                          code_tile *tile, int64_t i, double scale, double greedy)
{
    int64_t m = tile->counts[i];
    memcpy(r->set, tile->indices + i * tile->width, (size_t)m * sizeof *r->set);
    double gap = 0, l1 = 0;
    bool spanned = greedy <= 1e-9 * scale;
    if (spanned && fit_set(dict, r, m, r->set, r->zs, r->y)) {
        gap = certified_gap(dict, r, m, r->set, r->zs, r->y, &l1);
        if (gap <= p->tol * l1) {
            write_code(dict, r, tile, i, m, scale, ATOMS_SIGNAL_CONVERGED, ATOMS_MAX(gap, 0));
            return ATOMS_OK;
        }
    }
    tile->steps[i] += interior(ctx, dict, r, ATOMS_MIN(p->tol, 1e-9), p->max_steps);
    m = clean(dict, r);
    gap = certified_gap(dict, r, m, r->set, r->zs, r->y, &l1);
    if (residual_of(dict, r, m, r->set, r->zs) > 1e-7) {
        m = nearest(ctx, dict, r, tile, i);
        bool outside = residual_of(dict, r, m, r->set, r->zs) > 1e-7;
        write_code(dict, r, tile, i, m, scale, outside ? ATOMS_SIGNAL_INFEASIBLE : ATOMS_SIGNAL_LIMIT, NAN);
        return ATOMS_OK;
    }
    write_code(dict, r, tile, i, m, scale, gap <= p->tol * l1 ? ATOMS_SIGNAL_CONVERGED : ATOMS_SIGNAL_LIMIT,
               ATOMS_MAX(gap, 0));
    return ATOMS_OK;
}

atoms_status atoms_equality_tile(const atoms_ctx *ctx, const atoms_dict *dict, const atoms_basis_params *p,
                                 code_tile *tile)
{
    int64_t n = tile->n, d = dict->d;
    int64_t size = tile->x_type == ATOMS_F64 ? 8 : tile->x_type == ATOMS_F32 ? 4 : 2;
    atoms_ctx_params inner_params = ctx->p;
    inner_params.num_threads = 1; /* this tile's thread is all there is */
    inner_params.poll = NULL;
    atoms_ctx inner = {.p = inner_params, .isa = ctx->isa, .kernels = ctx->kernels};
    int64_t most = ATOMS_MAX(1, ATOMS_MIN(dict->n, d) / LIKELY_SHARE);
    room r;
    int64_t bytes = carve(dict, NULL, &r);
    char *base = atoms_calloc(bytes, 1);
    double *greedy = atoms_alloc(n, sizeof *greedy);
    int32_t *indices = atoms_alloc(n * most, sizeof *indices);
    double *values = atoms_alloc(n * most, sizeof *values);
    atoms_status status = ATOMS_ERR_MEMORY;
    if (base && greedy && indices && values) {
        carve(dict, base, &r);
        r.team = tile->team;
        for (int64_t j = 0; j < dict->n; j++)
            r.w[j] = dict->norm[j] > 0 ? 1 / dict->norm[j] : 1;
        atoms_omp_params omp = {.n_nonzero = most, .tol = -1};
        status = atoms_omp(&inner, dict, n, tile->x, tile->x_type, tile->rs, tile->cs, NULL, NULL, &omp, indices,
                           values, tile->counts, tile->status, tile->steps, greedy);
    }
    for (int64_t i = 0; status == ATOMS_OK && i < n; i++) {
        double scale;
        const char *from = (const char *)tile->x + i * tile->rs * size;
        signal_kind kind = atoms_load_signal(d, from, tile->x_type, tile->cs, r.x, &scale);
        if (tile->gap)
            tile->gap[i] = kind == SIGNAL_NONFINITE ? NAN : 0;
        if (tile->residual)
            tile->residual[i] = kind == SIGNAL_NONFINITE ? NAN : 0;
        if (kind != SIGNAL_OK)
            continue;
        memcpy(tile->indices + i * tile->width, indices + i * most, (size_t)tile->counts[i] * sizeof *indices);
        status = solve(&inner, dict, p, &r, tile, i, scale, greedy[i]);
        if (status == ATOMS_OK)
            status = atoms_team_ask(tile->team);
    }
    atoms_free(values);
    atoms_free(indices);
    atoms_free(greedy);
    atoms_free(base);
    return status;
}
