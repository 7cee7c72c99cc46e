/* sae_step.c: one optimiser step.
 *
 *   lists of active latents (sae_encode.c)
 *   -> by sample:  xhat - x, the loss, and its gradient by each listed activation
 *   -> by latent:  gradients of its two rows, its bias and threshold; Adam at once, while they are hot
 *   -> the decoder bias */
#include "sae.h"

#include <math.h>

/* ------------------------------------------------------------- by sample */

/* Rows of the dictionary that a sample uses, eight at a time. */
static void decode_sample(const atoms_sae *sae, const atoms_sae_kernels *k, const float *cut,
                          const panel_list *l, int32_t from, int32_t to, const float *xc,
                          float *err)
{
    int64_t ld = sae->ld;
    k->negate(ld, xc, err);
    const float *row[64];
    float a[64];
    int n = 0;
    for (int32_t e = from; e < to; e++) {
        int32_t j = l->latent[e];
        if (e + 8 < to)
            prefetch_row(sae->dec.w + l->latent[e + 8] * ld, ATOMS_MIN(ld, 256));
        if (l->z[e] > cut[j]) {
            row[n] = sae->dec.w + j * ld;
            a[n++] = l->z[e];
        }
        if (n == 64 || (e == to - 1 && n)) {
            k->add_rows(ld, n, a, row, err);
            n = 0;
        }
    }
}

static void panel_gradients(const atoms_sae *sae, const atoms_sae_kernels *k, const float *cut,
                            const atoms_sae_step_params *sp, sae_batch *b, int64_t p)
{
    int64_t ld = sae->ld;
    panel_list *l = &b->list[p];
    float scale = 2.0f / (float)b->n;
    float *column = b->partial + p * ld;
    memset(column, 0, (size_t)ld * sizeof *column);
    l->loss = l->active = l->penalty = 0;
    double t0 = sae_now();
    for (int r = 0; r < PANEL && p * PANEL + r < b->n; r++) {
        float *err = b->err + (p * PANEL + r) * ld;
        decode_sample(sae, k, cut, l, l->start[r], l->start[r + 1], b->xc + (p * PANEL + r) * ld,
                      err);
        l->loss += k->error_sums(ld, err, column);
        for (int32_t e = l->start[r]; e < l->start[r + 1]; e += 4) {
            const float *rows[4];
            float ga[4];
            int n = (int)ATOMS_MIN(4, l->start[r + 1] - e);
            for (int i = 0; i < n; i++)
                rows[i] = sae->dec.w + l->latent[e + i] * ld;
            k->dots(ld, n, err, rows, ga);
            for (int i = 0; i < n; i++) {
                l->ga[e + i] = scale * ga[i];
                if (l->z[e + i] > cut[l->latent[e + i]]) {
                    l->active += 1;
                    if (sae->p.activation == ATOMS_RELU)
                        l->penalty += (double)(sp->l1_coefficient * l->z[e + i]);
                    else if (sae->p.activation == ATOMS_JUMPRELU)
                        l->penalty += (double)sp->l0_coefficient;
                }
            }
        }
    }
    l->seconds[2] = sae_now() - t0;
}

/* ------------------------------------------------------------- by latent */

/* Entries by latent; within a latent by sample. Each thread fills a range of latents of its own. */
static atoms_status sort_by_latent(const atoms_ctx *ctx, const atoms_sae *sae, sae_batch *b)
{
    int64_t s = sae->p.d_sae, n = 0;
    for (int64_t p = 0; p < b->panels; p++)
        n += b->list[p].n;
    if (n > b->entry_cap) {
        int64_t cap = n + n / 8;
        atoms_free(b->row);
        atoms_free(b->z);
        atoms_free(b->ga);
        b->row = atoms_alloc(cap, sizeof *b->row);
        b->z = atoms_alloc(cap, sizeof *b->z);
        b->ga = atoms_alloc(cap, sizeof *b->ga);
        b->entry_cap = b->row && b->z && b->ga ? cap : 0;
        if (!b->entry_cap)
            return ATOMS_ERR_MEMORY;
    }
    memset(b->start, 0, (size_t)(s + 1) * sizeof *b->start);
    for (int64_t p = 0; p < b->panels; p++)
        for (int64_t e = 0; e < b->list[p].n; e++)
            b->start[b->list[p].latent[e] + 1]++;
    for (int64_t j = 0; j < s; j++)
        b->start[j + 1] += b->start[j];
    int64_t *at = atoms_alloc(s, sizeof *at);
    if (!at)
        return ATOMS_ERR_MEMORY;
    memcpy(at, b->start, (size_t)s * sizeof *at);
    int parts = ctx->p.num_threads;
#pragma omp parallel for num_threads(ctx->p.num_threads) schedule(static, 1)
    for (int part = 0; part < parts; part++) {
        int32_t from = (int32_t)(s * part / parts), to = (int32_t)(s * (part + 1) / parts);
        for (int64_t p = 0; p < b->panels; p++) {
            const panel_list *l = &b->list[p];
            for (int r = 0; r < PANEL; r++)
                for (int32_t e = l->start[r]; e < l->start[r + 1]; e++) {
                    int32_t j = l->latent[e];
                    if (j < from || j >= to)
                        continue;
                    int64_t i = at[j]++;
                    b->row[i] = (int32_t)(p * PANEL + r);
                    b->z[i] = l->z[e];
                    b->ga[i] = l->ga[e];
                }
        }
    }
    atoms_free(at);
    return ATOMS_OK;
}

