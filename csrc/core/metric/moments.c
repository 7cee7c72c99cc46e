/* moments.c: the second moment of rows, X'X about a shift, in float64.
 *
 * Rows are taken in phases of a few hundred. A phase is packed: converted into panels (kernels.h), slice by slice of
 * DEPTH rows. Then tiles of the upper triangle of X'X are updated from them. While one phase is multiplied the next is
 * packed into a second buffer, so that threads meet once a phase only and reading memory hides behind arithmetic:
 *
 *     pack 0 | pack 1, multiply 0 | pack 2, multiply 1 | ... | multiply last
 *
 * Each element of the result is summed by one thread at a time, a slice in a register and then the slices in order: the
 * result does not depend on who did it. */
#include "base/core.h"
#include "kernels.h"

#include <math.h>

enum {
    DEPTH = 256,                /* rows summed in registers: a group of 8 columns stays in 16 KB of L1 */
    PACK_ROWS = 64,             /* rows packed by one task: whole rows, so that memory is read in order */
    TILE_PANELS = 12,           /* a tile's columns at most, in panels: DEPTH rows of them stay in L2 */
    LEAST_PANELS = 3,           /* and at least, where many threads are to have some tiles each, */
    THREAD_TILES = 4,           /* about so many */
    PHASE_DOUBLES = 512 * 1024, /* what a phase's panels may hold */
    BLOCK_ROWS = 32             /* rows converted at a time where they can't go straight into a panel */
};

typedef struct {
    const metric_kernels *kernels;
    atoms_rows x;
    int64_t panels;               /* of the d columns */
    int64_t depths;               /* slices of a phase */
    int64_t row_panels;           /* a tile's rows, in panels, */
    int64_t col_panels;           /* and its columns */
    int64_t row_tiles, col_tiles; /* tiles of the whole square, those below the diagonal empty */
    double *shift;                /* padded to whole panels, as are all sums */
    double *buffer, *sums;        /* of two phases */
    double *second;
} moments;

/* Rows i0 to i1 and the buffers they are packed into. */
typedef struct {
    int64_t i0, i1;
    double *panels; /* (depths, panels, DEPTH, PANEL_COLUMNS) */
    double *sums;   /* the columns' sums of each packing task: (packs, panels, PANEL_COLUMNS) */
} phase;

/* ------------------------------------------------------------------ packing */

/* Rows i0 to i1 into panels of one slice, their columns' sums (overwritten) into `sum`. Whole panels of plain float32
 * and float64 rows go straight there, all else by way of a block. */
static void pack(const moments *m, int64_t i0, int64_t i1, double *panel, double *sum)
{
    const metric_kernels *kernels = m->kernels;
    const atoms_rows x = m->x;
    const int64_t stride = DEPTH * PANEL_COLUMNS;
    memset(sum, 0, (size_t)(m->panels * PANEL_COLUMNS) * sizeof *sum);
    int64_t direct = x.cs == 1 && (x.type == ATOMS_F32 || x.type == ATOMS_F64) ? x.d / PANEL_COLUMNS : 0;
    if (x.type == ATOMS_F32)
        kernels->pack_f32(i1 - i0, direct, atoms_element(x, i0, 0), x.rs, m->shift, panel, stride, sum);
    else if (direct)
        kernels->pack_f64(i1 - i0, direct, atoms_element(x, i0, 0), x.rs, m->shift, panel, stride, sum);
    for (int64_t p = direct; p < m->panels; p++) {
        double block[BLOCK_ROWS * PANEL_COLUMNS], wide[BLOCK_ROWS * PANEL_COLUMNS];
        int64_t at = p * PANEL_COLUMNS, cols = ATOMS_MIN(PANEL_COLUMNS, x.d - at);
        for (int64_t i = i0; i < i1; i += BLOCK_ROWS) {
            int64_t count = ATOMS_MIN(BLOCK_ROWS, i1 - i);
            atoms_to_f64(atoms_some_columns(atoms_some_rows(x, i, count), at, cols), block);
            memset(wide, 0, sizeof wide); /* columns beyond d count as zeros */
            for (int64_t r = 0; r < count; r++)
                memcpy(wide + r * PANEL_COLUMNS, block + r * cols, (size_t)cols * sizeof *block);
            kernels->pack_f64(count, 1, wide, PANEL_COLUMNS, m->shift + at,
                              panel + p * stride + (i - i0) * PANEL_COLUMNS, stride, sum + at);
        }
    }
}

