/* vnni.c: float32 OMP for machines with AVX-512 VNNI: pairs multiplied by one instruction, 16-bit Gram matrices read. */
#if defined(__x86_64__)
#include "isa/vnni.h"
#define INSTANCE vnni
#define UNITS 1
#include "templates.h"

static inline __attribute__((always_inline)) vec_f32 load_units(const int16_t *row)
{
    return pfloat(_mm512_cvtepi16_epi32(_mm256_loadu_si256((const __m256i *)row)));
}

#define NUMBER f32
#include "omp.inc"
#else
typedef int atoms_not_x86;
#endif
