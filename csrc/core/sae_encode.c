/* sae_encode.c: which latents are active, without ever holding samples x latents.
 *
 *   x -> centred rows, int8 panels -> for each panel of 64 samples, each block of 384 latents:
 *   screen (a mask of samples for each latent) -> exact z of the candidates -> the panel's list */
#include "sae.h"

#include <math.h>
#ifdef _OPENMP
#include <omp.h>
#endif

const atoms_sae_kernels *atoms_sae_kernels_portable(void);
const atoms_sae_kernels *atoms_sae_kernels_avx2(void);
const atoms_sae_kernels *atoms_sae_kernels_avx512(void);

static double now(void)
{
#ifdef _OPENMP
    return omp_get_wtime();
#else
    return 0;
#endif
}

const atoms_sae_kernels *atoms_sae_kernels_for(atoms_isa isa)
{
#if defined(__x86_64__)
    if (isa >= ATOMS_ISA_AVX512)
        return atoms_sae_kernels_avx512();
    if (isa >= ATOMS_ISA_AVX2)
        return atoms_sae_kernels_avx2();
#endif
    (void)isa;
    return atoms_sae_kernels_portable();
}

atoms_screen sae_screen_kind(const atoms_ctx *ctx, const atoms_sae *sae)
{
    bool can = ctx->isa >= ATOMS_ISA_AVX512_VNNI;
    return can && sae->p.screen != ATOMS_SCREEN_F32 ? ATOMS_SCREEN_INT8 : ATOMS_SCREEN_F32;
}

void sae_screen_row(const atoms_sae_kernels *k, atoms_sae *sae, int64_t j)
{
    screen_weights *w = &sae->screen;
    int32_t total;
    w->scale[j] = k->quantise(sae->ld, sae->enc.w + j * sae->ld, w->q + j * sae->ld,
                              &w->residual[j], &w->norm[j], &total);
    w->offset[j] = 128 * total;
}

/* ----------------------------------------------------------------- batch */

void sae_batch_free(sae_batch *b)
{
    for (int64_t p = 0; p < b->cap; p++) {
        atoms_free(b->list[p].latent);
        atoms_free(b->list[p].z);
        atoms_free(b->list[p].ga);
    }
    void *blocks[] = {b->xc, b->err, b->xq, b->scale, b->norm, b->residual, b->list, b->sums,
                      b->start, b->row, b->z, b->ga, b->floor, b->limit, b->rest, b->size,
                      b->partial};
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++)
        atoms_free(blocks[i]);
    float topk_floor = b->topk_floor;
    memset(b, 0, sizeof *b);
    b->topk_floor = topk_floor;
}

atoms_status sae_batch_reserve(const atoms_sae *sae, sae_batch *b, int64_t n)
{
    int64_t panels = (n + PANEL - 1) / PANEL, ld = sae->ld;
    if (panels > b->cap || !b->floor) {
        sae_batch_free(b);
        int64_t r = panels * PANEL, blocks = ATOMS_MAX(panels, sae->rows / PANEL);
        bool ok = (b->list = atoms_calloc(panels, sizeof *b->list)) != NULL;
        b->cap = ok ? panels : 0;
        ok = ok && (b->xc = atoms_alloc(r * ld, sizeof *b->xc)) &&
             (b->err = atoms_alloc(r * ld, sizeof *b->err)) &&
             (b->xq = atoms_alloc(r * ld, sizeof *b->xq)) &&
             (b->scale = atoms_alloc(r, sizeof *b->scale)) &&
             (b->norm = atoms_alloc(r, sizeof *b->norm)) &&
             (b->residual = atoms_alloc(r, sizeof *b->residual)) &&
             (b->sums = atoms_alloc(panels * (1 + ld), sizeof *b->sums)) &&
             (b->start = atoms_alloc(sae->p.d_sae + 1, sizeof *b->start)) &&
             (b->floor = atoms_calloc(sae->rows, sizeof *b->floor)) &&
             (b->limit = atoms_calloc(sae->rows, sizeof *b->limit)) &&
             (b->rest = atoms_calloc(sae->rows, sizeof *b->rest)) &&
             (b->size = atoms_calloc(sae->rows, sizeof *b->size)) &&
             (b->partial = atoms_alloc(blocks * ld, sizeof *b->partial));
        if (!ok) {
            sae_batch_free(b);
            return ATOMS_ERR_MEMORY;
        }
    }
    b->n = n;
    b->panels = panels;
    return ATOMS_OK;
}

