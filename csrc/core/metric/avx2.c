/* avx2.c: the metric's kernels for AVX2 with fused multiply-add. */
#if defined(__x86_64__)
#include "isa/avx2.h"
#define LANES 4
#define ROWS 4
#define VECS 3
#define VECS_8 2
#define VECS_16 2
#define TABLE atoms_metric_avx2
#include "kernels.inc"
#else
typedef int atoms_metric_avx2_unused;
#endif
