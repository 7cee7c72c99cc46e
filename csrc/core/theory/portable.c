/* theory_portable.c: the loops of theory_kernels.h for any machine. */
#pragma GCC optimize("fp-contract=off")
#define KERNELS atoms_theory_portable
#include "kernels.inc"
