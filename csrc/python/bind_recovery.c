/* bind_recovery.c: the binding of the recovery room. */
#include "arguments.h"

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

/* -------------------------------------------------------------- dictionaries */

static PyObject *py_dict_new(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject *o_ctx, *o_atoms;
    int double_precision;
    const atoms_ctx *ctx;
    arguments a = {0};
    atoms_rows rows;
    if (!PyArg_ParseTuple(args, "OOp:dict_new", &o_ctx, &o_atoms, &double_precision) ||
        atoms_get_ctx(o_ctx, &ctx) < 0 || args_rows(&a, o_atoms, "dictionary", &rows) < 0)
        return NULL;
    atoms_dict *dict = NULL;
    atoms_status status;
    WITHOUT_GIL(status = atoms_dict_new(ctx, rows, double_precision ? ATOMS_F64 : ATOMS_F32, &dict));
    args_release(&a);
    if (status < 0)
        return atoms_raise(status, "dict_new");
    PyObject *capsule = PyCapsule_New(dict, DICT, dict_destroy);
    if (!capsule)
        atoms_dict_free(dict);
    return capsule;
}

/* What is asked for and can be had: with `coarse` a coarse Gram matrix in place of a full one, with `units` the 16-bit
 * rows and, beside a full one, its 16-bit copy. */
static atoms_status make_gram(const atoms_ctx *ctx, atoms_dict *dict, int units, int coarse)
{
    atoms_status status = ATOMS_OK;
    if (coarse)
        status = atoms_dict_coarse(ctx, dict);
    if (status == ATOMS_OK && units)
        status = atoms_dict_units(ctx, dict);
    if (status == ATOMS_OK && !(coarse && atoms_dict_has_coarse(dict)))
        status = atoms_dict_gram(ctx, dict);
    if (status == ATOMS_OK && units)
        status = atoms_dict_fine(ctx, dict);
    return status;
}

static PyObject *py_dict_gram(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject *o_ctx, *o_dict;
    const atoms_ctx *ctx;
    atoms_dict *dict;
    int units, coarse;
    if (!PyArg_ParseTuple(args, "OOpp:dict_gram", &o_ctx, &o_dict, &units, &coarse) || atoms_get_ctx(o_ctx, &ctx) < 0 ||
        !(dict = get_dict(o_dict)))
        return NULL;
    atoms_status status;
    WITHOUT_GIL(status = make_gram(ctx, dict, units, coarse));
    return atoms_raise(status, "dict_gram");
}

static PyObject *py_dict_units(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject *o_ctx, *o_dict;
    const atoms_ctx *ctx;
    atoms_dict *dict;
    if (!PyArg_ParseTuple(args, "OO:dict_units", &o_ctx, &o_dict) || atoms_get_ctx(o_ctx, &ctx) < 0 ||
        !(dict = get_dict(o_dict)))
        return NULL;
    atoms_status status;
    WITHOUT_GIL(status = atoms_dict_units(ctx, dict));
    return status < 0 ? atoms_raise(status, "dict_units") : PyBool_FromLong(atoms_dict_has_units(dict));
}

static PyObject *py_dict_has_gram(PyObject *self, PyObject *obj)
{
    (void)self;
    atoms_dict *dict = get_dict(obj);
    return dict ? PyBool_FromLong(atoms_dict_has_gram(dict)) : NULL;
}

/* ------------------------------------------------------------- a solver's call */

/* What all solvers have in common: signals in, codes and what became of them out. */
typedef struct {
    PyObject *ctx, *dict, *x;
    PyObject *indices, *values, *counts, *status, *steps, *residual, *gap; /* gap NULL: this solver has none */
} call_objects;
typedef struct {
    arguments a;
    const atoms_ctx *ctx;
    const atoms_dict *dict;
    atoms_rows x;
    atoms_codes codes;
} call;

