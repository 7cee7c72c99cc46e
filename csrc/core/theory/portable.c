/* portable.c: the theory room's kernels for every machine. */
#pragma GCC optimize("fp-contract=off")
#define KERNELS atoms_theory_portable
#include "kernels.inc"
