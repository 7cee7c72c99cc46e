/* metric.c: second moments of activations and products with them, in float64.
 *
 * Moments. Rows are taken in phases of a few hundred. A phase is converted into panels of 24
 * columns (metric_kernels.h), then blocks of the upper triangle of X'X are updated from them.
 * While one phase is multiplied the next is packed, into a second buffer, so that threads only
 * meet once a phase and reading memory hides behind arithmetic. Each element of the result is
 * summed by one thread at a time, 256 rows in registers and then those sums in order: the result
 * does not depend on who did it.
 */
#include "base/core.h"
#include "kernels.h"

#include <math.h>

enum {
    DEPTH = 256,     /* rows summed in registers: a group of 8 columns stays in 16 KB of L1 */
    PACK_ROWS = 64,  /* rows packed by one task: whole rows, so that memory is read in order */
    COL_PANELS = 12, /* columns of one task of the product: DEPTH rows of them stay in L2 */
    PHASE_DOUBLES = 512 * 1024,
    WHITEN_ROWS = 64 /* rows of one task of a product with a matrix */
};

/* ------------------------------------------------------------------ packing */

/* Rows i0 to i1 into panels DEPTH * 24 apart, their columns' sums (overwritten) into `sum`.
 * Whole panels of plain float32 and float64 rows go straight there, the rest by way of a tile. */
static void pack(const metric_kernels *kernels, const atoms_rows *x, int64_t i0, int64_t i1, const double *shift,
                 double *panel, double *sum)
{
    enum { TILE_ROWS = 32 };
    const int64_t stride = DEPTH * ATOMS_PANEL, panels = atoms_ceil_div(x->d, ATOMS_PANEL);
    memset(sum, 0, (size_t)(panels * ATOMS_PANEL) * sizeof *sum);
    int64_t direct = x->cs == 1 && x->type <= ATOMS_F64 ? x->d / ATOMS_PANEL : 0;
    if (x->type == ATOMS_F32)
        kernels->pack_f32(i1 - i0, direct, atoms_element(*x, i0, 0), x->rs, shift, panel, stride, sum);
    else if (direct)
        kernels->pack_f64(i1 - i0, direct, atoms_element(*x, i0, 0), x->rs, shift, panel, stride, sum);
    for (int64_t p = direct; p < panels; p++) {
        double tile[TILE_ROWS * ATOMS_PANEL], wide[TILE_ROWS * ATOMS_PANEL];
        int64_t at = p * ATOMS_PANEL, cols = ATOMS_MIN(ATOMS_PANEL, x->d - at);
        for (int64_t i = i0; i < i1; i += TILE_ROWS) {
            int64_t count = ATOMS_MIN(TILE_ROWS, i1 - i);
            atoms_to_f64(atoms_some_columns(atoms_some_rows(*x, i, count), at, cols), tile);
            memset(wide, 0, sizeof wide); /* columns beyond d count as zeros */
            for (int64_t r = 0; r < count; r++)
                memcpy(wide + r * ATOMS_PANEL, tile + r * cols, (size_t)cols * sizeof *tile);
            kernels->pack_f64(count, 1, wide, ATOMS_PANEL, shift + at, panel + p * stride + (i - i0) * ATOMS_PANEL,
                              stride, sum + at);
        }
    }
}

/* ------------------------------------------------------------------ moments */

/* One phase: `depths` slices of at most DEPTH rows, each `panels` panels of (DEPTH, 24). */
typedef struct {
    int64_t i0, i1;
    double *panels, *sums; /* (depths, panels, DEPTH, 24) and (packs, panels, 24) */
} phase;

typedef struct {
    const metric_kernels *kernels;
    atoms_rows x;
    int64_t panels, depths, row_panels, row_tasks, col_tasks;
    const double *shift; /* padded to whole panels */
    double *second;
} moments;

