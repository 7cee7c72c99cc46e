/* context.c: the Context object, what becomes of it in a forked child, and the core's statuses as exceptions. */
#define _POSIX_C_SOURCE 200809L /* pthread_atfork */
#include "binding.h"

#include <pthread.h>

/* --------------------------------------------------------------- context */

typedef struct {
    PyObject_HEAD atoms_ctx *ctx;
    atoms_ctx *serial; /* the same with one thread */
    atoms_blas_kind blas;
} ContextObject;

/* A child made by fork has the parent's OpenMP state but none of its threads: waiting for them,
 * it would hang for ever. So it works with one thread, whatever its contexts say. */
static int forked;

/* Python runs signal handlers in its main thread alone: others need not ask, and in a daemon thread taking the GIL
 * would end it in the middle of its work when the interpreter ends. */
static unsigned long main_thread;

static void note_fork(void)
{
    forked = 1;
    main_thread = PyThread_get_thread_ident();
}

static int find_main_thread(void)
{
    PyObject *threading = PyImport_ImportModule("threading");
    PyObject *thread = threading ? PyObject_CallMethod(threading, "main_thread", NULL) : NULL;
    PyObject *ident = thread ? PyObject_GetAttrString(thread, "ident") : NULL;
    if (ident)
        main_thread = PyLong_AsUnsignedLong(ident);
    Py_XDECREF(ident);
    Py_XDECREF(thread);
    Py_XDECREF(threading);
    return PyErr_Occurred() ? -1 : 0;
}

int atoms_watch_forks(void)
{
    static int watching;
    if (!watching && pthread_atfork(NULL, NULL, note_fork)) {
        PyErr_SetString(PyExc_MemoryError, "pthread_atfork failed");
        return -1;
    }
    watching = 1;
    return find_main_thread();
}

static const atoms_ctx *usable_ctx(PyObject *self)
{
    return forked ? ((ContextObject *)self)->serial : ((ContextObject *)self)->ctx;
}

static int poll_signals(void *data)
{
    (void)data;
    if (PyThread_get_thread_ident() != main_thread)
        return 0;
    PyGILState_STATE gil = PyGILState_Ensure();
    int stop = PyErr_CheckSignals() < 0;
    PyGILState_Release(gil);
    return stop;
}

/* The C function behind scipy.linalg.cython_blas.NAME. Its capsule is named after its signature:
 * one with other integers than ours is refused. Extension modules are never unloaded, so the
 * pointer stays good. */
static void *scipy_pointer(const char *name)
{
    void *pointer = NULL;
    PyObject *module = PyImport_ImportModule("scipy.linalg.cython_blas");
    PyObject *api = module ? PyObject_GetAttrString(module, "__pyx_capi__") : NULL;
    PyObject *capsule = api ? PyMapping_GetItemString(api, name) : NULL;
    const char *signature = capsule ? PyCapsule_GetName(capsule) : NULL;
    if (signature && !strncmp(signature, "void (char *, char *, int *, int *, int *, ", 43))
        pointer = PyCapsule_GetPointer(capsule, signature);
    else if (!PyErr_Occurred())
        PyErr_Format(PyExc_ImportError, "scipy.linalg.cython_blas.%s: unknown signature %s", name,
                     signature ? signature : "");
    Py_XDECREF(capsule);
    Py_XDECREF(api);
    Py_XDECREF(module);
    return pointer;
}

static const char *const blas_names[] = {"blis", "scipy", "accelerate"}; /* by atoms_blas_kind */

/* The BLAS of this name into *kind; NULL leaves it as it is. -1 with an exception where there is none. */
static int find_blas(const char *name, atoms_blas_kind *kind)
{
    if (!name)
        return 0;
    for (int i = 0; i <= ATOMS_BLAS_ACCELERATE; i++)
        if (!strcmp(name, blas_names[i])) {
            *kind = (atoms_blas_kind)i;
            if (i == ATOMS_BLAS_BLIS ? atoms_has_blis() : i != ATOMS_BLAS_ACCELERATE || atoms_has_accelerate())
                return 0;
            PyErr_Format(PyExc_ValueError, "blas: this build has no %s; pass 'scipy'",
                         i == ATOMS_BLAS_BLIS ? "BLIS" : "Accelerate");
            return -1;
        }
    PyErr_Format(PyExc_ValueError, "blas: expected 'blis', 'accelerate' or 'scipy', got '%s'", name);
    return -1;
}