/* One panel: centred rows, their int8 image, their norms, the panel's column sums. */
static int64_t prepare_panel(const atoms_sae *sae, const atoms_sae_kernels *k, bool int8,
                             const float *x, int64_t p, sae_batch *b)
{
    int64_t ld = sae->ld, d = sae->p.d_in, bad = -1;
    int64_t rows = ATOMS_MIN(PANEL, b->n - p * PANEL);
    double *sums = b->sums + p * (1 + ld);
    memset(sums, 0, (size_t)(1 + ld) * sizeof *sums);
    /* float32's dot products, ours and the screen's, against the exact one: gamma |x| |w| */
    float gamma = (float)(int8 ? ld / 64 + 24 : 2 * ld + 64) * 0x1p-23f;
    uint8_t *panel = b->xq + p * PANEL * ld;
    int8_t q[ld] __attribute__((aligned(64)));
    for (int64_t r = 0; r < PANEL; r++) {
        int64_t i = p * PANEL + r;
        float *xc = b->xc + i * ld;
        float scale = 0, residual = 0, norm = 0;
        if (r < rows) {
            double square;
            float top = k->centre(ld, d, x + i * d, sae->b_dec.w, xc, &square);
            if (!(top <= 3e38f) || !isfinite(square)) {
                bad = bad < 0 ? i : bad;
                continue;
            }
            sums[0] += square;
            for (int64_t c = 0; c < d; c++)
                sums[1 + c] += (double)xc[c];
            norm = (float)(sqrt(square) * (1 + 1e-6));
        } else {
            memset(xc, 0, (size_t)ld * sizeof *xc);
        }
        if (int8) {
            int32_t total;
            scale = k->quantise(ld, xc, q, &residual, &norm, &total);
            for (int64_t c = 0; c < ld; c += 4) {
                uint32_t four;
                memcpy(&four, q + c, 4);
                four ^= 0x80808080u; /* q + 128, unsigned */
                memcpy(panel + c * PANEL + r * 4, &four, 4);
            }
        }
        b->scale[i] = scale;
        b->norm[i] = norm + residual; /* bounds |x| and |x_hat| */
        b->residual[i] = residual + gamma * (norm + residual);
    }
    return bad;
}

atoms_status sae_prepare(const atoms_ctx *ctx, const atoms_sae *sae, const float *x, int64_t n,
                         sae_batch *b, atoms_sae_stats *stats)
{
    const atoms_sae_kernels *k = atoms_sae_kernels_for(ctx->isa);
    bool int8 = sae_screen_kind(ctx, sae) == ATOMS_SCREEN_INT8;
    int64_t bad = n;
#pragma omp parallel for num_threads(ctx->p.num_threads) schedule(static) reduction(min : bad)
    for (int64_t p = 0; p < b->panels; p++) {
        int64_t row = prepare_panel(sae, k, int8, x, p, b);
        if (row >= 0 && row < bad)
            bad = row;
    }
    stats->bad_row = bad < n ? bad : -1;
    return bad < n ? ATOMS_ERR_NONFINITE : ATOMS_OK;
}

/* ---------------------------------------------------------------- screen */

