/* encode.c: codes by the inference rule, as compressed rows, and what they decode to. */
#include "sae.h"

struct atoms_csr {
    atoms_arena arena;
    int64_t n, nnz;
    int64_t *indptr;  /* (n + 1,) */
    int32_t *indices; /* (nnz,) */
    float *values;    /* (nnz,) */
};

static void lay_out(atoms_csr *csr)
{
    ATOMS_TAKE(&csr->arena, csr->indptr, csr->n + 1);
    ATOMS_TAKE(&csr->arena, csr->indices, csr->nnz);
    ATOMS_TAKE(&csr->arena, csr->values, csr->nnz);
}

/* The panels' lists, one after the other; NULL: no memory. */
static atoms_csr *csr_of(const sae_batch *b)
{
    atoms_csr *csr = calloc(1, sizeof *csr);
    if (!csr)
        return NULL;
    csr->n = b->n;
    for (int64_t p = 0; p < b->panels; p++)
        csr->nnz += b->list[p].n;
    lay_out(csr);
    if (!atoms_arena_open(&csr->arena)) {
        free(csr);
        return NULL;
    }
    lay_out(csr);
    int64_t at = 0;
    csr->indptr[0] = 0;
    for (int64_t p = 0; p < b->panels; p++) {
        const sae_list *l = &b->list[p];
        for (int64_t r = 0; r < PANEL_SAMPLES && p * PANEL_SAMPLES + r < b->n; r++)
            csr->indptr[p * PANEL_SAMPLES + r + 1] = at + l->start[r + 1];
        if (l->n) {
            memcpy(csr->indices + at, l->latent, (size_t)l->n * sizeof *csr->indices);
            memcpy(csr->values + at, l->z, (size_t)l->n * sizeof *csr->values);
        }
        at += l->n;
    }
    return csr;
}

static atoms_status encode(const sae_step *step, const atoms_batch *x, atoms_csr **csr, atoms_sae_stats *stats)
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
    if (status != ATOMS_OK)
        return status;
    *csr = csr_of(b);
    return *csr ? ATOMS_OK : ATOMS_ERR_MEMORY;
}

atoms_status atoms_sae_encode(const atoms_ctx *ctx, const atoms_sae *sae, const atoms_batch *x, atoms_csr **out,
                              atoms_sae_stats *stats)
{
    *stats = (atoms_sae_stats){.bad_row = -1};
    if (x->n < 0 || x->x.d != sae->p.d_in)
        return ATOMS_ERR_ARGUMENT;
    sae_batch b = {0};
    sae_step step = {.ctx = ctx, .kernels = ctx->kernels->sae, .sae = sae, .batch = &b};
    atoms_csr *csr = NULL;
    atoms_status status = encode(&step, x, &csr, stats);
    if (status == ATOMS_OK) {
        double n = (double)ATOMS_MAX(x->n, 1);
        for (int64_t p = 0; p < b.panels; p++) {
            stats->candidates += b.list[p].candidates;
            stats->seconds.screen += b.list[p].screen;
            stats->seconds.exact += b.list[p].exact;
        }
        stats->candidates /= n;
        stats->l0 = (double)csr->nnz / n;
        *out = csr;
    }
    sae_batch_free(&b);
    return status;
}

int64_t atoms_csr_nnz(const atoms_csr *csr)
{
    return csr->nnz;
}

void atoms_csr_copy(const atoms_csr *csr, int64_t *indptr, int32_t *indices, float *values)
{
    memcpy(indptr, csr->indptr, (size_t)(csr->n + 1) * sizeof *indptr);
    if (csr->nnz) {
        memcpy(indices, csr->indices, (size_t)csr->nnz * sizeof *indices);
        memcpy(values, csr->values, (size_t)csr->nnz * sizeof *values);
    }
}

void atoms_csr_free(atoms_csr *csr)
{
    if (!csr)
        return;
    atoms_arena_close(&csr->arena);
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
