/* sae_step.c: one optimiser step.
 *
 *   lists of active latents (sae_encode.c)
 *   -> by sample:  xhat - x, the loss, and its gradient by each listed activation
 *   -> AuxK:       dead latents' entries, with errors of their own
 *   -> by latent:  gradients of its two rows, its bias and threshold; Adam at once, while they are hot
 *   -> the decoder bias */
#include "sae.h"

#include <math.h>

/* ------------------------------------------------------------- by sample */

/* Which of the prefixes ends with latent j: the first that holds it. */
static int64_t prefix_of(const atoms_sae *sae, int64_t j)
{
    int64_t g = 0;
    while (j >= sae->p.prefix[g])
        g++;
    return g;
}

/* The errors of all prefixes of sample i: each starts from the one before. Then each becomes the sum of its
 * own and those of the wider ones, which is what its latents' gradients need. */
static void sample_gradients(const atoms_sae *sae, const sae_kernels *k, sae_batch *b, panel_list *l, int64_t i,
                             float *column)
{
    int64_t ld = sae->ld, width = sae->width, last = sae->p.n_prefixes - 1;
    int32_t end = l->start[i % PANEL + 1], bound[ATOMS_MAX_PREFIXES + 1];
    bound[0] = l->start[i % PANEL];
    for (int64_t g = 0; g <= last; g++) {
        float *err = sae_error_row(b, ld, g, i);
        bound[g + 1] = g < last ? bound[g] : end;
        while (g < last && bound[g + 1] < end && l->latent[bound[g + 1]] < sae->p.prefix[g])
            bound[g + 1]++;
        if (g == 0)
            k->negate(width, b->xc + i * ld, err);
        else
            memcpy(err, sae_error_row(b, ld, g - 1, i), (size_t)width * sizeof *err);
        k->add_rows(width, bound[g + 1] - bound[g], l->z + bound[g], sae->dec.w, ld, l->latent + bound[g], err);
        *(g == last ? &l->loss : &l->penalty) += k->error_sums(width, err, column);
    }
    const float one = 1;
    for (int64_t g = last; g >= 0; g--) {
        float *err = sae_error_row(b, ld, g, i);
        if (g < last)
            k->add_rows(width, 1, &one, sae_error_row(b, ld, g + 1, i), 0, &(int32_t){0}, err);
        k->dots(width, bound[g + 1] - bound[g], err, sae->dec.w, ld, l->latent + bound[g], l->ga + bound[g]);
    }
}

static bool dense_gradients(const atoms_ctx *ctx, const atoms_sae *sae, const sae_kernels *k, sae_batch *b, int64_t p,
                            float *column)
{
    int64_t end = ATOMS_MIN(b->n, (p + 1) * PANEL);
    for (int64_t i = p * PANEL; i < (p + 1) * PANEL; i++)
        k->negate(sae->width, b->xc + i * sae->ld, sae_error_row(b, sae->ld, 0, i));
    if (!sae_dense_panel(ctx, sae, b, p, false))
        return false;
    for (int64_t i = p * PANEL; i < end; i++)
        b->list[p].loss += k->error_sums(sae->width, sae_error_row(b, sae->ld, 0, i), column);
    return sae_dense_panel(ctx, sae, b, p, true);
}

static bool panel_gradients(const atoms_ctx *ctx, const atoms_sae *sae, const sae_kernels *k,
                            const atoms_sae_step_params *sp, sae_batch *b, int64_t p)
{
    panel_list *l = &b->list[p];
    int64_t end = ATOMS_MIN(b->n, (p + 1) * PANEL);
    bool ok = true;
    float *column = b->partial + p * sae->ld;
    double t0 = sae_now();
    memset(column, 0, (size_t)sae->ld * sizeof *column);
    if (l->n)
        memset(l->ga, 0, (size_t)l->n * sizeof *l->ga);
    l->loss = l->penalty = 0;
    if (b->dense)
        ok = dense_gradients(ctx, sae, k, b, p, column);
    else
        for (int64_t i = p * PANEL; i < end; i++)
            sample_gradients(sae, k, b, l, i, column);
    for (int64_t e = 0; e < l->n; e++)
        l->ga[e] *= 2.0f / (float)b->n;
    if (sae->p.activation == ATOMS_JUMPRELU)
        l->penalty += (double)sp->l0_coefficient * (double)l->n;
    for (int64_t e = 0; sae->p.activation == ATOMS_RELU && e < l->n; e++)
        l->penalty += (double)(sp->l1_coefficient * l->z[e]);
    l->seconds[2] = sae_now() - t0;
    return ok;
}

