/* metric_angles.c: histograms of the angles between rows, all pairs of them or some.
 *
 * All pairs go by tiles of rows made unit vectors in float32, whose products are cosines. A tile
 * of rows meets eight others in one task; sums of angles are kept for each task and added in
 * order, counts are whole numbers and may be added in any.
 */
#include "base/core.h"
#include "kernels.h"

#include <math.h>

enum {
    TILE = 128,        /* rows of a tile */
    STRIP = 8,         /* tiles that one task compares a tile with */
    PAIRS_A_TASK = 512 /* listed pairs of one task */
};

/* One thread's counts and one task's sums: pairs, and their angles minus 90 once and squared. */
typedef struct {
    int64_t bins, *counts;
    double *sums;
} tally;

static void add_angle(tally *t, double degrees)
{
    int64_t bin = (int64_t)(degrees * ((double)t->bins / 180.0));
    t->counts[ATOMS_MIN(bin, t->bins - 1)]++;
    double off = degrees - 90.0;
    t->sums[0] += 1.0;
    t->sums[1] += off;
    t->sums[2] += off * off;
}

/* sum of (u + factor v)^2 in eight running sums, which vectorise */
static double sum_squares(int64_t d, const double *u, double factor, const double *v)
{
    enum { LANES = 8 };
    double lane[LANES] = {0};
    int64_t j = 0;
    for (; j + LANES <= d; j += LANES)
        for (int k = 0; k < LANES; k++) {
            double value = u[j + k] + factor * v[j + k];
            lane[k] += value * value;
        }
    for (; j < d; j++)
        lane[0] += (u[j] + factor * v[j]) * (u[j] + factor * v[j]);
    for (int k = LANES / 2; k > 0; k /= 2)
        for (int i = 0; i < k; i++)
            lane[i] += lane[i + k];
    return lane[0];
}

/* row (d) divided by its norm, which may be of any size; false for a zero row, ok is set to false
 * where a value is not finite. */
static bool make_unit(int64_t d, double *row, bool *ok)
{
    double sum = sum_squares(d, row, 0.0, row);
    if (!(sum > 1e-200 && sum < 1e200)) { /* zero, not finite, or squares out of range */
        double largest = 0.0;
        for (int64_t j = 0; j < d; j++) {
            *ok = *ok && isfinite(row[j]);
            largest = ATOMS_MAX(largest, fabs(row[j]));
        }
        if (!*ok || largest == 0.0)
            return false;
        for (int64_t j = 0; j < d; j++)
            row[j] /= largest;
        sum = sum_squares(d, row, 0.0, row);
    }
    double scale = 1.0 / sqrt(sum);
    for (int64_t j = 0; j < d; j++)
        row[j] *= scale;
    return true;
}

/* The rows of one tile that are not zero, as float32 unit vectors; how many there are, or a
 * negative status. */
static int64_t unit_tile(const atoms_rows *x, int64_t tile, double *scratch, float *unit)
{
    bool ok = true;
    int64_t kept = 0, end = ATOMS_MIN(x->n, (tile + 1) * TILE);
    for (int64_t i = tile * TILE; i < end; i++) {
        atoms_to_f64(atoms_some_rows(*x, i, 1), scratch);
        if (make_unit(x->d, scratch, &ok)) {
            for (int64_t j = 0; j < x->d; j++)
                unit[kept * x->d + j] = (float)scratch[j];
            kept++;
        }
        if (!ok)
            return ATOMS_ERR_NONFINITE;
    }
    return kept;
}

typedef struct {
    double *scratch;                  /* (d) */
    float *a, *b, *cosines, *degrees; /* (TILE, d) twice, (TILE, TILE), (TILE) */
    int64_t *counts;
} workspace;

static void free_workspace(workspace *w)
{
    atoms_free(w->scratch);
    atoms_free(w->a);
    atoms_free(w->b);
    atoms_free(w->cosines);
    atoms_free(w->degrees);
    atoms_free(w->counts);
}

static atoms_status new_workspace(workspace *w, int64_t d, int64_t bins)
{
    w->scratch = atoms_alloc(2 * d, sizeof *w->scratch);
    w->a = atoms_alloc(TILE * d, sizeof *w->a);
    w->b = atoms_alloc(TILE * d, sizeof *w->b);
    w->cosines = atoms_alloc(TILE * TILE, sizeof *w->cosines);
    w->degrees = atoms_alloc(TILE, sizeof *w->degrees);
    w->counts = atoms_calloc(bins, sizeof *w->counts);
    return w->scratch && w->a && w->b && w->cosines && w->degrees && w->counts ? ATOMS_OK : ATOMS_ERR_MEMORY;
}

