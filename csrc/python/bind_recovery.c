/* bind_recovery.c: the binding of the recovery room. */
#include "binding.h"

#define DICT "atoms._core.dict"

static void dict_destroy(PyObject *capsule)
{
    atoms_dict_free(PyCapsule_GetPointer(capsule, DICT));
}

static atoms_dict *get_dict(PyObject *obj)
{
    if (!PyCapsule_IsValid(obj, DICT)) {
        PyErr_Format(PyExc_TypeError, "dictionary: expected a handle of dict_new, got %.100s", Py_TYPE(obj)->tp_name);
        return NULL;
    }
    return PyCapsule_GetPointer(obj, DICT);
}

static PyObject *py_dict_new(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject *ctx_obj, *atoms_obj;
    int double_precision;
    const atoms_ctx *ctx;
    atoms_view a;
    if (!PyArg_ParseTuple(args, "OOp:dict_new", &ctx_obj, &atoms_obj, &double_precision) ||
        atoms_get_ctx(ctx_obj, &ctx) < 0 || atoms_view_in(atoms_obj, "dictionary", 2, VIEW_FLOATS, &a) < 0)
        return NULL;
    atoms_dict *dict = NULL;
    atoms_status status;
    Py_BEGIN_ALLOW_THREADS
    status = atoms_dict_new(ctx, a.shape[0], a.shape[1], a.data, a.dtype, a.stride[0], a.stride[1],
                            double_precision ? ATOMS_F64 : ATOMS_F32, &dict);
    Py_END_ALLOW_THREADS
    atoms_view_clear(&a);
    if (status < 0)
        return atoms_raise(status, "dict_new");
    PyObject *capsule = PyCapsule_New(dict, DICT, dict_destroy);
    if (!capsule)
        atoms_dict_free(dict);
    return capsule;
}

static PyObject *py_dict_gram(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject *ctx_obj, *dict_obj;
    const atoms_ctx *ctx;
    atoms_dict *dict;
    int units, coarse;
    if (!PyArg_ParseTuple(args, "OOpp:dict_gram", &ctx_obj, &dict_obj, &units, &coarse) ||
        atoms_get_ctx(ctx_obj, &ctx) < 0 || !(dict = get_dict(dict_obj)))
        return NULL;
    atoms_status status = ATOMS_OK;
    Py_BEGIN_ALLOW_THREADS
    if (coarse)
        status = atoms_dict_coarse(ctx, dict);
    if (status == ATOMS_OK && units)
        status = atoms_dict_units(ctx, dict);
    if (status == ATOMS_OK && !(coarse && atoms_dict_has_coarse(dict)))
        status = atoms_dict_gram(ctx, dict);
    if (status == ATOMS_OK && units)
        status = atoms_dict_fine(ctx, dict);
    Py_END_ALLOW_THREADS
    return atoms_raise(status, "dict_gram");
}

static PyObject *py_dict_units(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject *ctx_obj, *dict_obj;
    const atoms_ctx *ctx;
    atoms_dict *dict;
    if (!PyArg_ParseTuple(args, "OO:dict_units", &ctx_obj, &dict_obj) || atoms_get_ctx(ctx_obj, &ctx) < 0 ||
        !(dict = get_dict(dict_obj)))
        return NULL;
    atoms_status status;
    Py_BEGIN_ALLOW_THREADS
    status = atoms_dict_units(ctx, dict);
    Py_END_ALLOW_THREADS
    return status < 0 ? atoms_raise(status, "dict_units") : PyBool_FromLong(atoms_dict_has_units(dict));
}

static PyObject *py_dict_has_gram(PyObject *self, PyObject *obj)
{
    (void)self;
    atoms_dict *dict = get_dict(obj);
    return dict ? PyBool_FromLong(atoms_dict_has_gram(dict)) : NULL;
}

/* ----------------------------------------------------------------- arrays */

/* The arrays of one call: cleared together, so that errors need one way out. */
#define MOST_VIEWS 12
typedef struct {
    atoms_view view[MOST_VIEWS];
    const char *name[MOST_VIEWS];
    int n;
} views;

static void clear(views *v)
{
    for (int i = 0; i < v->n; i++)
        atoms_view_clear(&v->view[i]);
}

