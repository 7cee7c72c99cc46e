/* portable.h: the instruction set that every machine has: what plain C compiles to, in vectors of 16 bytes. */
#ifndef ATOMS_PORTABLE_H
#define ATOMS_PORTABLE_H

#include "vectors.h"

#define PAIRS 0

/* Lane by lane: C has no maximum of vector types. */
#define PORTABLE(number, type, n)                                                                                      \
    VECTORS(number, type, n)                                                                                           \
    REDUCTIONS_BY_LANE(number)                                                                                         \
    VECTOR_FN vec_##number vset_##number(type a)                                                                       \
    {                                                                                                                  \
        return (vec_##number){0} + a;                                                                                  \
    }                                                                                                                  \
    VECTOR_FN vec_##number vrcp_##number(vec_##number a)                                                               \
    {                                                                                                                  \
        return 1 / a;                                                                                                  \
    }                                                                                                                  \
    VECTOR_FN vec_##number vmax_##number(vec_##number a, vec_##number b)                                               \
    {                                                                                                                  \
        for (int k = 0; k < n; k++)                                                                                    \
            a[k] = a[k] > b[k] ? a[k] : b[k];                                                                          \
        return a;                                                                                                      \
    }                                                                                                                  \
    VECTOR_FN vec_##number vmin_##number(vec_##number a, vec_##number b)                                               \
    {                                                                                                                  \
        for (int k = 0; k < n; k++)                                                                                    \
            a[k] = a[k] < b[k] ? a[k] : b[k];                                                                          \
        return a;                                                                                                      \
    }                                                                                                                  \
    VECTOR_FN unsigned vge_##number(vec_##number a, vec_##number b)                                                    \
    {                                                                                                                  \
        unsigned lanes = 0;                                                                                            \
        for (int k = 0; k < n; k++)                                                                                    \
            lanes |= (unsigned)(a[k] >= b[k]) << k;                                                                    \
        return lanes;                                                                                                  \
    }
PORTABLE(f32, float, 4)
PORTABLE(f64, double, 2)
#undef PORTABLE

#endif
