/* gradients.c: by sample, xhat - x, the loss, and its gradient by each listed activation; then AuxK. */
#include "sae.h"

#include <math.h>

/* ------------------------------------------------------ listed activations */

/* Sample i's weight in all gradients, from its squared error: one row far out moves all of its latents as far as each
 * would have to go alone. */
static void weigh_sample(const sae_step *step, sae_list *l, int64_t i, double square)
{
    sae_batch *b = step->batch;
    const float *xc = b->xc + i * step->sae->in.ld;
    float norm = 0;
    step->kernels->dots(step->sae->in.width, 1, xc, xc, 0, &(int32_t){0}, &norm);
    double size = sqrt(square * (double)norm), limit = step->params->row_limit;
    b->weight[i] = limit > 0 && size > limit ? (float)(limit / size) : 1;
    l->roots += sqrt((double)b->weight[i] * size);
}

/* By sample i's weight, its error err, and what of it was added to `column`. */
static void apply_weight(const sae_step *step, int64_t i, float *err, float *column)
{
    float weight = step->batch->weight[i], less = weight - 1;
    if (less == 0)
        return;
    step->kernels->add_rows(step->sae->out.width, 1, &less, err, 0, &(int32_t){0}, column);
    for (int64_t c = 0; c < step->sae->out.width; c++)
        err[c] *= weight;
}

/* Sample i's error before any latent: b_dec less what is rebuilt. */
static void begin_error(const sae_step *step, int64_t i, float *err)
{
    step->kernels->negate(step->sae->out.width, step->batch->yc + i * step->sae->out.ld, err);
}

/* Those of panel p, with the skip connection. */
static void begin_errors(const sae_step *step, int64_t p)
{
    for (int64_t i = p * PANEL_SAMPLES; i < (p + 1) * PANEL_SAMPLES; i++)
        begin_error(step, i, sae_error_row(step->batch, step->sae->out.ld, 0, i));
    if (step->sae->p.skip)
        sae_skip_decode(step, p);
}

/* The errors of all prefixes of sample i: each starts from the one before. Then each becomes the sum of its own and
 * those of the wider ones, which is what its latents' gradients need. column: (out.ld,), to which the errors are added. */
static void sample_gradients(const sae_step *step, sae_list *l, int64_t i, float *column)
{
    const atoms_sae *sae = step->sae;
    const sae_kernels *k = step->kernels;
    sae_batch *b = step->batch;
    int64_t ld = sae->out.ld, width = sae->out.width, last = sae->p.n_prefixes - 1;
    int32_t end = l->start[i % PANEL_SAMPLES + 1], bound[ATOMS_MAX_PREFIXES + 1];
    bound[0] = l->start[i % PANEL_SAMPLES];
    for (int64_t g = 0; g <= last; g++) {
        float *err = sae_error_row(b, ld, g, i);
        bound[g + 1] = g < last ? bound[g] : end;
        while (g < last && bound[g + 1] < end && l->latent[bound[g + 1]] < sae->p.prefix[g])
            bound[g + 1]++;
        if (g == 0 && !sae->p.skip) /* whose panel has begun its errors */
            begin_error(step, i, err);
        else if (g > 0)
            memcpy(err, sae_error_row(b, ld, g - 1, i), (size_t)width * sizeof *err);
        k->add_rows(width, bound[g + 1] - bound[g], l->z + bound[g], sae->dec.w, ld, l->latent + bound[g], err);
        double square = k->error_sums(width, err, column);
        *(g == last ? &l->loss : &l->penalty) += square;
        if (g == last)
            weigh_sample(step, l, i, square);
    }
    for (int64_t g = 0; g <= last; g++)
        apply_weight(step, i, sae_error_row(b, ld, g, i), column);
    const float one = 1;
    for (int64_t g = last; g >= 0; g--) {
        float *err = sae_error_row(b, ld, g, i);
        if (g < last)
            k->add_rows(width, 1, &one, sae_error_row(b, ld, g + 1, i), 0, &(int32_t){0}, err);
        k->dots(width, bound[g + 1] - bound[g], err, sae->dec.w, ld, l->latent + bound[g], l->ga + bound[g]);
    }
}

/* The same for all of panel p, by matrix products. */
static void dense_gradients(const sae_step *step, int64_t p, float *column)
{
    const sae_kernels *k = step->kernels;
    sae_batch *b = step->batch;
    int64_t width = step->sae->out.width, ld = step->sae->out.ld, end = ATOMS_MIN(b->n, (p + 1) * PANEL_SAMPLES);
    begin_errors(step, p);
    sae_dense_decode(step, p);
    for (int64_t i = p * PANEL_SAMPLES; i < end; i++) {
        double square = k->error_sums(width, sae_error_row(b, ld, 0, i), column);
        b->list[p].loss += square;
        weigh_sample(step, &b->list[p], i, square);
        apply_weight(step, i, sae_error_row(b, ld, 0, i), column);
    }
    sae_dense_gradients(step, p);
}

