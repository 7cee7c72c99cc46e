/* bind_sae.c: the binding of the sparse autoencoder. */
#include "arguments.h"

#include <stdatomic.h>

#define CAPSULE "atoms._core.sae"
#define WORK "atoms._core.sae_work"

/* A contiguous input: name, type, dimensions, and the length along each. */
#define INPUT(name, type, ndim, ...) ((array_spec){name, type, ndim, {__VA_ARGS__}, .written = false})

/* The model and who is using it: one call that writes (-1), or any number that read, at a time. Atomic, for there are
 * Pythons without a GIL. */
typedef struct {
    atoms_sae *sae;
    atomic_int users;
} handle;

static void handle_free(PyObject *capsule)
{
    handle *h = PyCapsule_GetPointer(capsule, CAPSULE);
    if (h) {
        atoms_sae_free(h->sae);
        PyMem_Free(h);
    }
}

/* The handle, held until `leave`; NULL with an exception where others use it. */
static handle *enter(PyObject *obj, bool writes)
{
    handle *h = PyCapsule_GetPointer(obj, CAPSULE);
    if (!h)
        return NULL;
    int users = atomic_load(&h->users);
    do
        if (users < 0 || (writes && users > 0)) {
            PyErr_SetString(PyExc_RuntimeError, "this autoencoder is in use by another thread; train one at a time");
            return NULL;
        }
    while (!atomic_compare_exchange_weak(&h->users, &users, writes ? -1 : users + 1));
    return h;
}

static void leave(handle *h, bool writes)
{
    atomic_fetch_add(&h->users, writes ? 1 : -1);
}

/* The widths of p from an int64 array; the core refuses too many. */
static int read_prefixes(PyObject *obj, atoms_sae_params *p)
{
    arguments a = {0};
    void *data;
    array_spec spec = {"prefixes", NPY_INT64, 1, {-1}, .optional = true};
    if (args_array(&a, obj, spec, &data) < 0)
        return -1;
    p->n_prefixes = data ? args_length(&a, 0) : 0;
    for (int64_t i = 0; i < p->n_prefixes && i < ATOMS_MAX_PREFIXES; i++)
        p->prefix[i] = ((const int64_t *)data)[i];
    args_release(&a);
    return 0;
}

