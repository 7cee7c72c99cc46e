/* avx512.c: the theory room's kernels for AVX-512. */
#if defined(__x86_64__)
#include "isa/avx512.h"
#pragma GCC target("prefer-vector-width=512")
#pragma GCC optimize("fp-contract=off")
#define KERNELS atoms_theory_avx512
#include "kernels.inc"
#else
typedef int atoms_theory_avx512_unused;
#endif
