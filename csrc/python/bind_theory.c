/* bind_theory.c: the binding of the theory room. */
#include "arguments.h"

/* A bad row's number, or -1: what two calls return where others raise. */
static PyObject *bad_row_or_raise(atoms_status status, int64_t bad_row, const char *where)
{
    if (status == ATOMS_OK || status == ATOMS_ERR_NONFINITE)
        return PyLong_FromLongLong(bad_row);
    return atoms_raise(status, where);
}

/* Contiguous float32 rows. */
static int take_matrix(arguments *a, PyObject *obj, const char *name, atoms_matrix *matrix)
{
    void *data;
    if (args_array(a, obj, (array_spec){name, NPY_FLOAT32, 2, {-1, -1}, .written = false}, &data) < 0)
        return -1;
    *matrix = (atoms_matrix){data, args_length(a, 0), args_length(a, 1)};
    return 0;
}

/* X_hat, of the same shape as X, or None: h stays zeros. */
static int take_reconstructions(arguments *a, PyObject *obj, atoms_rows x, atoms_rows *h)
{
    if (obj == Py_None)
        return 0;
    if (args_rows(a, obj, "X_hat", h) < 0)
        return -1;
    if (h->n == x.n && h->d == x.d)
        return 0;
    PyErr_Format(PyExc_ValueError, "X_hat: expected shape (%lld, %lld) as X has, got (%lld, %lld)", (long long)x.n,
                 (long long)x.d, (long long)h->n, (long long)h->d);
    return -1;
}

static PyObject *ev_update(PyObject *self, PyObject *args, PyObject *kwargs)
{
    (void)self;
    static char *names[] = {"ctx", "X", "X_hat", "whitener", "mean", "massive_norm", "sums", "tokens", NULL};
    PyObject *o_ctx, *o_x, *o_h, *o_whitener, *o_mean, *o_sums, *o_tokens, *result = NULL;
    const atoms_ctx *ctx;
    arguments a = {0};
    atoms_rows x, h = {0};
    atoms_ev_params params;
    void *whitener, *mean, *sums, *tokens;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOOOOdOO:ev_update", names, &o_ctx, &o_x, &o_h, &o_whitener,
                                     &o_mean, &params.massive_norm, &o_sums, &o_tokens) ||
        atoms_get_ctx(o_ctx, &ctx) < 0 || args_rows(&a, o_x, "X", &x) < 0 || take_reconstructions(&a, o_h, x, &h) < 0)
        goto done;
    const array_spec whitener_of = {"whitener", NPY_FLOAT64, 2, {x.d, x.d}, .optional = true};
    const array_spec mean_of = {"mean", NPY_FLOAT64, 1, {x.d}, .optional = true};
    const array_spec sums_of = {"sums", NPY_FLOAT64, 3, {2, ATOMS_EV_ROWS, x.d}, .written = true};
    const array_spec tokens_of = {"tokens", NPY_FLOAT64, 2, {x.n, ATOMS_EV_TOKENS}, .written = true};
    if (args_array(&a, o_whitener, whitener_of, &whitener) < 0 || args_array(&a, o_mean, mean_of, &mean) < 0 ||
        args_array(&a, o_sums, sums_of, &sums) < 0 || args_array(&a, o_tokens, tokens_of, &tokens) < 0)
        goto done;
    params.whitener = whitener;
    params.mean = mean;
    atoms_status status;
    int64_t bad;
    WITHOUT_GIL(status = atoms_ev_update(ctx, x, h, &params, sums, tokens, &bad));
    result = bad_row_or_raise(status, bad, "ev_update");
done:
    args_release(&a);
    return result;
}

