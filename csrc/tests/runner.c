/* runner.c: runs all tests, or those whose name contains an argument; exit status 1 on failure. */
#define _POSIX_C_SOURCE 200809L
#include "check.h"

#include <errno.h>
#include <time.h>

static atoms_test *first, **last = &first;
static int failures;

void atoms_test_add(atoms_test *test)
{
    *last = test;
    last = &test->next;
}

void atoms_test_failed(const char *file, int line, const char *condition)
{
    printf("%s:%d: failed: %s\n", file, line, condition);
    failures++;
}

/* ------------------------------------------------------ plain Fortran BLAS */

int atoms_test_fortran_calls, atoms_test_fortran_ms;
atomic_int atoms_test_fortran_inside;

static void take_time(void)
{
    atoms_test_fortran_inside++;
    nanosleep(&(struct timespec){0, atoms_test_fortran_ms * 1000000L}, NULL);
}

#define FORTRAN_GEMM(name, T)                                                                                          \
    void name(char *ta, char *tb, int *m, int *n, int *k, T *alpha, T *a, int *lda, T *b, int *ldb, T *beta, T *c,     \
              int *ldc)                                                                                                \
    {                                                                                                                  \
        _Pragma("omp atomic") atoms_test_fortran_calls++;                                                              \
        if (atoms_test_fortran_ms)                                                                                     \
            take_time();                                                                                               \
        for (int j = 0; j < *n; j++)                                                                                   \
            for (int i = 0; i < *m; i++) {                                                                             \
                T sum = 0, *out = &c[i + (int64_t)j * *ldc];                                                           \
                for (int p = 0; p < *k; p++)                                                                           \
                    sum += (*ta == 'N' ? a[i + (int64_t)p * *lda] : a[p + (int64_t)i * *lda]) *                        \
                           (*tb == 'N' ? b[p + (int64_t)j * *ldb] : b[j + (int64_t)p * *ldb]);                         \
                *out = *alpha * sum + (*beta == 0 ? 0 : *beta * *out);                                                 \
            }                                                                                                          \
        if (atoms_test_fortran_ms)                                                                                     \
            atoms_test_fortran_inside--;                                                                               \
    }
FORTRAN_GEMM(atoms_test_sgemm, float)
FORTRAN_GEMM(atoms_test_dgemm, double)

/* ---------------------------------------------------------------- contexts */

enum { THREADS = 2 }; /* 1 and 3 threads */

int atoms_test_contexts(void)
{
    return (atoms_has_blis() + 1) * (atoms_cpu_isa() + 1) * THREADS;
}

atoms_ctx *atoms_test_context(int i)
{
    atoms_ctx_params params;
    atoms_ctx_params_init(&params);
    params.num_threads = i % THREADS ? 3 : 1;
    i /= THREADS;
    params.max_isa = (atoms_isa)(i % (atoms_cpu_isa() + 1));
    params.blas = i / (atoms_cpu_isa() + 1) ? ATOMS_BLAS_BLIS : ATOMS_BLAS_FORTRAN;
    params.f_sgemm = atoms_test_sgemm;
    params.f_dgemm = atoms_test_dgemm;
    atoms_ctx *ctx = NULL;
    CHECK(atoms_ctx_new(&params, &ctx) == ATOMS_OK);
    return ctx;
}

/* -------------------------------------------------------------- allocation */

/* The linker sends the core's calls of aligned_alloc here (-Wl,--wrap=aligned_alloc). */
static int fail_in;
static bool served;
void *__real_aligned_alloc(size_t align, size_t size);
void *__wrap_aligned_alloc(size_t align, size_t size);

void *__wrap_aligned_alloc(size_t align, size_t size)
{
    int left = 0;
#pragma omp critical(atoms_test_alloc)
    if (fail_in > 0) {
        left = fail_in--;
        served |= left == 1;
    }
    if (left != 1)
        return __real_aligned_alloc(align, size);
    errno = ENOMEM;
    return NULL;
}

bool atoms_test_fail_alloc(int nth)
{
    bool before = served;
    served = false;
    fail_in = nth;
    return before;
}

double atoms_test_random(uint64_t *state)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (double)(*state >> 33) * 0x1p-30 - 1;
}

int main(int argc, char **argv)
{
    int run = 0;
    for (atoms_test *t = first; t; t = t->next) {
        bool wanted = argc < 2;
        for (int i = 1; i < argc; i++)
            wanted |= strstr(t->name, argv[i]) != NULL;
        if (!wanted)
            continue;
        int before = failures;
        t->run();
        run++;
        printf("%-44s %s\n", t->name, failures == before ? "ok" : "FAILED");
        fflush(stdout);
    }
    printf("C tests: %d run, %d failed checks\n", run, failures);
    return failures || !run;
}
