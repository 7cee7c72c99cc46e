/* update.c: by latent, the gradients of its two rows, its bias and its threshold, and Adam at once, while they are hot;
 * then the decoder's bias. */
#include "sae.h"

#include <math.h>

/* ------------------------------------------------------- lists by latent */

/* Entries of one kind, those of the samples or AuxK's, to their places, for the latents from .. to. */
static void place_entries(sae_batch *b, const sae_list *lists, int32_t from, int32_t to)
{
    for (int64_t p = 0; p < b->panels; p++) {
        const sae_list *l = &lists[p];
        for (int r = 0; r < PANEL_SAMPLES; r++)
            for (int32_t e = l->start[r]; e < l->start[r + 1]; e++) {
                int32_t j = l->latent[e];
                if (j < from || j >= to)
                    continue;
                int64_t i = b->at[j]++;
                b->row[i] = (int32_t)(p * PANEL_SAMPLES + r);
                b->z[i] = l->z[e];
                b->ga[i] = l->ga[e];
            }
    }
}

/* A counting sort: each thread fills the lists of a range of latents of its own. */
atoms_status sae_sort_by_latent(const sae_step *step)
{
    sae_batch *b = step->batch;
    int64_t s = step->sae->p.d_sae, n = 0;
    for (int64_t p = 0; p < b->panels; p++)
        n += b->list[p].n + b->aux[p].n;
    if (!sae_room_reserve(&b->room, n, &b->row, &b->z, &b->ga))
        return ATOMS_ERR_MEMORY;
    memset(b->start, 0, (size_t)(s + 1) * sizeof *b->start);
    for (int64_t p = 0; p < b->panels; p++) {
        for (int64_t e = 0; e < b->list[p].n; e++)
            b->start[b->list[p].latent[e] + 1]++;
        for (int64_t e = 0; e < b->aux[p].n; e++)
            b->start[b->aux[p].latent[e] + 1]++;
    }
    for (int64_t j = 0; j < s; j++)
        b->start[j + 1] += b->start[j];
    memcpy(b->at, b->start, (size_t)s * sizeof *b->at);
    int parts = step->ctx->p.num_threads;
#pragma omp parallel for num_threads(parts) schedule(static, 1)
    for (int part = 0; part < parts; part++) {
        int32_t from = (int32_t)(s * part / parts), to = (int32_t)(s * (part + 1) / parts);
        place_entries(b, b->list, from, to);
        for (int32_t j = from; j < to; j++)
            b->aux_start[j] = b->at[j];
        place_entries(b, b->aux, from, to);
    }
    return ATOMS_OK;
}

/* --------------------------------------------------------------- scalars */

/* What all latents' updates share. */
typedef struct {
    const sae_step *step;
    atoms_sae *sae;
    sae_adam adam, thr_adam; /* thr_adam: of the thresholds, at a rate of their own */
} update;

static sae_adam adam_of(const atoms_sae_params *p, float rate, int64_t step)
{
    double b1 = 1 - pow((double)p->beta1, (double)step), b2 = 1 - pow((double)p->beta2, (double)step);
    return (sae_adam){rate,   p->beta1, p->beta2, (float)(sqrt(b2) / b1), (float)((double)p->epsilon * sqrt(b2)),
                      p->clip};
}

static void adam_scalar(const sae_adam *a, const sae_vector *b, int64_t j, float g)
{
    b->m[j] = a->beta1 * b->m[j] + (1 - a->beta1) * g;
    b->v[j] = a->beta2 * b->v[j] + (1 - a->beta2) * g * g;
    float u = a->gain * b->m[j] / (sqrtf(b->v[j]) + a->epsilon);
    if (a->clip > 0)
        u = fmaxf(-a->clip, fminf(a->clip, u));
    b->w[j] -= a->learning_rate * u;
}

/* Latent j's scalars: its entries' factors for the rows of the gradients take the place of z and ga, its threshold
 * moves, and its bias' gradient is returned. band (2): counts the entries in its band, sums what they gain. */
