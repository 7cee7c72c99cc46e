/* test_base.c: context, instruction sets, memory, polling, products, converters. */
#define _DEFAULT_SOURCE /* fork, nanosleep, MAP_ANONYMOUS */
#include "check.h"

#include <pthread.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* ----------------------------------------------------------------- context */

TEST(base_status_messages)
{
    for (int s = ATOMS_ERR_CANCELLED; s <= ATOMS_OK; s++) {
        CHECK(strcmp(atoms_status_message((atoms_status)s), "unknown status"));
        for (int t = s + 1; t <= ATOMS_OK; t++)
            CHECK(strcmp(atoms_status_message((atoms_status)s), atoms_status_message((atoms_status)t)));
    }
    CHECK(!strcmp(atoms_status_message((atoms_status)-99), "unknown status"));
}

TEST(base_isa_names)
{
    CHECK(!strcmp(atoms_isa_name(ATOMS_ISA_PORTABLE), "portable"));
    CHECK(!strcmp(atoms_isa_name(ATOMS_ISA_NEON_DOT), "neon_dot"));
    CHECK(!strcmp(atoms_isa_name(ATOMS_ISA_NEON_I8MM), "neon_i8mm"));
    CHECK(!strcmp(atoms_isa_name(ATOMS_ISA_AVX2_VNNI), "avx2_vnni"));
    CHECK(!strcmp(atoms_isa_name(ATOMS_ISA_AVX512_BF16), "avx512_bf16"));
    CHECK(!strcmp(atoms_isa_name((atoms_isa)99), "unknown"));
    CHECK(atoms_cpu_isa() >= ATOMS_ISA_PORTABLE && atoms_cpu_isa() <= ATOMS_ISA_AVX512_BF16);
    CHECK(atoms_cpu_isa_up_to(ATOMS_ISA_PORTABLE) == ATOMS_ISA_PORTABLE);
    CHECK(atoms_cpu_isa_up_to(ATOMS_ISA_AVX512_BF16) == atoms_cpu_isa());
    for (int isa = 0; isa <= ATOMS_ISA_AVX512_BF16; isa++)
        CHECK(atoms_cpu_isa_up_to((atoms_isa)isa) <= (atoms_isa)isa);
}

TEST(base_context_arguments)
{
    atoms_ctx_params good, bad;
    atoms_ctx *ctx = NULL;
    atoms_ctx_params_init(&good);
    good.f_sgemm = atoms_test_sgemm;
    good.f_dgemm = atoms_test_dgemm;

    bad = good, bad.num_threads = 0;
    CHECK(atoms_ctx_new(&bad, &ctx) == ATOMS_ERR_ARGUMENT && !ctx);
    bad = good, bad.max_isa = (atoms_isa)-1;
    CHECK(atoms_ctx_new(&bad, &ctx) == ATOMS_ERR_ARGUMENT && !ctx);
    bad = good, bad.max_isa = (atoms_isa)(ATOMS_ISA_AVX512_BF16 + 1);
    CHECK(atoms_ctx_new(&bad, &ctx) == ATOMS_ERR_ARGUMENT && !ctx);
    bad = good, bad.blas = (atoms_blas_kind)7;
    CHECK(atoms_ctx_new(&bad, &ctx) == ATOMS_ERR_ARGUMENT && !ctx);
    bad = good, bad.blas = ATOMS_BLAS_FORTRAN, bad.f_dgemm = NULL;
    CHECK(atoms_ctx_new(&bad, &ctx) == ATOMS_ERR_ARGUMENT && !ctx);
    bad = good, bad.blas = ATOMS_BLAS_BLIS;
    CHECK(atoms_ctx_new(&bad, &ctx) == (atoms_has_blis() ? ATOMS_OK : ATOMS_ERR_ARGUMENT));
    atoms_ctx_free(ctx);
    ctx = NULL;
    bad = good, bad.blas = ATOMS_BLAS_ACCELERATE;
    CHECK(atoms_ctx_new(&bad, &ctx) == (atoms_has_accelerate() ? ATOMS_OK : ATOMS_ERR_ARGUMENT));
    atoms_ctx_free(ctx);
    atoms_ctx_free(NULL);

    good.num_threads = 5;
    good.max_isa = ATOMS_ISA_PORTABLE;
    CHECK(atoms_ctx_new(&good, &ctx) == ATOMS_OK);
    CHECK(atoms_ctx_num_threads(ctx) == 5);
    CHECK(atoms_ctx_isa(ctx) == ATOMS_ISA_PORTABLE);
    atoms_ctx_free(ctx);
}

