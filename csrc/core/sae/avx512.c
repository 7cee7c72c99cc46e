/* avx512.c: the kernels for AVX-512. */
#if defined(__x86_64__)
#include "isa/avx512.h"
#pragma GCC target("prefer-vector-width=512")
#define K(name) name##_avx512
#define LANES 16
#include "kernels.inc"

#endif