static void pack_task(const moments *m, const phase *ph, int64_t task)
{
    int64_t i0 = ph->i0 + task * PACK_ROWS, i1 = ATOMS_MIN(i0 + PACK_ROWS, ph->i1);
    if (i0 >= i1)
        return;
    int64_t slice = task * PACK_ROWS / DEPTH, row = task * PACK_ROWS % DEPTH;
    double *panels = ph->panels + (slice * m->panels * DEPTH + row) * PANEL_COLUMNS;
    pack(m, i0, i1, panels, ph->sums + task * m->panels * PANEL_COLUMNS);
}

/* Adds a packed phase's sums to the total, task by task; false when one is not finite. */
static bool add_sums(const moments *m, const phase *ph, double *sum)
{
    for (int64_t task = 0; ph->i0 + task * PACK_ROWS < ph->i1; task++)
        for (int64_t j = 0; j < m->x.d; j++) {
            double value = ph->sums[task * m->panels * PANEL_COLUMNS + j];
            if (!isfinite(value))
                return false;
            sum[j] += value;
        }
    return true;
}

/* ----------------------------------------------------------------- products */

/* second[rows of group g of panel pi, columns of panel pj] += a slice's product. What reaches beyond d goes by way of a
 * buffer. On the diagonal, columns left of the group are left out. */
static void update_group(const moments *m, int64_t depth, const double *slice, int64_t pi, int g, int64_t pj)
{
    const int64_t d = m->x.d, size = DEPTH * PANEL_COLUMNS;
    int64_t i = pi * PANEL_COLUMNS + g * GROUP_ROWS, j = pj * PANEL_COLUMNS;
    int skip = pi == pj ? g * GROUP_ROWS : 0, cols = PANEL_COLUMNS - skip;
    const double *a = slice + pi * size + g * GROUP_ROWS, *b = slice + pj * size + skip;
    j += skip;
    if (i + GROUP_ROWS <= d && j + cols <= d) {
        m->kernels->syrk[cols / GROUP_ROWS - 1](depth, a, b, m->second + i * d + j, d);
        return;
    }
    double c[GROUP_ROWS * PANEL_COLUMNS] = {0};
    m->kernels->syrk[cols / GROUP_ROWS - 1](depth, a, b, c, PANEL_COLUMNS);
    for (int64_t r = 0; r < ATOMS_MIN(GROUP_ROWS, d - i); r++)
        for (int64_t k = 0; k < ATOMS_MIN(cols, d - j); k++)
            m->second[(i + r) * d + j + k] += c[r * PANEL_COLUMNS + k];
}

/* One tile of the result += the products of all slices of a phase. */
static void product_task(const moments *m, const phase *ph, int64_t task)
{
    int64_t pj0 = task / m->row_tiles * m->col_panels, pi0 = task % m->row_tiles * m->row_panels;
    int64_t pj1 = ATOMS_MIN(pj0 + m->col_panels, m->panels);
    int64_t pi1 = ATOMS_MIN(pi0 + m->row_panels, pj1);
    for (int64_t s = 0; ph->i0 + s * DEPTH < ph->i1; s++) {
        int64_t depth = ATOMS_MIN(DEPTH, ph->i1 - ph->i0 - s * DEPTH);
        const double *slice = ph->panels + s * m->panels * DEPTH * PANEL_COLUMNS;
        for (int64_t pi = pi0; pi < pi1; pi++)
            for (int g = 0; g < PANEL_COLUMNS / GROUP_ROWS; g++)
                for (int64_t pj = ATOMS_MAX(pj0, pi); pj < pj1; pj++)
                    update_group(m, depth, slice, pi, g, pj);
    }
}

/* The lower triangle of a (d, d) = the upper one, tile by tile. */
static void mirror_upper(const atoms_ctx *ctx, int64_t d, double *a)
{
    enum { SIDE = 32 };
    int64_t tiles = atoms_ceil_div(d, SIDE);
#pragma omp parallel for num_threads(ctx->p.num_threads) schedule(dynamic)
    for (int64_t ti = 0; ti < tiles; ti++)
        for (int64_t tj = 0; tj <= ti; tj++)
            for (int64_t i = ti * SIDE; i < ATOMS_MIN(d, ti * SIDE + SIDE); i++)
                for (int64_t j = tj * SIDE; j < ATOMS_MIN(i, tj * SIDE + SIDE); j++)
                    a[i * d + j] = a[j * d + i];
}

/* ------------------------------------------------------------------ moments */