static void pack_task(const moments *m, const phase *ph, int64_t task)
{
    int64_t i0 = ph->i0 + task * PACK_ROWS, i1 = ATOMS_MIN(i0 + PACK_ROWS, ph->i1);
    if (i0 >= i1)
        return;
    int64_t slice = task * PACK_ROWS / DEPTH, row = task * PACK_ROWS % DEPTH;
    double *panels = ph->panels + (slice * m->panels * DEPTH + row) * ATOMS_PANEL;
    pack(m->kernels, &m->x, i0, i1, m->shift, panels, ph->sums + task * m->panels * ATOMS_PANEL);
}

/* second[rows of group g of panel pi, columns of panel pj] += a slice's product. Tiles that
 * reach beyond d go through a buffer. On the diagonal, columns left of the group are left out. */
static void update_tile(const moments *m, int64_t depth, const double *slice, int64_t pi, int g, int64_t pj)
{
    const int64_t d = m->x.d, size = DEPTH * ATOMS_PANEL;
    int64_t i = pi * ATOMS_PANEL + g * ATOMS_GROUP, j = pj * ATOMS_PANEL;
    int skip = pi == pj ? g * ATOMS_GROUP : 0, cols = ATOMS_PANEL - skip;
    const double *a = slice + pi * size + g * ATOMS_GROUP, *b = slice + pj * size + skip;
    j += skip;
    if (i + ATOMS_GROUP <= d && j + cols <= d) {
        m->kernels->syrk[cols / ATOMS_GROUP - 1](depth, a, b, m->second + i * d + j, d);
        return;
    }
    double c[ATOMS_GROUP * ATOMS_PANEL] = {0};
    m->kernels->syrk[cols / ATOMS_GROUP - 1](depth, a, b, c, ATOMS_PANEL);
    for (int64_t r = 0; r < ATOMS_MIN(ATOMS_GROUP, d - i); r++)
        for (int64_t k = 0; k < ATOMS_MIN(cols, d - j); k++)
            m->second[(i + r) * d + j + k] += c[r * ATOMS_PANEL + k];
}

static void product_task(const moments *m, const phase *ph, int64_t task)
{
    int64_t pj0 = task / m->row_tasks * COL_PANELS, pi0 = task % m->row_tasks * m->row_panels;
    int64_t pj1 = ATOMS_MIN(pj0 + COL_PANELS, m->panels);
    int64_t pi1 = ATOMS_MIN(pi0 + m->row_panels, pj1);
    for (int64_t s = 0; ph->i0 + s * DEPTH < ph->i1; s++) {
        int64_t depth = ATOMS_MIN(DEPTH, ph->i1 - ph->i0 - s * DEPTH);
        const double *slice = ph->panels + s * m->panels * DEPTH * ATOMS_PANEL;
        for (int64_t pi = pi0; pi < pi1; pi++)
            for (int g = 0; g < ATOMS_PANEL / ATOMS_GROUP; g++)
                for (int64_t pj = ATOMS_MAX(pj0, pi); pj < pj1; pj++)
                    update_tile(m, depth, slice, pi, g, pj);
    }
}

/* Adds a packed phase's sums to the total, task by task; false when one is not finite. */
static bool add_sums(const moments *m, const phase *ph, double *sum)
{
    for (int64_t task = 0; ph->i0 + task * PACK_ROWS < ph->i1; task++)
        for (int64_t j = 0; j < m->x.d; j++) {
            double value = ph->sums[task * m->panels * ATOMS_PANEL + j];
            if (!isfinite(value))
                return false;
            sum[j] += value;
        }
    return true;
}

static void mirror_upper(const atoms_ctx *ctx, int64_t d, double *a)
{
    enum { B = 32 };
    int64_t blocks = atoms_ceil_div(d, B);
#pragma omp parallel for num_threads(ctx->p.num_threads) schedule(dynamic)
    for (int64_t bi = 0; bi < blocks; bi++)
        for (int64_t bj = 0; bj <= bi; bj++)
            for (int64_t i = bi * B; i < ATOMS_MIN(d, bi * B + B); i++)
                for (int64_t j = bj * B; j < ATOMS_MIN(i, bj * B + B); j++)
                    a[i * d + j] = a[j * d + i];
}

