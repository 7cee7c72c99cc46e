/* vnni.c: 16-bit rows, and float32 OMP that reads Gram matrices of 16 bits, for AVX-512 with VNNI. */
#if defined(__x86_64__)
#include "isa/vnni.h"
#define INSTANCE vnni
#define UNITS 1
#include "templates.h"

#define SHORT_VECTORS 4
#include "short_rows.inc"

#define NUMBER f32
#include "omp.inc"
#else
typedef int atoms_not_x86;
#endif
