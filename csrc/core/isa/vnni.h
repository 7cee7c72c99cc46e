/* vnni.h: AVX-512 with its products of 8 and 16 bits. Included before all else, so that all of the file is compiled for it. */
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")
#include <immintrin.h>
