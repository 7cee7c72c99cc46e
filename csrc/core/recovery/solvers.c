/* solvers.c: checks, tiles and threads of the solvers whose codes have no fixed length: lasso, basis pursuit, the other
 * pursuits, thresholds. */
#include "kernels.h"

#include <math.h>

/* Signals in a tile: few, for their times differ, and fewer where that gives less than TILES of them, so that all threads
 * have some. */
#define MOST_SIGNALS 32
#define LEAST_SIGNALS 8
#define TILES 64

/* Mean field: many, so that the product packs the dictionary seldom. */
#define SPIKES_SIGNALS 128
#define SPIKES_BYTES ((int64_t)1 << 24) /* but no more of correlations */

/* An output's elements from number i on; NULL stays NULL: not wanted. */
#define FROM(output, i) ((output) ? (output) + (i) : NULL)

codes_tile codes_part(const atoms_dict *dict, const codes_tile *whole, int64_t i, int64_t n)
{
    const atoms_codes *all = &whole->out;
    codes_tile part = *whole;
    part.x = atoms_some_rows(whole->x, i, n);
    part.first = whole->first + i;
    part.out = (atoms_codes){
        .width = all->width,
        .indices = FROM(all->indices, i * all->width),
        .values = FROM((char *)all->values, i * all->width * (int64_t)atoms_dtype_size(dict->type)),
        .counts = FROM(all->counts, i),
        .status = FROM(all->status, i),
        .steps = FROM(all->steps, i),
        .residual = FROM(all->residual, i),
        .gap = FROM(all->gap, i),
    };
    return part;
}

bool codes_open(const codes_tile *tile, atoms_arena counted)
{
    if (tile->arena->base) {
        tile->arena->used = 0;
        return true;
    }
    *tile->arena = counted;
    return atoms_arena_open(tile->arena);
}

static const struct code_kernels *kernels_for(const atoms_ctx *ctx, const atoms_dict *dict)
{
    return dict->type == ATOMS_F64 ? ctx->kernels->codes_f64 : ctx->kernels->codes_f32;
}

/* Solves tile by tile; codes: of all signals. */
static atoms_status run_tiles(const atoms_ctx *ctx, const atoms_dict *shared, atoms_rows x, const void *params,
                              const atoms_codes *codes, int64_t tile, codes_solver solve)
{
    atoms_dict view = dict_view(shared), *dict = &view;
    if (!ctx->kernels->short_rows)
        view.units = (dict_units){0};
    const int64_t n = x.n, tiles = atoms_ceil_div(n, tile);
    atoms_team team = {.ctx = ctx};
    const codes_tile whole = {.x = x, .out = *codes, .stride = n, .team = &team};
#pragma omp parallel num_threads(ctx->p.num_threads)
    {
        atoms_arena arena = {0};
#pragma omp for schedule(dynamic, 1)
        for (int64_t k = 0; k < tiles; k++) {
            if (atoms_team_stopped(&team))
                continue;
            int64_t i = k * tile;
            codes_tile part = codes_part(dict, &whole, i, ATOMS_MIN(tile, n - i));
            part.arena = &arena;
            atoms_team_report(&team, solve(ctx, dict, params, &part));
        }
        atoms_arena_close(&arena);
    }
    return team.status;
}

static atoms_status run(const atoms_ctx *ctx, const atoms_dict *dict, atoms_rows x, const void *params,
                        const atoms_codes *codes, codes_solver solve)
{
    const int64_t tile = ATOMS_MAX(LEAST_SIGNALS, ATOMS_MIN(MOST_SIGNALS, x.n / TILES));
    return run_tiles(ctx, dict, x, params, codes, tile, solve);
}

/* Whether these are signals of the dictionary's length, and codes have room for `width` entries each. */
static bool fit(const atoms_dict *dict, atoms_rows x, const atoms_codes *codes, int64_t width)
{
    return x.n >= 0 && x.d == dict->d && codes->width >= width;
}

/* For solvers that have no duality gap. */
static atoms_codes without_gap(const atoms_codes *codes)
{
    atoms_codes out = *codes;
    out.gap = NULL;
    return out;
}

