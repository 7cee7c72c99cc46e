/* update.c: by latent, the gradients of its two rows, its bias and its threshold, and Adam at once, while they are hot;
 * then the decoder's bias. */
#include "sae.h"

#include <math.h>

#define BIAS_COLUMNS 64   /* of the decoder's bias, that one task sums */
#define BIAS_ALONE 262144 /* values, below which one thread sums as fast as several start */
#define ADAM_ENTRIES 24   /* Adam on a latent's rows takes as long as so many entries' gradients */
#define SKIP_ROWS 16      /* of a skip connection, that one task updates */

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
typedef enum {
    TOGETHER, /* one region; a task's latents are whole parts */
    APART,    /* for many threads: parts' sums in a region of their own, then smaller tasks, of equal cost */
    STRIPS    /* the same for strips: a task's gradients are of one strip, and Adam has a region of its own */
} cut_kind;

typedef struct {
    cut_kind kind;
    int64_t tasks, task, block, strip;
    int64_t strips, units, ranges; /* STRIPS: those of a decoder's row, with the encoder's; how often latents are cut */
} latent_cut;

/* Where the first of `tasks` tasks of about equal cost begins that is not before number t, where a latent costs as much
 * as so many entries. */
static int64_t equal_cost(const sae_batch *b, int64_t s, int64_t t, int64_t tasks, int64_t latent)
{
    int64_t low = 0, high = s, total = b->start[s] + latent * s;
    while (low < high) {
        int64_t j = low + (high - low) / 2;
        if ((b->start[j] + latent * j) * tasks < t * total)
            low = j + 1;
        else
            high = j;
    }
    return low;
}

/* Strips narrow enough for half of a second-level cache, and so many ranges of latents that the threads have about equal
 * work; each fetches its strip, which takes about an eighth of the time for all latents. */
static latent_cut cut_strips(const sae_step *step, int64_t strip)
{
    const atoms_sae *sae = step->sae;
    int64_t s = sae->p.d_sae, threads = step->ctx->p.num_threads, strips = atoms_ceil_div(sae->out.width, strip);
    int64_t units = strips + (sae->p.tied ? 0 : atoms_ceil_div(sae->in.width, strip)), ranges = 1;
    double least = 1e300;
    for (int64_t r = 1; r <= 16; r++) {
        double rounds = (double)atoms_ceil_div(units * r, threads) * (1.0 / (double)r + 0.125);
        if (rounds < least) {
            least = rounds;
            ranges = r;
        }
    }
    return (latent_cut){STRIPS,           .tasks = 4 * threads, .block = s,      .strip = strip,
                        .strips = strips, .units = units,       .ranges = ranges};
}

static latent_cut cut_latents(const sae_step *step)
{
    const atoms_sae *sae = step->sae;
    const sae_batch *b = step->batch;
    int64_t s = sae->p.d_sae, parts = atoms_ceil_div(s, PART_LATENTS), threads = step->ctx->p.num_threads;
    int64_t width = ATOMS_MAX(sae->in.width, sae->out.width), ld = ATOMS_MAX(sae->in.ld, sae->out.ld);
    if (b->dense)
        return (latent_cut){TOGETHER, .tasks = parts, .task = PART_LATENTS, .block = PART_LATENTS, .strip = width};
    if (b->start[s] < 64 * s || b->n * ld < (int64_t)3 << 19) {
        bool apart = parts < 8 * threads;
        return (latent_cut){apart ? APART : TOGETHER, .tasks = apart ? 4 * threads : parts, .task = PART_LATENTS,
                            .block = PART_LATENTS / 4, .strip = width};
    }
    /* a thread's strips come into the cache once for each task; prefixes' latents are of unequal use */
    int64_t tasks = (sae->p.n_prefixes > 1 ? 2 : 1) * threads;
    int64_t most = ((int64_t)1 << 21) / ld; /* two times 8 MB */
    int64_t strip = ATOMS_MIN(ATOMS_MAX(((int64_t)1 << 18) / b->n / 16 * 16, 32), width);
    if (s <= most * threads)
        return cut_strips(step, ATOMS_MAX(16, strip / 32 * 16));
    int64_t task = ATOMS_MIN(atoms_ceil_div(s, tasks), most) / PART_LATENTS * PART_LATENTS;
    task = ATOMS_MAX(task, PART_LATENTS);
    return (latent_cut){TOGETHER, .tasks = atoms_ceil_div(s, task), .task = task, .block = task, .strip = strip};
}

