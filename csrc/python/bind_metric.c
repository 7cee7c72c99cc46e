/* bind_metric.c: the binding of the metric room. */
#include "binding.h"

/* An optional float64 vector of length d; None leaves view->data NULL. */
static int optional_vector(PyObject *obj, const char *name, int64_t d, atoms_view *view)
{
    memset(view, 0, sizeof *view);
    return obj == Py_None ? 0 : atoms_view_typed(obj, name, NPY_FLOAT64, 0, 1, &d, view);
}

static PyObject *moments(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject *o_ctx, *o_x, *o_shift, *o_sum, *o_second, *result = NULL;
    const atoms_ctx *ctx;
    atoms_view x = {0}, shift = {0}, sum = {0}, second = {0};
    if (!PyArg_ParseTuple(args, "OOOOO:moments", &o_ctx, &o_x, &o_shift, &o_sum, &o_second) ||
        atoms_get_ctx(o_ctx, &ctx) < 0)
        return NULL;
    if (atoms_view_in(o_x, "X", 2, VIEW_FLOATS, &x) < 0)
        goto done;
    const int64_t d = x.shape[1], square[2] = {d, d};
    if (optional_vector(o_shift, "shift", d, &shift) < 0 ||
        atoms_view_typed(o_sum, "sum", NPY_FLOAT64, 1, 1, &d, &sum) < 0 ||
        atoms_view_typed(o_second, "second", NPY_FLOAT64, 1, 2, square, &second) < 0 ||
        atoms_views_overlap(&x, "X", &sum, "sum") || atoms_views_overlap(&x, "X", &second, "second") ||
        atoms_views_overlap(&sum, "sum", &second, "second"))
        goto done;
    if (shift.array &&
        (atoms_views_overlap(&shift, "shift", &sum, "sum") || atoms_views_overlap(&shift, "shift", &second, "second")))
        goto done;
    atoms_status status;
    Py_BEGIN_ALLOW_THREADS
    status =
        atoms_moments(ctx, x.shape[0], d, x.data, x.dtype, x.stride[0], x.stride[1], shift.data, sum.data, second.data);
    Py_END_ALLOW_THREADS
    result = atoms_raise(status, "moments");
done:
    atoms_view_clear(&x);
    atoms_view_clear(&shift);
    atoms_view_clear(&sum);
    atoms_view_clear(&second);
    return result;
}

static PyObject *product(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject *o_ctx, *o_x, *o_center, *o_w, *o_offset, *o_out, *result = NULL;
    const atoms_ctx *ctx;
    atoms_view x = {0}, center = {0}, w = {0}, offset = {0}, out = {0};
    if (!PyArg_ParseTuple(args, "OOOOOO:product", &o_ctx, &o_x, &o_center, &o_w, &o_offset, &o_out) ||
        atoms_get_ctx(o_ctx, &ctx) < 0)
        return NULL;
    if (atoms_view_in(o_x, "X", 2, VIEW_FLOATS, &x) < 0)
        goto done;
    const int64_t d = x.shape[1], w_shape[2] = {d, -1};
    if (optional_vector(o_center, "center", d, &center) < 0 ||
        atoms_view_typed(o_w, "w", NPY_FLOAT64, 0, 2, w_shape, &w) < 0)
        goto done;
    const int64_t m = w.shape[1], out_shape[2] = {x.shape[0], m};
    if (optional_vector(o_offset, "offset", m, &offset) < 0 ||
        atoms_view_typed(o_out, "out", NPY_FLOAT32, 1, 2, out_shape, &out) < 0 ||
        atoms_views_overlap(&x, "X", &out, "out") || atoms_views_overlap(&w, "w", &out, "out"))
        goto done;
    atoms_status status;
    Py_BEGIN_ALLOW_THREADS
    status = atoms_product(ctx, x.shape[0], d, m, x.data, x.dtype, x.stride[0], x.stride[1], center.data, w.data,
                           offset.data, out.data);
    Py_END_ALLOW_THREADS
    result = atoms_raise(status, "product");
done:
    atoms_view_clear(&x);
    atoms_view_clear(&center);
    atoms_view_clear(&w);
    atoms_view_clear(&offset);
    atoms_view_clear(&out);
    return result;
}

static PyObject *angles(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject *o_ctx, *o_x, *o_first, *o_second, *o_counts, *o_sums, *result = NULL;
    const atoms_ctx *ctx;
    atoms_view x = {0}, first = {0}, second = {0}, counts = {0}, sums = {0};
    if (!PyArg_ParseTuple(args, "OOOOOO:angles", &o_ctx, &o_x, &o_first, &o_second, &o_counts, &o_sums) ||
        atoms_get_ctx(o_ctx, &ctx) < 0)
        return NULL;
    const int64_t three = 3;
    if (atoms_view_in(o_x, "X", 2, VIEW_FLOATS, &x) < 0 ||
        atoms_view_typed(o_counts, "counts", NPY_INT64, 1, 1, NULL, &counts) < 0 ||
        atoms_view_typed(o_sums, "sums", NPY_FLOAT64, 1, 1, &three, &sums) < 0)
        goto done;
    if (o_first != Py_None && (atoms_view_typed(o_first, "first", NPY_INT64, 0, 1, NULL, &first) < 0 ||
                               atoms_view_typed(o_second, "second", NPY_INT64, 0, 1, first.shape, &second) < 0))
        goto done;
    atoms_status status;
    Py_BEGIN_ALLOW_THREADS
    status = atoms_angles(ctx, x.shape[0], x.shape[1], x.data, x.dtype, x.stride[0], x.stride[1], first.shape[0],
                          first.data, second.data, counts.shape[0], counts.data, sums.data);
    Py_END_ALLOW_THREADS
    result = atoms_raise(status, "angles");
done:
    atoms_view_clear(&x);
    atoms_view_clear(&first);
    atoms_view_clear(&second);
    atoms_view_clear(&counts);
    atoms_view_clear(&sums);
    return result;
}

PyMethodDef atoms_metric_methods[] = {
    {"moments", moments, METH_VARARGS,
     "moments(ctx, X, shift, sum, second): sum (d) and second (d, d) of X - shift, float64"},
    {"product", product, METH_VARARGS,
     "product(ctx, X, center, w, offset, out): out = (X - center) w + offset, float32"},
    {"angles", angles, METH_VARARGS,
     "angles(ctx, X, first, second, counts, sums): histogram of angles between rows in degrees"},
    {NULL, NULL, 0, NULL}};