/* Context, dictionary and signals, whose length has to be the dictionary's. */
static int open_input(call *c, PyObject *ctx, PyObject *dict, PyObject *x)
{
    *c = (call){0};
    if (atoms_get_ctx(ctx, &c->ctx) < 0 || !(c->dict = get_dict(dict)) || args_rows(&c->a, x, "X", &c->x) < 0)
        return -1;
    if (c->x.d == atoms_dict_d_in(c->dict))
        return 0;
    PyErr_Format(PyExc_ValueError, "X: expected %lld columns, as the dictionary has, got %lld",
                 (long long)atoms_dict_d_in(c->dict), (long long)c->x.d);
    return -1;
}

/* The output arrays: `rows` of them, codes of `width`. */
static int open_output(call *c, const call_objects *o, int64_t rows, int64_t width)
{
    const int type = atoms_dict_precision(c->dict) == ATOMS_F64 ? NPY_FLOAT64 : NPY_FLOAT32;
    const struct {
        PyObject *object;
        array_spec spec;
        void **data;
    } outputs[] = {
        {o->indices, {"indices", NPY_INT32, 2, {rows, width}, true, false}, (void **)&c->codes.indices},
        {o->values, {"values", type, 2, {rows, width}, true, false}, &c->codes.values},
        {o->counts, {"counts", NPY_INT32, 1, {rows}, true, false}, (void **)&c->codes.counts},
        {o->status, {"status", NPY_INT8, 1, {rows}, true, false}, (void **)&c->codes.status},
        {o->steps, {"steps", NPY_INT32, 1, {rows}, true, false}, (void **)&c->codes.steps},
        {o->residual, {"residual", NPY_FLOAT64, 1, {rows}, true, true}, (void **)&c->codes.residual},
        {o->gap, {"gap", NPY_FLOAT64, 1, {rows}, true, true}, (void **)&c->codes.gap},
    };
    c->codes.width = width;
    for (size_t i = 0; i < sizeof outputs / sizeof *outputs; i++)
        if (outputs[i].object && args_array(&c->a, outputs[i].object, outputs[i].spec, outputs[i].data) < 0)
            return -1;
    return 0;
}

/* Releases the arrays; what the call returns: None, or NULL with an exception that this raises or that there is. */
static PyObject *close_call(call *c, bool called, atoms_status status, const char *name)
{
    args_release(&c->a);
    return called ? atoms_raise(status, name) : NULL;
}

/* --------------------------------------------------------------------- OMP */

/* indptr (n + 1) must grow from 0 to the number of indices, all of them atoms. */
static int check_support(int64_t n, const int64_t *indptr, const int32_t *indices, int64_t size, int64_t n_atoms)
{
    bool bad = indptr[0] != 0 || indptr[n] != size;
    for (int64_t i = 0; i < n; i++)
        bad |= indptr[i] > indptr[i + 1];
    for (int64_t i = 0; !bad && i < size; i++)
        bad = indices[i] < 0 || indices[i] >= n_atoms;
    if (bad)
        PyErr_SetString(PyExc_ValueError, "support: not a valid CSR pattern for this dictionary");
    return bad ? -1 : 0;
}

/* The atoms to be chosen first; none where indptr is None. */
static int open_support(call *c, PyObject *o_indptr, PyObject *o_support, atoms_omp_params *p)
{
    void *indptr, *support;
    const int64_t n = c->x.n;
    if (args_array(&c->a, o_indptr, (array_spec){"indptr", NPY_INT64, 1, {n + 1}, false, true}, &indptr) < 0 ||
        args_array(&c->a, o_support, (array_spec){"support", NPY_INT32, 1, {-1}, false, !indptr}, &support) < 0)
        return -1;
    p->warm_indptr = indptr;
    p->warm_indices = support;
    return indptr ? check_support(n, indptr, support, args_length(&c->a, 0), atoms_dict_n_atoms(c->dict)) : 0;
}

