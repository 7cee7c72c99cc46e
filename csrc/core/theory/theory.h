/* theory.h: what the files of the theory room share. */
#ifndef ATOMS_THEORY_H
#define ATOMS_THEORY_H

#include "kernels.h"

enum {
    THEORY_ROWS = 128, /* rows of one task that go in float64: four arrays of them stay in L2 */
    THEORY_SIDE = 512  /* most atoms on a side of a tile of float32 products */
};

/* x (n, d) = x times the whitener (d, d), by way of scratch (n, d) */
static inline void theory_whiten(const atoms_ctx *ctx, int64_t n, int64_t d, const double *whitener, double *x,
                                 double *scratch)
{
    atoms_gemm_f64(ctx, (atoms_mnk){n, d, d}, (atoms_f64_in){x, d, 1}, (atoms_f64_in){whitener, d, 1}, 0.0,
                   (atoms_f64_out){scratch, d, 1});
    memcpy(x, scratch, (size_t)(n * d) * sizeof *x);
}

/* products (na, nb) of unit rows a (na, d) and b (nb, d), float32; the rows of products are ld apart */
static inline void theory_products(const atoms_ctx *ctx, atoms_matrix a, atoms_matrix b, float *products, int64_t ld)
{
    atoms_gemm_f32(ctx, (atoms_mnk){a.n, b.n, a.d}, (atoms_f32_in){a.at, a.d, 1}, (atoms_f32_in){b.at, 1, b.d}, 0.0f,
                   (atoms_f32_out){products, ld, 1});
}

/* at most n rows of a from row i on */
static inline atoms_matrix theory_rows(atoms_matrix a, int64_t i, int64_t n)
{
    return (atoms_matrix){a.at + i * a.d, ATOMS_MIN(n, a.n - i), a.d};
}

#endif
