/* vectors512.h: 512-bit vectors, for avx512.h and vnni.h, which differ in how they multiply pairs. */
#ifndef ATOMS_VECTORS512_H
#define ATOMS_VECTORS512_H

#include "vectors.h"

VECTORS(f32, float, 16)
VECTORS(f64, double, 8)

#define PAIRS 1
#define MM(name) _mm512_##name
typedef __m512 lanes_ps;
typedef __m512d lanes_pd;
typedef __m512i vec_pairs;
#include "vectors_x86.h"

VECTOR_FN vec_f32 vrcp_f32(vec_f32 a)
{
    return (vec_f32)_mm512_rcp14_ps((__m512)a);
}
VECTOR_FN unsigned vge_f32(vec_f32 a, vec_f32 b)
{
    return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_GE_OQ);
}
VECTOR_FN unsigned vnlt_f32(vec_f32 a, vec_f32 b)
{
    return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_NLT_UQ);
}
VECTOR_FN unsigned vge_f64(vec_f64 a, vec_f64 b)
{
    return _mm512_cmp_pd_mask((__m512d)a, (__m512d)b, _CMP_GE_OQ);
}
VECTOR_FN float vsum_f32(vec_f32 a)
{
    return _mm512_reduce_add_ps((__m512)a);
}
VECTOR_FN double vsum_f64(vec_f64 a)
{
    return _mm512_reduce_add_pd((__m512d)a);
}
VECTOR_FN float vtop_f32(vec_f32 a)
{
    return _mm512_reduce_max_ps((__m512)a);
}
VECTOR_FN double vtop_f64(vec_f64 a)
{
    return _mm512_reduce_max_pd((__m512d)a);
}
VECTOR_FN float vlow_f32(vec_f32 a)
{
    return _mm512_reduce_min_ps((__m512)a);
}
VECTOR_FN double vlow_f64(vec_f64 a)
{
    return _mm512_reduce_min_pd((__m512d)a);
}

VECTOR_FN vec_pairs pshorts(const int16_t *from)
{
    return _mm512_cvtepi16_epi32(_mm256_loadu_si256((const __m256i *)from));
}
VECTOR_FN void pstore(int16_t *to, vec_pairs a)
{
    _mm256_storeu_si256((__m256i *)to, _mm512_cvtsepi32_epi16(a));
}

#endif
