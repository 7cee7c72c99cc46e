/* avx2.c: the kernels for AVX2, and the int16 screen, which serves AVX-512 without VNNI too. */
#if defined(__x86_64__)
#include "isa/avx2.h"
#define K(name) name##_avx2
#define LANES 8
#include "kernels.inc"

/* Where there are no products of bytes: vpmaddwd and vpaddd do twice the multiplications of float32's fused
 * multiply-add, on half the bytes, and 16 bits let next to nothing through that float32 would not. */
#define SCREEN_VECTORS 2
#include "screens.inc"

const sae_screens atoms_screens_avx2 = {sae_screen_int8_portable, screen_int16_avx2, ATOMS_SCREEN_INT16};

/* What AVX-512 without VNNI has: BLIS's products are as fast. */
const sae_screens atoms_screens_avx512 = {sae_screen_int8_portable, screen_int16_avx2, ATOMS_SCREEN_F32};
#endif
