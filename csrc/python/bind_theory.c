/* bind_theory.c: the binding of the theory room. */
#include "binding.h"

#define VIEWS 4

/* The views of one call, released together. */
typedef struct {
    atoms_view v[VIEWS];
} views;

static void clear(views *a)
{
    for (int i = 0; i < VIEWS; i++)
        atoms_view_clear(&a->v[i]);
}

static atoms_rows matrix(const atoms_view *v)
{
    return (atoms_rows){v->data, v->dtype, v->shape[0], v->shape[1], v->stride[0], v->stride[1]};
}

/* Outputs a.v[from..to) must not share memory with each other or with the inputs before them. */
static int overlapping(views *a, int from, const char *const *names)
{
    for (int out = from; out < VIEWS; out++)
        for (int other = 0; other < out; other++)
            if (a->v[out].array && a->v[other].array &&
                atoms_views_overlap(&a->v[other], names[other], &a->v[out], names[out]))
                return 1;
    return 0;
}

/* obj None: leaves *view empty */
static int optional_f64(PyObject *obj, const char *name, int ndim, const int64_t *shape, atoms_view *view)
{
    return obj == Py_None ? 0 : atoms_view_typed(obj, name, NPY_FLOAT64, 0, ndim, shape, view);
}

static PyObject *ev_update(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject *octx, *ox, *oh, *ow, *om, *osums, *otokens;
    double massive_norm;
    const atoms_ctx *ctx;
    views in = {0}, out = {0};
    if (!PyArg_ParseTuple(args, "OOOOOdOO:ev_update", &octx, &ox, &oh, &ow, &om, &massive_norm, &osums, &otokens) ||
        atoms_get_ctx(octx, &ctx) < 0)
        return NULL;
    PyObject *result = NULL;
    if (atoms_view_in(ox, "X", 2, VIEW_FLOATS, &in.v[0]) < 0)
        return NULL;
    int64_t n = in.v[0].shape[0], d = in.v[0].shape[1];
    int64_t square[] = {d, d}, tokens[] = {n, 4}, sums[] = {2, ATOMS_EV_ROWS, d};
    if (oh != Py_None && atoms_view_in(oh, "X_hat", 2, VIEW_FLOATS, &in.v[1]) < 0)
        goto done;
    if (in.v[1].array && (in.v[1].shape[0] != n || in.v[1].shape[1] != d)) {
        PyErr_Format(PyExc_ValueError, "X_hat: expected shape (%lld, %lld) as X has, got (%lld, %lld)", (long long)n,
                     (long long)d, (long long)in.v[1].shape[0], (long long)in.v[1].shape[1]);
        goto done;
    }
    if (optional_f64(ow, "whitener", 2, square, &in.v[2]) < 0 || optional_f64(om, "mean", 1, &d, &in.v[3]) < 0 ||
        atoms_view_typed(osums, "sums", NPY_FLOAT64, 1, 3, sums, &out.v[0]) < 0 ||
        atoms_view_typed(otokens, "tokens", NPY_FLOAT64, 1, 2, tokens, &out.v[1]) < 0)
        goto done;
    static const char *const in_names[] = {"X", "X_hat", "whitener", "mean"};
    static const char *const out_names[] = {"sums", "tokens"};
    if (atoms_views_overlap(&out.v[0], "sums", &out.v[1], "tokens"))
        goto done;
    for (int i = 0; i < VIEWS; i++)
        for (int o = 0; o < 2; o++)
            if (in.v[i].array && atoms_views_overlap(&in.v[i], in_names[i], &out.v[o], out_names[o]))
                goto done;
    atoms_status status;
    int64_t bad;
    Py_BEGIN_ALLOW_THREADS
    status = atoms_ev_update(ctx, n, d, matrix(&in.v[0]), matrix(&in.v[1]), in.v[2].data, in.v[3].data, massive_norm,
                             out.v[0].data, out.v[1].data, &bad);
    Py_END_ALLOW_THREADS
    if (status == ATOMS_OK || status == ATOMS_ERR_NONFINITE)
        result = PyLong_FromLongLong(bad);
    else
        result = atoms_raise(status, "ev_update");
done:
    clear(&in);
    clear(&out);
    return result;
}