static void choose_sizes(moments *m, int threads)
{
    m->panels = atoms_ceil_div(m->x.d, PANEL_COLUMNS);
    m->depths = PHASE_DOUBLES / (DEPTH * m->panels * PANEL_COLUMNS);
    m->depths = ATOMS_MAX(2, ATOMS_MIN(8, m->depths)); /* the result is fetched once for them all */
    /* few rows a tile where there are few tiles to share out, more where fetching costs more */
    m->row_panels = ATOMS_MAX(1, ATOMS_MIN(4, m->panels / 16));
    m->row_tiles = atoms_ceil_div(m->panels, m->row_panels);
    m->col_panels = TILE_PANELS;
    while (m->col_panels > LEAST_PANELS && /* half of the tiles are below the diagonal */
           m->row_tiles * atoms_ceil_div(m->panels, m->col_panels) < 2 * THREAD_TILES * threads)
        m->col_panels /= 2;
    m->col_tiles = atoms_ceil_div(m->panels, m->col_panels);
}

/* | shift | panels of two phases, in turn | their sums |      the panels are 2 * 4 MB, or 2 * 512 rows */
static void lay_out(moments *m, atoms_arena *arena)
{
    const int64_t width = m->panels * PANEL_COLUMNS, phase_rows = m->depths * DEPTH;
    ATOMS_TAKE(arena, m->shift, width);
    ATOMS_TAKE(arena, m->buffer, 2 * phase_rows * width);
    ATOMS_TAKE(arena, m->sums, 2 * (phase_rows / PACK_ROWS) * width);
}

/* Phase k and the half of the buffers that it has */
static phase phase_of(const moments *m, int64_t k)
{
    const int64_t width = m->panels * PANEL_COLUMNS, rows = m->depths * DEPTH, half = k & 1;
    const int64_t i0 = ATOMS_MAX(0, k) * rows;
    return (phase){i0, ATOMS_MIN(m->x.n, i0 + rows), m->buffer + half * rows * width,
                   m->sums + half * (rows / PACK_ROWS) * width};
}

/* The loop over phases, all threads in it together. */
static atoms_status all_phases(const atoms_ctx *ctx, const moments *m, double *sum)
{
    const int64_t phase_rows = m->depths * DEPTH, phases = atoms_ceil_div(m->x.n, phase_rows);
    const int64_t products = m->row_tiles * m->col_tiles, packs = phase_rows / PACK_ROWS;
    atoms_status status = ATOMS_OK;
    atoms_pollster pollster = {0};
#pragma omp parallel num_threads(ctx->p.num_threads)
    for (int64_t k = -1; k < phases; k++) { /* phase k is multiplied while phase k + 1 is packed */
        const phase now = phase_of(m, k), next = phase_of(m, k + 1);
        int64_t todo_pack = k + 1 < phases ? packs : 0, todo_product = k >= 0 ? products : 0;
#pragma omp for schedule(dynamic, 1)
        for (int64_t task = 0; task < todo_pack + todo_product; task++) {
            if (task < todo_pack)
                pack_task(m, &next, task);
            else /* the last columns first: their tiles are the fullest */
                product_task(m, &now, products - 1 - (task - todo_pack));
        }
#pragma omp master
        if (todo_pack) {
            if (!add_sums(m, &next, sum))
                status = ATOMS_ERR_NONFINITE;
            else
                status = atoms_poll(ctx, &pollster);
        }
#pragma omp barrier
        if (status < 0)
            break;
    }
    return status;
}

atoms_status atoms_moments(const atoms_ctx *ctx, atoms_rows x, const double *shift, double *sum, double *second)
{
    if (x.n < 0 || x.d < 1)
        return ATOMS_ERR_ARGUMENT;
    moments m = {.kernels = ctx->kernels->metric, .x = x, .second = second};
    atoms_arena arena = {0};
    choose_sizes(&m, ctx->p.num_threads);
    lay_out(&m, &arena);
    if (!atoms_arena_open(&arena))
        return ATOMS_ERR_MEMORY;
    lay_out(&m, &arena);
    memset(m.shift, 0, (size_t)(m.panels * PANEL_COLUMNS) * sizeof *m.shift);
    if (shift)
        memcpy(m.shift, shift, (size_t)x.d * sizeof *shift);
    memset(sum, 0, (size_t)x.d * sizeof *sum);
    memset(second, 0, (size_t)x.d * (size_t)x.d * sizeof *second);
    atoms_status status = all_phases(ctx, &m, sum);
    if (status == ATOMS_OK)
        mirror_upper(ctx, x.d, second);
    atoms_arena_close(&arena);
    return status;
}