typedef struct {
    atoms_adam adam, thr_adam;
    const atoms_sae_step_params *sp;
    const float *cut;
} update;

static void adam_scalar(const atoms_adam *a, const adam_block *b, int64_t j, float g)
{
    b->m[j] = a->beta1 * b->m[j] + (1 - a->beta1) * g;
    b->v[j] = a->beta2 * b->v[j] + (1 - a->beta2) * g * g;
    float u = a->gain * b->m[j] / (sqrtf(b->v[j]) + a->epsilon);
    if (a->clip > 0)
        u = fmaxf(-a->clip, fminf(a->clip, u));
    b->w[j] -= a->learning_rate * u;
}

/* A thread's room: two gradient rows, one for Adam, and a latent's active entries. */
typedef struct {
    float *g_dec, *g_enc, *u, *c_dec, *c_enc;
    const float **err, **x;
} latent_scratch;

static void update_latent(atoms_sae *sae, const atoms_sae_kernels *k, const update *u, sae_batch *b,
                          int64_t j, latent_scratch *s, float *bias_part, double *band)
{
    int64_t ld = sae->ld, d = sae->p.d_in, n = 0;
    float scale = 2.0f / (float)b->n, cut = u->cut[j], theta = sae->thr.w[j];
    float g_bias = 0, g_thr = 0;
    float l1 = sae->p.activation == ATOMS_RELU ? u->sp->l1_coefficient / (float)b->n : 0;
    float l0 = u->sp->l0_coefficient / (float)b->n;
    bool in_band = false;
    bool jump = sae->p.activation == ATOMS_JUMPRELU;
    for (int64_t e = b->start[j]; e < b->start[j + 1]; e++) {
        if (jump && fabsf(b->z[e] - theta) < sae->p.bandwidth / 2) {
            g_thr -= (theta * b->ga[e] + l0) / sae->p.bandwidth;
            in_band = true;
            band[0] += 1;
            band[1] -= (double)(theta * b->ga[e]);
        }
        if (!(b->z[e] > cut))
            continue;
        s->c_dec[n] = scale * b->z[e];
        s->c_enc[n] = b->ga[e] + l1;
        s->err[n] = b->err + b->row[e] * ld;
        s->x[n] = b->xc + b->row[e] * ld;
        g_bias += s->c_enc[n];
        n++;
    }
    if (n)
        sae->last_fired[j] = sae->counters[1] + b->n;
    const float *enc_row = sae->enc.w + j * ld;
    k->add_rows(ld, 1, &g_bias, &enc_row, bias_part);

    memset(s->g_dec, 0, (size_t)ld * sizeof(float));
    k->add_rows(ld, n, s->c_dec, s->err, s->g_dec);
    float *g_enc = sae->p.tied ? s->g_dec : s->g_enc;
    if (!sae->p.tied)
        memset(g_enc, 0, (size_t)ld * sizeof(float));
    k->add_rows(ld, n, s->c_enc, s->x, g_enc);
    k->adam_row(ld, d, &u->adam, true, s->g_dec, sae->dec.m + j * ld, sae->dec.v + j * ld,
                sae->dec.w + j * ld, s->u);
    if (!sae->p.tied)
        k->adam_row(ld, d, &u->adam, false, g_enc, sae->enc.m + j * ld, sae->enc.v + j * ld,
                    sae->enc.w + j * ld, s->u);
    adam_scalar(&u->adam, &sae->b_enc, j, g_bias);
    if (jump) {
        adam_scalar(&u->thr_adam, &sae->thr, j, g_thr);
        sae->thr.w[j] = fmaxf(0, sae->thr.w[j] + (in_band ? u->sp->threshold_shift : 0));
        int64_t silent = sae->counters[1] + b->n - sae->last_fired[j];
        if (u->sp->silent_after > 0 && silent >= u->sp->silent_after)
            sae->thr.w[j] *= u->sp->silent_factor;
    }
    sae_screen_row(k, sae, j);
}

