/* sae_screen_portable.c: the integer screens in plain loops: what the vector ones do, on any machine. */
#include "kernels.h"

/* One row of 64 sums against the bound. */
static uint64_t reached(const int32_t *sum, const atoms_screen_samples *s, const atoms_screen_rows *r, int64_t j)
{
    uint64_t bits = 0;
    for (int i = 0; i < 64; i++) {
        float dot = (float)(sum[i] - r->offset[j]) * s->scale[i];
        float need = r->limit[j] - s->norm[i] * r->residual[j] - s->residual[i] * r->norm[j];
        bits |= (uint64_t) !(dot < need) << i;
    }
    return bits;
}

#define SCREEN(name, x_t, w_t, group)                                                                                  \
    void name(int64_t width, int64_t n_latents, const void *x, const atoms_screen_samples *s, const void *w,           \
              const atoms_screen_rows *r, uint64_t *mask)                                                              \
    {                                                                                                                  \
        for (int64_t j = 0; j < n_latents; j++) {                                                                      \
            int32_t sum[64] = {0};                                                                                     \
            const x_t *xp = x;                                                                                         \
            const w_t *wp = (const w_t *)w + j * width;                                                                \
            for (int64_t c = 0; c < width; c += group, xp += 64 * group)                                               \
                for (int i = 0; i < 64; i++)                                                                           \
                    for (int g = 0; g < group; g++)                                                                    \
                        sum[i] += (int32_t)xp[i * group + g] * wp[c + g];                                              \
            mask[j] = reached(sum, s, r, j);                                                                           \
        }                                                                                                              \
    }

SCREEN(atoms_screen_int8_portable, uint8_t, int8_t, 4)
SCREEN(atoms_screen_int16_portable, int16_t, int16_t, 2)

const sae_screens atoms_screens_portable = {atoms_screen_int8_portable, atoms_screen_int16_portable};
