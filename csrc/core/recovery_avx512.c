/* recovery_avx512.c: the recovery kernels with 512-bit vectors. */
#if defined(__x86_64__)
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
#include "recovery.h"

#include <immintrin.h>
#include <math.h>

#define T float
#define GEMM atoms_gemm_f32
#define FN(name) name##_avx512_f32
#define VLEN 16
#define VMAX(a, b) ((vec)_mm512_max_ps((__m512)(a), (__m512)(b)))
#define VMIN(a, b) ((vec)_mm512_min_ps((__m512)(a), (__m512)(b)))
#define VRCP(a) ((vec)_mm512_rcp14_ps((__m512)(a))) /* relative error below 4e-4: the slack covers it */
#define BCAST(a) ((vec)_mm512_set1_ps(a))
#define ANY_GE(a, b) (_mm512_cmp_ps_mask((__m512)(a), (__m512)(b), _CMP_GE_OQ) != 0)
#define EPS 0x1p-23
#define DEPENDENT 3e-5f
#define NRM_FLOOR 1e-5f
#define QUANTISED 1
#define IVEC __m512i
#define IBCAST(a) _mm512_set1_epi32(a)
#define MADD(sum, a, b) /* per word: sum + low a low b + high a high b */ \
    _mm512_add_epi32(sum, _mm512_madd_epi16(a, b))
#define TO_T(a) ((vec)_mm512_cvtepi32_ps(a))
#define TO_INT(a) _mm512_cvtps_epi32((__m512)(a))
#define LOW_HALF(a) _mm512_and_si512(a, _mm512_set1_epi32(0xffff))
#define HIGH_HALF(low, a) _mm512_or_si512(low, _mm512_slli_epi32(a, 16))
#include "recovery_omp_impl.h"
#include "recovery_l1_impl.h"
#include "recovery_pursuit_impl.h"
#include "recovery_undef.h"

#define T double
#define GEMM atoms_gemm_f64
#define FN(name) name##_avx512_f64
#define VLEN 8
#define VMAX(a, b) ((vec)_mm512_max_pd((__m512d)(a), (__m512d)(b)))
#define VMIN(a, b) ((vec)_mm512_min_pd((__m512d)(a), (__m512d)(b)))
#define VRCP(a) (1 / (a))
#define BCAST(a) ((vec)_mm512_set1_pd(a))
#define ANY_GE(a, b) (_mm512_cmp_pd_mask((__m512d)(a), (__m512d)(b), _CMP_GE_OQ) != 0)
#define EPS 0x1p-52
#define DEPENDENT 1e-12
#define NRM_FLOOR 1e-13
#define QUANTISED 0
#include "recovery_omp_impl.h"
#include "recovery_l1_impl.h"
#include "recovery_pursuit_impl.h"
#include "recovery_undef.h"
#else
typedef int atoms_not_x86;
#endif
