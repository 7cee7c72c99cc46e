/* fields.c: access to an autoencoder's arrays. */
#include "sae.h"

#include <float.h>
#include <math.h>

/* Fields come in three rounds of five, weights, first and second moments; in each round the two matrices come first. */
static bool is_matrix(atoms_sae_field field)
{
    return field < ATOMS_LAST_FIRED && field % 5 <= ATOMS_W_DEC;
}

/* Where a vector, or the weights of a matrix, begin. */
static float *field_pointer(const atoms_sae *sae, atoms_sae_field field)
{
    if (field <= ATOMS_W_DEC)
        return field == ATOMS_W_ENC ? sae->enc.w : sae->dec.w;
    const sae_vector *vectors[] = {&sae->b_enc, &sae->b_dec, &sae->thr}, *v = vectors[field % 5 - ATOMS_B_ENC];
    return field < ATOMS_W_ENC_M ? v->w : field < ATOMS_W_ENC_V ? v->m : v->v;
}

static bool is_moment(atoms_sae_field field)
{
    return field >= ATOMS_W_ENC_M && is_matrix(field);
}

/* The words that hold a matrix' moment, and by how many bits it is shifted in them. */
static uint32_t *moment_words(const atoms_sae *sae, atoms_sae_field field, int *shift)
{
    *shift = field < ATOMS_W_ENC_V ? 16 : 0;
    return field % 5 == ATOMS_W_ENC ? sae->enc.mv : sae->dec.mv;
}

static void get_moments(const atoms_sae *sae, atoms_sae_field field, float *out)
{
    int shift;
    const uint32_t *mv = moment_words(sae, field, &shift);
    for (int64_t j = 0; j < sae->p.d_sae; j++, mv += sae->ld)
        for (int64_t c = 0; c < sae->p.d_in; c++, out++) {
            uint32_t bits = mv[c] >> shift << 16;
            memcpy(out, &bits, sizeof bits);
        }
}

/* To the nearest, of ties to the even one. */
static void set_moments(const atoms_sae *sae, atoms_sae_field field, const float *values)
{
    int shift;
    uint32_t *mv = moment_words(sae, field, &shift), bits;
    for (int64_t j = 0; j < sae->p.d_sae; j++, mv += sae->ld)
        for (int64_t c = 0; c < sae->p.d_in; c++, values++) {
            memcpy(&bits, values, sizeof bits);
            bits = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
            mv[c] = (mv[c] & 0xffff0000u >> shift) | bits << shift;
        }
}

int atoms_sae_shape(const atoms_sae *sae, atoms_sae_field field, int64_t shape[2])
{
    shape[0] = sae->p.d_sae;
    shape[1] = 1;
    if (field == ATOMS_COUNTERS)
        shape[0] = 2;
    else if (is_matrix(field))
        shape[1] = sae->p.d_in;
    else if (field != ATOMS_LAST_FIRED && field % 5 == ATOMS_B_DEC)
        shape[0] = sae->p.d_in;
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
        int64_t ld = is_matrix(field) ? sae->ld : 1;
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
        int64_t ld = is_matrix(field) ? sae->ld : 1;
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
    for (int field = ATOMS_W_ENC; field <= ATOMS_THRESHOLD; field++) {
        int64_t shape[2];
        atoms_sae_shape(sae, (atoms_sae_field)field, shape);
        const float *w = field_pointer(sae, (atoms_sae_field)field);
        int64_t n = shape[0] * (is_matrix((atoms_sae_field)field) ? sae->ld : 1);
        bool finite = true;
        for (int64_t i = 0; i < n; i++)
            finite &= fabsf(w[i]) <= FLT_MAX;
        if (!finite)
            return field;
    }
    return -1;
}

atoms_status atoms_sae_reset(const atoms_ctx *ctx, int64_t k, atoms_sae *sae, const int64_t *idx, const float *rows,
                             const float *scales, const float *thresholds)
{
    const sae_kernels *kernels = ctx->kernels->sae;
    int64_t d = sae->p.d_in, ld = sae->ld;
    for (int64_t i = 0; i < k; i++)
        if (idx[i] < 0 || idx[i] >= sae->p.d_sae)
            return ATOMS_ERR_ARGUMENT;
    for (int64_t i = 0; i < k; i++) {
        int64_t j = idx[i];
        sae_matrix *matrices[] = {&sae->enc, &sae->dec};
        for (int m = 0; m < 2; m++) {
            memcpy(matrices[m]->w + j * ld, rows + i * d, (size_t)d * sizeof(float));
            memset(matrices[m]->mv + j * ld, 0, (size_t)ld * sizeof(uint32_t));
        }
        for (int64_t c = 0; !sae->p.tied && c < d; c++)
            sae->enc.w[j * ld + c] *= scales[i];
        sae->b_enc.w[j] = sae->b_enc.m[j] = sae->b_enc.v[j] = 0;
        sae->thr.w[j] = thresholds[i];
        sae->thr.m[j] = sae->thr.v[j] = 0;
        sae->last_fired[j] = sae->counters[1];
        sae_screen_row(kernels, sae, j);
    }
    return ATOMS_OK;
}
