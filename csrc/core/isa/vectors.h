/* vectors.h: what each instruction set's header says of vectors, and how.
 *
 *     vec_f32, VLEN_f32               VLEN floats; sums and products are C's own operators
 *     vec_u_f32                       the same at any float's address
 *     lanes_f32                       what comparing two of them gives: all bits or none, lane by lane
 *     vset_f32(a)                     a in every lane
 *     vmax_f32(a, b), vmin_f32(a, b)  lane by lane
 *     vrcp_f32(a)                     1 / a; of floats in vectors of 256 bits and more to a relative error of 4e-4 only
 *     vge_f32(a, b)                   bit k: a[k] >= b[k]
 *     vnlt_f32(a, b)                  bit k: not a[k] < b[k], which it is where either is NaN; of floats, with PAIRS
 *     vsum_f32(a), vtop_f32(a), vlow_f32(a)   over the lanes: sum, largest, smallest
 *
 * and all of it for double, f64, vrcp_f64 exact. With PAIRS 1 there are products of 16-bit integers too, two to a 32-bit
 * word (low half and high half), VLEN_f32 words to a vec_pairs:
 *
 *     pset(w)                    the word w in every lane
 *     pmadd(sum, a, b)           sum + low a low b + high a high b, in 32 bits
 *     pfloat(a), pround(v)       words to floats, floats to the nearest words
 *     plow(a), pjoin(low, high)  the low halves alone; them with other words as high halves
 *     pshorts(from)              words from 16-bit integers in memory
 *     pstore(to, a)              words to 16-bit integers in memory, what is beyond them saturated
 *
 * and with BYTES 1 of 8-bit integers, four to a word:
 *
 *     bmadd(sum, a, b)           sum + the products of a's bytes, unsigned, with b's, signed, in 32 bits
 *
 * unless BYTES_SIGNED says that a's are signed too: bsigned(a) then takes 128 from each, and b is bload(from), a word in
 * memory. */
#ifndef ATOMS_VECTORS_H
#define ATOMS_VECTORS_H

#include <stdint.h>

#define VECTOR_FN static inline __attribute__((always_inline))

#define VECTORS(number, type, n)                                                                                       \
    enum { VLEN_##number = n };                                                                                        \
    typedef type vec_##number __attribute__((vector_size(n * sizeof(type))));                                          \
    typedef type vec_u_##number __attribute__((vector_size(n * sizeof(type)), aligned(sizeof(type)), may_alias));      \
    typedef __typeof__((vec_##number){0} < (vec_##number){0}) lanes_##number;

/* For instruction sets without a reduction of their own: lane after lane. */
#define BY_LANE(name, number, next)                                                                                    \
    VECTOR_FN __typeof__((vec_##number){0}[0]) name##_##number(vec_##number v)                                         \
    {                                                                                                                  \
        __typeof__(v[0]) s = v[0];                                                                                     \
        for (int k = 1; k < VLEN_##number; k++)                                                                        \
            s = next;                                                                                                  \
        return s;                                                                                                      \
    }
#define REDUCTIONS_BY_LANE(number)                                                                                     \
    BY_LANE(vsum, number, s + v[k])                                                                                    \
    BY_LANE(vtop, number, s > v[k] ? s : v[k])                                                                         \
    BY_LANE(vlow, number, s < v[k] ? s : v[k])

#endif