static PyObject *unit_rows(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject *octx, *ox, *ow, *ounit, *onorms, *result = NULL;
    const atoms_ctx *ctx;
    views a = {0};
    static const char *const names[] = {"D", "whitener", "unit", "norms"};
    if (!PyArg_ParseTuple(args, "OOOOO:unit_rows", &octx, &ox, &ow, &ounit, &onorms) || atoms_get_ctx(octx, &ctx) < 0 ||
        atoms_view_in(ox, "D", 2, VIEW_FLOATS, &a.v[0]) < 0)
        return NULL;
    int64_t n = a.v[0].shape[0], d = a.v[0].shape[1], square[] = {d, d}, bad;
    if (optional_f64(ow, "whitener", 2, square, &a.v[1]) < 0 ||
        atoms_view_typed(ounit, "unit", NPY_FLOAT32, 1, 2, a.v[0].shape, &a.v[2]) < 0 ||
        atoms_view_typed(onorms, "norms", NPY_FLOAT64, 1, 1, &n, &a.v[3]) < 0 || overlapping(&a, 2, names))
        goto done;
    atoms_status status;
    Py_BEGIN_ALLOW_THREADS
    status = atoms_unit_rows(ctx, n, d, matrix(&a.v[0]), a.v[1].data, a.v[2].data, a.v[3].data, &bad);
    Py_END_ALLOW_THREADS
    if (status == ATOMS_OK || status == ATOMS_ERR_NONFINITE)
        result = PyLong_FromLongLong(bad);
    else
        result = atoms_raise(status, "unit_rows");
done:
    clear(&a);
    return result;
}

static PyObject *cosine_histogram(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject *octx, *ounit, *ocounts, *result = NULL;
    const atoms_ctx *ctx;
    views a = {0};
    int64_t bins = ATOMS_COSINE_BINS;
    if (!PyArg_ParseTuple(args, "OOO:cosine_histogram", &octx, &ounit, &ocounts) || atoms_get_ctx(octx, &ctx) < 0)
        return NULL;
    if (atoms_view_in_c(ounit, "unit", 2, VIEW_F32, &a.v[0]) < 0 ||
        atoms_view_typed(ocounts, "counts", NPY_INT64, 1, 1, &bins, &a.v[1]) < 0 ||
        atoms_views_overlap(&a.v[0], "unit", &a.v[1], "counts"))
        goto done;
    atoms_status status;
    Py_BEGIN_ALLOW_THREADS
    status = atoms_cosine_histogram(ctx, a.v[0].shape[0], a.v[0].shape[1], a.v[0].data, a.v[1].data);
    Py_END_ALLOW_THREADS
    result = atoms_raise(status, "cosine_histogram");
done:
    clear(&a);
    return result;
}

static PyObject *cosine_refine(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject *octx, *ounit, *oslot, *ocounts, *result = NULL;
    const atoms_ctx *ctx;
    views a = {0};
    static const char *const names[] = {"unit", "slot", "counts", ""};
    int64_t bins = ATOMS_COSINE_BINS, counts[] = {-1, 1 << ATOMS_COSINE_LOW_BITS};
    if (!PyArg_ParseTuple(args, "OOOO:cosine_refine", &octx, &ounit, &oslot, &ocounts) || atoms_get_ctx(octx, &ctx) < 0)
        return NULL;
    if (atoms_view_in_c(ounit, "unit", 2, VIEW_F32, &a.v[0]) < 0 ||
        atoms_view_typed(oslot, "slot", NPY_INT32, 0, 1, &bins, &a.v[1]) < 0 ||
        atoms_view_typed(ocounts, "counts", NPY_INT64, 1, 2, counts, &a.v[2]) < 0 || overlapping(&a, 2, names))
        goto done;
    atoms_status status;
    Py_BEGIN_ALLOW_THREADS
    status = atoms_cosine_refine(ctx, a.v[0].shape[0], a.v[0].shape[1], a.v[0].data, a.v[1].data, a.v[2].shape[0],
                                 a.v[2].data);
    Py_END_ALLOW_THREADS
    result = atoms_raise(status, "cosine_refine");
done:
    clear(&a);
    return result;
}

