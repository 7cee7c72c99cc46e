/* sae.c: the model: memory, access to its arrays, codes and decoding. */
#include "sae.h"

#include <float.h>
#include <math.h>

/* ----------------------------------------------------------------- model */

void atoms_sae_params_init(atoms_sae_params *p)
{
    memset(p, 0, sizeof *p);
    p->activation = ATOMS_JUMPRELU;
    p->bandwidth = 0.1f;
    p->beta1 = 0.9f;
    p->beta2 = 0.999f;
    p->epsilon = 1e-8f;
    p->clip = 1.0f;
}

static bool prefixes_ascend(const atoms_sae_params *p)
{
    if (p->n_prefixes < 0 || p->n_prefixes > ATOMS_MAX_PREFIXES)
        return false;
    for (int64_t g = 0; g < p->n_prefixes; g++)
        if (p->prefix[g] <= (g ? p->prefix[g - 1] : 0))
            return false;
    return p->n_prefixes == 0 || p->prefix[p->n_prefixes - 1] == p->d_sae;
}

static bool block_new(adam_block *b, int64_t n)
{
    b->w = atoms_calloc(n, sizeof *b->w);
    b->m = atoms_calloc(n, sizeof *b->m);
    b->v = atoms_calloc(n, sizeof *b->v);
    return b->w && b->m && b->v;
}

static void block_free(adam_block *b)
{
    atoms_free(b->w);
    atoms_free(b->m);
    atoms_free(b->v);
}

static bool matrix_new(adam_matrix *a, int64_t n)
{
    a->w = atoms_calloc(n, sizeof *a->w);
    a->mv = atoms_calloc(n, sizeof *a->mv);
    return a->w && a->mv;
}

static void matrix_free(adam_matrix *a)
{
    atoms_free(a->w);
    atoms_free(a->mv);
}

atoms_status atoms_sae_new(const atoms_ctx *ctx, const atoms_sae_params *p, atoms_sae **out)
{
    bool topk = p->activation == ATOMS_TOPK || p->activation == ATOMS_BATCHTOPK;
    if (p->d_in < 1 || p->d_sae < 1 || p->d_in > 32768 || p->d_sae > INT32_MAX / 2 || p->activation < ATOMS_JUMPRELU ||
        p->activation > ATOMS_BATCHTOPK || (topk && (p->k < 1 || p->k > p->d_sae)) || !(p->bandwidth > 0) ||
        !(p->beta1 >= 0) || !(p->beta1 < 1) || !(p->beta2 >= 0) || !(p->beta2 < 1) || !(p->epsilon >= 0) ||
        !(p->clip >= 0) || p->screen < ATOMS_SCREEN_AUTO || p->screen > ATOMS_SCREEN_INT16 || !prefixes_ascend(p))
        return ATOMS_ERR_ARGUMENT;
    atoms_sae *sae = calloc(1, sizeof *sae);
    if (!sae)
        return ATOMS_ERR_MEMORY;
    sae->p = *p;
    if (p->n_prefixes == 0) {
        sae->p.n_prefixes = 1;
        sae->p.prefix[0] = p->d_sae;
    }
    screen_weights *w = &sae->screen;
    w->kind = sae_screen_kind(ctx, p->screen);
    sae->width = (p->d_in + 15) / 16 * 16;
    sae->ld = sae->width / 16 % 2 ? sae->width : sae->width + 16;
    sae->rows = (p->d_sae + BLOCK - 1) / BLOCK * BLOCK;
    int64_t s = sae->rows;
    bool ok = matrix_new(&sae->dec, s * sae->ld) && block_new(&sae->b_enc, s) && block_new(&sae->thr, s) &&
              block_new(&sae->b_dec, sae->ld);
    if (ok && p->tied)
        sae->enc = sae->dec;
    else if (ok)
        ok = matrix_new(&sae->enc, s * sae->ld);
    ok = ok && (sae->last_fired = atoms_calloc(s, sizeof *sae->last_fired)) &&
         (w->q = atoms_calloc(s * sae->width, w->kind == ATOMS_SCREEN_INT16 ? 2 : w->kind == ATOMS_SCREEN_INT8)) &&
         (w->offset = atoms_calloc(s, sizeof *w->offset)) && (w->scale = atoms_calloc(s, sizeof *w->scale)) &&
         (w->residual = atoms_calloc(s, sizeof *w->residual)) && (w->norm = atoms_calloc(s, sizeof *w->norm));
    if (!ok) {
        atoms_sae_free(sae);
        return ATOMS_ERR_MEMORY;
    }
    *out = sae;
    return ATOMS_OK;
}

