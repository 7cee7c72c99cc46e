/* atoms.h: the public interface of the atoms C core, a library of its own.
 *
 * Purpose      The atomic inner product, sparse autoencoders, sparse recovery and the statistics of dictionaries, on
 *              plain buffers. No Python in here.
 * Order        As data flow: types and contexts, metric, sae, recovery, theory; in each the simple things first.
 * Layout       Matrices are row-major and contiguous unless strides are given; samples, latents and atoms are rows.
 *              Shapes stand behind names: second (d, d). Sizes are int64_t.
 * Arguments    (context, sizes, inputs, parameters, outputs, workspace).
 * Numbers      Parameters and products are float32; moments, losses, norms and statistics are summed in float64 unless
 *              a prototype says otherwise.
 * Ownership    The caller owns every buffer. Opaque handles come in _new/_free pairs; _free takes NULL.
 * Threads      A context never changes: any number of threads may share it. Work is cut by problem size, never by the
 *              number of threads, and added up in a fixed order, so results are the same to the bit for any number of
 *              threads. They do differ, in rounding, between instruction sets and between BLAS.
 * Errors       Every function that can fail returns atoms_status. Nothing here prints, aborts or exits.
 */
#ifndef ATOMS_H
#define ATOMS_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define ATOMS_API __attribute__((visibility("default")))
#else
#define ATOMS_API
#endif

/* ----------------------------------------------------------------- types */

typedef enum {
    ATOMS_OK = 0,
    ATOMS_ERR_ARGUMENT = -1,  /* a size or parameter outside its documented range */
    ATOMS_ERR_MEMORY = -2,    /* an allocation failed; outputs are unspecified */
    ATOMS_ERR_NONFINITE = -3, /* NaN or infinity where finite numbers are needed */
    ATOMS_ERR_CANCELLED = -4, /* the poll function asked to stop */
    ATOMS_ERR_THREADS = -5    /* the system does not give this process so many threads */
} atoms_status;

ATOMS_API const char *atoms_status_message(atoms_status status);

/* Types of the elements of rows. */
typedef enum {
    ATOMS_F32 = 0,
    ATOMS_F64 = 1,
    ATOMS_F16 = 2, /* IEEE half precision */
    ATOMS_BF16 = 3 /* the upper half of a float32 */
} atoms_dtype;

/* Rows where the caller has them: value j of row i is element i * rs + j * cs of data. */
typedef struct {
    const void *data;
    atoms_dtype type;
    int64_t n, d;   /* rows, and values in each */
    int64_t rs, cs; /* in elements; zero and negative ones are fine */
} atoms_rows;

/* --------------------------------------------------------------- context */

/* Instruction sets, weakest first, ARM's before x86's. A machine that runs one runs those before it of its kind, but for
 * AVX2_VNNI, which older machines with AVX-512 lack. */
typedef enum {
    ATOMS_ISA_PORTABLE = 0,    /* what every machine has */
    ATOMS_ISA_NEON_DOT = 1,    /* 64-bit ARM with products of 8 bits: FEAT_DotProd */
    ATOMS_ISA_NEON_I8MM = 2,   /* and of matrices of them: FEAT_I8MM */
    ATOMS_ISA_AVX2 = 3,        /* with fused multiply-add */
    ATOMS_ISA_AVX2_VNNI = 4,   /* products of 8 and 16 bits in 256-bit vectors: AVX-VNNI, or AVX-512's */
    ATOMS_ISA_AVX512 = 5,      /* F, BW, DQ and VL */
    ATOMS_ISA_AVX512_VNNI = 6, /* those products in 512-bit vectors */
    ATOMS_ISA_AVX512_BF16 = 7
} atoms_isa;

ATOMS_API atoms_isa atoms_cpu_isa(void);             /* the best that this machine can run */
ATOMS_API const char *atoms_isa_name(atoms_isa isa); /* "portable", ... */

typedef enum {
    ATOMS_BLAS_BLIS = 0,      /* only where the core was built with it */
    ATOMS_BLAS_FORTRAN = 1,   /* the functions f_sgemm and f_dgemm of the context */
    ATOMS_BLAS_ACCELERATE = 2 /* Apple's, only where the core was built with it */
} atoms_blas_kind;

ATOMS_API int atoms_has_blis(void);
ATOMS_API int atoms_has_accelerate(void);
ATOMS_API const char *atoms_blis_version(void); /* "" without BLIS */
ATOMS_API const char *atoms_blis_kernels(void); /* the family of kernels in use, "" without BLIS */

/* Fortran's sgemm and dgemm with 32-bit integers, as SciPy exports them. */
typedef void (*atoms_fortran_sgemm)(char *, char *, int *, int *, int *, float *, float *, int *, float *, int *,
                                    float *, float *, int *);
typedef void (*atoms_fortran_dgemm)(char *, char *, int *, int *, int *, double *, double *, int *, double *, int *,
                                    double *, double *, int *);

#define ATOMS_MAX_THREADS 4096

typedef struct {
    int num_threads;             /* 1 to ATOMS_MAX_THREADS */
    atoms_isa max_isa;           /* never use more than this; capped by what the CPU has */
    atoms_blas_kind blas;        /* who multiplies matrices, always on the thread that asks */
    atoms_fortran_sgemm f_sgemm; /* used with ATOMS_BLAS_FORTRAN, else NULL */
    atoms_fortran_dgemm f_dgemm;
    /* Asked whether to stop with ATOMS_ERR_CANCELLED (non-zero), only from the thread that called the core and at most
     * about ten times a second; NULL: never. */
    int (*poll)(void *);
    void *poll_data; /* its argument */
} atoms_ctx_params;

