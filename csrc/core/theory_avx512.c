/* theory_avx512.c: the loops of theory_kernels.h for AVX-512 F, BW, DQ and VL. */
#if defined(__x86_64__)
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")
#pragma GCC optimize("fp-contract=off")
#define KERNELS atoms_theory_avx512
#include "theory_kernels.h"
#else
typedef int atoms_theory_avx512_is_for_x86;
#endif
