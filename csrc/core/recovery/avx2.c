/* recovery_avx2.c: the recovery kernels with 256-bit vectors. */
#if defined(__x86_64__)
#include "isa/avx2.h"
#include "recovery.h"

#include <math.h>

#define T float
#define GEMM atoms_gemm_f32
#define IN atoms_f32_in
#define OUT atoms_f32_out
#define FN(name) name##_avx2_f32
#define VLEN 8
#define VMAX(a, b) ((vec)_mm256_max_ps((__m256)(a), (__m256)(b)))
#define VMIN(a, b) ((vec)_mm256_min_ps((__m256)(a), (__m256)(b)))
#define VRCP(a) ((vec)_mm256_rcp_ps((__m256)(a))) /* relative error below 4e-4: the slack covers it */
#define BCAST(a) ((vec)_mm256_set1_ps(a))
#define GE_LANES(a, b) _mm256_movemask_ps(_mm256_cmp_ps((__m256)(a), (__m256)(b), _CMP_GE_OQ))
#define EPS 0x1p-23
#define DEPENDENT 3e-5f
#define NRM_FLOOR 1e-5f
#define QUANTISED 1
#define IVEC __m256i
#define IBCAST(a) _mm256_set1_epi32(a)
#define MADD(sum, a, b) /* per word: sum + low a low b + high a high b */ _mm256_add_epi32(sum, _mm256_madd_epi16(a, b))
#define TO_T(a) ((vec)_mm256_cvtepi32_ps(a))
#define TO_INT(a) _mm256_cvtps_epi32((__m256)(a))
#define LOW_HALF(a) _mm256_and_si256(a, _mm256_set1_epi32(0xffff))
#define HIGH_HALF(low, a) _mm256_or_si256(low, _mm256_slli_epi32(a, 16))
#include "omp.inc"
#include "lasso.inc"
#include "pursuits.inc"
#include "undef.h"

#define T double
#define GEMM atoms_gemm_f64
#define IN atoms_f64_in
#define OUT atoms_f64_out
#define FN(name) name##_avx2_f64
#define VLEN 4
#define VMAX(a, b) ((vec)_mm256_max_pd((__m256d)(a), (__m256d)(b)))
#define VMIN(a, b) ((vec)_mm256_min_pd((__m256d)(a), (__m256d)(b)))
#define VRCP(a) (1 / (a))
#define BCAST(a) ((vec)_mm256_set1_pd(a))
#define GE_LANES(a, b) _mm256_movemask_pd(_mm256_cmp_pd((__m256d)(a), (__m256d)(b), _CMP_GE_OQ))
#define EPS 0x1p-52
#define DEPENDENT 1e-12
#define NRM_FLOOR 1e-13
#define QUANTISED 0
#include "omp.inc"
#include "lasso.inc"
#include "pursuits.inc"
#include "undef.h"
#else
typedef int atoms_not_x86;
#endif