/* A thread's room: what a panel's list is gathered in before it is sorted by sample. */
typedef struct {
    int64_t n, cap;
    uint8_t *row;
    int32_t *latent;
    float *z;
    uint64_t *mask; /* (BLOCK,) */
    float *tile;    /* (BLOCK, PANEL), F32 screen only */
} scratch;

static bool scratch_grow(scratch *s, int64_t need)
{
    if (need <= s->cap)
        return true;
    int64_t cap = ATOMS_MAX(need, 2 * s->cap);
    uint8_t *row = realloc(s->row, (size_t)cap);
    if (row)
        s->row = row;
    int32_t *latent = row ? realloc(s->latent, (size_t)cap * sizeof *latent) : NULL;
    if (latent)
        s->latent = latent;
    float *z = latent ? realloc(s->z, (size_t)cap * sizeof *z) : NULL;
    if (!z)
        return false;
    s->z = z;
    s->cap = cap;
    return true;
}

/* What the screens compare with, from the floors. */
static void screen_limits(const atoms_sae *sae, bool int8, sae_batch *b)
{
    const screen_weights *w = &sae->screen;
    for (int64_t j = 0; j < sae->p.d_sae; j++) {
        float floor = b->floor[j], bias = sae->b_enc.w[j];
        float limit = floor - bias - 1e-6f * (fabsf(floor) + fabsf(bias)) - 1e-30f;
        float scale = int8 && w->scale[j] > 0 ? w->scale[j] : 1;
        b->limit[j] = limit / scale - (int8 ? 1e-6f * fabsf(limit / scale) : 0);
        b->rest[j] = w->residual[j] / scale * 1.00001f;
        b->size[j] = w->norm[j] / scale * 1.00001f;
    }
}

static void screen_block(const atoms_ctx *ctx, const atoms_sae *sae, const atoms_sae_kernels *k,
                         bool int8, const sae_batch *b, int64_t p, int64_t j0, int64_t nj,
                         scratch *s)
{
    int64_t ld = sae->ld, i0 = p * PANEL;
#if defined(__x86_64__)
    if (int8) {
        atoms_screen_samples samples = {b->scale + i0, b->norm + i0, b->residual + i0};
        atoms_screen_rows rows = {sae->screen.offset + j0, b->limit + j0, b->rest + j0,
                                  b->size + j0};
        atoms_screen_int8(ld, nj, b->xq + i0 * ld, &samples, sae->screen.q + j0 * ld, &rows,
                          s->mask);
        return;
    }
#else
    (void)int8;
#endif
    atoms_gemm_f32(ctx, nj, PANEL, ld, 1, sae->enc.w + j0 * ld, ld, 1, b->xc + i0 * ld, 1, ld, 0,
                   s->tile, PANEL, 1);
    for (int64_t j = 0; j < nj; j++)
        s->mask[j] = k->reach(s->tile + j * PANEL, b->residual + i0, b->size[j0 + j],
                              b->limit[j0 + j]);
}

/* Exact z of a block's candidates, up to four samples at a time. */
static bool exact_block(const atoms_sae *sae, const atoms_sae_kernels *k, const sae_batch *b,
                        int64_t p, int64_t j0, int64_t nj, uint64_t valid, scratch *s,
                        double *candidates)
{
    int64_t ld = sae->ld;
    const float *x = b->xc + p * PANEL * ld;
    for (int64_t j = 0; j < nj; j++) {
        uint64_t mask = s->mask[j] & valid;
        if (!mask)
            continue;
        if (!scratch_grow(s, s->n + PANEL))
            return false;
        const float *w = sae->enc.w + (j0 + j) * ld;
        float bias = sae->b_enc.w[j0 + j], floor = b->floor[j0 + j];
        *candidates += __builtin_popcountll(mask);
        while (mask) {
            const float *rows[4];
            int which[4], n = 0;
            for (; mask && n < 4; mask &= mask - 1) {
                which[n] = __builtin_ctzll(mask);
                rows[n] = x + which[n] * ld;
                n++;
            }
            float z[4];
            k->dots(ld, n, w, rows, z);
            for (int a = 0; a < n; a++) {
                float value = z[a] + bias;
                if (value > floor) {
                    s->row[s->n] = (uint8_t)which[a];
                    s->latent[s->n] = (int32_t)(j0 + j);
                    s->z[s->n++] = value;
                }
            }
        }
    }
    return true;
}

