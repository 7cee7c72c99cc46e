/* kernels.h: the recovery room's vector code as the rest of it sees it. */
#ifndef ATOMS_RECOVERY_KERNELS_H
#define ATOMS_RECOVERY_KERNELS_H

#include "recovery.h"

/* One tile of signals on its way through OMP: inputs, then outputs, all indexed from the tile's
 * first signal. */
typedef struct {
    int64_t n;
    const void *x;
    atoms_dtype x_type;
    int64_t rs, cs;
    const int64_t *warm_indptr; /* offsets into warm_indices, or NULL */
    const int32_t *warm_indices;
    int32_t *indices; /* (n, n_nonzero) */
    void *values;     /* (n, n_nonzero) of the dictionary's type */
    int32_t *counts;
    int8_t *status;
    int32_t *steps;
    double *residual; /* may be NULL */
} omp_tile;

/* Workspace bytes for one thread, and the work on one tile. One pair for each instruction set
 * and precision. */
typedef struct omp_kernels {
    int64_t (*workspace)(const atoms_dict *dict, const atoms_omp_params *p, int64_t tile);
    void (*run)(const atoms_ctx *ctx, const atoms_dict *dict, const atoms_omp_params *p, omp_tile *tile,
                void *workspace);
} omp_kernels;

/* The same for the solvers whose codes have no fixed length: `width` entries a row of the output. */
typedef struct {
    int64_t n, width;
    const void *x;
    atoms_dtype x_type;
    int64_t rs, cs, stride; /* stride: rows between one penalty's codes and the next one's */
    int32_t *indices;
    void *values;
    int32_t *counts;
    int8_t *status;
    int32_t *steps;
    double *residual;  /* may be NULL */
    double *gap;       /* may be NULL */
    const double *tau; /* of threshold coding: one for each signal */
    atoms_team *team;  /* asked in every round of a solver: a tile's may be millions */
} code_tile;

typedef struct code_kernels {
    atoms_status (*lasso)(const atoms_ctx *ctx, const atoms_dict *dict, const atoms_lasso_params *p, code_tile *tile);
    atoms_status (*denoise)(const atoms_ctx *ctx, const atoms_dict *dict, const atoms_basis_params *p, code_tile *tile);
    atoms_status (*pursuit)(const atoms_ctx *ctx, const atoms_dict *dict, const atoms_pursuit_params *p,
                            code_tile *tile);
    /* with indices NULL, only the largest correlations go to gap */
    atoms_status (*threshold)(const atoms_ctx *ctx, const atoms_dict *dict, const int *signed_codes, code_tile *tile);
} code_kernels;

/* Basis pursuit with equality, float64. */
atoms_status atoms_equality_tile(const atoms_ctx *ctx, const atoms_dict *dict, const atoms_basis_params *p,
                                 code_tile *tile);

#endif