void atoms_sae_free(atoms_sae *sae)
{
    if (!sae)
        return;
    if (sae->enc.w != sae->dec.w)
        matrix_free(&sae->enc);
    matrix_free(&sae->dec);
    block_free(&sae->b_enc);
    block_free(&sae->b_dec);
    block_free(&sae->thr);
    atoms_free(sae->last_fired);
    atoms_free(sae->screen.q);
    atoms_free(sae->screen.offset);
    atoms_free(sae->screen.scale);
    atoms_free(sae->screen.residual);
    atoms_free(sae->screen.norm);
    sae_batch_free(&sae->batch);
    free(sae);
}

const atoms_sae_params *atoms_sae_get_params(const atoms_sae *sae)
{
    return &sae->p;
}

/* ---------------------------------------------------------------- fields */

static bool is_matrix(atoms_sae_field field)
{
    return field < ATOMS_LAST_FIRED && field % 5 <= ATOMS_W_DEC;
}

/* A vector, or a matrix' weights. */
static float *field_pointer(const atoms_sae *sae, atoms_sae_field field)
{
    if (field <= ATOMS_W_DEC)
        return field == ATOMS_W_ENC ? sae->enc.w : sae->dec.w;
    const adam_block *blocks[] = {&sae->b_enc, &sae->b_dec, &sae->thr}, *b = blocks[field % 5 - ATOMS_B_ENC];
    return field < ATOMS_W_ENC_M ? b->w : field < ATOMS_W_ENC_V ? b->m : b->v;
}

static bool is_moment(atoms_sae_field field)
{
    return field >= ATOMS_W_ENC_M && is_matrix(field);
}

/* The words that hold a matrix' moment, and by how many bits it is shifted in them. */
static uint32_t *moment_words(const atoms_sae *sae, atoms_sae_field field, int *shift)
{
    *shift = field < ATOMS_W_ENC_V ? 16 : 0;
    return field % 5 == ATOMS_W_ENC ? sae->enc.mv : sae->dec.mv;
}

static void get_moments(const atoms_sae *sae, atoms_sae_field field, float *out)
{
    int shift;
    const uint32_t *mv = moment_words(sae, field, &shift);
    for (int64_t j = 0; j < sae->p.d_sae; j++, mv += sae->ld)
        for (int64_t c = 0; c < sae->p.d_in; c++, out++) {
            uint32_t bits = mv[c] >> shift << 16;
            memcpy(out, &bits, sizeof bits);
        }
}

/* To the nearest, of ties to the even one. */
static void set_moments(const atoms_sae *sae, atoms_sae_field field, const float *values)
{
    int shift;
    uint32_t *mv = moment_words(sae, field, &shift), bits;
    for (int64_t j = 0; j < sae->p.d_sae; j++, mv += sae->ld)
        for (int64_t c = 0; c < sae->p.d_in; c++, values++) {
            memcpy(&bits, values, sizeof bits);
            bits = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
            mv[c] = (mv[c] & 0xffff0000u >> shift) | bits << shift;
        }
}

void atoms_sae_shape(const atoms_sae *sae, atoms_sae_field field, int64_t shape[2])
{
    shape[0] = sae->p.d_sae;
    shape[1] = 1;
    if (field == ATOMS_COUNTERS)
        shape[0] = 2;
    else if (is_matrix(field))
        shape[1] = sae->p.d_in;
    else if (field != ATOMS_LAST_FIRED && field % 5 == ATOMS_B_DEC)
        shape[0] = sae->p.d_in;
}

