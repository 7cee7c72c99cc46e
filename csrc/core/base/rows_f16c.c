/* rows_f16c.c: float16 to float32 by the instruction that CPUs with AVX2 have for it. */
#include "core.h"

#if defined(__x86_64__)
#pragma GCC target("avx,f16c")
#include <immintrin.h>

void atoms_f16_row_f16c(int64_t n, const uint16_t *x, float *out)
{
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) {
        __m256 low = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(x + i)));
        __m256 high = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(x + i + 8)));
        _mm256_storeu_ps(out + i, low);
        _mm256_storeu_ps(out + i + 8, high);
    }
    for (; i < n; i++)
        out[i] = _cvtsh_ss(x[i]);
}
#else
typedef int atoms_rows_f16c_unused;
#endif