static atoms_view *signals(views *v, PyObject *obj, const atoms_dict *dict)
{
    atoms_view *x = &v->view[v->n];
    if (atoms_view_in(obj, "X", 2, VIEW_FLOATS, x) < 0)
        return NULL;
    v->name[v->n++] = "X";
    if (x->shape[1] == atoms_dict_d_in(dict))
        return x;
    PyErr_Format(PyExc_ValueError, "X: expected %lld columns, as the dictionary has, got %lld",
                 (long long)atoms_dict_d_in(dict), (long long)x->shape[1]);
    return NULL;
}

/* A contiguous array; None is allowed where `optional` and leaves *data NULL. */
static int typed(views *v, PyObject *obj, const char *name, int typenum, int writeable, int ndim, int64_t rows,
                 int64_t cols, int optional, void **data)
{
    *data = NULL;
    if (optional && obj == Py_None)
        return 0;
    int64_t shape[2] = {rows, cols};
    atoms_view *a = &v->view[v->n];
    if (atoms_view_typed(obj, name, typenum, writeable, ndim, shape, a) < 0)
        return -1;
    v->name[v->n++] = name;
    *data = a->data;
    for (int i = 0; writeable && i + 1 < v->n; i++)
        if (atoms_views_overlap(a, name, &v->view[i], v->name[i]))
            return -1;
    return 0;
}

static int value_type(const atoms_dict *dict)
{
    return atoms_dict_precision(dict) == ATOMS_F64 ? NPY_FLOAT64 : NPY_FLOAT32;
}

/* indptr (n + 1) must grow from 0 to the number of indices, all of them atoms. */
static int check_support(int64_t n, const int64_t *indptr, const int32_t *indices, int64_t size, int64_t n_atoms)
{
    int bad = indptr[0] != 0 || indptr[n] != size;
    for (int64_t i = 0; i < n; i++)
        bad |= indptr[i] > indptr[i + 1];
    for (int64_t i = 0; !bad && i < size; i++)
        bad = indices[i] < 0 || indices[i] >= n_atoms;
    if (bad)
        PyErr_SetString(PyExc_ValueError, "support: not a valid CSR pattern for this dictionary");
    return bad ? -1 : 0;
}

/* --------------------------------------------------------------------- OMP */

static PyObject *py_omp(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject *ctx_obj, *dict_obj, *o[9];
    atoms_omp_params p;
    long long n_nonzero;
    const atoms_ctx *ctx;
    const atoms_dict *dict;
    if (!PyArg_ParseTuple(args, "OOOLdppOOOOOOOO:omp", &ctx_obj, &dict_obj, &o[0], &n_nonzero, &p.tol, &p.ols,
                          &p.nonnegative, &o[1], &o[2], &o[3], &o[4], &o[5], &o[6], &o[7], &o[8]) ||
        atoms_get_ctx(ctx_obj, &ctx) < 0 || !(dict = get_dict(dict_obj)))
        return NULL;
    p.n_nonzero = n_nonzero;
    views v = {.n = 0};
    void *indptr, *support, *indices, *values, *counts, *status, *steps, *residual;
    PyObject *result = NULL;
    atoms_view *x = signals(&v, o[0], dict);
    int64_t n = x ? x->shape[0] : 0;
    if (!x || typed(&v, o[1], "indptr", NPY_INT64, 0, 1, n + 1, 0, 1, &indptr) < 0 ||
        typed(&v, o[2], "support", NPY_INT32, 0, 1, -1, 0, !indptr, &support) < 0 ||
        (indptr && check_support(n, indptr, support, v.view[2].shape[0], atoms_dict_n_atoms(dict)) < 0) ||
        typed(&v, o[3], "indices", NPY_INT32, 1, 2, n, n_nonzero, 0, &indices) < 0 ||
        typed(&v, o[4], "values", value_type(dict), 1, 2, n, n_nonzero, 0, &values) < 0 ||
        typed(&v, o[5], "counts", NPY_INT32, 1, 1, n, 0, 0, &counts) < 0 ||
        typed(&v, o[6], "status", NPY_INT8, 1, 1, n, 0, 0, &status) < 0 ||
        typed(&v, o[7], "steps", NPY_INT32, 1, 1, n, 0, 0, &steps) < 0 ||
        typed(&v, o[8], "residual", NPY_FLOAT64, 1, 1, n, 0, 1, &residual) < 0)
        goto done;
    atoms_status outcome;
    Py_BEGIN_ALLOW_THREADS
    outcome = atoms_omp(ctx, dict, n, x->data, x->dtype, x->stride[0], x->stride[1], indptr, support, &p, indices,
                        values, counts, status, steps, residual);
    Py_END_ALLOW_THREADS
    result = atoms_raise(outcome, "omp");
done:
    clear(&v);
    return result;
}

