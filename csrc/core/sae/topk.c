/* topk.c: TopK and BatchTopK, from the lists of what lies above a floor. BatchTopK first counts how many entries are of
 * which size, which all threads can do, and looks only at those that are nearly as large as the cut.
 *
 * The floor is a guess from the last batch; where it hid a latent that belongs to the k largest, the batch is listed
 * again with a floor of zero. */
#include "sae.h"

/* Of sample r, whose entries begin at *from, keeps z > cut and the first `ties` of z == cut, moved down to *to. */
static void keep(sae_list *l, int r, float cut, int64_t *ties, int32_t *from, int32_t *to)
{
    for (int32_t end = l->start[r + 1]; *from < end; ++*from) {
        float z = l->z[*from];
        bool tie = z == cut && *ties > 0;
        if (z > cut || tie) {
            *ties -= tie;
            l->latent[*to] = l->latent[*from];
            l->z[(*to)++] = z;
        }
    }
    l->start[r + 1] = *to;
}

static int64_t above(const float *z, int64_t n, float cut)
{
    int64_t count = 0;
    for (int64_t i = 0; i < n; i++)
        count += z[i] > cut;
    return count;
}

/* Sizes above the floor in bins, 512 to each factor of two; the last has all that is larger. */
static int64_t bin_of(float z, float floor)
{
    union {
        float value;
        int32_t bits; /* of positive floats these rise with the value */
    } a = {z}, b = {floor};
    return ATOMS_MIN(CUT_BINS - 1, (a.bits - b.bits) >> 14);
}

/* The bin in which the *rank-th largest of all entries lies. *rank becomes its rank in there. */
static int64_t bin_of_rank(const sae_step *step, int64_t *rank)
{
    const sae_batch *b = step->batch;
    int threads = step->ctx->p.num_threads;
    int64_t total[CUT_BINS] = {0};
    memset(b->bins, 0, (size_t)threads * CUT_BINS * sizeof *b->bins);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t p = 0; p < b->panels; p++) {
        int32_t *bins = b->bins + (int64_t)atoms_thread() * CUT_BINS;
        for (int64_t e = 0; e < b->list[p].n; e++)
            bins[bin_of(b->list[p].z[e], b->floor[0])]++;
    }
    for (int64_t t = 0; t < threads; t++)
        for (int64_t i = 0; i < CUT_BINS; i++)
            total[i] += b->bins[t * CUT_BINS + i];
    int64_t bin = CUT_BINS - 1;
    while (*rank > total[bin])
        *rank -= total[bin--];
    return bin;
}

/* Copies the entries of that bin into ga, which is not in use yet. */
static void gather_bin(sae_list *l, float floor, int64_t bin)
{
    l->near = 0;
    for (int64_t e = 0; e < l->n; e++)
        if (bin_of(l->z[e], floor) == bin)
            l->ga[l->near++] = l->z[e];
}

/* The rank-th largest of what all panels have gathered, and how many that equal it each of them keeps. */
static atoms_status find_cut(sae_batch *b, int64_t rank, float *cut)
{
    int64_t n = 0;
    for (int64_t p = 0; p < b->panels; p++)
        n += b->list[p].near;
    if (!sae_room_reserve(&b->room, n, &b->row, &b->z, &b->ga)) /* the lists by latent come into it later */
        return ATOMS_ERR_MEMORY;
    float *at = b->z;
    for (int64_t p = 0; p < b->panels; p++) {
        const sae_list *l = &b->list[p];
        if (l->near)
            memcpy(at, l->ga, (size_t)l->near * sizeof *at);
        at += l->near;
    }
    *cut = atoms_kth_largest(b->z, n, rank);
    int64_t ties = rank - above(b->z, n, *cut);
    for (int64_t p = 0; p < b->panels; p++) {
        sae_list *l = &b->list[p];
        l->ties = 0;
        for (int64_t e = 0; e < l->near && l->ties < ties; e++)
            l->ties += l->ga[e] == *cut;
        ties -= l->ties;
    }
    return ATOMS_OK;
}

static void keep_panel(sae_list *l, float cut)
{
    int32_t to = 0, from = 0;
    int64_t ties = l->ties;
    for (int r = 0; r < PANEL_SAMPLES; r++)
        keep(l, r, cut, &ties, &from, &to);
    l->n = to;
}

/* One cut for the whole batch. *short_of: fewer than n k are listed. */
static atoms_status select_batch(const sae_step *step, int64_t k, bool *short_of)
{
    sae_batch *b = step->batch;
    int threads = step->ctx->p.num_threads;
    int64_t n = 0, want = b->n * k;
    for (int64_t p = 0; p < b->panels; p++)
        n += b->list[p].n;
    *short_of = n < want;
    if (n <= want) {
        b->topk_floor = 0;
        return ATOMS_OK;
    }
    int64_t bin = bin_of_rank(step, &want);
    float cut;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t p = 0; p < b->panels; p++)
        gather_bin(&b->list[p], b->floor[0], bin);
    atoms_status status = find_cut(b, want, &cut);
    if (status != ATOMS_OK)
        return status;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t p = 0; p < b->panels; p++)
        keep_panel(&b->list[p], cut);
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
        int32_t n = l->start[r + 1] - from;
        lacking |= n < k && r < n_samples;
        float cut = 0;
        int64_t ties = 0;
        if (n > k) {
            memcpy(work, l->z + from, (size_t)n * sizeof *work);
            cut = atoms_kth_largest(work, n, k);
            ties = k - above(work, n, cut);
            *lowest = ATOMS_MIN(*lowest, cut);
        }
        keep(l, r, cut, &ties, &from, &to);
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
        atoms_status status = step->sae->p.activation == ATOMS_TOPK ? select_samples(step, k, &short_of)
                                                                    : select_batch(step, k, &short_of);
        if (status != ATOMS_OK || !short_of || !guessed)
            return status;
        memset(b->floor, 0, (size_t)step->sae->p.d_sae * sizeof *b->floor);
        status = sae_list_active(step);
        if (status != ATOMS_OK)
            return status;
    }
}
