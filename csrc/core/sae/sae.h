/* sae.h: the sparse autoencoder, the workspace of a step, and what the room's files offer each other.
 *
 * A step (step.c) goes through these files from top to bottom; encoding (encode.c) through the first five alone:
 *
 *     batch.c       the workspace
 *     prepare.c     rows of the caller -> xc = x - b_dec, and its image in 8 or 16 bits
 *     screen.c      which latents a sample may reach the floor of: candidates
 *     active.c      their exact z, and lists of those that are active, by sample
 *     topk.c        the k largest of them, where that is the rule
 *     gradients.c   by sample: xhat - x, the loss, its gradient by each activation; AuxK
 *     sort.c        the same entries by latent
 *     update.c      by latent: the gradients of its rows, its bias and its threshold, and Adam; the decoder's bias
 *     dense.c       both of these as matrix products, where most latents are active; a transcoder's skip connection
 *
 * train.c takes steps in a row and steers them. model.c makes and frees the autoencoder, fields.c reads and writes its
 * arrays. */
#ifndef ATOMS_SAE_H
#define ATOMS_SAE_H

#include "kernels.h"

#define TILE_PANELS 16    /* panels at most that one task lists together: 1024 samples */
#define TILE_PANELS_F32 8 /* the same where the screen is a product by BLAS */
#define THREAD_PIECES 8   /* tiles to a thread at most, where latents are cut too */
#define BLOCK_LATENTS 768 /* latents screened at a time; a multiple of SCREEN_LATENTS */
#define BLOCK_SAMPLES 256 /* samples whose codes are made dense at a time, for the gradients of rows */
#define PART_LATENTS 64   /* latents that one partial sum over latents is of */
#define CUT_BINS 1024     /* sizes of entries that BatchTopK tells apart before it looks at each */

/* --------------------------------------------------- parts of the model */

/* A vector of parameters with Adam's moments: n values, the same shape thrice. */
typedef struct {
    float *w, *m, *v;
} sae_vector;

/* A matrix with its moments, two bfloat16 in one word, m above v: half of what an update has to move. */
typedef struct {
    float *w;
    uint32_t *mv;
} sae_matrix;

/* The encoder as the screen sees it: an image of each row in few bits, brought up to date whenever the row changes. */
typedef struct {
    atoms_screen kind;      /* F32, INT8 or INT16 */
    void *q;                /* (rows, width) int8 or int16; nothing for F32 */
    int32_t *offset;        /* (rows,) 128 sum q, INT8 only */
    float *scale;           /* (rows,) a row is about scale q; not for F32 */
    float *residual, *norm; /* (rows,) norms of the row less scale q (F32: 0), and of the row */
} sae_image;

/* Rows on one side of the model: d values, `width` floats with the zeros behind them, a multiple of 16, and ld from row to
 * row: an odd number of cache lines, so that a strip of many rows spreads over all sets of a cache. In the shapes of arrays
 * a mere width or ld is that of the side that is read. */
typedef struct {
    int64_t d, width, ld;
} sae_extent;

/* ----------------------------------------------------------------- batch */

/* Memory that grows with the data, in which lists of equal length lie side by side. */
typedef struct {
    void *block;
    int64_t cap; /* entries */
} sae_room;

/* The active latents of a panel's samples, or those that AuxK takes. */
typedef struct {
    int64_t n;                        /* entries, by sample, then latent */
    int32_t start[PANEL_SAMPLES + 1]; /* sample r's are start[r] .. start[r + 1] */
    int32_t *latent;
    float *z;  /* pre-activation */
    float *ga; /* gradient of the loss by the activation */
    sae_room room;
    int64_t near, ties;           /* BatchTopK: entries in ga as large as the cut or nearly; those as large that stay */
    double loss, penalty;         /* sums over the samples */
    double roots;                 /* of sqrt(|xhat - x| |xc|), none above the step's limit */
    float lowest;                 /* z of the entries; 3e38 where there are none */
    double candidates;            /* z that were worked out exactly: the tile's, in its first panel */
    double screen, exact, decode; /* seconds: the tile's, in its first panel, and those of the panel's gradients */
} sae_list;

