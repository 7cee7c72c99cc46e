/* angles.c: histograms of the angles between rows, all pairs of them or some.
 *
 * All pairs: blocks of BLOCK_ROWS rows are made float32 unit vectors, whose products are cosines. A task is a tile of
 * the square of all pairs: one block against up to TILE_BLOCKS others, on the diagonal and right of it.
 * Listed pairs: in float64, PAIRS_A_TASK of them a task.
 *
 * Counts are whole numbers and may be added in any order: each thread has its own. Sums of angles are kept for each
 * task and added in order: the result does not depend on the threads. */
#include "base/core.h"
#include "kernels.h"

#include <math.h>

enum { BLOCK_ROWS = 128, TILE_BLOCKS = 8, PAIRS_A_TASK = 512 };

/* What all tasks of a call share. */
typedef struct {
    const atoms_ctx *ctx;
    atoms_rows x;
    const atoms_pairs *pairs; /* NULL: all */
    int64_t blocks;           /* of the rows */
    int64_t tiles;            /* in a row of blocks */
    int64_t tasks;
    int64_t bins;
    double *sums; /* (tasks, 3): pairs, and their angles minus 90 once and squared */
} angles;

/* What one thread needs for itself. */
typedef struct {
    double *pair;    /* (2, d): two rows */
    float *a, *b;    /* (BLOCK_ROWS, d): unit rows of two blocks */
    float *cosines;  /* (BLOCK_ROWS, BLOCK_ROWS) of theirs */
    float *degrees;  /* (BLOCK_ROWS): one row of angles */
    int64_t *counts; /* (bins) of all tasks of this thread */
} workspace;

/* | two rows | block a | block b | their cosines | a row of angles | counts | */
static void lay_out(workspace *w, int64_t d, int64_t bins, atoms_arena *arena)
{
    ATOMS_TAKE(arena, w->pair, 2 * d);
    ATOMS_TAKE(arena, w->a, BLOCK_ROWS * d);
    ATOMS_TAKE(arena, w->b, BLOCK_ROWS * d);
    ATOMS_TAKE(arena, w->cosines, BLOCK_ROWS * BLOCK_ROWS);
    ATOMS_TAKE(arena, w->degrees, BLOCK_ROWS);
    ATOMS_TAKE(arena, w->counts, bins);
}

static bool open_workspace(workspace *w, int64_t d, int64_t bins, atoms_arena *arena)
{
    lay_out(w, d, bins, arena);
    if (!atoms_arena_open(arena))
        return false;
    lay_out(w, d, bins, arena);
    memset(w->counts, 0, (size_t)bins * sizeof *w->counts);
    return true;
}

static void add_angle(int64_t bins, double degrees, int64_t *counts, double *sums)
{
    int64_t bin = (int64_t)(degrees * ((double)bins / 180.0));
    counts[ATOMS_MIN(bin, bins - 1)]++;
    double off = degrees - 90.0;
    sums[0] += 1.0;
    sums[1] += off;
    sums[2] += off * off;
}

/* ---------------------------------------------------------------- unit rows */

/* sum of (u + factor v)^2 in eight running sums, which vectorise. Neither base/linalg.c's norm nor the theory room adds
 * in this order, and neither normalises as make_unit does: one function for two of them would change results. */
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

/* row (d) divided by its norm, which may be of any size; false for a zero row, and where a value is not finite, which
 * sets ok to false too. */
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

/* unit (kept, d) = the rows of one block that are not zero, as float32 unit vectors; returns how many are kept, or a
 * negative status. row: (d), scratch. */
static int64_t unit_block(const atoms_rows *x, int64_t block, double *row, float *unit)
{
    bool ok = true;
    int64_t kept = 0, end = ATOMS_MIN(x->n, (block + 1) * BLOCK_ROWS);
    for (int64_t i = block * BLOCK_ROWS; i < end; i++) {
        atoms_to_f64(atoms_some_rows(*x, i, 1), row);
        if (make_unit(x->d, row, &ok)) {
            for (int64_t j = 0; j < x->d; j++)
                unit[kept * x->d + j] = (float)row[j];
            kept++;
        }
        if (!ok)
            return ATOMS_ERR_NONFINITE;
    }
    return kept;
}

/* -------------------------------------------------------------------- tasks */

