/* convert.c: activations of any supported type to float32 and float64, row by row. */
#include "internal.h"

static float f32_of_bits(uint32_t u)
{
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

static float f32_of_f16(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, mag = h & 0x7fffu;
    if (mag >= 0x7c00u) /* infinity, NaN */
        return f32_of_bits(sign | 0x7f800000u | (mag & 0x3ffu) << 13);
    if (mag < 0x400u) { /* zero and subnormals: mag * 2^-24 is exact */
        float f = (float)mag * 0x1p-24f;
        return sign ? -f : f;
    }
    return f32_of_bits(sign | ((mag << 13) + 0x38000000u));
}

static float f32_of_bf16(uint16_t h)
{
    return f32_of_bits((uint32_t)h << 16);
}

#define CONVERT(S, load)                                                                          \
    for (int64_t i = 0; i < n; i++) {                                                             \
        const S *row = (const S *)x + i * rs;                                                     \
        if (cs == 1)                                                                              \
            for (int64_t j = 0; j < d; j++)                                                       \
                out[i * d + j] = load(row[j]);                                                    \
        else                                                                                      \
            for (int64_t j = 0; j < d; j++)                                                       \
                out[i * d + j] = load(row[j * cs]);                                               \
    }

void atoms_rows_to_f32(int64_t n, int64_t d, const void *x, atoms_dtype type, int64_t rs,
                       int64_t cs, float *out)
{
    switch (type) {
    case ATOMS_F32: CONVERT(float, (float)); break;
    case ATOMS_F64: CONVERT(double, (float)); break;
    case ATOMS_F16: CONVERT(uint16_t, f32_of_f16); break;
    case ATOMS_BF16: CONVERT(uint16_t, f32_of_bf16); break;
    }
}

void atoms_rows_to_f64(int64_t n, int64_t d, const void *x, atoms_dtype type, int64_t rs,
                       int64_t cs, double *out)
{
    switch (type) {
    case ATOMS_F32: CONVERT(float, (double)); break;
    case ATOMS_F64: CONVERT(double, (double)); break;
    case ATOMS_F16: CONVERT(uint16_t, (double)f32_of_f16); break;
    case ATOMS_BF16: CONVERT(uint16_t, (double)f32_of_bf16); break;
    }
}
