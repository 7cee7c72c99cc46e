/* dictionary.c: dictionaries made ready, and signals brought to unit norm. */
#include "recovery.h"

#include <math.h>

signal_kind dict_load_signal(atoms_rows x, int64_t i, double *out, double *scale)
{
    atoms_to_f64(atoms_some_rows(x, i, 1), out);
    *scale = atoms_norm(x.d, out);
    if (isfinite(*scale) && *scale > 0) {
        atoms_divide(x.d, out, *scale);
        return SIGNAL_OK;
    }
    memset(out, 0, (size_t)x.d * sizeof *out);
    return *scale == 0 ? SIGNAL_ZERO : SIGNAL_NONFINITE;
}

/* Unit rows and norms of the atoms into h; row (d) is workspace. */
static atoms_status load_atoms(atoms_rows atoms, atoms_dict *h, double *row)
{
    for (int64_t i = 0; i < h->n; i++) {
        if (dict_load_signal(atoms, i, row, &h->norm[i]) == SIGNAL_NONFINITE)
            return ATOMS_ERR_NONFINITE;
        for (int64_t j = 0; j < h->d; j++)
            if (h->type == ATOMS_F64)
                ((double *)h->atoms)[i * h->d + j] = row[j];
            else
                ((float *)h->atoms)[i * h->d + j] = (float)row[j];
    }
    return ATOMS_OK;
}

atoms_status atoms_dict_new(const atoms_ctx *ctx, atoms_rows atoms, atoms_dtype precision, atoms_dict **dict)
{
    (void)ctx;
    const int64_t n = atoms.n, d = atoms.d;
    if (n < 1 || d < 1 || n > INT32_MAX - PANEL_ATOMS || (precision != ATOMS_F32 && precision != ATOMS_F64))
        return ATOMS_ERR_ARGUMENT;
    const int64_t np = atoms_whole(n, PANEL_ATOMS);
    atoms_dict *h = calloc(1, sizeof *h);
    double *row = atoms_alloc(d, sizeof *row);
    atoms_status status = ATOMS_ERR_MEMORY;
    if (h && row && d <= INT64_MAX / np) {
        *h = (atoms_dict){.n = n, .np = np, .d = d, .type = precision};
        h->norm = atoms_calloc(n, sizeof *h->norm);
        h->atoms = atoms_calloc(np * d, atoms_dtype_size(precision));
        if (h->norm && h->atoms)
            status = load_atoms(atoms, h, row);
    }
    atoms_free(row);
    if (status == ATOMS_OK)
        *dict = h;
    else
        atoms_dict_free(h);
    return status;
}

void dict_units_free(dict_units *u)
{
    atoms_free(u->rows);
    atoms_free(u->units);
    atoms_free(u->panels);
}

void atoms_dict_free(atoms_dict *dict)
{
    if (!dict)
        return;
    atoms_free(dict->atoms);
    atoms_free(dict->norm);
    atoms_free(dict->gram);
    atoms_free(dict->coarse);
    atoms_free(dict->fine);
    dict_units_free(&dict->units);
    free(dict);
}

/* What gram.c publishes. */
atoms_dict dict_view(const atoms_dict *dict)
{
    int16_t *coarse = __atomic_load_n(&dict->coarse, __ATOMIC_ACQUIRE);
    int32_t *panels = __atomic_load_n(&dict->units.panels, __ATOMIC_ACQUIRE);
    int16_t *fine = __atomic_load_n(&dict->fine, __ATOMIC_ACQUIRE);
    void *gram = __atomic_load_n(&dict->gram, __ATOMIC_ACQUIRE);
    atoms_dict view = {.n = dict->n,
                       .np = dict->np,
                       .d = dict->d,
                       .type = dict->type,
                       .atoms = dict->atoms,
                       .norm = dict->norm,
                       .gram = gram,
                       .coarse = coarse,
                       .fine = fine};
    if (panels)
        view.units = (dict_units){dict->units.ld, dict->units.error, NULL, dict->units.units, panels};
    if (coarse)
        view.coarse_error = dict->coarse_error;
    return view;
}

int64_t atoms_dict_n_atoms(const atoms_dict *dict)
{
    return dict->n;
}

int64_t atoms_dict_d_in(const atoms_dict *dict)
{
    return dict->d;
}

atoms_dtype atoms_dict_precision(const atoms_dict *dict)
{
    return dict->type;
}

int atoms_dict_has_gram(const atoms_dict *dict)
{
    return dict->gram != NULL;
}

int atoms_dict_has_units(const atoms_dict *dict)
{
    return dict->units.panels != NULL;
}

int atoms_dict_has_coarse(const atoms_dict *dict)
{
    return dict->coarse != NULL;
}
