/* portable.c: the kernels for any machine, and what the vector screens do, in plain loops. */
#include "isa/portable.h"
#define K(name) name##_portable
#define LANES 4
#include "kernels.inc"

/* --------------------------------------------------------------- screens */

/* One latent's sums against the bound. */
static uint64_t reached(const int32_t *sum, const sae_screen_samples *s, const sae_screen_latents *l, int64_t j)
{
    uint64_t bits = 0;
    for (int i = 0; i < PANEL_SAMPLES; i++) {
        float dot = (float)(sum[i] - l->offset[j]) * s->scale[i];
        float need = l->limit[j] - s->norm[i] * l->residual[j] - s->residual[i] * l->norm[j];
        bits |= (uint64_t) !(dot < need) << i;
    }
    return bits;
}

#define SCREEN(name, x_t, w_t, group)                                                                                  \
    void name(int64_t width, int64_t n_latents, const void *x, const sae_screen_samples *s, const void *w,             \
              const sae_screen_latents *l, uint64_t *mask)                                                             \
    {                                                                                                                  \
        for (int64_t j = 0; j < n_latents; j++) {                                                                      \
            int32_t sum[PANEL_SAMPLES] = {0};                                                                          \
            const x_t *xp = x;                                                                                         \
            const w_t *wp = (const w_t *)w + j * width;                                                                \
            for (int64_t c = 0; c < width; c += group, xp += PANEL_SAMPLES * group)                                    \
                for (int i = 0; i < PANEL_SAMPLES; i++)                                                                \
                    for (int g = 0; g < group; g++)                                                                    \
                        sum[i] += (int32_t)xp[i * group + g] * wp[c + g];                                              \
            mask[j] = reached(sum, s, l, j);                                                                           \
        }                                                                                                              \
    }

SCREEN(sae_screen_int8_portable, uint8_t, int8_t, 4)
SCREEN(sae_screen_int16_portable, int16_t, int16_t, 2)

const sae_screens atoms_screens_portable = {sae_screen_int8_portable, sae_screen_int16_portable, ATOMS_SCREEN_F32};
