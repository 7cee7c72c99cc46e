/* sae_topk.c: TopK and BatchTopK on top of the screened lists.
 *
 * The floor is a guess from the last batch; where it hid a latent that belongs to the k largest,
 * the batch is screened again at zero. */
#include "sae.h"

/* Keeps z > cut and the first `ties` of z == cut, in [from, to) of l, moved down to *at. */
static void keep(panel_list *l, int32_t from, int32_t to, float cut, int64_t *ties, int32_t *at)
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
    float *z = atoms_alloc(n, sizeof *z);
    if (!z)
        return ATOMS_ERR_MEMORY;
    int64_t at = 0;
    for (int64_t p = 0; p < b->panels; p++) {
        if (b->list[p].n)
            memcpy(z + at, b->list[p].z, (size_t)b->list[p].n * sizeof *z);
        at += b->list[p].n;
    }
    float cut = atoms_kth_largest(z, n, want);
    int64_t ties = want - above(z, n, cut);
    atoms_free(z);
    for (int64_t p = 0; p < b->panels; p++) {
        panel_list *l = &b->list[p];
        int32_t to = 0, from = 0;
        for (int r = 0; r < PANEL; r++) {
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

static atoms_status select_samples(const atoms_ctx *ctx, sae_batch *b, int64_t k, bool *short_of)
{
    bool lacking = false, failed = false;
    float lowest = 3e38f;
#pragma omp parallel for num_threads(ctx->p.num_threads) schedule(static) reduction(|                                  \
                                                                                    : lacking, failed)                 \
    reduction(min                                                                                                      \
              : lowest)
    for (int64_t p = 0; p < b->panels; p++) {
        panel_list *l = &b->list[p];
        float *z = atoms_alloc(l->n, sizeof *z);
        if (!z) {
            failed = true;
            continue;
        }
        int32_t to = 0, from = 0;
        for (int r = 0; r < PANEL; r++) {
            int32_t end = l->start[r + 1], n = end - from;
            lacking |= n < k && p * PANEL + r < b->n;
            float cut = 0;
            int64_t ties = 0;
            if (n > k) {
                memcpy(z, l->z + from, (size_t)n * sizeof *z);
                cut = atoms_kth_largest(z, n, k);
                ties = k - above(z, n, cut);
            }
            if (n >= k)
                lowest = ATOMS_MIN(lowest, n > k ? cut : 3e38f);
            keep(l, from, end, cut, &ties, &to);
            from = end;
            l->start[r + 1] = to;
        }
        l->n = to;
        atoms_free(z);
    }
    *short_of = lacking;
    b->topk_floor = lowest < 3e38f ? 0.7f * lowest : 0;
    return failed ? ATOMS_ERR_MEMORY : ATOMS_OK;
}

atoms_status sae_select_topk(const atoms_ctx *ctx, const atoms_sae *sae, sae_batch *b, int64_t k)
{
    for (;;) {
        bool short_of, guessed = b->floor[0] > 0;
        atoms_status status =
            sae->p.activation == ATOMS_TOPK ? select_samples(ctx, b, k, &short_of) : select_batch(b, k, &short_of);
        if (status != ATOMS_OK || !short_of || !guessed)
            return status;
        for (int64_t j = 0; j < sae->p.d_sae; j++)
            b->floor[j] = 0;
        status = sae_list_active(ctx, sae, b);
        if (status != ATOMS_OK)
            return status;
    }
}
