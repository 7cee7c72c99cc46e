/* recovery.h: what the files of the recovery room share. */
#ifndef ATOMS_RECOVERY_H
#define ATOMS_RECOVERY_H

#include "base/core.h"

/* Atoms are handled in panels of this many; every per-atom array is padded to whole panels. */
#define PANEL_ATOMS 64

/* ----------------------------------------------------- 16-bit rows (short_rows.inc) */

/* Unit rows as 16-bit integers, for products at twice float32's rate. A run of CHUNK coordinates has one unit for all
 * rows of a panel. */
#define CHUNK 192
#define CHUNKS(ld) (((ld) + CHUNK - 1) / CHUNK)
typedef struct {
    int64_t ld;      /* row length, even */
    double error;    /* the most that rounding took from a row, as a norm */
    int16_t *rows;   /* (np, ld); NULL once a dictionary has them */
    float *units;    /* (np / PANEL_ATOMS, chunks) */
    int32_t *panels; /* (np / PANEL_ATOMS, ld / 2, PANEL_ATOMS): the rows, pairs of values of a panel side by side */
} dict_units;

/* A product of a rounded row with a rounded atom is off by at most the norms that rounding took from either, their
 * product, and this for sums in float32. */
#define PRODUCT_ERROR(ld) ((double)(CHUNKS(ld) + 4) * 0x1p-23)

/* Gram matrices of 16 bits: what stands for 1, and how far rounding takes an element, products slightly above 1
 * included. */
#define SHORT_ONE 32767
#define SHORT_ERROR (0.5 / SHORT_ONE + 0x1p-21)

/* ------------------------------------------------------ dictionary (dictionary.c) */

struct atoms_dict {
    int64_t n, np, d;    /* atoms, atoms padded to whole panels, coordinates */
    atoms_dtype type;    /* ATOMS_F32 or ATOMS_F64: the type of `atoms` and `gram` */
    void *atoms;         /* (np, d) unit rows; zero atoms and padding are zero rows */
    double *norm;        /* (n,) norms of the atoms as given */
    void *gram;          /* (np, np) products of unit rows, or NULL until atoms_dict_gram */
    dict_units units;    /* panels is NULL until atoms_dict_units */
    int16_t *coarse;     /* (np, np) products of `units`, rounded to 16 bits, or NULL: see atoms_dict_coarse */
    double coarse_error; /* no element of it is further from the true one */
    int16_t *fine;       /* (np, np) `gram` rounded to 16 bits, or NULL: see atoms_dict_fine */
};

/* The dictionary as it is now, for a whole call: another thread may add a Gram matrix meanwhile. */
atoms_dict dict_view(const atoms_dict *dict);
void dict_units_free(dict_units *u);

/* A signal, row i of x, as float64 and divided by its norm, `*scale`; what kind it is. A zero or a non-finite signal
 * gives zeros. */
typedef enum { SIGNAL_OK, SIGNAL_ZERO, SIGNAL_NONFINITE } signal_kind;
signal_kind dict_load_signal(atoms_rows x, int64_t i, double *out, double *scale);

/* ---------------------------------------------------------- products (gram.c) */

/* Unit rows a (n, d), n a multiple of PANEL_ATOMS, in 16 bits. On failure the caller frees what there is. */
atoms_status dict_units_new(const atoms_ctx *ctx, int64_t n, int64_t d, const float *a, dict_units *u);

/* Room for rows of signals in 16 bits. */
typedef struct {
    int16_t *rows; /* (n, units.ld); NULL: products of full precision */
    float *units;  /* (n, chunks) */
    double *error; /* (n) OUT, with `rows`: the most that a product of row i is off by */
} short_signals;

/* out (n, np) = correlations of rows x (n, d) of the dictionary's type with its atoms, by 16-bit products where there is
 * room for the rows. */
void dict_correlate(const atoms_ctx *ctx, const atoms_dict *dict, int64_t n, const void *x, short_signals room,
                    void *out);

#endif