static PyObject *unit_rows(PyObject *self, PyObject *args, PyObject *kwargs)
{
    (void)self;
    static char *names[] = {"ctx", "D", "whitener", "unit", "norms", NULL};
    PyObject *o_ctx, *o_rows, *o_whitener, *o_unit, *o_norms, *result = NULL;
    const atoms_ctx *ctx;
    arguments a = {0};
    atoms_rows x;
    void *whitener, *unit, *norms;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOOOO:unit_rows", names, &o_ctx, &o_rows, &o_whitener, &o_unit,
                                     &o_norms) ||
        atoms_get_ctx(o_ctx, &ctx) < 0 || args_rows(&a, o_rows, "D", &x) < 0)
        goto done;
    const array_spec whitener_of = {"whitener", NPY_FLOAT64, 2, {x.d, x.d}, .optional = true};
    const array_spec unit_of = {"unit", NPY_FLOAT32, 2, {x.n, x.d}, .written = true};
    const array_spec norms_of = {"norms", NPY_FLOAT64, 1, {x.n}, .written = true};
    if (args_array(&a, o_whitener, whitener_of, &whitener) < 0 || args_array(&a, o_unit, unit_of, &unit) < 0 ||
        args_array(&a, o_norms, norms_of, &norms) < 0)
        goto done;
    atoms_status status;
    int64_t bad;
    WITHOUT_GIL(status = atoms_unit_rows(ctx, x, whitener, unit, norms, &bad));
    result = bad_row_or_raise(status, bad, "unit_rows");
done:
    args_release(&a);
    return result;
}

static PyObject *cosine_histogram(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject *o_ctx, *o_unit, *o_counts, *result = NULL;
    const atoms_ctx *ctx;
    arguments a = {0};
    atoms_matrix unit;
    void *counts;
    const array_spec counts_of = {"counts", NPY_INT64, 1, {ATOMS_COSINE_BINS}, .written = true};
    if (!PyArg_ParseTuple(args, "OOO:cosine_histogram", &o_ctx, &o_unit, &o_counts) || atoms_get_ctx(o_ctx, &ctx) < 0 ||
        take_matrix(&a, o_unit, "unit", &unit) < 0 || args_array(&a, o_counts, counts_of, &counts) < 0)
        goto done;
    atoms_status status;
    WITHOUT_GIL(status = atoms_cosine_histogram(ctx, unit, counts));
    result = atoms_raise(status, "cosine_histogram");
done:
    args_release(&a);
    return result;
}

static PyObject *cosine_refine(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject *o_ctx, *o_unit, *o_slot, *o_counts, *result = NULL;
    const atoms_ctx *ctx;
    arguments a = {0};
    atoms_matrix unit;
    void *slot, *counts;
    const array_spec slot_of = {"slot", NPY_INT32, 1, {ATOMS_COSINE_BINS}, .written = false};
    const array_spec counts_of = {"counts", NPY_INT64, 2, {-1, 1 << ATOMS_COSINE_LOW_BITS}, .written = true};
    if (!PyArg_ParseTuple(args, "OOOO:cosine_refine", &o_ctx, &o_unit, &o_slot, &o_counts) ||
        atoms_get_ctx(o_ctx, &ctx) < 0 || take_matrix(&a, o_unit, "unit", &unit) < 0 ||
        args_array(&a, o_slot, slot_of, &slot) < 0 || args_array(&a, o_counts, counts_of, &counts) < 0)
        goto done;
    const int64_t num_slots = args_length(&a, 0);
    atoms_status status;
    WITHOUT_GIL(status = atoms_cosine_refine(ctx, unit, slot, num_slots, counts));
    result = atoms_raise(status, "cosine_refine");
done:
    args_release(&a);
    return result;
}

