/* dense.c: the step's sums where so many latents are active that a matrix product over all of them, the zeros included,
 * costs less than the active ones' rows one by one: codes are dense for one product at a time. Then a transcoder's skip
 * connection, of which no value is zero. */
#include "sae.h"

bool sae_is_dense(const sae_step *step)
{
    const atoms_sae *sae = step->sae;
    int64_t entries = 0;
    for (int64_t p = 0; p < step->batch->panels; p++)
        entries += step->batch->list[p].n;
    /* Zen 4, 576 to 2,304: even near two fifths. Prefixes have an error each and stay with rows. */
    return sae->p.n_prefixes == 1 && 5 * entries > 2 * step->batch->n * sae->p.d_sae;
}

/* err (samples, d_out) += codes (samples, block) W_dec (block, d_out), one block of latents after the other */
void sae_dense_decode(const sae_step *step, int64_t p)
{
    const atoms_sae *sae = step->sae;
    int64_t ld = sae->out.ld;
    const sae_list *l = &step->batch->list[p];
    float *codes = step->batch->scratch[atoms_thread()].codes;
    float *err = sae_error_row(step->batch, ld, 0, p * PANEL_SAMPLES);
    int32_t at[PANEL_SAMPLES];
    memcpy(at, l->start, sizeof at);
    for (int64_t j0 = 0; j0 < sae->p.d_sae; j0 += BLOCK_LATENTS) {
        int64_t nj = ATOMS_MIN(BLOCK_LATENTS, sae->p.d_sae - j0);
        memset(codes, 0, (size_t)(PANEL_SAMPLES * BLOCK_LATENTS) * sizeof *codes);
        for (int r = 0; r < PANEL_SAMPLES; r++)
            for (; at[r] < l->start[r + 1] && l->latent[at[r]] < j0 + nj; at[r]++)
                codes[r * BLOCK_LATENTS + l->latent[at[r]] - j0] = l->z[at[r]];
        atoms_gemm_f32(step->ctx, (atoms_mnk){PANEL_SAMPLES, sae->out.width, nj},
                       (atoms_f32_in){codes, BLOCK_LATENTS, 1}, (atoms_f32_in){sae->dec.w + j0 * ld, ld, 1}, 1,
                       (atoms_f32_out){err, ld, 1});
    }
}

/* those of err (samples, d_out) W_dec' (d_out, block) that are listed */
void sae_dense_gradients(const sae_step *step, int64_t p)
{
    const atoms_sae *sae = step->sae;
    int64_t ld = sae->out.ld;
    sae_list *l = &step->batch->list[p];
    float *codes = step->batch->scratch[atoms_thread()].codes;
    const float *err = sae_error_row(step->batch, ld, 0, p * PANEL_SAMPLES);
    int32_t at[PANEL_SAMPLES];
    memcpy(at, l->start, sizeof at);
    for (int64_t j0 = 0; j0 < sae->p.d_sae; j0 += BLOCK_LATENTS) {
        int64_t nj = ATOMS_MIN(BLOCK_LATENTS, sae->p.d_sae - j0);
        atoms_gemm_f32(step->ctx, (atoms_mnk){PANEL_SAMPLES, nj, sae->out.width}, (atoms_f32_in){err, ld, 1},
                       (atoms_f32_in){sae->dec.w + j0 * ld, 1, ld}, 0, (atoms_f32_out){codes, BLOCK_LATENTS, 1});
        for (int r = 0; r < PANEL_SAMPLES; r++)
            for (; at[r] < l->start[r + 1] && l->latent[at[r]] < j0 + nj; at[r]++)
                l->ga[at[r]] = codes[r * BLOCK_LATENTS + l->latent[at[r]] - j0];
    }
}

/* out (latents, d) += factors (latents, block) base (block, d), one block of samples after the other */
void sae_dense_rows(const sae_step *step, const sae_rows *r, const float *factor, const float *base,
                    const sae_extent *side, float *out)
{
    const sae_batch *b = step->batch;
    int64_t at[PART_LATENTS], ld = side->ld, latents = r->to - r->from;
    memcpy(at, b->start + r->from, (size_t)latents * sizeof *at);
    for (int64_t i0 = 0; i0 < b->n; i0 += BLOCK_SAMPLES) {
        int64_t n = ATOMS_MIN(BLOCK_SAMPLES, b->n - i0);
        memset(r->codes, 0, (size_t)(PART_LATENTS * BLOCK_SAMPLES) * sizeof *r->codes);
        for (int64_t j = 0; j < latents; j++)
            for (; at[j] < b->aux_start[r->from + j] && b->row[at[j]] < i0 + n; at[j]++)
                r->codes[j * BLOCK_SAMPLES + b->row[at[j]] - i0] = factor[at[j]];
        atoms_gemm_f32(step->ctx, (atoms_mnk){latents, side->width, n}, (atoms_f32_in){r->codes, BLOCK_SAMPLES, 1},
                       (atoms_f32_in){base + i0 * ld, ld, 1}, 1, (atoms_f32_out){out, ld, 1});
    }
}

/* err (samples, d_out) += xc (samples, d_in) W_skip (d_in, d_out) */
void sae_skip_decode(const sae_step *step, int64_t p)
{
    const atoms_sae *sae = step->sae;
    int64_t ld = sae->out.ld, i = p * PANEL_SAMPLES;
    atoms_gemm_f32(step->ctx, (atoms_mnk){PANEL_SAMPLES, sae->out.width, sae->p.d_in},
                   (atoms_f32_in){step->batch->xc + i * sae->in.ld, sae->in.ld, 1}, (atoms_f32_in){sae->skip.w, ld, 1},
                   1, (atoms_f32_out){sae_error_row(step->batch, ld, 0, i), ld, 1});
}

/* out (rows, d_out) = 2 / n xc' (rows, samples) err (samples, d_out): the first prefix' errors hold the wider ones' */
void sae_skip_gradients(const sae_step *step, int64_t from, int64_t to, float *out)
{
    const sae_batch *b = step->batch;
    const atoms_sae *sae = step->sae;
    int64_t ld = sae->out.ld;
    atoms_gemm_f32(step->ctx, (atoms_mnk){to - from, sae->out.width, b->n}, (atoms_f32_in){b->xc + from, 1, sae->in.ld},
                   (atoms_f32_in){b->err, ld, 1}, 0, (atoms_f32_out){out, ld, 1});
    for (int64_t j = 0; j < to - from; j++)
        for (int64_t c = 0; c < sae->out.width; c++)
            out[j * ld + c] *= 2.0f / (float)b->n;
}
