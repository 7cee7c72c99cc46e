/* portable.c: the recovery kernels in plain C, the twin of the vector versions: nothing is kept at lower precision, so
 * every score is exact to rounding. */
#include "isa/portable.h"
#define INSTANCE portable
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
