/* avx2.c: the recovery kernels with 256-bit vectors. */
#if defined(__x86_64__)
#include "isa/avx2.h"
#define INSTANCE avx2
#include "templates.h"

#define NUMBER f32
#include "omp.inc"
#include "codes.inc"
#include "spikes.inc"
#include "atoms.inc"
#undef NUMBER

#define NUMBER f64
#include "omp.inc"
#include "codes.inc"
#else
typedef int atoms_not_x86;
#endif
