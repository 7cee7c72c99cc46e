/* recovery_omp_portable.c: matching pursuit in plain C, the twin of the vector versions; nothing
 * is stored at lower precision, so every score is exact to rounding. */
#include "recovery.h"

#include <math.h>

#define VMAX(a, b) FN(vmax)(a, b)
#define VMIN(a, b) FN(vmin)(a, b)
#define PORTABLE_VECTORS(T, N, name)                                                              \
    typedef T name##_v __attribute__((vector_size(N * sizeof(T))));                               \
    static inline name##_v vmax_##name(name##_v a, name##_v b)                                    \
    {                                                                                             \
        for (int k = 0; k < N; k++)                                                               \
            a[k] = a[k] > b[k] ? a[k] : b[k];                                                     \
        return a;                                                                                 \
    }                                                                                             \
    static inline name##_v vmin_##name(name##_v a, name##_v b)                                    \
    {                                                                                             \
        for (int k = 0; k < N; k++)                                                               \
            a[k] = a[k] < b[k] ? a[k] : b[k];                                                     \
        return a;                                                                                 \
    }
PORTABLE_VECTORS(float, 4, portable_f32)
PORTABLE_VECTORS(double, 2, portable_f64)

#define T float
#define GEMM atoms_gemm_f32
#define FN(name) name##_portable_f32
#define VLEN 4
#define VRCP(a) (1 / (a))
#define BCAST(a) ((vec){0} + (T)(a))
#define U_T float
#define LOAD_U(p) (*(const vec *)(p))
#define STORE_U(p, v) (*(vec *)(p) = (v))
#define U_EPS 0.0
#define EPS 0x1p-23
#define DEPENDENT 3e-5f
#define NRM_SLACK 0.0
#define NRM_FLOOR 1e-5
#include "recovery_omp_impl.h"

#define VMAX(a, b) FN(vmax)(a, b)
#define VMIN(a, b) FN(vmin)(a, b)
#define T double
#define GEMM atoms_gemm_f64
#define FN(name) name##_portable_f64
#define VLEN 2
#define VRCP(a) (1 / (a))
#define BCAST(a) ((vec){0} + (T)(a))
#define U_T double
#define LOAD_U(p) (*(const vec *)(p))
#define STORE_U(p, v) (*(vec *)(p) = (v))
#define U_EPS 0.0
#define EPS 0x1p-52
#define DEPENDENT 1e-12
#define NRM_SLACK 0.0
#define NRM_FLOOR 1e-13
#include "recovery_omp_impl.h"
