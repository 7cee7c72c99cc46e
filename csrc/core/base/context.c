/* context.c: what a call is given to work with, checked once: threads, instruction set, BLAS. */
#include "core.h"

const char *atoms_status_message(atoms_status status)
{
    switch (status) {
    case ATOMS_OK: return "ok";
    case ATOMS_ERR_ARGUMENT: return "argument outside its documented range";
    case ATOMS_ERR_MEMORY: return "out of memory";
    case ATOMS_ERR_NONFINITE: return "NaN or infinity met";
    case ATOMS_ERR_CANCELLED: return "cancelled";
    case ATOMS_ERR_THREADS: return "the system does not give this process so many threads";
    }
    return "unknown status";
}

void atoms_ctx_params_init(atoms_ctx_params *params)
{
    memset(params, 0, sizeof *params);
    params->num_threads = 1;
    params->max_isa = ATOMS_ISA_AVX512_BF16;
    params->blas = atoms_has_accelerate() ? ATOMS_BLAS_ACCELERATE
                   : atoms_has_blis()     ? ATOMS_BLAS_BLIS
                                          : ATOMS_BLAS_FORTRAN;
}

static bool has_blas(const atoms_ctx_params *p)
{
    return p->blas == ATOMS_BLAS_BLIS         ? atoms_has_blis()
           : p->blas == ATOMS_BLAS_ACCELERATE ? atoms_has_accelerate()
                                              : p->f_sgemm && p->f_dgemm;
}

atoms_status atoms_ctx_new(const atoms_ctx_params *params, atoms_ctx **ctx)
{
    if (params->num_threads < 1 || params->num_threads > ATOMS_MAX_THREADS ||
        (unsigned)params->max_isa > ATOMS_ISA_AVX512_BF16 || (unsigned)params->blas > ATOMS_BLAS_ACCELERATE ||
        !has_blas(params))
        return ATOMS_ERR_ARGUMENT;
    atoms_status status = atoms_try_threads(params->num_threads);
    if (status == ATOMS_OK)
        status = atoms_blas_watch_forks();
    if (status == ATOMS_OK && params->blas == ATOMS_BLAS_BLIS)
        status = atoms_blas_start();
    if (status < 0)
        return status;
    atoms_ctx *c = calloc(1, sizeof *c);
    if (!c)
        return ATOMS_ERR_MEMORY;
    c->memory_limited = atoms_memory_limited();
    c->p = *params;
    if (params->blas == ATOMS_BLAS_ACCELERATE)
        atoms_accelerate(&c->p);
    c->isa = atoms_cpu_isa_up_to(params->max_isa);
    c->kernels = atoms_instances_for(c->isa);
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
