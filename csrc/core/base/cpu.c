/* cpu.c: which instruction sets this machine can run. */
#include "core.h"

atoms_isa atoms_cpu_isa(void)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma"))
        return ATOMS_ISA_PORTABLE;
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
        !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl"))
        return ATOMS_ISA_AVX2;
    if (!__builtin_cpu_supports("avx512vnni"))
        return ATOMS_ISA_AVX512;
    if (!__builtin_cpu_supports("avx512bf16"))
        return ATOMS_ISA_AVX512_VNNI;
    return ATOMS_ISA_AVX512_BF16;
#else
    return ATOMS_ISA_PORTABLE;
#endif
}

const char *atoms_isa_name(atoms_isa isa)
{
    static const char *const names[] = {"portable", "avx2", "avx512", "avx512_vnni", "avx512_bf16"};
    return (unsigned)isa <= ATOMS_ISA_AVX512_BF16 ? names[isa] : "unknown";
}
