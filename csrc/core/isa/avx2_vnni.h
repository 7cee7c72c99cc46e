/* avx2_vnni.h: AVX2 with products of 8 and 16 bits: AVX-VNNI. Included before all else, so that all of the file is
 * compiled for it.
 *
 * With ATOMS_EVEX those two instructions alone are encoded as AVX-512 VNNI has them on 256 bits, for CPUs that have that
 * and not AVX-VNNI: the same code then runs, is tested and can be asked for there. */
#ifndef ATOMS_AVX2_VNNI_H
#define ATOMS_AVX2_VNNI_H

#pragma GCC target("avx2,fma")
#include <immintrin.h>

#include "vectors256.h"

#ifdef ATOMS_EVEX
#define ENCODING "%{evex%} "
#else
#define ENCODING "%{vex%} "
#endif

/* As assembly: compilers need not know AVX-VNNI, and gcc 12 spills the accumulators of the intrinsics. */
VECTOR_FN vec_pairs pmadd(vec_pairs sum, vec_pairs a, vec_pairs b)
{
    __asm__(ENCODING "vpdpwssd %2, %1, %0" : "+x"(sum) : "x"(a), "x"(b));
    return sum;
}

#define BYTES 1
VECTOR_FN vec_pairs bmadd(vec_pairs sum, vec_pairs a, vec_pairs b)
{
    __asm__(ENCODING "vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(a), "x"(b));
    return sum;
}

#endif
