/* recovery_units.c: unit rows as 16-bit integers, and the norm of what rounding took from them. */
#include "recovery.h"

#if defined(__x86_64__)
atoms_status atoms_units_new(const atoms_ctx *ctx, int64_t n, int64_t d, const float *a,
                             atoms_units *u)
{
    int64_t ld = (d + 1) / 2 * 2, blocks = n / PANEL;
    *u = (atoms_units){.ld = ld};
    u->rows = atoms_alloc(n * ld, sizeof *u->rows);
    u->panels = atoms_alloc(n * ld / 2, sizeof *u->panels);
    double *errors = atoms_calloc(blocks, sizeof *errors);
    if (!u->rows || !u->panels || !errors) {
        atoms_free(errors);
        atoms_units_free(u);
        return ATOMS_ERR_MEMORY;
    }
#pragma omp parallel for num_threads(ctx->p.num_threads) schedule(static)
    for (int64_t b = 0; b < blocks; b++) {
        int16_t *rows = u->rows + b * PANEL * ld;
        for (int64_t i = 0; i < PANEL; i++) {
            double lost = atoms_units_row_vnni(d, a + (b * PANEL + i) * d, ld, rows + i * ld);
            errors[b] = ATOMS_MAX(errors[b], lost);
        }
        int32_t *panel = u->panels + b * PANEL * (ld / 2);
        for (int64_t c = 0; c < ld / 2; c += 16) /* blocked: both sides stay in cache */
            for (int64_t i = 0; i < PANEL; i++)
                for (int64_t k = c; k < ATOMS_MIN(c + 16, ld / 2); k++)
                    memcpy(panel + k * PANEL + i, rows + i * ld + 2 * k, 4);
    }
    for (int64_t b = 0; b < blocks; b++)
        u->error = ATOMS_MAX(u->error, errors[b]);
    atoms_free(errors);
    return ATOMS_OK;
}
#else
atoms_status atoms_units_new(const atoms_ctx *ctx, int64_t n, int64_t d, const float *a,
                             atoms_units *u)
{
    (void)ctx, (void)n, (void)d, (void)a;
    *u = (atoms_units){0};
    return ATOMS_ERR_ARGUMENT; /* no kernel of this machine asks for units */
}
#endif

void atoms_units_free(atoms_units *u)
{
    atoms_free(u->rows);
    atoms_free(u->panels);
    *u = (atoms_units){0};
}
