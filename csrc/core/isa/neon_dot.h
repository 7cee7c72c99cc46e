/* neon_dot.h: 64-bit ARM with dot products of bytes (FEAT_DotProd), 128-bit vectors. Included before all else, so that all
 * of the file is compiled for it. */
#ifndef ATOMS_NEON_DOT_H
#define ATOMS_NEON_DOT_H

#ifdef ATOMS_NEON_I8MM /* the file has products of matrices too */
#pragma GCC target("arch=armv8.2-a+dotprod+i8mm")
#else
#pragma GCC target("arch=armv8.2-a+dotprod")
#endif
#include <arm_neon.h>

#include "vectors.h"

/* The words of the screen of bytes alone: all else is as fast in plain C, and arm_neon.h has other functions by the names
 * of some. */
#define PAIRS 0
VECTORS(f32, float, 4)

typedef int32_t vec_pairs __attribute__((vector_size(16), may_alias));

VECTOR_FN vec_f32 vset_f32(float a)
{
    return (vec_f32)vdupq_n_f32(a);
}
VECTOR_FN vec_pairs pset(int32_t w)
{
    return (vec_pairs)vdupq_n_s32(w);
}
VECTOR_FN vec_f32 pfloat(vec_pairs a)
{
    return (vec_f32)vcvtq_f32_s32((int32x4_t)a);
}
VECTOR_FN unsigned vnlt_f32(vec_f32 a, vec_f32 b)
{
    static const uint32_t bits[4] = {1, 2, 4, 8};
    uint32x4_t less = vcltq_f32((float32x4_t)a, (float32x4_t)b);
    return vaddvq_u32(vbicq_u32(vld1q_u32(bits), less));
}

#define BYTES 1
#ifndef ATOMS_NEON_I8MM
/* Both factors are signed. */
#define BYTES_SIGNED 1
VECTOR_FN vec_pairs bsigned(vec_pairs a)
{
    return (vec_pairs)veorq_u8((uint8x16_t)a, vdupq_n_u8(0x80));
}
/* b's word is in one lane, which the instruction takes for all: nothing is spread. As assembly, in this order, for
 * gcc 12 spills sums. */
VECTOR_FN vec_pairs bload(const int32_t *from)
{
    vec_pairs word;
    __asm__ volatile("ldr %s0, %1" : "=w"(word) : "m"(*from));
    return word;
}
VECTOR_FN vec_pairs bmadd(vec_pairs sum, vec_pairs a, vec_pairs b)
{
    __asm__ volatile("sdot %0.4s, %1.16b, %2.4b[0]" : "+w"(sum) : "w"(a), "w"(b));
    return sum;
}
#endif

#endif
