/* instances.h: the kernels of every room, compiled once for each instruction set.
 *
 * A room's kernels.h says what its kernels are, its *.inc file is the template, and portable.c, avx2.c, avx512.c and
 * vnni.c compile that for one instruction set each. This table is the one place that says which of them a context uses. */
#ifndef ATOMS_INSTANCES_H
#define ATOMS_INSTANCES_H

#include "atoms.h"

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

/* The best that may be used up to this instruction set. */
const atoms_instances *atoms_instances_for(atoms_isa isa);

#endif