TEST(base_blis_families)
{
    const char *const *f;
    /* what BLIS knows is left to BLIS, and so is a CPU without AVX2 */
    CHECK(!atoms_blis_families("AuthenticAMD", 0x17, ATOMS_ISA_AVX2));
    CHECK(!atoms_blis_families("AuthenticAMD", 0x1a, ATOMS_ISA_PORTABLE));
    CHECK(!atoms_blis_families("GenuineIntel", 6, ATOMS_ISA_AVX2));
    CHECK(!atoms_blis_families("GenuineIntel", 6, ATOMS_ISA_AVX512_VNNI));
    CHECK((f = atoms_blis_families("GenuineIntel", 6, ATOMS_ISA_AVX512_BF16)) && !strcmp(f[0], "skx"));
    CHECK((f = atoms_blis_families("HygonGenuine", 0x18, ATOMS_ISA_AVX2)) && !strcmp(f[0], "zen3"));
    CHECK((f = atoms_blis_families("AuthenticAMD", 0x19, ATOMS_ISA_AVX2)) && !strcmp(f[0], "zen3"));
    /* no CPU is given a family beyond its instructions */
    for (int family = 0x17; family < 0x20; family++)
        for (f = atoms_blis_families("AuthenticAMD", family, ATOMS_ISA_AVX2); f && *f; f++)
            CHECK(strcmp(*f, "skx") && strcmp(*f, "zen4") && strcmp(*f, "zen5"));
    /* Zen 5 takes 512-bit kernels, Zen 4 of an old release does not */
    bool skx = false;
    for (f = atoms_blis_families("AuthenticAMD", 0x1a, ATOMS_ISA_AVX512_BF16); *f; f++)
        skx |= !strcmp(*f, "skx");
    CHECK(skx);
    for (f = atoms_blis_families("AuthenticAMD", 0x19, ATOMS_ISA_AVX512_BF16); *f; f++)
        CHECK(strcmp(*f, "skx"));
    if (atoms_has_blis()) {
        CHECK(*atoms_blis_version());
        CHECK(*atoms_blis_kernels());
    }
}

TEST(base_alloc)
{
    int64_t sizes[] = {0, 1, 7, 64, 65, 4097};
    for (int i = 0; i < 6; i++) {
        unsigned char *p = atoms_calloc(sizes[i], 3);
        CHECK(p && (uintptr_t)p % ATOMS_ALIGN == 0);
        for (int64_t j = 0; p && j < sizes[i] * 3; j++)
            CHECK(p[j] == 0);
        atoms_free(p);
    }
    CHECK(!atoms_alloc(-1, 4));
    CHECK(!atoms_alloc(INT64_MAX, 8));
    CHECK(!atoms_calloc(INT64_MAX / 2, 2));
    CHECK(!atoms_alloc(INT64_MAX, 1)); /* more than there can be */
    atoms_free(NULL);
    atoms_test_fail_alloc(1);
    CHECK(!atoms_calloc(10, 4));
    CHECK(atoms_test_fail_alloc(0));
}

typedef struct {
    double *numbers;
    char *letters, *none;
    int64_t *last;
} parts;

