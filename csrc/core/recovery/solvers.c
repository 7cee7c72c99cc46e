/* recovery_codes.c: checks, tiles and threads of the solvers whose codes have no fixed length:
 * lasso, basis pursuit and the other pursuits. */
#include "kernels.h"

#include <math.h>

#define TILE 32 /* signals: few, for their times differ */

typedef atoms_status (*tile_fn)(const atoms_ctx *ctx, const atoms_dict *dict, const void *params, code_tile *tile);

static atoms_status run_lasso(const atoms_ctx *ctx, const atoms_dict *dict, const void *params, code_tile *tile)
{
    return (dict->type == ATOMS_F64 ? ctx->kernels->codes_f64 : ctx->kernels->codes_f32)
        ->lasso(ctx, dict, params, tile);
}

static atoms_status run_denoise(const atoms_ctx *ctx, const atoms_dict *dict, const void *params, code_tile *tile)
{
    return (dict->type == ATOMS_F64 ? ctx->kernels->codes_f64 : ctx->kernels->codes_f32)
        ->denoise(ctx, dict, params, tile);
}

static atoms_status run_equality(const atoms_ctx *ctx, const atoms_dict *dict, const void *params, code_tile *tile)
{
    return atoms_equality_tile(ctx, dict, params, tile);
}

static atoms_status run_pursuit(const atoms_ctx *ctx, const atoms_dict *dict, const void *params, code_tile *tile)
{
    return (dict->type == ATOMS_F64 ? ctx->kernels->codes_f64 : ctx->kernels->codes_f32)
        ->pursuit(ctx, dict, params, tile);
}

static atoms_status run_threshold(const atoms_ctx *ctx, const atoms_dict *dict, const void *params, code_tile *tile)
{
    return (dict->type == ATOMS_F64 ? ctx->kernels->codes_f64 : ctx->kernels->codes_f32)
        ->threshold(ctx, dict, params, tile);
}

/* Runs `fn` over tiles of `whole`, in which n is the number of all signals. */
static atoms_status run(const atoms_ctx *ctx, const atoms_dict *shared, const void *params, const code_tile *whole,
                        tile_fn fn)
{
    atoms_dict view = atoms_dict_view(shared), *dict = &view;
    if (ctx->isa < ATOMS_ISA_AVX512_VNNI)
        view.units = (atoms_units){0};
    int64_t n = whole->n, tiles = (n + TILE - 1) / TILE, width = whole->width;
    int64_t x_size = whole->x_type == ATOMS_F64 ? 8 : whole->x_type == ATOMS_F32 ? 4 : 2;
    int64_t v_size = dict->type == ATOMS_F64 ? 8 : 4;
    atoms_team team = {.ctx = ctx};
#pragma omp parallel for num_threads(ctx->p.num_threads) schedule(dynamic, 1)
    for (int64_t k = 0; k < tiles; k++) {
        if (atoms_team_stopped(&team))
            continue;
        int64_t i = k * TILE;
        code_tile part = *whole;
        part.team = &team;
        part.n = ATOMS_MIN(TILE, n - i);
        part.x = (const char *)whole->x + i * whole->rs * x_size;
        if (whole->indices) {
            part.indices += i * width;
            part.values = (char *)whole->values + i * width * v_size;
            part.counts += i;
            part.status += i;
            part.steps += i;
        }
        part.tau = whole->tau ? whole->tau + i : NULL;
        part.residual = whole->residual ? whole->residual + i : NULL;
        part.gap = whole->gap ? whole->gap + i : NULL;
        atoms_team_report(&team, fn(ctx, dict, params, &part));
    }
    return team.status;
}

/* The arguments that all the functions below call alike. */
#define WHOLE                                                                                                          \
    .x = x, .x_type = type, .rs = rs, .cs = cs, .indices = indices, .values = values, .counts = counts,                \
    .status = status, .steps = steps, .residual = residual

atoms_status atoms_lasso(const atoms_ctx *ctx, const atoms_dict *dict, int64_t n, const void *x, atoms_dtype type,
                         int64_t rs, int64_t cs, const atoms_lasso_params *params, int32_t *indices, void *values,
                         int32_t *counts, int8_t *status, int32_t *steps, double *residual, double *gap)
{
    for (int64_t a = 0; a < params->n_alphas; a++)
        if (!(params->alphas[a] > 0) || !isfinite(params->alphas[a]))
            return ATOMS_ERR_ARGUMENT;
    if (n < 0 || params->n_alphas < 1 || !(params->tol > 0))
        return ATOMS_ERR_ARGUMENT;
    code_tile whole = {.n = n, .width = dict->n, .stride = n, WHOLE, .gap = gap};
    return run(ctx, dict, params, &whole, run_lasso);
}

atoms_status atoms_basis(const atoms_ctx *ctx, const atoms_dict *dict, int64_t n, const void *x, atoms_dtype type,
                         int64_t rs, int64_t cs, const atoms_basis_params *params, int32_t *indices, void *values,
                         int32_t *counts, int8_t *status, int32_t *steps, double *residual, double *gap)
{
    if (n < 0 || !(params->sigma >= 0) || !(params->tol > 0) || dict->type != ATOMS_F64)
        return ATOMS_ERR_ARGUMENT;
    code_tile whole = {.n = n, .width = dict->n, .stride = n, WHOLE, .gap = gap};
    return run(ctx, dict, params, &whole, params->sigma > 0 ? run_denoise : run_equality);
}

atoms_status atoms_pursuit(const atoms_ctx *ctx, const atoms_dict *dict, int64_t n, const void *x, atoms_dtype type,
                           int64_t rs, int64_t cs, const atoms_pursuit_params *params, int32_t *indices, void *values,
                           int32_t *counts, int8_t *status, int32_t *steps, double *residual)
{
    if (n < 0 || params->n_nonzero < 1 || params->n_nonzero > ATOMS_MIN(dict->n, dict->d) || params->max_steps < 1 ||
        params->tol != params->tol)
        return ATOMS_ERR_ARGUMENT;
    code_tile whole = {.n = n, .width = params->n_nonzero, .stride = n, WHOLE};
    return run(ctx, dict, params, &whole, run_pursuit);
}

atoms_status atoms_threshold(const atoms_ctx *ctx, const atoms_dict *dict, int64_t n, const void *x, atoms_dtype type,
                             int64_t rs, int64_t cs, const double *tau, int signed_codes, int32_t *indices,
                             void *values, int32_t *counts, int8_t *status, int32_t *steps, double *residual)
{
    if (n < 0)
        return ATOMS_ERR_ARGUMENT;
    code_tile whole = {.n = n, .width = dict->n, .stride = n, WHOLE, .tau = tau};
    return run(ctx, dict, &signed_codes, &whole, run_threshold);
}

atoms_status atoms_correlation_max(const atoms_ctx *ctx, const atoms_dict *dict, int64_t n, const void *x,
                                   atoms_dtype type, int64_t rs, int64_t cs, double *top)
{
    int signed_codes = 1;
    code_tile whole = {.n = n, .x = x, .x_type = type, .rs = rs, .cs = cs, .gap = top};
    return n < 0 ? ATOMS_ERR_ARGUMENT : run(ctx, dict, &signed_codes, &whole, run_threshold);
}