void atoms_sae_get(const atoms_sae *sae, atoms_sae_field field, void *out)
{
    int64_t shape[2];
    atoms_sae_shape(sae, field, shape);
    if (field == ATOMS_COUNTERS) {
        memcpy(out, sae->counters, sizeof sae->counters);
    } else if (field == ATOMS_LAST_FIRED) {
        memcpy(out, sae->last_fired, (size_t)shape[0] * sizeof(int64_t));
    } else if (is_moment(field)) {
        get_moments(sae, field, out);
    } else {
        int64_t ld = is_matrix(field) ? sae->ld : 1;
        const float *from = field_pointer(sae, field);
        for (int64_t i = 0; i < shape[0]; i++)
            memcpy((float *)out + i * shape[1], from + i * ld, (size_t)shape[1] * sizeof(float));
    }
}

void atoms_sae_set(atoms_sae *sae, atoms_sae_field field, const void *values)
{
    int64_t shape[2];
    atoms_sae_shape(sae, field, shape);
    if (field == ATOMS_COUNTERS) {
        memcpy(sae->counters, values, sizeof sae->counters);
    } else if (field == ATOMS_LAST_FIRED) {
        memcpy(sae->last_fired, values, (size_t)shape[0] * sizeof(int64_t));
    } else if (is_moment(field)) {
        set_moments(sae, field, values);
    } else {
        int64_t ld = is_matrix(field) ? sae->ld : 1;
        float *to = field_pointer(sae, field);
        for (int64_t i = 0; i < shape[0]; i++)
            memcpy(to + i * ld, (const float *)values + i * shape[1], (size_t)shape[1] * sizeof(float));
    }
    if (field == ATOMS_W_ENC || (sae->p.tied && field == ATOMS_W_DEC))
        for (int64_t j = 0; j < sae->p.d_sae; j++)
            sae_screen_row(atoms_instances_for(ATOMS_ISA_PORTABLE)->sae, sae, j);
}

int atoms_sae_nonfinite(const atoms_sae *sae)
{
    for (int field = ATOMS_W_ENC; field <= ATOMS_THRESHOLD; field++) {
        int64_t shape[2];
        atoms_sae_shape(sae, (atoms_sae_field)field, shape);
        const float *w = field_pointer(sae, (atoms_sae_field)field);
        int64_t n = shape[0] * (is_matrix((atoms_sae_field)field) ? sae->ld : 1);
        bool finite = true;
        for (int64_t i = 0; i < n; i++)
            finite &= fabsf(w[i]) <= FLT_MAX;
        if (!finite)
            return field;
    }
    return -1;
}

atoms_status atoms_sae_reset(const atoms_ctx *ctx, int64_t k, atoms_sae *sae, const int64_t *idx, const float *rows,
                             const float *scales, const float *thresholds)
{
    const sae_kernels *kernels = ctx->kernels->sae;
    int64_t d = sae->p.d_in, ld = sae->ld;
    for (int64_t i = 0; i < k; i++)
        if (idx[i] < 0 || idx[i] >= sae->p.d_sae)
            return ATOMS_ERR_ARGUMENT;
    for (int64_t i = 0; i < k; i++) {
        int64_t j = idx[i];
        adam_matrix *blocks[] = {&sae->enc, &sae->dec};
        for (int b = 0; b < 2; b++) {
            memcpy(blocks[b]->w + j * ld, rows + i * d, (size_t)d * sizeof(float));
            memset(blocks[b]->mv + j * ld, 0, (size_t)ld * sizeof(uint32_t));
        }
        for (int64_t c = 0; !sae->p.tied && c < d; c++)
            sae->enc.w[j * ld + c] *= scales[i];
        sae->b_enc.w[j] = sae->b_enc.m[j] = sae->b_enc.v[j] = 0;
        sae->thr.w[j] = thresholds[i];
        sae->thr.m[j] = sae->thr.v[j] = 0;
        sae->last_fired[j] = sae->counters[1];
        sae_screen_row(kernels, sae, j);
    }
    return ATOMS_OK;
}

/* ----------------------------------------------------------------- codes */

