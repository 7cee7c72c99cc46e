/* fields.c: access to an autoencoder's arrays. */
#include "sae.h"

#include <float.h>
#include <math.h>

/* Fields come in three rounds of five, weights, first and second moments; in each round the two matrices come first.
 * The skip connection's three stand last. */
static bool is_matrix(atoms_sae_field field)
{
    return field >= ATOMS_W_SKIP || (field < ATOMS_LAST_FIRED && field % 5 <= ATOMS_W_DEC);
}

static const sae_matrix *matrix_of(const atoms_sae *sae, atoms_sae_field field)
{
    return field >= ATOMS_W_SKIP ? &sae->skip : field % 5 == ATOMS_W_ENC ? &sae->enc : &sae->dec;
}

/* The side of a matrix' rows. */
static sae_extent extent_of(const atoms_sae *sae, atoms_sae_field field)
{
    return field < ATOMS_W_SKIP && field % 5 == ATOMS_W_ENC ? sae->in : sae->out;
}

/* Where a vector, or the weights of a matrix, begin. */
static float *field_pointer(const atoms_sae *sae, atoms_sae_field field)
{
    if (is_matrix(field))
        return matrix_of(sae, field)->w;
    const sae_vector *v = field % 5 == ATOMS_B_ENC ? &sae->b_enc : field % 5 == ATOMS_B_DEC ? &sae->b_dec : &sae->thr;
    return field < ATOMS_W_ENC_M ? v->w : field < ATOMS_W_ENC_V ? v->m : v->v;
}

static bool is_moment(atoms_sae_field field)
{
    return field >= ATOMS_W_ENC_M && field != ATOMS_W_SKIP && is_matrix(field);
}

/* The words that hold a matrix' moment, and by how many bits it is shifted in them. */
static uint32_t *moment_words(const atoms_sae *sae, atoms_sae_field field, int *shift)
{
    *shift = field < ATOMS_W_ENC_V || field == ATOMS_W_SKIP_M ? 16 : 0;
    return matrix_of(sae, field)->mv;
}

static int64_t rows_of(const atoms_sae *sae, atoms_sae_field field)
{
    if (sae->p.frozen && is_moment(field))
        return 0;
    return field < ATOMS_W_SKIP ? sae->p.d_sae : sae->p.skip ? sae->p.d_in : 0;
}

static void get_moments(const atoms_sae *sae, atoms_sae_field field, float *out)
{
    int shift;
    const uint32_t *mv = moment_words(sae, field, &shift);
    sae_extent row = extent_of(sae, field);
    for (int64_t j = 0; j < rows_of(sae, field); j++, mv += row.ld)
        for (int64_t c = 0; c < row.d; c++, out++) {
            uint32_t bits = mv[c] >> shift << 16;
            memcpy(out, &bits, sizeof bits);
        }
}

/* To the nearest, of ties to the even one. */
static void set_moments(const atoms_sae *sae, atoms_sae_field field, const float *values)
{
    int shift;
    uint32_t *mv = moment_words(sae, field, &shift), bits;
    sae_extent row = extent_of(sae, field);
    for (int64_t j = 0; j < rows_of(sae, field); j++, mv += row.ld)
        for (int64_t c = 0; c < row.d; c++, values++) {
            memcpy(&bits, values, sizeof bits);
            bits = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
            mv[c] = (mv[c] & 0xffff0000u >> shift) | bits << shift;
        }
}

int atoms_sae_shape(const atoms_sae *sae, atoms_sae_field field, int64_t shape[2])
{
    shape[0] = rows_of(sae, field);
    shape[1] = 1;
    if (field == ATOMS_COUNTERS)
        shape[0] = 2;
    else if (is_matrix(field))
        shape[1] = extent_of(sae, field).d;
    else if (field != ATOMS_LAST_FIRED && field % 5 == ATOMS_B_DEC)
        shape[0] = sae->out.d;
    return is_matrix(field) ? 2 : 1;
}

