/* binding.h: what the binding files share: converters, the context object, errors. */
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

/* A checked view of a caller's array; holds a reference until atoms_view_clear. */
typedef struct {
    PyArrayObject *array;
    void *data;
    atoms_dtype dtype;
    int ndim;
    int64_t shape[3];
    int64_t stride[3]; /* in elements */
} atoms_view;

#define VIEW_F32 1
#define VIEW_F64 2
#define VIEW_F16 4
#define VIEW_BF16 8
#define VIEW_FLOATS (VIEW_F32 | VIEW_F64 | VIEW_F16 | VIEW_BF16)

/* Input: any of the float types in `types`, aligned, native, element strides; never copied.
 * Returns 0, or -1 with an exception that names the argument. */
int atoms_view_in(PyObject *obj, const char *name, int ndim, int types, atoms_view *view);
/* The same, C-contiguous. */
int atoms_view_in_c(PyObject *obj, const char *name, int ndim, int types, atoms_view *view);
/* Contiguous array of one NumPy type number (NPY_INT32, NPY_INT64, NPY_FLOAT32...), input or,
 * with `writeable`, output of a given shape (-1: any length). dtype is unset. */
int atoms_view_typed(PyObject *obj, const char *name, int typenum, int writeable, int ndim, const int64_t *shape,
                     atoms_view *view);
/* 1 and ValueError when the two share memory. */
int atoms_views_overlap(const atoms_view *a, const char *name_a, const atoms_view *b, const char *name_b);
void atoms_view_clear(atoms_view *view);

/* 0 and the borrowed context of a _core.Context, or -1 with an exception. In a forked child it is
 * one of a single thread. */
int atoms_get_ctx(PyObject *obj, const atoms_ctx **ctx);

/* Turns a status into an exception (NULL) or None. KeyboardInterrupt raised by the poll
 * function stays as it is. */
PyObject *atoms_raise(atoms_status status, const char *where);

extern PyType_Spec atoms_context_spec;
int atoms_watch_forks(void); /* 0, or -1 with an exception */

/* One table of methods for each room; NULL-terminated. */
extern PyMethodDef atoms_metric_methods[];
extern PyMethodDef atoms_sae_methods[];
extern PyMethodDef atoms_theory_methods[];
extern PyMethodDef atoms_recovery_methods[];

#endif