/* ------------------------------------------------------------------ AuxK */

/* The k largest positive of z (n values), by latent: entries of one sample. */
static void take_largest(const int32_t *latent, const float *z, float *sorted, int64_t n, int64_t k, panel_list *l)
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

static bool aux_panel(const atoms_sae *sae, const sae_kernels *k, const int32_t *dead, int64_t n_dead,
                      const atoms_sae_step_params *sp, sae_batch *b, int64_t p)
{
    int64_t ld = sae->ld, last = sae->p.n_prefixes - 1;
    float weight = sp->aux_coefficient * ATOMS_MIN(1, (float)n_dead / (float)sp->aux_k);
    panel_list *l = &b->aux[p];
    float *z = atoms_alloc(2 * n_dead, sizeof *z);
    float *column = atoms_alloc(ld, sizeof *column); /* of no use: x - xhat is taken as given */
    bool ok = z && column && sae_list_reserve(l, PANEL * ATOMS_MIN(n_dead, sp->aux_k));
    l->n = 0;
    for (int r = 0; ok && r < PANEL; r++) {
        int64_t i = p * PANEL + r;
        l->start[r] = (int32_t)l->n;
        if (i >= b->n)
            continue;
        const float *xc = b->xc + i * ld;
        for (int64_t j = 0; j < n_dead; j++)
            z[j] = sae->b_enc.w[dead[j]];
        k->dots(sae->width, n_dead, xc, sae->enc.w, ld, dead, z);
        take_largest(dead, z, z + n_dead, n_dead, sp->aux_k, l);
        float *err = sae_error_row(b, ld, last + 1, i);
        int64_t from = l->start[r], n = l->n - from;
        memcpy(err, sae_error_row(b, ld, last, i), (size_t)ld * sizeof *err);
        k->add_rows(sae->width, n, l->z + from, sae->dec.w, ld, l->latent + from, err);
        memset(column, 0, (size_t)ld * sizeof *column);
        b->list[p].penalty += (double)weight * k->error_sums(sae->width, err, column);
        memset(l->ga + from, 0, (size_t)n * sizeof *l->ga);
        k->dots(sae->width, n, err, sae->dec.w, ld, l->latent + from, l->ga + from);
        for (int64_t e = from; e < l->n; e++) {
            l->ga[e] *= weight * 2.0f / (float)b->n;
            l->z[e] *= weight; /* from here on only the decoder's gradient uses it */
        }
    }
    l->start[PANEL] = (int32_t)l->n;
    atoms_free(z);
    atoms_free(column);
    return ok;
}

static atoms_status add_aux(const atoms_ctx *ctx, const atoms_sae *sae, const sae_kernels *k,
                            const atoms_sae_step_params *sp, sae_batch *b)
{
    for (int64_t p = 0; p < b->panels; p++) {
        b->aux[p].n = 0;
        memset(b->aux[p].start, 0, sizeof b->aux[p].start);
    }
    if (sp->aux_k < 1)
        return ATOMS_OK;
    int32_t *dead = atoms_alloc(sae->p.d_sae, sizeof *dead);
    if (!dead)
        return ATOMS_ERR_MEMORY;
    int64_t n_dead = 0;
    for (int64_t j = 0; j < sae->p.d_sae; j++)
        if (sae->counters[1] - sae->last_fired[j] >= sp->dead_after)
            dead[n_dead++] = (int32_t)j;
    bool failed = false;
#pragma omp parallel for num_threads(ctx->p.num_threads) schedule(static) reduction(| : failed)
    for (int64_t p = 0; p < (n_dead ? b->panels : 0); p++)
        failed |= !aux_panel(sae, k, dead, n_dead, sp, b, p);
    atoms_free(dead);
    return failed ? ATOMS_ERR_MEMORY : ATOMS_OK;
}

/* ------------------------------------------------------------- by latent */

