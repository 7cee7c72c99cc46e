/* bind_sae.c: the binding of the sparse autoencoder. */
#include "binding.h"

#define CAPSULE "atoms._core.sae"

/* The model and who is using it: one step, or any number of encodings, at a time. The GIL guards
 * the counts. */
typedef struct {
    atoms_sae *sae;
    int readers, writers;
} handle;

static void handle_free(PyObject *capsule)
{
    handle *h = PyCapsule_GetPointer(capsule, CAPSULE);
    if (h) {
        atoms_sae_free(h->sae);
        PyMem_Free(h);
    }
}

static handle *get_handle(PyObject *obj, int writes)
{
    handle *h = PyCapsule_GetPointer(obj, CAPSULE);
    if (h && (h->writers || (writes && h->readers))) {
        PyErr_SetString(PyExc_RuntimeError, "this autoencoder is in use by another thread; train one at a time");
        return NULL;
    }
    return h;
}

static PyObject *sae_new(PyObject *self, PyObject *args, PyObject *kwargs)
{
    (void)self;
    static char *names[] = {"ctx",   "d_in",  "d_sae",   "activation", "k",      "tied",     "bandwidth",
                            "beta1", "beta2", "epsilon", "clip",       "screen", "prefixes", NULL};
    atoms_sae_params p;
    atoms_sae_params_init(&p);
    long long d_in, d_sae, k = 0;
    int activation = 0, tied = 0, screen = 0;
    const atoms_ctx *ctx;
    PyObject *ctx_obj, *prefixes = Py_None;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OLL|iLpfffffiO:sae_new", names, &ctx_obj, &d_in, &d_sae,
                                     &activation, &k, &tied, &p.bandwidth, &p.beta1, &p.beta2, &p.epsilon, &p.clip,
                                     &screen, &prefixes) ||
        atoms_get_ctx(ctx_obj, &ctx) < 0)
        return NULL;
    if (prefixes != Py_None) {
        atoms_view v;
        int64_t any = -1;
        if (atoms_view_typed(prefixes, "prefixes", NPY_INT64, 0, 1, &any, &v) < 0)
            return NULL;
        p.n_prefixes = v.shape[0]; /* too many are refused below */
        for (int64_t i = 0; i < v.shape[0] && i < ATOMS_MAX_PREFIXES; i++)
            p.prefix[i] = ((const int64_t *)v.data)[i];
        atoms_view_clear(&v);
    }
    p.d_in = d_in;
    p.d_sae = d_sae;
    p.k = k;
    p.activation = (atoms_activation)activation;
    p.tied = tied;
    p.screen = (atoms_screen)screen;
    handle *h = PyMem_Calloc(1, sizeof *h);
    if (!h)
        return PyErr_NoMemory();
    atoms_status status = atoms_sae_new(ctx, &p, &h->sae);
    if (status < 0) {
        PyMem_Free(h);
        return atoms_raise(status, "sae_new");
    }
    PyObject *capsule = PyCapsule_New(h, CAPSULE, handle_free);
    if (!capsule) {
        atoms_sae_free(h->sae);
        PyMem_Free(h);
    }
    return capsule;
}

/* sae_get(sae, field, out) and sae_set(sae, field, values) */
static PyObject *access_field(PyObject *args, int set)
{
    PyObject *capsule, *array;
    int field;
    if (!PyArg_ParseTuple(args, "OiO", &capsule, &field, &array))
        return NULL;
    handle *h = get_handle(capsule, set);
    if (!h)
        return NULL;
    if (field < 0 || field > ATOMS_COUNTERS)
        return PyErr_Format(PyExc_ValueError, "field: expected 0 to %d, got %d", (int)ATOMS_COUNTERS, field);
    int64_t shape[2];
    atoms_sae_shape(h->sae, (atoms_sae_field)field, shape);
    int type = field >= ATOMS_LAST_FIRED ? NPY_INT64 : NPY_FLOAT32;
    int is_matrix = field < ATOMS_LAST_FIRED && field % 5 <= ATOMS_W_DEC;
    atoms_view v;
    if (atoms_view_typed(array, set ? "values" : "out", type, !set, is_matrix ? 2 : 1, shape, &v) < 0)
        return NULL;
    if (set)
        atoms_sae_set(h->sae, (atoms_sae_field)field, v.data);
    else
        atoms_sae_get(h->sae, (atoms_sae_field)field, v.data);
    atoms_view_clear(&v);
    Py_RETURN_NONE;
}

static PyObject *sae_get(PyObject *self, PyObject *args)
{
    (void)self;
    return access_field(args, 0);
}

