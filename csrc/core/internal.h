/* internal.h: what the rooms of the core share. Not installed. */
#ifndef ATOMS_INTERNAL_H
#define ATOMS_INTERNAL_H

#include "atoms.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#ifdef _OPENMP
#include <omp.h>
#endif

#define ATOMS_ALIGN 64
#define ATOMS_MIN(a, b) ((a) < (b) ? (a) : (b))
#define ATOMS_MAX(a, b) ((a) > (b) ? (a) : (b))

struct atoms_ctx {
    atoms_ctx_params p;
    atoms_isa isa;
};

/* 64-byte aligned; NULL when n * size overflows or memory is short. Size 0 gives a valid block. */
void *atoms_alloc(int64_t n, size_t size);
void *atoms_calloc(int64_t n, size_t size);
void atoms_free(void *p);

/* The caller's number within its team. */
static inline int atoms_thread(void)
{
#ifdef _OPENMP
    return omp_get_thread_num();
#else
    return 0;
#endif
}

/* Asks the caller whether to stop. Cheap enough for once per tile; call it only from OpenMP
 * thread 0. Returns ATOMS_OK or ATOMS_ERR_CANCELLED. */
typedef struct {
    double last;
} atoms_pollster;
atoms_status atoms_poll(const atoms_ctx *ctx, atoms_pollster *pollster);

/* What the threads of a parallel region tell each other: that one has failed, or that the caller
 * wants to stop. A thread asks before each task and reports after it; one that got no memory for
 * its workspace reports that before it starts. */
typedef struct {
    const atoms_ctx *ctx;
    atoms_status status; /* ATOMS_OK, or what somebody reported last */
    atoms_pollster pollster;
} atoms_team;
bool atoms_team_stopped(atoms_team *team);
/* From OpenMP thread 0 it also asks the caller. */
void atoms_team_report(atoms_team *team, atoms_status status);
/* In the middle of a long task: ATOMS_OK, or the status to give it up with. */
atoms_status atoms_team_ask(atoms_team *team);

/* C (m, n) = alpha A (m, k) B (k, n) + beta C, strides in elements. Fast when one stride of each
 * pair is 1 and the other at least the length it steps over; right, by plain loops, for any
 * others. Runs on the calling thread only, from any thread, inside or outside OpenMP regions.
 * beta = 0 overwrites C, NaN included. */
void atoms_gemm_f32(const atoms_ctx *ctx, int64_t m, int64_t n, int64_t k, float alpha,
                    const float *a, int64_t rsa, int64_t csa, const float *b, int64_t rsb,
                    int64_t csb, float beta, float *c, int64_t rsc, int64_t csc);
void atoms_gemm_f64(const atoms_ctx *ctx, int64_t m, int64_t n, int64_t k, double alpha,
                    const double *a, int64_t rsa, int64_t csa, const double *b, int64_t rsb,
                    int64_t csb, double beta, double *c, int64_t rsc, int64_t csc);

/* Starts BLIS, once, with the kernel family that suits this CPU; nothing without BLIS. */
void atoms_blas_start(void);
/* The kernel families to try on a CPU where BLIS may choose badly, best first, NULL at the end;
 * NULL where its own choice stands. vendor and family as CPUID gives them. */
const char *const *atoms_blis_families(const char *vendor, int family, atoms_isa isa);

size_t atoms_dtype_size(atoms_dtype type); /* bytes of one element */

#if defined(__x86_64__)
/* out (n) float32 = x (n) float16, on CPUs with F16C only. */
void atoms_f16_row_f16c(int64_t n, const uint16_t *x, float *out);
#endif

/* out (n, d) float32 or float64 = rows of x (element strides rs, cs), converted. */
void atoms_rows_to_f32(int64_t n, int64_t d, const void *x, atoms_dtype type, int64_t rs,
                       int64_t cs, float *out);
void atoms_rows_to_f64(int64_t n, int64_t d, const void *x, atoms_dtype type, int64_t rs,
                       int64_t cs, double *out);

#endif
