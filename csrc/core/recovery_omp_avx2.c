/* recovery_omp_avx2.c: matching pursuit with 256-bit vectors; float32 work keeps its
 * orthogonalised atoms as half floats. */
#if defined(__x86_64__)
#pragma GCC target("avx2,fma,f16c")
#include "recovery.h"

#include <immintrin.h>
#include <math.h>

#define T float
#define GEMM atoms_gemm_f32
#define FN(name) name##_avx2_f32
#define VLEN 8
#define VMAX(a, b) ((vec)_mm256_max_ps((__m256)(a), (__m256)(b)))
#define VMIN(a, b) ((vec)_mm256_min_ps((__m256)(a), (__m256)(b)))
#define VRCP(a) ((vec)_mm256_rcp_ps((__m256)(a)))
#define BCAST(a) ((vec)_mm256_set1_ps(a))
#define U_T uint16_t
#define LOAD_U(p) ((vec)_mm256_cvtph_ps(*(const __m128i *)(p)))
#define STORE_U(p, v)                                                                             \
    (*(__m128i *)(p) =                                                                            \
         _mm256_cvtps_ph((__m256)(v), _MM_FROUND_TO_NEAREST_INT))
#define U_EPS 0x1p-11
#define EPS 0x1p-23
#define DEPENDENT 3e-5f
#define NRM_SLACK 1e-3 /* screening errs upwards: rounding of u, and of the reciprocal */
#define NRM_FLOOR 1e-5
#include "recovery_omp_impl.h"

#define T double
#define GEMM atoms_gemm_f64
#define FN(name) name##_avx2_f64
#define VLEN 4
#define VMAX(a, b) ((vec)_mm256_max_pd((__m256d)(a), (__m256d)(b)))
#define VMIN(a, b) ((vec)_mm256_min_pd((__m256d)(a), (__m256d)(b)))
#define VRCP(a) (1 / (a))
#define BCAST(a) ((vec)_mm256_set1_pd(a))
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
