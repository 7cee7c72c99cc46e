/* avx2_vnni.c: the integer screens for AVX-VNNI. */
#if defined(__x86_64__)
#include "isa/avx2_vnni.h"
#include "kernels.h"
#ifdef ATOMS_EVEX
#define K(name) name##_avx2_vnni_evex
#else
#define K(name) name##_avx2_vnni
#endif
#define SCREEN_VECTORS 2
#include "screens.inc"

const sae_screens K(atoms_screens) = {K(screen_int8), K(screen_int16), ATOMS_SCREEN_INT8};
#endif
