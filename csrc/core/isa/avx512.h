/* avx512.h: AVX-512 F, BW, DQ and VL, 512-bit vectors. Included before all else, so that all of the file is compiled for it. */
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
#include <immintrin.h>
