/* vnni.h: AVX-512 with its products of 8 and 16 bits. Included before all else, so that all of the file is compiled for it. */
#ifndef ATOMS_VNNI_H
#define ATOMS_VNNI_H

#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")
#include <immintrin.h>

#include "vectors512.h"

/* As assembly, for gcc 12 spills the accumulators of the intrinsics. */
VECTOR_FN vec_pairs pmadd(vec_pairs sum, vec_pairs a, vec_pairs b)
{
    __asm__("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
    return sum;
}

#define BYTES 1
VECTOR_FN vec_pairs bmadd(vec_pairs sum, vec_pairs a, vec_pairs b)
{
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
    return sum;
}

#endif