/* Block i against blocks j0 to j1 (j0 >= i), each pair once. */
static atoms_status tile_task(const angles *a, int64_t task, const workspace *w)
{
    const int64_t d = a->x.d, i = task / a->tiles, at = task % a->tiles * TILE_BLOCKS;
    const int64_t j0 = ATOMS_MAX(i, at), j1 = ATOMS_MIN(a->blocks, at + TILE_BLOCKS);
    int64_t na = unit_block(&a->x, i, w->pair, w->a);
    for (int64_t j = j0; na >= 0 && j < j1; j++) {
        int64_t nb = j == i ? na : unit_block(&a->x, j, w->pair, w->b);
        if (nb < 0)
            return (atoms_status)nb;
        atoms_gemm_f32(a->ctx, (atoms_mnk){na, nb, d}, (atoms_f32_in){w->a, d, 1},
                       (atoms_f32_in){j == i ? w->a : w->b, 1, d}, 0.0f, (atoms_f32_out){w->cosines, nb, 1});
        for (int64_t r = 0; r < na; r++) {
            int64_t first = j == i ? r + 1 : 0;
            a->ctx->kernels->metric->degrees(nb - first, w->cosines + r * nb + first, w->degrees);
            for (int64_t k = 0; k < nb - first; k++)
                add_angle(a->bins, w->degrees[k], w->counts, a->sums + task * 3);
        }
    }
    return na < 0 ? (atoms_status)na : ATOMS_OK;
}

static atoms_status list_task(const angles *a, int64_t task, const workspace *w)
{
    const int64_t d = a->x.d, end = ATOMS_MIN(a->pairs->n, (task + 1) * PAIRS_A_TASK);
    double *u = w->pair, *v = w->pair + d;
    for (int64_t p = task * PAIRS_A_TASK; p < end; p++) {
        bool ok = true;
        atoms_to_f64(atoms_some_rows(a->x, a->pairs->first[p], 1), u);
        atoms_to_f64(atoms_some_rows(a->x, a->pairs->second[p], 1), v);
        bool first = make_unit(d, u, &ok), both = make_unit(d, v, &ok) && first;
        if (!ok)
            return ATOMS_ERR_NONFINITE;
        if (!both)
            continue;
        /* 2 atan2(|u - v|, |u + v|) keeps its digits at every angle, unlike the arc cosine */
        double apart = sum_squares(d, u, -1.0, v), along = sum_squares(d, u, 1.0, v);
        add_angle(a->bins, 360.0 / 3.14159265358979323846 * atan2(sqrt(apart), sqrt(along)), w->counts,
                  a->sums + task * 3);
    }
    return ATOMS_OK;
}

static atoms_status all_tasks(const angles *a, int64_t *counts)
{
    atoms_team team = {.ctx = a->ctx};
#pragma omp parallel num_threads(a->ctx->p.num_threads)
    {
        workspace w;
        atoms_arena arena = {0};
        bool ready = open_workspace(&w, a->x.d, a->bins, &arena);
        if (!ready)
            atoms_team_report(&team, ATOMS_ERR_MEMORY);
#pragma omp for schedule(dynamic)
        for (int64_t task = 0; task < a->tasks; task++) {
            if (!ready || atoms_team_stopped(&team))
                continue;
            atoms_team_report(&team, a->pairs ? list_task(a, task, &w) : tile_task(a, task, &w));
        }
        /* one by one: a critical section's lock is the process's, and a forked child may find it held for ever */
        for (int64_t k = 0; ready && k < a->bins; k++) {
#pragma omp atomic
            counts[k] += w.counts[k];
        }
        atoms_arena_close(&arena);
    }
    return team.status;
}

static bool pairs_in_range(const atoms_pairs *pairs, int64_t n)
{
    for (int64_t p = 0; p < pairs->n; p++)
        if (pairs->first[p] < 0 || pairs->first[p] >= n || pairs->second[p] < 0 || pairs->second[p] >= n)
            return false;
    return pairs->n >= 0;
}

atoms_status atoms_angles(const atoms_ctx *ctx, atoms_rows x, const atoms_pairs *pairs, int64_t bins, int64_t *counts,
                          double *sums)
{
    if (x.n < 0 || x.d < 1 || bins < 1 || (pairs && !pairs_in_range(pairs, x.n)))
        return ATOMS_ERR_ARGUMENT;
    angles a = {.ctx = ctx, .x = x, .pairs = pairs, .bins = bins};
    a.blocks = atoms_ceil_div(x.n, BLOCK_ROWS);
    a.tiles = atoms_ceil_div(a.blocks, TILE_BLOCKS);
    a.tasks = pairs ? atoms_ceil_div(pairs->n, PAIRS_A_TASK) : a.blocks * a.tiles;
    a.sums = atoms_calloc(a.tasks * 3, sizeof *a.sums);
    if (!a.sums)
        return ATOMS_ERR_MEMORY;
    memset(counts, 0, (size_t)bins * sizeof *counts);
    memset(sums, 0, 3 * sizeof *sums);
    atoms_status status = all_tasks(&a, counts);
    for (int64_t task = 0; task < a.tasks; task++)
        for (int k = 0; k < 3; k++)
            sums[k] += a.sums[task * 3 + k];
    atoms_free(a.sums);
    return status;
}