static void dense_row_gradients(const sae_step *step, const sae_rows *r)
{
    const sae_batch *b = step->batch;
    const sae_kernels *k = step->kernels;
    const sae_extent *out = &step->sae->out, *in = &step->sae->in;
    const float *err = sae_error_row(b, out->ld, 0, 0), *aux_err = sae_error_row(b, out->ld, 1, 0);
    sae_dense_rows(step, r, b->z, err, out, r->dec);
    sae_dense_rows(step, r, b->ga, b->xc, in, r->enc);
    for (int64_t j = r->from; j < r->to; j++) {
        int64_t aux = b->aux_start[j], n = b->start[j + 1] - aux;
        if (n < 1)
            continue;
        k->add_rows(out->width, n, b->z + aux, aux_err, out->ld, b->row + aux, r->dec + (j - r->from) * out->ld);
        k->add_rows(in->width, n, b->ga + aux, b->xc, in->ld, b->row + aux, r->enc + (j - r->from) * in->ld);
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
    int64_t ld = step->sae->in.ld;
    if (columns < step->sae->in.width)
        fetch_strip(b->n, columns, b->xc + c, ld);
    for (int64_t j = r->from; j < r->to; j++)
        k->add_rows(columns, b->start[j + 1] - b->start[j], b->ga + b->start[j], b->xc + c, ld, b->row + b->start[j],
                    r->enc + (j - r->from) * ld + c);
}

/* Both gradients of the latents of r (one where tied). */
static void row_gradients(const sae_step *step, const sae_rows *r)
{
    int64_t width = step->sae->in.width, out = step->sae->out.width, n = r->to - r->from;
    memset(r->dec, 0, (size_t)(n * step->sae->out.ld) * sizeof *r->dec);
    if (r->enc != r->dec)
        memset(r->enc, 0, (size_t)(n * step->sae->in.ld) * sizeof *r->enc);
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

/* Latent j's part of the decoder bias' gradient: before its encoder's row changes. A transcoder's has none. */
static void add_to_part(const update *u, int64_t j)
{
    const atoms_sae *sae = u->sae;
    sae_batch *b = u->step->batch;
    float g_bias = b->g_bias[j];
    if (g_bias != 0 && !sae->p.d_out)
        u->step->kernels->add_rows(sae->in.width, 1, &g_bias, sae->enc.w + j * sae->in.ld, 0, &(int32_t){0},
                                   b->partial + j / PART_LATENTS * sae->in.ld);
}

/* Latent j's rows and bias, from the gradients in r. */
static void update_latent(const update *u, const sae_rows *r, int64_t j)
{
    atoms_sae *sae = u->sae;
    const sae_kernels *k = u->step->kernels;
    int64_t ld = sae->in.ld, at = j * ld, width = sae->in.width, d = sae->p.d_in;
    const sae_extent *out = &sae->out;
    const sae_matrix *dec = &sae->dec, *enc = &sae->enc;
    float *g_dec = r->dec + (j - r->from) * out->ld, *g_enc = r->enc + (j - r->from) * ld;
    k->adam_row(out->width, out->d, &u->adam, true, rounding_seed(sae, 2 * j), g_dec, dec->mv + j * out->ld,
                dec->w + j * out->ld);
    if (!sae->p.tied)
        k->adam_row(width, d, &u->adam, false, rounding_seed(sae, 2 * j + 1), g_enc, enc->mv + at, enc->w + at);
    adam_scalar(&u->adam, &sae->b_enc, j, u->step->batch->g_bias[j]);
    sae_screen_row(k, sae, j);
}

/* The scalars of the latents from .. to, whole parts. */
static void begin_latents(const update *u, int64_t from, int64_t to)
{
    sae_batch *b = u->step->batch;
    int64_t ld = u->sae->in.ld, part = from / PART_LATENTS, parts = atoms_ceil_div(to - from, PART_LATENTS);
    memset(b->bands + 2 * part, 0, (size_t)(2 * parts) * sizeof *b->bands);
    memset(b->partial + part * ld, 0, (size_t)(parts * ld) * sizeof *b->partial);
    for (int64_t j = from; j < to; j++)
        b->g_bias[j] = scalar_gradients(u, j, b->bands + 2 * (j / PART_LATENTS));
}

/* The rows of the latents from .. to. room: a thread's share of b->rows. */
static void update_task(const update *u, const latent_cut *cut, int64_t from, int64_t to, float *room)
{
    float *dec = room + PART_LATENTS * BLOCK_SAMPLES, *enc = dec + (u->sae->p.tied ? 0 : cut->block * u->sae->out.ld);
    for (; from < to; from += cut->block) {
        sae_rows r = {from, ATOMS_MIN(from + cut->block, to), cut->strip, room, dec, enc};
        row_gradients(u->step, &r);
        for (int64_t j = r.from; j < r.to; j++) {
            if (cut->kind == TOGETHER)
                add_to_part(u, j);
            update_latent(u, &r, j);
        }
    }
}

/* What stands before the rows of all latents, by parts. */
static void begin_parts(const update *u)
{
    int64_t s = u->sae->p.d_sae;
#pragma omp parallel for num_threads(u->step->ctx->p.num_threads) schedule(dynamic, 1)
    for (int64_t from = 0; from < s; from += PART_LATENTS) {
        int64_t to = ATOMS_MIN(from + PART_LATENTS, s);
        begin_latents(u, from, to);
        for (int64_t j = from; j < to; j++)
            add_to_part(u, j);
    }
}

/* Task t of the gradients of all rows, STRIPS: one strip of a range of latents, of the decoder or of the encoder. */
static void strip_task(const update *u, const latent_cut *cut, const sae_rows *all, int64_t t)
{
    const sae_step *step = u->step;
    const sae_extent *in = &u->sae->in, *out = &u->sae->out;
    int64_t s = u->sae->p.d_sae, range = t % cut->ranges, unit = t / cut->ranges;
    bool tied = u->sae->p.tied, encoder = unit >= cut->strips;
    int64_t width = encoder ? in->width : out->width, ld = encoder ? in->ld : out->ld;
    int64_t c = (encoder ? unit - cut->strips : unit) * cut->strip, columns = ATOMS_MIN(cut->strip, width - c);
    int64_t from = equal_cost(step->batch, s, range, cut->ranges, 0),
            to = range + 1 < cut->ranges ? equal_cost(step->batch, s, range + 1, cut->ranges, 0) : s;
    const sae_rows r = {from, to, cut->strip, NULL, all->dec + from * out->ld, all->enc + from * in->ld};
    for (int64_t j = 0; j < to - from; j++)
        memset((encoder ? r.enc : r.dec) + j * ld + c, 0, (size_t)columns * sizeof *r.dec);
    if (!encoder)
        add_errors(step, &r, c, columns);
    if (encoder || tied)
        add_samples(step, &r, c, columns);
}

static void update_strips(const update *u, const latent_cut *cut)
{
    const sae_batch *b = u->step->batch;
    int threads = u->step->ctx->p.num_threads;
    int64_t s = u->sae->p.d_sae;
    const sae_rows all = {0, s, cut->strip, NULL, b->rows, b->rows + (u->sae->p.tied ? 0 : s * u->sae->out.ld)};
    begin_parts(u);
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
    for (int64_t t = 0; t < cut->units * cut->ranges; t++)
        strip_task(u, cut, &all, t);
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
    for (int64_t t = 0; t < cut->tasks; t++)
        for (int64_t j = s * t / cut->tasks; j < s * (t + 1) / cut->tasks; j++)
            update_latent(u, &all, j);
}

static void update_rows(const update *u, const latent_cut *cut, int64_t share)
{
    const sae_batch *b = u->step->batch;
    int64_t s = u->sae->p.d_sae;
    if (cut->kind == APART)
        begin_parts(u);
#pragma omp parallel for num_threads(u->step->ctx->p.num_threads) schedule(dynamic, 1)
    for (int64_t t = 0; t < cut->tasks; t++) {
        int64_t from = t * cut->task, to = ATOMS_MIN(from + cut->task, s);
        if (cut->kind == APART) {
            from = equal_cost(b, s, t, cut->tasks, ADAM_ENTRIES);
            to = equal_cost(b, s, t + 1, cut->tasks, ADAM_ENTRIES);
        } else {
            begin_latents(u, from, to);
        }
        update_task(u, cut, from, to, b->rows + atoms_thread() * share);
    }
}

/* Everything of all latents. */
static atoms_status update_latents(const update *u)
{
    const atoms_sae *sae = u->sae;
    sae_batch *b = u->step->batch;
    const latent_cut cut = cut_latents(u->step);
    int64_t rows = cut.block * (sae->out.ld + (sae->p.tied ? 0 : sae->in.ld)), threads = u->step->ctx->p.num_threads;
    /* a thread's share of b->rows: codes, then the block's rows of the decoder and, unless tied, the encoder */
    int64_t share = PART_LATENTS * BLOCK_SAMPLES + rows, all = cut.kind == STRIPS ? rows : threads * share;
    int64_t skip = sae->p.skip ? threads * SKIP_ROWS * sae->out.ld : 0; /* later, in the same room */
    if (!atoms_grow((void **)&b->rows, &b->rows_cap, ATOMS_MAX(all, skip), sizeof *b->rows))
        return ATOMS_ERR_MEMORY;
    if (cut.kind == STRIPS)
        update_strips(u, &cut);
    else
        update_rows(u, &cut, share);
    return ATOMS_OK;
}

/* A transcoder's skip connection, in the room of the latents' gradients. */
static void update_skip(const update *u)
{
    const atoms_sae *sae = u->sae;
    const sae_extent *out = &sae->out;
    const sae_kernels *k = u->step->kernels;
    int64_t d = sae->p.d_in;
#pragma omp parallel for num_threads(u->step->ctx->p.num_threads) schedule(dynamic, 1)
    for (int64_t from = 0; from < d; from += SKIP_ROWS) {
        float *g = u->step->batch->rows + atoms_thread() * SKIP_ROWS * out->ld;
        int64_t to = ATOMS_MIN(from + SKIP_ROWS, d);
        sae_skip_gradients(u->step, from, to, g);
        for (int64_t j = from; j < to; j++)
            k->adam_row(out->width, out->d, &u->adam, false, rounding_seed(sae, 2 * sae->p.d_sae + j),
                        g + (j - from) * out->ld, sae->skip.mv + j * out->ld, sae->skip.w + j * out->ld);
    }
}

/* The decoder's bias: g = 2/n sum err - sum_j g_bias_j W_enc_j, by strips of columns; a transcoder's without the second
 * part */
static void update_bias(const update *u)
{
    const atoms_sae *sae = u->sae;
    const sae_batch *b = u->step->batch;
    int64_t parts = sae->p.d_out ? 0 : atoms_ceil_div(sae->p.d_sae, PART_LATENTS), d = sae->out.d;
    int threads = parts * d < BIAS_ALONE ? 1 : u->step->ctx->p.num_threads;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t from = 0; from < d; from += BIAS_COLUMNS) {
        float g[BIAS_COLUMNS];
        int64_t n = ATOMS_MIN(BIAS_COLUMNS, d - from);
        for (int64_t c = 0; c < n; c++)
            g[c] = 2.0f / (float)b->n * b->err_sum[from + c];
        for (int64_t t = 0; t < parts; t++)
            for (int64_t c = 0; c < n; c++)
                g[c] -= b->partial[t * sae->in.ld + from + c];
        for (int64_t c = 0; c < n; c++)
            adam_scalar(&u->adam, &u->sae->b_dec, from + c, g[c]);
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
    if (sae->p.skip)
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
