/* sae_encode.c: which latents are active, without ever holding samples x latents.
 *
 *   x -> centred rows, int8 panels -> for each panel of 64 samples, each block of latents:
 *   screen (a mask of samples for each latent) -> exact z of the candidates -> the panel's list */
#include "sae.h"

#include <math.h>
#include <stdatomic.h>

atoms_screen sae_screen_kind(const atoms_ctx *ctx, atoms_screen asked)
{
    if (asked != ATOMS_SCREEN_AUTO)
        return asked;
    return ctx->isa >= ATOMS_ISA_AVX512_VNNI ? ATOMS_SCREEN_INT8
           : ctx->isa == ATOMS_ISA_AVX2      ? ATOMS_SCREEN_INT16
                                             : ATOMS_SCREEN_F32;
}

/* NULL for F32. */
static atoms_screen_fn *screen_function(const atoms_ctx *ctx, atoms_screen kind)
{
    return kind == ATOMS_SCREEN_INT8    ? ctx->kernels->screens->int8
           : kind == ATOMS_SCREEN_INT16 ? ctx->kernels->screens->int16
                                        : NULL;
}

void sae_screen_row(const sae_kernels *k, atoms_sae *sae, int64_t j)
{
    screen_weights *w = &sae->screen;
    const float *row = sae->enc.w + j * sae->ld;
    if (w->kind == ATOMS_SCREEN_INT16) {
        w->scale[j] = k->quantise16(sae->width, row, (int16_t *)w->q + j * sae->width, &w->residual[j], &w->norm[j]);
        return;
    }
    if (w->kind == ATOMS_SCREEN_INT8) {
        int32_t total;
        w->scale[j] =
            k->quantise(sae->width, row, (int8_t *)w->q + j * sae->width, &w->residual[j], &w->norm[j], &total);
        w->offset[j] = 128 * total;
        return;
    }
    float square = 0;
    k->dots(sae->width, 1, row, row, 0, &(int32_t){0}, &square);
    w->norm[j] = sqrtf(square) * (1 + 1e-5f + (float)sae->width * 0x1p-26f);
}

/* ----------------------------------------------------------------- batch */

static void scratch_free(sae_batch *b)
{
    for (int t = 0; t < b->threads; t++) {
        sae_scratch *s = &b->scratch[t];
        void *blocks[] = {s->mask, s->tile, s->start, s->row, s->z, s->strip};
        for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++)
            atoms_free(blocks[i]);
    }
    atoms_free(b->scratch);
    b->scratch = NULL;
    b->threads = 0;
}

void sae_batch_free(sae_batch *b)
{
    scratch_free(b);
    for (int64_t p = 0; p < 2 * b->cap; p++) {
        panel_list *l = p < b->cap ? &b->list[p] : &b->aux[p - b->cap];
        atoms_free(l->latent);
        atoms_free(l->z);
        atoms_free(l->ga);
    }
    void *blocks[] = {b->xc,   b->err,   b->xq,        b->scale, b->norm,   b->residual, b->list,  b->aux,
                      b->sums, b->start, b->aux_start, b->row,   b->z,      b->ga,       b->floor, b->limit,
                      b->rest, b->size,  b->partial,   b->at,    b->g_bias, b->bands,    b->rows};
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++)
        atoms_free(blocks[i]);
    float topk_floor = b->topk_floor;
    memset(b, 0, sizeof *b);
    b->topk_floor = topk_floor;
}