atoms_status atoms_moments(const atoms_ctx *ctx, int64_t n, int64_t d, const void *x, atoms_dtype type, int64_t rs,
                           int64_t cs, const double *shift, double *sum, double *second)
{
    if (n < 0 || d < 1)
        return ATOMS_ERR_ARGUMENT;
    moments m = {.kernels = ctx->kernels->metric, .x = {x, type, n, d, rs, cs}, .second = second};
    m.panels = atoms_ceil_div(d, ATOMS_PANEL);
    m.depths = PHASE_DOUBLES / (DEPTH * m.panels * ATOMS_PANEL);
    m.depths = ATOMS_MAX(2, ATOMS_MIN(8, m.depths)); /* the result is fetched once for them all */
    /* few rows a task where there are few tasks to share out, more where fetching costs more */
    m.row_panels = ATOMS_MAX(1, ATOMS_MIN(4, m.panels / 16));
    m.row_tasks = atoms_ceil_div(m.panels, m.row_panels);
    m.col_tasks = atoms_ceil_div(m.panels, COL_PANELS);
    const int64_t phase_rows = m.depths * DEPTH, phases = atoms_ceil_div(n, phase_rows);
    const int64_t width = m.panels * ATOMS_PANEL;
    const int64_t products = m.row_tasks * m.col_tasks, packs = phase_rows / PACK_ROWS;

    double *padded = atoms_calloc(width, sizeof *padded);
    double *buffer = atoms_alloc(2 * phase_rows * width, sizeof *buffer);
    double *sums = atoms_alloc(2 * packs * width, sizeof *sums);
    atoms_status status = padded && buffer && sums ? ATOMS_OK : ATOMS_ERR_MEMORY;
    if (status < 0)
        goto done;
    if (shift)
        memcpy(padded, shift, (size_t)d * sizeof *shift);
    m.shift = padded;
    memset(sum, 0, (size_t)d * sizeof *sum);
    memset(second, 0, (size_t)d * (size_t)d * sizeof *second);

    atoms_pollster pollster = {0};
#pragma omp parallel num_threads(ctx->p.num_threads)
    for (int64_t k = -1; k < phases; k++) {
        phase now, next; /* phase k is multiplied while phase k + 1 is packed */
        for (int64_t t = 0; t < 2; t++) {
            int64_t half = (k + t) & 1, i0 = ATOMS_MAX(0, k + t) * phase_rows;
            *(t ? &next : &now) = (phase){i0, ATOMS_MIN(n, i0 + phase_rows), buffer + half * phase_rows * width,
                                          sums + half * packs * width};
        }
        int64_t todo_pack = k + 1 < phases ? packs : 0, todo_product = k >= 0 ? products : 0;
#pragma omp for schedule(dynamic, 1)
        for (int64_t task = 0; task < todo_pack + todo_product; task++) {
            if (task < todo_pack)
                pack_task(&m, &next, task);
            else
                product_task(&m, &now, products - 1 - (task - todo_pack));
        }
#pragma omp master
        if (todo_pack) {
            if (!add_sums(&m, &next, sum))
                status = ATOMS_ERR_NONFINITE;
            else
                status = atoms_poll(ctx, &pollster);
        }
#pragma omp barrier
        if (status < 0)
            break;
    }
    if (status == ATOMS_OK)
        mirror_upper(ctx, d, second);
done:
    atoms_free(padded);
    atoms_free(buffer);
    atoms_free(sums);
    return status;
}

/* ----------------------------------------------------------------- products */

/* W (d, m) as panels (panels, d, 24), zeros beyond column m */
static void pack_matrix(const atoms_ctx *ctx, int64_t d, int64_t m, const double *w, double *panel)
{
    int64_t panels = atoms_ceil_div(m, ATOMS_PANEL);
#pragma omp parallel for num_threads(ctx->p.num_threads) schedule(static)
    for (int64_t p = 0; p < panels; p++) {
        int64_t cols = ATOMS_MIN(ATOMS_PANEL, m - p * ATOMS_PANEL);
        for (int64_t k = 0; k < d; k++) {
            double *to = panel + (p * d + k) * ATOMS_PANEL;
            for (int64_t j = 0; j < ATOMS_PANEL; j++)
                to[j] = j < cols ? w[k * m + p * ATOMS_PANEL + j] : 0.0;
        }
    }
}