#define LATENTS 64 /* latents of one task */

static atoms_status update_all(const atoms_ctx *ctx, atoms_sae *sae, const atoms_sae_kernels *k,
                               const update *u, sae_batch *b, double *band)
{
    int64_t ld = sae->ld, tasks = (sae->p.d_sae + LATENTS - 1) / LATENTS, most = 0;
    for (int64_t j = 0; j < sae->p.d_sae; j++)
        most = ATOMS_MAX(most, b->start[j + 1] - b->start[j]);
    double *bands = atoms_calloc(2 * tasks, sizeof *bands);
    int threads = ctx->p.num_threads;
    int64_t floats = 3 * ld + 2 * (most + 16) / 16 * 16 + 16;
    float *room = atoms_alloc(threads * floats, sizeof *room);
    const float **pointers = atoms_alloc(threads * 2 * (most + 1), sizeof *pointers);
    if (!bands || !room || !pointers) {
        atoms_free(bands);
        atoms_free(room);
        atoms_free(pointers);
        return ATOMS_ERR_MEMORY;
    }
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
    for (int64_t t = 0; t < tasks; t++) {
#ifdef _OPENMP
        int me = omp_get_thread_num();
#else
        int me = 0;
#endif
        float *f = room + me * floats;
        const float **q = pointers + me * 2 * (most + 1);
        latent_scratch s = {f, f + ld, f + 2 * ld, f + 3 * ld, f + 3 * ld + most, q, q + most};
        float *part = b->partial + t * ld;
        memset(part, 0, (size_t)ld * sizeof *part);
        for (int64_t j = t * LATENTS; j < ATOMS_MIN((t + 1) * LATENTS, sae->p.d_sae); j++)
            update_latent(sae, k, u, b, j, &s, part, bands + 2 * t);
    }
    for (int64_t t = 0; t < tasks; t++) {
        band[0] += bands[2 * t];
        band[1] += bands[2 * t + 1];
    }
    atoms_free(bands);
    atoms_free(room);
    atoms_free(pointers);
    return ATOMS_OK;
}

/* ------------------------------------------------------------------ step */

static void set_floors(const atoms_sae *sae, sae_batch *b, float *cut)
{
    for (int64_t j = 0; j < sae->p.d_sae; j++) {
        switch (sae->p.activation) {
        case ATOMS_JUMPRELU:
            cut[j] = sae->thr.w[j];
            b->floor[j] = sae->thr.w[j] - sae->p.bandwidth / 2;
            break;
        case ATOMS_RELU: cut[j] = b->floor[j] = 0; break;
        default: /* what is listed is active */
            cut[j] = 0;
            b->floor[j] = b->topk_floor;
        }
    }
}

static void batch_statistics(const atoms_sae *sae, const sae_batch *b, atoms_sae_stats *stats)
{
    int64_t ld = sae->ld;
    double n = (double)b->n, square = 0, mean = 0;
    for (int64_t p = 0; p < b->panels; p++) {
        square += b->sums[p * (1 + ld)];
        stats->squared_error += b->list[p].loss / n;
        stats->penalty += b->list[p].penalty / n;
        stats->l0 += b->list[p].active / n;
        stats->candidates += b->list[p].candidates / n;
        for (int k = 0; k < 3; k++)
            stats->seconds[1 + k] += b->list[p].seconds[k];
    }
    for (int64_t c = 0; c < sae->p.d_in; c++) {
        double column = 0;
        for (int64_t p = 0; p < b->panels; p++)
            column += b->sums[p * (1 + ld) + 1 + c];
        mean += column / n * (column / n);
    }
    stats->total_variance = square / n - mean;
    float lowest = 3e38f;
    for (int64_t p = 0; p < b->panels; p++)
        for (int64_t e = 0; e < b->list[p].n; e++)
            lowest = ATOMS_MIN(lowest, b->list[p].z[e]);
    stats->lowest = lowest < 3e38f ? (double)lowest : 0;
}

