/* avx2_vnni.c: 16-bit rows, and float32 OMP that reads Gram matrices of 16 bits, for AVX-VNNI. */
#if defined(__x86_64__)
#include "isa/avx2_vnni.h"
#ifdef ATOMS_EVEX
#define INSTANCE avx2_vnni_evex
#else
#define INSTANCE avx2_vnni
#endif
#define UNITS 1
#include "templates.h"

#define SHORT_VECTORS 2
#include "short_rows.inc"

#define NUMBER f32
#include "omp.inc"
#else
typedef int atoms_not_x86;
#endif
