/* model.c: an autoencoder's memory and its parameters. */
#include "sae.h"

void atoms_sae_params_init(atoms_sae_params *p)
{
    memset(p, 0, sizeof *p);
    p->activation = ATOMS_JUMPRELU;
    p->bandwidth = 0.1f;
    p->beta1 = 0.9f;
    p->beta2 = 0.999f;
    p->epsilon = 1e-8f;
    p->clip = 1.0f;
}

static bool prefixes_ascend(const atoms_sae_params *p)
{
    if (p->n_prefixes < 0 || p->n_prefixes > ATOMS_MAX_PREFIXES)
        return false;
    for (int64_t g = 0; g < p->n_prefixes; g++)
        if (p->prefix[g] <= (g ? p->prefix[g - 1] : 0))
            return false;
    return p->n_prefixes == 0 || p->prefix[p->n_prefixes - 1] == p->d_sae;
}

static bool in_range(const atoms_sae_params *p)
{
    bool topk = p->activation == ATOMS_TOPK || p->activation == ATOMS_BATCHTOPK;
    bool sizes = p->d_in >= 1 && p->d_in <= 32768 && p->d_sae >= 1 && p->d_sae <= INT32_MAX / 2;
    bool kinds = p->activation >= ATOMS_JUMPRELU && p->activation <= ATOMS_BATCHTOPK &&
                 p->screen >= ATOMS_SCREEN_AUTO && p->screen <= ATOMS_SCREEN_INT16;
    bool adam = p->beta1 >= 0 && p->beta1 < 1 && p->beta2 >= 0 && p->beta2 < 1 && p->epsilon >= 0 && p->clip >= 0;
    return sizes && kinds && adam && p->bandwidth > 0 && (!topk || (p->k >= 1 && p->k <= p->d_sae)) &&
           prefixes_ascend(p) && p->d_out >= 0 && p->d_out <= 32768 && (p->d_out ? !p->tied : !p->skip);
}

static void take_vector(atoms_arena *arena, sae_vector *v, int64_t n)
{
    ATOMS_TAKE(arena, v->w, n);
    ATOMS_TAKE(arena, v->m, n);
    ATOMS_TAKE(arena, v->v, n);
}

static void take_matrix(atoms_sae *sae, sae_matrix *a, int64_t n)
{
    ATOMS_TAKE(&sae->arena, a->w, n);
    ATOMS_TAKE(&sae->arena, a->mv, sae->p.frozen ? 0 : n);
}

static sae_extent extent_of(int64_t d)
{
    int64_t width = atoms_whole(d, 16);
    return (sae_extent){d, width, width / 16 % 2 ? width : width + 16};
}

/* The decoder and the encoder (tied: one), the skip connection, the vectors, then the encoder's image for the screen. */
static void lay_out(atoms_sae *sae)
{
    atoms_arena *arena = &sae->arena;
    sae_image *image = &sae->image;
    int64_t s = sae->rows;
    take_matrix(sae, &sae->dec, s * sae->out.ld);
    if (sae->p.tied)
        sae->enc = sae->dec;
    else
        take_matrix(sae, &sae->enc, s * sae->in.ld);
    if (sae->p.skip)
        take_matrix(sae, &sae->skip, sae->p.d_in * sae->out.ld);
    take_vector(arena, &sae->b_enc, s);
    take_vector(arena, &sae->thr, s);
    take_vector(arena, &sae->b_dec, sae->out.ld);
    sae->origin = sae->b_dec.w;
    if (sae->p.d_out)
        ATOMS_TAKE(arena, sae->origin, sae->in.ld);
    ATOMS_TAKE(arena, sae->last_fired, s);
    image->q = atoms_take(arena, s * sae->in.width, (size_t)sae_image_bytes(image->kind));
    ATOMS_TAKE(arena, image->offset, s);
    ATOMS_TAKE(arena, image->scale, s);
    ATOMS_TAKE(arena, image->residual, s);
    ATOMS_TAKE(arena, image->norm, s);
}

/* Zeros, by all threads: on machines of several sockets memory lies with whoever touches it first, and one socket's would
 * have to serve them all. */
static void clear(const atoms_ctx *ctx, char *p, int64_t bytes)
{
    const int64_t some = (int64_t)1 << 21; /* a huge page */
#pragma omp parallel for num_threads(ctx->p.num_threads) schedule(static)
    for (int64_t at = 0; at < bytes; at += some)
        memset(p + at, 0, (size_t)ATOMS_MIN(some, bytes - at));
}

atoms_status atoms_sae_new(const atoms_ctx *ctx, const atoms_sae_params *p, atoms_sae **out)
{
    if (!in_range(p))
        return ATOMS_ERR_ARGUMENT;
    atoms_sae *sae = calloc(1, sizeof *sae);
    if (!sae)
        return ATOMS_ERR_MEMORY;
    sae->p = *p;
    if (p->n_prefixes == 0) {
        sae->p.n_prefixes = 1;
        sae->p.prefix[0] = p->d_sae;
    }
    sae->image.kind = sae_screen_kind(ctx, p->screen);
    sae->in = extent_of(p->d_in);
    sae->out = extent_of(p->d_out ? p->d_out : p->d_in);
    sae->rows = atoms_whole(p->d_sae, BLOCK_LATENTS);
    lay_out(sae);
    if (!atoms_arena_open(&sae->arena)) {
        free(sae);
        return ATOMS_ERR_MEMORY;
    }
    lay_out(sae);
    clear(ctx, sae->arena.base, (int64_t)sae->arena.used);
    *out = sae;
    return ATOMS_OK;
}

void atoms_sae_free(atoms_sae *sae)
{
    if (!sae)
        return;
    sae_batch_free(&sae->batch);
    atoms_arena_close(&sae->arena);
    free(sae);
}

const atoms_sae_params *atoms_sae_get_params(const atoms_sae *sae)
{
    return &sae->p;
}
