/* atoms.c: atoms fitted to signals whose codes are known. */
#include "kernels.h"

#include <math.h>

/* A call's work: coefficients by atom, and for each thread a strip of atoms and one of residuals. */
typedef struct {
    int64_t *begin;          /* (m + 1) */
    int32_t *signal;         /* (nnz) */
    float *z;                /* (nnz) */
    float *inverse;          /* (m) */
    float *atoms, *residual; /* (threads, m, STRIP), (threads, n, STRIP) */
} fit_work;

static void lay_out(const atoms_ctx *ctx, const atoms_csr_view *codes, atoms_arena *arena, fit_work *w)
{
    const int64_t nnz = codes->indptr[codes->n], threads = ctx->p.num_threads;
    ATOMS_TAKE(arena, w->begin, codes->width + 1);
    ATOMS_TAKE(arena, w->signal, nnz);
    ATOMS_TAKE(arena, w->z, nnz);
    ATOMS_TAKE(arena, w->inverse, codes->width);
    ATOMS_TAKE(arena, w->atoms, threads * codes->width * STRIP);
    ATOMS_TAKE(arena, w->residual, threads * codes->n * STRIP);
}

/* The coefficients by atom, signals ascending. */
static void sort_by_atom(const atoms_csr_view *codes, fit_work *w)
{
    const int64_t m = codes->width;
    memset(w->begin, 0, (size_t)(m + 1) * sizeof *w->begin);
    for (int64_t e = codes->indptr[0]; e < codes->indptr[codes->n]; e++)
        w->begin[codes->indices[e] + 1]++;
    for (int64_t j = 0; j < m; j++)
        w->begin[j + 1] += w->begin[j];
    for (int64_t i = 0; i < codes->n; i++)
        for (int64_t e = codes->indptr[i]; e < codes->indptr[i + 1]; e++) {
            const int64_t to = w->begin[codes->indices[e]]++;
            w->signal[to] = (int32_t)i;
            w->z[to] = codes->values[e];
        }
    memmove(w->begin + 1, w->begin, (size_t)m * sizeof *w->begin); /* each is where the next one's begin */
    w->begin[0] = 0;
}

/* Energies with these coefficients, and their inverses; false where one is not finite. */
static bool take_energies(int64_t m, double keep, fit_work *w, double *energy)
{
    bool finite = true;
    for (int64_t j = 0; j < m; j++) {
        double sum = 0;
        for (int64_t e = w->begin[j]; e < w->begin[j + 1]; e++)
            sum += (double)w->z[e] * w->z[e];
        energy[j] = keep * energy[j] + sum;
        finite &= isfinite(energy[j]);
        w->inverse[j] = energy[j] > 0 && isfinite((float)(1 / energy[j])) ? (float)(1 / energy[j]) : 0;
    }
    return finite;
}

/* Columns j .. j + STRIP, fewer at the end, where the rest of a strip is zeros. */
static void fit_columns(const atoms_ctx *ctx, atoms_rows x, atoms_strip *strip, int64_t j, float *atoms)
{
    const int64_t width = ATOMS_MIN(STRIP, x.d - j);
    memset(strip->residual, 0, (size_t)(strip->n * STRIP) * sizeof(float));
    memset(strip->atoms, 0, (size_t)(strip->m * STRIP) * sizeof(float));
    for (int64_t i = 0; i < strip->n; i++)
        atoms_to_f32(atoms_some_columns(atoms_some_rows(x, i, 1), j, width), strip->residual + i * STRIP);
    for (int64_t i = 0; i < strip->m; i++)
        memcpy(strip->atoms + i * STRIP, atoms + i * x.d + j, (size_t)width * sizeof(float));
    ctx->kernels->atoms->fit(strip);
    for (int64_t i = 0; i < strip->m; i++)
        memcpy(atoms + i * x.d + j, strip->atoms + i * STRIP, (size_t)width * sizeof(float));
}

/* Unit norm to the atom; false where it has none. */
static bool unit_norm(int64_t d, float *atom)
{
    double square = 0;
    for (int64_t j = 0; j < d; j++)
        square += (double)atom[j] * atom[j];
    const double scale = 1 / sqrt(square);
    for (int64_t j = 0; j < d; j++)
        atom[j] = (float)(scale * atom[j]);
    return isfinite(square) && square > 0;
}

/* All strips, then norms. */
static atoms_status fit_all(const atoms_ctx *ctx, atoms_rows x, const atoms_strip *whole, float *atoms)
{
    const int64_t strips = atoms_ceil_div(x.d, STRIP);
    atoms_team team = {.ctx = ctx};
#pragma omp parallel num_threads(ctx->p.num_threads)
    {
        atoms_strip strip = *whole;
        strip.atoms += atoms_thread() * whole->m * STRIP;
        strip.residual += atoms_thread() * whole->n * STRIP;
#pragma omp for schedule(dynamic, 1)
        for (int64_t s = 0; s < strips; s++) {
            if (atoms_team_stopped(&team))
                continue;
            fit_columns(ctx, x, &strip, s * STRIP, atoms);
            atoms_team_report(&team, ATOMS_OK);
        }
#pragma omp for schedule(static)
        for (int64_t j = 0; j < whole->m; j++)
            if (whole->begin[j] < whole->begin[j + 1] && whole->inverse[j] != 0 && !unit_norm(x.d, atoms + j * x.d))
                atoms_team_report(&team, ATOMS_ERR_NONFINITE);
    }
    return team.status;
}

atoms_status atoms_fit_atoms(const atoms_ctx *ctx, atoms_rows x, const atoms_csr_view *codes, double keep,
                             int64_t sweeps, float *atoms, double *energy)
{
    if (x.n != codes->n || x.n > INT32_MAX || x.d < 1 || codes->width < 1 || sweeps < 1 || !(keep >= 0 && keep <= 1) ||
        !atoms_codes_inside(codes))
        return ATOMS_ERR_ARGUMENT;
    fit_work w;
    atoms_arena arena = {0};
    lay_out(ctx, codes, &arena, &w);
    if (!atoms_arena_open(&arena))
        return ATOMS_ERR_MEMORY;
    lay_out(ctx, codes, &arena, &w);
    sort_by_atom(codes, &w);
    atoms_status status = ATOMS_ERR_NONFINITE;
    if (take_energies(codes->width, keep, &w, energy)) {
        const atoms_strip whole = {x.n, codes->width, sweeps, w.begin, w.signal, w.z, w.inverse, w.atoms, w.residual};
        status = fit_all(ctx, x, &whole, atoms);
    }
    atoms_arena_close(&arena);
    return status;
}