static void lay_out(parts *p, atoms_arena *arena)
{
    ATOMS_TAKE(arena, p->numbers, 3);
    ATOMS_TAKE(arena, p->letters, 65);
    ATOMS_TAKE(arena, p->none, 0);
    ATOMS_TAKE(arena, p->last, 8);
}

TEST(base_arena)
{
    parts p;
    atoms_arena arena = {0};
    lay_out(&p, &arena);
    CHECK(!p.numbers && !p.letters && !p.none && !p.last); /* counting alone */
    CHECK(arena.used == 64 + 128 + 0 + 64);
    CHECK(atoms_arena_open(&arena) && arena.used == 0);
    lay_out(&p, &arena);
    CHECK(arena.used == 64 + 128 + 0 + 64);
    CHECK((char *)p.numbers == arena.base);
    CHECK((uintptr_t)p.letters % ATOMS_ALIGN == 0 && p.letters == (char *)p.numbers + 64);
    CHECK((uintptr_t)p.last % ATOMS_ALIGN == 0 && (char *)p.last == p.letters + 128);
    memset(p.numbers, 1, 3 * sizeof *p.numbers); /* all of it is ours: the sanitizers look */
    memset(p.letters, 2, 65);
    memset(p.last, 3, 8 * sizeof *p.last);
    CHECK(*(char *)p.numbers == 1 && p.letters[64] == 2);
    atoms_arena_close(&arena);
    CHECK(!arena.base && !arena.used && !arena.overflow);
    atoms_arena_close(&arena); /* nothing to do */
}

TEST(base_arena_of_nothing)
{
    atoms_arena arena = {0};
    CHECK(!atoms_take(&arena, 0, 8) && arena.used == 0);
    CHECK(atoms_arena_open(&arena));
    CHECK(atoms_take(&arena, 0, 8) == arena.base); /* a valid address, though of no bytes */
    atoms_arena_close(&arena);
}

TEST(base_arena_too_large)
{
    const struct {
        int64_t n;
        size_t size;
    } sizes[] = {{-1, 4}, {INT64_MAX, 2}, {INT64_MAX, 8}, {INT64_MAX / 4, 8}, {4, SIZE_MAX / 2}};
    for (int i = 0; i < 5; i++) {
        atoms_arena arena = {0};
        CHECK(!atoms_take(&arena, sizes[i].n, sizes[i].size) && arena.overflow);
        CHECK(!atoms_take(&arena, 10, 8)); /* what comes after does not make it right */
        CHECK(!atoms_arena_open(&arena));
        atoms_arena_close(&arena);
    }
    atoms_arena arena = {0}; /* each fits, their sum does not */
    atoms_take(&arena, INT64_MAX / 4, 2);
    CHECK(!arena.overflow);
    atoms_take(&arena, INT64_MAX / 4, 2);
    atoms_take(&arena, INT64_MAX / 4, 2);
    CHECK(arena.overflow && arena.used <= INT64_MAX && !atoms_arena_open(&arena));
    atoms_arena_close(&arena);
}

TEST(base_arena_out_of_memory)
{
    atoms_arena arena = {0};
    atoms_take(&arena, 10, 8);
    atoms_test_fail_alloc(1);
    CHECK(!atoms_arena_open(&arena) && !arena.base);
    CHECK(atoms_test_fail_alloc(0));
    atoms_arena_close(&arena);
    atoms_take(&arena, INT64_MAX / 2, 1); /* a size that can be said but not had */
    CHECK(!arena.overflow && !atoms_arena_open(&arena));
    atoms_arena_close(&arena);
}