void atoms_sae_get(const atoms_sae *sae, atoms_sae_field field, void *out)
{
    int64_t shape[2];
    atoms_sae_shape(sae, field, shape);
    if (field == ATOMS_COUNTERS) {
        memcpy(out, sae->counters, sizeof sae->counters);
    } else if (field == ATOMS_LAST_FIRED) {
        memcpy(out, sae->last_fired, (size_t)shape[0] * sizeof(int64_t));
    } else if (is_moment(field)) {
        get_moments(sae, field, out);
    } else {
        int64_t ld = is_matrix(field) ? extent_of(sae, field).ld : 1;
        const float *from = field_pointer(sae, field);
        for (int64_t i = 0; i < shape[0]; i++)
            memcpy((float *)out + i * shape[1], from + i * ld, (size_t)shape[1] * sizeof(float));
    }
}

void atoms_sae_set(atoms_sae *sae, atoms_sae_field field, const void *values)
{
    int64_t shape[2];
    atoms_sae_shape(sae, field, shape);
    if (field == ATOMS_COUNTERS) {
        memcpy(sae->counters, values, sizeof sae->counters);
    } else if (field == ATOMS_LAST_FIRED) {
        memcpy(sae->last_fired, values, (size_t)shape[0] * sizeof(int64_t));
    } else if (is_moment(field)) {
        set_moments(sae, field, values);
    } else {
        int64_t ld = is_matrix(field) ? extent_of(sae, field).ld : 1;
        float *to = field_pointer(sae, field);
        for (int64_t i = 0; i < shape[0]; i++)
            memcpy(to + i * ld, (const float *)values + i * shape[1], (size_t)shape[1] * sizeof(float));
    }
    if (field == ATOMS_W_ENC || (sae->p.tied && field == ATOMS_W_DEC))
        for (int64_t j = 0; j < sae->p.d_sae; j++)
            sae_screen_row(atoms_instances_for(ATOMS_ISA_PORTABLE)->sae, sae, j);
}

int atoms_sae_nonfinite(const atoms_sae *sae)
{
    static const atoms_sae_field weights[] = {ATOMS_W_ENC, ATOMS_W_DEC,     ATOMS_B_ENC,
                                              ATOMS_B_DEC, ATOMS_THRESHOLD, ATOMS_W_SKIP};
    for (int f = 0; f < 6; f++) {
        atoms_sae_field field = weights[f];
        int64_t shape[2];
        atoms_sae_shape(sae, field, shape);
        const float *w = field_pointer(sae, field);
        int64_t n = shape[0] * (is_matrix(field) ? extent_of(sae, field).ld : 1);
        bool finite = true;
        for (int64_t i = 0; i < n; i++)
            finite &= fabsf(w[i]) <= FLT_MAX;
        if (!finite)
            return (int)field;
    }
    return -1;
}

/* Row j of a matrix with its moments: scale times d values. */
static void reset_row(const sae_matrix *matrix, const sae_extent *side, int64_t j, const float *row, float scale)
{
    float *w = matrix->w + j * side->ld;
    for (int64_t c = 0; c < side->d; c++)
        w[c] = scale * row[c];
    memset(matrix->mv + j * side->ld, 0, (size_t)side->ld * sizeof(uint32_t));
}

atoms_status atoms_sae_reset(const atoms_ctx *ctx, int64_t k, atoms_sae *sae, const int64_t *idx, const float *rows,
                             const float *readers, const float *scales, const float *thresholds)
{
    const sae_kernels *kernels = ctx->kernels->sae;
    if (sae->p.frozen || (sae->p.d_out && !readers))
        return ATOMS_ERR_ARGUMENT;
    for (int64_t i = 0; i < k; i++)
        if (idx[i] < 0 || idx[i] >= sae->p.d_sae)
            return ATOMS_ERR_ARGUMENT;
    for (int64_t i = 0; i < k; i++) {
        int64_t j = idx[i];
        reset_row(&sae->dec, &sae->out, j, rows + i * sae->out.d, 1);
        if (!sae->p.tied)
            reset_row(&sae->enc, &sae->in, j, (readers ? readers : rows) + i * sae->in.d, scales[i]);
        sae->b_enc.w[j] = sae->b_enc.m[j] = sae->b_enc.v[j] = 0;
        sae->thr.w[j] = thresholds[i];
        sae->thr.m[j] = sae->thr.v[j] = 0;
        sae->last_fired[j] = sae->counters[1];
        sae_screen_row(kernels, sae, j);
    }
    return ATOMS_OK;
}