static float scalar_gradients(const update *u, int64_t j, double *band)
{
    atoms_sae *sae = u->sae;
    sae_batch *b = u->step->batch;
    const atoms_sae_step_params *sp = u->step->params;
    bool jump = sae->p.activation == ATOMS_JUMPRELU;
    float l1 = sae->p.activation == ATOMS_RELU ? sp->l1_coefficient / (float)b->n : 0;
    float held = (float)(sae->p.n_prefixes - sae_prefix_of(sae, j)); /* by so many prefixes */
    float top = sae->thr.w[j] + sae->p.bandwidth, g_bias = 0, g_thr = 0;
    bool near = false;
    for (int64_t e = b->start[j]; e < b->start[j + 1]; e++) {
        bool aux = e >= b->aux_start[j];
        if (jump && !aux && b->z[e] <= top) {
            /* what the squared errors gain if this one is switched off */
            float gain = b->z[e] * (b->weight[b->row[e]] * held * b->z[e] - (float)b->n * b->ga[e]);
            g_thr += (gain - sp->l0_coefficient) / ((float)b->n * sae->p.bandwidth);
            band[0] += 1;
            band[1] += (double)gain;
            near = true;
        }
        b->z[e] *= 2.0f / (float)b->n;
        b->ga[e] += aux ? 0 : l1;
        g_bias += b->ga[e];
    }
    if (b->aux_start[j] > b->start[j])
        sae->last_fired[j] = sae->counters[1] + b->n;
    if (jump) {
        adam_scalar(&u->thr_adam, &sae->thr, j, g_thr);
        sae->thr.w[j] = fmaxf(0, sae->thr.w[j] + (near ? sp->threshold_shift : 0));
    }
    return g_bias;
}

/* --------------------------------------------------- gradients of the rows
 *
 * of latent j, over its entries e:  decoder  sum_e z[e] err[row[e]],  encoder  sum_e ga[e] xc[row[e]] */

/* How the latents are cut. A task's are one thread's; the gradients of a block of them are held at a time, and built up
 * from `strip` columns of all samples at a time.
 *
 * Mostly blocks are small, so that their gradients stay in the cache, and the samples' rows are read whole, which the
 * hardware prefetches. Where these rows are more than a cache holds and each is met often, it is the other way round: a
 * strip of all samples stays in the second-level cache while the gradients of many latents go by. */
typedef struct {
    int64_t task, block, strip;
} latent_cut;

static latent_cut cut_latents(const sae_step *step)
{
    const atoms_sae *sae = step->sae;
    const sae_batch *b = step->batch;
    int64_t s = sae->p.d_sae, width = ATOMS_MAX(sae->width, sae->out.width);
    if (b->dense)
        return (latent_cut){PART_LATENTS, PART_LATENTS, width};
    int64_t ld = ATOMS_MAX(sae->ld, sae->out.ld);
    if (b->start[s] < 64 * s || b->n * ld < (int64_t)3 << 19)
        return (latent_cut){PART_LATENTS, PART_LATENTS / 4, width};
    /* a thread's strips come into the cache once for each task; prefixes' latents are of unequal use */
    int64_t tasks = (sae->p.n_prefixes > 1 ? 2 : 1) * (int64_t)step->ctx->p.num_threads;
    int64_t most = ((int64_t)1 << 21) / ld; /* two times 8 MB */
    int64_t task = ATOMS_MIN(atoms_ceil_div(s, tasks), most) / PART_LATENTS * PART_LATENTS;
    int64_t strip = ((int64_t)1 << 18) / b->n / 16 * 16;
    task = ATOMS_MAX(task, PART_LATENTS);
    return (latent_cut){task, task, ATOMS_MIN(ATOMS_MAX(strip, 32), width)};
}

static void dense_row_gradients(const sae_step *step, const sae_rows *r)
{
    const sae_batch *b = step->batch;
    const sae_kernels *k = step->kernels;
    const sae_extent *out = &step->sae->out, in = {step->sae->p.d_in, step->sae->width, step->sae->ld};
    const float *err = sae_error_row(b, out->ld, 0, 0), *aux_err = sae_error_row(b, out->ld, 1, 0);
    sae_dense_rows(step, r, b->z, err, out, r->dec);
    sae_dense_rows(step, r, b->ga, b->xc, &in, r->enc);
    for (int64_t j = r->from; j < r->to; j++) {
        int64_t aux = b->aux_start[j], n = b->start[j + 1] - aux;
        if (n < 1)
            continue;
        k->add_rows(out->width, n, b->z + aux, aux_err, out->ld, b->row + aux, r->dec + (j - r->from) * out->ld);
        k->add_rows(in.width, n, b->ga + aux, b->xc, in.ld, b->row + aux, r->enc + (j - r->from) * in.ld);
    }
}

/* Some columns of all samples into the second-level cache, in order: entries meet their rows in none. */
static void fetch_strip(int64_t n, int64_t columns, const float *base, int64_t ld)
{
    for (int64_t i = 0; i < n; i++)
        for (int64_t c = 0; c < columns; c += 16)
            __builtin_prefetch(base + i * ld + c, 0, 2);
}