/* What calls work with. */
typedef struct atoms_ctx atoms_ctx;

/* One thread, every instruction that the CPU has, Accelerate or BLIS where there is one, no poll function. */
ATOMS_API void atoms_ctx_params_init(atoms_ctx_params *params);
/* ATOMS_ERR_THREADS, or ATOMS_ERR_MEMORY, where the system has not the threads, or BLIS not its buffers: OpenMP and BLIS
 * would end the process later. */
ATOMS_API atoms_status atoms_ctx_new(const atoms_ctx_params *params, atoms_ctx **ctx);
ATOMS_API void atoms_ctx_free(atoms_ctx *ctx);
ATOMS_API int atoms_ctx_num_threads(const atoms_ctx *ctx);
ATOMS_API atoms_isa atoms_ctx_isa(const atoms_ctx *ctx); /* the one in use */

/* ---------------------------------------------------------------- metric */

/* Sum and second moment of rows about a shift, in float64:
 *   sum (d) = sum_i (x_i - shift),   second (d, d) = sum_i (x_i - shift)(x_i - shift)', symmetric to the bit.
 * Both are overwritten. shift (d) may be NULL for zero.
 * Products of float32 values without a shift are exact; sums run over at most 256 rows before they join the total.
 * n d (d + 1) floating-point operations; workspace two blocks of rows, 2 * 4 MB or 2 * 512 rows, and nothing of size n.
 * ATOMS_ERR_NONFINITE when x holds NaN or infinity or a sum overflows, ATOMS_ERR_CANCELLED when stopped: sum and second
 * are then unspecified. Squares that overflow are no error: they leave infinity in second. */
ATOMS_API atoms_status atoms_moments(const atoms_ctx *ctx, atoms_rows x, const double *shift, double *sum,
                                     double *second);

/* out (n, m) = (x - center) w + offset, multiplied and summed in float64, rounded once to float32.
 * w (d, m); center (d) and offset (m) may be NULL for zero. Each row of out depends on its row of x alone, to the bit.
 * Workspace d m doubles, and 64 d for each thread. ATOMS_ERR_NONFINITE when a result is not finite. */
ATOMS_API atoms_status atoms_product(const atoms_ctx *ctx, atoms_rows x, int64_t m, const double *center,
                                     const double *w, const double *offset, float *out);
/* The same, not rounded. */
ATOMS_API atoms_status atoms_product_f64(const atoms_ctx *ctx, atoms_rows x, int64_t m, const double *center,
                                         const double *w, const double *offset, double *out);

typedef struct {
    int64_t n;
    const int64_t *first, *second; /* (n) each: the numbers of two rows; they may be the same */
} atoms_pairs;

/* Histogram of the angles between rows: counts (bins) over equal bins of [0, 180] degrees, and in sums (3) the number
 * of pairs, the sum of (angle - 90) and that of its square, in degrees and float64.
 * pairs: those to look at, in float64; NULL: all i < j, by float32 unit vectors and products (off by about 1e-5 degrees
 * near 90, 0.03 near 0 and 180). Pairs with a zero row have no angle and are left out.
 * n^2 d operations for all pairs; workspace 256 rows for each thread. ATOMS_ERR_ARGUMENT also when a pair names no row,
 * ATOMS_ERR_NONFINITE when a row looked at holds NaN or infinity, ATOMS_ERR_CANCELLED when stopped. */
ATOMS_API atoms_status atoms_angles(const atoms_ctx *ctx, atoms_rows x, const atoms_pairs *pairs, int64_t bins,
                                    int64_t *counts, double *sums);

/* ------------------------------------------------------------------ sae
 *
 * One sparse autoencoder in the space it is trained in (whitened activations):
 *   z_ij = (x_i - b_dec) . W_enc_j + b_enc_j
 *   a_ij = z_ij where latent j is active on sample i, else 0
 *   xhat_i = b_dec + sum_j a_ij W_dec_j,  |W_dec_j| = 1
 *   loss = mean_i ( |xhat_i - x_i|^2 + penalty_i )
 * Active means: z > threshold_j (JUMPRELU); z > 0 (RELU); among the k largest positive of the
 * sample (TOPK); among the n k largest positive of the batch (BATCHTOPK), with ties to the lower
 * sample, then the lower latent.
 * penalty_i: l0_coefficient times the number of active latents (JUMPRELU), l1_coefficient times the
 * sum of a_ij (RELU); plus |xhat_i^g - x_i|^2 for each inner prefix g of the latents, xhat^g made of
 * those below it alone (Matryoshka); plus AuxK, below.
 *
 * A threshold's gradient (JUMPRELU) is the loss's difference quotient over its `bandwidth`: that of
 * switching off the activations in threshold < z <= threshold + bandwidth, which are all that would go
 * if this threshold alone rose by so much. Unlike a straight-through estimate over a band on both sides
 * it is exact for finite changes and needs no latent that is not active.
 *
 * AuxK (Gao et al. 2024, arXiv 2406.04093, section 2.4, scaled as SAELens does): the aux_k largest
 * positive z of latents that have not fired for dead_after samples reconstruct what is left over,
 *   aux_coefficient min(1, n_dead / aux_k) mean_i |sum_j z_ij W_dec_j - (x_i - xhat_i)|^2,
 * x - xhat taken as given.
 *
 * A transcoder rebuilds other rows y than it reads, of d_out values each:
 *   z_ij = x_i . W_enc_j + b_enc_j
 *   yhat_i = b_dec + sum_j a_ij W_dec_j  (+ x_i W_skip with a skip connection)
 * and y, yhat stand in the place of x, xhat in all that follows. Each prefix has the whole skip connection.
 *
 * Every z is one canonical float32 dot product (64 lanes, fused multiply-add, fixed order of
 * reduction) plus b_enc, whichever kernel screened the latents: low-precision screens carry a rigorous
 * error bound and only choose which z are computed. */

