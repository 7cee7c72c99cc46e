/* gram.c: Gram matrices of every kind, and correlations: products of unit rows, in full precision or in 16 bits. */
#include "kernels.h"

#include <math.h>

/* What is made later is published last, whole, so that calls on other threads see all of it or nothing. */
#define PUBLISH(member, value) __atomic_store_n(&(member), value, __ATOMIC_RELEASE)

#define GRAM_TILE 512  /* rows and columns: whole panels */
#define NEIGHBOURS 0.5 /* atoms are near whose product, as unit atoms, is above this */

/* The mirror image of a tile of the lower triangle, by a blocked copy. */
#define MIRROR(T)                                                                                                      \
    for (int64_t r = 0; i != j && r < rows; r += 16)                                                                   \
        for (int64_t c = 0; c < cols; c++)                                                                             \
            for (int64_t k = r; k < ATOMS_MIN(r + 16, rows); k++)                                                      \
                ((T *)gram)[(j + c) * np + i + k] = ((T *)gram)[(i + k) * np + j + c];

/* One tile of the lower triangle by a product, and its mirror image. u: of a coarse matrix, else NULL. */
static void gram_tile(const atoms_ctx *ctx, const atoms_dict *dict, const dict_units *u, void *gram, int64_t i,
                      int64_t j)
{
    int64_t np = dict->np, d = dict->d, rows = ATOMS_MIN(GRAM_TILE, np - i), cols = ATOMS_MIN(GRAM_TILE, np - j);
    if (u) {
        ctx->kernels->short_rows->gram(u, i, j, rows, cols, (int16_t *)gram + i * np + j, np);
        MIRROR(int16_t)
    } else if (dict->type == ATOMS_F64) {
        const double *a = dict->atoms;
        atoms_gemm_f64(ctx, (atoms_mnk){rows, cols, d}, (atoms_f64_in){a + i * d, d, 1},
                       (atoms_f64_in){a + j * d, 1, d}, 0, (atoms_f64_out){(double *)gram + i * np + j, np, 1});
        MIRROR(double)
    } else {
        const float *a = dict->atoms;
        atoms_gemm_f32(ctx, (atoms_mnk){rows, cols, d}, (atoms_f32_in){a + i * d, d, 1},
                       (atoms_f32_in){a + j * d, 1, d}, 0, (atoms_f32_out){(float *)gram + i * np + j, np, 1});
        MIRROR(float)
    }
}

static atoms_status fill_gram(const atoms_ctx *ctx, const atoms_dict *dict, const dict_units *u, void *gram)
{
    int64_t tiles = (dict->np + GRAM_TILE - 1) / GRAM_TILE, pairs = tiles * (tiles + 1) / 2;
    atoms_team team = {.ctx = ctx};
#pragma omp parallel for num_threads(ctx->p.num_threads) schedule(dynamic, 1)
    for (int64_t p = 0; p < pairs; p++) {
        if (atoms_team_stopped(&team))
            continue;
        int64_t i = (int64_t)((sqrt(8.0 * (double)p + 1) - 1) / 2);
        while (i * (i + 1) / 2 > p)
            i--;
        while ((i + 1) * (i + 2) / 2 <= p)
            i++;
        gram_tile(ctx, dict, u, gram, i * GRAM_TILE, (p - i * (i + 1) / 2) * GRAM_TILE);
        atoms_team_report(&team, ATOMS_OK);
    }
    return team.status;
}

atoms_status atoms_dict_gram(const atoms_ctx *ctx, atoms_dict *dict)
{
    if (dict->gram)
        return ATOMS_OK;
    if (dict->np > INT64_MAX / dict->np)
        return ATOMS_ERR_MEMORY;
    void *gram = atoms_alloc(dict->np * dict->np, atoms_dtype_size(dict->type));
    atoms_status status = gram ? fill_gram(ctx, dict, NULL, gram) : ATOMS_ERR_MEMORY;
    if (status == ATOMS_OK)
        PUBLISH(dict->gram, gram);
    else
        atoms_free(gram);
    return status;
}

/* Whether one atom in 32 of the first tile has a near neighbour in it: then coarse products leave too many
 * atoms open at every step. */
static bool crowded(const atoms_dict *dict, const int16_t *gram)
{
    int64_t n = ATOMS_MIN(GRAM_TILE, dict->n), near = 0;
    for (int64_t i = 0; i < n; i++) {
        bool found = false;
        for (int64_t j = 0; j < n; j++)
            found |= j != i && abs(gram[i * dict->np + j]) > (int)(NEIGHBOURS * SHORT_ONE);
        near += found;
    }
    return 32 * near > n;
}

static bool takes_units(const atoms_ctx *ctx, const atoms_dict *dict)
{
    return ctx->kernels->short_rows && dict->type == ATOMS_F32;
}

/* Keeps the panels alone: the rows have served. */
static void publish_units(atoms_dict *dict, dict_units *u)
{
    atoms_free(u->rows);
    dict->units.ld = u->ld;
    dict->units.error = u->error;
    dict->units.units = u->units;
    PUBLISH(dict->units.panels, u->panels);
}

