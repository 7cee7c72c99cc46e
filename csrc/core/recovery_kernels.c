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

/* Codes longer than this go by 16-bit panels: over coherent atoms the bound of 8-bit ones grows
 * until it rules nothing out (64 atoms over an autoencoder's dictionary: 50 times slower). */
#define LONGEST_VNNI 16

const omp_kernel *atoms_omp_kernel(const atoms_ctx *ctx, atoms_dtype type, int64_t n_nonzero)
{
#if defined(__x86_64__)
    if (ctx->isa >= ATOMS_ISA_AVX512_VNNI && type == ATOMS_F32 && n_nonzero <= LONGEST_VNNI)
        return &atoms_omp_vnni_f32;
#endif
    (void)n_nonzero;
    return set_for(ctx)->omp[type == ATOMS_F64];
}

const code_kernel *atoms_code_kernel(const atoms_ctx *ctx, atoms_dtype type)
{
    return set_for(ctx)->code[type == ATOMS_F64];
}
