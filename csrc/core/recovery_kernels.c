/* recovery_kernels.c: which kernels a context and a precision get. */
#include "recovery.h"

typedef struct {
    const omp_kernel *omp[2]; /* float32, float64 */
    const code_kernel *code[2];
} kernel_set;

#define SET(isa)                                                                                  \
    {{&atoms_omp_##isa##_f32, &atoms_omp_##isa##_f64}, {&atoms_code_##isa##_f32, &atoms_code_##isa##_f64}}

static const kernel_set portable = SET(portable);
#if defined(__x86_64__)
static const kernel_set avx2 = SET(avx2), avx512 = SET(avx512);
#endif

static const kernel_set *set_for(const atoms_ctx *ctx)
{
#if defined(__x86_64__)
    if (ctx->isa >= ATOMS_ISA_AVX512)
        return &avx512;
    if (ctx->isa >= ATOMS_ISA_AVX2)
        return &avx2;
#endif
    (void)ctx;
    return &portable;
}

const omp_kernel *atoms_omp_kernel(const atoms_ctx *ctx, atoms_dtype type)
{
#if defined(__x86_64__)
    if (ctx->isa >= ATOMS_ISA_AVX512_VNNI && type == ATOMS_F32)
        return &atoms_omp_vnni_f32;
#endif
    return set_for(ctx)->omp[type == ATOMS_F64];
}

const code_kernel *atoms_code_kernel(const atoms_ctx *ctx, atoms_dtype type)
{
    return set_for(ctx)->code[type == ATOMS_F64];
}