atoms_status sae_batch_reserve(const atoms_sae *sae, sae_batch *b, int64_t n, int64_t errors)
{
    int64_t panels = (n + PANEL - 1) / PANEL, ld = sae->ld;
    size_t quantised = sae->screen.kind == ATOMS_SCREEN_INT16 ? 2 : 1;
    if (panels > b->cap || errors > b->errors || !b->floor) {
        sae_batch_free(b);
        int64_t r = panels * PANEL, blocks = ATOMS_MAX(panels, sae->rows / PANEL);
        bool ok = (b->list = atoms_calloc(panels, sizeof *b->list)) != NULL &&
                  (b->aux = atoms_calloc(panels, sizeof *b->aux)) != NULL;
        b->cap = ok ? panels : 0;
        b->errors = errors;
        ok = ok && (b->xc = atoms_alloc(r * ld, sizeof *b->xc)) &&
             (b->err = atoms_alloc(errors * r * ld, sizeof *b->err)) &&
             (b->xq = atoms_alloc(r * sae->width, quantised)) && (b->scale = atoms_alloc(r, sizeof *b->scale)) &&
             (b->norm = atoms_alloc(r, sizeof *b->norm)) && (b->residual = atoms_alloc(r, sizeof *b->residual)) &&
             (b->sums = atoms_alloc(panels * (1 + sae->width), sizeof *b->sums)) &&
             (b->start = atoms_alloc(sae->p.d_sae + 1, sizeof *b->start)) &&
             (b->aux_start = atoms_alloc(sae->p.d_sae, sizeof *b->aux_start)) &&
             (b->floor = atoms_calloc(sae->rows, sizeof *b->floor)) &&
             (b->limit = atoms_calloc(sae->rows, sizeof *b->limit)) &&
             (b->rest = atoms_calloc(sae->rows, sizeof *b->rest)) &&
             (b->size = atoms_calloc(sae->rows, sizeof *b->size)) &&
             (b->partial = atoms_alloc(blocks * ld, sizeof *b->partial)) &&
             (b->at = atoms_alloc(sae->p.d_sae, sizeof *b->at)) &&
             (b->g_bias = atoms_alloc(sae->p.d_sae, sizeof *b->g_bias)) &&
             (b->bands = atoms_alloc(2 * (sae->rows / PART), sizeof *b->bands));
        if (!ok) {
            sae_batch_free(b);
            return ATOMS_ERR_MEMORY;
        }
    }
    b->n = n;
    b->panels = panels;
    return ATOMS_OK;
}

static const char *row_address(const atoms_batch *x, int64_t i)
{
    int64_t at = (x->index ? x->index[i] : i) * x->row_stride;
    return (const char *)x->x + at * (int64_t)atoms_dtype_size(x->dtype);
}

/* Rows come in no order from arrays larger than any cache: they are asked for two ahead (with busy neighbours
 * on the machine one ahead waits a quarter longer, more wins nothing). */
static void ask_for_row(const atoms_batch *x, int64_t i, int64_t d)
{
    const char *from = row_address(x, i);
    int64_t bytes = x->col_stride == 1 ? d * (int64_t)atoms_dtype_size(x->dtype) : 0;
    for (int64_t at = 0; at < bytes; at += 64)
        __builtin_prefetch(from + at, 0, 2);
}

/* Row i of the batch in float32: the caller's own where nothing is to be converted, else in `room`. */
static const float *read_row(const atoms_batch *x, int64_t i, int64_t d, float *room)
{
    const char *from = row_address(x, i);
    if (x->dtype == ATOMS_F32 && (x->col_stride == 1 || d == 1))
        return (const float *)(const void *)from;
    atoms_to_f32((atoms_rows){from, x->dtype, 1, d, 0, x->col_stride}, room);
    return room;
}

/* A quantised row into its place in the panel: groups of values of all samples side by side. */
static void place_int8(int64_t width, int64_t r, const int8_t *q, uint8_t *panel)
{
    for (int64_t c = 0; c < width; c += 4) {
        uint32_t four;
        memcpy(&four, q + c, 4);
        four ^= 0x80808080u; /* q + 128, unsigned */
        memcpy(panel + c * PANEL + r * 4, &four, 4);
    }
}

static void place_int16(int64_t width, int64_t r, const int16_t *q, int16_t *panel)
{
    for (int64_t c = 0; c < width; c += 2)
        memcpy(panel + c * PANEL + r * 2, q + c, 4);
}

/* One panel: centred rows, their quantised image, their norms, the panel's column sums. Returns the first row
 * that is not finite, or -1. A large batch's rows are written past the caches: where those are shared with busy
 * neighbours, fetching lines only to overwrite them costs a tenth of a step. */