typedef struct atoms_sae atoms_sae;

typedef enum {
    ATOMS_JUMPRELU = 0, /* above the latent's threshold */
    ATOMS_RELU = 1,     /* above zero */
    ATOMS_TOPK = 2,     /* the k largest of each sample */
    ATOMS_BATCHTOPK = 3 /* the n k largest of a batch of n; above the threshold when encoding */
} atoms_activation;

/* How pre-activations are screened. Any kind runs anywhere; results are the same. */
typedef enum {
    ATOMS_SCREEN_AUTO = 0, /* INT8 where VNNI or NEON's products of bytes are used, INT16 with AVX2 alone, else F32 */
    ATOMS_SCREEN_F32 = 1,  /* products by BLAS */
    ATOMS_SCREEN_INT8 = 2, /* products of 8-bit integers */
    ATOMS_SCREEN_INT16 = 3 /* of 16-bit ones */
} atoms_screen;

#define ATOMS_MAX_PREFIXES 16 /* Matryoshka: most widths of an autoencoder */

/* What stays the same for the life of an autoencoder. */
typedef struct {
    int64_t d_in;                       /* values in a row, 1 .. 32768 */
    int64_t d_sae;                      /* latents, >= 1 */
    atoms_activation activation;        /* which latents are active */
    int64_t k;                          /* TOPK, BATCHTOPK: 1 .. d_sae */
    int tied;                           /* W_enc is W_dec: one block, one gradient */
    float bandwidth;                    /* of the thresholds' gradients, > 0, in units of z */
    float beta1, beta2, epsilon;        /* Adam */
    float clip;                         /* largest root-mean-square of a row's Adam direction; 0: none */
    atoms_screen screen;                /* how pre-activations are screened */
    int64_t n_prefixes;                 /* 0, or Matryoshka: so many */
    int64_t prefix[ATOMS_MAX_PREFIXES]; /* ascending widths, the last one d_sae */
    int64_t d_out;                      /* 0: an autoencoder; else a transcoder, to rows of so many values; not tied */
    int skip;                           /* a transcoder's: with a skip connection */
    int frozen;                         /* it encodes alone: matrices have no moments, and there are no steps */
} atoms_sae_params;

/* JUMPRELU, bandwidth 0.1, Adam's 0.9, 0.999 and 1e-8, clip 1, AUTO; sizes zero. */
ATOMS_API void atoms_sae_params_init(atoms_sae_params *params);
/* All arrays zero. Memory: about (tied ? 9 : 17) * d_in * d_sae bytes; frozen (tied ? 5 : 9). */
ATOMS_API atoms_status atoms_sae_new(const atoms_ctx *ctx, const atoms_sae_params *params, atoms_sae **sae);
ATOMS_API void atoms_sae_free(atoms_sae *sae);
ATOMS_API const atoms_sae_params *atoms_sae_get_params(const atoms_sae *sae);

/* ---- its arrays */

/* float32 unless said. Matrices are row-major; their moments are kept in bfloat16, to which `set` rounds. d_out is d_in
 * but for transcoders. _M and _V are Adam's first and second moments of the parameter. */
typedef enum {
    ATOMS_W_ENC = 0, /* (d_sae, d_in); tied: the same as W_DEC */
    ATOMS_W_DEC,     /* (d_sae, d_out) */
    ATOMS_B_ENC,     /* (d_sae,) */
    ATOMS_B_DEC,     /* (d_out,) */
    ATOMS_THRESHOLD, /* (d_sae,) */
    ATOMS_W_ENC_M,
    ATOMS_W_DEC_M,
    ATOMS_B_ENC_M,
    ATOMS_B_DEC_M,
    ATOMS_THRESHOLD_M,
    ATOMS_W_ENC_V,
    ATOMS_W_DEC_V,
    ATOMS_B_ENC_V,
    ATOMS_B_DEC_V,
    ATOMS_THRESHOLD_V,
    ATOMS_LAST_FIRED, /* (d_sae,) int64: value of the sample counter when it last fired */
    ATOMS_COUNTERS,   /* (2,) int64: optimiser steps, samples seen */
    ATOMS_W_SKIP,     /* (d_in, d_out); without a skip connection (0, d_out) */
    ATOMS_W_SKIP_M,
    ATOMS_W_SKIP_V
} atoms_sae_field;

