/* vnni.c: the integer screens for AVX-512 with VNNI. */
#if defined(__x86_64__)
#include "isa/vnni.h"
#include "kernels.h"
#define K(name) name##_vnni
#define SCREEN_VECTORS 4
#include "screens.inc"

const sae_screens atoms_screens_vnni = {screen_int8_vnni, screen_int16_vnni, ATOMS_SCREEN_INT8};
#endif