/* g = 2/n sum err - sum_j g_bias_j W_enc_j */
static void update_bias(atoms_sae *sae, const atoms_adam *adam, const sae_batch *b,
                        const float *err_sum)
{
    int64_t tasks = (sae->p.d_sae + LATENTS - 1) / LATENTS;
    for (int64_t c = 0; c < sae->p.d_in; c++) {
        float g = 2.0f / (float)b->n * err_sum[c];
        for (int64_t t = 0; t < tasks; t++)
            g -= b->partial[t * sae->ld + c];
        adam_scalar(adam, &sae->b_dec, c, g);
    }
}

static atoms_adam adam_of(const atoms_sae_params *p, float rate, int64_t step)
{
    double b1 = 1 - pow((double)p->beta1, (double)step), b2 = 1 - pow((double)p->beta2, (double)step);
    atoms_adam a = {rate, p->beta1, p->beta2, (float)(sqrt(b2) / b1),
                    (float)((double)p->epsilon * sqrt(b2)), p->clip};
    return a;
}

atoms_status atoms_sae_step(const atoms_ctx *ctx, int64_t n, atoms_sae *sae, const float *x,
                            const atoms_sae_step_params *sp, float *err, atoms_sae_stats *stats)
{
    memset(stats, 0, sizeof *stats);
    stats->bad_row = -1;
    bool topk = sae->p.activation >= ATOMS_TOPK;
    if (n < 1 || (topk && (sp->k < 1 || sp->k > sae->p.d_sae)))
        return ATOMS_ERR_ARGUMENT;
    const atoms_sae_kernels *k = atoms_sae_kernels_for(ctx->isa);
    sae_batch *b = &sae->batch;
    int64_t ld = sae->ld;
    float *cut = atoms_alloc(sae->p.d_sae, sizeof *cut);
    float *err_sum = atoms_calloc(ld, sizeof *err_sum);
    atoms_status status = cut && err_sum ? sae_batch_reserve(sae, b, n) : ATOMS_ERR_MEMORY;
    double t0 = sae_now();
    if (status == ATOMS_OK)
        status = sae_prepare(ctx, sae, x, n, b, stats);
    stats->seconds[0] = sae_now() - t0;
    if (status == ATOMS_OK) {
        set_floors(sae, b, cut);
        status = sae_list_active(ctx, sae, b);
    }
    if (status == ATOMS_OK && topk)
        status = sae_select_topk(ctx, sae, b, sp->k);
    if (status != ATOMS_OK)
        goto done;

#pragma omp parallel for num_threads(ctx->p.num_threads) schedule(dynamic, 1)
    for (int64_t p = 0; p < b->panels; p++)
        panel_gradients(sae, k, cut, sp, b, p);
    for (int64_t p = 0; p < b->panels; p++)
        for (int64_t c = 0; c < ld; c++)
            err_sum[c] += b->partial[p * ld + c];
    batch_statistics(sae, b, stats);

    double t1 = sae_now();
    status = sort_by_latent(ctx, sae, b);
    stats->seconds[4] = sae_now() - t1;
    if (status != ATOMS_OK)
        goto done;
    t1 = sae_now();
    int64_t step = sae->counters[0] + 1;
    update u = {adam_of(&sae->p, sp->learning_rate, step), adam_of(&sae->p, sp->threshold_rate, step),
                sp, cut};
    double band[2] = {0, 0};
    status = update_all(ctx, sae, k, &u, b, band);
    if (status != ATOMS_OK)
        goto done;
    update_bias(sae, &u.adam, b, err_sum);
    sae->counters[0] = step;
    sae->counters[1] += n;
    stats->band = band[0] / (double)n;
    stats->band_gain = band[0] > 0 ? band[1] * (double)n / band[0] : 0;
    for (int64_t i = 0; err && i < n; i++)
        memcpy(err + i * sae->p.d_in, b->err + i * ld, (size_t)sae->p.d_in * sizeof *err);
    stats->seconds[5] = sae_now() - t1;
done:
    atoms_free(cut);
    atoms_free(err_sum);
    return status;
}
