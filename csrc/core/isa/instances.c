/* instances.c: which instance of each room's kernels goes with which instruction set. */
#include "instances.h"

#define DECLARE(isa)                                                                                                   \
    extern const struct metric_kernels atoms_metric_##isa;                                                             \
    extern const struct theory_kernels atoms_theory_##isa;                                                             \
    extern const struct omp_kernels atoms_omp_##isa##_f32, atoms_omp_##isa##_f64;                                      \
    extern const struct code_kernels atoms_codes_##isa##_f32, atoms_codes_##isa##_f64;                                 \
    extern const struct atom_kernels atoms_atoms_##isa##_f32;                                                          \
    extern const struct sae_kernels atoms_sae_##isa;

#define ROOMS(isa)                                                                                                     \
    .metric = &atoms_metric_##isa, .theory = &atoms_theory_##isa, .omp_f32 = &atoms_omp_##isa##_f32,                   \
    .omp_f64 = &atoms_omp_##isa##_f64, .codes_f32 = &atoms_codes_##isa##_f32, .codes_f64 = &atoms_codes_##isa##_f64,   \
    .atoms = &atoms_atoms_##isa##_f32, .sae = &atoms_sae_##isa

DECLARE(portable)
extern const struct sae_screens atoms_screens_portable;

static const atoms_instances portable = {ROOMS(portable), .screens = &atoms_screens_portable};

#if defined(__x86_64__)
DECLARE(avx2)
DECLARE(avx512)
extern const struct sae_screens atoms_screens_avx2, atoms_screens_avx512;

static const atoms_instances avx2 = {ROOMS(avx2), .screens = &atoms_screens_avx2};
static const atoms_instances avx512 = {ROOMS(avx512), .screens = &atoms_screens_avx512};

/* of float32's OMP and of the integer screens alone there is a version with VNNI, and 16-bit rows are nothing else */
#define WITH_VNNI(vnni, isa)                                                                                           \
    extern const struct sae_screens atoms_screens_##vnni;                                                              \
    extern const struct omp_kernels atoms_omp_##vnni##_f32;                                                            \
    extern const struct short_kernels atoms_short_rows_##vnni;                                                         \
    static const atoms_instances vnni = {                                                                              \
        .metric = &atoms_metric_##isa,                                                                                 \
        .theory = &atoms_theory_##isa,                                                                                 \
        .omp_f32 = &atoms_omp_##vnni##_f32,                                                                            \
        .omp_f64 = &atoms_omp_##isa##_f64,                                                                             \
        .codes_f32 = &atoms_codes_##isa##_f32,                                                                         \
        .codes_f64 = &atoms_codes_##isa##_f64,                                                                         \
        .short_rows = &atoms_short_rows_##vnni,                                                                        \
        .atoms = &atoms_atoms_##isa##_f32,                                                                             \
        .sae = &atoms_sae_##isa,                                                                                       \
        .screens = &atoms_screens_##vnni,                                                                              \
    };
WITH_VNNI(vnni, avx512)
WITH_VNNI(avx2_vnni, avx2)
WITH_VNNI(avx2_vnni_evex, avx2)
#endif

#if defined(__aarch64__)
extern const struct sae_screens atoms_screens_neon_dot, atoms_screens_neon_i8mm;
static const atoms_instances neon_dot = {ROOMS(portable), .screens = &atoms_screens_neon_dot};
static const atoms_instances neon_i8mm = {ROOMS(portable), .screens = &atoms_screens_neon_i8mm};
#endif

const atoms_instances *atoms_instances_for(atoms_isa isa)
{
#if defined(__x86_64__)
    if (isa >= ATOMS_ISA_AVX512_VNNI)
        return &vnni;
    if (isa >= ATOMS_ISA_AVX512)
        return &avx512;
    if (isa >= ATOMS_ISA_AVX2_VNNI)
        return atoms_cpu_avx_vnni() ? &avx2_vnni : &avx2_vnni_evex;
    if (isa >= ATOMS_ISA_AVX2)
        return &avx2;
#elif defined(__aarch64__)
    if (isa >= ATOMS_ISA_NEON_I8MM)
        return &neon_i8mm;
    if (isa >= ATOMS_ISA_NEON_DOT)
        return &neon_dot;
#endif
    (void)isa;
    return &portable;
}