/* Adds the decoder's from columns c .. c + columns of the errors; each prefix has an error of its own. */
static void add_errors(const sae_step *step, const sae_rows *r, int64_t c, int64_t columns)
{
    const atoms_sae *sae = step->sae;
    const sae_batch *b = step->batch;
    const sae_kernels *k = step->kernels;
    int64_t ld = sae->out.ld;
    const float *aux_err = sae_error_row(b, ld, sae->p.n_prefixes, 0) + c;
    if (columns < sae->out.width)
        fetch_strip(b->n, columns, sae_error_row(b, ld, 0, 0) + c, ld);
    for (int64_t j = r->from; j < r->to; j++) {
        const float *err = sae_error_row(b, ld, sae_prefix_of(sae, j), 0) + c;
        int64_t e = b->start[j], aux = b->aux_start[j], end = b->start[j + 1];
        float *g = r->dec + (j - r->from) * ld + c;
        k->add_rows(columns, aux - e, b->z + e, err, ld, b->row + e, g);
        if (end > aux)
            k->add_rows(columns, end - aux, b->z + aux, aux_err, ld, b->row + aux, g);
    }
}

/* Adds the encoder's from columns c .. c + columns of the centred rows. */
static void add_samples(const sae_step *step, const sae_rows *r, int64_t c, int64_t columns)
{
    const sae_batch *b = step->batch;
    const sae_kernels *k = step->kernels;
    int64_t ld = step->sae->ld;
    if (columns < step->sae->width)
        fetch_strip(b->n, columns, b->xc + c, ld);
    for (int64_t j = r->from; j < r->to; j++)
        k->add_rows(columns, b->start[j + 1] - b->start[j], b->ga + b->start[j], b->xc + c, ld, b->row + b->start[j],
                    r->enc + (j - r->from) * ld + c);
}

/* Both gradients of the latents of r (one where tied). */
static void row_gradients(const sae_step *step, const sae_rows *r)
{
    int64_t width = step->sae->width, out = step->sae->out.width, n = r->to - r->from;
    memset(r->dec, 0, (size_t)(n * step->sae->out.ld) * sizeof *r->dec);
    if (r->enc != r->dec)
        memset(r->enc, 0, (size_t)(n * step->sae->ld) * sizeof *r->enc);
    if (step->batch->dense) {
        dense_row_gradients(step, r);
        return;
    }
    for (int64_t c = 0; c < out; c += r->strip)
        add_errors(step, r, c, ATOMS_MIN(r->strip, out - c));
    for (int64_t c = 0; c < width; c += r->strip)
        add_samples(step, r, c, ATOMS_MIN(r->strip, width - c));
}

/* ---------------------------------------------------------------- update */

/* Seed of the rounding of a matrix row's moments, for every step and row another: splitmix64's last lines. */
static uint32_t rounding_seed(const atoms_sae *sae, int64_t row)
{
    uint64_t h = (uint64_t)sae->counters[0] << 32 ^ (uint64_t)row;
    h = (h ^ h >> 30) * 0xbf58476d1ce4e5b9u;
    h = (h ^ h >> 27) * 0x94d049bb133111ebu;
    return (uint32_t)(h >> 32);
}

/* Latent j's rows and bias, from the gradients in r; its part of the decoder bias' gradient. */
static void update_latent(const update *u, const sae_rows *r, int64_t j)
{
    atoms_sae *sae = u->sae;
    sae_batch *b = u->step->batch;
    const sae_kernels *k = u->step->kernels;
    int64_t ld = sae->ld, at = j * ld, width = sae->width, d = sae->p.d_in;
    const sae_extent *out = &sae->out;
    const sae_matrix *dec = &sae->dec, *enc = &sae->enc;
    float *g_dec = r->dec + (j - r->from) * out->ld, *g_enc = r->enc + (j - r->from) * ld, g_bias = b->g_bias[j];
    if (g_bias != 0 && !sae->p.d_out)
        k->add_rows(width, 1, &g_bias, enc->w + at, 0, &(int32_t){0}, b->partial + j / PART_LATENTS * ld);
    k->adam_row(out->width, out->d, &u->adam, true, rounding_seed(sae, 2 * j), g_dec, dec->mv + j * out->ld,
                dec->w + j * out->ld);
    if (!sae->p.tied)
        k->adam_row(width, d, &u->adam, false, rounding_seed(sae, 2 * j + 1), g_enc, enc->mv + at, enc->w + at);
    adam_scalar(&u->adam, &sae->b_enc, j, g_bias);
    sae_screen_row(k, sae, j);
}

