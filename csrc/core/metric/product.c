/* product.c: rows times a matrix, in float64, and rounded once where float32 is wanted: whitening and its inverse.
 *
 * The matrix is packed into panels once; then each task takes TILE_ROWS rows, which it converts into a buffer of its
 * own, through all panels. */
#include "base/core.h"
#include "kernels.h"

enum { TILE_ROWS = 64 /* of one task */ };

typedef struct {
    const metric_kernels *kernels;
    atoms_rows x;
    int64_t m;            /* columns of the result */
    int64_t lda;          /* from row to row of a task's buffer */
    const double *center; /* (d), or NULL */
    double *panels;       /* W (d, m) as panels (ceil(m / PANEL_COLUMNS), d, PANEL_COLUMNS) */
    double *offset;       /* (m), padded to whole panels */
    float *out;
    double *wide; /* the result in float64, or NULL */
} product;

/* The panels of W (d, m), zeros beyond column m */
static void pack_matrix(const atoms_ctx *ctx, const product *p, const double *w)
{
    const int64_t d = p->x.d, m = p->m, panels = atoms_ceil_div(m, PANEL_COLUMNS);
#pragma omp parallel for num_threads(ctx->p.num_threads) schedule(static)
    for (int64_t q = 0; q < panels; q++) {
        int64_t cols = ATOMS_MIN(PANEL_COLUMNS, m - q * PANEL_COLUMNS);
        for (int64_t k = 0; k < d; k++) {
            double *to = p->panels + (q * d + k) * PANEL_COLUMNS;
            for (int64_t j = 0; j < PANEL_COLUMNS; j++)
                to[j] = j < cols ? w[k * m + q * PANEL_COLUMNS + j] : 0.0;
        }
    }
}

/* rows (count, d) = rows of x from i0 on as float64 less the centre, then zeros up to a whole group */
static void load_rows(const product *p, int64_t i0, int64_t count, double *rows)
{
    for (int64_t i = 0; i < count; i++) {
        double *row = rows + i * p->lda;
        atoms_to_f64(atoms_some_rows(p->x, i0 + i, 1), row);
        for (int64_t j = 0; p->center && j < p->x.d; j++)
            row[j] -= p->center[j];
    }
    int64_t whole = atoms_whole(count, GROUP_ROWS);
    memset(rows + count * p->lda, 0, (size_t)((whole - count) * p->lda) * sizeof *rows);
}

/* As the kernels' store does it, unrounded. */
static void store_wide(int64_t rows, int64_t cols, const double *c, const double *offset, double *out, int64_t ldo,
                       double *check)
{
    for (int64_t r = 0; r < rows; r++, c += PANEL_COLUMNS, out += ldo)
        for (int64_t j = 0; j < cols; j++) {
            out[j] = c[j] + offset[j];
            check[j] += 0.0 * out[j];
        }
}

/* Their rows of the result; false when a value is not finite. */
static bool multiply_rows(const product *p, int64_t i0, int64_t count, const double *rows)
{
    double check[PANEL_COLUMNS] = {0};
    for (int64_t j = 0; j < p->m; j += PANEL_COLUMNS)
        for (int64_t i = 0; i < count; i += GROUP_ROWS) {
            double c[GROUP_ROWS * PANEL_COLUMNS];
            const int64_t some = ATOMS_MIN(GROUP_ROWS, count - i), cols = ATOMS_MIN(PANEL_COLUMNS, p->m - j),
                          to = (i0 + i) * p->m + j;
            p->kernels->gemm(p->x.d, rows + i * p->lda, p->lda, p->panels + j * p->x.d, c);
            if (p->wide)
                store_wide(some, cols, c, p->offset + j, p->wide + to, p->m, check);
            else
                p->kernels->store(some, cols, c, p->offset + j, p->out + to, p->m, check);
        }
    double total = 0.0;
    for (int k = 0; k < PANEL_COLUMNS; k++)
        total += check[k];
    return total == 0.0;
}

/* | panels of W | offset | */
static void lay_out(product *p, atoms_arena *arena)
{
    const int64_t width = atoms_whole(p->m, PANEL_COLUMNS);
    ATOMS_TAKE(arena, p->panels, p->x.d * width);
    ATOMS_TAKE(arena, p->offset, width);
}

static atoms_status all_rows(const atoms_ctx *ctx, const product *p)
{
    const int64_t n = p->x.n, tasks = atoms_ceil_div(n, TILE_ROWS);
    atoms_team team = {.ctx = ctx};
#pragma omp parallel num_threads(ctx->p.num_threads)
    {
        double *rows = atoms_alloc(TILE_ROWS * p->lda, sizeof *rows);
        if (!rows)
            atoms_team_report(&team, ATOMS_ERR_MEMORY);
#pragma omp for schedule(dynamic)
        for (int64_t task = 0; task < tasks; task++) {
            if (!rows || atoms_team_stopped(&team))
                continue;
            int64_t i0 = task * TILE_ROWS, count = ATOMS_MIN(TILE_ROWS, n - i0);
            load_rows(p, i0, count, rows);
            bool finite = multiply_rows(p, i0, count, rows);
            atoms_team_report(&team, finite ? ATOMS_OK : ATOMS_ERR_NONFINITE);
        }
        atoms_free(rows);
    }
    return team.status;
}

static atoms_status multiply(const atoms_ctx *ctx, product p, const double *w, const double *offset)
{
    const int64_t m = p.m;
    if (p.x.n < 0 || p.x.d < 1 || m < 1)
        return ATOMS_ERR_ARGUMENT;
    p.kernels = ctx->kernels->metric;
    p.lda = p.x.d + 8; /* rows a power of two apart would meet in one set of the cache */
    atoms_arena arena = {0};
    lay_out(&p, &arena);
    if (!atoms_arena_open(&arena))
        return ATOMS_ERR_MEMORY;
    lay_out(&p, &arena);
    memset(p.offset, 0, (size_t)atoms_whole(m, PANEL_COLUMNS) * sizeof *p.offset);
    if (offset)
        memcpy(p.offset, offset, (size_t)m * sizeof *offset);
    pack_matrix(ctx, &p, w);
    atoms_status status = all_rows(ctx, &p);
    atoms_arena_close(&arena);
    return status;
}

atoms_status atoms_product(const atoms_ctx *ctx, atoms_rows x, int64_t m, const double *center, const double *w,
                           const double *offset, float *out)
{
    return multiply(ctx, (product){.x = x, .m = m, .center = center, .out = out}, w, offset);
}

atoms_status atoms_product_f64(const atoms_ctx *ctx, atoms_rows x, int64_t m, const double *center, const double *w,
                               const double *offset, double *out)
{
    return multiply(ctx, (product){.x = x, .m = m, .center = center, .wide = out}, w, offset);
}
