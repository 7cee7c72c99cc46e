/* sae_dense.c: the step's sums where so many latents are active that a matrix product over all of them, the
 * zeros included, costs less than the active ones' rows one by one. Tiles of codes live for one product. */
#include "sae.h"

bool sae_is_dense(const atoms_sae *sae, const sae_batch *b)
{
    int64_t entries = 0;
    for (int64_t p = 0; p < b->panels; p++)
        entries += b->list[p].n;
    /* Zen 4, 576 to 2,304: even near two fifths. Prefixes have an error each and stay with rows. */
    return sae->p.n_prefixes == 1 && 5 * entries > 2 * b->n * sae->p.d_sae;
}

bool sae_dense_panel(const atoms_ctx *ctx, const atoms_sae *sae, sae_batch *b, int64_t p, bool gradients)
{
    int64_t ld = sae->ld;
    panel_list *l = &b->list[p];
    float *tile = atoms_alloc(PANEL * BLOCK, sizeof *tile), *err = sae_error_row(b, ld, 0, p * PANEL);
    if (!tile)
        return false;
    int32_t at[PANEL];
    memcpy(at, l->start, sizeof at);
    for (int64_t j0 = 0; j0 < sae->p.d_sae; j0 += BLOCK) {
        int64_t nj = ATOMS_MIN(BLOCK, sae->p.d_sae - j0);
        const float *dec = sae->dec.w + j0 * ld;
        if (gradients)
            atoms_gemm_f32(ctx, (atoms_mnk){PANEL, nj, sae->width}, (atoms_f32_in){err, ld, 1},
                           (atoms_f32_in){dec, 1, ld}, 0, (atoms_f32_out){tile, BLOCK, 1});
        else
            memset(tile, 0, (size_t)(PANEL * BLOCK) * sizeof *tile);
        for (int r = 0; r < PANEL; r++)
            for (; at[r] < l->start[r + 1] && l->latent[at[r]] < j0 + nj; at[r]++) {
                float *cell = tile + r * BLOCK + l->latent[at[r]] - j0;
                if (gradients)
                    l->ga[at[r]] = *cell;
                else
                    *cell = l->z[at[r]];
            }
        if (!gradients)
            atoms_gemm_f32(ctx, (atoms_mnk){PANEL, sae->width, nj}, (atoms_f32_in){tile, BLOCK, 1},
                           (atoms_f32_in){dec, ld, 1}, 1, (atoms_f32_out){err, ld, 1});
    }
    atoms_free(tile);
    return true;
}

void sae_dense_rows(const atoms_ctx *ctx, const atoms_sae *sae, const sae_batch *b, int64_t from, int64_t to,
                    const float *factor, const float *base, float *tile, float *out)
{
    int64_t at[PANEL], ld = sae->ld;
    memcpy(at, b->start + from, (size_t)(to - from) * sizeof *at);
    for (int64_t i0 = 0; i0 < b->n; i0 += SLICE) {
        int64_t n = ATOMS_MIN(SLICE, b->n - i0);
        memset(tile, 0, (size_t)(PANEL * SLICE) * sizeof *tile);
        for (int64_t j = 0; j < to - from; j++)
            for (; at[j] < b->aux_start[from + j] && b->row[at[j]] < i0 + n; at[j]++)
                tile[j * SLICE + b->row[at[j]] - i0] = factor[at[j]];
        atoms_gemm_f32(ctx, (atoms_mnk){to - from, sae->width, n}, (atoms_f32_in){tile, SLICE, 1},
                       (atoms_f32_in){base + i0 * ld, ld, 1}, 1, (atoms_f32_out){out, ld, 1});
    }
}