/* Everything of all latents. */
static atoms_status update_latents(const update *u)
{
    const atoms_sae *sae = u->sae;
    sae_batch *b = u->step->batch;
    int64_t s = sae->p.d_sae, ld = sae->ld, parts = atoms_ceil_div(s, PART_LATENTS);
    latent_cut cut = cut_latents(u->step);
    int threads = u->step->ctx->p.num_threads;
    /* a thread's share of b->rows: codes, then the block's rows of the decoder and, unless tied, the encoder */
    int64_t codes = PART_LATENTS * BLOCK_SAMPLES, own = cut.block * sae->out.ld;
    int64_t share = codes + own + (sae->p.tied ? 0 : cut.block * ld);
    if (!atoms_grow((void **)&b->rows, &b->rows_cap, threads * share, sizeof *b->rows))
        return ATOMS_ERR_MEMORY;
    memset(b->bands, 0, (size_t)(2 * parts) * sizeof *b->bands);
    memset(b->partial, 0, (size_t)(parts * ld) * sizeof *b->partial);
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
    for (int64_t first = 0; first < s; first += cut.task) {
        float *room = b->rows + atoms_thread() * share, *dec = room + codes;
        int64_t end = ATOMS_MIN(first + cut.task, s);
        for (int64_t from = first; from < end; from += cut.block) {
            sae_rows r = {from, ATOMS_MIN(from + cut.block, end), cut.strip, room, dec, dec + (sae->p.tied ? 0 : own)};
            for (int64_t j = r.from; j < r.to; j++)
                b->g_bias[j] = scalar_gradients(u, j, b->bands + 2 * (j / PART_LATENTS));
            row_gradients(u->step, &r);
            for (int64_t j = r.from; j < r.to; j++)
                update_latent(u, &r, j);
        }
    }
    return ATOMS_OK;
}

/* A transcoder's skip connection, in the room of the latents' gradients: a thread's holds as many rows of the decoder. */
static void update_skip(const update *u)
{
    const atoms_sae *sae = u->sae;
    const sae_extent *out = &sae->out;
    const sae_kernels *k = u->step->kernels;
    int64_t d = sae->p.skip ? sae->p.d_in : 0, rows = PART_LATENTS / 4;
#pragma omp parallel for num_threads(u->step->ctx->p.num_threads) schedule(dynamic, 1)
    for (int64_t from = 0; from < d; from += rows) {
        float *g = u->step->batch->rows + atoms_thread() * rows * out->ld;
        int64_t to = ATOMS_MIN(from + rows, d);
        sae_skip_gradients(u->step, from, to, g);
        for (int64_t j = from; j < to; j++)
            k->adam_row(out->width, out->d, &u->adam, false, rounding_seed(sae, 2 * sae->p.d_sae + j),
                        g + (j - from) * out->ld, sae->skip.mv + j * out->ld, sae->skip.w + j * out->ld);
    }
}

/* The decoder's bias: g = 2/n sum err - sum_j g_bias_j W_enc_j, the second part not of a transcoder */
static void update_bias(const update *u)
{
    const sae_batch *b = u->step->batch;
    int64_t parts = atoms_ceil_div(u->sae->p.d_sae, PART_LATENTS);
    for (int64_t c = 0; c < u->sae->out.d; c++) {
        float g = 2.0f / (float)b->n * b->err_sum[c];
        for (int64_t t = 0; t < (u->sae->p.d_out ? 0 : parts); t++)
            g -= b->partial[t * u->sae->ld + c];
        adam_scalar(&u->adam, &u->sae->b_dec, c, g);
    }
}

atoms_status sae_update(const sae_step *step, atoms_sae *sae, atoms_sae_stats *stats)
{
    const sae_batch *b = step->batch;
    int64_t number = sae->counters[0] + 1, parts = atoms_ceil_div(sae->p.d_sae, PART_LATENTS);
    update u = {step, sae, adam_of(&sae->p, step->params->learning_rate, number),
                adam_of(&sae->p, step->params->threshold_rate, number)};
    atoms_status status = update_latents(&u);
    if (status != ATOMS_OK)
        return status;
    update_skip(&u);
    update_bias(&u);
    sae->counters[0] = number;
    sae->counters[1] += b->n;
    double band[2] = {0, 0};
    for (int64_t t = 0; t < parts; t++) {
        band[0] += b->bands[2 * t];
        band[1] += b->bands[2 * t + 1];
    }
    stats->band = band[0] / (double)b->n;
    stats->band_gain = band[0] > 0 ? band[1] / band[0] : 0;
    return ATOMS_OK;
}