static PyObject *py_omp(PyObject *self, PyObject *args, PyObject *kwargs)
{
    (void)self;
    static char *names[] = {"ctx",     "handle",  "X",      "n_nonzero", "tol",    "ols",   "nonnegative", "indptr",
                            "support", "indices", "values", "counts",    "status", "steps", "residual",    NULL};
    call_objects o = {0};
    PyObject *o_indptr, *o_support;
    atoms_omp_params p = {0};
    call c;
    long long n_nonzero;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOOLdppOOOOOOOO:omp", names, &o.ctx, &o.dict, &o.x, &n_nonzero,
                                     &p.tol, &p.ols, &p.nonnegative, &o_indptr, &o_support, &o.indices, &o.values,
                                     &o.counts, &o.status, &o.steps, &o.residual))
        return NULL;
    p.n_nonzero = n_nonzero;
    atoms_status status = ATOMS_OK;
    bool ready = open_input(&c, o.ctx, o.dict, o.x) == 0 && open_support(&c, o_indptr, o_support, &p) == 0 &&
                 open_output(&c, &o, c.x.n, n_nonzero) == 0;
    if (ready)
        WITHOUT_GIL(status = atoms_omp(c.ctx, c.dict, c.x, &p, &c.codes));
    return close_call(&c, ready, status, "omp");
}

/* ------------------------------------------------------- codes of any length */

static PyObject *py_lasso(PyObject *self, PyObject *args, PyObject *kwargs)
{
    (void)self;
    static char *names[] = {"ctx",     "handle", "X",      "alphas", "positive", "tol",      "max_rounds", "most_atoms",
                            "indices", "values", "counts", "status", "steps",    "residual", "gap",        NULL};
    call_objects o = {0};
    PyObject *o_alphas;
    atoms_lasso_params p = {0};
    call c;
    void *alphas;
    long long max_rounds, most_atoms;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOOOpdLLOOOOOOO:lasso", names, &o.ctx, &o.dict, &o.x, &o_alphas,
                                     &p.positive, &p.tol, &max_rounds, &most_atoms, &o.indices, &o.values, &o.counts,
                                     &o.status, &o.steps, &o.residual, &o.gap))
        return NULL;
    p.max_rounds = max_rounds;
    p.most_atoms = most_atoms;
    atoms_status status = ATOMS_OK;
    bool ready = open_input(&c, o.ctx, o.dict, o.x) == 0 &&
                 args_array(&c.a, o_alphas, (array_spec){"alphas", NPY_FLOAT64, 1, {-1}, false, false}, &alphas) == 0;
    if (ready) {
        p.alphas = alphas;
        p.n_alphas = args_length(&c.a, 0);
        ready = open_output(&c, &o, c.x.n * p.n_alphas, atoms_dict_n_atoms(c.dict)) == 0;
    }
    if (ready)
        WITHOUT_GIL(status = atoms_lasso(c.ctx, c.dict, c.x, &p, &c.codes));
    return close_call(&c, ready, status, "lasso");
}

static PyObject *py_basis(PyObject *self, PyObject *args, PyObject *kwargs)
{
    (void)self;
    static char *names[] = {"ctx",    "handle", "X",      "sigma", "tol",      "max_steps", "indices",
                            "values", "counts", "status", "steps", "residual", "gap",       NULL};
    call_objects o = {0};
    atoms_basis_params p = {0};
    call c;
    long long max_steps;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOOddLOOOOOOO:basis", names, &o.ctx, &o.dict, &o.x, &p.sigma,
                                     &p.tol, &max_steps, &o.indices, &o.values, &o.counts, &o.status, &o.steps,
                                     &o.residual, &o.gap))
        return NULL;
    p.max_steps = max_steps;
    atoms_status status = ATOMS_OK;
    bool ready = open_input(&c, o.ctx, o.dict, o.x) == 0 && open_output(&c, &o, c.x.n, atoms_dict_n_atoms(c.dict)) == 0;
    if (ready)
        WITHOUT_GIL(status = atoms_basis(c.ctx, c.dict, c.x, &p, &c.codes));
    return close_call(&c, ready, status, "basis");
}