/* What a tile lists before it is sorted by sample. */
typedef struct {
    int64_t *start;                   /* (latents + 1,) its latent j's candidates are start[j] .. start[j + 1] */
    int32_t *row;                     /* the candidates: the sample within the tile, */
    float *z;                         /* and its z */
    sae_room room;                    /* where these two lie */
    int32_t *count;                   /* (TILE_PANELS * PANEL_SAMPLES,) active latents of each sample */
    double candidates, screen, exact; /* as in the lists */
} sae_piece;

/* What a thread needs of its own. */
typedef struct {
    uint64_t *mask;  /* (TILE_PANELS, rows) bit r: the panel's sample r is a candidate */
    float *products; /* (BLOCK_LATENTS, TILE_PANELS_F32 * PANEL_SAMPLES), F32 screen only */
    float *strip;    /* (TILE_PANELS * PANEL_SAMPLES, columns) of xc, where there are several strips */
    float *codes;    /* (PANEL_SAMPLES, BLOCK_LATENTS), or their gradients; for a step only */
    float *dead_z;   /* (2, d_sae) z of dead latents, and room to sort them; with AuxK only */
    float *column;   /* (out.ld,) sums of no use; with AuxK only */
} sae_scratch;

/* The workspace of a step. It is kept for the next one: large blocks that are freed go back to the system, and a
 * quarter of a step's time can go into the pages that come again. Drawn in batch.c. */
typedef struct {
    int64_t n, panels; /* of this batch */
    atoms_arena arena;
    int64_t most_panels, errors; /* what the arena has room for: panels, blocks of err, */
    int threads;                 /* and threads */

    float *xc;                      /* (samples, ld) x - b_dec, samples = panels * PANEL_SAMPLES */
    void *xq;                       /* the screen's image of it: uint8 (panels, width / 4, PANEL_SAMPLES, 4) or int16
                                       (panels, width / 2, PANEL_SAMPLES, 2) */
    float *scale, *norm, *residual; /* (samples,) of that image, as sae_screen_samples has them */
    double *sums;                   /* (panels, 1 + width): |xc|^2, column sums */
    float *yc;                      /* (samples, out.ld) what is rebuilt, less b_dec; not a transcoder's: xc */
    double *y_sums;                 /* (panels, 1 + out.width) as sums; not a transcoder's: sums */
    float *floor;                   /* (rows,) what z has to exceed */
    float *limit, *rest, *size;     /* (rows,) limit, residual and norm of sae_screen_latents */
    sae_list *list, *aux;           /* (panels,) active latents; AuxK's */
    sae_scratch *scratch;           /* (threads,) */
    sae_piece *piece;               /* (THREAD_PIECES threads,) a thread's, or where latents are cut a tile's */
    int64_t *piece_start;           /* where their `start` lie */
    float topk_floor;               /* the next batch's floor, TOPK and BATCHTOPK */
    int32_t *bins;                  /* (threads, CUT_BINS) how many entries are of which size, BATCHTOPK only */

    /* from here on for a step only */
    float *err;     /* (errors, samples, out.ld) xhat - x: a block for each prefix, and one for AuxK if in use */
    float *err_sum; /* (out.ld,) over all samples and prefixes */
    float *weight;  /* (samples,) of each sample's gradients */
    float *partial; /* (panels, out.ld) the parts of err_sum; then (parts, ld) of the decoder bias' other gradient */
    double *bands;  /* (parts, 2): active latents in their band, what they gain; parts of PART_LATENTS */
    int32_t *dead;  /* (d_sae,) with AuxK only */
    bool dense;     /* so many entries that their sums are matrix products */

    /* the lists by latent */
    int64_t *start;     /* (d_sae + 1,) latent j's entries are start[j] .. start[j + 1], */
    int64_t *aux_start; /* (d_sae,) and from aux_start[j] on they are AuxK's */
    int32_t *at;        /* (2, threads, d_sae) where groups of panels put their entries: sort.c */
    int32_t *row;       /* the sample */
    float *z, *ga; /* as in the lists; then the factors of xhat - x and of xc in the gradients of the latent's rows */
    sae_room room; /* where these three lie */
    float *g_bias; /* (d_sae,) gradient of b_enc */
    float *rows;   /* gradients of the weights' rows that threads hold */
    int64_t rows_cap;
} sae_batch;