/* ------------------------------------------------------- codes of any length */

/* What the remaining solvers have in common: signals in, codes and what became of them out. */
typedef struct {
    views v;
    const atoms_ctx *ctx;
    const atoms_dict *dict;
    atoms_view *x;
    int64_t n;
    void *indices, *values, *counts, *status, *steps, *residual, *gap;
} call;

/* o: X, indices, values, counts, status, steps, residual, gap. Rows of the outputs: n * repeat;
 * their width is `width`, or the number of atoms where that is 0. */
static int open_call(call *c, PyObject *ctx_obj, PyObject *dict_obj, PyObject **o, int64_t repeat, int64_t width)
{
    memset(c, 0, sizeof *c);
    if (atoms_get_ctx(ctx_obj, &c->ctx) < 0 || !(c->dict = get_dict(dict_obj)) ||
        !(c->x = signals(&c->v, o[0], c->dict)))
        return -1;
    c->n = c->x->shape[0];
    int64_t rows = c->n * repeat;
    width = width ? width : atoms_dict_n_atoms(c->dict);
    return typed(&c->v, o[1], "indices", NPY_INT32, 1, 2, rows, width, 0, &c->indices) < 0 ||
                   typed(&c->v, o[2], "values", value_type(c->dict), 1, 2, rows, width, 0, &c->values) < 0 ||
                   typed(&c->v, o[3], "counts", NPY_INT32, 1, 1, rows, 0, 0, &c->counts) < 0 ||
                   typed(&c->v, o[4], "status", NPY_INT8, 1, 1, rows, 0, 0, &c->status) < 0 ||
                   typed(&c->v, o[5], "steps", NPY_INT32, 1, 1, rows, 0, 0, &c->steps) < 0 ||
                   typed(&c->v, o[6], "residual", NPY_FLOAT64, 1, 1, rows, 0, 1, &c->residual) < 0 ||
                   typed(&c->v, o[7], "gap", NPY_FLOAT64, 1, 1, rows, 0, 1, &c->gap) < 0
               ? -1
               : 0;
}

static PyObject *py_lasso(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject *ctx_obj, *dict_obj, *alphas_obj, *o[8], *result = NULL;
    atoms_lasso_params p;
    atoms_view alphas;
    call c = {.n = 0};
    long long max_rounds;
    if (!PyArg_ParseTuple(args, "OOOOpdLOOOOOOO:lasso", &ctx_obj, &dict_obj, &o[0], &alphas_obj, &p.positive, &p.tol,
                          &max_rounds, &o[1], &o[2], &o[3], &o[4], &o[5], &o[6], &o[7]) ||
        atoms_view_typed(alphas_obj, "alphas", NPY_FLOAT64, 0, 1, NULL, &alphas) < 0)
        return NULL;
    p.alphas = alphas.data;
    p.n_alphas = alphas.shape[0];
    p.max_rounds = max_rounds;
    if (open_call(&c, ctx_obj, dict_obj, o, p.n_alphas, 0) == 0) {
        atoms_status outcome;
        Py_BEGIN_ALLOW_THREADS
        outcome = atoms_lasso(c.ctx, c.dict, c.n, c.x->data, c.x->dtype, c.x->stride[0], c.x->stride[1], &p, c.indices,
                              c.values, c.counts, c.status, c.steps, c.residual, c.gap);
        Py_END_ALLOW_THREADS
        result = atoms_raise(outcome, "lasso");
    }
    clear(&c.v);
    atoms_view_clear(&alphas);
    return result;
}