static bool list_reserve(panel_list *l, int64_t n)
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

/* Counting sort of the gathered entries by sample; latents ascend already. */
static bool sort_by_row(const scratch *s, panel_list *l)
{
    if (!list_reserve(l, s->n))
        return false;
    int32_t at[PANEL + 1] = {0};
    for (int64_t e = 0; e < s->n; e++)
        at[s->row[e] + 1]++;
    for (int r = 0; r < PANEL; r++)
        at[r + 1] += at[r];
    memcpy(l->start, at, sizeof at);
    for (int64_t e = 0; e < s->n; e++) {
        int32_t to = at[s->row[e]]++;
        l->latent[to] = s->latent[e];
        l->z[to] = s->z[e];
    }
    l->n = s->n;
    return true;
}

static bool list_panel(const atoms_ctx *ctx, const atoms_sae *sae, const atoms_sae_kernels *k,
                       bool int8, sae_batch *b, int64_t p, scratch *s)
{
    panel_list *l = &b->list[p];
    int64_t rows = ATOMS_MIN(PANEL, b->n - p * PANEL);
    uint64_t valid = rows == PANEL ? ~(uint64_t)0 : ((uint64_t)1 << rows) - 1;
    l->candidates = l->seconds[0] = l->seconds[1] = 0;
    s->n = 0;
    double t0 = now();
    for (int64_t j0 = 0; j0 < sae->p.d_sae; j0 += BLOCK) {
        int64_t nj = ATOMS_MIN(BLOCK, sae->p.d_sae - j0);
        screen_block(ctx, sae, k, int8, b, p, j0, nj, s);
        double t1 = now();
        if (!exact_block(sae, k, b, p, j0, nj, valid, s, &l->candidates))
            return false;
        double t2 = now();
        l->seconds[0] += t1 - t0;
        l->seconds[1] += t2 - t1;
        t0 = t2;
    }
    return sort_by_row(s, l);
}

atoms_status sae_list_active(const atoms_ctx *ctx, const atoms_sae *sae, sae_batch *b)
{
    const atoms_sae_kernels *k = atoms_sae_kernels_for(ctx->isa);
    bool int8 = sae_screen_kind(ctx, sae) == ATOMS_SCREEN_INT8;
    screen_limits(sae, int8, b);
    int failed = 0, cancelled = 0;
#pragma omp parallel num_threads(ctx->p.num_threads) reduction(| : failed) reduction(| : cancelled)
    {
        scratch s = {0};
        atoms_pollster pollster = {0};
        s.mask = atoms_alloc(BLOCK, sizeof *s.mask);
        s.tile = int8 ? NULL : atoms_alloc(BLOCK * PANEL, sizeof *s.tile);
        failed |= !s.mask || (!int8 && !s.tile) || !scratch_grow(&s, 4096);
#pragma omp for schedule(dynamic, 1)
        for (int64_t p = 0; p < b->panels; p++) {
            if (failed || cancelled)
                continue;
            failed |= !list_panel(ctx, sae, k, int8, b, p, &s);
#ifdef _OPENMP
            if (omp_get_thread_num() == 0)
#endif
                cancelled |= atoms_poll(ctx, &pollster) != ATOMS_OK;
        }
        free(s.row);
        free(s.latent);
        free(s.z);
        atoms_free(s.mask);
        atoms_free(s.tile);
    }
    return failed ? ATOMS_ERR_MEMORY : cancelled ? ATOMS_ERR_CANCELLED : ATOMS_OK;
}