/* Rows and columns (1 for vectors) of a field; returns the number of its dimensions, 1 or 2. */
ATOMS_API int atoms_sae_shape(const atoms_sae *sae, atoms_sae_field field, int64_t shape[2]);
/* Copies a whole field, of that shape and its type, out of the model and into it. */
ATOMS_API void atoms_sae_get(const atoms_sae *sae, atoms_sae_field field, void *out);
ATOMS_API void atoms_sae_set(atoms_sae *sae, atoms_sae_field field, const void *values);
/* The first of ATOMS_W_ENC .. ATOMS_THRESHOLD, ATOMS_W_SKIP that holds NaN or infinity, or -1. */
ATOMS_API int atoms_sae_nonfinite(const atoms_sae *sae);
/* Re-initialises latents idx (k,), distinct and in range: decoder rows := rows (k, d_out), unit norm; encoder
 * rows := scales (k,) times readers (k, d_in), or where that is NULL, not for transcoders, times the same rows (tied:
 * the rows); b_enc := 0; threshold := thresholds (k,); optimiser state := 0; fired now. */
ATOMS_API atoms_status atoms_sae_reset(const atoms_ctx *ctx, int64_t k, atoms_sae *sae, const int64_t *idx,
                                       const float *rows, const float *readers, const float *scales,
                                       const float *thresholds);

/* ---- rows, as encoding and training take them */

/* Rows as the caller holds them, which of them, and how they come into the model's space; they are read and converted
 * panel by panel. Row i of the batch is scale (x[index[i]] - shift), in float32. */
typedef struct atoms_batch {
    atoms_rows x;                     /* of d_in values each */
    const int64_t *index;             /* (n,) row numbers, in range, or NULL: 0, 1, ... */
    int64_t n;                        /* rows in the batch */
    const float *shift;               /* (d_in,), or NULL: neither shift nor scale */
    float scale;                      /* counts only with a shift */
    const struct atoms_batch *target; /* a transcoder's step: y, n rows of d_out values; else NULL */
} atoms_batch;

/* ---- figures, as both give them */

/* Wall time; for screen, exact and decode summed over the threads. */
typedef struct {
    double prepare; /* reading and centring rows */
    double screen;  /* finding candidates */
    double exact;   /* their z, and lists of the active */
    double decode;  /* xhat, the loss, its gradients by activations */
    double sort;    /* lists by latent */
    double update;  /* gradients of the parameters, and Adam */
} atoms_sae_seconds;

/* Of this batch. Encoding sets l0, candidates, bad_row and the first three times, and the rest to zero. */
typedef struct {
    double squared_error;  /* mean over samples of |xhat - x|^2 */
    double total_variance; /* mean over samples of |x - mean(x)|^2, a transcoder's of y */
    double penalty;        /* mean over samples */
    double l0;             /* mean number of active latents */
    double band;           /* mean number of active latents within bandwidth of their threshold */
    double band_gain;      /* over those: mean rise of the squared error were it switched off */
    double lowest;         /* smallest active z (BATCHTOPK inference threshold), 0 if none */
    double candidates;     /* mean number of z computed exactly */
    double row_scale;      /* square of the mean over rows of sqrt(|xhat - x| |x - b_dec|), none above row_limit */
    int64_t bad_row;       /* a row of x with NaN or infinity, with ATOMS_ERR_NONFINITE; else -1 */
    int bad_target;        /* that row is one of the target */
    atoms_sae_seconds seconds;
} atoms_sae_stats;

/* ---- codes: compressed sparse rows (CSR), sample i's entries from indptr[i] to indptr[i + 1] */

/* The codes that encoding found, in its workspace. */
typedef struct atoms_csr atoms_csr;

/* Codes of n rows by the inference rule: z > threshold for JUMPRELU and BATCHTOPK, else as
 * in training. *csr: NULL, or what an earlier call gave, whose codes are lost and whose memory is used again (models of
 * one shape in turn pay for it once); what comes back is to be freed by the caller. On any error it is NULL. */
ATOMS_API atoms_status atoms_sae_encode(const atoms_ctx *ctx, const atoms_sae *sae, const atoms_batch *x,
                                        atoms_csr **csr, atoms_sae_stats *stats);
ATOMS_API int64_t atoms_csr_nnz(const atoms_csr *csr); /* number of entries */
/* indptr (n + 1,), indices and values (nnz,); indices ascend within a row. */
ATOMS_API void atoms_csr_copy(const atoms_ctx *ctx, const atoms_csr *csr, int64_t *indptr, int32_t *indices,
                              float *values);
ATOMS_API void atoms_csr_free(atoms_csr *csr);

/* Codes where the caller has them. */
typedef struct {
    int64_t n;              /* samples */
    int64_t width;          /* latents */
    const int64_t *indptr;  /* (n + 1,) ascending */
    const int32_t *indices; /* (indptr[n],) latents, in any order */
    const float *values;    /* (indptr[n],) */
} atoms_csr_view;

/* xhat (n, d) = bias (d) + codes (n, width) W_dec (width, d), in float32. ATOMS_ERR_ARGUMENT when an index is out of
 * range. */
ATOMS_API atoms_status atoms_decode(const atoms_ctx *ctx, int64_t d, const atoms_csr_view *codes, const float *w_dec,
                                    const float *bias, float *xhat);

/* ---- training */

/* What may change from step to step. */
typedef struct {
    float learning_rate;   /* of all but the thresholds */
    float threshold_rate;  /* of the thresholds */
    float l0_coefficient;  /* JUMPRELU */
    float l1_coefficient;  /* RELU */
    float threshold_shift; /* JUMPRELU: added to the threshold of each latent with a sample in its band: one that
                              nothing comes near would drift out of reach */
    int64_t k;             /* TOPK, BATCHTOPK: this step's k */
    int64_t aux_k;         /* AuxK: latents of each sample; 0: none */
    int64_t dead_after;    /* AuxK: dead are those that did not fire for so many samples */
    float aux_coefficient; /* AuxK: its weight in the loss */
    double row_limit;      /* a row whose |xhat - x| |x - b_dec| exceeds it has its errors scaled down to it in all
                              gradients; 0: none has */
} atoms_sae_step_params;