static int64_t prepare_panel(const atoms_sae *sae, const sae_kernels *k, const atoms_batch *x, int64_t p, sae_batch *b)
{
    atoms_screen kind = sae->screen.kind;
    int64_t width = sae->width, d = sae->p.d_in, bad = -1;
    int64_t rows = ATOMS_MIN(PANEL, b->n - p * PANEL);
    double *sums = b->sums + p * (1 + width);
    memset(sums, 0, (size_t)(1 + width) * sizeof *sums);
    /* float32's dot products, ours and the screen's, against the exact one: gamma |x| |w| */
    float gamma = (float)(kind == ATOMS_SCREEN_F32 ? 2 * width + 64 : width / 64 + 24) * 0x1p-23f;
    bool past = b->n * sae->ld >= (int64_t)1 << 21;
    float room[width] __attribute__((aligned(64))), row[width] __attribute__((aligned(64)));
    int16_t q[width] __attribute__((aligned(64)));
    for (int64_t r = 0; r < PANEL; r++) {
        int64_t i = p * PANEL + r;
        float *xc = past ? row : b->xc + i * sae->ld;
        float scale = 0, residual = 0, norm = 0;
        if (r < rows) {
            double square;
            if (i + 2 < b->n)
                ask_for_row(x, i + 2, d);
            float top =
                k->centre(width, d, read_row(x, i, d, room), x->shift, x->scale, sae->b_dec.w, xc, &square, sums + 1);
            if (!(top <= 3e38f) || !isfinite(square)) {
                bad = bad < 0 ? i : bad;
                continue;
            }
            sums[0] += square;
            norm = (float)(sqrt(square) * (1 + 1e-6));
        } else {
            memset(xc, 0, (size_t)width * sizeof *xc);
        }
        if (kind == ATOMS_SCREEN_INT8) {
            int32_t total;
            scale = k->quantise(width, xc, (int8_t *)q, &residual, &norm, &total);
            place_int8(width, r, (int8_t *)q, (uint8_t *)b->xq + p * PANEL * width);
        } else if (kind == ATOMS_SCREEN_INT16) {
            scale = k->quantise16(width, xc, q, &residual, &norm);
            place_int16(width, r, q, (int16_t *)b->xq + p * PANEL * width);
        }
        if (past)
            k->stream(width, row, b->xc + i * sae->ld);
        b->scale[i] = scale;
        b->norm[i] = norm + residual; /* bounds |x| and |x_hat| */
        b->residual[i] = residual + gamma * (norm + residual);
    }
    atomic_thread_fence(memory_order_seq_cst);
    return bad;
}

atoms_status sae_prepare(const atoms_ctx *ctx, const atoms_sae *sae, const atoms_batch *x, int64_t n, sae_batch *b,
                         atoms_sae_stats *stats)
{
    const sae_kernels *k = ctx->kernels->sae;
    int64_t bad = n;
#pragma omp parallel for num_threads(ctx->p.num_threads) schedule(static) reduction(min : bad)
    for (int64_t p = 0; p < b->panels; p++) {
        int64_t row = prepare_panel(sae, k, x, p, b);
        if (row >= 0 && row < bad)
            bad = row;
    }
    stats->bad_row = bad == n ? -1 : x->index ? x->index[bad] : bad;
    return bad < n ? ATOMS_ERR_NONFINITE : ATOMS_OK;
}

/* ---------------------------------------------------------------- screen */