atoms_status dict_units_new(const atoms_ctx *ctx, int64_t n, int64_t d, const float *a, dict_units *u)
{
    const struct short_kernels *kernels = ctx->kernels->short_rows;
    const int64_t ld = atoms_whole(d, 2), panels = n / PANEL_ATOMS;
    *u = (dict_units){.ld = ld};
    u->rows = atoms_alloc(n * ld, sizeof *u->rows);
    u->units = atoms_alloc(panels * CHUNKS(ld), sizeof *u->units);
    u->panels = atoms_alloc(n * ld / 2, sizeof *u->panels);
    double *errors = atoms_calloc(panels, sizeof *errors);
    bool ok = u->rows && u->units && u->panels && errors;
#pragma omp parallel for num_threads(ctx->p.num_threads) schedule(static)
    for (int64_t p = 0; p < (ok ? panels : 0); p++) {
        int16_t *rows = u->rows + p * PANEL_ATOMS * ld;
        errors[p] = kernels->round_rows(PANEL_ATOMS, d, a + p * PANEL_ATOMS * d, ld, rows, u->units + p * CHUNKS(ld));
        int32_t *panel = u->panels + p * PANEL_ATOMS * (ld / 2);
        for (int64_t c = 0; c < ld / 2; c += 16) /* blocked: both sides stay in cache */
            for (int64_t i = 0; i < PANEL_ATOMS; i++)
                for (int64_t k = c; k < ATOMS_MIN(c + 16, ld / 2); k++)
                    memcpy(panel + k * PANEL_ATOMS + i, rows + i * ld + 2 * k, 4);
    }
    for (int64_t p = 0; p < (ok ? panels : 0); p++)
        u->error = ATOMS_MAX(u->error, errors[p]);
    atoms_free(errors);
    return ok ? ATOMS_OK : ATOMS_ERR_MEMORY;
}

atoms_status atoms_dict_units(const atoms_ctx *ctx, atoms_dict *dict)
{
    if (!takes_units(ctx, dict) || dict->units.panels)
        return ATOMS_OK;
    dict_units units;
    atoms_status status = dict_units_new(ctx, dict->np, dict->d, dict->atoms, &units);
    if (status == ATOMS_OK)
        publish_units(dict, &units);
    else
        dict_units_free(&units);
    return status;
}

/* gram (np, np) from the units; *keep: whether it is of use. */
static atoms_status fill_coarse(const atoms_ctx *ctx, const atoms_dict *dict, const dict_units *units, int16_t *gram,
                                bool *keep)
{
    gram_tile(ctx, dict, units, gram, 0, 0);
    *keep = !crowded(dict, gram);
    return *keep ? fill_gram(ctx, dict, units, gram) : ATOMS_OK;
}

atoms_status atoms_dict_coarse(const atoms_ctx *ctx, atoms_dict *dict)
{
    if (!takes_units(ctx, dict) || dict->gram || dict->coarse || dict->units.panels)
        return ATOMS_OK;
    if (dict->np > INT64_MAX / dict->np)
        return ATOMS_ERR_MEMORY;
    int16_t *gram = atoms_alloc(dict->np * dict->np, sizeof *gram);
    dict_units units = {0};
    bool keep = false;
    atoms_status status = gram ? dict_units_new(ctx, dict->np, dict->d, dict->atoms, &units) : ATOMS_ERR_MEMORY;
    if (status == ATOMS_OK)
        status = fill_coarse(ctx, dict, &units, gram, &keep);
    if (status < 0 || !keep)
        atoms_free(gram);
    if (status < 0) {
        dict_units_free(&units);
        return status;
    }
    double e = units.error;
    publish_units(dict, &units);
    if (keep) {
        dict->coarse_error = 2 * e + e * e + SHORT_ERROR + PRODUCT_ERROR(units.ld);
        PUBLISH(dict->coarse, gram);
    }
    return ATOMS_OK;
}

atoms_status atoms_dict_fine(const atoms_ctx *ctx, atoms_dict *dict)
{
    if (!takes_units(ctx, dict) || !dict->gram || dict->fine)
        return ATOMS_OK;
    int16_t *fine = atoms_alloc(dict->np * dict->np, sizeof *fine);
    if (!fine)
        return ATOMS_ERR_MEMORY;
#pragma omp parallel for num_threads(ctx->p.num_threads) schedule(static)
    for (int64_t i = 0; i < dict->np; i++)
        ctx->kernels->short_rows->round_gram(dict->np, (const float *)dict->gram + i * dict->np, fine + i * dict->np);
    PUBLISH(dict->fine, fine);
    return ATOMS_OK;
}

/* Signals in 16 bits times the units, and how far off that is. */
static void correlate_short(const atoms_ctx *ctx, const atoms_dict *dict, int64_t n, const float *x, short_signals room,
                            float *out)
{
    const struct short_kernels *kernels = ctx->kernels->short_rows;
    const dict_units *u = &dict->units;
    for (int64_t i = 0; i < n; i++) {
        const float *row = x + i * dict->d;
        double lost =
                   kernels->round_rows(1, dict->d, row, u->ld, room.rows + i * u->ld, room.units + i * CHUNKS(u->ld)),
               norm = 0;
        for (int64_t j = 0; j < dict->d; j++)
            norm += (double)row[j] * row[j];
        room.error[i] = lost + lost * u->error + sqrt(norm) * (u->error + PRODUCT_ERROR(u->ld));
    }
    kernels->products(n, room.rows, room.units, u, dict->np / PANEL_ATOMS, out, dict->np);
}

void dict_correlate(const atoms_ctx *ctx, const atoms_dict *dict, int64_t n, const void *x, short_signals room,
                    void *out)
{
    const atoms_mnk size = {n, dict->np, dict->d};
    if (room.rows)
        correlate_short(ctx, dict, n, x, room, out);
    else if (dict->type == ATOMS_F64)
        atoms_gemm_f64(ctx, size, (atoms_f64_in){x, dict->d, 1}, (atoms_f64_in){dict->atoms, 1, dict->d}, 0,
                       (atoms_f64_out){out, dict->np, 1});
    else
        atoms_gemm_f32(ctx, size, (atoms_f32_in){x, dict->d, 1}, (atoms_f32_in){dict->atoms, 1, dict->d}, 0,
                       (atoms_f32_out){out, dict->np, 1});
}
