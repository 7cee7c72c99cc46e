/* recovery_portable.c: the recovery kernels in plain C, the twin of the vector versions: nothing
 * is kept at lower precision, so every score is exact to rounding. */
#include "recovery.h"

#include <math.h>

/* Lane by lane: C has no maximum of vector types. */
#define LANES(T, N, name, op)                                                                                          \
    static inline name##_v name##_##op(name##_v a, name##_v b)                                                         \
    {                                                                                                                  \
        for (int k = 0; k < N; k++)                                                                                    \
            a[k] = ATOMS_##op(a[k], b[k]);                                                                             \
        return a;                                                                                                      \
    }
#define PORTABLE(T, N, name)                                                                                           \
    typedef T name##_v __attribute__((vector_size(N * sizeof(T))));                                                    \
    LANES(T, N, name, MAX)                                                                                             \
    LANES(T, N, name, MIN)                                                                                             \
    static inline unsigned name##_ge_lanes(name##_v a, name##_v b)                                                     \
    {                                                                                                                  \
        unsigned lanes = 0;                                                                                            \
        for (int k = 0; k < N; k++)                                                                                    \
            lanes |= (unsigned)(a[k] >= b[k]) << k;                                                                    \
        return lanes;                                                                                                  \
    }
PORTABLE(float, 4, f4)
PORTABLE(double, 2, d2)

#define T float
#define GEMM atoms_gemm_f32
#define IN atoms_f32_in
#define OUT atoms_f32_out
#define FN(name) name##_portable_f32
#define VLEN 4
#define VMAX(a, b) f4_MAX(a, b)
#define VMIN(a, b) f4_MIN(a, b)
#define VRCP(a) (1 / (a))
#define BCAST(a) ((vec){0} + (T)(a))
#define GE_LANES(a, b) f4_ge_lanes(a, b)
#define EPS 0x1p-23
#define DEPENDENT 3e-5f
#define NRM_FLOOR 1e-5f
#define QUANTISED 0
#include "omp.inc"
#include "lasso.inc"
#include "pursuits.inc"
#include "undef.h"

#define T double
#define GEMM atoms_gemm_f64
#define IN atoms_f64_in
#define OUT atoms_f64_out
#define FN(name) name##_portable_f64
#define VLEN 2
#define VMAX(a, b) d2_MAX(a, b)
#define VMIN(a, b) d2_MIN(a, b)
#define VRCP(a) (1 / (a))
#define BCAST(a) ((vec){0} + (T)(a))
#define GE_LANES(a, b) d2_ge_lanes(a, b)
#define EPS 0x1p-52
#define DEPENDENT 1e-12
#define NRM_FLOOR 1e-13
#define QUANTISED 0
#include "omp.inc"
#include "lasso.inc"
#include "pursuits.inc"
#include "undef.h"
