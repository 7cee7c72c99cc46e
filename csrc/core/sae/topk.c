/* topk.c: TopK and BatchTopK, from the lists of what lies above a floor.
 *
 * The floor is a guess from the last batch; where it hid a latent that belongs to the k largest, the batch is listed
 * again with a floor of zero. */
#include "sae.h"

/* Keeps z > cut and the first `ties` of z == cut, in [from, to) of l, moved down to *at. */
static void keep(sae_list *l, int32_t from, int32_t to, float cut, int64_t *ties, int32_t *at)
{
    for (int32_t e = from; e < to; e++) {
        bool tie = l->z[e] == cut && *ties > 0;
        if (l->z[e] > cut || tie) {
            *ties -= tie;
            l->latent[*at] = l->latent[e];
            l->z[(*at)++] = l->z[e];
        }
    }
}

static int64_t above(const float *z, int64_t n, float cut)
{
    int64_t count = 0;
    for (int64_t i = 0; i < n; i++)
        count += z[i] > cut;
    return count;
}

/* One cut for the whole batch. *short_of: fewer than n k are listed. */
static atoms_status select_batch(sae_batch *b, int64_t k, bool *short_of)
{
    int64_t n = 0, want = b->n * k;
    for (int64_t p = 0; p < b->panels; p++)
        n += b->list[p].n;
    *short_of = n < want;
    if (n <= want) {
        b->topk_floor = 0;
        return ATOMS_OK;
    }
    if (!sae_room_reserve(&b->room, n, &b->row, &b->z, &b->ga)) /* the lists by latent come into it later */
        return ATOMS_ERR_MEMORY;
    int64_t at = 0;
    for (int64_t p = 0; p < b->panels; p++) {
        if (b->list[p].n)
            memcpy(b->z + at, b->list[p].z, (size_t)b->list[p].n * sizeof *b->z);
        at += b->list[p].n;
    }
    float cut = atoms_kth_largest(b->z, n, want);
    int64_t ties = want - above(b->z, n, cut);
    for (int64_t p = 0; p < b->panels; p++) {
        sae_list *l = &b->list[p];
        int32_t to = 0, from = 0;
        for (int r = 0; r < PANEL_SAMPLES; r++) {
            int32_t end = l->start[r + 1];
            keep(l, from, end, cut, &ties, &to);
            from = end;
            l->start[r + 1] = to;
        }
        l->n = to;
    }
    b->topk_floor = 0.8f * cut;
    return ATOMS_OK;
}

/* A cut for each of a panel's samples, of which the first n_samples count. work: (l->n,). Returns whether one has fewer
 * than k; *lowest falls to the lowest cut. */
static bool select_panel(sae_list *l, int64_t n_samples, int64_t k, float *work, float *lowest)
{
    bool lacking = false;
    int32_t to = 0, from = 0;
    for (int r = 0; r < PANEL_SAMPLES; r++) {
        int32_t end = l->start[r + 1], n = end - from;
        lacking |= n < k && r < n_samples;
        float cut = 0;
        int64_t ties = 0;
        if (n > k) {
            memcpy(work, l->z + from, (size_t)n * sizeof *work);
            cut = atoms_kth_largest(work, n, k);
            ties = k - above(work, n, cut);
            *lowest = ATOMS_MIN(*lowest, cut);
        }
        keep(l, from, end, cut, &ties, &to);
        from = end;
        l->start[r + 1] = to;
    }
    l->n = to;
    return lacking;
}

/* A cut for each sample. *short_of: one has fewer than k. */
static atoms_status select_samples(const sae_step *step, int64_t k, bool *short_of)
{
    sae_batch *b = step->batch;
    int threads = step->ctx->p.num_threads;
    bool lacking = false, failed = false;
    float lowest = 3e38f;
#pragma omp parallel for num_threads(threads) schedule(static) reduction(| : lacking, failed) reduction(min : lowest)
    for (int64_t p = 0; p < b->panels; p++) {
        sae_piece *s = &b->piece[atoms_thread()];
        if (sae_room_reserve(&s->room, b->list[p].n, &s->row, &s->z, NULL))
            lacking |= select_panel(&b->list[p], b->n - p * PANEL_SAMPLES, k, s->z, &lowest);
        else
            failed = true;
    }
    *short_of = lacking;
    b->topk_floor = lowest < 3e38f ? 0.7f * lowest : 0;
    return failed ? ATOMS_ERR_MEMORY : ATOMS_OK;
}

atoms_status sae_select_topk(const sae_step *step, int64_t k)
{
    sae_batch *b = step->batch;
    for (;;) {
        bool short_of, guessed = b->floor[0] > 0;
        atoms_status status =
            step->sae->p.activation == ATOMS_TOPK ? select_samples(step, k, &short_of) : select_batch(b, k, &short_of);
        if (status != ATOMS_OK || !short_of || !guessed)
            return status;
        memset(b->floor, 0, (size_t)step->sae->p.d_sae * sizeof *b->floor);
        status = sae_list_active(step);
        if (status != ATOMS_OK)
            return status;
    }
}
