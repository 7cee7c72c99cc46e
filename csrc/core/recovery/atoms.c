/* atoms.c: atoms fitted to signals whose codes are known, and drawn apart. */
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

/* The first three. */
static void lay_out_lists(const atoms_csr_view *codes, atoms_arena *arena, fit_work *w)
{
    ATOMS_TAKE(arena, w->begin, codes->width + 1);
    ATOMS_TAKE(arena, w->signal, codes->indptr[codes->n]);
    ATOMS_TAKE(arena, w->z, codes->indptr[codes->n]);
}

static void lay_out(const atoms_ctx *ctx, const atoms_csr_view *codes, atoms_arena *arena, fit_work *w)
{
    const int64_t threads = ctx->p.num_threads;
    lay_out_lists(codes, arena, w);
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

static double square_of(int64_t d, const float *atom)
{
    double square = 0;
    for (int64_t j = 0; j < d; j++)
        square += (double)atom[j] * atom[j];
    return square;
}

/* Unit norm to the atom; false where it has none. */
static bool unit_norm(int64_t d, float *atom)
{
    const double square = square_of(d, atom);
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

/* ------------------------------------------------------------------ drawn apart */

#define PARTED 64      /* atoms of a task */
#define LEAST_LEFT 0.3 /* norm under which what is left of an atom is no direction of its own any more */

typedef struct {
    const fit_work *by_atom; /* the signals of each atom */
    int64_t m, d;
    const float *atoms;
    const double *energy;
    double least, incoherence;
    float *out;
} parting;

/* How far atom j fires whenever atom i does: 0 where it does in half of atom i's signals or fewer, 1 where in all. */
static double together(const fit_work *w, int64_t i, int64_t j)
{
    const int64_t end_i = w->begin[i + 1], end_j = w->begin[j + 1];
    int64_t both = 0;
    for (int64_t a = w->begin[i], b = w->begin[j]; a < end_i && b < end_j;) {
        const int32_t left = w->signal[a], right = w->signal[b];
        both += left == right;
        a += left <= right;
        b += right <= left;
    }
    const int64_t own = end_i - w->begin[i];
    return 2 * both > own ? (double)(2 * both - own) / (double)own : 0;
}

/* Atom i, with its products (m) with all atoms. */
static void part_atom(const parting *w, int64_t i, const float *products)
{
    const int64_t d = w->d;
    float *out = w->out + i * d;
    memcpy(out, w->atoms + i * d, (size_t)d * sizeof *out);
    for (int64_t j = 0; j < w->m; j++) {
        if (j == i || !(fabs((double)products[j]) >= w->least))
            continue;
        const double meet = w->incoherence < 1 ? ATOMS_MAX(w->incoherence, together(w->by_atom, i, j)) : 1;
        const float share = (float)(meet * products[j] * w->energy[j] / (w->energy[i] + w->energy[j]) / 2);
        for (int64_t k = 0; share != 0 && k < d; k++)
            out[k] -= share * w->atoms[j * d + k];
    }
    if (sqrt(square_of(d, out)) > LEAST_LEFT)
        unit_norm(d, out);
    else
        memcpy(out, w->atoms + i * d, (size_t)d * sizeof *out);
}

static atoms_status part_all(const atoms_ctx *ctx, const parting *w)
{
    const int64_t m = w->m, d = w->d;
    atoms_team team = {.ctx = ctx};
#pragma omp parallel num_threads(ctx->p.num_threads)
    {
        float *products = atoms_alloc(m, PARTED * sizeof *products);
        if (!products)
            atoms_team_report(&team, ATOMS_ERR_MEMORY);
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = 0; i < m; i += PARTED) {
            if (!products || atoms_team_stopped(&team))
                continue;
            const int64_t rows = ATOMS_MIN(PARTED, m - i);
            atoms_gemm_f32(ctx, (atoms_mnk){rows, m, d}, (atoms_f32_in){w->atoms + i * d, d, 1},
                           (atoms_f32_in){w->atoms, 1, d}, 0, (atoms_f32_out){products, m, 1});
            for (int64_t k = 0; k < rows; k++)
                part_atom(w, i + k, products + k * m);
            atoms_team_report(&team, ATOMS_OK);
        }
        atoms_free(products);
    }
    return team.status;
}

atoms_status atoms_part_atoms(const atoms_ctx *ctx, const atoms_csr_view *codes, int64_t d, const float *atoms,
                              const double *energy, double least, double incoherence, float *out)
{
    if (codes->width < 1 || codes->n > INT32_MAX || d < 1 || !(least > 0) || !(incoherence >= 0 && incoherence <= 1) ||
        !atoms_codes_inside(codes))
        return ATOMS_ERR_ARGUMENT;
    fit_work lists;
    atoms_arena arena = {0};
    lay_out_lists(codes, &arena, &lists);
    if (!atoms_arena_open(&arena))
        return ATOMS_ERR_MEMORY;
    lay_out_lists(codes, &arena, &lists);
    sort_by_atom(codes, &lists);
    const parting w = {&lists, codes->width, d, atoms, energy, least, incoherence, out};
    const atoms_status status = part_all(ctx, &w);
    atoms_arena_close(&arena);
    return status;
}