static PyObject *sae_set(PyObject *self, PyObject *args)
{
    (void)self;
    return access_field(args, 1);
}

static PyObject *sae_nonfinite(PyObject *self, PyObject *capsule)
{
    (void)self;
    handle *h = get_handle(capsule, 0);
    return h ? PyLong_FromLong(atoms_sae_nonfinite(h->sae)) : NULL;
}

static PyObject *sae_reset(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject *ctx_obj, *capsule, *idx_obj, *rows_obj, *scales_obj, *thr_obj, *result = NULL;
    const atoms_ctx *ctx;
    if (!PyArg_ParseTuple(args, "OOOOOO:sae_reset", &ctx_obj, &capsule, &idx_obj, &rows_obj, &scales_obj, &thr_obj) ||
        atoms_get_ctx(ctx_obj, &ctx) < 0)
        return NULL;
    handle *h = get_handle(capsule, 1);
    if (!h)
        return NULL;
    atoms_view idx, rows = {0}, scales = {0}, thr = {0};
    int64_t any = -1;
    if (atoms_view_typed(idx_obj, "idx", NPY_INT64, 0, 1, &any, &idx) < 0)
        return NULL;
    int64_t shape[2] = {idx.shape[0], atoms_sae_get_params(h->sae)->d_in};
    if (atoms_view_typed(rows_obj, "rows", NPY_FLOAT32, 0, 2, shape, &rows) == 0 &&
        atoms_view_typed(scales_obj, "scales", NPY_FLOAT32, 0, 1, shape, &scales) == 0 &&
        atoms_view_typed(thr_obj, "thresholds", NPY_FLOAT32, 0, 1, shape, &thr) == 0)
        result = atoms_raise(atoms_sae_reset(ctx, idx.shape[0], h->sae, idx.data, rows.data, scales.data, thr.data),
                             "sae_reset");
    atoms_view_clear(&idx);
    atoms_view_clear(&rows);
    atoms_view_clear(&scales);
    atoms_view_clear(&thr);
    return result;
}

static PyObject *raise_row(atoms_status status, const atoms_sae_stats *stats, const char *where)
{
    if (status == ATOMS_ERR_NONFINITE)
        return PyErr_Format(PyExc_ValueError,
                            "X: row %lld holds NaN or infinity (or overflows float32); drop it "
                            "with X[numpy.isfinite(X).all(axis=1)]",
                            (long long)stats->bad_row);
    return atoms_raise(status, where);
}

static PyObject *stats_dict(const atoms_sae_stats *s)
{
    const double *t = s->seconds;
    return Py_BuildValue("{s:d,s:d,s:d,s:d,s:d,s:d,s:d,s:d,s:{s:d,s:d,s:d,s:d,s:d,s:d}}", "squared_error",
                         s->squared_error, "total_variance", s->total_variance, "penalty", s->penalty, "l0", s->l0,
                         "band", s->band, "band_gain", s->band_gain, "lowest", s->lowest, "candidates", s->candidates,
                         "seconds", "prepare", t[0], "screen", t[1], "exact", t[2], "decode", t[3], "sort", t[4],
                         "update", t[5]);
}

/* A caller's rows: X of any float type and strides, and what the model reads of them. */
typedef struct {
    atoms_view x, index, shift;
    atoms_batch rows;
    int64_t n;
} row_views;

static void rows_clear(row_views *r)
{
    atoms_view_clear(&r->x);
    atoms_view_clear(&r->index);
    atoms_view_clear(&r->shift);
}

/* (X, index or None, shift or None, scale) */
static int rows_parse(PyObject *x, PyObject *index, PyObject *shift, float scale, const handle *h, row_views *r)
{
    memset(r, 0, sizeof *r);
    int64_t d = atoms_sae_get_params(h->sae)->d_in, any = -1;
    if (atoms_view_in(x, "X", 2, VIEW_FLOATS, &r->x) < 0)
        return -1;
    if (r->x.shape[1] != d) {
        PyErr_Format(PyExc_ValueError, "X: expected length %lld along axis 1, got %lld", (long long)d,
                     (long long)r->x.shape[1]);
        goto failed;
    }
    if ((index != Py_None && atoms_view_typed(index, "index", NPY_INT64, 0, 1, &any, &r->index) < 0) ||
        (shift != Py_None && atoms_view_typed(shift, "shift", NPY_FLOAT32, 0, 1, &d, &r->shift) < 0))
        goto failed;
    const int64_t *at = r->index.data;
    r->n = at ? r->index.shape[0] : r->x.shape[0];
    for (int64_t i = 0; at && i < r->n; i++)
        if (at[i] < 0 || at[i] >= r->x.shape[0]) {
            PyErr_Format(PyExc_IndexError, "index: row %lld lies outside X with %lld rows", (long long)at[i],
                         (long long)r->x.shape[0]);
            goto failed;
        }
    r->rows = (atoms_batch){r->x.data, r->x.dtype, r->x.stride[0], r->x.stride[1], at, r->shift.data, scale};
    return 0;
failed:
    rows_clear(r);
    return -1;
}

