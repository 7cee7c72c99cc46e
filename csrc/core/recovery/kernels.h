/* kernels.h: the recovery room's vector code as the rest of it sees it: one table for each instruction set and number
 * type. What the templates are made of: templates.h. */
#ifndef ATOMS_RECOVERY_KERNELS_H
#define ATOMS_RECOVERY_KERNELS_H

#include "recovery.h"

/* A tile of signals on its way through a solver. */
typedef struct {
    atoms_rows x;       /* its signals */
    int64_t first;      /* the number of the first of them in the call: for what parameters give signal by signal */
    atoms_codes out;    /* its rows of the output */
    int64_t stride;     /* lasso: rows of the output between one penalty's codes and the next one's */
    atoms_team *team;   /* asked in every round of a solver: a tile's may be millions */
    atoms_arena *arena; /* the thread's workspace, kept from tile to tile: see codes_open. Not OMP's */
} codes_tile;

/* Makes tile->arena ready for a workspace that has been counted. It is kept from tile to tile, for fresh pages cost more
 * than small tiles take: a thread's first tile is never smaller than its later ones. False when memory is short. */
bool codes_open(const codes_tile *tile, atoms_arena counted);

/* n signals of a call from its signal i on. */
codes_tile codes_part(const atoms_dict *dict, const codes_tile *whole, int64_t i, int64_t n);

/* Orthogonal matching pursuit. */
struct omp_kernels {
    /* Takes the workspace of a tile of so many signals: see base/core.h. */
    void (*lay_out)(const atoms_dict *dict, const atoms_omp_params *p, int64_t signals, atoms_arena *arena);
    /* Codes a tile of as many signals or fewer, in an arena of that size, empty. */
    atoms_status (*run)(const atoms_ctx *ctx, const atoms_dict *dict, const atoms_omp_params *p, const codes_tile *tile,
                        atoms_arena *arena);
};

/* OMP on the calling thread alone, which may be one of a team's: what other solvers start from. */
atoms_status omp_code(const atoms_ctx *ctx, const atoms_dict *dict, const atoms_omp_params *p, const codes_tile *whole);

/* The other solvers. params: the public function's. */
typedef atoms_status (*codes_solver)(const atoms_ctx *ctx, const atoms_dict *dict, const void *params,
                                     const codes_tile *tile);
struct code_kernels {
    codes_solver lasso, denoise, pursuit, threshold;
    codes_solver correlation_max; /* no params; the tile's gap is the output */
};

/* Basis pursuit with equality: float64 and plain C, the same for all instruction sets. */
atoms_status equality_tile(const atoms_ctx *ctx, const atoms_dict *dict, const void *params, const codes_tile *tile);

/* Fitting atoms to signals, STRIP columns at a time. */
#define STRIP 64
typedef struct {
    int64_t n, m, sweeps;  /* signals, atoms */
    const int64_t *begin;  /* (m + 1) where each atom's coefficients begin in */
    const int32_t *signal; /* their signals, ascending, and */
    const float *z;        /* values */
    const float *inverse;  /* (m) 1 / energy, 0 for an atom that stays */
    float *atoms;          /* (m, STRIP) */
    float *residual;       /* (n, STRIP) IN: the signals */
} atoms_strip;

/* What a coefficient h, seen through the noise, says of atom j, in the words of spikes.inc. */
typedef struct {
    float odds;       /* log-odds of firing where h says nothing: what it adds is h^2 / 2 noise^2 ... */
    float height;     /* ... - precision (h - height)^2 / 2 */
    float precision;  /* 1 / (noise^2 + spread^2) */
    float gain, rest; /* the coefficient to be expected of one that fires: gain h + rest */
} spike;
typedef struct {
    const atoms_spikes_params *p;
    const spike *of; /* (m) */
} spikes_job;

/* Dictionary learning: float32 alone. */
struct atom_kernels {
    void (*fit)(const atoms_strip *strip);
    codes_solver spikes; /* params: a spikes_job */
};

/* 16-bit rows, where there are instructions for them. */
struct short_kernels {
    /* Rounds n <= PANEL_ATOMS rows a (n, d) to 16 bits, ld values each, zeros from d on, in common units (chunks). The
     * largest norm of what that took. */
    double (*round_rows)(int64_t n, int64_t d, const float *a, int64_t ld, int16_t *to, float *units);
    /* out (m, 64 panels; rows of length out_ld) = rows, of one signal's units each, times atoms. */
    void (*products)(int64_t m, const int16_t *rows, const float *units, const dict_units *u, int64_t panels,
                     float *out, int64_t out_ld);
    /* out (rows, cols; rows of length out_ld) = u's rows i ... times its rows j ..., in SHORT_ONEths; i, j, rows and
     * cols are multiples of PANEL_ATOMS. */
    void (*gram)(const dict_units *u, int64_t i, int64_t j, int64_t rows, int64_t cols, int16_t *out, int64_t out_ld);
    /* n products of unit rows, a multiple of PANEL_ATOMS, in SHORT_ONEths. */
    void (*round_gram)(int64_t n, const float *a, int16_t *to);
};

#endif
