/* blas.c: the one file that knows which BLAS there is. */
#define _POSIX_C_SOURCE 200809L /* setenv; and blis.h uses POSIX thread types */
#define _DARWIN_C_SOURCE        /* macOS's RTLD_DEFAULT, which the line above would hide */
#include "core.h"

#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>

#ifdef ATOMS_WITH_ACCELERATE
#include <dlfcn.h>
#endif
#ifdef ATOMS_WITH_BLIS
#include <blis.h>
#include <stdio.h>
#if defined(__x86_64__)
#include <cpuid.h>
#endif
#endif

/* ------------------------------------------------------------------ gate */

/* The buffers of one product: KC x NC and MC x KC of BLIS's widest type, and what is small beside them. */
#define BUFFERS ((size_t)32 << 20)

/* Who is in a product, and who must wait. BLIS and OpenBLAS guard their buffers by locks that they do not take at a
 * fork: a child of a fork in the middle of another thread's product would wait for ever. So a fork waits for the
 * products that run, and what comes meanwhile waits for the fork. */
static struct {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    atomic_int inside; /* products that run now */
    atomic_int forks;  /* that run or wait now */
    bool started, tried;
} gate = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, 0, 0, false, false};

static void before_fork(void)
{
    pthread_mutex_lock(&gate.lock);
    gate.forks++;
    while (gate.inside)
        pthread_cond_wait(&gate.changed, &gate.lock);
}

static void after_fork_in_parent(void)
{
    gate.forks--;
    pthread_cond_broadcast(&gate.changed);
    pthread_mutex_unlock(&gate.lock);
}

/* None of those who waited, or had just come to wait, are here. */
static void after_fork_in_child(void)
{
    pthread_mutex_init(&gate.lock, NULL);
    pthread_cond_init(&gate.changed, NULL);
    gate.inside = gate.forks = 0;
}

static bool watched;

static void watch_forks(void)
{
    watched = !pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
}

atoms_status atoms_blas_watch_forks(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, watch_forks);
    return watched ? ATOMS_OK : ATOMS_ERR_MEMORY;
}

void atoms_blas_enter(const atoms_ctx *ctx)
{
    gate.inside++;
    if (!gate.forks && !ctx->memory_limited)
        return;
    pthread_mutex_lock(&gate.lock);
    gate.inside--;
    pthread_cond_broadcast(&gate.changed);
    /* each of those inside may still be about to take its own buffers */
    while (gate.forks ||
           (ctx->memory_limited && gate.inside && !atoms_memory_left((size_t)(gate.inside + 1) * BUFFERS)))
        pthread_cond_wait(&gate.changed, &gate.lock);
    gate.inside++;
    pthread_mutex_unlock(&gate.lock);
}

void atoms_blas_leave(const atoms_ctx *ctx)
{
    gate.inside--;
    if (!gate.forks && !ctx->memory_limited)
        return;
    pthread_mutex_lock(&gate.lock);
    pthread_cond_broadcast(&gate.changed);
    pthread_mutex_unlock(&gate.lock);
}

/* ----------------------------------------------------------- environment */

#if defined(ATOMS_WITH_BLIS) || defined(ATOMS_WITH_ACCELERATE)

/* A library that reads a variable once, when it starts, sees `value` (NULL: none); what was there is returned, to be put
 * back. */
static char *with_variable(const char *name, const char *value)
{
    const char *before = getenv(name);
    char *saved = before ? strdup(before) : NULL;
    if (value)
        setenv(name, value, 1);
    else
        unsetenv(name);
    return saved;
}

static void put_back(const char *name, char *saved)
{
    free(with_variable(name, saved));
    free(saved);
}

#endif

/* --------------------------------------------------------- kernel family */

/* BLIS picks its kernels by CPU model. To a release older than the CPU an AMD model is unknown,
 * and it falls back to generic kernels at a third of the speed; on an Intel model whose name it
 * cannot read it does not dare to use AVX-512. So: where BLIS is known to choose badly, these are
 * the families to try, best first. */
const char *const *atoms_blis_families(const char *vendor, int family, atoms_isa isa)
{
    /* AMD: 512-bit kernels pay from Zen 5 (family 1Ah) on; on Zen 4, whose vector units are 256
     * bits wide, the 256-bit kernels measured faster. A zen4 of a newer release knows better. */
    static const char *const zen5[] = {"zen5", "zen4", "skx", "zen3", "zen2", "zen", "haswell", NULL};
    static const char *const zen4[] = {"zen4", "zen3", "zen2", "zen", "haswell", NULL};
    static const char *const avx2[] = {"zen3", "zen2", "zen", "haswell", NULL};
    static const char *const skx[] = {"skx", "haswell", NULL};
    if (isa < ATOMS_ISA_AVX2)
        return NULL;
    if (!strcmp(vendor, "GenuineIntel")) /* with bfloat16: a server with two 512-bit units */
        return isa >= ATOMS_ISA_AVX512_BF16 ? skx : NULL;
    if (!strcmp(vendor, "AuthenticAMD") && family < 0x19)
        return NULL; /* Zen 2 and older: any release knows them */
    return isa < ATOMS_ISA_AVX512 ? avx2 : family < 0x1a ? zen4 : zen5;
}