static PyObject *sae_new(PyObject *self, PyObject *args, PyObject *kwargs)
{
    (void)self;
    static char *names[] = {"ctx",     "d_in", "d_sae",  "activation", "k",     "tied", "bandwidth", "beta1", "beta2",
                            "epsilon", "clip", "screen", "prefixes",   "d_out", "skip", "frozen",    NULL};
    atoms_sae_params p;
    atoms_sae_params_init(&p);
    long long d_in, d_sae, k = 0, d_out = 0;
    int activation = ATOMS_JUMPRELU, screen = ATOMS_SCREEN_AUTO;
    const atoms_ctx *ctx;
    PyObject *o_ctx, *o_prefixes = Py_None;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OLL|iLpfffffiOLpp:sae_new", names, &o_ctx, &d_in, &d_sae,
                                     &activation, &k, &p.tied, &p.bandwidth, &p.beta1, &p.beta2, &p.epsilon, &p.clip,
                                     &screen, &o_prefixes, &d_out, &p.skip, &p.frozen) ||
        atoms_get_ctx(o_ctx, &ctx) < 0 || read_prefixes(o_prefixes, &p) < 0)
        return NULL;
    p.d_in = d_in;
    p.d_sae = d_sae;
    p.d_out = d_out;
    p.k = k;
    p.activation = (atoms_activation)activation;
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
static PyObject *access_field(PyObject *args, bool set)
{
    PyObject *capsule, *array;
    int field;
    if (!PyArg_ParseTuple(args, "OiO", &capsule, &field, &array))
        return NULL;
    if (field < 0 || field > ATOMS_W_SKIP_V)
        return PyErr_Format(PyExc_ValueError, "field: expected 0 to %d, got %d", (int)ATOMS_W_SKIP_V, field);
    handle *h = enter(capsule, set);
    if (!h)
        return NULL;
    bool counts = field == ATOMS_LAST_FIRED || field == ATOMS_COUNTERS;
    array_spec spec = {set ? "values" : "out", counts ? NPY_INT64 : NPY_FLOAT32, .written = !set};
    spec.ndim = atoms_sae_shape(h->sae, (atoms_sae_field)field, spec.shape);
    arguments a = {0};
    void *data;
    int failed = args_array(&a, array, spec, &data) < 0;
    if (!failed && set)
        atoms_sae_set(h->sae, (atoms_sae_field)field, data);
    else if (!failed)
        atoms_sae_get(h->sae, (atoms_sae_field)field, data);
    args_release(&a);
    leave(h, set);
    if (failed)
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *sae_get(PyObject *self, PyObject *args)
{
    (void)self;
    return access_field(args, false);
}

static PyObject *sae_set(PyObject *self, PyObject *args)
{
    (void)self;
    return access_field(args, true);
}

static PyObject *sae_nonfinite(PyObject *self, PyObject *capsule)
{
    (void)self;
    handle *h = enter(capsule, false);
    if (!h)
        return NULL;
    int field = atoms_sae_nonfinite(h->sae);
    leave(h, false);
    return PyLong_FromLong(field);
}

static PyObject *sae_reset(PyObject *self, PyObject *args, PyObject *kwargs)
{
    (void)self;
    static char *names[] = {"ctx", "sae", "idx", "rows", "scales", "thresholds", "readers", NULL};
    PyObject *o_ctx, *capsule, *o_idx, *o_rows, *o_scales, *o_thresholds, *o_readers = Py_None, *result = NULL;
    const atoms_ctx *ctx;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOOOOO|O:sae_reset", names, &o_ctx, &capsule, &o_idx, &o_rows,
                                     &o_scales, &o_thresholds, &o_readers) ||
        atoms_get_ctx(o_ctx, &ctx) < 0)
        return NULL;
    arguments a = {0};
    void *idx, *rows, *readers, *scales, *thresholds;
    if (args_array(&a, o_idx, INPUT("idx", NPY_INT64, 1, -1), &idx) < 0)
        return NULL;
    handle *h = enter(capsule, true);
    if (!h) {
        args_release(&a);
        return NULL;
    }
    const atoms_sae_params *p = atoms_sae_get_params(h->sae);
    int64_t k = args_length(&a, 0), d = p->d_out ? p->d_out : p->d_in;
    array_spec of_readers = {"readers", NPY_FLOAT32, 2, {k, p->d_in}, .optional = !p->d_out};
    if (args_array(&a, o_rows, INPUT("rows", NPY_FLOAT32, 2, k, d), &rows) == 0 &&
        args_array(&a, o_readers, of_readers, &readers) == 0 &&
        args_array(&a, o_scales, INPUT("scales", NPY_FLOAT32, 1, k), &scales) == 0 &&
        args_array(&a, o_thresholds, INPUT("thresholds", NPY_FLOAT32, 1, k), &thresholds) == 0)
        result = atoms_raise(atoms_sae_reset(ctx, k, h->sae, idx, rows, readers, scales, thresholds), "sae_reset");
    args_release(&a);
    leave(h, true);
    return result;
}

static PyObject *raise_row(atoms_status status, const atoms_sae_stats *stats, const char *where)
{
    if (status == ATOMS_ERR_NONFINITE)
        return PyErr_Format(PyExc_ValueError,
                            "%s: row %lld holds NaN or infinity (or overflows float32); drop it "
                            "with X[numpy.isfinite(X).all(axis=1)]",
                            stats->bad_target ? "target" : "X", (long long)stats->bad_row);
    return atoms_raise(status, where);
}

static PyObject *stats_dict(const atoms_sae_stats *s)
{
    const atoms_sae_seconds *t = &s->seconds;
    PyObject *seconds = Py_BuildValue("{s:d,s:d,s:d,s:d,s:d,s:d}", "prepare", t->prepare, "screen", t->screen, "exact",
                                      t->exact, "decode", t->decode, "sort", t->sort, "update", t->update);
    return Py_BuildValue("{s:d,s:d,s:d,s:d,s:d,s:d,s:d,s:d,s:d,s:N}", "squared_error", s->squared_error,
                         "total_variance", s->total_variance, "penalty", s->penalty, "l0", s->l0, "band", s->band,
                         "band_gain", s->band_gain, "lowest", s->lowest, "candidates", s->candidates, "row_scale",
                         s->row_scale, "seconds", seconds);
}

