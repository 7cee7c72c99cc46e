/* recovery_dict.c: dictionaries made ready, their Gram matrix, signals brought to unit norm, and
 * the small dense solvers that several recovery methods lean on. */
#include "recovery.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>

/* ------------------------------------------------------------ dictionary */

signal_kind atoms_load_signal(int64_t d, const void *x, atoms_dtype type, int64_t cs, double *out, double *scale)
{
    atoms_to_f64((atoms_rows){x, type, 1, d, 0, cs}, out);
    *scale = atoms_norm(d, out);
    if (isfinite(*scale) && *scale > 0) {
        atoms_divide(d, out, *scale);
        return SIGNAL_OK;
    }
    memset(out, 0, (size_t)d * sizeof *out);
    return *scale == 0 ? SIGNAL_ZERO : SIGNAL_NONFINITE;
}

atoms_status atoms_dict_new(const atoms_ctx *ctx, int64_t n, int64_t d, const void *atoms, atoms_dtype type, int64_t rs,
                            int64_t cs, atoms_dtype precision, atoms_dict **dict)
{
    (void)ctx;
    if (n < 1 || d < 1 || n > INT32_MAX - PANEL || (precision != ATOMS_F32 && precision != ATOMS_F64))
        return ATOMS_ERR_ARGUMENT;
    int64_t np = (n + PANEL - 1) / PANEL * PANEL;
    atoms_dict *h = calloc(1, sizeof *h);
    double *row = atoms_alloc(d, sizeof *row);
    if (!h || !row || d > INT64_MAX / np)
        goto memory;
    *h = (atoms_dict){.n = n, .np = np, .d = d, .type = precision};
    h->norm = atoms_calloc(n, sizeof *h->norm);
    h->atoms = atoms_calloc(np * d, atoms_dtype_size(precision));
    if (!h->norm || !h->atoms)
        goto memory;
    for (int64_t i = 0; i < n; i++) {
        const char *from = (const char *)atoms + i * rs * (int64_t)atoms_dtype_size(type);
        if (atoms_load_signal(d, from, type, cs, row, &h->norm[i]) == SIGNAL_NONFINITE) {
            atoms_free(row);
            atoms_dict_free(h);
            return ATOMS_ERR_NONFINITE;
        }
        for (int64_t j = 0; j < d; j++)
            if (precision == ATOMS_F64)
                ((double *)h->atoms)[i * d + j] = row[j];
            else
                ((float *)h->atoms)[i * d + j] = (float)row[j];
    }
    atoms_free(row);
    *dict = h;
    return ATOMS_OK;
memory:
    atoms_free(row);
    atoms_dict_free(h);
    return ATOMS_ERR_MEMORY;
}

void atoms_dict_free(atoms_dict *dict)
{
    if (!dict)
        return;
    atoms_free(dict->atoms);
    atoms_free(dict->norm);
    atoms_free(dict->gram);
    atoms_free(dict->coarse);
    atoms_free(dict->fine);
    atoms_free(dict->units.units);
    atoms_free(dict->units.panels);
    free(dict);
}

int64_t atoms_dict_n_atoms(const atoms_dict *dict)
{
    return dict->n;
}

int64_t atoms_dict_d_in(const atoms_dict *dict)
{
    return dict->d;
}

atoms_dtype atoms_dict_precision(const atoms_dict *dict)
{
    return dict->type;
}

int atoms_dict_has_gram(const atoms_dict *dict)
{
    return dict->gram != NULL;
}

/* ------------------------------------------------------------------ Gram */

/* What is made later is published last, whole, so that calls on other threads see all of it or nothing. */
#define PUBLISH(member, value) __atomic_store_n(&(member), value, __ATOMIC_RELEASE)

atoms_dict atoms_dict_view(const atoms_dict *dict)
{
    int16_t *coarse = __atomic_load_n(&dict->coarse, __ATOMIC_ACQUIRE);
    int32_t *panels = __atomic_load_n(&dict->units.panels, __ATOMIC_ACQUIRE);
    int16_t *fine = __atomic_load_n(&dict->fine, __ATOMIC_ACQUIRE);
    void *gram = __atomic_load_n(&dict->gram, __ATOMIC_ACQUIRE);
    atoms_dict view = {.n = dict->n,
                       .np = dict->np,
                       .d = dict->d,
                       .type = dict->type,
                       .atoms = dict->atoms,
                       .norm = dict->norm,
                       .gram = gram,
                       .coarse = coarse,
                       .fine = fine};
    if (panels)
        view.units = (atoms_units){dict->units.ld, dict->units.error, NULL, dict->units.units, panels};
    if (coarse)
        view.coarse_error = dict->coarse_error;
    return view;
}

#define GRAM_TILE 512
#define NEIGHBOURS 0.5 /* as a product of unit atoms */

/* The mirror image of a tile of the lower triangle, by a blocked copy. */
#define MIRROR(T)                                                                                                      \
    for (int64_t r = 0; i != j && r < rows; r += 16)                                                                   \
        for (int64_t c = 0; c < cols; c++)                                                                             \
            for (int64_t k = r; k < ATOMS_MIN(r + 16, rows); k++)                                                      \
                ((T *)gram)[(j + c) * np + i + k] = ((T *)gram)[(i + k) * np + j + c];