#ifdef ATOMS_WITH_BLIS

/* The kernel families that this BLIS was configured with, by name, with the numbers under which
 * its environment variable BLIS_ARCH_TYPE knows them. */
static const struct {
    const char *name;
    int id;
} configured[] = {
#ifdef BLIS_CONFIG_ZEN5
    {"zen5", BLIS_ARCH_ZEN5},
#endif
#ifdef BLIS_CONFIG_ZEN4
    {"zen4", BLIS_ARCH_ZEN4},
#endif
#ifdef BLIS_CONFIG_ZEN3
    {"zen3", BLIS_ARCH_ZEN3},
#endif
#ifdef BLIS_CONFIG_ZEN2
    {"zen2", BLIS_ARCH_ZEN2},
#endif
#ifdef BLIS_CONFIG_ZEN
    {"zen", BLIS_ARCH_ZEN},
#endif
#ifdef BLIS_CONFIG_SKX
    {"skx", BLIS_ARCH_SKX},
#endif
#ifdef BLIS_CONFIG_HASWELL
    {"haswell", BLIS_ARCH_HASWELL},
#endif
    {"generic", BLIS_ARCH_GENERIC},
};

/* The number of the first of these families that BLIS has, or -1. The library that was loaded may
 * number them otherwise than the header did, so it is asked for the name. */
static int first_configured(const char *const *families)
{
    for (; families && *families; families++)
        for (size_t i = 0; i < sizeof configured / sizeof *configured; i++)
            if (!strcmp(configured[i].name, *families) && !strcmp(bli_arch_string(configured[i].id), *families))
                return configured[i].id;
    return -1;
}

/* BLIS aborts the process on a BLIS_ARCH_TYPE it was not configured with (and reads a word as 0,
 * whatever that is): only numbers it has may reach it. */
static bool usable(const char *value)
{
    char *end;
    long id = strtol(value, &end, 10);
    for (size_t i = 0; end != value && !*end && i < sizeof configured / sizeof *configured; i++)
        if (configured[i].id == id)
            return true;
    return false;
}

static int wanted_family(void)
{
#if defined(__x86_64__)
    unsigned eax, word[4] = {0};
    char vendor[13] = {0};
    __cpuid(0, eax, word[0], word[2], word[1]);
    memcpy(vendor, word, 12);
    __cpuid(1, eax, word[0], word[1], word[2]);
    int family = (int)(eax >> 8 & 15);
    if (family == 15)
        family += (int)(eax >> 20 & 255);
    return first_configured(atoms_blis_families(vendor, family, atoms_cpu_isa()));
#else
    return -1;
#endif
}

/* BLIS reads its environment once, at its first call: set what is wanted, start it, and put the
 * environment back. A usable choice of the user's stands. */
static void start_blis(void)
{
    const char *name = "BLIS_ARCH_TYPE", *value = getenv(name);
    char number[16];
    if (value && usable(value)) {
        bli_init();
        return;
    }
    int family = wanted_family();
    snprintf(number, sizeof number, "%d", family);
    char *saved = with_variable(name, family < 0 ? NULL : number);
    bli_init();
    put_back(name, saved);
}

/* A product large enough for BLIS to take the buffers that it then keeps. */
static bool try_product(void)
{
    const int64_t n = 640;
    float *a = atoms_calloc(2 * n * n, sizeof *a), one = 1, zero = 0;
    if (a && atoms_memory_left(BUFFERS)) {
        rntm_t rntm = BLIS_RNTM_INITIALIZER;
        bli_rntm_set_num_threads(1, &rntm);
        bli_sgemm_ex(BLIS_NO_TRANSPOSE, BLIS_NO_TRANSPOSE, n, n, n, &one, a, n, 1, a, n, 1, &zero, a + n * n, n, 1,
                     NULL, &rntm);
        gate.tried = true;
    }
    atoms_free(a);
    return gate.tried;
}

atoms_status atoms_blas_start(void)
{
    bool limited = atoms_memory_limited();
    atoms_status status = ATOMS_OK;
    pthread_mutex_lock(&gate.lock);
    if (!gate.started) {
        if (limited && !atoms_memory_left(BUFFERS))
            status = ATOMS_ERR_MEMORY;
        else {
            start_blis();
            gate.started = true;
        }
    }
    if (status == ATOMS_OK && limited && !gate.tried && !try_product())
        status = ATOMS_ERR_MEMORY;
    pthread_mutex_unlock(&gate.lock);
    return status;
}

