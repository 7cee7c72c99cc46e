/* bind_metric.c: the binding of the metric room. */
#include "arguments.h"

static PyObject *moments(PyObject *self, PyObject *args, PyObject *kwargs)
{
    (void)self;
    static char *names[] = {"ctx", "X", "shift", "sum", "second", NULL};
    PyObject *o_ctx, *o_x, *o_shift, *o_sum, *o_second, *result = NULL;
    const atoms_ctx *ctx;
    arguments a = {0};
    atoms_rows x;
    void *shift, *sum, *second;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOOOO:moments", names, &o_ctx, &o_x, &o_shift, &o_sum, &o_second) ||
        atoms_get_ctx(o_ctx, &ctx) < 0 || args_rows(&a, o_x, "X", &x) < 0)
        goto done;
    const array_spec shift_of = {"shift", NPY_FLOAT64, 1, {x.d}, .optional = true};
    const array_spec sum_of = {"sum", NPY_FLOAT64, 1, {x.d}, .written = true};
    const array_spec second_of = {"second", NPY_FLOAT64, 2, {x.d, x.d}, .written = true};
    if (args_array(&a, o_shift, shift_of, &shift) < 0 || args_array(&a, o_sum, sum_of, &sum) < 0 ||
        args_array(&a, o_second, second_of, &second) < 0)
        goto done;
    atoms_status status;
    WITHOUT_GIL(status = atoms_moments(ctx, x, shift, sum, second));
    result = atoms_raise(status, "moments");
done:
    args_release(&a);
    return result;
}

static PyObject *product(PyObject *self, PyObject *args, PyObject *kwargs)
{
    (void)self;
    static char *names[] = {"ctx", "X", "center", "w", "offset", "out", NULL};
    PyObject *o_ctx, *o_x, *o_center, *o_w, *o_offset, *o_out, *result = NULL;
    const atoms_ctx *ctx;
    arguments a = {0};
    atoms_rows x;
    void *center, *w, *offset, *out;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOOOOO:product", names, &o_ctx, &o_x, &o_center, &o_w, &o_offset,
                                     &o_out) ||
        atoms_get_ctx(o_ctx, &ctx) < 0 || args_rows(&a, o_x, "X", &x) < 0)
        goto done;
    const array_spec center_of = {"center", NPY_FLOAT64, 1, {x.d}, .optional = true};
    const array_spec w_of = {"w", NPY_FLOAT64, 2, {x.d, -1}, .written = false};
    if (args_array(&a, o_center, center_of, &center) < 0 || args_array(&a, o_w, w_of, &w) < 0)
        goto done;
    const int64_t m = args_length(&a, 1);
    const array_spec offset_of = {"offset", NPY_FLOAT64, 1, {m}, .optional = true};
    const bool wide = PyArray_Check(o_out) && PyArray_TYPE((PyArrayObject *)o_out) == NPY_FLOAT64;
    const array_spec out_of = {"out", wide ? NPY_FLOAT64 : NPY_FLOAT32, 2, {x.n, m}, .written = true};
    if (args_array(&a, o_offset, offset_of, &offset) < 0 || args_array(&a, o_out, out_of, &out) < 0)
        goto done;
    atoms_status status;
    WITHOUT_GIL(status = wide ? atoms_product_f64(ctx, x, m, center, w, offset, out)
                              : atoms_product(ctx, x, m, center, w, offset, out));
    result = atoms_raise(status, "product");
done:
    args_release(&a);
    return result;
}

/* What a call takes of its `first` and `second`; both None: all pairs, *pairs NULL. */
static int take_pairs(arguments *a, PyObject *first, PyObject *second, atoms_pairs *list, const atoms_pairs **pairs)
{
    *pairs = NULL;
    if (first == Py_None)
        return 0;
    void *data;
    if (args_array(a, first, (array_spec){"first", NPY_INT64, 1, {-1}, .written = false}, &data) < 0)
        return -1;
    list->first = data;
    list->n = args_length(a, 0);
    if (args_array(a, second, (array_spec){"second", NPY_INT64, 1, {list->n}, .written = false}, &data) < 0)
        return -1;
    list->second = data;
    *pairs = list;
    return 0;
}

static PyObject *angles(PyObject *self, PyObject *args, PyObject *kwargs)
{
    (void)self;
    static char *names[] = {"ctx", "X", "first", "second", "counts", "sums", NULL};
    PyObject *o_ctx, *o_x, *o_first, *o_second, *o_counts, *o_sums, *result = NULL;
    const atoms_ctx *ctx;
    arguments a = {0};
    atoms_rows x;
    atoms_pairs list;
    const atoms_pairs *pairs;
    void *counts, *sums;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOOOOO:angles", names, &o_ctx, &o_x, &o_first, &o_second, &o_counts,
                                     &o_sums) ||
        atoms_get_ctx(o_ctx, &ctx) < 0 || args_rows(&a, o_x, "X", &x) < 0 ||
        args_array(&a, o_counts, (array_spec){"counts", NPY_INT64, 1, {-1}, .written = true}, &counts) < 0)
        goto done;
    const int64_t bins = args_length(&a, 0);
    if (args_array(&a, o_sums, (array_spec){"sums", NPY_FLOAT64, 1, {3}, .written = true}, &sums) < 0 ||
        take_pairs(&a, o_first, o_second, &list, &pairs) < 0)
        goto done;
    atoms_status status;
    WITHOUT_GIL(status = atoms_angles(ctx, x, pairs, bins, counts, sums));
    result = atoms_raise(status, "angles");
done:
    args_release(&a);
    return result;
}

PyMethodDef atoms_metric_methods[] = {
    ATOMS_NAMED("moments", moments,
                "moments(ctx, X, shift|None, sum, second): sum (d) and second (d, d) of X - shift, float64"),
    ATOMS_NAMED("product", product,
                "product(ctx, X, center|None, w, offset|None, out): out = (X - center) w + offset, float32 or float64"),
    ATOMS_NAMED(
        "angles", angles,
        "angles(ctx, X, first|None, second|None, counts, sums): histogram of the angles between rows, in degrees"),
    {NULL, NULL, 0, NULL}};
