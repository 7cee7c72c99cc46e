/* sae_kernels_avx512.c: the vector loops of SAE training for one instruction set. */
#if defined(__x86_64__)
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma,prefer-vector-width=512")
#define K(name) name##_avx512
#define LANES 16
#include "sae_kernels.inc"

const atoms_sae_kernels *atoms_sae_kernels_avx512(void);
const atoms_sae_kernels *atoms_sae_kernels_avx512(void)
{
    return &K(table);
}
#endif