/* One optimiser step on n >= 1 rows. On any error the model is unchanged. Memory beyond the model: about 9 bytes x n x d_in (4 more for
 * each inner prefix and for AuxK, 8 more x n x d_out for a transcoder) and 24 bytes for each active latent of each sample, kept for the next step;
 * samples x latents is never held. */
ATOMS_API atoms_status atoms_sae_step(const atoms_ctx *ctx, atoms_sae *sae, const atoms_batch *x,
                                      const atoms_sae_step_params *params, atoms_sae_stats *stats);

/* Several steps in a row, between which training is steered: what the caller would do between two steps takes as long as
 * a step of many threads. */
typedef struct {
    int64_t steps;       /* each with the next x->n / steps rows */
    const float *rates;  /* (steps,) learning rates, the thresholds' too */
    double target_l0;    /* JUMPRELU and RELU: their prices are changed until L0 is that */
    int fixed_l1;        /* RELU: control->l1 stays as it is */
    double row_multiple; /* row_limit, in multiples of what is usual; 0: none */
    double wait;         /* steps from one look for dead latents to the next; 0: nobody looks */
    int64_t k;           /* from here on as in atoms_sae_step_params; dead_after counts for those looks too */
    int64_t aux_k;
    int64_t dead_after;
    float aux_coefficient;
} atoms_sae_plan;

/* What training steers by; zeros, but for an l1 that is given, before the first step. */
typedef struct {
    double price; /* JUMPRELU: l0_coefficient of the next step: the mean gain of an activation near its threshold */
    double shift; /* JUMPRELU: threshold_shift of the next step: a Newton step towards target_l0 */
    double l1;    /* RELU: its coefficient on the whole, */
    double press; /* and the logarithm of what it is multiplied with in the next step */
    double cut;   /* BATCHTOPK: mean of the lowest active z: what thresholds are to be for inference */
    double row;   /* mean of row_scale */
    double look;  /* the step, as ATOMS_COUNTERS has it, after which dead latents are looked for next */
} atoms_sae_control;

/* Steps until all are done, one fails, a loss is not finite, or a look has found dead latents: then control->look stays, and
 * the caller, who may revive them, says when to look again. *done is how many steps changed the model and the control;
 * stats are of the last that was begun. The same bits however many steps a call has. */
ATOMS_API atoms_status atoms_sae_train(const atoms_ctx *ctx, atoms_sae *sae, const atoms_batch *x,
                                       const atoms_sae_plan *plan, atoms_sae_control *control, int64_t *done,
                                       atoms_sae_stats *stats);

/* -------------------------------------------------------------- recovery
 *
 * Sparse codes z of signals x (n, d) over a dictionary D of m atoms d_j (m, d): x_i ~ sum_j z_ij d_j. Make the dictionary
 * ready once, with its Gram matrix where that pays, then hand signals to any solver:
 *
 *     atoms_dict_new(ctx, D, ATOMS_F32, &dict);
 *     atoms_omp(ctx, dict, x, &params, &codes);
 *
 * Signals may be of any type; a solver works in the dictionary's. Norms, residuals and gaps are in the signals' own
 * units. */

/* A dictionary made ready: unit rows and their norms, in one precision, and their Gram matrix once asked for: in full,
 * in 16 bits only, or both. Immutable but for atoms_dict_gram, _units, _coarse and _fine, one of these at a time: any
 * number of threads may share it, and solvers may run on it meanwhile. */
typedef struct atoms_dict atoms_dict;

/* The atoms are copied, each divided by its norm (summed in float64). precision: ATOMS_F32 or ATOMS_F64, that of all
 * work on the dictionary. An atom of zeros is never selected. ATOMS_ERR_NONFINITE when one holds NaN or infinity. */
ATOMS_API atoms_status atoms_dict_new(const atoms_ctx *ctx, atoms_rows atoms, atoms_dtype precision, atoms_dict **dict);
ATOMS_API void atoms_dict_free(atoms_dict *dict);
ATOMS_API int64_t atoms_dict_n_atoms(const atoms_dict *dict);
ATOMS_API int64_t atoms_dict_d_in(const atoms_dict *dict);
ATOMS_API atoms_dtype atoms_dict_precision(const atoms_dict *dict);

/* Computes the Gram matrix, half of it by products and half by copying; nothing to do the second time. m^2 elements,
 * m rounded up to a multiple of 64. */
ATOMS_API atoms_status atoms_dict_gram(const atoms_ctx *ctx, atoms_dict *dict);
ATOMS_API int atoms_dict_has_gram(const atoms_dict *dict);

/* The other three make what lets solvers screen atoms at a lower precision, and change no code beyond rounding: only
 * with VNNI in float32. Elsewhere they do nothing and return ATOMS_OK. */

/* The atoms once more in 16 bits, from which OMP and lasso take the correlations that they screen atoms by. */
ATOMS_API atoms_status atoms_dict_units(const atoms_ctx *ctx, atoms_dict *dict);
ATOMS_API int atoms_dict_has_units(const atoms_dict *dict);
/* These, and a Gram matrix from them, of 2 bytes an element, with a bound on what is missing: in place of a full one,
 * where few atoms have near neighbours. Not once there are the units or a full one. */