/* A batch as the caller gives it: rows of any float type and strides, an int64 vector of row numbers or None, a float32
 * vector or None. */
typedef struct {
    const char *name, *index_name, *shift_name;
    PyObject *rows, *index, *shift;
} given_batch;

/* What the model reads of them: d values of each row. batch->scale is the caller's. */
static int take_batch(arguments *a, int64_t d, const given_batch *given, atoms_batch *batch)
{
    void *at, *by;
    if (args_rows(a, given->rows, given->name, &batch->x) < 0)
        return -1;
    if (batch->x.d != d) {
        PyErr_Format(PyExc_ValueError, "%s: expected length %lld along axis 1, got %lld", given->name, (long long)d,
                     (long long)batch->x.d);
        return -1;
    }
    if (args_array(a, given->index, (array_spec){given->index_name, NPY_INT64, 1, {-1}, .optional = true}, &at) < 0)
        return -1;
    batch->index = at;
    batch->n = at ? args_length(a, 0) : batch->x.n;
    if (args_array(a, given->shift, (array_spec){given->shift_name, NPY_FLOAT32, 1, {d}, .optional = true}, &by) < 0)
        return -1;
    batch->shift = by;
    for (int64_t i = 0; batch->index && i < batch->n; i++)
        if (batch->index[i] < 0 || batch->index[i] >= batch->x.n) {
            PyErr_Format(PyExc_IndexError, "%s: row %lld lies outside %s with %lld rows", given->index_name,
                         (long long)batch->index[i], given->name, (long long)batch->x.n);
            return -1;
        }
    return 0;
}

/* The same of what a transcoder's step rebuilds; an autoencoder has none. */
static int take_target(arguments *a, const handle *h, const given_batch *given, atoms_batch *x, atoms_batch *y)
{
    int64_t d = atoms_sae_get_params(h->sae)->d_out;
    if ((given->rows == Py_None) != (d == 0)) {
        PyErr_SetString(PyExc_ValueError, d ? "target: a transcoder's step needs one"
                                            : "target: this is an autoencoder, which rebuilds what it reads");
        return -1;
    }
    if (d == 0)
        return 0;
    if (take_batch(a, d, given, y) < 0)
        return -1;
    if (y->n != x->n) {
        PyErr_Format(PyExc_ValueError, "target: expected %lld rows as of X, got %lld", (long long)x->n,
                     (long long)y->n);
        return -1;
    }
    x->target = y;
    return 0;
}

static PyObject *sae_step(PyObject *self, PyObject *args, PyObject *kwargs)
{
    (void)self;
    static char *names[] = {"ctx",
                            "sae",
                            "X",
                            "learning_rate",
                            "threshold_rate",
                            "l0_coefficient",
                            "l1_coefficient",
                            "threshold_shift",
                            "k",
                            "aux_k",
                            "dead_after",
                            "aux_coefficient",
                            "row_limit",
                            "index",
                            "shift",
                            "scale",
                            "target",
                            "target_index",
                            "target_shift",
                            "target_scale",
                            NULL};
    given_batch x = {"X", "index", "shift", Py_None, Py_None, Py_None};
    given_batch y = {"target", "target_index", "target_shift", Py_None, Py_None, Py_None};
    PyObject *o_ctx, *capsule, *result = NULL;
    atoms_sae_step_params p = {0};
    atoms_batch batch = {.scale = 1}, target = {.scale = 1};
    long long k, aux_k = 0, dead_after = 0;
    const atoms_ctx *ctx;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOOfffffL|LLfdOOfOOOf:sae_step", names, &o_ctx, &capsule, &x.rows,
                                     &p.learning_rate, &p.threshold_rate, &p.l0_coefficient, &p.l1_coefficient,
                                     &p.threshold_shift, &k, &aux_k, &dead_after, &p.aux_coefficient, &p.row_limit,
                                     &x.index, &x.shift, &batch.scale, &y.rows, &y.index, &y.shift, &target.scale) ||
        atoms_get_ctx(o_ctx, &ctx) < 0)
        return NULL;
    p.k = k;
    p.aux_k = aux_k;
    p.dead_after = dead_after;
    handle *h = enter(capsule, true);
    if (!h)
        return NULL;
    arguments a = {0};
    if (take_batch(&a, atoms_sae_get_params(h->sae)->d_in, &x, &batch) == 0 &&
        take_target(&a, h, &y, &batch, &target) == 0) {
        atoms_sae_stats stats;
        atoms_status status;
        WITHOUT_GIL(status = atoms_sae_step(ctx, h->sae, &batch, &p, &stats));
        result = status < 0 ? raise_row(status, &stats, "sae_step") : stats_dict(&stats);
    }
    args_release(&a);
    leave(h, true);
    return result;
}

