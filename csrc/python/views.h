/* views.h: the converters of views.c. */
#ifndef ATOMS_VIEWS_H
#define ATOMS_VIEWS_H

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

#endif
