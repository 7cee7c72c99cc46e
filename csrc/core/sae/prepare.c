/* prepare.c: a batch's rows, from wherever the caller has them, into the model's space; their image for the screen. */
#include "sae.h"

#include <math.h>
#include <stdatomic.h>

static const char *row_address(const atoms_batch *x, int64_t i)
{
    return atoms_element(x->x, x->index ? x->index[i] : i, 0);
}

/* Rows come in no order from arrays larger than any cache: they are asked for two ahead (with busy neighbours
 * on the machine one ahead waits a quarter longer, more wins nothing). */
static void ask_for_row(const atoms_batch *x, int64_t i)
{
    const char *from = row_address(x, i);
    int64_t bytes = x->x.cs == 1 ? x->x.d * (int64_t)atoms_dtype_size(x->x.type) : 0;
    for (int64_t at = 0; at < bytes; at += ATOMS_ALIGN)
        __builtin_prefetch(from + at, 0, 2);
}

/* Row i of the batch in float32: the caller's own where nothing is to be converted, else in `copy`. */
static const float *read_row(const atoms_batch *x, int64_t i, float *copy)
{
    const char *from = row_address(x, i);
    int64_t d = x->x.d;
    if (x->x.type == ATOMS_F32 && (x->x.cs == 1 || d == 1))
        return (const float *)(const void *)from;
    atoms_to_f32((atoms_rows){from, x->x.type, 1, d, 0, x->x.cs}, copy);
    return copy;
}

/* A row's image into its place in the panel: groups of values of all samples side by side. */
static void place_int8(int64_t width, int64_t r, const int8_t *q, uint8_t *panel)
{
    for (int64_t c = 0; c < width; c += 4) {
        uint32_t four;
        memcpy(&four, q + c, 4);
        four ^= 0x80808080u; /* q + 128, unsigned */
        memcpy(panel + c * PANEL_SAMPLES + r * 4, &four, 4);
    }
}

static void place_int16(int64_t width, int64_t r, const int16_t *q, int16_t *panel)
{
    for (int64_t c = 0; c < width; c += 2)
        memcpy(panel + c * PANEL_SAMPLES + r * 2, q + c, 4);
}

/* Sample i's centred row xc of norm `norm` as the screen sees it. q: (width,) of work. */
static void place_image(const sae_step *step, int64_t i, const float *xc, float norm, int16_t *q)
{
    const atoms_sae *sae = step->sae;
    sae_batch *b = step->batch;
    atoms_screen kind = sae->image.kind;
    int64_t width = sae->in.width, r = i % PANEL_SAMPLES, panel = (i - r) * width;
    /* what float32's dot products, ours and the screen's, may be off by: gamma |x| |w|, see kernels.h */
    float gamma = (float)(kind == ATOMS_SCREEN_F32 ? 2 * width + 64 : width / 64 + 24) * 0x1p-23f;
    float scale = 0, residual = 0;
    if (kind == ATOMS_SCREEN_INT8) {
        int32_t total;
        scale = step->kernels->quantise(width, xc, (int8_t *)q, &residual, &norm, &total);
        place_int8(width, r, (int8_t *)q, (uint8_t *)b->xq + panel);
    } else if (kind == ATOMS_SCREEN_INT16) {
        scale = step->kernels->quantise16(width, xc, q, &residual, &norm);
        place_int16(width, r, q, (int16_t *)b->xq + panel);
    }
    b->scale[i] = scale;
    b->norm[i] = norm + residual; /* bounds |x| and |x_hat| */
    b->residual[i] = residual + gamma * (norm + residual);
}

/* Rows on their way into the workspace: the samples, or what a transcoder rebuilds, of which the screen needs none. */
typedef struct {
    const atoms_batch *from;
    sae_extent side;
    sae_origin origin;
    float *to;    /* (samples, ld) */
    double *sums; /* (panels, 1 + width) */
    bool image;
} incoming;

/* One panel: centred rows, their images, their norms, the panel's column sums. Returns the first row that is not
 * finite, or -1. A large batch's rows are written past the caches: where those are shared with busy neighbours,
 * fetching lines only to overwrite them costs a tenth of a step. */
static int64_t prepare_panel(const sae_step *step, const incoming *in, int64_t p)
{
    const atoms_batch *x = in->from;
    const sae_kernels *k = step->kernels;
    sae_batch *b = step->batch;
    int64_t width = in->side.width, ld = in->side.ld, bad = -1;
    double *sums = in->sums + p * (1 + width);
    memset(sums, 0, (size_t)(1 + width) * sizeof *sums);
    bool past = b->n * ld >= (int64_t)1 << 21;
    float copy[width] __attribute__((aligned(64))), row[width] __attribute__((aligned(64)));
    int16_t q[width] __attribute__((aligned(64)));
    for (int64_t i = p * PANEL_SAMPLES; i < (p + 1) * PANEL_SAMPLES; i++) {
        float *xc = past ? row : in->to + i * ld, norm = 0;
        if (i < b->n) {
            double square;
            if (i + 2 < b->n)
                ask_for_row(x, i + 2);
            float top = k->centre(width, in->side.d, read_row(x, i, copy), &in->origin, xc, &square, sums + 1);
            if (!(top <= 3e38f) || !isfinite(square)) {
                bad = bad < 0 ? i : bad;
                continue;
            }
            sums[0] += square;
            norm = (float)(sqrt(square) * (1 + 1e-6));
        } else {
            memset(xc, 0, (size_t)width * sizeof *xc);
        }
        if (in->image)
            place_image(step, i, xc, norm, q);
        if (past)
            k->stream(width, row, in->to + i * ld);
    }
    atomic_thread_fence(memory_order_seq_cst);
    return bad;
}

/* All panels; stats->bad_row is a row that is not finite, or -1. */
static void prepare_rows(const sae_step *step, const incoming *in, atoms_sae_stats *stats)
{
    const sae_batch *b = step->batch;
    int64_t bad = b->n;
#pragma omp parallel for num_threads(step->ctx->p.num_threads) schedule(static) reduction(min : bad)
    for (int64_t p = 0; p < b->panels; p++) {
        int64_t row = prepare_panel(step, in, p);
        if (row >= 0 && row < bad)
            bad = row;
    }
    stats->bad_row = bad == b->n ? -1 : in->from->index ? in->from->index[bad] : bad;
}

atoms_status sae_prepare(const sae_step *step, const atoms_batch *x, atoms_sae_stats *stats)
{
    const atoms_sae *sae = step->sae;
    sae_batch *b = step->batch;
    const atoms_batch *y = step->params && sae->p.d_out ? x->target : NULL;
    double t0 = sae_now();
    const incoming rows = {x, sae->in, {x->shift, x->scale, sae->origin}, b->xc, b->sums, true};
    prepare_rows(step, &rows, stats);
    if (y && stats->bad_row < 0) {
        const incoming targets = {y, sae->out, {y->shift, y->scale, sae->b_dec.w}, b->yc, b->y_sums, false};
        prepare_rows(step, &targets, stats);
        stats->bad_target = stats->bad_row >= 0;
    }
    stats->seconds.prepare = sae_now() - t0;
    return stats->bad_row >= 0 ? ATOMS_ERR_NONFINITE : ATOMS_OK;
}