static PyObject *nearest(PyObject *self, PyObject *args, PyObject *kwargs)
{
    (void)self;
    static char *names[] = {"ctx", "A", "B", "absolute", "index", "value", "back_index", "back_value", NULL};
    PyObject *o_ctx, *o_a, *o_b, *o_index, *o_value, *o_back = Py_None, *o_back_value = Py_None, *result = NULL;
    const atoms_ctx *ctx;
    int absolute;
    arguments held = {0};
    atoms_matrix a, b;
    void *index, *value, *back, *back_value;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOOpOO|OO:nearest", names, &o_ctx, &o_a, &o_b, &absolute, &o_index,
                                     &o_value, &o_back, &o_back_value) ||
        atoms_get_ctx(o_ctx, &ctx) < 0 || take_matrix(&held, o_a, "A", &a) < 0 || take_matrix(&held, o_b, "B", &b) < 0)
        goto done;
    if (a.d != b.d) {
        PyErr_Format(PyExc_ValueError, "B: expected %lld columns as A has, got %lld", (long long)a.d, (long long)b.d);
        goto done;
    }
    const array_spec index_of = {"index", NPY_INT64, 1, {a.n}, .written = true};
    const array_spec value_of = {"value", NPY_FLOAT32, 1, {a.n}, .written = true};
    const array_spec back_of = {"back_index", NPY_INT64, 1, {b.n}, .written = true, .optional = true};
    const array_spec back_value_of = {"back_value", NPY_FLOAT32, 1, {b.n}, .written = true, .optional = true};
    if (args_array(&held, o_index, index_of, &index) < 0 || args_array(&held, o_value, value_of, &value) < 0 ||
        args_array(&held, o_back, back_of, &back) < 0 ||
        args_array(&held, o_back_value, back_value_of, &back_value) < 0)
        goto done;
    atoms_status status;
    WITHOUT_GIL(status = atoms_nearest(ctx, a, b, absolute, index, value, back, back_value));
    result = atoms_raise(status, "nearest");
done:
    args_release(&held);
    return result;
}

static PyObject *babel(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject *o_ctx, *o_unit, *o_babel, *result = NULL;
    const atoms_ctx *ctx;
    arguments a = {0};
    atoms_matrix unit;
    void *sums;
    if (!PyArg_ParseTuple(args, "OOO:babel", &o_ctx, &o_unit, &o_babel) || atoms_get_ctx(o_ctx, &ctx) < 0 ||
        take_matrix(&a, o_unit, "unit", &unit) < 0 ||
        args_array(&a, o_babel, (array_spec){"babel", NPY_FLOAT64, 1, {-1}, .written = true}, &sums) < 0)
        goto done;
    const int64_t kmax = args_length(&a, 0);
    atoms_status status;
    WITHOUT_GIL(status = atoms_babel(ctx, unit, kmax, sums));
    result = atoms_raise(status, "babel");
done:
    args_release(&a);
    return result;
}

const atoms_constant atoms_theory_constants[] = {{"EV_ROWS", ATOMS_EV_ROWS},
                                                 {"EV_TOKENS", ATOMS_EV_TOKENS},
                                                 {"COSINE_LOW_BITS", ATOMS_COSINE_LOW_BITS},
                                                 {"COSINE_BINS", ATOMS_COSINE_BINS},
                                                 {NULL, 0}};

PyMethodDef atoms_theory_methods[] = {
    ATOMS_NAMED("ev_update", ev_update,
                "ev_update(ctx, X, X_hat|None, whitener|None, mean|None, massive_norm, sums, tokens) -> bad row or -1"),
    ATOMS_NAMED("unit_rows", unit_rows, "unit_rows(ctx, D, whitener|None, unit, norms) -> bad row or -1"),
    {"cosine_histogram", cosine_histogram, METH_VARARGS, "cosine_histogram(ctx, unit, counts)"},
    {"cosine_refine", cosine_refine, METH_VARARGS, "cosine_refine(ctx, unit, slot, counts)"},
    ATOMS_NAMED("nearest", nearest, "nearest(ctx, A, B, absolute, index, value, back_index=None, back_value=None)"),
    {"babel", babel, METH_VARARGS, "babel(ctx, unit, babel)"},
    {NULL, NULL, 0, NULL}};