static PyObject *py_basis(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject *ctx_obj, *dict_obj, *o[8], *result = NULL;
    atoms_basis_params p;
    call c = {.n = 0};
    long long max_steps;
    if (!PyArg_ParseTuple(args, "OOOddLOOOOOOO:basis", &ctx_obj, &dict_obj, &o[0], &p.sigma, &p.tol, &max_steps, &o[1],
                          &o[2], &o[3], &o[4], &o[5], &o[6], &o[7]))
        return NULL;
    p.max_steps = max_steps;
    if (open_call(&c, ctx_obj, dict_obj, o, 1, 0) == 0) {
        atoms_status outcome;
        Py_BEGIN_ALLOW_THREADS
        outcome = atoms_basis(c.ctx, c.dict, c.n, c.x->data, c.x->dtype, c.x->stride[0], c.x->stride[1], &p, c.indices,
                              c.values, c.counts, c.status, c.steps, c.residual, c.gap);
        Py_END_ALLOW_THREADS
        result = atoms_raise(outcome, "basis");
    }
    clear(&c.v);
    return result;
}

static PyObject *py_pursuit(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject *ctx_obj, *dict_obj, *o[8], *result = NULL;
    atoms_pursuit_params p;
    call c = {.n = 0};
    int method;
    long long n_nonzero, max_steps;
    if (!PyArg_ParseTuple(args, "OOOiLLdOOOOOO:pursuit", &ctx_obj, &dict_obj, &o[0], &method, &n_nonzero, &max_steps,
                          &p.tol, &o[1], &o[2], &o[3], &o[4], &o[5], &o[6]))
        return NULL;
    if (method < 0 || method > ATOMS_PURSUIT_IHT || n_nonzero < 1)
        return PyErr_Format(PyExc_ValueError, "pursuit: unknown method or n_nonzero below 1");
    p.method = (atoms_pursuit_method)method;
    p.n_nonzero = n_nonzero;
    p.max_steps = max_steps;
    o[7] = Py_None;
    if (open_call(&c, ctx_obj, dict_obj, o, 1, n_nonzero) == 0) {
        atoms_status outcome;
        Py_BEGIN_ALLOW_THREADS
        outcome = atoms_pursuit(c.ctx, c.dict, c.n, c.x->data, c.x->dtype, c.x->stride[0], c.x->stride[1], &p,
                                c.indices, c.values, c.counts, c.status, c.steps, c.residual);
        Py_END_ALLOW_THREADS
        result = atoms_raise(outcome, "pursuit");
    }
    clear(&c.v);
    return result;
}

static PyObject *py_threshold(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject *ctx_obj, *dict_obj, *tau_obj, *o[8], *result = NULL;
    call c = {.n = 0};
    int signed_codes;
    void *tau;
    if (!PyArg_ParseTuple(args, "OOOOpOOOOOO:threshold", &ctx_obj, &dict_obj, &o[0], &tau_obj, &signed_codes, &o[1],
                          &o[2], &o[3], &o[4], &o[5], &o[6]))
        return NULL;
    o[7] = Py_None;
    if (open_call(&c, ctx_obj, dict_obj, o, 1, 0) == 0 &&
        typed(&c.v, tau_obj, "tau", NPY_FLOAT64, 0, 1, c.n, 0, 0, &tau) == 0) {
        atoms_status outcome;
        Py_BEGIN_ALLOW_THREADS
        outcome = atoms_threshold(c.ctx, c.dict, c.n, c.x->data, c.x->dtype, c.x->stride[0], c.x->stride[1], tau,
                                  signed_codes, c.indices, c.values, c.counts, c.status, c.steps, c.residual);
        Py_END_ALLOW_THREADS
        result = atoms_raise(outcome, "threshold");
    }
    clear(&c.v);
    return result;
}

static PyObject *py_correlation_max(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject *ctx_obj, *dict_obj, *x_obj, *top_obj, *result = NULL;
    const atoms_ctx *ctx;
    const atoms_dict *dict;
    views v = {.n = 0};
    atoms_view *x;
    void *top;
    if (!PyArg_ParseTuple(args, "OOOO:correlation_max", &ctx_obj, &dict_obj, &x_obj, &top_obj) ||
        atoms_get_ctx(ctx_obj, &ctx) < 0 || !(dict = get_dict(dict_obj)))
        return NULL;
    if ((x = signals(&v, x_obj, dict)) && typed(&v, top_obj, "top", NPY_FLOAT64, 1, 1, x->shape[0], 0, 0, &top) == 0) {
        atoms_status outcome;
        Py_BEGIN_ALLOW_THREADS
        outcome = atoms_correlation_max(ctx, dict, x->shape[0], x->data, x->dtype, x->stride[0], x->stride[1], top);
        Py_END_ALLOW_THREADS
        result = atoms_raise(outcome, "correlation_max");
    }
    clear(&v);
    return result;
}

