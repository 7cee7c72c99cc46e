/* accelerate.c: a library with the functions of Apple's Accelerate that the core calls, for machines that have none.
 * It counts the products, and those that Accelerate would have cut among threads. */
#include <stdatomic.h>
#include <stdlib.h>

static atomic_int n_products, n_threaded, first;
static _Thread_local unsigned threading; /* 0: several, as Accelerate begins */

static void count(void)
{
    const char *value = getenv("VECLIB_MAXIMUM_THREADS");
    if (!n_products++)
        first = value ? atoi(value) : 0;
    n_threaded += threading == 0 && first != 1;
}

int products(void)
{
    return n_products;
}

int threaded(void)
{
    return n_threaded;
}

unsigned threading_now(void)
{
    return threading;
}

#ifndef BEFORE_MACOS_15
int BLASSetThreading(unsigned to)
{
    threading = to;
    return 0;
}

unsigned BLASGetThreading(void)
{
    return threading;
}
#endif

#define GEMM(name, T)                                                                                                  \
    int name(char *ta, char *tb, int *m, int *n, int *k, T *alpha, T *a, int *lda, T *b, int *ldb, T *beta, T *c,      \
             int *ldc)                                                                                                 \
    {                                                                                                                  \
        count();                                                                                                       \
        for (int j = 0; j < *n; j++)                                                                                   \
            for (int i = 0; i < *m; i++) {                                                                             \
                T sum = 0, *out = &c[i + (long)j * *ldc];                                                              \
                for (int p = 0; p < *k; p++)                                                                           \
                    sum += a[*ta == 'N' ? i + (long)p * *lda : p + (long)i * *lda] *                                   \
                           b[*tb == 'N' ? p + (long)j * *ldb : j + (long)p * *ldb];                                    \
                *out = *alpha * sum + (*beta == 0 ? 0 : *beta * *out);                                                 \
            }                                                                                                          \
        return 0;                                                                                                      \
    }
GEMM(sgemm_, float)
GEMM(dgemm_, double)
