/* rows.c: activations of any supported type to float32 and float64, row by row.
 *
 * The 16-bit types are widened without branches, so that the compiler turns the loops over
 * contiguous rows into vector code; where the CPU has an instruction for float16, contiguous rows
 * of it go by that. Every value of theirs is exact in float32, so this choice, unlike others, is
 * not the context's: it changes no bit. */
#include "core.h"

static inline float f32_of_bits(uint32_t u)
{
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

static inline uint32_t bits_of_f32(float f)
{
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return u;
}

static inline float f32_of_f16(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, magnitude = h & 0x7fffu;
    uint32_t normal = (magnitude << 13) + 0x38000000u;             /* exponent bias 15 to 127 */
    uint32_t special = (magnitude << 13) | 0x7f800000u;            /* infinity, NaN */
    uint32_t tiny = bits_of_f32((float)(int)magnitude * 0x1p-24f); /* zero, subnormals */
    uint32_t bits = magnitude >= 0x7c00u ? special : normal;
    return f32_of_bits(sign | (magnitude < 0x400u ? tiny : bits));
}

static inline float f32_of_bf16(uint16_t h)
{
    return f32_of_bits((uint32_t)h << 16);
}

static void f16_row(int64_t n, const uint16_t *x, float *out)
{
    for (int64_t i = 0; i < n; i++)
        out[i] = f32_of_f16(x[i]);
}

typedef void (*f16_row_function)(int64_t n, const uint16_t *x, float *out);

static f16_row_function f16_row_for_cpu(void)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2"))
        return atoms_f16_row_f16c;
#endif
    return f16_row;
}

#define CONVERT(S, load)                                                                                               \
    for (int64_t i = 0; i < n; i++) {                                                                                  \
        const S *row = (const S *)x + i * rs;                                                                          \
        if (cs == 1)                                                                                                   \
            for (int64_t j = 0; j < d; j++)                                                                            \
                out[i * d + j] = load(row[j]);                                                                         \
        else                                                                                                           \
            for (int64_t j = 0; j < d; j++)                                                                            \
                out[i * d + j] = load(row[j * cs]);                                                                    \
    }

size_t atoms_dtype_size(atoms_dtype type)
{
    return type == ATOMS_F64 ? 8 : type == ATOMS_F32 ? 4 : 2;
}

void atoms_to_f32(atoms_rows in, float *restrict out)
{
    const int64_t n = in.n, d = in.d, rs = in.rs, cs = in.cs;
    const void *x = in.data;
    if (in.type == ATOMS_F16 && cs == 1) {
        const f16_row_function convert = f16_row_for_cpu();
        for (int64_t i = 0; i < n; i++)
            convert(d, (const uint16_t *)x + i * rs, out + i * d);
        return;
    }
    switch (in.type) {
    case ATOMS_F32: CONVERT(float, (float)); break;
    case ATOMS_F64: CONVERT(double, (float)); break;
    case ATOMS_F16: CONVERT(uint16_t, f32_of_f16); break;
    case ATOMS_BF16: CONVERT(uint16_t, f32_of_bf16); break;
    }
}

void atoms_to_f64(atoms_rows in, double *restrict out)
{
    const int64_t n = in.n, d = in.d, rs = in.rs, cs = in.cs;
    const void *x = in.data;
    if (in.type == ATOMS_F16 && cs == 1) {
        enum { PART = 256 }; /* by way of float32, in L1 */
        float part[PART];
        const f16_row_function convert = f16_row_for_cpu();
        for (int64_t i = 0; i < n; i++)
            for (int64_t j = 0; j < d; j += PART) {
                int64_t count = ATOMS_MIN(PART, d - j);
                convert(count, (const uint16_t *)x + i * rs + j, part);
                for (int64_t k = 0; k < count; k++)
                    out[i * d + j + k] = part[k];
            }
        return;
    }
    switch (in.type) {
    case ATOMS_F32: CONVERT(float, (double)); break;
    case ATOMS_F64: CONVERT(double, (double)); break;
    case ATOMS_F16: CONVERT(uint16_t, (double)f32_of_f16); break;
    case ATOMS_BF16: CONVERT(uint16_t, (double)f32_of_bf16); break;
    }
}
