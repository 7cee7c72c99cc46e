/* avx2.h: AVX2 with fused multiply-add, 256-bit vectors. Included before all else, so that all of the file is compiled for it. */
#pragma GCC target("avx2,fma")
#include <immintrin.h>