ATOMS_API atoms_status atoms_dict_coarse(const atoms_ctx *ctx, atoms_dict *dict);
ATOMS_API int atoms_dict_has_coarse(const atoms_dict *dict);
/* The full Gram matrix once more, rounded to 16 bits, for OMP's passes to read in half the time; nothing where there is
 * no full one. */
ATOMS_API atoms_status atoms_dict_fine(const atoms_ctx *ctx, atoms_dict *dict);

/* What became of one signal. */
typedef enum {
    ATOMS_SIGNAL_CONVERGED = 0,  /* the stopping rule was met, or the residual is all rounding */
    ATOMS_SIGNAL_DEPENDENT = 1,  /* the same, after leaving out atoms in the span of those chosen: OMP only */
    ATOMS_SIGNAL_LIMIT = 2,      /* stopped by the limit on atoms or steps; the code is the best yet */
    ATOMS_SIGNAL_NONFINITE = 3,  /* NaN or infinity in the signal: empty code, residual and gap NaN */
    ATOMS_SIGNAL_RANGE = 4,      /* a coefficient is too large for the type: empty code */
    ATOMS_SIGNAL_INFEASIBLE = 5, /* no code meets the constraint: the code is the nearest found. Basis pursuit only */
    ATOMS_SIGNAL_OPEN = 6        /* its working set outgrew most_atoms: empty code. Lasso only */
} atoms_signal_status;

/* Where a solver writes. The caller's arrays, one row for each signal. */
typedef struct {
    int64_t width;    /* entries from one row of indices and values to the next: at least what the solver asks for */
    int32_t *indices; /* (n, width) atoms of the code, increasing; set up to counts[i], beyond it unspecified */
    void *values;     /* (n, width) their coefficients, of the dictionary's precision */
    int32_t *counts;  /* (n) entries of each code */
    int8_t *status;   /* (n) atoms_signal_status */
    int32_t *steps;   /* (n) atoms chosen, working sets tried, steps taken: as the solver says */
    double *residual; /* (n) |x - z D|, summed in float64; NULL: not wanted */
    double *gap;      /* (n) duality gap, of lasso and basis pursuit alone; NULL: not wanted */
} atoms_codes;

typedef struct {
    int64_t n_nonzero;           /* most atoms in a code, 1 .. min(m, d); the codes' least width */
    double tol;                  /* stop once the residual's norm (not squared) is at most this; < 0: never */
    int ols;                     /* choose by alpha^2 / |orthogonalised atom|^2 (OLS, ORMP), not by alpha^2 */
    int nonnegative;             /* codes >= 0, refitted by non-negative least squares; excludes ols */
    const int64_t *warm_indptr;  /* (n + 1) NULL, or where each signal's atoms begin in */
    const int32_t *warm_indices; /* the atoms to be chosen first, in this order */
} atoms_omp_params;

/* Orthogonal matching pursuit: the atom most like the residual joins, least squares on all that were chosen. With a Gram
 * matrix the step at t atoms costs m t products a signal; without, m d (one matrix product for a tile of signals).
 * steps: atoms chosen, those that left a non-negative code again included. */
ATOMS_API atoms_status atoms_omp(const atoms_ctx *ctx, const atoms_dict *dict, atoms_rows x,
                                 const atoms_omp_params *params, const atoms_codes *codes);

typedef struct {
    int64_t n_alphas;
    const double *alphas; /* penalties, decreasing; each starts from the one before */
    int positive;         /* codes >= 0 */
    double tol;           /* > 0: stop at a duality gap of tol |x|^2 */
    int64_t max_rounds;   /* working sets tried for each penalty */
    int64_t most_atoms;   /* in a working set where 16-bit rows serve, or the signal is left open; 0: they do not */
} atoms_lasso_params;

/* argmin 1/2 |x - z D|^2 + alpha sum |z_j|, by coordinate descent on working sets, and by active sets where that creeps.
 * Codes of width m at least; those of penalty a and signal i go to row a n + i. steps: working sets tried. With 16-bit rows
 * the products of a working set are taken one by one, which is dear for large ones: there the Gram matrix does it. */
ATOMS_API atoms_status atoms_lasso(const atoms_ctx *ctx, const atoms_dict *dict, atoms_rows x,
                                   const atoms_lasso_params *params, const atoms_codes *codes);

typedef struct {
    double sigma;      /* largest norm of the residual; 0: equality */
    double tol;        /* > 0: relative duality gap */
    int64_t max_steps; /* penalties tried, or steps of the interior-point method */
} atoms_basis_params;

/* argmin sum |z_j| subject to |x - z D| <= sigma, for dictionaries of float64 only. With equality, which is a residual of
 * at most 1e-9 |x|: matching pursuit where a dual certificate proves its code optimal, else a primal-dual interior-point
 * method (m d^2 a step). Otherwise: the lasso's penalty at which the residual is sigma. What these leave open is solved
 * by active sets. CONVERGED: the code given meets the constraint and has the gap. INFEASIBLE: a residual that no atom is
 * part of proves that no code does. Codes of width m at least. */
ATOMS_API atoms_status atoms_basis(const atoms_ctx *ctx, const atoms_dict *dict, atoms_rows x,
                                   const atoms_basis_params *params, const atoms_codes *codes);

