/* neon_dot.c: the screen of bytes for 64-bit ARM with dot products. */
#if defined(__aarch64__)
#include "isa/neon_dot.h"
#include "kernels.h"
#define K(name) name##_neon_dot
#define SCREEN_VECTORS 4
#include "screens.inc"

const sae_screens atoms_screens_neon_dot = {screen_int8_neon_dot, sae_screen_int16_portable, ATOMS_SCREEN_INT8};
#endif