#define CONTROLS 7 /* of atoms_sae_control */
_Static_assert(sizeof(atoms_sae_control) == CONTROLS * sizeof(double),
               "the control is its numbers, one after the other");

static PyObject *sae_train(PyObject *self, PyObject *args, PyObject *kwargs)
{
    (void)self;
    static char *names[] = {
        "ctx",      "sae",          "X",      "rates",        "control",      "target_l0",       "k",
        "fixed_l1", "row_multiple", "wait",   "aux_k",        "dead_after",   "aux_coefficient", "index",
        "shift",    "scale",        "target", "target_index", "target_shift", "target_scale",    NULL};
    given_batch x = {"X", "index", "shift", Py_None, Py_None, Py_None};
    given_batch y = {"target", "target_index", "target_shift", Py_None, Py_None, Py_None};
    PyObject *o_ctx, *capsule, *o_rates, *o_control, *result = NULL;
    atoms_sae_plan plan = {0};
    atoms_batch batch = {.scale = 1}, target = {.scale = 1};
    long long k, aux_k = 0, dead_after = 0;
    const atoms_ctx *ctx;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOOOOdL|pddLLfOOfOOOf:sae_train", names, &o_ctx, &capsule, &x.rows,
                                     &o_rates, &o_control, &plan.target_l0, &k, &plan.fixed_l1, &plan.row_multiple,
                                     &plan.wait, &aux_k, &dead_after, &plan.aux_coefficient, &x.index, &x.shift,
                                     &batch.scale, &y.rows, &y.index, &y.shift, &target.scale) ||
        atoms_get_ctx(o_ctx, &ctx) < 0)
        return NULL;
    plan.k = k;
    plan.aux_k = aux_k;
    plan.dead_after = dead_after;
    handle *h = enter(capsule, true);
    if (!h)
        return NULL;
    arguments a = {0};
    void *rates, *control;
    if (args_array(&a, o_rates, INPUT("rates", NPY_FLOAT32, 1, -1), &rates) == 0) {
        plan.rates = rates;
        plan.steps = args_length(&a, 0);
        array_spec spec = {"control", NPY_FLOAT64, 1, {CONTROLS}, .written = true};
        if (args_array(&a, o_control, spec, &control) == 0 &&
            take_batch(&a, atoms_sae_get_params(h->sae)->d_in, &x, &batch) == 0 &&
            take_target(&a, h, &y, &batch, &target) == 0) {
            atoms_sae_stats stats;
            atoms_status status;
            int64_t done;
            WITHOUT_GIL(status = atoms_sae_train(ctx, h->sae, &batch, &plan, control, &done, &stats));
            result = status < 0 ? raise_row(status, &stats, "sae_train")
                                : Py_BuildValue("LN", (long long)done, stats_dict(&stats));
        }
    }
    args_release(&a);
    leave(h, true);
    return result;
}

/* What encoding works in. A call takes it out and puts it back, so that two at once each have their own. */
typedef struct {
    _Atomic(atoms_csr *) codes;
} work;

static void work_free(PyObject *capsule)
{
    work *w = PyCapsule_GetPointer(capsule, WORK);
    if (w) {
        atoms_csr_free(atomic_load(&w->codes));
        PyMem_Free(w);
    }
}

static PyObject *sae_work(PyObject *self, PyObject *args)
{
    (void)self;
    (void)args;
    work *w = PyMem_Calloc(1, sizeof *w);
    if (!w)
        return PyErr_NoMemory();
    PyObject *capsule = PyCapsule_New(w, WORK, work_free);
    if (!capsule)
        PyMem_Free(w);
    return capsule;
}