/* Entries of one kind, those of the samples or AuxK's, to their places, for the latents from .. to. */
static void place_entries(sae_batch *b, const panel_list *lists, int32_t from, int32_t to)
{
    for (int64_t p = 0; p < b->panels; p++) {
        const panel_list *l = &lists[p];
        for (int r = 0; r < PANEL; r++)
            for (int32_t e = l->start[r]; e < l->start[r + 1]; e++) {
                int32_t j = l->latent[e];
                if (j < from || j >= to)
                    continue;
                int64_t i = b->at[j]++;
                b->row[i] = (int32_t)(p * PANEL + r);
                b->z[i] = l->z[e];
                b->ga[i] = l->ga[e];
            }
    }
}

/* Entries by latent; within a latent by sample, AuxK's last. Each thread fills a range of latents of its own. */
static atoms_status sort_by_latent(const atoms_ctx *ctx, const atoms_sae *sae, sae_batch *b)
{
    int64_t s = sae->p.d_sae, n = 0;
    for (int64_t p = 0; p < b->panels; p++)
        n += b->list[p].n + b->aux[p].n;
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
    for (int64_t p = 0; p < b->panels; p++) {
        for (int64_t e = 0; e < b->list[p].n; e++)
            b->start[b->list[p].latent[e] + 1]++;
        for (int64_t e = 0; e < b->aux[p].n; e++)
            b->start[b->aux[p].latent[e] + 1]++;
    }
    for (int64_t j = 0; j < s; j++)
        b->start[j + 1] += b->start[j];
    memcpy(b->at, b->start, (size_t)s * sizeof *b->at);
    int parts = ctx->p.num_threads;
#pragma omp parallel for num_threads(ctx->p.num_threads) schedule(static, 1)
    for (int part = 0; part < parts; part++) {
        int32_t from = (int32_t)(s * part / parts), to = (int32_t)(s * (part + 1) / parts);
        place_entries(b, b->list, from, to);
        for (int32_t j = from; j < to; j++)
            b->aux_start[j] = b->at[j];
        place_entries(b, b->aux, from, to);
    }
    return ATOMS_OK;
}