atoms_status atoms_lasso(const atoms_ctx *ctx, const atoms_dict *dict, atoms_rows x, const atoms_lasso_params *params,
                         const atoms_codes *codes)
{
    for (int64_t a = 0; a < params->n_alphas; a++)
        if (!(params->alphas[a] > 0) || !isfinite(params->alphas[a]))
            return ATOMS_ERR_ARGUMENT;
    if (!fit(dict, x, codes, dict->n) || params->n_alphas < 1 || !(params->tol > 0) || params->most_atoms < 0)
        return ATOMS_ERR_ARGUMENT;
    atoms_dict view = dict_view(dict);
    if (params->most_atoms == 0)
        view.units = (dict_units){0};
    return run(ctx, &view, x, params, codes, kernels_for(ctx, dict)->lasso);
}

atoms_status atoms_basis(const atoms_ctx *ctx, const atoms_dict *dict, atoms_rows x, const atoms_basis_params *params,
                         const atoms_codes *codes)
{
    if (!fit(dict, x, codes, dict->n) || !(params->sigma >= 0) || !(params->tol > 0) || dict->type != ATOMS_F64)
        return ATOMS_ERR_ARGUMENT;
    return run(ctx, dict, x, params, codes, params->sigma > 0 ? kernels_for(ctx, dict)->denoise : equality_tile);
}

atoms_status atoms_pursuit(const atoms_ctx *ctx, const atoms_dict *dict, atoms_rows x,
                           const atoms_pursuit_params *params, const atoms_codes *codes)
{
    if (!fit(dict, x, codes, params->n_nonzero) || params->n_nonzero < 1 ||
        params->n_nonzero > ATOMS_MIN(dict->n, dict->d) || params->max_steps < 1 || params->tol != params->tol)
        return ATOMS_ERR_ARGUMENT;
    const atoms_codes out = without_gap(codes);
    return run(ctx, dict, x, params, &out, kernels_for(ctx, dict)->pursuit);
}

atoms_status atoms_threshold(const atoms_ctx *ctx, const atoms_dict *dict, atoms_rows x,
                             const atoms_threshold_params *params, const atoms_codes *codes)
{
    if (!fit(dict, x, codes, dict->n))
        return ATOMS_ERR_ARGUMENT;
    const atoms_codes out = without_gap(codes);
    return run(ctx, dict, x, params, &out, kernels_for(ctx, dict)->threshold);
}

atoms_status atoms_correlation_max(const atoms_ctx *ctx, const atoms_dict *dict, atoms_rows x, double *top)
{
    const atoms_codes codes = {.gap = top};
    if (!fit(dict, x, &codes, 0))
        return ATOMS_ERR_ARGUMENT;
    return run(ctx, dict, x, NULL, &codes, kernels_for(ctx, dict)->correlation_max);
}

/* What each atom's rate, height and spread say, made once; false where they are out of range. */
static bool spikes_of(int64_t m, const atoms_spikes_params *p, spike *of)
{
    const double v = p->noise * p->noise;
    bool ok = v > 0 && isfinite(v);
    for (int64_t j = 0; j < m; j++) {
        const double rate = p->rate[j], height = p->height[j], s = p->spread[j] * p->spread[j];
        ok &= rate > 0 && rate < 1 && isfinite(height) && isfinite(s);
        of[j] = (spike){.odds = (float)(log(rate / (1 - rate)) - log((v + s) / v) / 2),
                        .height = (float)height,
                        .precision = (float)(1 / (v + s)),
                        .gain = (float)(s / (v + s)),
                        .rest = (float)(height * v / (v + s))};
    }
    return ok;
}

atoms_status atoms_spikes(const atoms_ctx *ctx, const atoms_dict *dict, atoms_rows x, const atoms_spikes_params *params,
                          const atoms_codes *codes)
{
    const int64_t most = params->n_candidates;
    if (!fit(dict, x, codes, most) || most < 1 || most > dict->n || params->rounds < 1 || params->sweeps < 1 ||
        !(params->least >= 0) || dict->type != ATOMS_F32)
        return ATOMS_ERR_ARGUMENT;
    spike *of = atoms_alloc(dict->n, sizeof *of);
    if (!of)
        return ATOMS_ERR_MEMORY;
    atoms_status status = ATOMS_ERR_ARGUMENT;
    if (spikes_of(dict->n, params, of)) {
        const int64_t fits = SPIKES_BYTES / (2 * dict->np * (int64_t)sizeof(float));
        const int64_t tile = ATOMS_MAX(8, ATOMS_MIN(fits, SPIKES_SIGNALS));
        const atoms_codes out = without_gap(codes);
        const spikes_job job = {params, of};
        status = run_tiles(ctx, dict, x, &job, &out, tile, ctx->kernels->atoms->spikes);
    }
    atoms_free(of);
    return status;
}
