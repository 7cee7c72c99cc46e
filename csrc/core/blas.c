/* blas.c: the one file that knows which BLAS there is. */
#define _POSIX_C_SOURCE 200809L /* blis.h uses POSIX thread types */
#include "internal.h"

#ifdef ATOMS_WITH_BLIS
#include <blis.h>
#endif

#ifdef ATOMS_WITH_BLIS

int atoms_has_blis(void)
{
    return 1;
}

const char *atoms_blis_version(void)
{
    return bli_info_get_version_str();
}

const char *atoms_blis_kernels(void)
{
    return bli_arch_string(bli_arch_query_id());
}

#else

int atoms_has_blis(void)
{
    return 0;
}

const char *atoms_blis_version(void)
{
    return "";
}

const char *atoms_blis_kernels(void)
{
    return "";
}

#endif

/* Fortran is column-major, so C' = B' A' is asked for; a stride pair (s, 1) is a plain matrix
 * of leading dimension s there, (1, s) a transposed one. */
#define FORTRAN_GEMM(T, fn)                                                                       \
    char ta = csa == 1 ? 'N' : 'T', tb = csb == 1 ? 'N' : 'T';                                    \
    int im = (int)m, in = (int)n, ik = (int)k;                                                    \
    int lda = (int)(csa == 1 ? ATOMS_MAX(rsa, k) : ATOMS_MAX(csa, m));                            \
    int ldb = (int)(csb == 1 ? ATOMS_MAX(rsb, n) : ATOMS_MAX(csb, k));                            \
    int ldc = (int)ATOMS_MAX(rsc, n);                                                             \
    fn(&tb, &ta, &in, &im, &ik, &alpha, (T *)b, &ldb, (T *)a, &lda, &beta, c, &ldc)

void atoms_gemm_f32(const atoms_ctx *ctx, int64_t m, int64_t n, int64_t k, float alpha,
                    const float *a, int64_t rsa, int64_t csa, const float *b, int64_t rsb,
                    int64_t csb, float beta, float *c, int64_t rsc, int64_t csc)
{
    if (m <= 0 || n <= 0)
        return;
#ifdef ATOMS_WITH_BLIS
    if (ctx->p.blas == ATOMS_BLAS_BLIS) {
        rntm_t rntm;
        bli_rntm_init(&rntm); /* one thread, this call only */
        bli_sgemm_ex(BLIS_NO_TRANSPOSE, BLIS_NO_TRANSPOSE, m, n, k, &alpha, (float *)a, rsa, csa,
                     (float *)b, rsb, csb, &beta, c, rsc, csc, NULL, &rntm);
        return;
    }
#endif
    if (csc != 1) { /* C' = B' A' has unit column stride */
        atoms_gemm_f32(ctx, n, m, k, alpha, b, csb, rsb, a, csa, rsa, beta, c, csc, rsc);
        return;
    }
    FORTRAN_GEMM(float, ctx->p.f_sgemm);
}

void atoms_gemm_f64(const atoms_ctx *ctx, int64_t m, int64_t n, int64_t k, double alpha,
                    const double *a, int64_t rsa, int64_t csa, const double *b, int64_t rsb,
                    int64_t csb, double beta, double *c, int64_t rsc, int64_t csc)
{
    if (m <= 0 || n <= 0)
        return;
#ifdef ATOMS_WITH_BLIS
    if (ctx->p.blas == ATOMS_BLAS_BLIS) {
        rntm_t rntm;
        bli_rntm_init(&rntm);
        bli_dgemm_ex(BLIS_NO_TRANSPOSE, BLIS_NO_TRANSPOSE, m, n, k, &alpha, (double *)a, rsa, csa,
                     (double *)b, rsb, csb, &beta, c, rsc, csc, NULL, &rntm);
        return;
    }
#endif
    if (csc != 1) {
        atoms_gemm_f64(ctx, n, m, k, alpha, b, csb, rsb, a, csa, rsa, beta, c, csc, rsc);
        return;
    }
    FORTRAN_GEMM(double, ctx->p.f_dgemm);
}