/* ----------------------------------------------------------------- model */

struct atoms_sae {
    atoms_sae_params p;
    int64_t rows;          /* d_sae rounded up to BLOCK_LATENTS */
    sae_extent in, out;    /* of what it reads and of what it rebuilds: the same but for a transcoder */
    sae_matrix enc, dec;   /* (rows, ld) and (rows, out.ld); tied: one and the same */
    sae_matrix skip;       /* (d_in, out.ld), with a skip connection only */
    sae_vector b_enc, thr; /* (rows,) */
    sae_vector b_dec;      /* (out.ld,) */
    float *origin;         /* (ld,) what x is less: b_dec, a transcoder's x zeros */
    int64_t *last_fired;   /* (rows,) */
    int64_t counters[2];   /* steps, samples */
    sae_image image;
    atoms_arena arena; /* where all these arrays lie */
    sae_batch batch;   /* workspace of atoms_sae_step */
};

/* ------------------------------------------------------------------ step */

/* One step, or one encoding, which is the first half of one: what its functions share. */
typedef struct {
    const atoms_ctx *ctx;
    const sae_kernels *kernels; /* ctx's */
    const atoms_sae *sae;       /* only update.c changes it */
    sae_batch *batch;
    const atoms_sae_step_params *params; /* NULL: encoding */
} sae_step;

/* Panels and latents that one task lists together, and the room to do it in. */
typedef struct {
    int64_t first, n; /* panels first .. first + n */
    int64_t from, to; /* latents */
    sae_scratch *scratch;
    sae_piece *piece;
} sae_tile;

/* Latents whose gradients of rows one thread builds up. */
typedef struct {
    int64_t from, to;
    int64_t strip;    /* columns at a time */
    float *codes;     /* (PART_LATENTS, BLOCK_SAMPLES) of work */
    float *dec, *enc; /* (to - from, out.ld) and (to - from, ld) the gradients; one and the same where tied */
} sae_rows;

/* x_hat - x of sample i, of the prefix `block` (the one after the last: AuxK's). ld: the model's out.ld */
static inline float *sae_error_row(const sae_batch *b, int64_t ld, int64_t block, int64_t i)
{
    return b->err + (block * b->panels * PANEL_SAMPLES + i) * ld;
}

/* Seconds, for the timers of atoms_sae_stats. */
static inline double sae_now(void)
{
#ifdef _OPENMP
    return omp_get_wtime();
#else
    return 0;
#endif
}

/* Columns of one canonical partial sum of z: a multiple of 64, or all of them. A tile's strip of xc is to stay in the
 * second-level cache. */
static inline int64_t sae_strip(int64_t width)
{
    return width <= 640 ? width : 128;
}

/* Bytes of a value in the screen's images; 0 where it has none. */
static inline int64_t sae_image_bytes(atoms_screen kind)
{
    return kind == ATOMS_SCREEN_INT16 ? 2 : kind == ATOMS_SCREEN_INT8 ? 1 : 0;
}

/* ---------------------------------------------------------------- step.c */

/* atoms_sae_step, but for stats->total_variance, */
atoms_status sae_take_step(const atoms_ctx *ctx, atoms_sae *sae, const atoms_batch *x,
                           const atoms_sae_step_params *params, atoms_sae_stats *stats);