static float active_floor(const atoms_sae *sae, int64_t j)
{
    bool threshold = sae->p.activation == ATOMS_JUMPRELU || sae->p.activation == ATOMS_BATCHTOPK;
    return threshold ? sae->thr.w[j] : 0;
}

atoms_status atoms_sae_encode(const atoms_ctx *ctx, int64_t n, const atoms_sae *sae, const atoms_batch *x,
                              atoms_csr **out, atoms_sae_stats *stats)
{
    memset(stats, 0, sizeof *stats);
    sae_batch b = {0};
    atoms_csr *codes = calloc(1, sizeof *codes);
    atoms_status status = codes ? sae_batch_reserve(sae, &b, n, 0) : ATOMS_ERR_MEMORY;
    if (status == ATOMS_OK)
        status = sae_prepare(ctx, sae, x, n, &b, stats);
    if (status == ATOMS_OK) {
        for (int64_t j = 0; j < sae->p.d_sae; j++)
            b.floor[j] = active_floor(sae, j);
        status = sae_list_active(ctx, sae, &b);
    }
    if (status == ATOMS_OK && sae->p.activation == ATOMS_TOPK)
        status = sae_select_topk(ctx, sae, &b, sae->p.k);
    if (status == ATOMS_OK) {
        codes->n = n;
        for (int64_t p = 0; p < b.panels; p++)
            codes->nnz += b.list[p].n;
        codes->indptr = atoms_calloc(n + 1, sizeof *codes->indptr);
        codes->indices = atoms_alloc(codes->nnz, sizeof *codes->indices);
        codes->values = atoms_alloc(codes->nnz, sizeof *codes->values);
        if (!codes->indptr || !codes->indices || !codes->values)
            status = ATOMS_ERR_MEMORY;
    }
    if (status == ATOMS_OK) {
        int64_t at = 0;
        for (int64_t p = 0; p < b.panels; p++) {
            const panel_list *list = &b.list[p];
            for (int64_t r = 0; r < PANEL && p * PANEL + r < n; r++)
                codes->indptr[p * PANEL + r + 1] = at + list->start[r + 1];
            if (list->n) {
                memcpy(codes->indices + at, list->latent, (size_t)list->n * sizeof(int32_t));
                memcpy(codes->values + at, list->z, (size_t)list->n * sizeof(float));
            }
            at += list->n;
            stats->candidates += list->candidates;
            for (int k = 0; k < 2; k++)
                stats->seconds[1 + k] += list->seconds[k];
        }
        stats->candidates /= (double)ATOMS_MAX(n, 1);
        stats->l0 = (double)codes->nnz / (double)ATOMS_MAX(n, 1);
        *out = codes;
        codes = NULL;
    }
    atoms_csr_free(codes);
    sae_batch_free(&b);
    return status;
}

int64_t atoms_csr_nnz(const atoms_csr *codes)
{
    return codes->nnz;
}

void atoms_csr_copy(const atoms_csr *codes, int64_t *indptr, int32_t *indices, float *values)
{
    memcpy(indptr, codes->indptr, (size_t)(codes->n + 1) * sizeof *indptr);
    if (codes->nnz) {
        memcpy(indices, codes->indices, (size_t)codes->nnz * sizeof *indices);
        memcpy(values, codes->values, (size_t)codes->nnz * sizeof *values);
    }
}

void atoms_csr_free(atoms_csr *codes)
{
    if (!codes)
        return;
    atoms_free(codes->indptr);
    atoms_free(codes->indices);
    atoms_free(codes->values);
    free(codes);
}

atoms_status atoms_decode(const atoms_ctx *ctx, int64_t n, int64_t d, int64_t d_sae, const int64_t *indptr,
                          const int32_t *indices, const float *values, const float *w_dec, const float *bias,
                          float *xhat)
{
    for (int64_t e = indptr[0]; e < indptr[n]; e++)
        if (indices[e] < 0 || indices[e] >= d_sae)
            return ATOMS_ERR_ARGUMENT;
#pragma omp parallel for num_threads(ctx->p.num_threads) schedule(static)
    for (int64_t i = 0; i < n; i++) {
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