typedef enum {
    ATOMS_PURSUIT_MP = 0,       /* matching pursuit: the strongest atom, its coefficient alone */
    ATOMS_PURSUIT_GRADIENT = 1, /* the strongest atom joins, one gradient step on those chosen */
    ATOMS_PURSUIT_COSAMP = 2,   /* 2 n_nonzero atoms merged with the code, least squares, the largest kept */
    ATOMS_PURSUIT_IHT = 3       /* normalised iterative hard thresholding */
} atoms_pursuit_method;

typedef struct {
    atoms_pursuit_method method;
    int64_t n_nonzero; /* most atoms in a code, 1 .. min(m, d); the codes' least width */
    int64_t max_steps; /* >= 1 */
    double tol;        /* stop at this norm of the residual (< 0: never); COSAMP and IHT also stop when the residual no
                          longer falls */
} atoms_pursuit_params;

/* steps: those of the method. */
ATOMS_API atoms_status atoms_pursuit(const atoms_ctx *ctx, const atoms_dict *dict, atoms_rows x,
                                     const atoms_pursuit_params *params, const atoms_codes *codes);

typedef struct {
    const double *tau; /* (n) the least correlation that counts, signal by signal */
    int signed_codes;  /* non-zero: the least magnitude */
} atoms_threshold_params;

/* The one-pass code: correlations <x, d_j> with the atoms as given that are at least tau, the rest zero. Codes of width
 * m at least. steps: 0. */
ATOMS_API atoms_status atoms_threshold(const atoms_ctx *ctx, const atoms_dict *dict, atoms_rows x,
                                       const atoms_threshold_params *params, const atoms_codes *codes);

/* top (n) = max over atoms of |<x, d_j>|; NaN for a signal that is not finite. */
ATOMS_API atoms_status atoms_correlation_max(const atoms_ctx *ctx, const atoms_dict *dict, atoms_rows x, double *top);

typedef struct {
    const double *rate;   /* (m) how often each atom fires, above 0 and under 1 */
    const double *height; /* (m) what its coefficient is then, on average, and */
    const double *spread; /* (m) by how much it differs from that, a standard deviation; both in units of unit atoms */
    double noise;         /* > 0: standard deviation of each coordinate of what is no atom's */
    int64_t n_candidates; /* atoms looked at in a signal, 1 .. m; the codes' least width */
    int64_t rounds;       /* >= 1: times that these are chosen, and */
    int64_t sweeps;       /* >= 1: how often each time all of them are gone through */
    double least;         /* probability of firing from which on an atom is part of the code */
    float *probability;   /* (n, width) OUT: that of each entry of the codes; NULL: not wanted */
} atoms_spikes_params;

/* The posterior mean of codes >= 0 by mean field, for float32 dictionaries: z_j fires or not, independently, and is normal
 * where it does; the rest is white noise. The candidates are the atoms that correlate most with the signal and, in later
 * rounds, with what their forerunners left of it plus their own share of that; each in turn takes its mean given the
 * others': with h_j = d_j . (x - sum over l != j of z_l d_l), v = noise^2, s_j = spread_j^2,
 *   log-odds_j = log(rate_j / (1 - rate_j)) - log((v + s_j) / v) / 2 + h_j^2 / 2 v - (h_j - height_j)^2 / 2 (v + s_j),
 *   z_j = P_j max(0, (s_j h_j + v height_j) / (v + s_j)), P_j the probability of these odds, and 0 where h_j <= 0.
 * At first z_j is 0.7 of its correlation where that is above half its height, and the highest of all candidates within
 * 60 degrees of it; else 0. Of two such neighbours that could stand for each other only one fires: where the nearest of
 * an atom fires and it does not, it takes that one's place if its odds without the other are better.
 * steps: the candidates. Cost: a product with all atoms for each round, and half the candidates' Gram matrix. */
ATOMS_API atoms_status atoms_spikes(const atoms_ctx *ctx, const atoms_dict *dict, atoms_rows x,
                                    const atoms_spikes_params *params, const atoms_codes *codes);

/* One pass over the atoms that codes were made with, towards those that rebuild the signals better (block coordinate
 * descent, codes kept). Atom j, in turn, with the residuals r_i = x_i - z_i D as its forerunners left them:
 *   energy_j = keep energy_j + sum_i z_ij^2,   step = sum_i z_ij r_i / energy_j,   d_j += step,   r_i -= z_ij step
 * `sweeps` times (energy_j changes in the first alone), then every atom that a code used gets unit norm. The past comes
 * in as energy, the weight with which an atom stays where earlier signals brought it: with keep = 0 it is the least
 * squares fit of each atom to these signals, with the energy of many the online step. No matrix atoms x atoms is made.
 * atoms (m, d) and energy (m, float64) are brought up to date; m = codes->width. Atoms of no code, and with energy zero,
 * stay. Steps and residuals are float32, sums over the signals in their order; energies and norms float64.
 * Memory: 64 (n + m) floats for each thread, 12 bytes for each coefficient. ATOMS_ERR_ARGUMENT where codes and signals
 * differ in number or an index is out of range; ATOMS_ERR_NONFINITE where an atom becomes NaN, infinite or zero. On any
 * error atoms and energy are unspecified. */
ATOMS_API atoms_status atoms_fit_atoms(const atoms_ctx *ctx, atoms_rows x, const atoms_csr_view *codes, double keep,
                                       int64_t sweeps, float *atoms, double *energy);

