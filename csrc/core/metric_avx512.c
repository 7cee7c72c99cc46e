/* metric_avx512.c: the metric's kernels for AVX-512. */
#if defined(__x86_64__)
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,prefer-vector-width=512")
#define LANES 8
#define ROWS 8
#define VECS 3
#define VECS_8 1
#define VECS_16 2
#define TABLE atoms_metric_avx512
#include "metric_template.h"
#else
typedef int atoms_metric_avx512_unused;
#endif
