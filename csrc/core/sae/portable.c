/* sae_kernels_portable.c: the vector loops of SAE training for one instruction set. */

#define K(name) name##_portable
#define LANES 4
#include "kernels.inc"
