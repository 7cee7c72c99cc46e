/* active.c: which latents are active, without ever holding samples x latents.
 *
 * For each tile of panels: candidates (screen.c) by latent -> their exact z -> those above the floor, by sample. */
#include "sae.h"

/* The tile's candidates by latent. */
static bool gather_candidates(const sae_step *step, const sae_tile *tile)
{
    sae_scratch *s = tile->scratch;
    int64_t d_sae = step->sae->p.d_sae, rows = step->sae->rows, panels = tile->n, n = 0;
    int64_t last = ATOMS_MIN(PANEL_SAMPLES, step->batch->n - (tile->first + panels - 1) * PANEL_SAMPLES);
    uint64_t valid = last == PANEL_SAMPLES ? ~(uint64_t)0 : ((uint64_t)1 << last) - 1; /* of the last panel */
    for (int64_t j = 0; j < d_sae; j++) {
        s->start[j] = n;
        s->mask[(panels - 1) * rows + j] &= valid;
        for (int64_t p = 0; p < panels; p++)
            n += __builtin_popcountll(s->mask[p * rows + j]);
    }
    s->start[d_sae] = n;
    if (!sae_room_reserve(&s->room, n + 3, &s->row, &s->z, NULL))
        return false;
    int32_t *row = s->row;
    for (int64_t j = 0; j < d_sae; j++)
        for (int64_t p = 0; p < panels; p++) {
            uint64_t m = s->mask[p * rows + j];
            int count = __builtin_popcountll(m);
            /* by fours, the last ones idle: a branch for each bit would be mispredicted for each mask */
            for (int i = 0; i < count; i += 4)
                for (int k = 0; k < 4; k++, m &= m - 1)
                    row[i + k] = (int32_t)(p * PANEL_SAMPLES + __builtin_ctzll(m | (uint64_t)1 << 63));
            row += count;
        }
    return true;
}

/* Exact z of the candidates, less the bias, a strip of the columns at a time, so that the tile's strip of xc stays in
 * the second-level cache while the encoder's rows stream by. One of several strips is copied together: on few pages,
 * and away from neighbours that would be fetched in vain. */
static void exact_tile(const sae_step *step, const sae_tile *tile)
{
    const atoms_sae *sae = step->sae;
    const sae_kernels *k = step->kernels;
    sae_scratch *s = tile->scratch;
    int64_t ld = sae->ld, d_sae = sae->p.d_sae, strip = sae_strip(sae->width);
    memset(s->z, 0, (size_t)s->start[d_sae] * sizeof *s->z);
    for (int64_t c = 0; c < sae->width; c += strip) {
        int64_t columns = ATOMS_MIN(strip, sae->width - c);
        const float *x = step->batch->xc + tile->first * PANEL_SAMPLES * ld + c;
        for (int64_t i = 0; s->strip && i < tile->n * PANEL_SAMPLES; i++)
            memcpy(s->strip + i * strip, x + i * ld, (size_t)columns * sizeof *x);
        for (int64_t j = 0; j < d_sae; j++) {
            int64_t from = s->start[j], n = s->start[j + 1] - from, ahead = j + 4;
            if (ahead < d_sae && s->start[ahead + 1] > s->start[ahead]) {
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

/* The candidates above their floors move up in their lists, each with its bias, without a branch. count: (samples of
 * the tile,), zeros, to which each sample's are added. */
static void keep_active(const sae_step *step, sae_scratch *s, int32_t *count)
{
    int64_t n = 0, e = 0;
    for (int64_t j = 0; j < step->sae->p.d_sae; j++) {
        float bias = step->sae->b_enc.w[j], floor = step->batch->floor[j];
        s->start[j] = n;
        for (; e < s->start[j + 1]; e++) {
            float z = s->z[e] + bias;
            int32_t row = s->row[e], active = z > floor;
            s->z[n] = z;
            s->row[n] = row;
            count[row] += active;
            n += active;
        }
    }
    s->start[step->sae->p.d_sae] = n;
}

/* Counting sort of what lies above its floor into the panels' lists, by sample, then latent. */
static bool fill_lists(const sae_step *step, const sae_tile *tile)
{
    sae_scratch *s = tile->scratch;
    sae_list *lists = step->batch->list + tile->first;
    int32_t at[TILE_PANELS * PANEL_SAMPLES] = {0};
    keep_active(step, s, at);
    for (int64_t p = 0; p < tile->n; p++) {
        sae_list *l = &lists[p];
        l->start[0] = 0;
        for (int r = 0; r < PANEL_SAMPLES; r++) {
            l->start[r + 1] = l->start[r] + at[p * PANEL_SAMPLES + r];
            at[p * PANEL_SAMPLES + r] = l->start[r];
        }
        l->n = l->start[PANEL_SAMPLES];
        if (!sae_room_reserve(&l->room, l->n, &l->latent, &l->z, &l->ga))
            return false;
    }
    for (int64_t j = 0; j < step->sae->p.d_sae; j++)
        for (int64_t e = s->start[j]; e < s->start[j + 1]; e++) {
            sae_list *l = &lists[s->row[e] / PANEL_SAMPLES];
            int32_t to = at[s->row[e]]++;
            l->latent[to] = (int32_t)j;
            l->z[to] = s->z[e];
        }
    return true;
}

static atoms_status list_tile(const sae_step *step, atoms_team *team, const sae_tile *tile)
{
    double t0 = sae_now();
    atoms_status status = sae_screen_tile(step, team, tile);
    if (status != ATOMS_OK)
        return status;
    double t1 = sae_now();
    if (!gather_candidates(step, tile))
        return ATOMS_ERR_MEMORY;
    double candidates = (double)tile->scratch->start[step->sae->p.d_sae];
    exact_tile(step, tile);
    if (!fill_lists(step, tile))
        return ATOMS_ERR_MEMORY;
    sae_list *l = &step->batch->list[tile->first];
    for (int64_t p = 0; p < tile->n; p++)
        l[p].candidates = l[p].screen = l[p].exact = 0;
    l->candidates = candidates;
    l->screen = t1 - t0;
    l->exact = sae_now() - t1;
    return ATOMS_OK;
}

/* Panels of one task, which change the speed, never the result: enough tasks for every thread, the more so the cheaper
 * it is to stream the encoder once more, and the task's strip of xc within the second-level cache. */
static int64_t panels_of_tile(const sae_step *step)
{
    const atoms_sae *sae = step->sae;
    bool large = sae->p.d_sae * sae->ld > ((int64_t)1 << 22);
    int64_t tasks = (large ? 1 : 2) * (int64_t)step->ctx->p.num_threads;
    int64_t in_cache = 163840 / (PANEL_SAMPLES * sae_strip(sae->width));
    int64_t most = sae->image.kind == ATOMS_SCREEN_F32 ? TILE_PANELS_F32 : ATOMS_MIN(TILE_PANELS, in_cache);
    return ATOMS_MAX(1, ATOMS_MIN(atoms_ceil_div(step->batch->panels, tasks), most));
}

atoms_status sae_list_active(const sae_step *step)
{
    sae_batch *b = step->batch;
    sae_screen_limits(step);
    int64_t panels = panels_of_tile(step);
    atoms_team team = {.ctx = step->ctx};
#pragma omp parallel for num_threads(step->ctx->p.num_threads) schedule(dynamic, 1)
    for (int64_t p = 0; p < b->panels; p += panels)
        if (!atoms_team_stopped(&team)) {
            sae_tile tile = {p, ATOMS_MIN(panels, b->panels - p), &b->scratch[atoms_thread()]};
            atoms_team_report(&team, list_tile(step, &team, &tile));
        }
    return team.status;
}
