/* avx2.h: AVX2 with fused multiply-add, 256-bit vectors. Included before all else, so that all of the file is compiled for it. */
#ifndef ATOMS_AVX2_H
#define ATOMS_AVX2_H

#pragma GCC target("avx2,fma")
#include <immintrin.h>

#include "vectors256.h"

VECTOR_FN vec_pairs pmadd(vec_pairs sum, vec_pairs a, vec_pairs b)
{
    return _mm256_add_epi32(sum, _mm256_madd_epi16(a, b));
}

#endif
