/* sae_kernels_portable.c: the vector loops of SAE training for one instruction set. */

#define K(name) name##_portable
#define LANES 4
#include "sae_kernels.inc"

const atoms_sae_kernels *atoms_sae_kernels_portable(void);
const atoms_sae_kernels *atoms_sae_kernels_portable(void)
{
    return &K(table);
}