TEST(base_grow)
{
    void *list = NULL;
    int64_t cap = 0;
    CHECK(atoms_grow(&list, &cap, 0, 4) && !list && cap == 0); /* nothing wanted, nothing taken */
    CHECK(atoms_grow(&list, &cap, 100, 4) && list && cap >= 100);
    CHECK((uintptr_t)list % ATOMS_ALIGN == 0);
    memset(list, 0, (size_t)cap * 4);
    const void *before = list;
    CHECK(atoms_grow(&list, &cap, cap, 4) && list == before); /* what fits stays where it is */
    int64_t more = cap + 1;
    CHECK(atoms_grow(&list, &cap, more, 4) && cap >= more);
    memset(list, 0, (size_t)cap * 4);
    atoms_test_fail_alloc(1);
    CHECK(!atoms_grow(&list, &cap, cap + 1, 4));
    CHECK(atoms_test_fail_alloc(0));
    CHECK(!list && cap == 0); /* nothing left to free or to use */
    CHECK(!atoms_grow(&list, &cap, INT64_MAX, 8) && !list && cap == 0);
    CHECK(atoms_grow(&list, &cap, 5, 4) && list); /* and well again */
    atoms_free(list);
}

static int count_poll(void *data)
{
    return ++*(int *)data >= 2;
}

TEST(base_poll)
{
    int calls = 0;
    atoms_ctx_params params;
    atoms_ctx_params_init(&params);
    params.f_sgemm = atoms_test_sgemm;
    params.f_dgemm = atoms_test_dgemm;
    atoms_ctx *ctx = NULL;
    atoms_pollster pollster = {0};
    CHECK(atoms_ctx_new(&params, &ctx) == ATOMS_OK);
    CHECK(atoms_poll(ctx, &pollster) == ATOMS_OK); /* no poll function */
    atoms_ctx_free(ctx);

    params.poll = count_poll;
    params.poll_data = &calls;
    CHECK(atoms_ctx_new(&params, &ctx) == ATOMS_OK);
    for (int i = 0; i < 1000; i++) /* far less than a tenth of a second: asked once */
        CHECK(atoms_poll(ctx, &pollster) == ATOMS_OK);
    CHECK(calls == 1);
    pollster.last -= 0.2; /* as if time had passed */
    CHECK(atoms_poll(ctx, &pollster) == ATOMS_ERR_CANCELLED);
    pollster.last += 3600; /* the clock was set back: asked all the same */
    CHECK(atoms_poll(ctx, &pollster) == ATOMS_ERR_CANCELLED);
    atoms_ctx_free(ctx);
}

TEST(base_team)
{
    int calls = 0;
    atoms_ctx_params params;
    atoms_ctx_params_init(&params);
    params.f_sgemm = atoms_test_sgemm;
    params.f_dgemm = atoms_test_dgemm;
    params.poll = count_poll; /* says stop when asked the second time */
    params.poll_data = &calls;
    atoms_ctx *ctx = NULL;
    CHECK(atoms_ctx_new(&params, &ctx) == ATOMS_OK);
    atoms_team team = {.ctx = ctx};
    CHECK(!atoms_team_stopped(&team) && atoms_team_ask(&team) == ATOMS_OK && calls == 1);
    team.pollster.last -= 0.2; /* as if time had passed */
    CHECK(atoms_team_ask(&team) == ATOMS_ERR_CANCELLED && atoms_team_stopped(&team));
    team.pollster.last -= 0.2;
    CHECK(atoms_team_ask(&team) == ATOMS_ERR_CANCELLED && calls == 2); /* once stopped, nobody is asked */
    team = (atoms_team){.ctx = ctx};
    atoms_team_report(&team, ATOMS_ERR_MEMORY);
    CHECK(atoms_team_ask(&team) == ATOMS_ERR_MEMORY);
    atoms_ctx_free(ctx);
}

/* ---------------------------------------------------------------- products */

/* An (m, n) matrix inside a buffer, in one of several layouts. */
typedef struct {
    double *data;
    int64_t rs, cs, size;
} layout;

enum { ROWS, COLUMNS, WIDE_ROWS, WIDE_COLUMNS, GENERAL, LAYOUTS };

