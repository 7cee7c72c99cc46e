/* recovery.h: what the files of the recovery room share. Not installed. */
#ifndef ATOMS_RECOVERY_H
#define ATOMS_RECOVERY_H

#include "base/core.h"

/* Atoms are handled in panels of this many; every per-atom array is padded to whole panels. */
#define PANEL 64

/* Unit rows as 16-bit integers, for products at twice float32's rate. AVX-512 VNNI only. A run of CHUNK coordinates
 * has one unit for the 64 rows of a panel. */
#define CHUNK 192
#define CHUNKS(ld) (((ld) + CHUNK - 1) / CHUNK)
typedef struct {
    int64_t ld;      /* row length, even */
    double error;    /* the most that rounding took from a row, as a norm */
    int16_t *rows;   /* (np, ld); NULL once a dictionary has them */
    float *units;    /* (np / PANEL, chunks) */
    int32_t *panels; /* (np / PANEL, ld / 2, PANEL): the rows, pairs of values of 64 atoms side by side */
} atoms_units;

struct atoms_dict {
    int64_t n, np, d;    /* atoms, atoms padded to whole panels, coordinates */
    atoms_dtype type;    /* ATOMS_F32 or ATOMS_F64: the type of `atoms` and `gram` */
    void *atoms;         /* (np, d) unit rows; zero atoms and padding are zero rows */
    double *norm;        /* (n,) norms of the atoms as given */
    void *gram;          /* (np, np) products of unit rows, or NULL until atoms_dict_gram */
    atoms_units units;   /* panels is NULL until atoms_dict_units */
    int16_t *coarse;     /* (np, np) products of `units`, rounded to 16 bits, or NULL: see atoms_dict_coarse */
    double coarse_error; /* no element of it is further from the true one */
    int16_t *fine;       /* (np, np) `gram` rounded to 16 bits, or NULL: see atoms_dict_fine */
};

/* The dictionary as it is now, for a whole call: another thread may add a Gram matrix meanwhile. */
atoms_dict atoms_dict_view(const atoms_dict *dict);

/* Rounds n <= PANEL rows to 16 bits (ld values each, zeros from d on), in common units; the largest norm of what that
 * took. */
double atoms_round_rows(int64_t n, int64_t d, const float *a, int64_t ld, int16_t *to, float *units);
/* n: a multiple of PANEL. */
atoms_status atoms_units_new(const atoms_ctx *ctx, int64_t n, int64_t d, const float *a, atoms_units *u);
/* out (m, 64 panels) = rows, of one signal's units each, times atoms; off by at most the norms that rounding took from
 * either, their product, and PRODUCT_ERROR for sums in float32. */
void atoms_unit_products(int64_t m, const int16_t *rows, const float *units, const atoms_units *u, int64_t panels,
                         float *out, int64_t out_ld);
#define PRODUCT_ERROR(ld) ((double)(CHUNKS(ld) + 4) * 0x1p-23)
/* Gram matrices of 16 bits, and how far rounding takes an element, products slightly above 1 included. */
#define SHORT_ONE 32767
#define SHORT_ERROR (0.5 / SHORT_ONE + 0x1p-21)
/* out (n, np) = correlations of rows x (n, d) of the dictionary's type with its atoms. With short_x (n, units.ld) and
 * x_units (n, chunks) for workspace they are 16-bit products, those of row i off by at most error[i]. */
void atoms_correlate(const atoms_ctx *ctx, const atoms_dict *dict, int64_t n, const void *x, int16_t *short_x,
                     float *x_units, void *out, double *error);
/* A tile of one. i, j: multiples of PANEL. */
void atoms_unit_gram(const atoms_units *u, int64_t i, int64_t j, int64_t rows, int64_t cols, int16_t *out,
                     int64_t out_ld);
/* n products of unit rows, a multiple of PANEL, rounded so. */
void atoms_round_gram(int64_t n, const float *a, int16_t *to);

/* Loads a signal as float64, divides it by its norm and says what it is. `*scale` is the norm.
 * Returns ATOMS_SIGNAL_OK, or _NONFINITE, or _ZERO with `out` zeroed. */
typedef enum { SIGNAL_OK, SIGNAL_ZERO, SIGNAL_NONFINITE } signal_kind;
signal_kind atoms_load_signal(int64_t d, const void *x, atoms_dtype type, int64_t cs, double *out, double *scale);

#endif
