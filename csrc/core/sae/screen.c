/* screen.c: which latents a sample may reach the floor of, from products of few bits or by BLAS. */
#include "sae.h"

#include <math.h>

atoms_screen sae_screen_kind(const atoms_ctx *ctx, atoms_screen asked)
{
    return asked == ATOMS_SCREEN_AUTO ? ctx->kernels->screens->best : asked;
}

/* NULL for F32. */
static sae_screen *screen_function(const atoms_ctx *ctx, atoms_screen kind)
{
    return kind == ATOMS_SCREEN_INT8    ? ctx->kernels->screens->int8
           : kind == ATOMS_SCREEN_INT16 ? ctx->kernels->screens->int16
                                        : NULL;
}

void sae_screen_row(const sae_kernels *k, atoms_sae *sae, int64_t j)
{
    sae_image *w = &sae->image;
    int64_t width = sae->in.width;
    const float *row = sae->enc.w + j * sae->in.ld;
    if (w->kind == ATOMS_SCREEN_INT16) {
        w->scale[j] = k->quantise16(width, row, (int16_t *)w->q + j * width, &w->residual[j], &w->norm[j]);
        return;
    }
    if (w->kind == ATOMS_SCREEN_INT8) {
        int32_t total;
        w->scale[j] = k->quantise(width, row, (int8_t *)w->q + j * width, &w->residual[j], &w->norm[j], &total);
        w->offset[j] = 128 * total;
        return;
    }
    float square = 0;
    k->dots(width, 1, row, row, 0, &(int32_t){0}, &square);
    w->norm[j] = sqrtf(square) * (1 + 1e-5f + (float)width * 0x1p-26f);
}

void sae_screen_limits(const sae_step *step)
{
    const atoms_sae *sae = step->sae;
    sae_batch *b = step->batch;
    const sae_image *w = &sae->image;
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

/* Masks of the latents from .. from + n for the tile's panels, from products of their images. */
static void screen_images(const sae_step *step, sae_screen *screen, const sae_tile *tile, int64_t from, int64_t n)
{
    const atoms_sae *sae = step->sae;
    const sae_batch *b = step->batch;
    int64_t width = sae->in.width, bytes = sae_image_bytes(sae->image.kind);
    const char *w = (const char *)sae->image.q + from * width * bytes;
    sae_screen_latents latents = {sae->image.offset + from, b->limit + from, b->rest + from, b->size + from};
    for (int64_t p = 0; p < tile->n; p++) {
        int64_t i = (tile->first + p) * PANEL_SAMPLES;
        sae_screen_samples samples = {b->scale + i, b->norm + i, b->residual + i};
        screen(width, n, (const char *)b->xq + i * width * bytes, &samples, w, &latents,
               tile->scratch->mask + p * sae->rows + from);
    }
}

/* The same from their float32 products. */
static void screen_floats(const sae_step *step, const sae_tile *tile, int64_t from, int64_t n)
{
    const atoms_sae *sae = step->sae;
    const sae_batch *b = step->batch;
    int64_t ld = sae->in.ld, width = sae->in.width, samples = TILE_PANELS_F32 * PANEL_SAMPLES;
    float *products = tile->scratch->products;
    atoms_gemm_f32(
        step->ctx, (atoms_mnk){n, tile->n * PANEL_SAMPLES, width}, (atoms_f32_in){sae->enc.w + from * ld, ld, 1},
        (atoms_f32_in){b->xc + tile->first * PANEL_SAMPLES * ld, 1, ld}, 0, (atoms_f32_out){products, samples, 1});
    for (int64_t p = 0; p < tile->n; p++) {
        const float *slack = b->residual + (tile->first + p) * PANEL_SAMPLES;
        uint64_t *mask = tile->scratch->mask + p * sae->rows + from;
        for (int64_t j = 0; j < n; j++)
            mask[j] = step->kernels->reach(products + j * samples + p * PANEL_SAMPLES, slack, b->size[from + j],
                                           b->limit[from + j]);
    }
}

atoms_status sae_screen_tile(const sae_step *step, atoms_team *team, const sae_tile *tile)
{
    sae_screen *screen = screen_function(step->ctx, step->sae->image.kind);
    for (int64_t from = tile->from; from < tile->to; from += BLOCK_LATENTS) {
        int64_t n = ATOMS_MIN(BLOCK_LATENTS, tile->to - from);
        atoms_status status = atoms_team_ask(team);
        if (status != ATOMS_OK)
            return status;
        if (screen)
            screen_images(step, screen, tile, from, n);
        else
            screen_floats(step, tile, from, n);
    }
    return ATOMS_OK;
}