static PyObject *nearest(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject *octx, *oa, *ob, *oindex, *ovalue, *result = NULL;
    const atoms_ctx *ctx;
    int absolute;
    views a = {0};
    static const char *const names[] = {"A", "B", "index", "value"};
    if (!PyArg_ParseTuple(args, "OOOpOO:nearest", &octx, &oa, &ob, &absolute, &oindex, &ovalue) ||
        atoms_get_ctx(octx, &ctx) < 0)
        return NULL;
    if (atoms_view_in_c(oa, "A", 2, VIEW_F32, &a.v[0]) < 0 || atoms_view_in_c(ob, "B", 2, VIEW_F32, &a.v[1]) < 0)
        goto done;
    if (a.v[0].shape[1] != a.v[1].shape[1]) {
        PyErr_Format(PyExc_ValueError, "B: expected %lld columns as A has, got %lld", (long long)a.v[0].shape[1],
                     (long long)a.v[1].shape[1]);
        goto done;
    }
    int64_t n = a.v[0].shape[0];
    if (atoms_view_typed(oindex, "index", NPY_INT64, 1, 1, &n, &a.v[2]) < 0 ||
        atoms_view_typed(ovalue, "value", NPY_FLOAT32, 1, 1, &n, &a.v[3]) < 0 || overlapping(&a, 2, names))
        goto done;
    atoms_status status;
    Py_BEGIN_ALLOW_THREADS
    status = atoms_nearest(ctx, n, a.v[1].shape[0], a.v[0].shape[1], a.v[0].data, a.v[1].data, absolute, a.v[2].data,
                           a.v[3].data);
    Py_END_ALLOW_THREADS
    result = atoms_raise(status, "nearest");
done:
    clear(&a);
    return result;
}

static PyObject *babel(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject *octx, *ounit, *obabel, *result = NULL;
    const atoms_ctx *ctx;
    views a = {0};
    if (!PyArg_ParseTuple(args, "OOO:babel", &octx, &ounit, &obabel) || atoms_get_ctx(octx, &ctx) < 0)
        return NULL;
    if (atoms_view_in_c(ounit, "unit", 2, VIEW_F32, &a.v[0]) < 0 ||
        atoms_view_typed(obabel, "babel", NPY_FLOAT64, 1, 1, NULL, &a.v[1]) < 0 ||
        atoms_views_overlap(&a.v[0], "unit", &a.v[1], "babel"))
        goto done;
    atoms_status status;
    Py_BEGIN_ALLOW_THREADS
    status = atoms_babel(ctx, a.v[0].shape[0], a.v[0].shape[1], a.v[0].data, a.v[1].shape[0], a.v[1].data);
    Py_END_ALLOW_THREADS
    result = atoms_raise(status, "babel");
done:
    clear(&a);
    return result;
}

PyMethodDef atoms_theory_methods[] = {
    {"ev_update", ev_update, METH_VARARGS,
     "ev_update(ctx, X, X_hat|None, whitener|None, mean|None, massive_norm, sums, tokens) -> bad row or -1"},
    {"unit_rows", unit_rows, METH_VARARGS, "unit_rows(ctx, D, whitener|None, unit, norms) -> bad row or -1"},
    {"cosine_histogram", cosine_histogram, METH_VARARGS, "cosine_histogram(ctx, unit, counts)"},
    {"cosine_refine", cosine_refine, METH_VARARGS, "cosine_refine(ctx, unit, slot, counts)"},
    {"nearest", nearest, METH_VARARGS, "nearest(ctx, A, B, absolute, index, value)"},
    {"babel", babel, METH_VARARGS, "babel(ctx, unit, babel)"},
    {NULL, NULL, 0, NULL}};
