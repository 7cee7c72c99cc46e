/* avx2.c: the theory room's kernels for AVX2 with fused multiply-add (for fma() alone). */
#if defined(__x86_64__)
#include "isa/avx2.h"
#pragma GCC optimize("fp-contract=off")
#define KERNELS atoms_theory_avx2
#include "kernels.inc"
#else
typedef int atoms_theory_avx2_unused;
#endif
