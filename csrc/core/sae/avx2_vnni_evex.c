/* avx2_vnni_evex.c: the same for CPUs that have these instructions as part of AVX-512 alone. */
#define ATOMS_EVEX
#include "avx2_vnni.c"