/* WHITEN_ROWS rows of the product, from rows converted into `tile` of row stride lda; false when
 * a value is not finite. offset is padded to whole panels. */
static bool product_rows(const metric_kernels *kernels, int64_t count, int64_t d, int64_t m, const double *tile,
                         int64_t lda, const double *panel, const double *offset, float *out)
{
    double check[ATOMS_PANEL] = {0};
    for (int64_t j = 0; j < m; j += ATOMS_PANEL)
        for (int64_t i = 0; i < count; i += ATOMS_GROUP) {
            double c[ATOMS_GROUP * ATOMS_PANEL];
            kernels->gemm(d, tile + i * lda, lda, panel + j * d, c);
            kernels->store(ATOMS_MIN(ATOMS_GROUP, count - i), ATOMS_MIN(ATOMS_PANEL, m - j), c, offset + j,
                           out + i * m + j, m, check);
        }
    double total = 0.0;
    for (int k = 0; k < ATOMS_PANEL; k++)
        total += check[k];
    return total == 0.0;
}

/* Rows i0 to i0 + count as float64 less the centre, then zeros up to a whole group */
static void product_tile(const atoms_rows *x, int64_t i0, int64_t count, const double *center, double *tile,
                         int64_t lda)
{
    for (int64_t i = 0; i < count; i++) {
        double *row = tile + i * lda;
        atoms_to_f64(atoms_some_rows(*x, i0 + i, 1), row);
        for (int64_t j = 0; center && j < x->d; j++)
            row[j] -= center[j];
    }
    int64_t whole = atoms_ceil_div(count, ATOMS_GROUP) * ATOMS_GROUP;
    memset(tile + count * lda, 0, (size_t)((whole - count) * lda) * sizeof *tile);
}

atoms_status atoms_product(const atoms_ctx *ctx, int64_t n, int64_t d, int64_t m, const void *x, atoms_dtype type,
                           int64_t rs, int64_t cs, const double *center, const double *w, const double *offset,
                           float *out)
{
    if (n < 0 || d < 1 || m < 1)
        return ATOMS_ERR_ARGUMENT;
    const metric_kernels *kernels = ctx->kernels->metric;
    const atoms_rows in = {x, type, n, d, rs, cs};
    int64_t panels = atoms_ceil_div(m, ATOMS_PANEL), tasks = atoms_ceil_div(n, WHITEN_ROWS);
    const int64_t lda = d + 8; /* rows a power of two apart would meet in one set of the cache */
    double *panel = atoms_alloc(panels * d * ATOMS_PANEL, sizeof *panel);
    double *padded = atoms_calloc(panels * ATOMS_PANEL, sizeof *padded);
    if (!panel || !padded) {
        atoms_free(panel);
        atoms_free(padded);
        return ATOMS_ERR_MEMORY;
    }
    if (offset)
        memcpy(padded, offset, (size_t)m * sizeof *offset);
    pack_matrix(ctx, d, m, w, panel);
    atoms_team team = {.ctx = ctx};
#pragma omp parallel num_threads(ctx->p.num_threads)
    {
        double *tile = atoms_alloc(WHITEN_ROWS * lda, sizeof *tile);
        if (!tile)
            atoms_team_report(&team, ATOMS_ERR_MEMORY);
#pragma omp for schedule(dynamic)
        for (int64_t task = 0; task < tasks; task++) {
            if (!tile || atoms_team_stopped(&team))
                continue;
            int64_t i0 = task * WHITEN_ROWS, count = ATOMS_MIN(WHITEN_ROWS, n - i0);
            product_tile(&in, i0, count, center, tile, lda);
            bool finite = product_rows(kernels, count, d, m, tile, lda, panel, padded, out + i0 * m);
            atoms_team_report(&team, finite ? ATOMS_OK : ATOMS_ERR_NONFINITE);
        }
        atoms_free(tile);
    }
    atoms_free(panel);
    atoms_free(padded);
    return team.status;
}