/* Samples from .. to of panel p. column: to which their errors are added. */
static void some_gradients(const sae_step *step, sae_list *l, int64_t p, int64_t from, int64_t to, float *column)
{
    const sae_batch *b = step->batch;
    int32_t first = l->start[from - p * PANEL_SAMPLES], last = l->start[to - p * PANEL_SAMPLES];
    if (last > first)
        memset(l->ga + first, 0, (size_t)(last - first) * sizeof *l->ga);
    if (b->dense)
        dense_gradients(step, p, column);
    else
        for (int64_t i = from; i < ATOMS_MIN(to, b->n); i++)
            sample_gradients(step, l, i, column);
    for (int32_t e = first; e < last; e++)
        l->ga[e] *= 2.0f / (float)b->n;
}

/* What panel p's entries cost, and the lowest of them. */
static void finish_panel(const sae_step *step, int64_t p)
{
    const atoms_sae *sae = step->sae;
    sae_list *l = &step->batch->list[p];
    if (sae->p.activation == ATOMS_JUMPRELU)
        l->penalty += (double)step->params->l0_coefficient * (double)l->n;
    for (int64_t e = 0; sae->p.activation == ATOMS_RELU && e < l->n; e++)
        l->penalty += (double)(step->params->l1_coefficient * l->z[e]);
    l->lowest = 3e38f;
    for (int64_t e = 0; e < l->n; e++)
        l->lowest = ATOMS_MIN(l->lowest, l->z[e]);
}

/* The panel's part of err_sum, zeros; no sums yet. */
static float *begin_panel(const sae_step *step, int64_t p)
{
    sae_list *l = &step->batch->list[p];
    int64_t ld = step->sae->out.ld;
    float *column = step->batch->partial + p * ld;
    memset(column, 0, (size_t)ld * sizeof *column);
    l->loss = l->penalty = l->roots = 0;
    return column;
}

static void panel_gradients(const sae_step *step, int64_t p)
{
    sae_list *l = &step->batch->list[p];
    double t0 = sae_now();
    if (step->sae->p.skip && !step->batch->dense)
        begin_errors(step, p);
    some_gradients(step, l, p, p * PANEL_SAMPLES, (p + 1) * PANEL_SAMPLES, begin_panel(step, p));
    finish_panel(step, p);
    l->decode = sae_now() - t0;
}

/* Of panels whose samples several tasks have had: the sums over them, in the order in which one task adds them. An error
 * that a weight has scaled is decoded once more; few are. */
static void sum_panel(const sae_step *step, int64_t p)
{
    const sae_kernels *k = step->kernels;
    sae_batch *b = step->batch;
    sae_list *l = &b->list[p];
    int64_t width = step->sae->out.width, ld = step->sae->out.ld;
    float again[width] __attribute__((aligned(64))), *column = begin_panel(step, p);
    for (int64_t i = p * PANEL_SAMPLES; i < ATOMS_MIN(b->n, (p + 1) * PANEL_SAMPLES); i++) {
        float *err = sae_error_row(b, ld, 0, i);
        if (b->weight[i] != 1) {
            int32_t first = l->start[i % PANEL_SAMPLES], last = l->start[i % PANEL_SAMPLES + 1];
            err = again;
            begin_error(step, i, err);
            k->add_rows(width, last - first, l->z + first, step->sae->dec.w, ld, l->latent + first, err);
        }
        double square = k->error_sums(width, err, column);
        l->loss += square;
        weigh_sample(step, l, i, square);
        apply_weight(step, i, err, column);
    }
    finish_panel(step, p);
}

/* The same by tasks of `some` samples, and what these leave to be summed. */
static void split_gradients(const sae_step *step, int64_t some)
{
    sae_batch *b = step->batch;
    int64_t groups = PANEL_SAMPLES / some;
    int threads = step->ctx->p.num_threads;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
    for (int64_t t = 0; t < b->panels * groups; t++) {
        int64_t p = t / groups, from = p * PANEL_SAMPLES + t % groups * some;
        sae_list mine = b->list[p]; /* its sums are not wanted */
        float column[step->sae->out.width] __attribute__((aligned(64)));
        memset(column, 0, sizeof column);
        some_gradients(step, &mine, p, from, from + some, column);
    }
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
    for (int64_t p = 0; p < b->panels; p++)
        sum_panel(step, p);
}

/* ------------------------------------------------------------------- AuxK */

/* The k largest positive of z (n values), by latent: entries of one sample. */
static void take_largest(const int32_t *latent, const float *z, float *sorted, int64_t n, int64_t k, sae_list *l)
{
    float cut = 0;
    int64_t ties = 0;
    if (n > k) {
        memcpy(sorted, z, (size_t)n * sizeof *z);
        cut = ATOMS_MAX(0, atoms_kth_largest(sorted, n, k));
        ties = k;
        for (int64_t i = 0; i < n; i++)
            ties -= z[i] > cut;
    }
    for (int64_t i = 0; i < n; i++) {
        bool tie = z[i] == cut && cut > 0 && ties > 0;
        if (z[i] > cut || tie) {
            ties -= tie;
            l->latent[l->n] = latent[i];
            l->z[l->n++] = z[i];
        }
    }
}