static PyObject *context_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"num_threads", "isa", "blas", NULL};
    int num_threads, isa = ATOMS_ISA_AVX512_BF16;
    const char *blas = NULL;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "i|iz:Context", names, &num_threads, &isa, &blas))
        return NULL;
    if (num_threads < 1 || num_threads > ATOMS_MAX_THREADS)
        return PyErr_Format(PyExc_ValueError, "num_threads: expected 1 to %d, got %d", ATOMS_MAX_THREADS, num_threads);
    if (isa < 0 || isa > ATOMS_ISA_AVX512_BF16)
        return PyErr_Format(PyExc_ValueError, "isa: expected 0 to %d, got %d", (int)ATOMS_ISA_AVX512_BF16, isa);
    atoms_ctx_params params;
    atoms_ctx_params_init(&params);
    params.num_threads = num_threads;
    params.max_isa = (atoms_isa)isa;
    params.poll = poll_signals;
    if (find_blas(blas, &params.blas) < 0)
        return NULL;
    if (params.blas == ATOMS_BLAS_FORTRAN) {
        params.f_sgemm = (atoms_fortran_sgemm)(uintptr_t)scipy_pointer("sgemm");
        if (params.f_sgemm)
            params.f_dgemm = (atoms_fortran_dgemm)(uintptr_t)scipy_pointer("dgemm");
        if (!params.f_dgemm)
            return NULL;
    }
    ContextObject *self = (ContextObject *)type->tp_alloc(type, 0);
    if (!self)
        return NULL;
    self->blas = params.blas;
    atoms_status status = atoms_ctx_new(&params, &self->ctx);
    params.num_threads = 1;
    if (status == ATOMS_OK)
        status = atoms_ctx_new(&params, &self->serial);
    if (status == ATOMS_ERR_THREADS) {
        Py_DECREF(self);
        return PyErr_Format(PyExc_RuntimeError,
                            "num_threads: the system does not give this process %d threads (ulimit -u, the container's "
                            "limit, or memory for their stacks); ask for fewer",
                            num_threads);
    }
    if (status < 0) {
        Py_DECREF(self);
        return atoms_raise(status, "Context");
    }
    return (PyObject *)self;
}

static void context_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    atoms_ctx_free(((ContextObject *)self)->ctx);
    atoms_ctx_free(((ContextObject *)self)->serial);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyObject *context_num_threads(PyObject *self, void *closure)
{
    (void)closure;
    return PyLong_FromLong(atoms_ctx_num_threads(usable_ctx(self)));
}

static PyObject *context_isa(PyObject *self, void *closure)
{
    (void)closure;
    return PyUnicode_FromString(atoms_isa_name(atoms_ctx_isa(usable_ctx(self))));
}

static PyObject *context_blas(PyObject *self, void *closure)
{
    (void)closure;
    return PyUnicode_FromString(blas_names[((ContextObject *)self)->blas]);
}

static PyGetSetDef context_getset[] = {
    {"num_threads", context_num_threads, NULL, "threads that calls with this context use", NULL},
    {"isa", context_isa, NULL, "instruction set in use", NULL},
    {"blas", context_blas, NULL, "'blis', 'accelerate' or 'scipy'", NULL},
    {NULL, NULL, NULL, NULL, NULL}};

static PyType_Slot context_slots[] = {{Py_tp_new, context_new},
                                      {Py_tp_dealloc, context_dealloc},
                                      {Py_tp_getset, context_getset},
                                      {Py_tp_doc, "Context(num_threads, isa=7, blas=None)"},
                                      {0, NULL}};

PyType_Spec atoms_context_spec = {"atoms._core.Context", sizeof(ContextObject), 0,
                                  Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE, context_slots};

int atoms_get_ctx(PyObject *obj, const atoms_ctx **ctx)
{
    /* No module state to look up here: the type, which cannot be subclassed, is known by its
     * destructor. */
    if (Py_TYPE(obj)->tp_dealloc != context_dealloc) {
        PyErr_Format(PyExc_TypeError, "ctx: expected a Context, got %.100s", Py_TYPE(obj)->tp_name);
        return -1;
    }
    *ctx = usable_ctx(obj);
    return 0;
}

/* ---------------------------------------------------------------- errors */

PyObject *atoms_raise(atoms_status status, const char *where)
{
    if (status >= 0)
        Py_RETURN_NONE;
    if (status == ATOMS_ERR_CANCELLED) {
        if (!PyErr_Occurred())
            PyErr_SetNone(PyExc_KeyboardInterrupt);
        return NULL;
    }
    if (status == ATOMS_ERR_MEMORY)
        return PyErr_Format(PyExc_MemoryError, "%s: out of memory", where);
    return PyErr_Format(PyExc_ValueError, "%s: %s", where, atoms_status_message(status));
}