/* Rows of unequal length out of their padded arrays, one after the other. */
static PyObject *py_pack_codes(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject *o[5];
    if (!PyArg_ParseTuple(args, "OOOOO:pack_codes", &o[0], &o[1], &o[2], &o[3], &o[4]))
        return NULL;
    if (!PyArray_Check(o[1]) || !PyArray_Check(o[0]) || PyArray_NDIM((PyArrayObject *)o[0]) != 2)
        return PyErr_Format(PyExc_TypeError, "pack_codes: expected NumPy arrays");
    int type = PyArray_TYPE((PyArrayObject *)o[1]) == NPY_FLOAT64 ? NPY_FLOAT64 : NPY_FLOAT32;
    size_t size = type == NPY_FLOAT64 ? 8 : 4;
    int64_t n = PyArray_DIM((PyArrayObject *)o[0], 0), width = PyArray_DIM((PyArrayObject *)o[0], 1);
    views v = {.n = 0};
    void *indices, *values, *counts, *to_indices, *to_values;
    PyObject *result = NULL;
    if (typed(&v, o[0], "indices", NPY_INT32, 0, 2, n, width, 0, &indices) < 0 ||
        typed(&v, o[1], "values", type, 0, 2, n, width, 0, &values) < 0 ||
        typed(&v, o[2], "counts", NPY_INT32, 0, 1, n, 0, 0, &counts) < 0)
        goto done;
    int64_t total = 0;
    for (int64_t i = 0; i < n; i++) {
        int32_t count = ((int32_t *)counts)[i];
        if (count < 0 || count > width) {
            PyErr_Format(PyExc_ValueError, "counts: expected 0 to %lld, got %d in row %lld", (long long)width,
                         (int)count, (long long)i);
            goto done;
        }
        total += count;
    }
    if (typed(&v, o[3], "out indices", NPY_INT32, 1, 1, total, 0, 0, &to_indices) < 0 ||
        typed(&v, o[4], "out values", type, 1, 1, total, 0, 0, &to_values) < 0)
        goto done;
    int64_t at = 0;
    for (int64_t i = 0; i < n; i++) {
        int64_t count = ((int32_t *)counts)[i];
        memcpy((int32_t *)to_indices + at, (int32_t *)indices + i * width, (size_t)count * 4);
        memcpy((char *)to_values + (size_t)at * size, (char *)values + (size_t)(i * width) * size,
               (size_t)count * size);
        at += count;
    }
    Py_INCREF(Py_None);
    result = Py_None;
done:
    clear(&v);
    return result;
}

PyMethodDef atoms_recovery_methods[] = {
    {"dict_new", py_dict_new, METH_VARARGS, "dict_new(ctx, atoms, double_precision) -> handle"},
    {"dict_gram", py_dict_gram, METH_VARARGS, "dict_gram(ctx, handle, units, coarse)"},
    {"dict_units", py_dict_units, METH_VARARGS, "dict_units(ctx, handle): whether it has them"},
    {"dict_has_gram", py_dict_has_gram, METH_O, "dict_has_gram(handle) -> bool"},
    {"omp", py_omp, METH_VARARGS,
     "omp(ctx, handle, X, n_nonzero, tol, ols, nonnegative, indptr, support, indices, values, "
     "counts, status, steps, residual)"},
    {"lasso", py_lasso, METH_VARARGS,
     "lasso(ctx, handle, X, alphas, positive, tol, max_rounds, indices, values, counts, status, "
     "steps, residual, gap)"},
    {"basis", py_basis, METH_VARARGS,
     "basis(ctx, handle, X, sigma, tol, max_steps, indices, values, counts, status, steps, "
     "residual, gap)"},
    {"pursuit", py_pursuit, METH_VARARGS,
     "pursuit(ctx, handle, X, method, n_nonzero, max_steps, tol, indices, values, counts, status, "
     "steps, residual)"},
    {"threshold", py_threshold, METH_VARARGS,
     "threshold(ctx, handle, X, tau, signed, indices, values, counts, status, steps, residual)"},
    {"correlation_max", py_correlation_max, METH_VARARGS, "correlation_max(ctx, handle, X, top)"},
    {"pack_codes", py_pack_codes, METH_VARARGS, "pack_codes(indices, values, counts, out_indices, out_values)"},
    {NULL, NULL, 0, NULL}};
