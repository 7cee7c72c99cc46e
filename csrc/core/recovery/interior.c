/* interior.c: the linear programme of basis pursuit with equality by a primal-dual interior-point method. Letters as in
 * equality.c. */
#include "equality.h"

#include <math.h>

/* out (n) = D y */
void equality_times(const equality_job *r, const double *y, double *out)
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
static void gather(const equality_job *r, const double *z, double *out)
{
    const double *a = r->atoms;
    memset(out, 0, (size_t)r->d * sizeof *out);
    for (int64_t j = 0; j < r->n; j++)
        if (z[j] != 0)
            for (int64_t i = 0; i < r->d; i++)
                out[i] += z[j] * a[j * r->d + i];
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

/* Cholesky with the inner products along rows, for the d x d systems. A pivot that is not positive enough becomes so large
 * that its coordinate is inert: a direction without atoms. */
static void factorise(int64_t d, double *m)
{
    double top = 0;
    for (int64_t i = 0; i < d; i++)
        top = ATOMS_MAX(top, m[i * d + i]);
    for (int64_t i = 0; i < d; i++) {
        double *row = m + i * d;
        for (int64_t j = 0; j < i; j++)
            row[j] = (row[j] - equality_dot(j, row, m + j * d)) / m[j * d + j];
        double pivot = row[i] - equality_dot(i, row, row);
        row[i] = pivot > 1e-15 * top ? sqrt(pivot) : 1e64;
    }
}

/* The direction for complementarity's targets:
 *   D'(du - dv) = rx;  dp = -D dy, dq = D dy;  p du + u dp = cu, q dv + v dq = cv */
static void direction(equality_job *r)
{
    const int64_t n = r->n;
    for (int64_t j = 0; j < n; j++)
        r->ry[j] = r->cu[j] / r->p[j] - r->cv[j] / r->q[j];
    gather(r, r->ry, r->rhs);
    for (int64_t i = 0; i < r->d; i++)
        r->dy[i] = r->rx[i] - r->rhs[i];
    atoms_cholesky_solve(r->d, r->m, r->d, r->dy);
    equality_times(r, r->dy, r->dy_all);
    for (int64_t j = 0; j < n; j++) {
        r->dp[j] = -r->dy_all[j];
        r->dq[j] = r->dy_all[j];
        r->du[j] = (r->cu[j] - r->u[j] * r->dp[j]) / r->p[j];
        r->dv[j] = (r->cv[j] - r->v[j] * r->dq[j]) / r->q[j];
    }
}

static void normal_matrix(equality_job *r)
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
static void start(equality_job *r)
{
    memset(r->y, 0, (size_t)r->d * sizeof(double));
    equality_times(r, r->x, r->dy_all);
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
static distance measure(equality_job *r)
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
static double longest_primal(const equality_job *r)
{
    return ATOMS_MIN(longest(r->n, r->u, r->du), longest(r->n, r->v, r->dv));
}

static double longest_dual(const equality_job *r)
{
    return ATOMS_MIN(longest(r->n, r->p, r->dp), longest(r->n, r->q, r->dq));
}

/* Mehrotra's direction: towards complementarity zero, then towards the centre that this suggests. */
static void predict_and_correct(equality_job *r, double mu)
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
static bool advance(equality_job *r)
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
int32_t equality_interior(equality_job *r, double tol)
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
