/* check.h: a test is TEST(name) { ... CHECK(condition); ... } in any csrc/tests/test_*.c; it
 * enters itself in the list that runner.c goes through. */
#ifndef ATOMS_CHECK_H
#define ATOMS_CHECK_H

#include "base/core.h"

#include <math.h>
#include <stdatomic.h>
#include <stdio.h>

typedef struct atoms_test {
    const char *name;
    void (*run)(void);
    struct atoms_test *next;
} atoms_test;

void atoms_test_add(atoms_test *test);
void atoms_test_failed(const char *file, int line, const char *condition);

#define TEST(name)                                                                                                     \
    static void name(void);                                                                                            \
    __attribute__((constructor)) static void name##_add(void)                                                          \
    {                                                                                                                  \
        static atoms_test test = {#name, name, NULL};                                                                  \
        atoms_test_add(&test);                                                                                         \
    }                                                                                                                  \
    static void name(void)

/* Counts the failure, says where, goes on. */
#define CHECK(condition) ((condition) ? (void)0 : atoms_test_failed(__FILE__, __LINE__, #condition))

/* Contexts of every kind that this build and CPU have: BLAS x instruction set x threads. */
int atoms_test_contexts(void);
atoms_ctx *atoms_test_context(int i); /* the caller frees it */

/* A plain Fortran-style sgemm and dgemm, how often they were called, how long each takes at least (0 ms), and, where
 * that is not 0, how many run. */
extern int atoms_test_fortran_calls, atoms_test_fortran_ms;
extern atomic_int atoms_test_fortran_inside;
void atoms_test_sgemm(char *ta, char *tb, int *m, int *n, int *k, float *alpha, float *a, int *lda, float *b, int *ldb,
                      float *beta, float *c, int *ldc);
void atoms_test_dgemm(char *ta, char *tb, int *m, int *n, int *k, double *alpha, double *a, int *lda, double *b,
                      int *ldb, double *beta, double *c, int *ldc);

/* From now on the nth allocation (1: the next) of the core fails, then all is well again; 0: none
 * does. Tells whether a failure was served since the last call. */
bool atoms_test_fail_alloc(int nth);

/* The call again and again, its first, second, ... allocation failing, until none does: so it must say, and nothing
 * else. `nth`, an int of the caller's, ends as the one that was not needed, or `most`. */
#define CHECK_SHORT_MEMORY(nth, most, ...)                                                                             \
    for (nth = 1; nth < (most); nth++) {                                                                               \
        atoms_test_fail_alloc(nth);                                                                                    \
        atoms_status status = __VA_ARGS__;                                                                             \
        bool served = atoms_test_fail_alloc(0);                                                                        \
        CHECK(status == (served ? ATOMS_ERR_MEMORY : ATOMS_OK));                                                       \
        if (!served)                                                                                                   \
            break;                                                                                                     \
    }

/* A repeatable number in [-1, 1). */
double atoms_test_random(uint64_t *state);

#endif
