/* vectors256.h: 256-bit vectors, for avx2.h and avx2_vnni.h, which differ in how they multiply pairs. */
#ifndef ATOMS_VECTORS256_H
#define ATOMS_VECTORS256_H

#include "vectors.h"

VECTORS(f32, float, 8)
VECTORS(f64, double, 4)
REDUCTIONS_BY_LANE(f32)
REDUCTIONS_BY_LANE(f64)

#define PAIRS 1
#define MM(name) _mm256_##name
typedef __m256 lanes_ps;
typedef __m256d lanes_pd;
typedef __m256i vec_pairs;
#include "vectors_x86.h"

VECTOR_FN vec_f32 vrcp_f32(vec_f32 a)
{
    return (vec_f32)_mm256_rcp_ps((__m256)a);
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

VECTOR_FN vec_pairs pshorts(const int16_t *from)
{
    return _mm256_cvtepi16_epi32(_mm_loadu_si128((const __m128i *)from));
}
VECTOR_FN void pstore(int16_t *to, vec_pairs a)
{
    _mm_storeu_si128((__m128i *)to, _mm_packs_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1)));
}

#endif