static layout make(int kind, int64_t m, int64_t n, uint64_t *seed)
{
    layout a = {0};
    switch (kind) {
    case ROWS: a.rs = n, a.cs = 1; break;
    case COLUMNS: a.rs = 1, a.cs = m; break;
    case WIDE_ROWS: a.rs = n + 5, a.cs = 1; break;
    case WIDE_COLUMNS: a.rs = 1, a.cs = m + 3; break;
    default: a.rs = 2 * n + 1, a.cs = 2; break;
    }
    a.size = (m ? m - 1 : 0) * a.rs + (n ? n - 1 : 0) * a.cs + 1;
    a.data = atoms_alloc(a.size, sizeof *a.data);
    for (int64_t i = 0; i < a.size; i++)
        a.data[i] = atoms_test_random(seed);
    return a;
}

static float *to_float(const layout *a)
{
    float *f = atoms_alloc(a->size, sizeof *f);
    for (int64_t i = 0; i < a->size; i++)
        f[i] = (float)a->data[i];
    return f;
}

/* C = A B + beta C of every kind of layout against plain loops in double, the elements
 * between C's rows left alone. */
static void check_gemm(const atoms_ctx *ctx, int64_t m, int64_t n, int64_t k, int ka, int kb, int kc, double beta)
{
    uint64_t seed = 7;
    layout a = make(ka, m, k, &seed), b = make(kb, k, n, &seed), c = make(kc, m, n, &seed);
    float *fa = to_float(&a), *fb = to_float(&b), *fc = to_float(&c);
    double *want = atoms_alloc(c.size, sizeof *want);
    memcpy(want, c.data, (size_t)c.size * sizeof *want);
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++) {
            int64_t at = i * c.rs + j * c.cs;
            double sum = 0;
            for (int64_t p = 0; p < k; p++)
                sum += a.data[i * a.rs + p * a.cs] * b.data[p * b.rs + j * b.cs];
            want[at] = sum + beta * want[at];
            if (beta == 0) /* what was there does not count */
                c.data[at] = fc[at] = NAN;
        }
    atoms_gemm_f64(ctx, (atoms_mnk){m, n, k}, (atoms_f64_in){a.data, a.rs, a.cs}, (atoms_f64_in){b.data, b.rs, b.cs},
                   beta, (atoms_f64_out){c.data, c.rs, c.cs});
    atoms_gemm_f32(ctx, (atoms_mnk){m, n, k}, (atoms_f32_in){fa, a.rs, a.cs}, (atoms_f32_in){fb, b.rs, b.cs},
                   (float)beta, (atoms_f32_out){fc, c.rs, c.cs});
    double worst64 = 0, worst32 = 0; /* fmax would drop a NaN, so it is asked for */
    for (int64_t i = 0; i < c.size; i++) {
        CHECK(!isnan(c.data[i]) && !isnan(fc[i]));
        worst64 = fmax(worst64, fabs(c.data[i] - want[i]));
        worst32 = fmax(worst32, fabs(fc[i] - want[i]));
    }
    CHECK(worst64 < 1e-12 && worst32 < 1e-4);
    atoms_free(a.data), atoms_free(b.data), atoms_free(c.data), atoms_free(want);
    atoms_free(fa), atoms_free(fb), atoms_free(fc);
}

TEST(base_gemm)
{
    static const int64_t shapes[][3] = {{1, 1, 1}, {1, 17, 5},   {17, 1, 5},  {5, 3, 1}, {1, 1, 33}, {1, 9, 1},
                                        {9, 1, 1}, {33, 15, 97}, {97, 65, 3}, {3, 4, 0}, {0, 3, 4},  {3, 0, 4}};
    for (int i = 0; i < atoms_test_contexts(); i += 2 * (atoms_cpu_isa() + 1)) {
        atoms_ctx *ctx = atoms_test_context(i);
        atoms_test_fortran_calls = 0;
        for (int s = 0; s < 12; s++)
            for (int kinds = 0; kinds < LAYOUTS * LAYOUTS * LAYOUTS; kinds++)
                check_gemm(ctx, shapes[s][0], shapes[s][1], shapes[s][2], kinds % LAYOUTS, kinds / LAYOUTS % LAYOUTS,
                           kinds / (LAYOUTS * LAYOUTS), kinds % 2 ? 0 : 0.5);
        CHECK((atoms_test_fortran_calls > 0) == (ctx->p.blas == ATOMS_BLAS_FORTRAN));
        atoms_ctx_free(ctx);
    }
}

