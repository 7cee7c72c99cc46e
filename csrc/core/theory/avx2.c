/* theory_avx2.c: the loops of theory_kernels.h for AVX2 and FMA. */
#if defined(__x86_64__)
#include "isa/avx2.h"
#pragma GCC optimize("fp-contract=off")
#define KERNELS atoms_theory_avx2
#include "kernels.inc"
#else
typedef int atoms_theory_avx2_is_for_x86;
#endif
