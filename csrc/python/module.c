/* module.c: the extension module atoms._core. */
#define ATOMS_IMPORT_ARRAY
#include "binding.h"

#ifdef _OPENMP
#include <omp.h>
#endif

static PyObject *build_info(PyObject *self, PyObject *unused)
{
    (void)self;
    (void)unused;
    if (atoms_has_blis() && !*atoms_blis_version())
        return PyErr_NoMemory();
#ifdef _OPENMP
    int openmp = _OPENMP;
#else
    int openmp = 0;
#endif
    return Py_BuildValue("{s:i,s:i,s:s,s:s,s:s,s:i,s:s}", "has_blis", atoms_has_blis(), "has_accelerate",
                         atoms_has_accelerate(), "blis_version", atoms_blis_version(), "blis_kernels",
                         atoms_blis_kernels(), "cpu_isa", atoms_isa_name(atoms_cpu_isa()), "openmp", openmp, "compiler",
                         __VERSION__);
}

static PyMethodDef module_methods[] = {
    {"build_info", build_info, METH_NOARGS, "what this extension was built with and found"}, {NULL, NULL, 0, NULL}};

/* ISAS: the instruction sets by name, weakest first, so that a name's place is its number in Context(isa=...). */
static int add_isas(PyObject *module)
{
    const int n = ATOMS_ISA_AVX512_BF16 + 1;
    PyObject *names = PyTuple_New(n);
    for (int i = 0; names && i < n; i++) {
        PyObject *name = PyUnicode_FromString(atoms_isa_name((atoms_isa)i));
        if (!name)
            Py_CLEAR(names);
        else
            PyTuple_SET_ITEM(names, i, name);
    }
    int failed = PyModule_AddObjectRef(module, "ISAS", names); /* fails, too, where names is NULL */
    Py_XDECREF(names);
    return failed;
}

static int module_exec(PyObject *module)
{
    static const struct {
        PyMethodDef *methods;
        const atoms_constant *constants; /* NULL: none */
    } rooms[] = {
        {atoms_metric_methods, NULL},
        {atoms_sae_methods, atoms_sae_constants},
        {atoms_recovery_methods, atoms_recovery_constants},
        {atoms_theory_methods, atoms_theory_constants},
    };
    if (PyInterpreterState_Get() != PyInterpreterState_Main()) {
        PyErr_SetString(PyExc_ImportError, "atoms does not work in sub-interpreters, as NumPy and SciPy do not; "
                                           "import it in the main interpreter, or in a process of its own");
        return -1;
    }
    if (PyArray_ImportNumPyAPI() < 0 || atoms_watch_forks() < 0 || add_isas(module) < 0)
        return -1;
    PyObject *type = PyType_FromModuleAndSpec(module, &atoms_context_spec, NULL);
    int failed = PyModule_AddIntConstant(module, "MAX_THREADS", ATOMS_MAX_THREADS) < 0 || !type ||
                 PyModule_AddType(module, (PyTypeObject *)type) < 0;
    Py_XDECREF(type);
    for (size_t i = 0; !failed && i < sizeof rooms / sizeof *rooms; i++) {
        failed = PyModule_AddFunctions(module, rooms[i].methods) < 0;
        for (const atoms_constant *c = rooms[i].constants; !failed && c && c->name; c++)
            failed = PyModule_AddIntConstant(module, c->name, c->value) < 0;
    }
    return failed ? -1 : 0;
}

static PyModuleDef_Slot module_slots[] = {{Py_mod_exec, (void *)module_exec},
#ifdef Py_mod_multiple_interpreters
                                          {Py_mod_multiple_interpreters, Py_MOD_MULTIPLE_INTERPRETERS_NOT_SUPPORTED},
#endif
#ifdef Py_mod_gil
                                          {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
                                          {0, NULL}};

static struct PyModuleDef module_def = {.m_base = PyModuleDef_HEAD_INIT,
                                        .m_name = "_core",
                                        .m_doc = "The C core of atoms.",
                                        .m_methods = module_methods,
                                        .m_slots = module_slots};

PyMODINIT_FUNC PyInit__core(void)
{
    return PyModuleDef_Init(&module_def);
}
