/* active.c: which latents are active, without ever holding samples x latents.
 *
 * A tile is some panels and, where there are few of these for the threads, a range of the latents. For each: candidates
 * (screen.c) by latent -> their exact z -> those above the floor, by sample. */
#include "sae.h"

#define RANGE_LATENTS 96 /* a range of latents is a multiple of so many: of SCREEN_LATENTS, and of a cache line's */

/* The tile's candidates by latent. */
static bool gather_candidates(const sae_step *step, const sae_tile *tile)
{
    sae_piece *s = tile->piece;
    int64_t latents = tile->to - tile->from, rows = step->sae->rows, panels = tile->n, n = 0;
    int64_t last = ATOMS_MIN(PANEL_SAMPLES, step->batch->n - (tile->first + panels - 1) * PANEL_SAMPLES);
    uint64_t valid = last == PANEL_SAMPLES ? ~(uint64_t)0 : ((uint64_t)1 << last) - 1; /* of the last panel */
    uint64_t *mask = tile->scratch->mask + tile->from;
    for (int64_t j = 0; j < latents; j++) {
        s->start[j] = n;
        mask[(panels - 1) * rows + j] &= valid;
        for (int64_t p = 0; p < panels; p++)
            n += __builtin_popcountll(mask[p * rows + j]);
    }
    s->start[latents] = n;
    if (!sae_room_reserve(&s->room, n + 3, &s->row, &s->z, NULL))
        return false;
    int32_t *row = s->row;
    for (int64_t j = 0; j < latents; j++)
        for (int64_t p = 0; p < panels; p++) {
            uint64_t m = mask[p * rows + j];
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
    const sae_piece *s = tile->piece;
    float *copy = tile->scratch->strip;
    int64_t ld = sae->in.ld, latents = tile->to - tile->from, strip = sae_strip(sae->in.width);
    memset(s->z, 0, (size_t)s->start[latents] * sizeof *s->z);
    for (int64_t c = 0; c < sae->in.width; c += strip) {
        int64_t columns = ATOMS_MIN(strip, sae->in.width - c);
        const float *x = step->batch->xc + tile->first * PANEL_SAMPLES * ld + c, *w = sae->enc.w + tile->from * ld + c;
        for (int64_t i = 0; copy && i < tile->n * PANEL_SAMPLES; i++)
            memcpy(copy + i * strip, x + i * ld, (size_t)columns * sizeof *x);
        for (int64_t j = 0; j < latents; j++) {
            int64_t from = s->start[j], n = s->start[j + 1] - from, ahead = j + 4;
            if (ahead < latents && s->start[ahead + 1] > s->start[ahead]) {
                for (int64_t i = 0; i < columns; i += 16)
                    if (copy) /* a few lines; a whole row would wait for the first level's miss buffers */
                        __builtin_prefetch(w + ahead * ld + i);
                    else
                        __builtin_prefetch(w + ahead * ld + i, 0, 2);
            }
            if (n)
                k->dots(columns, n, w + j * ld, copy ? copy : x, copy ? strip : ld, s->row + from, s->z + from);
        }
    }
}

/* The candidates above their floors move up in their lists, each with its bias, without a branch; each sample's are
 * counted. */
static void keep_active(const sae_step *step, const sae_tile *tile)
{
    sae_piece *s = tile->piece;
    int64_t n = 0, e = 0, latents = tile->to - tile->from;
    memset(s->count, 0, (size_t)(tile->n * PANEL_SAMPLES) * sizeof *s->count);
    for (int64_t j = 0; j < latents; j++) {
        float bias = step->sae->b_enc.w[tile->from + j], floor = step->batch->floor[tile->from + j];
        s->start[j] = n;
        for (; e < s->start[j + 1]; e++) {
            float z = s->z[e] + bias;
            int32_t row = s->row[e], active = z > floor;
            s->z[n] = z;
            s->row[n] = row;
            s->count[row] += active;
            n += active;
        }
    }
    s->start[latents] = n;
}

static atoms_status search_tile(const sae_step *step, atoms_team *team, const sae_tile *tile)
{
    double t0 = sae_now();
    atoms_status status = sae_screen_tile(step, team, tile);
    if (status != ATOMS_OK)
        return status;
    sae_piece *s = tile->piece;
    double t1 = sae_now();
    if (!gather_candidates(step, tile))
        return ATOMS_ERR_MEMORY;
    s->candidates = (double)s->start[tile->to - tile->from];
    exact_tile(step, tile);
    keep_active(step, tile);
    s->screen = t1 - t0;
    s->exact = sae_now() - t1;
    return ATOMS_OK;
}

/* Room in panel p's list for what the pieces of its tile have found, one for each range of latents. Each piece's counts
 * become where in the list its entries go. row: the panel's first, within the tile. */
static bool open_list(const sae_step *step, int64_t p, int64_t row, sae_piece *pieces, int64_t n_pieces)
{
    sae_list *l = &step->batch->list[p];
    int32_t n = 0;
    for (int64_t r = 0; r < PANEL_SAMPLES; r++) {
        l->start[r] = n;
        for (int64_t k = 0; k < n_pieces; k++) {
            int32_t count = pieces[k].count[row + r];
            pieces[k].count[row + r] = n;
            n += count;
        }
    }
    l->n = l->start[PANEL_SAMPLES] = n;
    l->candidates = l->screen = l->exact = 0;
    for (int64_t k = 0; row == 0 && k < n_pieces; k++) {
        l->candidates += pieces[k].candidates;
        l->screen += pieces[k].screen;
        l->exact += pieces[k].exact;
    }
    return sae_room_reserve(&l->room, l->n, &l->latent, &l->z, &l->ga);
}

/* Counting sort of a tile's active latents into the panels' lists, by sample, then latent. */
static void fill_lists(const sae_step *step, const sae_tile *tile)
{
    sae_piece *s = tile->piece;
    sae_list *lists = step->batch->list + tile->first;
    for (int64_t j = 0; j < tile->to - tile->from; j++)
        for (int64_t e = s->start[j]; e < s->start[j + 1]; e++) {
            sae_list *l = &lists[s->row[e] / PANEL_SAMPLES];
            int32_t to = s->count[s->row[e]]++;
            l->latent[to] = (int32_t)(tile->from + j);
            l->z[to] = s->z[e];
        }
}

/* -------------------------------------------------------------- the tiles */

/* How a batch is cut, which changes the speed, never the result. */
typedef struct {
    int64_t panels; /* of a tile */
    int64_t tiles;  /* that hold all panels, */
    int64_t ranges; /* and ranges of latents, each of so many tiles */
    int64_t latents;
} tile_cut;

/* Enough tiles for every thread, of the shape that reads least: each reads its rows and its latents. What of the rows it
 * reads again stays within the second-level cache. */
static tile_cut cut_tiles(const sae_step *step)
{
    const atoms_sae *sae = step->sae;
    int64_t s = sae->p.d_sae, panels = step->batch->panels, threads = step->ctx->p.num_threads;
    bool floats = sae->image.kind == ATOMS_SCREEN_F32;
    int64_t in_cache = ATOMS_MAX(1, 163840 / (PANEL_SAMPLES * sae_strip(sae->in.width)));
    int64_t most = floats ? TILE_PANELS_F32 : ATOMS_MIN(TILE_PANELS, in_cache);
    int64_t whole = floats ? BLOCK_LATENTS : RANGE_LATENTS, tasks = threads > 1 ? (threads > 2 ? 4 : 2) * threads : 1;
    tile_cut best = {0};
    int64_t least = INT64_MAX;
    for (int64_t p = 1; p <= most; p++) {
        int64_t tiles = atoms_ceil_div(panels, p);
        int64_t latents = atoms_whole(atoms_ceil_div(s, atoms_ceil_div(tasks, tiles)), whole);
        int64_t ranges = atoms_ceil_div(s, latents), reads = tiles * (ranges * p * PANEL_SAMPLES + s);
        if (reads < least) {
            least = reads;
            best = (tile_cut){p, tiles, ranges, latents};
        }
    }
    return best;
}

/* Tile number t: panels by panels, and of those one range of latents after the other. */
static sae_tile tile_of(const sae_step *step, const tile_cut *cut, int64_t t)
{
    sae_batch *b = step->batch;
    int64_t first = t / cut->ranges * cut->panels, from = t % cut->ranges * cut->latents, s = step->sae->p.d_sae;
    sae_piece *piece = &b->piece[cut->ranges > 1 ? t : atoms_thread()];
    piece->start = b->piece_start + (cut->ranges > 1 ? t / cut->ranges * (s + cut->ranges) + from + t % cut->ranges
                                                     : atoms_thread() * (s + 1));
    return (sae_tile){first,
                      ATOMS_MIN(cut->panels, b->panels - first),
                      from,
                      ATOMS_MIN(from + cut->latents, s),
                      &b->scratch[atoms_thread()],
                      piece};
}

/* A tile of all latents, from beginning to end. */
static atoms_status list_tile(const sae_step *step, atoms_team *team, const sae_tile *tile)
{
    atoms_status status = search_tile(step, team, tile);
    if (status != ATOMS_OK)
        return status;
    for (int64_t p = 0; p < tile->n; p++)
        if (!open_list(step, tile->first + p, p * PANEL_SAMPLES, tile->piece, 1))
            return ATOMS_ERR_MEMORY;
    fill_lists(step, tile);
    return ATOMS_OK;
}

atoms_status sae_list_active(const sae_step *step)
{
    sae_batch *b = step->batch;
    if (b->panels == 0) /* nothing to cut */
        return ATOMS_OK;
    sae_screen_limits(step);
    const tile_cut cut = cut_tiles(step);
    const int threads = step->ctx->p.num_threads;
    int64_t tiles = cut.tiles * cut.ranges;
    atoms_team team = {.ctx = step->ctx};
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
    for (int64_t t = 0; t < tiles; t++)
        if (!atoms_team_stopped(&team)) {
            sae_tile tile = tile_of(step, &cut, t);
            atoms_team_report(&team, cut.ranges > 1 ? search_tile(step, &team, &tile) : list_tile(step, &team, &tile));
        }
    if (cut.ranges == 1 || team.status < 0)
        return team.status;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t p = 0; p < b->panels; p++)
        if (!open_list(step, p, p % cut.panels * PANEL_SAMPLES, b->piece + p / cut.panels * cut.ranges, cut.ranges))
            atoms_team_report(&team, ATOMS_ERR_MEMORY);
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
    for (int64_t t = 0; t < (team.status < 0 ? 0 : tiles); t++) {
        sae_tile tile = tile_of(step, &cut, t);
        fill_lists(step, &tile);
    }
    return team.status;
}