/* n floats before a page that nobody may read, `spare` bytes from it; *mapped and *bytes are to be unmapped. */
static float *at_the_edge(int64_t n, size_t spare, void **mapped, size_t *bytes)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE), room = ((size_t)n * 4 + spare + page - 1) / page * page;
    *bytes = room + page;
    *mapped = mmap(NULL, *bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(*mapped != MAP_FAILED && !mprotect((char *)*mapped + room, page, PROT_NONE));
    return (float *)((char *)*mapped + room - spare) - n;
}

/* Nothing is read behind A and B, and behind C no more than core.h says: a fault ends the test. */
TEST(base_gemm_reads_what_is_there)
{
    static const int sizes[] = {1, 2, 3, 4, 5, 7, 8, 10, 16, 17, 18, 25, 48, 97},
                     inner[] = {1, 7, 8, 9, 15, 24, 33, 97, 100};
    enum { SIZES = sizeof sizes / sizeof *sizes, INNER = sizeof inner / sizeof *inner, MOST = 97 * 100 };
    void *mapped[3];
    size_t bytes[3];
    float *end[3];
    for (int i = 0; i < 3; i++)
        end[i] = at_the_edge(MOST, i == 2 ? 8 : 0, &mapped[i], &bytes[i]) + MOST;
    for (int c = 0; c < atoms_test_contexts(); c += 2 * (atoms_cpu_isa() + 1)) {
        atoms_ctx *ctx = atoms_test_context(c);
        for (int i = 0; i < SIZES * SIZES * INNER; i++)
            for (int layout = 0; layout < 8; layout++) {
                int64_t m = sizes[i % SIZES], n = sizes[i / SIZES % SIZES], k = inner[i / (SIZES * SIZES)];
                bool at = layout & 1, bt = layout & 2, ct = layout & 4;
                atoms_gemm_f32(ctx, (atoms_mnk){m, n, k}, (atoms_f32_in){end[0] - m * k, at ? 1 : k, at ? m : 1},
                               (atoms_f32_in){end[1] - k * n, bt ? 1 : n, bt ? k : 1}, (float)(i % 2),
                               (atoms_f32_out){end[2] - m * n, ct ? 1 : n, ct ? m : 1});
            }
        atoms_ctx_free(ctx);
    }
    for (int i = 0; i < 3; i++)
        munmap(mapped[i], bytes[i]);
}

/* Strides that BLIS would end the process for: rows that repeat, and rows that overlap. */
TEST(base_gemm_odd_strides)
{
    double a[12], b[6] = {1, 2, 3, 4, 5, 6}, c[8];
    for (int i = 0; i < 12; i++)
        a[i] = i;
    for (int i = 0; i < atoms_test_contexts(); i += 2 * (atoms_cpu_isa() + 1)) {
        atoms_ctx *ctx = atoms_test_context(i);
        atoms_gemm_f64(ctx, (atoms_mnk){4, 2, 3}, (atoms_f64_in){a, 0, 1}, (atoms_f64_in){b, 2, 1}, 0,
                       (atoms_f64_out){c, 2, 1}); /* four times row 0 */
        for (int r = 0; r < 4; r++)
            CHECK(c[2 * r] == 0 * 1 + 1 * 3 + 2 * 5 && c[2 * r + 1] == 0 * 2 + 1 * 4 + 2 * 6);
        atoms_gemm_f64(ctx, (atoms_mnk){4, 2, 3}, (atoms_f64_in){a, 1, 1}, (atoms_f64_in){b, 2, 1}, 0,
                       (atoms_f64_out){c, 2, 1}); /* a Hankel matrix */
        for (int r = 0; r < 4; r++)
            CHECK(c[2 * r] == r * 1 + (r + 1) * 3 + (r + 2) * 5);
        atoms_gemm_f64(ctx, (atoms_mnk){1, 2, 3}, (atoms_f64_in){a + 2, 9, -1}, (atoms_f64_in){b, 2, 1}, 0,
                       (atoms_f64_out){c, 2, 1}); /* a row, backwards */
        CHECK(c[0] == 2 * 1 + 1 * 3 + 0 * 5);
        atoms_ctx_free(ctx);
    }
}

