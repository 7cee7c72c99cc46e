/* arguments.h: the arguments of a call as the core takes them: arrays, checked and not copied. */
#ifndef ATOMS_ARGUMENTS_H
#define ATOMS_ARGUMENTS_H

#include "binding.h"

/* The arrays of one call. Begin with zeros, take each array once, release them all at the end: one way out, errors or
 * not. An array that the core writes may share memory with no other, whichever of the two comes first. */
#define MOST_ARRAYS 16
typedef struct {
    int n;
    struct {
        PyArrayObject *array; /* holds a reference */
        const char *name;
        bool written;
    } taken[MOST_ARRAYS];
} arguments;

/* What is expected of a C-contiguous array. */
typedef struct {
    const char *name;
    int type; /* NPY_FLOAT64, ... */
    int ndim;
    int64_t shape[3]; /* -1: any length */
    bool written;     /* an output: has to be writeable */
    bool optional;    /* None may stand for it: NULL */
} array_spec;

/* All return 0, or -1 with an exception that names the argument. */

/* Rows of any float type, native and aligned, with any strides of whole elements. */
int args_rows(arguments *a, PyObject *obj, const char *name, atoms_rows *rows);
/* Where the array's data begin. */
int args_array(arguments *a, PyObject *obj, array_spec spec, void **data);
/* Codes in compressed rows; their width is the caller's to set. */
int args_codes(arguments *a, PyObject *indptr, PyObject *indices, PyObject *values, atoms_csr_view *codes);
/* The length of the array that was taken last. */
int64_t args_length(const arguments *a, int axis);
void args_release(arguments *a);

/* One call of the core, while other Python threads run. */
#define WITHOUT_GIL(call)                                                                                              \
    do {                                                                                                               \
        Py_BEGIN_ALLOW_THREADS;                                                                                        \
        call;                                                                                                          \
        Py_END_ALLOW_THREADS;                                                                                          \
    } while (0)

#endif
