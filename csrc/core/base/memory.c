/* memory.c: aligned blocks, large ones in huge pages; workspaces made of them. */
#define _DEFAULT_SOURCE /* madvise */
#include "core.h"

#include <stdio.h>
#include <sys/mman.h>
#include <sys/resource.h>

#define HUGE_PAGE ((size_t)2 << 20)
/* BLIS reads whole registers at the end of a result's last row, up to 8 bytes beyond it (flame/blis 635) */
#define READ_AHEAD 8

void *atoms_alloc(int64_t n, size_t size)
{
    if (n < 0 || (n > 0 && size > (SIZE_MAX - 2 * ATOMS_ALIGN) / (size_t)n))
        return NULL;
    size_t bytes = (size_t)n * size;
    bytes = (bytes + READ_AHEAD + ATOMS_ALIGN - 1) / ATOMS_ALIGN * ATOMS_ALIGN;
#ifdef MADV_HUGEPAGE
    /* large arrays have their rows met in no order: with 4 KB pages, half the time would go to address translation */
    if (bytes >= 2 * HUGE_PAGE) {
        void *p = aligned_alloc(HUGE_PAGE, (bytes + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE);
        if (p)
            (void)madvise(p, bytes / HUGE_PAGE * HUGE_PAGE, MADV_HUGEPAGE);
        return p;
    }
#endif
    return aligned_alloc(ATOMS_ALIGN, bytes);
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

void *atoms_take(atoms_arena *arena, int64_t n, size_t size)
{
    /* in whole cache lines, so that rounding up can't go beyond it */
    size_t left = (SIZE_MAX / 2 - arena->used) / ATOMS_ALIGN * ATOMS_ALIGN;
    if (n < 0 || (n > 0 && size > left / (size_t)n)) {
        arena->overflow = true;
        return NULL;
    }
    void *part = arena->base ? arena->base + arena->used : NULL;
    arena->used += ((size_t)n * size + ATOMS_ALIGN - 1) / ATOMS_ALIGN * ATOMS_ALIGN;
    return part;
}

bool atoms_arena_open(atoms_arena *arena)
{
    arena->base = arena->overflow || arena->used > INT64_MAX ? NULL : atoms_alloc((int64_t)arena->used, 1);
    arena->used = 0;
    return arena->base;
}

void atoms_arena_close(atoms_arena *arena)
{
    atoms_free(arena->base);
    *arena = (atoms_arena){0};
}

bool atoms_memory_limited(void)
{
    const int limits[] = {RLIMIT_AS, RLIMIT_DATA};
    for (size_t i = 0; i < sizeof limits / sizeof *limits; i++) {
        struct rlimit limit;
        if (!getrlimit(limits[i], &limit) && limit.rlim_cur != RLIM_INFINITY)
            return true;
    }
    FILE *file = fopen("/proc/sys/vm/overcommit_memory", "r");
    int strict = file && fgetc(file) == '2';
    if (file)
        fclose(file);
    return strict;
}

bool atoms_memory_left(size_t bytes)
{
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED)
        return false;
    munmap(p, bytes);
    return true;
}

bool atoms_grow(void **p, int64_t *cap, int64_t n, size_t size)
{
    if (n <= *cap)
        return true;
    int64_t more = n > INT64_MAX - n / 4 ? n : n + n / 4;
    atoms_free(*p);
    *p = atoms_alloc(more, size);
    *cap = *p ? more : 0;
    return *p;
}
