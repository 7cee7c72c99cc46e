/* recovery_avx512.c: the recovery kernels with 512-bit vectors. */
#if defined(__x86_64__)
#include "isa/avx512.h"
#include "recovery.h"

#include <math.h>

#include "f32x16.h"
#define FN(name) name##_avx512_f32
#define MADD(sum, a, b) /* per word: sum + low a low b + high a high b */ _mm512_add_epi32(sum, _mm512_madd_epi16(a, b))
#include "omp.inc"
#include "lasso.inc"
#include "pursuits.inc"
#include "undef.h"

#define T double
#define GEMM atoms_gemm_f64
#define IN atoms_f64_in
#define OUT atoms_f64_out
#define FN(name) name##_avx512_f64
#define VLEN 8
#define VMAX(a, b) ((vec)_mm512_max_pd((__m512d)(a), (__m512d)(b)))
#define VMIN(a, b) ((vec)_mm512_min_pd((__m512d)(a), (__m512d)(b)))
#define VRCP(a) (1 / (a))
#define VSUM(a) _mm512_reduce_add_pd((__m512d)(a))
#define VTOP(a) _mm512_reduce_max_pd((__m512d)(a))
#define VLOW(a) _mm512_reduce_min_pd((__m512d)(a))
#define BCAST(a) ((vec)_mm512_set1_pd(a))
#define GE_LANES(a, b) _mm512_cmp_pd_mask((__m512d)(a), (__m512d)(b), _CMP_GE_OQ)
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