/* Unit atoms (m, d) drawn apart: out (m, d), another array, are
 *   d_i - 1/2 sum_j w_ij <d_i, d_j> d_j over all j != i with |<d_i, d_j>| >= least,
 *   w_ij = max(incoherence, 2 p_ij - 1) e_j / (e_i + e_j), p_ij the share of atom i's signals in the codes that are j's too,
 * at unit norm; an atom of which that would leave no more than 0.3 stays. Atoms that fire together in nearly every signal can be
 * mixed at hardly any loss; this leads to the least coherent of all those mixtures, the atom of less energy e (m, above 0)
 * giving way. incoherence 1 draws all atoms apart, whether they meet or not. m = codes->width. m^2 d products; m floats for
 * each thread and each of 64 atoms, 8 bytes for each coefficient. */
ATOMS_API atoms_status atoms_part_atoms(const atoms_ctx *ctx, const atoms_csr_view *codes, int64_t d,
                                        const float *atoms, const double *energy, double least, double incoherence,
                                        float *out);

/* ---------------------------------------------------------------- theory */

/* Plain float32 rows (n, d), contiguous: most of this room takes unit rows, as atoms_unit_rows gives them. */
typedef struct {
    const float *at;
    int64_t n, d;
} atoms_matrix;

/* unit (n, d) = rows of x times whitener (d, d) or NULL, divided by their norms (n); all in float64, then unit rounded
 * to float32. ATOMS_ERR_NONFINITE for a row of zeros or with NaN or infinity: the first such is *bad_row, else -1.
 * Memory: 256 rows in float64 for each thread. */
ATOMS_API atoms_status atoms_unit_rows(const atoms_ctx *ctx, atoms_rows x, const double *whitener, float *unit,
                                       double *norms, int64_t *bad_row);

/* For each row of a the row of b, b.n >= 1, with the largest product with it, or with absolute != 0 the largest
 * |product|: index (a.n), the first of equals, and value (a.n), that product or |product|. back_index and back_value
 * (b.n): the same for each row of b among those of a, a.n >= 1, from the same products; both NULL: not wanted. */
ATOMS_API atoms_status atoms_nearest(const atoms_ctx *ctx, atoms_matrix a, atoms_matrix b, int absolute, int64_t *index,
                                     float *value, int64_t *back_index, float *back_value);

/* babel (kmax) float64: babel[k - 1] is the largest, over atoms, sum of the k largest |cosines| of an atom with others;
 * 1 <= kmax < n. Memory: 128 rows of n float32 and two more for each thread. */
ATOMS_API atoms_status atoms_babel(const atoms_ctx *ctx, atoms_matrix unit, int64_t kmax, double *babel);

/* |cosines| of all pairs i < j: float32 products of fixed tiles, so the same numbers in every call and for any number
 * of threads. They are counted by the bits of the float32, which are ordered as the numbers are: the coarse bin of a
 * cosine is its bits without the lowest ATOMS_COSINE_LOW_BITS, so that each power of two is cut into 2^(23 - 13) = 1024
 * bins. 0x3f800000 are the bits of 1, the largest: ATOMS_COSINE_BINS bins in all, counted by atoms_cosine_histogram.
 * atoms_cosine_refine counts the single values within chosen bins, by the lowest bits: slot (ATOMS_COSINE_BINS) holds
 * for each bin -1 or its row of counts (num_slots, 1 << ATOMS_COSINE_LOW_BITS).
 * Memory: the counts and 1 MB for each thread. */
#define ATOMS_COSINE_LOW_BITS 13
#define ATOMS_COSINE_BINS ((0x3f800000 >> ATOMS_COSINE_LOW_BITS) + 1)

ATOMS_API atoms_status atoms_cosine_histogram(const atoms_ctx *ctx, atoms_matrix unit, int64_t *counts);
ATOMS_API atoms_status atoms_cosine_refine(const atoms_ctx *ctx, atoms_matrix unit, const int32_t *slot,
                                           int64_t num_slots, int64_t *counts);

/* Explained variance: sums over samples x with reconstructions h and errors e = x - h, for two groups of samples, 0:
 * ordinary, 1: massive. */
#define ATOMS_EV_ROWS 8   /* of sums: those of x, x^2, e and e^2, each as a row of high and a row of low halves */
#define ATOMS_EV_TOKENS 4 /* numbers for each sample */

typedef struct {
    double massive_norm;    /* a sample is massive when its Euclidean norm, before whitening, is above this; >= 0 */
    const double *whitener; /* (d, d): x and e are multiplied by it before they are summed; NULL: not */
    const double *mean;     /* (d): in the space after whitening; NULL: zero */
} atoms_ev_params;

/* h.data NULL: zero. sums (2, ATOMS_EV_ROWS, d) per group and coordinate, of about 106 bits: calls add, the caller has
 * zeroed them before the first. tokens (n, ATOMS_EV_TOKENS), in float64: the squared norm of the plain x, then in the
 * space after whitening the sums over coordinates of x^2, e^2 and (x - mean)^2.
 * ATOMS_ERR_NONFINITE where a row of x or h holds NaN or infinity, or has a norm whose square overflows: *bad_row is
 * one such, else -1. Then, and on any other error, sums holds some of the rows.
 * Memory: 576 rows in float64 for each thread. */
ATOMS_API atoms_status atoms_ev_update(const atoms_ctx *ctx, atoms_rows x, atoms_rows h, const atoms_ev_params *params,
                                       double *sums, double *tokens, int64_t *bad_row);

#ifdef __cplusplus
}
#endif
#endif /* ATOMS_H */