/* which is this, of the batch of the last step: with many threads, a twentieth of a step. */
double sae_total_variance(const atoms_sae *sae);

/* --------------------------------------------------------------- batch.c */

/* A workspace for n samples and the context's threads. errors: blocks of err; 0 to encode only. */
atoms_status sae_batch_reserve(const atoms_ctx *ctx, const atoms_sae *sae, sae_batch *b, int64_t n, int64_t errors);
void sae_batch_free(sae_batch *b);
/* Room for n entries in each list; what was there is lost. ga may be NULL: two lists. */
bool sae_room_reserve(sae_room *room, int64_t n, int32_t **of, float **z, float **ga);

/* ------------------------------------------------------------- prepare.c */

/* Fills xc and what the screen needs of it, and a transcoder's yc. stats->bad_row on ATOMS_ERR_NONFINITE. */
atoms_status sae_prepare(const sae_step *step, const atoms_batch *x, atoms_sae_stats *stats);

/* -------------------------------------------------------------- screen.c */

/* The kind of screen that AUTO stands for. */
atoms_screen sae_screen_kind(const atoms_ctx *ctx, atoms_screen asked);
/* Brings the image of the encoder's row j up to date. */
void sae_screen_row(const sae_kernels *k, atoms_sae *sae, int64_t j);
/* What the screens compare with, from the batch's floors. */
void sae_screen_limits(const sae_step *step);
/* Masks of candidates for the tile's latents. */
atoms_status sae_screen_tile(const sae_step *step, atoms_team *team, const sae_tile *tile);

/* -------------------------------------------------------------- active.c */

/* Lists, for each panel, the latents with z > floor, by sample, then latent. */
atoms_status sae_list_active(const sae_step *step);

/* ---------------------------------------------------------------- topk.c */

/* Keeps the k largest of each sample, or the n k largest of the batch; lists anew where the floor was too high. */
atoms_status sae_select_topk(const sae_step *step, int64_t k);

/* ----------------------------------------------------------- gradients.c */

/* Which of the prefixes ends with latent j: the first that holds it. */
static inline int64_t sae_prefix_of(const atoms_sae *sae, int64_t j)
{
    int64_t g = 0;
    while (j >= sae->p.prefix[g])
        g++;
    return g;
}

/* xhat - x, the loss, and its gradient by each listed activation; then AuxK's entries. */
atoms_status sae_gradients(const sae_step *step);

/* ---------------------------------------------------------------- sort.c */

/* The lists by latent; within a latent by sample, AuxK's last. */
atoms_status sae_sort_by_latent(const sae_step *step);

/* -------------------------------------------------------------- update.c */

/* All parameters, by Adam. On an error none has changed. */
atoms_status sae_update(const sae_step *step, atoms_sae *sae, atoms_sae_stats *stats);

/* --------------------------------------------------------------- dense.c */

/* Whether products over all entries, zeros too, cost less than rows one by one. */
bool sae_is_dense(const sae_step *step);
/* Panel p: adds what its listed entries decode to to its rows of err. */
void sae_dense_decode(const sae_step *step, int64_t p);
/* Panel p: writes the gradients of half the squared error by the listed activations into ga. */
void sae_dense_gradients(const sae_step *step, int64_t p);
/* Adds sum factor[e] base[row[e]] over the entries e of latent j, AuxK's left out, to row j - from of out, for the
 * latents of r, at most PART_LATENTS. side: of base's rows and out's. */
void sae_dense_rows(const sae_step *step, const sae_rows *r, const float *factor, const float *base,
                    const sae_extent *side, float *out);
/* Panel p: adds the skip connection's part to its rows of err, of the first prefix. */
void sae_skip_decode(const sae_step *step, int64_t p);
/* The gradients of its rows from .. to, at most PART_LATENTS: out (to - from, out.ld). */
void sae_skip_gradients(const sae_step *step, int64_t from, int64_t to, float *out);

#endif