static PyObject *sae_step(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject *ctx_obj, *capsule, *x_obj, *err_obj, *index = Py_None, *shift = Py_None;
    atoms_sae_step_params sp = {.silent_factor = 1};
    long long k, silent_after = 0, aux_k = 0, dead_after = 0, rise_after = 0;
    float scale = 1;
    const atoms_ctx *ctx;
    if (!PyArg_ParseTuple(args, "OOOfffffLO|LfLLfLfOOf:sae_step", &ctx_obj, &capsule, &x_obj, &sp.learning_rate,
                          &sp.threshold_rate, &sp.l0_coefficient, &sp.l1_coefficient, &sp.threshold_shift, &k, &err_obj,
                          &silent_after, &sp.silent_factor, &aux_k, &dead_after, &sp.aux_coefficient, &rise_after,
                          &sp.rise, &index, &shift, &scale) ||
        atoms_get_ctx(ctx_obj, &ctx) < 0)
        return NULL;
    handle *h = get_handle(capsule, 1);
    if (!h)
        return NULL;
    sp.k = k;
    sp.silent_after = silent_after;
    sp.rise_after = rise_after;
    sp.aux_k = aux_k;
    sp.dead_after = dead_after;
    row_views r;
    atoms_view err = {0};
    if (rows_parse(x_obj, index, shift, scale, h, &r) < 0)
        return NULL;
    int64_t shape[2] = {r.n, r.x.shape[1]};
    if (err_obj != Py_None && (atoms_view_typed(err_obj, "err", NPY_FLOAT32, 1, 2, shape, &err) < 0 ||
                               atoms_views_overlap(&r.x, "X", &err, "err"))) {
        rows_clear(&r);
        atoms_view_clear(&err);
        return NULL;
    }
    atoms_sae_stats stats;
    atoms_status status;
    h->writers++;
    Py_BEGIN_ALLOW_THREADS
    status = atoms_sae_step(ctx, r.n, h->sae, &r.rows, &sp, err.data, &stats);
    Py_END_ALLOW_THREADS
    h->writers--;
    rows_clear(&r);
    atoms_view_clear(&err);
    return status < 0 ? raise_row(status, &stats, "sae_step") : stats_dict(&stats);
}

static PyObject *sae_encode(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject *ctx_obj, *capsule, *x_obj, *index = Py_None, *shift = Py_None;
    const atoms_ctx *ctx;
    float scale = 1;
    if (!PyArg_ParseTuple(args, "OOO|OOf:sae_encode", &ctx_obj, &capsule, &x_obj, &index, &shift, &scale) ||
        atoms_get_ctx(ctx_obj, &ctx) < 0)
        return NULL;
    handle *h = get_handle(capsule, 0);
    if (!h)
        return NULL;
    row_views r;
    if (rows_parse(x_obj, index, shift, scale, h, &r) < 0)
        return NULL;
    atoms_csr *codes = NULL;
    atoms_sae_stats stats;
    atoms_status status;
    h->readers++;
    Py_BEGIN_ALLOW_THREADS
    status = atoms_sae_encode(ctx, r.n, h->sae, &r.rows, &codes, &stats);
    Py_END_ALLOW_THREADS
    h->readers--;
    npy_intp rows = r.n + 1;
    rows_clear(&r);
    if (status < 0)
        return raise_row(status, &stats, "sae_encode");
    npy_intp nnz = atoms_csr_nnz(codes);
    PyObject *indptr = PyArray_SimpleNew(1, &rows, NPY_INT64);
    PyObject *indices = PyArray_SimpleNew(1, &nnz, NPY_INT32);
    PyObject *values = PyArray_SimpleNew(1, &nnz, NPY_FLOAT32);
    if (indptr && indices && values)
        atoms_csr_copy(codes, PyArray_DATA((PyArrayObject *)indptr), PyArray_DATA((PyArrayObject *)indices),
                         PyArray_DATA((PyArrayObject *)values));
    atoms_csr_free(codes);
    PyObject *dict = indptr && indices && values ? stats_dict(&stats) : NULL;
    if (!dict) {
        Py_XDECREF(indptr);
        Py_XDECREF(indices);
        Py_XDECREF(values);
        return NULL;
    }
    return Py_BuildValue("NNNN", indptr, indices, values, dict);
}

