/* vectors256.h: 256-bit vectors, for avx2.h and avx2_vnni.h, which differ in how they multiply pairs. */
#ifndef ATOMS_VECTORS256_H
#define ATOMS_VECTORS256_H

#include "vectors.h"

VECTORS(f32, float, 8)
VECTORS(f64, double, 4)
REDUCTIONS_BY_LANE(f32)
REDUCTIONS_BY_LANE(f64)

VECTOR_FN vec_f32 vset_f32(float a)
{
    return (vec_f32)_mm256_set1_ps(a);
}
VECTOR_FN vec_f64 vset_f64(double a)
{
    return (vec_f64)_mm256_set1_pd(a);
}
VECTOR_FN vec_f32 vmax_f32(vec_f32 a, vec_f32 b)
{
    return (vec_f32)_mm256_max_ps((__m256)a, (__m256)b);
}
VECTOR_FN vec_f64 vmax_f64(vec_f64 a, vec_f64 b)
{
    return (vec_f64)_mm256_max_pd((__m256d)a, (__m256d)b);
}
VECTOR_FN vec_f32 vmin_f32(vec_f32 a, vec_f32 b)
{
    return (vec_f32)_mm256_min_ps((__m256)a, (__m256)b);
}
VECTOR_FN vec_f64 vmin_f64(vec_f64 a, vec_f64 b)
{
    return (vec_f64)_mm256_min_pd((__m256d)a, (__m256d)b);
}
VECTOR_FN vec_f32 vrcp_f32(vec_f32 a)
{
    return (vec_f32)_mm256_rcp_ps((__m256)a);
}
VECTOR_FN vec_f64 vrcp_f64(vec_f64 a)
{
    return 1 / a;
}
VECTOR_FN unsigned vge_f32(vec_f32 a, vec_f32 b)
{
    return (unsigned)_mm256_movemask_ps(_mm256_cmp_ps((__m256)a, (__m256)b, _CMP_GE_OQ));
}
VECTOR_FN unsigned vnlt_f32(vec_f32 a, vec_f32 b)
{
    return (unsigned)_mm256_movemask_ps(_mm256_cmp_ps((__m256)a, (__m256)b, _CMP_NLT_UQ));
}
VECTOR_FN unsigned vge_f64(vec_f64 a, vec_f64 b)
{
    return (unsigned)_mm256_movemask_pd(_mm256_cmp_pd((__m256d)a, (__m256d)b, _CMP_GE_OQ));
}

#define PAIRS 1
typedef __m256i vec_pairs;

VECTOR_FN vec_pairs pset(int32_t w)
{
    return _mm256_set1_epi32(w);
}
VECTOR_FN vec_f32 pfloat(vec_pairs a)
{
    return (vec_f32)_mm256_cvtepi32_ps(a);
}
VECTOR_FN vec_pairs pround(vec_f32 v)
{
    return _mm256_cvtps_epi32((__m256)v);
}
VECTOR_FN vec_pairs plow(vec_pairs a)
{
    return _mm256_and_si256(a, _mm256_set1_epi32(0xffff));
}
VECTOR_FN vec_pairs pjoin(vec_pairs low, vec_pairs high)
{
    return _mm256_or_si256(low, _mm256_slli_epi32(high, 16));
}
VECTOR_FN vec_pairs pshorts(const int16_t *from)
{
    return _mm256_cvtepi16_epi32(_mm_loadu_si128((const __m128i *)from));
}
VECTOR_FN void pstore(int16_t *to, vec_pairs a)
{
    _mm_storeu_si128((__m128i *)to, _mm_packs_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1)));
}

#endif
