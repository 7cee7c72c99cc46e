/* unit_rows.c: rows made unit vectors, whitened before that if wanted. */
#include "theory.h"

#include <math.h>

/* unit (d) = v / |v|, *norm = |v|; false for zero, and where a value is not finite. Scaled, so that a square can
 * neither overflow nor vanish, and divided twice: neither base/linalg.c's norm nor the metric's make_unit sums and
 * divides in this order, and one function for two of them would change results. */
static bool unit_row(int64_t d, const double *v, float *unit, double *norm)
{
    double largest = 0, sum = 0;
    for (int64_t j = 0; j < d; j++) {
        if (!isfinite(v[j]))
            largest = INFINITY;
        largest = fmax(largest, fabs(v[j]));
    }
    if (largest == 0 || !isfinite(largest))
        return false;
    for (int64_t j = 0; j < d; j++)
        sum += (v[j] / largest) * (v[j] / largest);
    double root = sqrt(sum);
    *norm = root * largest;
    for (int64_t j = 0; j < d; j++)
        unit[j] = (float)(v[j] / largest / root);
    return true;
}

atoms_status atoms_unit_rows(const atoms_ctx *ctx, atoms_rows x, const double *whitener, float *unit, double *norms,
                             int64_t *bad_row)
{
    *bad_row = -1;
    if (x.n < 0 || x.d < 1)
        return ATOMS_ERR_ARGUMENT;
    const int64_t n = x.n, d = x.d, size = THEORY_ROWS * d;
    const int threads = ctx->p.num_threads;
    int64_t tasks = atoms_ceil_div(n, THEORY_ROWS), bad = n;
    double *rows = atoms_alloc(threads * 2 * size, sizeof *rows); /* (threads, 2, THEORY_ROWS, d): rows and scratch */
    if (!rows)
        return ATOMS_ERR_MEMORY;
    atoms_team team = {.ctx = ctx};
#pragma omp parallel for num_threads(threads) schedule(dynamic) reduction(min : bad)
    for (int64_t t = 0; t < tasks; t++) {
        if (atoms_team_ask(&team) < 0)
            continue;
        int64_t first = t * THEORY_ROWS, count = ATOMS_MIN(THEORY_ROWS, n - first);
        double *mine = rows + atoms_thread() * 2 * size;
        atoms_to_f64(atoms_some_rows(x, first, count), mine);
        if (whitener)
            theory_whiten(ctx, count, d, whitener, mine, mine + size);
        for (int64_t i = 0; i < count; i++)
            if (!unit_row(d, mine + i * d, unit + (first + i) * d, norms + first + i))
                bad = ATOMS_MIN(bad, first + i);
    }
    atoms_free(rows);
    if (team.status < 0)
        return team.status;
    if (bad == n)
        return ATOMS_OK;
    *bad_row = bad;
    return ATOMS_ERR_NONFINITE;
}
