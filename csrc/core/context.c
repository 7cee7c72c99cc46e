/* context.c: settings, instruction sets, memory, cancelling. */
#define _DEFAULT_SOURCE /* madvise */
#include "internal.h"

#include <time.h>
#ifdef _OPENMP
#include <omp.h>
#endif
#if defined(__linux__)
#include <sys/mman.h>
#endif

#define HUGE_PAGE ((size_t)2 << 20)

const char *atoms_status_message(atoms_status status)
{
    switch (status) {
    case ATOMS_OK: return "ok";
    case ATOMS_ERR_ARGUMENT: return "argument outside its documented range";
    case ATOMS_ERR_MEMORY: return "out of memory";
    case ATOMS_ERR_NONFINITE: return "NaN or infinity met";
    case ATOMS_ERR_SINGULAR: return "matrix is not positive definite";
    case ATOMS_ERR_CANCELLED: return "cancelled";
    }
    return "unknown status";
}

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

void atoms_ctx_params_init(atoms_ctx_params *params)
{
    memset(params, 0, sizeof *params);
    params->num_threads = 1;
    params->max_isa = ATOMS_ISA_AVX512_BF16;
    params->blas = atoms_has_blis() ? ATOMS_BLAS_BLIS : ATOMS_BLAS_FORTRAN;
}

atoms_status atoms_ctx_new(const atoms_ctx_params *params, atoms_ctx **ctx)
{
    if (params->num_threads < 1 || (unsigned)params->max_isa > ATOMS_ISA_AVX512_BF16 ||
        (unsigned)params->blas > ATOMS_BLAS_FORTRAN)
        return ATOMS_ERR_ARGUMENT;
    if (params->blas == ATOMS_BLAS_BLIS ? !atoms_has_blis() : !params->f_sgemm || !params->f_dgemm)
        return ATOMS_ERR_ARGUMENT;
    atoms_ctx *c = calloc(1, sizeof *c);
    if (!c)
        return ATOMS_ERR_MEMORY;
    atoms_blas_start();
    c->p = *params;
    c->isa = ATOMS_MIN(params->max_isa, atoms_cpu_isa());
    *ctx = c;
    return ATOMS_OK;
}

void atoms_ctx_free(atoms_ctx *ctx)
{
    free(ctx);
}

int atoms_ctx_num_threads(const atoms_ctx *ctx)
{
    return ctx->p.num_threads;
}

atoms_isa atoms_ctx_isa(const atoms_ctx *ctx)
{
    return ctx->isa;
}

void *atoms_alloc(int64_t n, size_t size)
{
    if (n < 0 || (n > 0 && size > (SIZE_MAX - 2 * ATOMS_ALIGN) / (size_t)n))
        return NULL;
    size_t bytes = (size_t)n * size;
    bytes = (bytes + ATOMS_ALIGN - 1) / ATOMS_ALIGN * ATOMS_ALIGN;
#ifdef MADV_HUGEPAGE
    /* rows met in no order: with 4 KB pages, half the time goes to address translation */
    if (bytes >= 2 * HUGE_PAGE) {
        void *p = aligned_alloc(HUGE_PAGE, (bytes + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE);
        if (p)
            (void)madvise(p, bytes / HUGE_PAGE * HUGE_PAGE, MADV_HUGEPAGE);
        return p;
    }
#endif
    return aligned_alloc(ATOMS_ALIGN, bytes ? bytes : ATOMS_ALIGN);
}

void *atoms_calloc(int64_t n, size_t size)
{
    void *p = atoms_alloc(n, size);
    if (p)
        memset(p, 0, (size_t)n * size);
    return p;
}

void atoms_free(void *p)
{
    free(p);
}

atoms_status atoms_poll(const atoms_ctx *ctx, atoms_pollster *pollster)
{
    if (!ctx->p.poll)
        return ATOMS_OK;
    struct timespec t;
    timespec_get(&t, TIME_UTC);
    double now = (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
    if (now >= pollster->last && now - pollster->last < 0.1)
        return ATOMS_OK;
    pollster->last = now;
    return ctx->p.poll(ctx->p.poll_data) ? ATOMS_ERR_CANCELLED : ATOMS_OK;
}

static atoms_status team_status(atoms_team *team)
{
    atoms_status status;
#pragma omp atomic read
    status = team->status;
    return status;
}

bool atoms_team_stopped(atoms_team *team)
{
    return team_status(team) < 0;
}

void atoms_team_report(atoms_team *team, atoms_status status)
{
    if (status == ATOMS_OK && atoms_thread() == 0)
        status = atoms_poll(team->ctx, &team->pollster);
    if (status < 0) {
#pragma omp atomic write
        team->status = status;
    }
}

atoms_status atoms_team_ask(atoms_team *team)
{
    atoms_team_report(team, ATOMS_OK);
    return team_status(team);
}
