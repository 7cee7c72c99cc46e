/* recovery_f32x16.h: what the recovery_*_impl.h files want of 16 floats in AVX-512. */
#define T float
#define GEMM atoms_gemm_f32
#define IN atoms_f32_in
#define OUT atoms_f32_out
#define VLEN 16
#define VMAX(a, b) ((vec)_mm512_max_ps((__m512)(a), (__m512)(b)))
#define VMIN(a, b) ((vec)_mm512_min_ps((__m512)(a), (__m512)(b)))
#define VRCP(a) ((vec)_mm512_rcp14_ps((__m512)(a))) /* relative error below 4e-4: the slack covers it */
#define VSUM(a) _mm512_reduce_add_ps((__m512)(a))
#define VTOP(a) _mm512_reduce_max_ps((__m512)(a))
#define VLOW(a) _mm512_reduce_min_ps((__m512)(a))
#define BCAST(a) ((vec)_mm512_set1_ps(a))
#define GE_LANES(a, b) _mm512_cmp_ps_mask((__m512)(a), (__m512)(b), _CMP_GE_OQ)
#define EPS 0x1p-23
#define DEPENDENT 3e-5f
#define NRM_FLOOR 1e-5f
#define QUANTISED 1
#define IVEC __m512i
#define IBCAST(a) _mm512_set1_epi32(a)
#define TO_T(a) ((vec)_mm512_cvtepi32_ps(a))
#define TO_INT(a) _mm512_cvtps_epi32((__m512)(a))
#define LOW_HALF(a) _mm512_and_si512(a, _mm512_set1_epi32(0xffff))
#define HIGH_HALF(low, a) _mm512_or_si512(low, _mm512_slli_epi32(a, 16))