/* (indptr, indices, values, stats): new arrays. */
static PyObject *csr_tuple(const atoms_ctx *ctx, const atoms_csr *csr, int64_t n, const atoms_sae_stats *stats)
{
    npy_intp rows = n + 1, nnz = atoms_csr_nnz(csr);
    PyObject *indptr = PyArray_SimpleNew(1, &rows, NPY_INT64);
    PyObject *indices = PyArray_SimpleNew(1, &nnz, NPY_INT32);
    PyObject *values = PyArray_SimpleNew(1, &nnz, NPY_FLOAT32);
    if (indptr && indices && values)
        atoms_csr_copy(ctx, csr, PyArray_DATA((PyArrayObject *)indptr), PyArray_DATA((PyArrayObject *)indices),
                       PyArray_DATA((PyArrayObject *)values));
    PyObject *dict = indptr && indices && values ? stats_dict(stats) : NULL;
    if (!dict) {
        Py_XDECREF(indptr);
        Py_XDECREF(indices);
        Py_XDECREF(values);
        return NULL;
    }
    return Py_BuildValue("NNNN", indptr, indices, values, dict);
}

static PyObject *sae_encode(PyObject *self, PyObject *args, PyObject *kwargs)
{
    (void)self;
    static char *names[] = {"ctx", "sae", "X", "index", "shift", "scale", "work", NULL};
    given_batch x = {"X", "index", "shift", Py_None, Py_None, Py_None};
    PyObject *o_ctx, *capsule, *o_work = Py_None, *result = NULL;
    const atoms_ctx *ctx;
    atoms_batch batch = {.scale = 1};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOO|OOfO:sae_encode", names, &o_ctx, &capsule, &x.rows, &x.index,
                                     &x.shift, &batch.scale, &o_work) ||
        atoms_get_ctx(o_ctx, &ctx) < 0)
        return NULL;
    work *w = o_work == Py_None ? NULL : PyCapsule_GetPointer(o_work, WORK);
    if (o_work != Py_None && !w)
        return NULL;
    handle *h = enter(capsule, false);
    if (!h)
        return NULL;
    arguments a = {0};
    if (take_batch(&a, atoms_sae_get_params(h->sae)->d_in, &x, &batch) == 0) {
        atoms_csr *csr = w ? atomic_exchange(&w->codes, NULL) : NULL;
        atoms_sae_stats stats;
        atoms_status status;
        WITHOUT_GIL(status = atoms_sae_encode(ctx, h->sae, &batch, &csr, &stats));
        result = status < 0 ? raise_row(status, &stats, "sae_encode") : csr_tuple(ctx, csr, batch.n, &stats);
        atoms_csr_free(w ? atomic_exchange(&w->codes, csr) : csr);
    }
    args_release(&a);
    leave(h, false);
    return result;
}

static PyObject *decode(PyObject *self, PyObject *args, PyObject *kwargs)
{
    (void)self;
    static char *names[] = {"ctx", "indptr", "indices", "values", "W_dec", "bias", "out", NULL};
    PyObject *o_ctx, *o_indptr, *o_indices, *o_values, *o_w, *o_bias, *o_out, *result = NULL;
    const atoms_ctx *ctx;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOOOOOO:decode", names, &o_ctx, &o_indptr, &o_indices, &o_values,
                                     &o_w, &o_bias, &o_out) ||
        atoms_get_ctx(o_ctx, &ctx) < 0)
        return NULL;
    arguments a = {0};
    atoms_csr_view codes;
    void *w, *bias, *out;
    if (args_codes(&a, o_indptr, o_indices, o_values, &codes) < 0 ||
        args_array(&a, o_w, INPUT("W_dec", NPY_FLOAT32, 2, -1, -1), &w) < 0)
        goto done;
    int64_t d = args_length(&a, 1);
    codes.width = args_length(&a, 0);
    if (args_array(&a, o_bias, INPUT("bias", NPY_FLOAT32, 1, d), &bias) < 0 ||
        args_array(&a, o_out, (array_spec){"out", NPY_FLOAT32, 2, {codes.n, d}, .written = true}, &out) < 0)
        goto done;
    atoms_status status;
    WITHOUT_GIL(status = atoms_decode(ctx, d, &codes, w, bias, out));
    if (status == ATOMS_ERR_ARGUMENT)
        PyErr_Format(PyExc_ValueError, "codes: a column index lies outside 0..%lld", (long long)codes.width - 1);
    else
        result = atoms_raise(status, "decode");