/* What the dead latents, n_dead of them, make of sample i's error: entries, their gradients, an error of its own. */
static void aux_sample(const sae_step *step, sae_list *l, int64_t n_dead, int64_t i, float weight)
{
    const atoms_sae *sae = step->sae;
    const sae_kernels *k = step->kernels;
    sae_batch *b = step->batch;
    const sae_scratch *s = &b->scratch[atoms_thread()];
    int64_t ld = sae->out.ld, width = sae->out.width, last = sae->p.n_prefixes - 1, from = l->n;
    for (int64_t j = 0; j < n_dead; j++)
        s->dead_z[j] = sae->b_enc.w[b->dead[j]];
    k->dots(sae->in.width, n_dead, b->xc + i * sae->in.ld, sae->enc.w, sae->in.ld, b->dead, s->dead_z);
    take_largest(b->dead, s->dead_z, s->dead_z + n_dead, n_dead, step->params->aux_k, l);
    float *err = sae_error_row(b, ld, last + 1, i);
    int64_t n = l->n - from;
    memcpy(err, sae_error_row(b, ld, last, i), (size_t)ld * sizeof *err);
    for (int64_t c = 0; b->weight[i] < 1 && c < width; c++)
        err[c] /= b->weight[i];
    k->add_rows(width, n, l->z + from, sae->dec.w, ld, l->latent + from, err);
    memset(s->column, 0, (size_t)ld * sizeof *s->column); /* of no use: x - xhat is taken as given */
    b->list[i / PANEL_SAMPLES].penalty += (double)weight * k->error_sums(width, err, s->column);
    memset(l->ga + from, 0, (size_t)n * sizeof *l->ga);
    k->dots(width, n, err, sae->dec.w, ld, l->latent + from, l->ga + from);
    weight *= b->weight[i];
    for (int64_t e = from; e < l->n; e++) {
        l->ga[e] *= weight * 2.0f / (float)b->n;
        l->z[e] *= weight; /* from here on only the decoder's gradient uses it */
    }
}

static bool aux_panel(const sae_step *step, int64_t n_dead, int64_t p)
{
    sae_list *l = &step->batch->aux[p];
    int64_t aux_k = step->params->aux_k;
    float weight = step->params->aux_coefficient * ATOMS_MIN(1, (float)n_dead / (float)aux_k);
    if (!sae_room_reserve(&l->room, PANEL_SAMPLES * ATOMS_MIN(n_dead, aux_k), &l->latent, &l->z, &l->ga))
        return false;
    for (int r = 0; r < PANEL_SAMPLES; r++) {
        l->start[r] = (int32_t)l->n;
        if (p * PANEL_SAMPLES + r < step->batch->n)
            aux_sample(step, l, n_dead, p * PANEL_SAMPLES + r, weight);
    }
    l->start[PANEL_SAMPLES] = (int32_t)l->n;
    return true;
}

static atoms_status aux_gradients(const sae_step *step)
{
    const atoms_sae *sae = step->sae;
    sae_batch *b = step->batch;
    for (int64_t p = 0; p < b->panels; p++) {
        b->aux[p].n = 0;
        memset(b->aux[p].start, 0, sizeof b->aux[p].start);
    }
    if (step->params->aux_k < 1)
        return ATOMS_OK;
    int64_t n_dead = 0;
    for (int64_t j = 0; j < sae->p.d_sae; j++)
        if (sae->counters[1] - sae->last_fired[j] >= step->params->dead_after)
            b->dead[n_dead++] = (int32_t)j;
    bool failed = false;
#pragma omp parallel for num_threads(step->ctx->p.num_threads) schedule(static) reduction(| : failed)
    for (int64_t p = 0; p < (n_dead ? b->panels : 0); p++)
        failed |= !aux_panel(step, n_dead, p);
    return failed ? ATOMS_ERR_MEMORY : ATOMS_OK;
}

atoms_status sae_gradients(const sae_step *step)
{
    sae_batch *b = step->batch;
    int64_t ld = step->sae->out.ld;
    b->dense = sae_is_dense(step);
    int64_t some = PANEL_SAMPLES, threads = step->ctx->p.num_threads;
    while (threads > 2 && some > 4 && b->panels * PANEL_SAMPLES < 4 * threads * some)
        some /= 2;
    double t0 = sae_now();
    /* a skip connection is decoded by whole panels */
    if (some < PANEL_SAMPLES && !b->dense && step->sae->p.n_prefixes == 1 && !step->sae->p.skip) {
        split_gradients(step, some);
        for (int64_t p = 0; p < b->panels; p++)
            b->list[p].decode = (sae_now() - t0) * (double)threads / (double)b->panels;
    } else {
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
        for (int64_t p = 0; p < b->panels; p++)
            panel_gradients(step, p);
    }
    memset(b->err_sum, 0, (size_t)ld * sizeof *b->err_sum);
    for (int64_t p = 0; p < b->panels; p++)
        for (int64_t c = 0; c < ld; c++)
            b->err_sum[c] += b->partial[p * ld + c];
    return aux_gradients(step);
}
