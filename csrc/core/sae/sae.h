/* sae.h: the model and the batch as the SAE files share them. */
#ifndef ATOMS_SAE_H
#define ATOMS_SAE_H

#include "kernels.h"

#define PANEL 64  /* samples that one mask covers */
#define GROUP 16  /* panels at most that one task lists together: 1024 samples */
#define TILE 8    /* the same where BLIS multiplies; of these it forms BLOCK latents' products at a time */
#define PART 64   /* latents that one partial sum of the decoder bias' gradient is over */
#define SLICE 256 /* samples of a tile by latent, where products are dense */
#define BLOCK 768 /* latents screened at a time; a multiple of the int8 kernel's 6 */

/* A vector of parameters with its Adam moments: n values, the same shape thrice. */
typedef struct {
    float *w, *m, *v;
} adam_block;

/* A matrix with its moments, two bfloat16 in one word, m above v: half of what an update has to move. */
typedef struct {
    float *w;
    uint32_t *mv;
} adam_matrix;

/* The encoder as the screen sees it. Valid only when the encoder has not changed since. */
typedef struct {
    atoms_screen kind; /* F32, INT8 or INT16 */
    void *q;           /* (d_sae rounded up to BLOCK, width) int8 or int16 */
    int32_t *offset;   /* the rest: (d_sae rounded up to BLOCK,) */
    float *scale, *residual, *norm;
} screen_weights;

typedef struct {
    int64_t n, cap; /* entries used, allocated */
    int32_t *latent;
    float *z, *ga; /* pre-activation; gradient of the loss by the activation */
    int32_t start[PANEL + 1];
    double loss, penalty;
    double candidates, seconds[3];
} panel_list;

/* A thread's room to list the candidates of one group of panels. */
typedef struct {
    int64_t cap;    /* candidates allocated */
    uint64_t *mask; /* (GROUP, d_sae rounded up) */
    float *tile;    /* (BLOCK, TILE * PANEL), F32 screen only */
    int64_t *start; /* (d_sae + 1,) candidates of each latent */
    int32_t *row;   /* (cap,) sample within the group */
    float *z;       /* (cap,) */
    float *strip;   /* (GROUP * PANEL, columns) of x, where there are several strips */
} sae_scratch;

/* All that a step needs is kept for the next one: large blocks that are freed go back to the system, and a
 * quarter of a step's time can go into the pages that come again. */
typedef struct {
    int64_t cap; /* panels allocated */
    int64_t n, panels;
    int threads;
    sae_scratch *scratch;           /* (threads,) */
    float *xc;                      /* (panels * PANEL, ld) */
    int64_t errors;                 /* blocks of err: one for each prefix, and one for AuxK if it is in use */
    float *err;                     /* (errors, panels * PANEL, ld) */
    void *xq;                       /* uint8 (panels, width / 4, PANEL, 4) or int16 (panels, width / 2, PANEL, 2) */
    float *scale, *norm, *residual; /* (panels * PANEL,) */
    panel_list *list, *aux;         /* (panels,); aux: the entries of AuxK */
    bool dense;                     /* so many entries that their sums are matrix products */
    double *sums;                   /* (panels, 1 + ld): |xc|^2, column sums */
    /* the active entries by latent */
    int64_t entry_cap;
    int64_t *start, *aux_start;         /* (d_sae + 1,), (d_sae,): the latent's entries, and where AuxK's begin */
    int32_t *row;                       /* the sample */
    float *z, *ga;                      /* then the factors of the gradients' rows, of the decoder and the encoder */
    float *floor, *limit, *rest, *size; /* (d_sae rounded up to BLOCK,) */
    float *partial;                     /* (blocks of latents or panels, ld) */
    int64_t *at;                        /* (d_sae,) */
    float *g_bias;                      /* (d_sae,) */
    double *bands;                      /* (PARTs of latents, 2) */
    int64_t rows_cap;
    float *rows; /* (rows_cap,) gradients of the weights' rows that threads hold */
    float topk_floor;
} sae_batch;

struct atoms_sae {
    atoms_sae_params p;
    int64_t width, ld; /* d_in rounded up to 16; floats from row to row: an odd number of cache lines, so that
                          a strip of many rows spreads over all sets of a cache */
    int64_t rows;      /* d_sae rounded up to BLOCK */
    adam_matrix enc, dec;
    adam_block b_enc, b_dec, thr;
    int64_t *last_fired;
    int64_t counters[2];
    screen_weights screen;
    sae_batch batch; /* workspace of atoms_sae_step */
};

struct atoms_csr {
    int64_t n, nnz;
    int64_t *indptr;
    int32_t *indices;
    float *values;
};

/* x_hat - x of sample i, of the prefix `block` (the one after the last: AuxK's). */
static inline float *sae_error_row(const sae_batch *b, int64_t ld, int64_t block, int64_t i)
{
    return b->err + (block * b->panels * PANEL + i) * ld;
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

/* Columns of one canonical partial sum of z: a multiple of 64, or all of them. A group's strip of x is to
 * stay in the second-level cache. */
static inline int64_t sae_strip(int64_t width)
{
    return width <= 640 ? width : 128;
}

/* The kind of screen that AUTO stands for. */
atoms_screen sae_screen_kind(const atoms_ctx *ctx, atoms_screen asked);
/* Refreshes the screen's view of row j. */
void sae_screen_row(const sae_kernels *k, atoms_sae *sae, int64_t j);

/* errors: blocks of err; 0 to encode only. */
atoms_status sae_batch_reserve(const atoms_sae *sae, sae_batch *b, int64_t n, int64_t errors);
void sae_batch_free(sae_batch *b);

/* Fills b with x - b_dec and what the screen needs. stats->bad_row on ATOMS_ERR_NONFINITE. */
atoms_status sae_prepare(const atoms_ctx *ctx, const atoms_sae *sae, const atoms_batch *x, int64_t n, sae_batch *b,
                         atoms_sae_stats *stats);
/* Room for n entries; what was there is lost. */
bool sae_list_reserve(panel_list *l, int64_t n);
/* Lists, for each panel, the latents with z > floor, by sample, then latent. */
atoms_status sae_list_active(const atoms_ctx *ctx, const atoms_sae *sae, sae_batch *b);
/* Keeps the k largest of each sample, or the n k largest of the batch; re-screens where the floor was
 * too high. */
atoms_status sae_select_topk(const atoms_ctx *ctx, const atoms_sae *sae, sae_batch *b, int64_t k);
/* Whether products over all entries, zeros too, cost less than rows one by one. */
bool sae_is_dense(const atoms_sae *sae, const sae_batch *b);
/* Panel p: adds what its listed entries decode to to its rows of err; or, with `gradients`, writes those of half the
 * squared error by the listed activations into ga. false: no memory. */
bool sae_dense_panel(const atoms_ctx *ctx, const atoms_sae *sae, sae_batch *b, int64_t p, bool gradients);
/* Adds sum factor[e] base[row[e]] over the entries e of latent j, AuxK's left out, to row j - from of out:
 * for the latents from .. to, at most PANEL. tile: (PANEL, SLICE) of work. */
void sae_dense_rows(const atoms_ctx *ctx, const atoms_sae *sae, const sae_batch *b, int64_t from, int64_t to,
                    const float *factor, const float *base, float *tile, float *out);

#endif
