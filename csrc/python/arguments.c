/* arguments.c: the arguments of a call: arrays, checked and not copied. */
#include "arguments.h"

static bool float_type(PyArrayObject *a, atoms_dtype *dtype)
{
    switch (PyArray_TYPE(a)) {
    case NPY_FLOAT32: *dtype = ATOMS_F32; return true;
    case NPY_FLOAT64: *dtype = ATOMS_F64; return true;
    case NPY_FLOAT16: *dtype = ATOMS_F16; return true;
    }
    /* ml_dtypes registers bfloat16 under a type number of its own: known by its name */
    PyArray_Descr *descr = PyArray_DESCR(a);
    if (PyDataType_ELSIZE(descr) == 2 && descr->typeobj && strstr(descr->typeobj->tp_name, "bfloat16")) {
        *dtype = ATOMS_BF16;
        return true;
    }
    return false;
}

static PyArrayObject *as_array(PyObject *obj, const char *name, int ndim)
{
    if (!PyArray_Check(obj)) {
        PyErr_Format(PyExc_TypeError, "%s: expected a NumPy array, got %.100s", name, Py_TYPE(obj)->tp_name);
        return NULL;
    }
    PyArrayObject *a = (PyArrayObject *)obj;
    if (PyArray_NDIM(a) != ndim) {
        PyErr_Format(PyExc_ValueError, "%s: expected %d dimension(s), got %d", name, ndim, PyArray_NDIM(a));
        return NULL;
    }
    if (!PyArray_ISALIGNED(a) || !PyArray_ISNOTSWAPPED(a)) {
        PyErr_Format(PyExc_ValueError, "%s: expected an aligned array in native byte order; pass a copy of it", name);
        return NULL;
    }
    for (int i = 0; i < ndim; i++)
        if (PyArray_DIM(a, i) > 1 && PyArray_STRIDE(a, i) % PyArray_ITEMSIZE(a)) {
            PyErr_Format(PyExc_ValueError, "%s: the strides are not whole elements; pass numpy.ascontiguousarray(%s)",
                         name, name);
            return NULL;
        }
    return a;
}

/* The bytes from the first to behind the last of an array; false for an empty one. Bounds are enough to tell who shares
 * memory: outputs are contiguous, so touching bounds mean the same bytes, or an input interleaved with an output, which
 * nobody wants. */
static bool bounds(PyArrayObject *a, char **low, char **high)
{
    *low = *high = PyArray_DATA(a);
    for (int i = 0; i < PyArray_NDIM(a); i++) {
        if (PyArray_DIM(a, i) == 0)
            return false;
        npy_intp span = (PyArray_DIM(a, i) - 1) * PyArray_STRIDE(a, i);
        *(span < 0 ? low : high) += span;
    }
    *high += PyArray_ITEMSIZE(a);
    return true;
}

static bool overlap(PyArrayObject *a, PyArrayObject *b)
{
    char *low_a, *high_a, *low_b, *high_b;
    return bounds(a, &low_a, &high_a) && bounds(b, &low_b, &high_b) && low_a < high_b && low_b < high_a;
}

static int hold(arguments *a, PyArrayObject *array, const char *name, bool written)
{
    for (int i = 0; i < a->n; i++)
        if ((written || a->taken[i].written) && overlap(a->taken[i].array, array)) {
            PyErr_Format(PyExc_ValueError, "%s and %s share memory; pass a separate output array", a->taken[i].name,
                         name);
            return -1;
        }
    if (a->n == MOST_ARRAYS) {
        PyErr_SetString(PyExc_SystemError, "MOST_ARRAYS is too small for this call");
        return -1;
    }
    Py_INCREF(array);
    a->taken[a->n].array = array;
    a->taken[a->n].name = name;
    a->taken[a->n++].written = written;
    return 0;
}

