/* sort.c: the lists by latent, from those by sample: a counting sort.
 *
 * Panels are taken in groups, a thread's each. Once it is known how many entries each group has of each latent, so is
 * where they go: the same places however many groups there are. */
#include "sae.h"

/* Panels from .. to of one kind of lists, those of the samples or AuxK's: the group's number of entries of each latent,
 * then where the next one goes, counted from the latent's first. */
typedef struct {
    const sae_list *lists;
    int64_t from, to;
    int32_t *at; /* (d_sae,) */
} sort_group;

static sort_group group_of(const sae_step *step, int64_t groups, int64_t g)
{
    sae_batch *b = step->batch;
    const sae_list *lists = g < groups ? b->list : b->aux;
    return (sort_group){lists, b->panels * (g % groups) / groups, b->panels * (g % groups + 1) / groups,
                        b->at + g * step->sae->p.d_sae};
}

static void count_entries(const sort_group *g, int64_t d_sae)
{
    memset(g->at, 0, (size_t)d_sae * sizeof *g->at);
    for (int64_t p = g->from; p < g->to; p++)
        for (int64_t e = 0; e < g->lists[p].n; e++)
            g->at[g->lists[p].latent[e]]++;
}

static void place_entries(sae_batch *b, const sort_group *g)
{
    for (int64_t p = g->from; p < g->to; p++) {
        const sae_list *l = &g->lists[p];
        for (int r = 0; r < PANEL_SAMPLES; r++)
            for (int32_t e = l->start[r]; e < l->start[r + 1]; e++) {
                int32_t j = l->latent[e];
                int64_t i = b->start[j] + g->at[j]++;
                b->row[i] = (int32_t)(p * PANEL_SAMPLES + r);
                b->z[i] = l->z[e];
                b->ga[i] = l->ga[e];
            }
    }
}

/* Latents from .. to: each group's place, from the numbers before it. start[j + 1] and aux_start[j] count from the
 * latent's own first entry yet. */
static void place_groups(const sae_step *step, int64_t groups, int64_t kinds, int64_t from, int64_t to)
{
    sae_batch *b = step->batch;
    int64_t d_sae = step->sae->p.d_sae, *n = b->start + 1;
    memset(n + from, 0, (size_t)(to - from) * sizeof *n);
    for (int64_t g = 0; g < kinds * groups; g++) {
        int32_t *at = b->at + g * d_sae;
        for (int64_t j = from; j < to; j++) {
            int32_t count = at[j];
            at[j] = (int32_t)n[j];
            n[j] += count;
        }
        if (g == groups - 1)
            memcpy(b->aux_start + from, n + from, (size_t)(to - from) * sizeof *n);
    }
}

atoms_status sae_sort_by_latent(const sae_step *step)
{
    sae_batch *b = step->batch;
    int threads = step->ctx->p.num_threads;
    int64_t s = step->sae->p.d_sae, n = 0, aux = 0, groups = ATOMS_MIN(b->panels, (int64_t)threads);
    for (int64_t p = 0; p < b->panels; p++) {
        n += b->list[p].n;
        aux += b->aux[p].n;
    }
    if (!sae_room_reserve(&b->room, n + aux, &b->row, &b->z, &b->ga))
        return ATOMS_ERR_MEMORY;
    int64_t kinds = aux ? 2 : 1;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t g = 0; g < kinds * groups; g++) {
        const sort_group group = group_of(step, groups, g);
        count_entries(&group, s);
    }
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t from = 0; from < s; from += PART_LATENTS)
        place_groups(step, groups, kinds, from, ATOMS_MIN(from + PART_LATENTS, s));
    b->start[0] = 0;
    for (int64_t j = 0; j < s; j++) {
        b->aux_start[j] += b->start[j];
        b->start[j + 1] += b->start[j];
    }
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t g = 0; g < kinds * groups; g++) {
        const sort_group group = group_of(step, groups, g);
        place_entries(b, &group);
    }
    return ATOMS_OK;
}
