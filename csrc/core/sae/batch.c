/* batch.c: the workspace of a step, which stays from step to step. */
#include "sae.h"

bool sae_room_reserve(sae_room *room, int64_t n, int32_t **of, float **z, float **ga)
{
    size_t size = sizeof **of + sizeof **z + (ga ? sizeof **ga : 0);
    bool ok = atoms_grow(&room->block, &room->cap, atoms_whole(n, 64), size);
    int64_t cap = room->cap / 16 * 16; /* each list begins on a cache line */
    *of = room->block;
    *z = ok && cap ? (float *)(*of + cap) : NULL;
    if (ga)
        *ga = ok && cap ? *z + cap : NULL;
    return ok;
}

/* A thread's part of the workspace.
 *
 *     to list a tile's active latents:  mask | products (F32) | strip (several strips)
 *     for a step only:                  codes | dead_z, column (AuxK)
 *
 * The candidates, of which there may be any number, lie in a block of their own. */
static sae_scratch take_scratch(atoms_arena *arena, const atoms_sae *sae, int64_t errors)
{
    sae_scratch s = {0};
    int64_t strip = sae_strip(sae->in.width);
    ATOMS_TAKE(arena, s.mask, TILE_PANELS * sae->rows);
    if (sae->image.kind == ATOMS_SCREEN_F32)
        ATOMS_TAKE(arena, s.products, BLOCK_LATENTS * TILE_PANELS_F32 * PANEL_SAMPLES);
    if (strip < sae->in.width)
        ATOMS_TAKE(arena, s.strip, TILE_PANELS * PANEL_SAMPLES * strip);
    if (errors > 0)
        ATOMS_TAKE(arena, s.codes, PANEL_SAMPLES * BLOCK_LATENTS);
    if (errors > sae->p.n_prefixes) {
        ATOMS_TAKE(arena, s.dead_z, 2 * sae->p.d_sae);
        ATOMS_TAKE(arena, s.column, sae->out.ld);
    }
    return s;
}

/* The workspace, for most_panels, errors and threads as they stand in b:
 *
 *     the samples:        xc | xq | scale, norm, residual | sums
 *     the latents:        floor | limit, rest, size
 *     what is listed:     list, aux | scratch | each thread's part of that | piece, piece_start | counts of each
 *     for a step only:    yc, y_sums (transcoders) | err | err_sum, weight, partial, bands | dead (AuxK)
 *                         | start, aux_start, at | g_bias | bins (BatchTopK)
 *
 * What grows with the number of active latents lies in blocks of its own: the lists by sample, the lists by latent, the
 * candidates, the gradients that threads hold. */
static void lay_out(sae_batch *b, const atoms_sae *sae)
{
    atoms_arena *arena = &b->arena;
    int64_t panels = b->most_panels, samples = panels * PANEL_SAMPLES, s = sae->p.d_sae, ld = sae->in.ld,
            out = sae->out.ld;
    ATOMS_TAKE(arena, b->xc, samples * ld);
    b->xq = atoms_take(arena, samples * sae->in.width, (size_t)sae_image_bytes(sae->image.kind));
    ATOMS_TAKE(arena, b->scale, samples);
    ATOMS_TAKE(arena, b->norm, samples);
    ATOMS_TAKE(arena, b->residual, samples);
    ATOMS_TAKE(arena, b->sums, panels * (1 + sae->in.width));
    ATOMS_TAKE(arena, b->floor, sae->rows);
    ATOMS_TAKE(arena, b->limit, sae->rows);
    ATOMS_TAKE(arena, b->rest, sae->rows);
    ATOMS_TAKE(arena, b->size, sae->rows);
    ATOMS_TAKE(arena, b->list, panels);
    ATOMS_TAKE(arena, b->aux, panels);
    ATOMS_TAKE(arena, b->scratch, b->threads);
    for (int t = 0; t < b->threads; t++) {
        sae_scratch scratch = take_scratch(arena, sae, b->errors);
        if (b->scratch)
            b->scratch[t] = scratch;
    }
    int64_t pieces = THREAD_PIECES * (int64_t)b->threads;
    ATOMS_TAKE(arena, b->piece, pieces);
    ATOMS_TAKE(arena, b->piece_start, pieces / 2 * s + pieces);
    for (int64_t i = 0; i < pieces; i++) {
        int32_t *count = atoms_take(arena, TILE_PANELS * PANEL_SAMPLES, sizeof *count);
        if (b->piece)
            b->piece[i] = (sae_piece){.count = count};
    }
    if (b->errors == 0)
        return;
    int64_t parts = sae->rows / PART_LATENTS;
    if (sae->p.d_out) {
        ATOMS_TAKE(arena, b->yc, samples * out);
        ATOMS_TAKE(arena, b->y_sums, panels * (1 + sae->out.width));
    } else {
        b->yc = b->xc;
        b->y_sums = b->sums;
    }
    ATOMS_TAKE(arena, b->err, b->errors * samples * out);
    ATOMS_TAKE(arena, b->err_sum, out);
    ATOMS_TAKE(arena, b->weight, samples);
    ATOMS_TAKE(arena, b->partial, ATOMS_MAX(panels, parts) * ATOMS_MAX(ld, out));
    ATOMS_TAKE(arena, b->bands, 2 * parts);
    if (b->errors > sae->p.n_prefixes)
        ATOMS_TAKE(arena, b->dead, s);
    ATOMS_TAKE(arena, b->start, s + 1);
    ATOMS_TAKE(arena, b->aux_start, s);
    ATOMS_TAKE(arena, b->at, 2 * ATOMS_MIN(panels, (int64_t)b->threads) * s);
    ATOMS_TAKE(arena, b->g_bias, s);
    if (sae->p.activation == ATOMS_BATCHTOPK)
        ATOMS_TAKE(arena, b->bins, CUT_BINS * (int64_t)b->threads);
}

/* The arena, and the blocks of which it holds the addresses. */
static void close_arena(sae_batch *b)
{
    if (b->arena.base) {
        for (int64_t p = 0; p < b->most_panels; p++) {
            atoms_free(b->list[p].room.block);
            atoms_free(b->aux[p].room.block);
        }
        for (int64_t i = 0; i < THREAD_PIECES * (int64_t)b->threads; i++)
            atoms_free(b->piece[i].room.block);
    }
    atoms_arena_close(&b->arena);
}

atoms_status sae_batch_reserve(const atoms_ctx *ctx, const atoms_sae *sae, sae_batch *b, int64_t n, int64_t errors)
{
    int64_t panels = atoms_ceil_div(n, PANEL_SAMPLES);
    int threads = ctx->p.num_threads;
    if (!b->arena.base || panels > b->most_panels || errors > b->errors || threads > b->threads) {
        close_arena(b);
        b->most_panels = ATOMS_MAX(b->most_panels, panels);
        b->errors = ATOMS_MAX(b->errors, errors);
        b->threads = ATOMS_MAX(b->threads, threads);
        lay_out(b, sae);
        if (!atoms_arena_open(&b->arena)) {
            sae_batch_free(b);
            return ATOMS_ERR_MEMORY;
        }
        lay_out(b, sae);
        memset(b->list, 0, (size_t)b->most_panels * sizeof *b->list);
        memset(b->aux, 0, (size_t)b->most_panels * sizeof *b->aux);
    }
    b->n = n;
    b->panels = panels;
    return ATOMS_OK;
}

void sae_batch_free(sae_batch *b)
{
    close_arena(b);
    atoms_free(b->room.block);
    atoms_free(b->rows);
    *b = (sae_batch){.topk_floor = b->topk_floor};
}