int args_rows(arguments *a, PyObject *obj, const char *name, atoms_rows *rows)
{
    PyArrayObject *array = as_array(obj, name, 2);
    if (!array)
        return -1;
    if (!float_type(array, &rows->type)) {
        PyErr_Format(PyExc_TypeError, "%s: unsupported dtype %R; pass float32, float64, float16 or bfloat16", name,
                     (PyObject *)PyArray_DESCR(array));
        return -1;
    }
    npy_intp size = PyArray_ITEMSIZE(array);
    rows->data = PyArray_DATA(array);
    rows->n = PyArray_DIM(array, 0);
    rows->d = PyArray_DIM(array, 1);
    rows->rs = PyArray_STRIDE(array, 0) / size;
    rows->cs = PyArray_STRIDE(array, 1) / size;
    return hold(a, array, name, false);
}

int args_array(arguments *a, PyObject *obj, array_spec spec, void **data)
{
    *data = NULL;
    if (spec.optional && obj == Py_None)
        return 0;
    PyArrayObject *array = as_array(obj, spec.name, spec.ndim);
    if (!array)
        return -1;
    if (!PyArray_EquivTypenums(PyArray_TYPE(array), spec.type)) {
        PyArray_Descr *want = PyArray_DescrFromType(spec.type);
        PyErr_Format(PyExc_TypeError, "%s: expected dtype %R, got %R", spec.name, (PyObject *)want,
                     (PyObject *)PyArray_DESCR(array));
        Py_XDECREF(want);
        return -1;
    }
    if (!PyArray_IS_C_CONTIGUOUS(array)) {
        PyErr_Format(PyExc_ValueError, "%s: expected a C-contiguous array; pass numpy.ascontiguousarray(%s)", spec.name,
                     spec.name);
        return -1;
    }
    if (spec.written && !PyArray_ISWRITEABLE(array)) {
        PyErr_Format(PyExc_ValueError, "%s: the output array is read-only", spec.name);
        return -1;
    }
    for (int i = 0; i < spec.ndim; i++)
        if (spec.shape[i] >= 0 && PyArray_DIM(array, i) != spec.shape[i]) {
            PyErr_Format(PyExc_ValueError, "%s: expected length %lld along axis %d, got %lld", spec.name,
                         (long long)spec.shape[i], i, (long long)PyArray_DIM(array, i));
            return -1;
        }
    *data = PyArray_DATA(array);
    return hold(a, array, spec.name, spec.written);
}

int64_t args_length(const arguments *a, int axis)
{
    return PyArray_DIM(a->taken[a->n - 1].array, axis);
}

void args_release(arguments *a)
{
    while (a->n > 0)
        Py_DECREF(a->taken[--a->n].array);
}

int args_codes(arguments *a, PyObject *o_indptr, PyObject *o_indices, PyObject *o_values, atoms_csr_view *codes)
{
    void *indptr, *indices, *values;
    if (args_array(a, o_indptr, (array_spec){"indptr", NPY_INT64, 1, {-1}, false, false}, &indptr) < 0)
        return -1;
    codes->n = args_length(a, 0) - 1;
    if (args_array(a, o_indices, (array_spec){"indices", NPY_INT32, 1, {-1}, false, false}, &indices) < 0)
        return -1;
    int64_t nnz = args_length(a, 0);
    if (args_array(a, o_values, (array_spec){"values", NPY_FLOAT32, 1, {nnz}, false, false}, &values) < 0)
        return -1;
    codes->indptr = indptr;
    codes->indices = indices;
    codes->values = values;
    if (codes->n < 0 || codes->indptr[0] != 0 || codes->indptr[codes->n] != nnz) {
        PyErr_SetString(PyExc_ValueError, "indptr: expected to run from 0 to the number of values");
        return -1;
    }
    for (int64_t i = 0; i < codes->n; i++)
        if (codes->indptr[i + 1] < codes->indptr[i]) {
            PyErr_SetString(PyExc_ValueError, "indptr: expected ascending values");
            return -1;
        }
    return 0;
}
