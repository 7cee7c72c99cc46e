/* avx512.h: AVX-512 F, BW, DQ and VL, 512-bit vectors. Included before all else, so that all of the file is compiled for it. */
#ifndef ATOMS_AVX512_H
#define ATOMS_AVX512_H

#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
#include <immintrin.h>

#include "vectors512.h"

VECTOR_FN vec_pairs pmadd(vec_pairs sum, vec_pairs a, vec_pairs b)
{
    return _mm512_add_epi32(sum, _mm512_madd_epi16(a, b));
}

#endif
