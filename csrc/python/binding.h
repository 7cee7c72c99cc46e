/* binding.h: what the binding's files share: the Context object, errors, the rooms' functions and constants. */
#ifndef ATOMS_BINDING_H
#define ATOMS_BINDING_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdbool.h>

#define NPY_NO_DEPRECATED_API NPY_2_0_API_VERSION
#define PY_ARRAY_UNIQUE_SYMBOL atoms_ARRAY_API
#ifndef ATOMS_IMPORT_ARRAY
#define NO_IMPORT_ARRAY
#endif
#include <numpy/arrayobject.h>

#include "atoms.h"

/* 0 and the borrowed context of a _core.Context, or -1 with an exception. In a forked child it is
 * one of a single thread. */
int atoms_get_ctx(PyObject *obj, const atoms_ctx **ctx);

/* Turns a status into an exception (NULL) or None. KeyboardInterrupt raised by the poll
 * function stays as it is. */
PyObject *atoms_raise(atoms_status status, const char *where);

extern PyType_Spec atoms_context_spec;
int atoms_watch_forks(void); /* 0, or -1 with an exception */

/* An enumerator or size of atoms.h, as the module exports it. */
typedef struct {
    const char *name;
    int value;
} atoms_constant;

/* The functions and the constants of each room; the last one's name is NULL. */
extern PyMethodDef atoms_metric_methods[], atoms_sae_methods[], atoms_recovery_methods[], atoms_theory_methods[];
extern const atoms_constant atoms_sae_constants[], atoms_recovery_constants[], atoms_theory_constants[];

/* One entry of such a table that takes keyword arguments. */
#define ATOMS_NAMED(name, function, doc)                                                                               \
    {                                                                                                                  \
        name, (PyCFunction)(void (*)(void))function, METH_VARARGS | METH_KEYWORDS, doc                                 \
    }

#endif