/* Tile i against tiles j0 to j1 (j0 >= i), each pair once. */
static atoms_status tile_task(const atoms_ctx *ctx, const atoms_rows *x, int64_t i, int64_t j0, int64_t j1,
                              workspace *w, tally *t)
{
    const int64_t d = x->d;
    int64_t na = unit_tile(x, i, w->scratch, w->a);
    for (int64_t j = j0; na >= 0 && j < j1; j++) {
        int64_t nb = j == i ? na : unit_tile(x, j, w->scratch, w->b);
        if (nb < 0)
            return (atoms_status)nb;
        atoms_gemm_f32(ctx, (atoms_mnk){na, nb, d}, (atoms_f32_in){w->a, d, 1},
                       (atoms_f32_in){j == i ? w->a : w->b, 1, d}, 0.0f, (atoms_f32_out){w->cosines, nb, 1});
        for (int64_t r = 0; r < na; r++) {
            int64_t first = j == i ? r + 1 : 0;
            ctx->kernels->metric->degrees(nb - first, w->cosines + r * nb + first, w->degrees);
            for (int64_t k = 0; k < nb - first; k++)
                add_angle(t, w->degrees[k]);
        }
    }
    return na < 0 ? (atoms_status)na : ATOMS_OK;
}

/* Listed pairs p0 to p1, in float64. */
static atoms_status list_task(const atoms_rows *x, const int64_t *first, const int64_t *second, int64_t p0, int64_t p1,
                              workspace *w, tally *t)
{
    const int64_t d = x->d;
    double *u = w->scratch, *v = w->scratch + d;
    for (int64_t p = p0; p < p1; p++) {
        bool ok = true;
        atoms_to_f64(atoms_some_rows(*x, first[p], 1), u);
        atoms_to_f64(atoms_some_rows(*x, second[p], 1), v);
        bool both = make_unit(d, u, &ok) & make_unit(d, v, &ok);
        if (!ok)
            return ATOMS_ERR_NONFINITE;
        if (!both)
            continue;
        /* 2 atan2(|u - v|, |u + v|) keeps its digits at every angle, unlike the arc cosine */
        double apart = sum_squares(d, u, -1.0, v), along = sum_squares(d, u, 1.0, v);
        add_angle(t, 360.0 / 3.14159265358979323846 * atan2(sqrt(apart), sqrt(along)));
    }
    return ATOMS_OK;
}

atoms_status atoms_angles(const atoms_ctx *ctx, int64_t n, int64_t d, const void *data, atoms_dtype type, int64_t rs,
                          int64_t cs, int64_t pairs, const int64_t *first, const int64_t *second, int64_t bins,
                          int64_t *counts, double *sums)
{
    if (n < 0 || d < 1 || bins < 1 || pairs < 0)
        return ATOMS_ERR_ARGUMENT;
    for (int64_t p = 0; first && p < pairs; p++)
        if (first[p] < 0 || first[p] >= n || second[p] < 0 || second[p] >= n)
            return ATOMS_ERR_ARGUMENT;
    const atoms_rows x = {data, type, n, d, rs, cs};
    const int64_t tiles = (n + TILE - 1) / TILE, strips = (tiles + STRIP - 1) / STRIP;
    const int64_t tasks = first ? (pairs + PAIRS_A_TASK - 1) / PAIRS_A_TASK : tiles * strips;
    memset(counts, 0, (size_t)bins * sizeof *counts);
    memset(sums, 0, 3 * sizeof *sums);
    double *parts = atoms_calloc(tasks * 3, sizeof *parts);
    if (!parts)
        return ATOMS_ERR_MEMORY;

    atoms_team team = {.ctx = ctx};
#pragma omp parallel num_threads(ctx->p.num_threads)
    {
        workspace w = {0};
        atoms_status got = new_workspace(&w, d, bins);
        if (got < 0)
            atoms_team_report(&team, got);
#pragma omp for schedule(dynamic)
        for (int64_t task = 0; task < tasks; task++) {
            if (got < 0 || atoms_team_stopped(&team))
                continue;
            tally t = {bins, w.counts, parts + task * 3};
            int64_t i = task / strips, j0 = task % strips * STRIP;
            atoms_status done = first ? list_task(&x, first, second, task * PAIRS_A_TASK,
                                                  ATOMS_MIN(pairs, (task + 1) * PAIRS_A_TASK), &w, &t)
                                      : tile_task(ctx, &x, i, ATOMS_MAX(i, j0), ATOMS_MIN(tiles, j0 + STRIP), &w, &t);
            atoms_team_report(&team, done);
        }
#pragma omp critical(atoms_angles_counts)
        for (int64_t k = 0; got == ATOMS_OK && k < bins; k++)
            counts[k] += w.counts[k];
        free_workspace(&w);
    }
    for (int64_t task = 0; task < tasks; task++)
        for (int k = 0; k < 3; k++)
            sums[k] += parts[task * 3 + k];
    atoms_free(parts);
    return team.status;
}