/* Called from many OpenMP threads at once, each on its own tile. */
TEST(base_gemm_in_parallel)
{
    enum { N = 64, TILES = 12 };
    uint64_t seed = 3;
    float *a = atoms_alloc(N * N, 4), *c = atoms_alloc((int64_t)TILES * N * N, 4);
    for (int i = 0; i < N * N; i++)
        a[i] = (float)atoms_test_random(&seed);
    for (int i = 0; i < atoms_test_contexts(); i += 2 * (atoms_cpu_isa() + 1)) {
        atoms_ctx *ctx = atoms_test_context(i);
#pragma omp parallel for num_threads(4) schedule(dynamic)
        for (int t = 0; t < TILES; t++)
            atoms_gemm_f32(ctx, (atoms_mnk){N, N, N}, (atoms_f32_in){a, N, 1}, (atoms_f32_in){a, 1, N}, 0,
                           (atoms_f32_out){c + (int64_t)t * N * N, N, 1});
        for (int t = 1; t < TILES; t++)
            CHECK(!memcmp(c, c + (int64_t)t * N * N, N * N * 4));
        atoms_ctx_free(ctx);
    }
    atoms_free(a), atoms_free(c);
}

/* ------------------------------------------------------------------- forks */

static void *square_four(void *ctx)
{
    static _Thread_local float one[4] = {1, 0, 0, 1}, out[4];
    for (int i = 0; i < 4; i++)
        atoms_gemm_f32(ctx, (atoms_mnk){2, 2, 2}, (atoms_f32_in){one, 2, 1}, (atoms_f32_in){one, 2, 1}, 0,
                       (atoms_f32_out){out, 2, 1});
    return NULL;
}

/* BLAS has locks that a child would find held if another thread were in a product at the fork. */
TEST(base_fork_waits_for_products)
{
    atoms_test_fortran_ms = 50;
    for (int limited = 0; limited < 2; limited++) {
        atoms_ctx_params params;
        atoms_ctx_params_init(&params);
        params.blas = ATOMS_BLAS_FORTRAN;
        params.f_sgemm = atoms_test_sgemm;
        params.f_dgemm = atoms_test_dgemm;
        atoms_ctx *ctx = NULL;
        CHECK(atoms_ctx_new(&params, &ctx) == ATOMS_OK);
        ctx->memory_limited = limited;
        pthread_t threads[2];
        for (int t = 0; t < 2; t++)
            CHECK(!pthread_create(&threads[t], NULL, square_four, ctx));
        for (int i = 0; i < 3; i++) {
            for (int wait = 0; !atoms_test_fortran_inside && wait < 1000; wait++)
                nanosleep(&(struct timespec){0, 100000}, NULL);
            pid_t child = fork();
            if (!child) {
                alarm(20); /* it hung */
                int inside = atoms_test_fortran_inside;
                square_four(ctx);
                _exit(inside);
            }
            int status = -1;
            CHECK(waitpid(child, &status, 0) == child && status == 0);
        }
        for (int t = 0; t < 2; t++)
            pthread_join(threads[t], NULL);
        CHECK(!atoms_test_fortran_inside);
        atoms_ctx_free(ctx);
    }
    atoms_test_fortran_ms = 0;
}

/* -------------------------------------------------------------- converters */

