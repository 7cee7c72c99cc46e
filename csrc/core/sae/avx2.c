/* sae_kernels_avx2.c: the vector loops of SAE training for one instruction set. */
#if defined(__x86_64__)
#include "isa/avx2.h"
#define K(name) name##_avx2
#define LANES 8
#include "kernels.inc"

#endif
