/* portable.c: the metric's kernels for every machine: vectors of two doubles, for SSE2, NEON or plain C. */
#define LANES 2
#define ROWS 4
#define VECS 2
#define VECS_8 2
#define VECS_16 2
#define TABLE atoms_metric_portable
#include "kernels.inc"
