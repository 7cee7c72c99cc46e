/* omp.c: orthogonal matching pursuit: checks, tiles, threads. The work is in omp.inc. */
#include "kernels.h"

enum {
    TILES = 128,          /* at least so many where there are the signals, to keep all threads busy */
    LEAST_TILE = 32,      /* signals; */
    LEAST_OF_LARGE = 128, /* of a dictionary that no cache holds, for each tile reads it */
    MOST_TILE = 512,      /* its correlations take room */
};
#define LARGE ((int64_t)1 << 21)      /* numbers in such a dictionary */
#define FREE_BYTES ((int64_t)1 << 24) /* Gram-free: bytes of correlations in one tile */

/* Signals in a tile: depends on the problem only. */
static int64_t tile_size(const atoms_dict *dict, int64_t n)
{
    const int64_t least = dict->np * dict->d > LARGE ? LEAST_OF_LARGE : LEAST_TILE;
    int64_t tile = ATOMS_MAX(least, ATOMS_MIN(MOST_TILE, atoms_whole(n / TILES, 32)));
    if (!dict->gram && !dict->coarse)
        tile = ATOMS_MAX(8, ATOMS_MIN(tile, FREE_BYTES / (dict->np * (int64_t)atoms_dtype_size(dict->type))));
    return ATOMS_MAX(1, ATOMS_MIN(tile, n));
}

static const struct omp_kernels *kernels_for(const atoms_ctx *ctx, const atoms_dict *dict)
{
    return dict->type == ATOMS_F64 ? ctx->kernels->omp_f64 : ctx->kernels->omp_f32;
}

/* A workspace for any tile of this size; false when memory is short. */
static bool open_workspace(const struct omp_kernels *kernels, const atoms_dict *dict, const atoms_omp_params *p,
                           int64_t tile, atoms_arena *arena)
{
    *arena = (atoms_arena){0};
    kernels->lay_out(dict, p, tile, arena);
    return atoms_arena_open(arena);
}

static atoms_status run_tile(const struct omp_kernels *kernels, const atoms_ctx *ctx, const atoms_dict *dict,
                             const atoms_omp_params *p, const codes_tile *tile, atoms_arena *arena)
{
    arena->used = 0;
    return kernels->run(ctx, dict, p, tile, arena);
}

atoms_status omp_code(const atoms_ctx *ctx, const atoms_dict *dict, const atoms_omp_params *p, const codes_tile *whole)
{
    const struct omp_kernels *kernels = kernels_for(ctx, dict);
    int64_t n = whole->x.n, tile = tile_size(dict, n);
    atoms_arena arena;
    if (!open_workspace(kernels, dict, p, tile, &arena))
        return ATOMS_ERR_MEMORY;
    atoms_status status = ATOMS_OK;
    for (int64_t i = 0; i < n && status == ATOMS_OK; i += tile) {
        codes_tile part = codes_part(dict, whole, i, ATOMS_MIN(tile, n - i));
        status = run_tile(kernels, ctx, dict, p, &part, &arena);
    }
    atoms_arena_close(&arena);
    return status;
}

atoms_status atoms_omp(const atoms_ctx *ctx, const atoms_dict *shared, atoms_rows x, const atoms_omp_params *params,
                       const atoms_codes *codes)
{
    const atoms_dict view = dict_view(shared), *dict = &view;
    const int64_t n = x.n, most = params->n_nonzero;
    if (n < 0 || x.d != dict->d || most < 1 || most > ATOMS_MIN(dict->n, dict->d) || params->tol != params->tol ||
        (params->ols && params->nonnegative) || codes->width < most)
        return ATOMS_ERR_ARGUMENT;
    if (n == 0)
        return ATOMS_OK;
    const struct omp_kernels *kernels = kernels_for(ctx, dict);
    const int64_t tile = tile_size(dict, n), tiles = atoms_ceil_div(n, tile);
    const int threads = (int)ATOMS_MIN(ctx->p.num_threads, tiles);
    atoms_team team = {.ctx = ctx};
    const codes_tile whole = {.x = x, .out = *codes, .team = &team};
#pragma omp parallel num_threads(threads)
    {
        atoms_arena arena; /* each thread's own, touched first by itself */
        bool ready = open_workspace(kernels, dict, params, tile, &arena);
        if (!ready)
            atoms_team_report(&team, ATOMS_ERR_MEMORY);
#pragma omp for schedule(dynamic, 1)
        for (int64_t k = 0; k < tiles; k++) {
            if (!ready || atoms_team_stopped(&team))
                continue;
            codes_tile part = codes_part(dict, &whole, k * tile, ATOMS_MIN(tile, n - k * tile));
            atoms_team_report(&team, run_tile(kernels, ctx, dict, params, &part, &arena));
        }
        atoms_arena_close(&arena);
    }
    return team.status;
}
