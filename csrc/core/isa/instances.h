/* instances.h: the kernels of every room, compiled once for each instruction set.
 *
 * A room's kernels.h says what its kernels are, its *.inc file is the template, and portable.c, neon_dot.c, neon_i8mm.c,
 * avx2.c, avx2_vnni.c, avx512.c and vnni.c compile that for one instruction set each. This table is the one place that says which
 * of them a context uses. */
#ifndef ATOMS_INSTANCES_H
#define ATOMS_INSTANCES_H

#include "atoms.h"

#include <stdbool.h>

typedef struct {
    const struct metric_kernels *metric;
    const struct theory_kernels *theory;
    const struct omp_kernels *omp_f32, *omp_f64;
    const struct code_kernels *codes_f32, *codes_f64;
    const struct short_kernels *short_rows; /* NULL: none */
    const struct atom_kernels *atoms;
    const struct sae_kernels *sae;
    const struct sae_screens *screens;
} atoms_instances;

/* The best instruction set that this machine can run, of those up to `most`. */
atoms_isa atoms_cpu_isa_up_to(atoms_isa most);
#if defined(__x86_64__)
bool atoms_cpu_avx_vnni(void); /* VNNI in AVX2's encoding */
#endif

/* The kernels for it. */
const atoms_instances *atoms_instances_for(atoms_isa isa);

#endif
