/* vectors512.h: 512-bit vectors, for avx512.h and vnni.h, which differ in how they multiply pairs. */
#ifndef ATOMS_VECTORS512_H
#define ATOMS_VECTORS512_H

#include "vectors.h"

VECTORS(f32, float, 16)
VECTORS(f64, double, 8)

VECTOR_FN vec_f32 vset_f32(float a)
{
    return (vec_f32)_mm512_set1_ps(a);
}
VECTOR_FN vec_f64 vset_f64(double a)
{
    return (vec_f64)_mm512_set1_pd(a);
}
VECTOR_FN vec_f32 vmax_f32(vec_f32 a, vec_f32 b)
{
    return (vec_f32)_mm512_max_ps((__m512)a, (__m512)b);
}
VECTOR_FN vec_f64 vmax_f64(vec_f64 a, vec_f64 b)
{
    return (vec_f64)_mm512_max_pd((__m512d)a, (__m512d)b);
}
VECTOR_FN vec_f32 vmin_f32(vec_f32 a, vec_f32 b)
{
    return (vec_f32)_mm512_min_ps((__m512)a, (__m512)b);
}
VECTOR_FN vec_f64 vmin_f64(vec_f64 a, vec_f64 b)
{
    return (vec_f64)_mm512_min_pd((__m512d)a, (__m512d)b);
}
VECTOR_FN vec_f32 vrcp_f32(vec_f32 a)
{
    return (vec_f32)_mm512_rcp14_ps((__m512)a);
}
VECTOR_FN vec_f64 vrcp_f64(vec_f64 a)
{
    return 1 / a;
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

#define PAIRS 1
typedef __m512i vec_pairs;

VECTOR_FN vec_pairs pset(int32_t w)
{
    return _mm512_set1_epi32(w);
}
VECTOR_FN vec_f32 pfloat(vec_pairs a)
{
    return (vec_f32)_mm512_cvtepi32_ps(a);
}
VECTOR_FN vec_pairs pround(vec_f32 v)
{
    return _mm512_cvtps_epi32((__m512)v);
}
VECTOR_FN vec_pairs plow(vec_pairs a)
{
    return _mm512_and_si512(a, _mm512_set1_epi32(0xffff));
}
VECTOR_FN vec_pairs pjoin(vec_pairs low, vec_pairs high)
{
    return _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
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