/* Room for every thread of the team. */
static bool scratch_reserve(const atoms_sae *sae, sae_batch *b, int threads)
{
    bool f32 = sae->screen.kind == ATOMS_SCREEN_F32, strips = sae_strip(sae->width) < sae->width, ok = true;
    if (threads <= b->threads)
        return true;
    scratch_free(b);
    b->scratch = atoms_calloc(threads, sizeof *b->scratch);
    b->threads = b->scratch ? threads : 0;
    for (int t = 0; t < b->threads; t++) {
        sae_scratch *s = &b->scratch[t];
        s->mask = atoms_alloc(GROUP * sae->rows, sizeof *s->mask);
        s->tile = f32 ? atoms_alloc(BLOCK * TILE * PANEL, sizeof *s->tile) : NULL;
        s->start = atoms_alloc(sae->p.d_sae + 1, sizeof *s->start);
        s->strip = strips ? atoms_alloc(GROUP * PANEL * sae_strip(sae->width), sizeof *s->strip) : NULL;
        ok = ok && s->mask && s->start && (!f32 || s->tile) && (!strips || s->strip);
    }
    if (!ok || !b->scratch)
        scratch_free(b);
    return b->scratch;
}

/* What the screens compare with, from the floors. */
static void screen_limits(const atoms_sae *sae, sae_batch *b)
{
    const screen_weights *w = &sae->screen;
    bool scaled = w->kind != ATOMS_SCREEN_F32;
    for (int64_t j = 0; j < sae->p.d_sae; j++) {
        float floor = b->floor[j], bias = sae->b_enc.w[j];
        float limit = floor - bias - 1e-6f * (fabsf(floor) + fabsf(bias)) - 1e-30f;
        float scale = scaled && w->scale[j] > 0 ? w->scale[j] : 1;
        b->limit[j] = limit / scale - (scaled ? 1e-6f * fabsf(limit / scale) : 0);
        b->rest[j] = w->residual[j] / scale * 1.00001f;
        b->size[j] = w->norm[j] / scale * 1.00001f;
    }
}

/* Masks of candidates for the panels p0 .. p0 + np and every latent. */
static atoms_status screen_group(atoms_team *team, const atoms_sae *sae, const sae_kernels *k, const sae_batch *b,
                                 int64_t p0, int64_t np, sae_scratch *s)
{
    const atoms_ctx *ctx = team->ctx;
    int64_t ld = sae->ld, width = sae->width, bytes = sae->screen.kind == ATOMS_SCREEN_INT16 ? 2 : 1;
    atoms_screen_fn *screen = screen_function(ctx, sae->screen.kind);
    for (int64_t j0 = 0; j0 < sae->p.d_sae; j0 += BLOCK) {
        int64_t nj = ATOMS_MIN(BLOCK, sae->p.d_sae - j0);
        atoms_status status = atoms_team_ask(team);
        if (status != ATOMS_OK)
            return status;
        if (!screen)
            atoms_gemm_f32(ctx, (atoms_mnk){nj, np * PANEL, width}, (atoms_f32_in){sae->enc.w + j0 * ld, ld, 1},
                           (atoms_f32_in){b->xc + p0 * PANEL * ld, 1, ld}, 0,
                           (atoms_f32_out){s->tile, TILE * PANEL, 1});
        for (int64_t p = 0; p < np; p++) {
            int64_t i0 = (p0 + p) * PANEL;
            uint64_t *mask = s->mask + p * sae->rows + j0;
            if (screen) {
                atoms_screen_samples samples = {b->scale + i0, b->norm + i0, b->residual + i0};
                atoms_screen_rows rows = {sae->screen.offset + j0, b->limit + j0, b->rest + j0, b->size + j0};
                screen(width, nj, (const char *)b->xq + i0 * width * bytes, &samples,
                       (const char *)sae->screen.q + j0 * width * bytes, &rows, mask);
                continue;
            }
            for (int64_t j = 0; j < nj; j++)
                mask[j] =
                    k->reach(s->tile + (j * TILE + p) * PANEL, b->residual + i0, b->size[j0 + j], b->limit[j0 + j]);
        }
    }
    return ATOMS_OK;
}

/* ----------------------------------------------------------------- exact */

