/* sae_kernels_avx2.c: the vector loops of SAE training for one instruction set. */
#if defined(__x86_64__)
#pragma GCC target("avx2,fma")
#define K(name) name##_avx2
#define LANES 8
#include "sae_kernels.inc"

const atoms_sae_kernels *atoms_sae_kernels_avx2(void);
const atoms_sae_kernels *atoms_sae_kernels_avx2(void)
{
    return &K(table);
}
#endif