/* One tile of the lower triangle by a product, and its mirror image. u: of a coarse matrix, else NULL. */
static void gram_tile(const atoms_ctx *ctx, const atoms_dict *dict, const atoms_units *u, void *gram, int64_t i,
                      int64_t j)
{
    int64_t np = dict->np, d = dict->d, rows = ATOMS_MIN(GRAM_TILE, np - i), cols = ATOMS_MIN(GRAM_TILE, np - j);
    if (u) {
#if defined(__x86_64__)
        atoms_unit_gram(u, i, j, rows, cols, (int16_t *)gram + i * np + j, np);
#endif
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

static atoms_status fill_gram(const atoms_ctx *ctx, const atoms_dict *dict, const atoms_units *u, void *gram)
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

#if defined(__x86_64__)
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
    return ctx->isa >= ATOMS_ISA_AVX512_VNNI && dict->type == ATOMS_F32;
}

/* Keeps the panels alone: the rows have served. */
static void publish_units(atoms_dict *dict, atoms_units *u)
{
    atoms_free(u->rows);
    dict->units.ld = u->ld;
    dict->units.error = u->error;
    dict->units.units = u->units;
    PUBLISH(dict->units.panels, u->panels);
}

static void free_units(atoms_units *u)
{
    atoms_free(u->rows);
    atoms_free(u->units);
    atoms_free(u->panels);
}

atoms_status atoms_dict_units(const atoms_ctx *ctx, atoms_dict *dict)
{
    if (!takes_units(ctx, dict) || dict->units.panels)
        return ATOMS_OK;
    atoms_units units;
    atoms_status status = atoms_units_new(ctx, dict->np, dict->d, dict->atoms, &units);
    if (status == ATOMS_OK)
        publish_units(dict, &units);
    else
        free_units(&units);
    return status;
}

atoms_status atoms_dict_coarse(const atoms_ctx *ctx, atoms_dict *dict)
{
    if (!takes_units(ctx, dict) || dict->gram || dict->coarse || dict->units.panels)
        return ATOMS_OK;
    if (dict->np > INT64_MAX / dict->np)
        return ATOMS_ERR_MEMORY;
    int16_t *gram = atoms_alloc(dict->np * dict->np, sizeof *gram);
    atoms_units units = {0};
    atoms_status status = gram ? atoms_units_new(ctx, dict->np, dict->d, dict->atoms, &units) : ATOMS_ERR_MEMORY;
    bool keep = status == ATOMS_OK;
    if (keep) {
        gram_tile(ctx, dict, &units, gram, 0, 0);
        keep = !crowded(dict, gram);
    }
    if (keep) {
        status = fill_gram(ctx, dict, &units, gram);
        keep = status == ATOMS_OK;
    }
    double e = units.error;
    if (status == ATOMS_OK)
        publish_units(dict, &units);
    else
        free_units(&units);
    if (keep) {
        dict->coarse_error = 2 * e + e * e + SHORT_ERROR + PRODUCT_ERROR(units.ld);
        PUBLISH(dict->coarse, gram);
    } else {
        atoms_free(gram);
    }
    return status;
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
        atoms_round_gram(dict->np, (const float *)dict->gram + i * dict->np, fine + i * dict->np);
    PUBLISH(dict->fine, fine);
    return ATOMS_OK;
}
#else
atoms_status atoms_dict_fine(const atoms_ctx *ctx, atoms_dict *dict)
{
    (void)ctx, (void)dict;
    return ATOMS_OK;
}

atoms_status atoms_dict_units(const atoms_ctx *ctx, atoms_dict *dict)
{
    (void)ctx, (void)dict;
    return ATOMS_OK;
}

atoms_status atoms_dict_coarse(const atoms_ctx *ctx, atoms_dict *dict)
{
    (void)ctx, (void)dict;
    return ATOMS_OK;
}
#endif

void atoms_correlate(const atoms_ctx *ctx, const atoms_dict *dict, int64_t n, const void *x, int16_t *short_x,
                     float *x_units, void *out, double *error)
{
    int64_t np = dict->np, d = dict->d;
#if defined(__x86_64__)
    const atoms_units *u = &dict->units;
    if (short_x) {
        for (int64_t i = 0; i < n; i++) {
            const float *row = (const float *)x + i * d;
            double lost = atoms_round_rows(1, d, row, u->ld, short_x + i * u->ld, x_units + i * CHUNKS(u->ld)),
                   norm = 0;
            for (int64_t j = 0; j < d; j++)
                norm += (double)row[j] * row[j];
            error[i] = lost + lost * u->error + sqrt(norm) * (u->error + PRODUCT_ERROR(u->ld));
        }
        atoms_unit_products(n, short_x, x_units, u, np / PANEL, out, np);
        return;
    }
#endif
    (void)x_units, (void)error;
    if (dict->type == ATOMS_F64)
        atoms_gemm_f64(ctx, (atoms_mnk){n, np, d}, (atoms_f64_in){x, d, 1}, (atoms_f64_in){dict->atoms, 1, d}, 0,
                       (atoms_f64_out){out, np, 1});
    else
        atoms_gemm_f32(ctx, (atoms_mnk){n, np, d}, (atoms_f32_in){x, d, 1}, (atoms_f32_in){dict->atoms, 1, d}, 0,
                       (atoms_f32_out){out, np, 1});
}

int atoms_dict_has_units(const atoms_dict *dict)
{
    return dict->units.panels != NULL;
}

int atoms_dict_has_coarse(const atoms_dict *dict)
{
    return dict->coarse != NULL;
}