/* The group's candidates by latent. */
static bool gather_candidates(const atoms_sae *sae, const sae_batch *b, int64_t p0, int64_t np, sae_scratch *s)
{
    int64_t rows = ATOMS_MIN(PANEL, b->n - (p0 + np - 1) * PANEL); /* of the last panel */
    uint64_t valid = rows == PANEL ? ~(uint64_t)0 : ((uint64_t)1 << rows) - 1;
    int64_t n = 0;
    for (int64_t j = 0; j < sae->p.d_sae; j++) {
        s->start[j] = n;
        s->mask[(np - 1) * sae->rows + j] &= valid;
        for (int64_t p = 0; p < np; p++)
            n += __builtin_popcountll(s->mask[p * sae->rows + j]);
    }
    s->start[sae->p.d_sae] = n;
    if (n > s->cap) {
        int64_t cap = n + n / 4;
        atoms_free(s->row);
        atoms_free(s->z);
        s->row = atoms_alloc(cap + 3, sizeof *s->row);
        s->z = atoms_alloc(cap, sizeof *s->z);
        s->cap = s->row && s->z ? cap : 0;
        if (!s->cap)
            return false;
    }
    int32_t *row = s->row;
    for (int64_t j = 0; j < sae->p.d_sae; j++)
        for (int64_t p = 0; p < np; p++) {
            uint64_t m = s->mask[p * sae->rows + j];
            int count = __builtin_popcountll(m);
            /* by fours, the last ones idle: a branch for each bit would be mispredicted for each mask */
            for (int i = 0; i < count; i += 4)
                for (int k = 0; k < 4; k++, m &= m - 1)
                    row[i + k] = (int32_t)(p * PANEL + __builtin_ctzll(m | (uint64_t)1 << 63));
            row += count;
        }
    return true;
}

/* Exact z of the candidates, a strip of the columns at a time, so that the group's strip of x stays
 * in the second-level cache while the encoder's rows stream by. One of several strips is copied together:
 * on few pages, and away from neighbours that would be fetched in vain. */
static void exact_group(const atoms_sae *sae, const sae_kernels *k, const sae_batch *b, int64_t p0, int64_t np,
                        sae_scratch *s)
{
    int64_t ld = sae->ld, strip = sae_strip(sae->width);
    memset(s->z, 0, (size_t)s->start[sae->p.d_sae] * sizeof *s->z);
    for (int64_t c = 0; c < sae->width; c += strip) {
        int64_t columns = ATOMS_MIN(strip, sae->width - c);
        const float *x = b->xc + p0 * PANEL * ld + c;
        for (int64_t i = 0; s->strip && i < np * PANEL; i++)
            memcpy(s->strip + i * strip, x + i * ld, (size_t)columns * sizeof *x);
        for (int64_t j = 0; j < sae->p.d_sae; j++) {
            int64_t from = s->start[j], n = s->start[j + 1] - from, ahead = j + 4;
            if (ahead < sae->p.d_sae && s->start[ahead + 1] > s->start[ahead]) {
                for (int64_t i = c; i < c + columns; i += 16)
                    if (s->strip) /* a few lines; a whole row would wait for the first level's miss buffers */
                        __builtin_prefetch(sae->enc.w + ahead * ld + i);
                    else
                        __builtin_prefetch(sae->enc.w + ahead * ld + i, 0, 2);
            }
            if (n)
                k->dots(columns, n, sae->enc.w + j * ld + c, s->strip ? s->strip : x, s->strip ? strip : ld,
                        s->row + from, s->z + from);
        }
    }
}

bool sae_list_reserve(panel_list *l, int64_t n)
{
    if (n <= l->cap)
        return true;
    int64_t cap = n + n / 4 + 64;
    atoms_free(l->latent);
    atoms_free(l->z);
    atoms_free(l->ga);
    l->latent = atoms_alloc(cap, sizeof *l->latent);
    l->z = atoms_alloc(cap, sizeof *l->z);
    l->ga = atoms_alloc(cap, sizeof *l->ga);
    l->cap = l->latent && l->z && l->ga ? cap : 0;
    return l->cap > 0;
}