done:
    args_release(&a);
    return result;
}

const atoms_constant atoms_sae_constants[] = {
    {"JUMPRELU", ATOMS_JUMPRELU},
    {"RELU", ATOMS_RELU},
    {"TOPK", ATOMS_TOPK},
    {"BATCHTOPK", ATOMS_BATCHTOPK},
    {"SCREEN_AUTO", ATOMS_SCREEN_AUTO},
    {"SCREEN_F32", ATOMS_SCREEN_F32},
    {"SCREEN_INT8", ATOMS_SCREEN_INT8},
    {"SCREEN_INT16", ATOMS_SCREEN_INT16},
    {"W_ENC", ATOMS_W_ENC},
    {"W_DEC", ATOMS_W_DEC},
    {"B_ENC", ATOMS_B_ENC},
    {"B_DEC", ATOMS_B_DEC},
    {"THRESHOLD", ATOMS_THRESHOLD},
    {"W_ENC_M", ATOMS_W_ENC_M},
    {"W_DEC_M", ATOMS_W_DEC_M},
    {"B_ENC_M", ATOMS_B_ENC_M},
    {"B_DEC_M", ATOMS_B_DEC_M},
    {"THRESHOLD_M", ATOMS_THRESHOLD_M},
    {"W_ENC_V", ATOMS_W_ENC_V},
    {"W_DEC_V", ATOMS_W_DEC_V},
    {"B_ENC_V", ATOMS_B_ENC_V},
    {"B_DEC_V", ATOMS_B_DEC_V},
    {"THRESHOLD_V", ATOMS_THRESHOLD_V},
    {"LAST_FIRED", ATOMS_LAST_FIRED},
    {"COUNTERS", ATOMS_COUNTERS},
    {"W_SKIP", ATOMS_W_SKIP},
    {"W_SKIP_M", ATOMS_W_SKIP_M},
    {"W_SKIP_V", ATOMS_W_SKIP_V},
    {NULL, 0},
};

PyMethodDef atoms_sae_methods[] = {
    ATOMS_NAMED("sae_new", sae_new,
                "sae_new(ctx, d_in, d_sae, activation, k, tied, bandwidth, beta1, beta2, epsilon, clip, screen, "
                "prefixes, d_out=0, skip=0, frozen=0)"),
    {"sae_get", sae_get, METH_VARARGS, "sae_get(sae, field, out)"},
    {"sae_set", sae_set, METH_VARARGS, "sae_set(sae, field, values)"},
    {"sae_nonfinite", sae_nonfinite, METH_O,
     "sae_nonfinite(sae): number of the first parameter that holds NaN or infinity, or -1"},
    ATOMS_NAMED("sae_reset", sae_reset, "sae_reset(ctx, sae, idx, rows, scales, thresholds, readers=None)"),
    ATOMS_NAMED("sae_step", sae_step,
                "sae_step(ctx, sae, X, learning_rate, threshold_rate, l0_coefficient, l1_coefficient, "
                "threshold_shift, k, aux_k=0, dead_after=0, aux_coefficient=0, row_limit=0, index=None, "
                "shift=None, scale=1, target=None, target_index=None, target_shift=None, target_scale=1)"),
    ATOMS_NAMED(
        "sae_train", sae_train,
        "sae_train(ctx, sae, X, rates, control, target_l0, k, fixed_l1=0, row_multiple=0, wait=0, "
        "aux_k=0, dead_after=0, aux_coefficient=0, index=None, shift=None, scale=1, target=None, target_index=None, "
        "target_shift=None, target_scale=1)"),
    {"sae_work", sae_work, METH_NOARGS, "sae_work(): what calls of sae_encode may share, one after the other"},
    ATOMS_NAMED("sae_encode", sae_encode, "sae_encode(ctx, sae, X, index=None, shift=None, scale=1, work=None)"),
    ATOMS_NAMED("decode", decode, "decode(ctx, indptr, indices, values, W_dec, bias, out)"),
    {NULL, NULL, 0, NULL}};