int atoms_has_blis(void)
{
    return 1;
}

const char *atoms_blis_version(void)
{
    return atoms_blas_start() < 0 ? "" : bli_info_get_version_str();
}

const char *atoms_blis_kernels(void)
{
    return atoms_blas_start() < 0 ? "" : bli_arch_string(bli_arch_query_id());
}

#else

atoms_status atoms_blas_start(void)
{
    return ATOMS_OK;
}

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

/* ------------------------------------------------------------ Accelerate */

enum { MULTI_THREADED, SINGLE_THREADED }; /* Accelerate's BLAS_THREADING */

/* A setting of each thread, from macOS 15 on; NULL before, and without Accelerate. */
static int (*set_threading)(unsigned);
static unsigned (*get_threading)(void);

/* Products of this thread by this thread alone, from here on; returns what was set, for threads_again. */
static unsigned one_thread(const atoms_ctx *ctx)
{
    if (ctx->p.blas != ATOMS_BLAS_ACCELERATE || !set_threading)
        return SINGLE_THREADED;
    unsigned before = get_threading();
    if (before != SINGLE_THREADED)
        set_threading(SINGLE_THREADED);
    return before;
}

static void threads_again(unsigned before)
{
    if (before != SINGLE_THREADED)
        set_threading(before);
}

#ifdef ATOMS_WITH_ACCELERATE

/* As Accelerate exports them. Its headers ask for a compiler that knows Apple's blocks: GCC does not. */
void sgemm_(char *, char *, int *, int *, int *, float *, float *, int *, float *, int *, float *, float *, int *);
void dgemm_(char *, char *, int *, int *, int *, double *, double *, int *, double *, int *, double *, double *, int *);

/* Before macOS 15 the first product reads from the environment, once, how many threads there may be. */
static void first_product(void)
{
    const char *name = "VECLIB_MAXIMUM_THREADS";
    char *saved = with_variable(name, "1"), no = 'N';
    int n = 1;
    float one = 1, zero = 0, product;
    sgemm_(&no, &no, &n, &n, &n, &one, &one, &n, &one, &n, &zero, &product, &n);
    put_back(name, saved);
}

static void start_accelerate(void)
{
    *(void **)&set_threading = dlsym(RTLD_DEFAULT, "BLASSetThreading");
    *(void **)&get_threading = dlsym(RTLD_DEFAULT, "BLASGetThreading");
    if (!set_threading || !get_threading) {
        set_threading = NULL;
        first_product();
    }
}

void atoms_accelerate(atoms_ctx_params *params)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, start_accelerate);
    params->f_sgemm = sgemm_;
    params->f_dgemm = dgemm_;
}

int atoms_has_accelerate(void)
{
    return 1;
}

#else

void atoms_accelerate(atoms_ctx_params *params)
{
    (void)params;
}

int atoms_has_accelerate(void)
{
    return 0;
}

#endif

/* -------------------------------------------------------------- products */

/* BLIS ends the process, and Fortran BLAS returns without a word, when the strides of a matrix
 * do not fit its shape. Brings those of a (m, n) matrix into the form that every BLAS takes: one
 * is 1, the other at least the length it steps over; along an axis of length 1 it is never used,
 * so it may be anything. False when the matrix has some other layout. */
static bool tidy_strides(int64_t m, int64_t n, int64_t *rs, int64_t *cs)
{
    if (n == 1)
        *cs = m == 1 || *rs != 1 ? 1 : m;
    if (m == 1)
        *rs = *cs == 1 ? n : 1;
    return (*cs == 1 && *rs >= n) || (*rs == 1 && *cs >= m);
}

static bool fits_int(int64_t x, int64_t y, int64_t z)
{
    return x <= INT_MAX && y <= INT_MAX && z <= INT_MAX;
}

/* Products of fewer rows or columns are mostly BLIS's packing of the other matrix, which its kernels for small ones do without. */
#define FEW 16

#define T float
#define IN atoms_f32_in
#define OUT atoms_f32_out
#define GEMM atoms_gemm_f32
#define BLIS_GEMM bli_sgemm_ex
#define FORTRAN f_sgemm
#include "gemm.inc"
#undef T
#undef IN
#undef OUT
#undef GEMM
#undef BLIS_GEMM
#undef FORTRAN

#define T double
#define IN atoms_f64_in
#define OUT atoms_f64_out
#define GEMM atoms_gemm_f64
#define BLIS_GEMM bli_dgemm_ex
#define FORTRAN f_dgemm
#include "gemm.inc"
