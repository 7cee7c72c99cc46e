/* cpu.c: which instruction sets this machine can run. */
#include "instances.h"

#if defined(__x86_64__)
#include <cpuid.h>

bool atoms_cpu_avx_vnni(void)
{
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1);
}

static bool runs(atoms_isa isa)
{
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    const bool vnni = avx512 && __builtin_cpu_supports("avx512vnni");
    switch (isa) {
    case ATOMS_ISA_PORTABLE: return true;
    case ATOMS_ISA_NEON_DOT:
    case ATOMS_ISA_NEON_I8MM: return false;
    case ATOMS_ISA_AVX2: return avx2;
    case ATOMS_ISA_AVX2_VNNI: return vnni || (avx2 && atoms_cpu_avx_vnni());
    case ATOMS_ISA_AVX512: return avx512;
    case ATOMS_ISA_AVX512_VNNI: return vnni;
    case ATOMS_ISA_AVX512_BF16: return vnni && __builtin_cpu_supports("avx512bf16");
    }
    return false;
}
#else
#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>

static bool products(atoms_isa isa)
{
    return isa == ATOMS_ISA_NEON_DOT ? getauxval(AT_HWCAP) >> 20 & 1   /* HWCAP_ASIMDDP */
                                     : getauxval(AT_HWCAP2) >> 13 & 1; /* HWCAP2_I8MM */
}
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>

static bool products(atoms_isa isa)
{
    const char *name = isa == ATOMS_ISA_NEON_DOT ? "hw.optional.arm.FEAT_DotProd" : "hw.optional.arm.FEAT_I8MM";
    int found = 0;
    size_t size = sizeof found;
    return sysctlbyname(name, &found, &size, NULL, 0) == 0 && found;
}
#else
static bool products(atoms_isa isa)
{
    (void)isa;
    return false;
}
#endif

static bool runs(atoms_isa isa)
{
    return isa == ATOMS_ISA_PORTABLE || (isa <= ATOMS_ISA_NEON_I8MM && products(ATOMS_ISA_NEON_DOT) && products(isa));
}
#endif

atoms_isa atoms_cpu_isa_up_to(atoms_isa most)
{
    while (!runs(most))
        most--;
    return most;
}

atoms_isa atoms_cpu_isa(void)
{
    return atoms_cpu_isa_up_to(ATOMS_ISA_AVX512_BF16);
}

const char *atoms_isa_name(atoms_isa isa)
{
    static const char *const names[] = {"portable",  "neon_dot", "neon_i8mm",   "avx2",
                                        "avx2_vnni", "avx512",   "avx512_vnni", "avx512_bf16"};
    return (unsigned)isa <= ATOMS_ISA_AVX512_BF16 ? names[isa] : "unknown";
}