/* What a 16-bit float means, from its definition. */
static double meaning(unsigned h, int exponent_bits)
{
    int mantissa_bits = 15 - exponent_bits, top = (1 << exponent_bits) - 1;
    int exponent = h >> mantissa_bits & top, mantissa = h & ((1 << mantissa_bits) - 1);
    double value;
    if (exponent == top)
        value = mantissa ? NAN : INFINITY;
    else if (exponent == 0)
        value = ldexp(mantissa, 1 - top / 2 - mantissa_bits);
    else
        value = ldexp(mantissa + (1 << mantissa_bits), exponent - top / 2 - mantissa_bits);
    return h & 0x8000 ? -value : value;
}

static bool same(double x, double y)
{
    return isnan(x) ? isnan(y) : x == y && signbit(x) == signbit(y);
}

/* All 65,536 values of both 16-bit types, contiguous and strided, in rows of several lengths. */
TEST(base_convert_16_bit)
{
    enum { N = 1 << 16 };
    uint16_t *x = atoms_alloc(2 * N, 2);
    float *f = atoms_alloc(N, 4);
    double *d = atoms_alloc(N, 8);
    for (int type = ATOMS_F16; type <= ATOMS_BF16; type++)
        for (int cs = 1; cs <= 2; cs++)
            for (int width = 8; width <= 1024; width = width * 5 / 2 + 3) {
                int rows = N / width, last = N - rows * width;
                for (int i = 0; i < N; i++)
                    x[i * cs] = (uint16_t)i;
                atoms_to_f32((atoms_rows){x, (atoms_dtype)type, rows, width, width * cs, cs}, f);
                atoms_to_f64((atoms_rows){x, (atoms_dtype)type, rows, width, width * cs, cs}, d);
                const uint16_t *rest = x + rows * width * cs;
                atoms_to_f32((atoms_rows){rest, (atoms_dtype)type, 1, last, 0, cs}, f + rows * width);
                atoms_to_f64((atoms_rows){rest, (atoms_dtype)type, 1, last, 0, cs}, d + rows * width);
                int wrong = 0;
                for (int i = 0; i < N; i++) {
                    double want = meaning((unsigned)i, type == ATOMS_F16 ? 5 : 8);
                    wrong += !same(want, f[i]) || !same(want, d[i]);
                }
                CHECK(wrong == 0);
            }
    atoms_free(x), atoms_free(f), atoms_free(d);
}

TEST(base_convert_strides)
{
    enum { N = 5, D = 19 };
    float x32[N * D * 2], f[N * D];
    double x64[N * D * 2], d[N * D];
    for (int i = 0; i < N * D * 2; i++)
        x32[i] = (float)(x64[i] = i * 0.37);
    for (int cs = 1; cs <= 2; cs++)
        for (int type = ATOMS_F32; type <= ATOMS_F64; type++) {
            const void *x = type == ATOMS_F32 ? (void *)x32 : (void *)x64;
            atoms_to_f32((atoms_rows){x, (atoms_dtype)type, N, D, D * cs, cs}, f);
            atoms_to_f64((atoms_rows){x, (atoms_dtype)type, N, D, D * cs, cs}, d);
            for (int i = 0; i < N * D; i++) {
                int at = i / D * D * cs + i % D * cs;
                CHECK(f[i] == x32[at] && d[i] == (type == ATOMS_F32 ? x32[at] : x64[at]));
            }
        }
    /* rows and columns backwards, and one row repeated */
    atoms_to_f32((atoms_rows){x32 + N * D - 1, ATOMS_F32, N, D, -D, -1}, f);
    for (int i = 0; i < N * D; i++)
        CHECK(f[i] == x32[N * D - 1 - i]);
    atoms_to_f32((atoms_rows){x32, ATOMS_F32, N, D, 0, 1}, f);
    for (int i = 0; i < N * D; i++)
        CHECK(f[i] == x32[i % D]);
    atoms_to_f32((atoms_rows){NULL, ATOMS_F32, 0, D, 0, 1}, f);
}