static PyObject *py_pursuit(PyObject *self, PyObject *args, PyObject *kwargs)
{
    (void)self;
    static char *names[] = {"ctx",     "handle", "X",      "method", "n_nonzero", "max_steps", "tol",
                            "indices", "values", "counts", "status", "steps",     "residual",  NULL};
    call_objects o = {0};
    atoms_pursuit_params p = {0};
    call c;
    int method;
    long long n_nonzero, max_steps;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOOiLLdOOOOOO:pursuit", names, &o.ctx, &o.dict, &o.x, &method,
                                     &n_nonzero, &max_steps, &p.tol, &o.indices, &o.values, &o.counts, &o.status,
                                     &o.steps, &o.residual))
        return NULL;
    if (method < 0 || method > ATOMS_PURSUIT_IHT || n_nonzero < 1)
        return PyErr_Format(PyExc_ValueError, "pursuit: unknown method or n_nonzero below 1");
    p.method = (atoms_pursuit_method)method;
    p.n_nonzero = n_nonzero;
    p.max_steps = max_steps;
    atoms_status status = ATOMS_OK;
    bool ready = open_input(&c, o.ctx, o.dict, o.x) == 0 && open_output(&c, &o, c.x.n, n_nonzero) == 0;
    if (ready)
        WITHOUT_GIL(status = atoms_pursuit(c.ctx, c.dict, c.x, &p, &c.codes));
    return close_call(&c, ready, status, "pursuit");
}

static PyObject *py_threshold(PyObject *self, PyObject *args, PyObject *kwargs)
{
    (void)self;
    static char *names[] = {"ctx",    "handle", "X",      "tau",   "signed",   "indices",
                            "values", "counts", "status", "steps", "residual", NULL};
    call_objects o = {0};
    PyObject *o_tau;
    atoms_threshold_params p = {0};
    call c;
    void *tau;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOOOpOOOOOO:threshold", names, &o.ctx, &o.dict, &o.x, &o_tau,
                                     &p.signed_codes, &o.indices, &o.values, &o.counts, &o.status, &o.steps,
                                     &o.residual))
        return NULL;
    atoms_status status = ATOMS_OK;
    bool ready = open_input(&c, o.ctx, o.dict, o.x) == 0 &&
                 open_output(&c, &o, c.x.n, atoms_dict_n_atoms(c.dict)) == 0 &&
                 args_array(&c.a, o_tau, (array_spec){"tau", NPY_FLOAT64, 1, {c.x.n}, false, false}, &tau) == 0;
    if (ready) {
        p.tau = tau;
        WITHOUT_GIL(status = atoms_threshold(c.ctx, c.dict, c.x, &p, &c.codes));
    }
    return close_call(&c, ready, status, "threshold");
}

static PyObject *py_correlation_max(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject *o_ctx, *o_dict, *o_x, *o_top;
    call c;
    void *top;
    if (!PyArg_ParseTuple(args, "OOOO:correlation_max", &o_ctx, &o_dict, &o_x, &o_top))
        return NULL;
    atoms_status status = ATOMS_OK;
    bool ready = open_input(&c, o_ctx, o_dict, o_x) == 0 &&
                 args_array(&c.a, o_top, (array_spec){"top", NPY_FLOAT64, 1, {c.x.n}, true, false}, &top) == 0;
    if (ready)
        WITHOUT_GIL(status = atoms_correlation_max(c.ctx, c.dict, c.x, top));
    return close_call(&c, ready, status, "correlation_max");
}

