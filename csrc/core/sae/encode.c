/* encode.c: codes by the inference rule, as compressed rows, and what they decode to. */
#include "sae.h"

/* The lists stay where encoding left them, in a workspace that the next encoding may take over. */
struct atoms_csr {
    sae_batch batch;
    int64_t d_in, d_sae; /* of the model whose rows and latents it has room for, */
    atoms_screen screen; /* and what screened them */
};

static atoms_status encode(const sae_step *step, const atoms_batch *x, atoms_sae_stats *stats)
{
    const atoms_sae *sae = step->sae;
    sae_batch *b = step->batch;
    atoms_status status = sae_batch_reserve(step->ctx, sae, b, x->n, 0);
    if (status == ATOMS_OK)
        status = sae_prepare(step, x, stats);
    if (status != ATOMS_OK)
        return status;
    bool threshold = sae->p.activation == ATOMS_JUMPRELU || sae->p.activation == ATOMS_BATCHTOPK;
    for (int64_t j = 0; j < sae->p.d_sae; j++)
        b->floor[j] = threshold ? sae->thr.w[j] : 0;
    status = sae_list_active(step);
    if (status == ATOMS_OK && sae->p.activation == ATOMS_TOPK)
        status = sae_select_topk(step, sae->p.k);
    return status;
}

/* One with an empty workspace, or with that of an earlier encoding by a model of the same shape. */
static atoms_csr *open_codes(const atoms_sae *sae, atoms_csr *csr)
{
    if (!csr && !(csr = calloc(1, sizeof *csr)))
        return NULL;
    if (csr->d_in != sae->p.d_in || csr->d_sae != sae->p.d_sae || csr->screen != sae->image.kind) {
        sae_batch_free(&csr->batch);
        csr->d_in = sae->p.d_in;
        csr->d_sae = sae->p.d_sae;
        csr->screen = sae->image.kind;
    }
    return csr;
}

atoms_status atoms_sae_encode(const atoms_ctx *ctx, const atoms_sae *sae, const atoms_batch *x, atoms_csr **out,
                              atoms_sae_stats *stats)
{
    atoms_csr *csr = open_codes(sae, *out);
    *stats = (atoms_sae_stats){.bad_row = -1};
    *out = NULL;
    if (!csr)
        return ATOMS_ERR_MEMORY;
    sae_batch *b = &csr->batch;
    sae_step step = {.ctx = ctx, .kernels = ctx->kernels->sae, .sae = sae, .batch = b};
    atoms_status status = x->n < 0 || x->x.d != sae->p.d_in ? ATOMS_ERR_ARGUMENT : encode(&step, x, stats);
    if (status != ATOMS_OK) {
        atoms_csr_free(csr);
        return status;
    }
    double n = (double)ATOMS_MAX(x->n, 1);
    for (int64_t p = 0; p < b->panels; p++) {
        stats->candidates += b->list[p].candidates;
        stats->seconds.screen += b->list[p].screen;
        stats->seconds.exact += b->list[p].exact;
    }
    stats->candidates /= n;
    stats->l0 = (double)atoms_csr_nnz(csr) / n;
    *out = csr;
    return ATOMS_OK;
}

int64_t atoms_csr_nnz(const atoms_csr *csr)
{
    int64_t n = 0;
    for (int64_t p = 0; p < csr->batch.panels; p++)
        n += csr->batch.list[p].n;
    return n;
}

void atoms_csr_copy(const atoms_ctx *ctx, const atoms_csr *csr, int64_t *indptr, int32_t *indices, float *values)
{
    const sae_batch *b = &csr->batch;
    int64_t at = 0;
    indptr[0] = 0;
    for (int64_t p = 0; p < b->panels; p++) {
        const sae_list *l = &b->list[p];
        for (int64_t r = 0; r < PANEL_SAMPLES && p * PANEL_SAMPLES + r < b->n; r++)
            indptr[p * PANEL_SAMPLES + r + 1] = at + l->start[r + 1];
        at += l->n;
    }
#pragma omp parallel for num_threads(ctx->p.num_threads) schedule(static)
    for (int64_t p = 0; p < b->panels; p++) {
        const sae_list *l = &b->list[p];
        int64_t from = indptr[p * PANEL_SAMPLES];
        if (l->n) {
            memcpy(indices + from, l->latent, (size_t)l->n * sizeof *indices);
            memcpy(values + from, l->z, (size_t)l->n * sizeof *values);
        }
    }
}

void atoms_csr_free(atoms_csr *csr)
{
    if (!csr)
        return;
    sae_batch_free(&csr->batch);
    free(csr);
}

atoms_status atoms_decode(const atoms_ctx *ctx, int64_t d, const atoms_csr_view *codes, const float *w_dec,
                          const float *bias, float *xhat)
{
    const int64_t *indptr = codes->indptr;
    const int32_t *indices = codes->indices;
    const float *values = codes->values;
    if (!atoms_codes_inside(codes))
        return ATOMS_ERR_ARGUMENT;
#pragma omp parallel for num_threads(ctx->p.num_threads) schedule(static)
    for (int64_t i = 0; i < codes->n; i++) {
        float *restrict out = xhat + i * d;
        memcpy(out, bias, (size_t)d * sizeof *out);
        for (int64_t e = indptr[i]; e < indptr[i + 1]; e++) {
            const float *restrict row = w_dec + indices[e] * d;
            for (int64_t c = 0; c < d; c++)
                out[c] += values[e] * row[c];
        }
    }
    return ATOMS_OK;
}
