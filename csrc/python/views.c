/* views.c: the converters that bind_sae.c and bind_recovery.c still use; all else has arguments.c. */
#include "binding.h"

static int float_type(PyArrayObject *a, atoms_dtype *dtype)
{
    switch (PyArray_TYPE(a)) {
    case NPY_FLOAT32: *dtype = ATOMS_F32; return VIEW_F32;
    case NPY_FLOAT64: *dtype = ATOMS_F64; return VIEW_F64;
    case NPY_FLOAT16: *dtype = ATOMS_F16; return VIEW_F16;
    }
    /* ml_dtypes registers bfloat16 under a type number of its own: known by its name */
    PyArray_Descr *descr = PyArray_DESCR(a);
    if (PyDataType_ELSIZE(descr) == 2 && descr->typeobj && strstr(descr->typeobj->tp_name, "bfloat16")) {
        *dtype = ATOMS_BF16;
        return VIEW_BF16;
    }
    return 0;
}

static int fill(PyArrayObject *a, const char *name, atoms_view *view)
{
    npy_intp size = PyArray_ITEMSIZE(a);
    for (int i = 0; i < view->ndim; i++) {
        view->shape[i] = PyArray_DIM(a, i);
        if (view->shape[i] > 1 && PyArray_STRIDE(a, i) % size) {
            PyErr_Format(PyExc_ValueError, "%s: the strides are not whole elements; pass numpy.ascontiguousarray(%s)",
                         name, name);
            return -1;
        }
        view->stride[i] = PyArray_STRIDE(a, i) / size;
    }
    view->data = PyArray_DATA(a);
    Py_INCREF(a);
    view->array = a;
    return 0;
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
    return a;
}

int atoms_view_in(PyObject *obj, const char *name, int ndim, int types, atoms_view *view)
{
    memset(view, 0, sizeof *view);
    PyArrayObject *a = as_array(obj, name, ndim);
    if (!a)
        return -1;
    if (!(float_type(a, &view->dtype) & types)) {
        PyErr_Format(PyExc_TypeError, "%s: unsupported dtype %R; pass %s%s", name, (PyObject *)PyArray_DESCR(a),
                     types & VIEW_F32 ? "float32" : "float64",
                     types == VIEW_FLOATS ? ", float64, float16 or bfloat16" : "");
        return -1;
    }
    view->ndim = ndim;
    return fill(a, name, view);
}

int atoms_view_in_c(PyObject *obj, const char *name, int ndim, int types, atoms_view *view)
{
    if (atoms_view_in(obj, name, ndim, types, view) < 0)
        return -1;
    if (!PyArray_IS_C_CONTIGUOUS(view->array)) {
        atoms_view_clear(view);
        PyErr_Format(PyExc_ValueError, "%s: expected a C-contiguous array; pass numpy.ascontiguousarray(%s)", name,
                     name);
        return -1;
    }
    return 0;
}

int atoms_view_typed(PyObject *obj, const char *name, int typenum, int writeable, int ndim, const int64_t *shape,
                     atoms_view *view)
{
    memset(view, 0, sizeof *view);
    PyArrayObject *a = as_array(obj, name, ndim);
    if (!a)
        return -1;
    if (!PyArray_EquivTypenums(PyArray_TYPE(a), typenum)) {
        PyArray_Descr *want = PyArray_DescrFromType(typenum);
        PyErr_Format(PyExc_TypeError, "%s: expected dtype %R, got %R", name, (PyObject *)want,
                     (PyObject *)PyArray_DESCR(a));
        Py_XDECREF(want);
        return -1;
    }
    if (!PyArray_IS_C_CONTIGUOUS(a)) {
        PyErr_Format(PyExc_ValueError, "%s: expected a C-contiguous array", name);
        return -1;
    }
    if (writeable && !PyArray_ISWRITEABLE(a)) {
        PyErr_Format(PyExc_ValueError, "%s: the output array is read-only", name);
        return -1;
    }
    for (int i = 0; shape && i < ndim; i++)
        if (shape[i] >= 0 && PyArray_DIM(a, i) != shape[i]) {
            PyErr_Format(PyExc_ValueError, "%s: expected length %lld along axis %d, got %lld", name,
                         (long long)shape[i], i, (long long)PyArray_DIM(a, i));
            return -1;
        }
    view->ndim = ndim;
    return fill(a, name, view);
}

int atoms_views_overlap(const atoms_view *a, const char *name_a, const atoms_view *b, const char *name_b)
{
    /* Bounds are enough: outputs are contiguous, so touching bounds means shared memory or a
     * strided input interleaved with an output, which nobody wants. */
    char *lo[2], *hi[2];
    const atoms_view *v[2] = {a, b};
    for (int k = 0; k < 2; k++) {
        lo[k] = hi[k] = v[k]->data;
        int64_t size = PyArray_ITEMSIZE(v[k]->array);
        for (int i = 0; i < v[k]->ndim; i++) {
            if (v[k]->shape[i] == 0)
                return 0;
            int64_t span = (v[k]->shape[i] - 1) * v[k]->stride[i] * size;
            *(span < 0 ? &lo[k] : &hi[k]) += span;
        }
        hi[k] += size;
    }
    if (lo[0] >= hi[1] || lo[1] >= hi[0])
        return 0;
    PyErr_Format(PyExc_ValueError, "%s and %s share memory; pass a separate output array", name_a, name_b);
    return 1;
}

void atoms_view_clear(atoms_view *view)
{
    Py_CLEAR(view->array);
}