/* What is known of the atoms, and where the probabilities go. */
static int open_spikes(call *c, PyObject *const known[3], PyObject *probability, atoms_spikes_params *p)
{
    static const char *const names[3] = {"rate", "height", "spread"};
    const double **to[3] = {&p->rate, &p->height, &p->spread};
    const int64_t m = atoms_dict_n_atoms(c->dict);
    void *data;
    for (int i = 0; i < 3; i++) {
        if (args_array(&c->a, known[i], (array_spec){names[i], NPY_FLOAT64, 1, {m}, false, false}, &data) < 0)
            return -1;
        *to[i] = data;
    }
    const array_spec spec = {"probability", NPY_FLOAT32, 2, {c->x.n, p->n_candidates}, true, true};
    if (args_array(&c->a, probability, spec, &data) < 0)
        return -1;
    p->probability = data;
    return 0;
}

static PyObject *py_spikes(PyObject *self, PyObject *args, PyObject *kwargs)
{
    (void)self;
    static char *names[] = {"ctx",    "handle",       "X",        "rate",        "height",  "spread", "noise",
                            "least",  "n_candidates", "rounds",   "sweeps",      "indices", "values", "counts",
                            "status", "steps",        "residual", "probability", NULL};
    call_objects o = {0};
    PyObject *known[3], *probability;
    atoms_spikes_params p = {0};
    call c;
    long long n_candidates, rounds, sweeps;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOOOOOddLLLOOOOOOO:spikes", names, &o.ctx, &o.dict, &o.x, &known[0],
                                     &known[1], &known[2], &p.noise, &p.least, &n_candidates, &rounds, &sweeps,
                                     &o.indices, &o.values, &o.counts, &o.status, &o.steps, &o.residual, &probability))
        return NULL;
    p.n_candidates = n_candidates;
    p.rounds = rounds;
    p.sweeps = sweeps;
    atoms_status status = ATOMS_OK;
    bool ready = open_input(&c, o.ctx, o.dict, o.x) == 0 && open_output(&c, &o, c.x.n, n_candidates) == 0 &&
                 open_spikes(&c, known, probability, &p) == 0;
    if (ready)
        WITHOUT_GIL(status = atoms_spikes(c.ctx, c.dict, c.x, &p, &c.codes));
    return close_call(&c, ready, status, "spikes");
}

/* --------------------------------------------------------------------- atoms */

static PyObject *py_fit_atoms(PyObject *self, PyObject *args, PyObject *kwargs)
{
    (void)self;
    static char *names[] = {"ctx", "X", "indptr", "indices", "values", "keep", "sweeps", "atoms", "energy", NULL};
    PyObject *o_ctx, *o_x, *o_indptr, *o_indices, *o_values, *o_atoms, *o_energy, *result = NULL;
    const atoms_ctx *ctx;
    double keep;
    long long sweeps;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOOOOdLOO:fit_atoms", names, &o_ctx, &o_x, &o_indptr, &o_indices,
                                     &o_values, &keep, &sweeps, &o_atoms, &o_energy) ||
        atoms_get_ctx(o_ctx, &ctx) < 0)
        return NULL;
    arguments a = {0};
    atoms_rows x;
    atoms_csr_view codes;
    void *atoms, *energy;
    if (args_rows(&a, o_x, "X", &x) == 0 && args_codes(&a, o_indptr, o_indices, o_values, &codes) == 0 &&
        args_array(&a, o_energy, (array_spec){"energy", NPY_FLOAT64, 1, {-1}, true, false}, &energy) == 0) {
        codes.width = args_length(&a, 0);
        if (args_array(&a, o_atoms, (array_spec){"atoms", NPY_FLOAT32, 2, {codes.width, x.d}, true, false}, &atoms) ==
            0) {
            atoms_status status;
            WITHOUT_GIL(status = atoms_fit_atoms(ctx, x, &codes, keep, sweeps, atoms, energy));
            result = atoms_raise(status, "fit_atoms");
        }
    }
    args_release(&a);
    return result;
}