typedef struct {
    atoms_adam adam, thr_adam;
    const atoms_sae_step_params *sp;
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

/* Latent j's scalars: its entries' factors for the rows of the gradients take the place of z and ga, its
 * threshold moves, and its bias' gradient is returned. */
static float scalar_gradients(atoms_sae *sae, const update *u, sae_batch *b, int64_t j, double *band)
{
    bool jump = sae->p.activation == ATOMS_JUMPRELU;
    float l1 = sae->p.activation == ATOMS_RELU ? u->sp->l1_coefficient / (float)b->n : 0;
    float held = (float)(sae->p.n_prefixes - prefix_of(sae, j)); /* by so many prefixes */
    float top = sae->thr.w[j] + sae->p.bandwidth, g_bias = 0, g_thr = 0;
    bool near = false;
    for (int64_t e = b->start[j]; e < b->start[j + 1]; e++) {
        bool aux = e >= b->aux_start[j];
        if (jump && !aux && b->z[e] <= top) {
            /* what the squared errors gain if this one is switched off */
            float gain = b->z[e] * (held * b->z[e] - (float)b->n * b->ga[e]);
            g_thr += (gain - u->sp->l0_coefficient) / ((float)b->n * sae->p.bandwidth);
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
        sae->thr.w[j] = fmaxf(0, sae->thr.w[j] + (near ? u->sp->threshold_shift : 0));
        int64_t silent = sae->counters[1] + b->n - sae->last_fired[j];
        if (u->sp->silent_after > 0 && silent >= u->sp->silent_after)
            sae->thr.w[j] *= u->sp->silent_factor;
        if (u->sp->rise_after > 0 && silent >= u->sp->rise_after)
            sae->b_enc.w[j] += u->sp->rise;
    }
    return g_bias;
}

/* How the latents are cut: a task's are one thread's, the gradients of a block's are held at a time, and built
 * up from `strip` columns of all samples. Rows go by whole, which the hardware foresees, and the block stays in
 * the cache, unless the samples' rows are more than a cache likes and each is met so often that it pays to let
 * them stay, a strip at a time, and the gradients of many latents go by. */
typedef struct {
    int64_t task, block, strip;
} latent_cut;

static latent_cut cut_latents(const atoms_ctx *ctx, const atoms_sae *sae, const sae_batch *b)
{
    int64_t s = sae->p.d_sae;
    if (b->dense)
        return (latent_cut){PART, PART, sae->width};
    if (b->start[s] < 64 * s || b->n * sae->ld < (int64_t)3 << 19)
        return (latent_cut){PART, PART / 4, sae->width};
    /* a thread's strips come into the cache once for each task; prefixes' latents are of unequal use */
    int64_t tasks = (sae->p.n_prefixes > 1 ? 2 : 1) * (int64_t)ctx->p.num_threads;
    int64_t most = ((int64_t)1 << 21) / sae->ld; /* two times 8 MB */
    int64_t task = ATOMS_MAX(ATOMS_MIN((s + tasks - 1) / tasks, most) / PART * PART, PART);
    int64_t strip = ((int64_t)1 << 18) / b->n / 16 * 16;
    return (latent_cut){task, task, ATOMS_MIN(ATOMS_MAX(strip, 32), sae->width)};
}

static void dense_row_gradients(const atoms_ctx *ctx, const atoms_sae *sae, const sae_kernels *k, const sae_batch *b,
                                int64_t from, int64_t to, float *tile, float *dec, float *enc)
{
    int64_t ld = sae->ld;
    const float *err = sae_error_row(b, ld, 0, 0), *aux_err = sae_error_row(b, ld, 1, 0);
    sae_dense_rows(ctx, sae, b, from, to, b->z, err, tile, dec);
    sae_dense_rows(ctx, sae, b, from, to, b->ga, b->xc, tile, enc);
    for (int64_t j = from; j < to; j++) {
        int64_t aux = b->aux_start[j], n = b->start[j + 1] - aux;
        if (n < 1)
            continue;
        k->add_rows(sae->width, n, b->z + aux, aux_err, ld, b->row + aux, dec + (j - from) * ld);
        k->add_rows(sae->width, n, b->ga + aux, b->xc, ld, b->row + aux, enc + (j - from) * ld);
    }
}

/* Some columns of all samples into the second-level cache, in order: entries meet their rows in none. */
static void fetch_strip(int64_t n, int64_t columns, const float *base, int64_t ld)
{
    for (int64_t i = 0; i < n; i++)
        for (int64_t c = 0; c < columns; c += 16)
            __builtin_prefetch(base + i * ld + c, 0, 2);
}

/* Gradient rows of the latents from .. to, into dec and enc (one and the same where tied). */
static void row_gradients(const atoms_ctx *ctx, const atoms_sae *sae, const sae_kernels *k, const sae_batch *b,
                          int64_t from, int64_t to, int64_t strip, float *tile, float *dec, float *enc)
{
    int64_t ld = sae->ld;
    memset(dec, 0, (size_t)((to - from) * ld) * sizeof *dec);
    if (enc != dec)
        memset(enc, 0, (size_t)((to - from) * ld) * sizeof *enc);
    if (b->dense) {
        dense_row_gradients(ctx, sae, k, b, from, to, tile, dec, enc);
        return;
    }
    for (int64_t c = 0; c < sae->width; c += strip) {
        int64_t columns = ATOMS_MIN(strip, sae->width - c);
        const float *aux_err = sae_error_row(b, ld, sae->p.n_prefixes, 0) + c;
        if (strip < sae->width)
            fetch_strip(b->n, columns, sae_error_row(b, ld, 0, 0) + c, ld);
        for (int64_t j = from; j < to; j++) {
            const float *err = sae_error_row(b, ld, prefix_of(sae, j), 0) + c;
            int64_t e = b->start[j], aux = b->aux_start[j], end = b->start[j + 1];
            float *g = dec + (j - from) * ld + c;
            k->add_rows(columns, aux - e, b->z + e, err, ld, b->row + e, g);
            if (end > aux)
                k->add_rows(columns, end - aux, b->z + aux, aux_err, ld, b->row + aux, g);
        }
    }
    for (int64_t c = 0; c < sae->width; c += strip) {
        int64_t columns = ATOMS_MIN(strip, sae->width - c);
        if (strip < sae->width)
            fetch_strip(b->n, columns, b->xc + c, ld);
        for (int64_t j = from; j < to; j++)
            k->add_rows(columns, b->start[j + 1] - b->start[j], b->ga + b->start[j], b->xc + c, ld,
                        b->row + b->start[j], enc + (j - from) * ld + c);
    }
}

/* Seed of the rounding of a matrix row's moments, for every step and row another: splitmix64's last lines. */
static uint32_t rounding_seed(const atoms_sae *sae, int64_t row)
{
    uint64_t h = (uint64_t)sae->counters[0] << 32 ^ (uint64_t)row;
    h = (h ^ h >> 30) * 0xbf58476d1ce4e5b9u;
    h = (h ^ h >> 27) * 0x94d049bb133111ebu;
    return (uint32_t)(h >> 32);
}

static void update_latent(atoms_sae *sae, const sae_kernels *k, const atoms_adam *a, int64_t j, float g_bias,
                          float *g_dec, float *g_enc, float *bias_part)
{
    int64_t at = j * sae->ld, width = sae->width, d = sae->p.d_in;
    const adam_matrix *dec = &sae->dec, *enc = &sae->enc;
    if (g_bias != 0)
        k->add_rows(width, 1, &g_bias, enc->w + at, 0, &(int32_t){0}, bias_part);
    k->adam_row(width, d, a, true, rounding_seed(sae, 2 * j), g_dec, dec->mv + at, dec->w + at);
    if (!sae->p.tied)
        k->adam_row(width, d, a, false, rounding_seed(sae, 2 * j + 1), g_enc, enc->mv + at, enc->w + at);
    adam_scalar(a, &sae->b_enc, j, g_bias);
    sae_screen_row(k, sae, j);
}

static atoms_status update_all(const atoms_ctx *ctx, atoms_sae *sae, const sae_kernels *k, const update *u,
                               sae_batch *b, double *band)
{
    int64_t s = sae->p.d_sae, ld = sae->ld, parts = (s + PART - 1) / PART;
    latent_cut cut = cut_latents(ctx, sae, b);
    int threads = ctx->p.num_threads;
    int64_t matrices = sae->p.tied ? 1 : 2;
    int64_t share = matrices * cut.block * ld + PANEL * SLICE; /* a thread's */
    if (threads * share > b->rows_cap) {
        atoms_free(b->rows);
        b->rows = atoms_alloc(threads * share, sizeof *b->rows);
        b->rows_cap = b->rows ? threads * share : 0;
        if (!b->rows)
            return ATOMS_ERR_MEMORY;
    }
    memset(b->bands, 0, (size_t)(2 * parts) * sizeof *b->bands);
    memset(b->partial, 0, (size_t)(parts * ld) * sizeof *b->partial);
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
    for (int64_t first = 0; first < s; first += cut.task) {
        float *tile = b->rows + atoms_thread() * share, *dec = tile + PANEL * SLICE,
              *enc = dec + (matrices - 1) * cut.block * ld;
        int64_t end = ATOMS_MIN(first + cut.task, s);
        for (int64_t from = first; from < end; from += cut.block) {
            int64_t to = ATOMS_MIN(from + cut.block, end);
            for (int64_t j = from; j < to; j++)
                b->g_bias[j] = scalar_gradients(sae, u, b, j, b->bands + 2 * (j / PART));
            row_gradients(ctx, sae, k, b, from, to, cut.strip, tile, dec, enc);
            for (int64_t j = from; j < to; j++)
                update_latent(sae, k, &u->adam, j, b->g_bias[j], dec + (j - from) * ld, enc + (j - from) * ld,
                              b->partial + j / PART * ld);
        }
    }
    for (int64_t t = 0; t < parts; t++) {
        band[0] += b->bands[2 * t];
        band[1] += b->bands[2 * t + 1];
    }
    return ATOMS_OK;
}

/* ------------------------------------------------------------------ step */

static void set_floors(const atoms_sae *sae, sae_batch *b)
{
    for (int64_t j = 0; j < sae->p.d_sae; j++)
        b->floor[j] = sae->p.activation == ATOMS_JUMPRELU ? sae->thr.w[j]
                      : sae->p.activation == ATOMS_RELU   ? 0
                                                          : b->topk_floor;
}

static void batch_statistics(const atoms_sae *sae, const sae_batch *b, atoms_sae_stats *stats)
{
    double n = (double)b->n, square = 0, mean = 0;
    for (int64_t p = 0; p < b->panels; p++) {
        square += b->sums[p * (1 + sae->width)];
        stats->squared_error += b->list[p].loss / n;
        stats->penalty += b->list[p].penalty / n;
        stats->l0 += (double)b->list[p].n / n;
        stats->candidates += b->list[p].candidates / n;
        for (int k = 0; k < 3; k++)
            stats->seconds[1 + k] += b->list[p].seconds[k];
    }
    for (int64_t c = 0; c < sae->p.d_in; c++) {
        double column = 0;
        for (int64_t p = 0; p < b->panels; p++)
            column += b->sums[p * (1 + sae->width) + 1 + c];
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
static void update_bias(atoms_sae *sae, const atoms_adam *adam, const sae_batch *b, const float *err_sum)
{
    int64_t parts = (sae->p.d_sae + PART - 1) / PART;
    for (int64_t c = 0; c < sae->p.d_in; c++) {
        float g = 2.0f / (float)b->n * err_sum[c];
        for (int64_t t = 0; t < parts; t++)
            g -= b->partial[t * sae->ld + c];
        adam_scalar(adam, &sae->b_dec, c, g);
    }
}

static atoms_adam adam_of(const atoms_sae_params *p, float rate, int64_t step)
{
    double b1 = 1 - pow((double)p->beta1, (double)step), b2 = 1 - pow((double)p->beta2, (double)step);
    atoms_adam a = {rate, p->beta1, p->beta2, (float)(sqrt(b2) / b1), (float)((double)p->epsilon * sqrt(b2)), p->clip};
    return a;
}

atoms_status atoms_sae_step(const atoms_ctx *ctx, int64_t n, atoms_sae *sae, const atoms_batch *x,
                            const atoms_sae_step_params *sp, float *err, atoms_sae_stats *stats)
{
    memset(stats, 0, sizeof *stats);
    stats->bad_row = -1;
    bool topk = sae->p.activation >= ATOMS_TOPK;
    if (n < 1 || (topk && (sp->k < 1 || sp->k > sae->p.d_sae)) || sp->aux_k < 0)
        return ATOMS_ERR_ARGUMENT;
    const sae_kernels *k = ctx->kernels->sae;
    sae_batch *b = &sae->batch;
    int64_t ld = sae->ld;
    float *err_sum = atoms_calloc(ld, sizeof *err_sum);
    int64_t errors = sae->p.n_prefixes + (sp->aux_k > 0);
    atoms_status status = err_sum ? sae_batch_reserve(sae, b, n, errors) : ATOMS_ERR_MEMORY;
    double t0 = sae_now();
    if (status == ATOMS_OK)
        status = sae_prepare(ctx, sae, x, n, b, stats);
    stats->seconds[0] = sae_now() - t0;
    if (status == ATOMS_OK) {
        set_floors(sae, b);
        status = sae_list_active(ctx, sae, b);
    }
    if (status == ATOMS_OK && topk)
        status = sae_select_topk(ctx, sae, b, sp->k);
    if (status != ATOMS_OK)
        goto done;

    b->dense = sae_is_dense(sae, b);
    bool failed = false;
#pragma omp parallel for num_threads(ctx->p.num_threads) schedule(dynamic, 1) reduction(| : failed)
    for (int64_t p = 0; p < b->panels; p++)
        failed |= !panel_gradients(ctx, sae, k, sp, b, p);
    if (failed) {
        status = ATOMS_ERR_MEMORY;
        goto done;
    }
    for (int64_t p = 0; p < b->panels; p++)
        for (int64_t c = 0; c < ld; c++)
            err_sum[c] += b->partial[p * ld + c];
    status = add_aux(ctx, sae, k, sp, b);
    if (status != ATOMS_OK)
        goto done;
    batch_statistics(sae, b, stats);

    double t1 = sae_now();
    status = sort_by_latent(ctx, sae, b);
    stats->seconds[4] = sae_now() - t1;
    if (status != ATOMS_OK)
        goto done;
    t1 = sae_now();
    int64_t step = sae->counters[0] + 1;
    update u = {adam_of(&sae->p, sp->learning_rate, step), adam_of(&sae->p, sp->threshold_rate, step), sp};
    double band[2] = {0, 0};
    status = update_all(ctx, sae, k, &u, b, band);
    if (status != ATOMS_OK)
        goto done;
    update_bias(sae, &u.adam, b, err_sum);
    sae->counters[0] = step;
    sae->counters[1] += n;
    stats->band = band[0] / (double)n;
    stats->band_gain = band[0] > 0 ? band[1] / band[0] : 0;
    const float *last = sae_error_row(b, ld, sae->p.n_prefixes - 1, 0);
    for (int64_t i = 0; err && i < n; i++)
        memcpy(err + i * sae->p.d_in, last + i * ld, (size_t)sae->p.d_in * sizeof *err);
    stats->seconds[5] = sae_now() - t1;
done:
    atoms_free(err_sum);
    return status;
}