/* Counting sort of what lies above its floor into the panels' lists, by sample, then latent. */
static bool fill_lists(const atoms_sae *sae, sae_batch *b, int64_t p0, int64_t np, sae_scratch *s)
{
    int32_t at[GROUP * PANEL] = {0};
    int64_t n = 0, e = 0;
    for (int64_t j = 0; j < sae->p.d_sae; j++) {
        float bias = sae->b_enc.w[j], floor = b->floor[j];
        s->start[j] = n;
        for (; e < s->start[j + 1]; e++) { /* those that stay move up, without a branch */
            float z = s->z[e] + bias;
            int32_t row = s->row[e], active = z > floor;
            s->z[n] = z;
            s->row[n] = row;
            at[row] += active;
            n += active;
        }
    }
    s->start[sae->p.d_sae] = n;
    for (int64_t p = 0; p < np; p++) {
        panel_list *l = &b->list[p0 + p];
        l->start[0] = 0;
        for (int r = 0; r < PANEL; r++) {
            l->start[r + 1] = l->start[r] + at[p * PANEL + r];
            at[p * PANEL + r] = l->start[r];
        }
        l->n = l->start[PANEL];
        if (!sae_list_reserve(l, l->n))
            return false;
    }
    for (int64_t j = 0; j < sae->p.d_sae; j++)
        for (e = s->start[j]; e < s->start[j + 1]; e++) {
            panel_list *l = &b->list[p0 + s->row[e] / PANEL];
            int32_t to = at[s->row[e]]++;
            l->latent[to] = (int32_t)j;
            l->z[to] = s->z[e];
        }
    return true;
}

static atoms_status list_group(atoms_team *team, const atoms_sae *sae, const sae_kernels *k, sae_batch *b, int64_t p0,
                               int64_t np, sae_scratch *s)
{
    panel_list *l = &b->list[p0];
    double t0 = sae_now();
    atoms_status status = screen_group(team, sae, k, b, p0, np, s);
    if (status != ATOMS_OK)
        return status;
    double t1 = sae_now();
    if (!gather_candidates(sae, b, p0, np, s))
        return ATOMS_ERR_MEMORY;
    double candidates = (double)s->start[sae->p.d_sae];
    exact_group(sae, k, b, p0, np, s);
    if (!fill_lists(sae, b, p0, np, s))
        return ATOMS_ERR_MEMORY;
    for (int64_t p = 0; p < np; p++)
        l[p].candidates = l[p].seconds[0] = l[p].seconds[1] = 0;
    l->candidates = candidates;
    l->seconds[0] = t1 - t0;
    l->seconds[1] = sae_now() - t1;
    return ATOMS_OK;
}

/* Panels of one task, which change the speed, never the result: enough tasks for every thread, the more so
 * the cheaper it is to stream the encoder once more, and the task's strip of x within the second-level cache. */
static int64_t group_of(const atoms_ctx *ctx, const atoms_sae *sae, const sae_batch *b)
{
    bool large = sae->p.d_sae * sae->ld > ((int64_t)1 << 22);
    int64_t tasks = (large ? 1 : 2) * (int64_t)ctx->p.num_threads;
    int64_t most =
        sae->screen.kind == ATOMS_SCREEN_F32 ? TILE : ATOMS_MIN(GROUP, 163840 / (PANEL * sae_strip(sae->width)));
    return ATOMS_MAX(1, ATOMS_MIN((b->panels + tasks - 1) / tasks, most));
}

atoms_status sae_list_active(const atoms_ctx *ctx, const atoms_sae *sae, sae_batch *b)
{
    const sae_kernels *k = ctx->kernels->sae;
    screen_limits(sae, b);
    int64_t group = group_of(ctx, sae, b);
    if (!scratch_reserve(sae, b, ctx->p.num_threads))
        return ATOMS_ERR_MEMORY;
    atoms_team team = {.ctx = ctx};
#pragma omp parallel for num_threads(ctx->p.num_threads) schedule(dynamic, 1)
    for (int64_t p = 0; p < b->panels; p += group)
        if (!atoms_team_stopped(&team))
            atoms_team_report(
                &team, list_group(&team, sae, k, b, p, ATOMS_MIN(group, b->panels - p), &b->scratch[atoms_thread()]));
    return team.status;
}