static PyObject *py_part_atoms(PyObject *self, PyObject *args, PyObject *kwargs)
{
    (void)self;
    static char *names[] = {"ctx",    "indptr", "indices",     "values", "atoms",
                            "energy", "least",  "incoherence", "out",    NULL};
    PyObject *o_ctx, *o_indptr, *o_indices, *o_values, *o_atoms, *o_energy, *o_out, *result = NULL;
    const atoms_ctx *ctx;
    double least, incoherence;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOOOOOddO:part_atoms", names, &o_ctx, &o_indptr, &o_indices,
                                     &o_values, &o_atoms, &o_energy, &least, &incoherence, &o_out) ||
        atoms_get_ctx(o_ctx, &ctx) < 0)
        return NULL;
    arguments a = {0};
    atoms_csr_view codes;
    void *atoms, *energy, *out;
    if (args_codes(&a, o_indptr, o_indices, o_values, &codes) == 0 &&
        args_array(&a, o_energy, (array_spec){"energy", NPY_FLOAT64, 1, {-1}, false, false}, &energy) == 0) {
        const int64_t m = codes.width = args_length(&a, 0);
        if (args_array(&a, o_atoms, (array_spec){"atoms", NPY_FLOAT32, 2, {m, -1}, false, false}, &atoms) == 0) {
            const int64_t d = args_length(&a, 1);
            if (args_array(&a, o_out, (array_spec){"out", NPY_FLOAT32, 2, {m, d}, true, false}, &out) == 0) {
                atoms_status status;
                WITHOUT_GIL(status = atoms_part_atoms(ctx, &codes, d, atoms, energy, least, incoherence, out));
                result = atoms_raise(status, "part_atoms");
            }
        }
    }
    args_release(&a);
    return result;
}

/* ------------------------------------------------------------------- packing */

/* The sum of counts, each of 0 .. width; -1 with an exception. */
static int64_t total_of(int64_t n, const int32_t *counts, int64_t width)
{
    int64_t total = 0;
    for (int64_t i = 0; i < n; i++) {
        if (counts[i] < 0 || counts[i] > width) {
            PyErr_Format(PyExc_ValueError, "counts: expected 0 to %lld, got %d in row %lld", (long long)width,
                         (int)counts[i], (long long)i);
            return -1;
        }
        total += counts[i];
    }
    return total;
}

/* Rows of unequal length out of their padded arrays, one after the other. */
static PyObject *py_pack_codes(PyObject *self, PyObject *args, PyObject *kwargs)
{
    (void)self;
    static char *names[] = {"indices", "values", "counts", "out_indices", "out_values", NULL};
    PyObject *o[5], *result = NULL;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOOOO:pack_codes", names, &o[0], &o[1], &o[2], &o[3], &o[4]))
        return NULL;
    if (!PyArray_Check(o[1]) || !PyArray_Check(o[0]) || PyArray_NDIM((PyArrayObject *)o[0]) != 2)
        return PyErr_Format(PyExc_TypeError, "pack_codes: expected NumPy arrays");
    const int type = PyArray_TYPE((PyArrayObject *)o[1]) == NPY_FLOAT64 ? NPY_FLOAT64 : NPY_FLOAT32;
    const size_t size = type == NPY_FLOAT64 ? 8 : 4;
    const int64_t n = PyArray_DIM((PyArrayObject *)o[0], 0), width = PyArray_DIM((PyArrayObject *)o[0], 1);
    arguments a = {0};
    void *indices, *values, *counts, *to_indices, *to_values;
    int64_t total;
    if (args_array(&a, o[0], (array_spec){"indices", NPY_INT32, 2, {n, width}, false, false}, &indices) < 0 ||
        args_array(&a, o[1], (array_spec){"values", type, 2, {n, width}, false, false}, &values) < 0 ||
        args_array(&a, o[2], (array_spec){"counts", NPY_INT32, 1, {n}, false, false}, &counts) < 0 ||
        (total = total_of(n, counts, width)) < 0 ||
        args_array(&a, o[3], (array_spec){"out indices", NPY_INT32, 1, {total}, true, false}, &to_indices) < 0 ||
        args_array(&a, o[4], (array_spec){"out values", type, 1, {total}, true, false}, &to_values) < 0)
        goto done;
    for (int64_t i = 0, at = 0; i < n; at += ((int32_t *)counts)[i++]) {
        const size_t count = (size_t)((int32_t *)counts)[i];
        memcpy((int32_t *)to_indices + at, (int32_t *)indices + i * width, count * 4);
        memcpy((char *)to_values + (size_t)at * size, (char *)values + (size_t)(i * width) * size, count * size);
    }
    result = Py_NewRef(Py_None);
done:
    args_release(&a);
    return result;
}

