/* step.c: one optimiser step, which reads as the objective in atoms.h does. */
#include "sae.h"

/* What z has to exceed; TOPK and BATCHTOPK: a guess at the k-th largest. */
static void set_floors(const sae_step *step)
{
    const atoms_sae *sae = step->sae;
    sae_batch *b = step->batch;
    for (int64_t j = 0; j < sae->p.d_sae; j++)
        b->floor[j] = sae->p.activation == ATOMS_JUMPRELU ? sae->thr.w[j]
                      : sae->p.activation == ATOMS_RELU   ? 0
                                                          : b->topk_floor;
}

static void batch_statistics(const sae_batch *b, atoms_sae_stats *stats)
{
    double n = (double)b->n, roots = 0;
    float lowest = 3e38f;
    for (int64_t p = 0; p < b->panels; p++) {
        const sae_list *l = &b->list[p];
        stats->squared_error += l->loss / n;
        stats->penalty += l->penalty / n;
        roots += l->roots / n;
        stats->l0 += (double)l->n / n;
        stats->candidates += l->candidates / n;
        stats->seconds.screen += l->screen;
        stats->seconds.exact += l->exact;
        stats->seconds.decode += l->decode;
        lowest = ATOMS_MIN(lowest, l->lowest);
    }
    stats->row_scale = roots * roots;
    stats->lowest = lowest < 3e38f ? (double)lowest : 0;
}

#define SOME_COLUMNS 64 /* summed side by side */

double sae_total_variance(const atoms_sae *sae)
{
    const sae_batch *b = &sae->batch;
    int64_t width = sae->out.width, d = sae->out.d;
    double n = (double)b->n, square = 0, mean = 0;
    for (int64_t p = 0; p < b->panels; p++)
        square += b->y_sums[p * (1 + width)];
    for (int64_t from = 0; from < d; from += SOME_COLUMNS) {
        double column[SOME_COLUMNS] = {0};
        for (int64_t p = 0; p < b->panels; p++)
            for (int64_t c = 0; c < ATOMS_MIN(SOME_COLUMNS, width - from); c++)
                column[c] += b->y_sums[p * (1 + width) + 1 + from + c];
        for (int64_t c = 0; c < ATOMS_MIN(SOME_COLUMNS, d - from); c++)
            mean += column[c] / n * (column[c] / n);
    }
    return square / n - mean;
}

/* From x to the lists of active latents: x - b_dec, then z where it counts, then which of them do. */
static atoms_status activations(const sae_step *step, const atoms_batch *x, atoms_sae_stats *stats)
{
    atoms_status status = sae_prepare(step, x, stats);
    if (status != ATOMS_OK)
        return status;
    set_floors(step);
    status = sae_list_active(step);
    if (status == ATOMS_OK && step->sae->p.activation >= ATOMS_TOPK)
        status = sae_select_topk(step, step->params->k);
    return status;
}

atoms_status sae_take_step(const atoms_ctx *ctx, atoms_sae *sae, const atoms_batch *x,
                           const atoms_sae_step_params *params, atoms_sae_stats *stats)
{
    *stats = (atoms_sae_stats){.bad_row = -1};
    bool topk = sae->p.activation >= ATOMS_TOPK;
    const atoms_batch *y = x->target;
    if (sae->p.d_out ? !y || y->n != x->n || y->x.d != sae->p.d_out : y != NULL)
        return ATOMS_ERR_ARGUMENT;
    if (sae->p.frozen || x->n < 1 || x->x.d != sae->p.d_in || (topk && (params->k < 1 || params->k > sae->p.d_sae)) ||
        params->aux_k < 0)
        return ATOMS_ERR_ARGUMENT;
    sae_step step = {ctx, ctx->kernels->sae, sae, &sae->batch, params};
    atoms_status status = sae_batch_reserve(ctx, sae, &sae->batch, x->n, sae->p.n_prefixes + (params->aux_k > 0));
    if (status == ATOMS_OK)
        status = activations(&step, x, stats);
    if (status == ATOMS_OK)
        status = sae_gradients(&step);
    if (status != ATOMS_OK)
        return status;
    batch_statistics(&sae->batch, stats);

    double t0 = sae_now();
    status = sae_sort_by_latent(&step);
    double t1 = sae_now();
    if (status == ATOMS_OK)
        status = sae_update(&step, sae, stats);
    stats->seconds.sort = t1 - t0;
    stats->seconds.update = sae_now() - t1;
    return status;
}

atoms_status atoms_sae_step(const atoms_ctx *ctx, atoms_sae *sae, const atoms_batch *x,
                            const atoms_sae_step_params *params, atoms_sae_stats *stats)
{
    atoms_status status = sae_take_step(ctx, sae, x, params, stats);
    if (status == ATOMS_OK)
        stats->total_variance = sae_total_variance(sae);
    return status;
}