static PyObject *decode(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject *o[7], *result = NULL;
    const atoms_ctx *ctx;
    if (!PyArg_ParseTuple(args, "OOOOOOO:decode", &o[0], &o[1], &o[2], &o[3], &o[4], &o[5], &o[6]) ||
        atoms_get_ctx(o[0], &ctx) < 0)
        return NULL;
    atoms_view indptr = {0}, indices = {0}, values = {0}, w = {0}, bias = {0}, out = {0};
    int64_t any[2] = {-1, -1};
    if (atoms_view_typed(o[1], "indptr", NPY_INT64, 0, 1, any, &indptr) < 0 ||
        atoms_view_typed(o[2], "indices", NPY_INT32, 0, 1, any, &indices) < 0 ||
        atoms_view_typed(o[3], "values", NPY_FLOAT32, 0, 1, indices.shape, &values) < 0 ||
        atoms_view_typed(o[4], "W_dec", NPY_FLOAT32, 0, 2, any, &w) < 0 ||
        atoms_view_typed(o[5], "bias", NPY_FLOAT32, 0, 1, &w.shape[1], &bias) < 0)
        goto done;
    int64_t shape[2] = {indptr.shape[0] - 1, w.shape[1]};
    const int64_t *ptr = indptr.data;
    if (shape[0] < 0 || ptr[0] != 0 || ptr[shape[0]] != indices.shape[0]) {
        PyErr_SetString(PyExc_ValueError, "indptr: expected to run from 0 to the number of values");
        goto done;
    }
    for (int64_t i = 0; i < shape[0]; i++)
        if (ptr[i + 1] < ptr[i]) {
            PyErr_SetString(PyExc_ValueError, "indptr: expected ascending values");
            goto done;
        }
    if (atoms_view_typed(o[6], "out", NPY_FLOAT32, 1, 2, shape, &out) < 0 ||
        atoms_views_overlap(&w, "W_dec", &out, "out") || atoms_views_overlap(&values, "values", &out, "out"))
        goto done;
    atoms_status status;
    Py_BEGIN_ALLOW_THREADS
    status = atoms_decode(ctx, shape[0], shape[1], w.shape[0], indptr.data, indices.data, values.data, w.data,
                          bias.data, out.data);
    Py_END_ALLOW_THREADS
    if (status == ATOMS_ERR_ARGUMENT)
        PyErr_Format(PyExc_ValueError, "codes: a column index lies outside 0..%lld", (long long)w.shape[0] - 1);
    else
        result = atoms_raise(status, "decode");
done:
    atoms_view_clear(&indptr);
    atoms_view_clear(&indices);
    atoms_view_clear(&values);
    atoms_view_clear(&w);
    atoms_view_clear(&bias);
    atoms_view_clear(&out);
    return result;
}

PyMethodDef atoms_sae_methods[] = {
    {"sae_new", (PyCFunction)(void (*)(void))sae_new, METH_VARARGS | METH_KEYWORDS,
     "sae_new(ctx, d_in, d_sae, activation, k, tied, bandwidth, beta1, beta2, epsilon, clip, screen, "
     "prefixes)"},
    {"sae_get", sae_get, METH_VARARGS, "sae_get(sae, field, out)"},
    {"sae_set", sae_set, METH_VARARGS, "sae_set(sae, field, values)"},
    {"sae_nonfinite", sae_nonfinite, METH_O,
     "sae_nonfinite(sae): number of the first parameter that holds NaN or infinity, or -1"},
    {"sae_reset", sae_reset, METH_VARARGS, "sae_reset(ctx, sae, idx, rows, scales, thresholds)"},
    {"sae_step", sae_step, METH_VARARGS,
     "sae_step(ctx, sae, X, learning_rate, threshold_rate, l0_coefficient, l1_coefficient, "
     "threshold_shift, k, err, silent_after=0, silent_factor=1, aux_k=0, dead_after=0, "
     "aux_coefficient=0, rise_after=0, rise=0, index=None, shift=None, scale=1)"},
    {"sae_encode", sae_encode, METH_VARARGS, "sae_encode(ctx, sae, X, index=None, shift=None, scale=1)"},
    {"decode", decode, METH_VARARGS, "decode(ctx, indptr, indices, values, W_dec, bias, out)"},
    {NULL, NULL, 0, NULL}};
