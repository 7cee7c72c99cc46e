/* avx512.c: the metric's kernels for AVX-512. */
#if defined(__x86_64__)
#include "isa/avx512.h"
#pragma GCC target("prefer-vector-width=512")
#define LANES 8
#define ROWS 8
#define VECS 3
#define VECS_8 1
#define VECS_16 2
#define TABLE atoms_metric_avx512
#include "kernels.inc"
#else
typedef int atoms_metric_avx512_unused;
#endif
