/* recovery_omp_avx512.c: matching pursuit with 512-bit vectors; float32 work keeps its
 * orthogonalised atoms as half floats. */
#if defined(__x86_64__)
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#include "recovery.h"

#include <immintrin.h>
#include <math.h>

#define T float
#define GEMM atoms_gemm_f32
#define FN(name) name##_avx512_f32
#define VLEN 16
#define VMAX(a, b) ((vec)_mm512_max_ps((__m512)(a), (__m512)(b)))
#define VMIN(a, b) ((vec)_mm512_min_ps((__m512)(a), (__m512)(b)))
#define VRCP(a) ((vec)_mm512_rcp14_ps((__m512)(a)))
#define BCAST(a) ((vec)_mm512_set1_ps(a))
#define U_T uint16_t
#define LOAD_U(p) ((vec)_mm512_cvtph_ps(*(const __m256i *)(p)))
#define STORE_U(p, v)                                                                             \
    (*(__m256i *)(p) =                                                                            \
         _mm512_cvtps_ph((__m512)(v), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC))
#define U_EPS 0x1p-11
#define EPS 0x1p-23
#define DEPENDENT 3e-5f
#define NRM_SLACK 1e-3 /* screening errs upwards: rounding of u, and of the reciprocal */
#define NRM_FLOOR 1e-5
#include "recovery_omp_impl.h"

#define T double
#define GEMM atoms_gemm_f64
#define FN(name) name##_avx512_f64
#define VLEN 8
#define VMAX(a, b) ((vec)_mm512_max_pd((__m512d)(a), (__m512d)(b)))
#define VMIN(a, b) ((vec)_mm512_min_pd((__m512d)(a), (__m512d)(b)))
#define VRCP(a) (1 / (a))
#define BCAST(a) ((vec)_mm512_set1_pd(a))
#define U_T double
#define LOAD_U(p) (*(const vec *)(p))
#define STORE_U(p, v) (*(vec *)(p) = (v))
#define U_EPS 0.0
#define EPS 0x1p-52
#define DEPENDENT 1e-12
#define NRM_SLACK 0.0
#define NRM_FLOOR 1e-13
#include "recovery_omp_impl.h"
#else
typedef int atoms_not_x86;
#endif
