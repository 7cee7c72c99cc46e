/* recovery_omp.c: orthogonal matching pursuit: checks, tiles, threads. The work is in
 * recovery_omp_impl.h. */
#include "kernels.h"

#define LEAST_TILE 32                 /* signals */
#define MOST_TILE 512                 /* many rows, so that the product packs the dictionary seldom */
#define TILES 8                       /* at least so many where there are the signals, to keep all threads busy */
#define FREE_BYTES ((int64_t)1 << 24) /* Gram-free: bytes of correlations in one tile */

/* Signals in a tile: depends on the problem only. */
static int64_t tile_size(const atoms_dict *dict, int64_t n)
{
    int64_t size = dict->type == ATOMS_F64 ? 8 : 4, tile = (n / TILES + 31) / 32 * 32;
    tile = ATOMS_MAX(LEAST_TILE, ATOMS_MIN(MOST_TILE, tile));
    if (!dict->gram && !dict->coarse)
        tile = ATOMS_MAX(8, ATOMS_MIN(tile, FREE_BYTES / (dict->np * size)));
    return ATOMS_MAX(1, ATOMS_MIN(tile, n));
}

atoms_status atoms_omp(const atoms_ctx *ctx, const atoms_dict *shared, int64_t n, const void *x, atoms_dtype type,
                       int64_t rs, int64_t cs, const int64_t *warm_indptr, const int32_t *warm_indices,
                       const atoms_omp_params *params, int32_t *indices, void *values, int32_t *counts, int8_t *status,
                       int32_t *steps, double *residual)
{
    atoms_dict view = atoms_dict_view(shared), *dict = &view;
    int64_t most = params->n_nonzero;
    if (n < 0 || most < 1 || most > ATOMS_MIN(dict->n, dict->d) || params->tol != params->tol ||
        (params->ols && params->nonnegative))
        return ATOMS_ERR_ARGUMENT;
    if (n == 0)
        return ATOMS_OK;
    const omp_kernels *kernel = (dict->type == ATOMS_F64 ? ctx->kernels->omp_f64 : ctx->kernels->omp_f32);
    int64_t tile = tile_size(dict, n), tiles = (n + tile - 1) / tile;
    int64_t bytes = kernel->workspace(dict, params, tile);
    int64_t x_size = type == ATOMS_F64 ? 8 : type == ATOMS_F32 ? 4 : 2;
    int64_t v_size = dict->type == ATOMS_F64 ? 8 : 4;
    int threads = (int)ATOMS_MIN(ctx->p.num_threads, tiles);
    atoms_team team = {.ctx = ctx};
#pragma omp parallel num_threads(threads)
    {
        void *work = atoms_alloc(bytes, 1);
        if (!work)
            atoms_team_report(&team, ATOMS_ERR_MEMORY);
#pragma omp for schedule(dynamic, 1)
        for (int64_t k = 0; k < tiles; k++) {
            if (!work || atoms_team_stopped(&team))
                continue;
            int64_t i = k * tile;
            omp_tile part = {
                .n = ATOMS_MIN(tile, n - i),
                .x = (const char *)x + i * rs * x_size,
                .x_type = type,
                .rs = rs,
                .cs = cs,
                .warm_indptr = warm_indptr ? warm_indptr + i : NULL,
                .warm_indices = warm_indices,
                .indices = indices + i * most,
                .values = (char *)values + i * most * v_size,
                .counts = counts + i,
                .status = status + i,
                .steps = steps + i,
                .residual = residual ? residual + i : NULL,
            };
            kernel->run(ctx, dict, params, &part, work);
            atoms_team_report(&team, ATOMS_OK);
        }
        atoms_free(work);
    }
    return team.status;
}