PyMethodDef atoms_recovery_methods[] = {
    {"dict_new", py_dict_new, METH_VARARGS, "dict_new(ctx, atoms, double_precision) -> handle"},
    {"dict_gram", py_dict_gram, METH_VARARGS, "dict_gram(ctx, handle, units, coarse)"},
    {"dict_units", py_dict_units, METH_VARARGS, "dict_units(ctx, handle): whether it has them"},
    {"dict_has_gram", py_dict_has_gram, METH_O, "dict_has_gram(handle) -> bool"},
    ATOMS_NAMED("omp", py_omp,
                "omp(ctx, handle, X, n_nonzero, tol, ols, nonnegative, indptr, support, indices, values, "
                "counts, status, steps, residual)"),
    ATOMS_NAMED("lasso", py_lasso,
                "lasso(ctx, handle, X, alphas, positive, tol, max_rounds, most_atoms, indices, values, counts, "
                "status, steps, residual, gap)"),
    ATOMS_NAMED("basis", py_basis,
                "basis(ctx, handle, X, sigma, tol, max_steps, indices, values, counts, status, steps, "
                "residual, gap)"),
    ATOMS_NAMED("pursuit", py_pursuit,
                "pursuit(ctx, handle, X, method, n_nonzero, max_steps, tol, indices, values, counts, status, "
                "steps, residual)"),
    ATOMS_NAMED("threshold", py_threshold,
                "threshold(ctx, handle, X, tau, signed, indices, values, counts, status, steps, residual)"),
    {"correlation_max", py_correlation_max, METH_VARARGS, "correlation_max(ctx, handle, X, top)"},
    ATOMS_NAMED("spikes", py_spikes,
                "spikes(ctx, handle, X, rate, height, spread, noise, least, n_candidates, rounds, sweeps, "
                "indices, values, counts, status, steps, residual, probability)"),
    ATOMS_NAMED("fit_atoms", py_fit_atoms, "fit_atoms(ctx, X, indptr, indices, values, keep, sweeps, atoms, energy)"),
    ATOMS_NAMED("part_atoms", py_part_atoms,
                "part_atoms(ctx, indptr, indices, values, atoms, energy, least, incoherence, out)"),
    ATOMS_NAMED("pack_codes", py_pack_codes, "pack_codes(indices, values, counts, out_indices, out_values)"),
    {NULL, NULL, 0, NULL}};

const atoms_constant atoms_recovery_constants[] = {
    {"SIGNAL_CONVERGED", ATOMS_SIGNAL_CONVERGED}, {"SIGNAL_DEPENDENT", ATOMS_SIGNAL_DEPENDENT},
    {"SIGNAL_LIMIT", ATOMS_SIGNAL_LIMIT},         {"SIGNAL_NONFINITE", ATOMS_SIGNAL_NONFINITE},
    {"SIGNAL_RANGE", ATOMS_SIGNAL_RANGE},         {"SIGNAL_INFEASIBLE", ATOMS_SIGNAL_INFEASIBLE},
    {"SIGNAL_OPEN", ATOMS_SIGNAL_OPEN},           {"PURSUIT_MP", ATOMS_PURSUIT_MP},
    {"PURSUIT_GRADIENT", ATOMS_PURSUIT_GRADIENT}, {"PURSUIT_COSAMP", ATOMS_PURSUIT_COSAMP},
    {"PURSUIT_IHT", ATOMS_PURSUIT_IHT},           {NULL, 0},
};
