/* templates.h: the words in which this room's templates (*.inc) speak of their number type and instruction set.
 *
 * A file that makes an instance includes its instruction set's header, this one, and then for each number type
 *     #define NUMBER f32          or f64
 *     #include "omp.inc"
 *     #undef NUMBER
 * Macros are expanded where they are used, so what is written here once means float in one inclusion and double in the
 * next. INSTANCE is the name of the instruction set, in the names of the tables. */
#ifndef ATOMS_RECOVERY_TEMPLATES_H
#define ATOMS_RECOVERY_TEMPLATES_H

#include "exact.h"
#include "kernels.h"
#include "nonnegative.h"

#include <math.h>

#define JOIN_(a, b) a##_##b
#define JOIN(a, b) JOIN_(a, b)
#define FN(name) JOIN(name, NUMBER) /* each function of a template */
#define TABLE(name) JOIN(JOIN(name, INSTANCE), NUMBER)

/* The number type T, the core's product for it, and its vectors: see isa/vectors.h. */
typedef float number_f32;
typedef double number_f64;
#define T FN(number)
#define GEMM FN(atoms_gemm)
#define IN JOIN(FN(atoms), in)
#define OUT JOIN(FN(atoms), out)
#define VLEN FN(VLEN)
#define vec FN(vec)
#define vec_u FN(vec_u)
#define lanes_of FN(lanes)
#define vset FN(vset)
#define vmax FN(vmax)
#define vmin FN(vmin)
#define vrcp FN(vrcp)
#define vge FN(vge)
#define vsum FN(vsum)
#define vtop FN(vtop)
#define vlow FN(vlow)

#define EPS FN(EPS) /* rounding of T: twice the most that it takes from 1 */
#define EPS_f32 0x1p-23
#define EPS_f64 0x1p-52
#define DEPENDENT FN(DEPENDENT) /* least rho^2 of an atom that counts as new: see omp.inc */
#define DEPENDENT_f32 3e-5f
#define DEPENDENT_f64 1e-12
#define LEAST FN(LEAST) /* the least number of full precision */
#define LEAST_f32 0x1p-126
#define LEAST_f64 0x1p-1022
#define NRM_FLOOR FN(NRM_FLOOR) /* least nrm in a score, against division by nothing: see omp.inc */
#define NRM_FLOOR_f32 0x1p-19f
#define NRM_FLOOR_f64 1e-13

/* 1 where OMP can keep its rows u as pairs of 16-bit integers: float32 where there are products of them. */
#define QUANTISED FN(QUANTISED)
#define QUANTISED_f32 PAIRS
#define QUANTISED_f64 0

/* 1 where 16-bit correlations and Gram matrices will do for OMP. */
#ifndef UNITS
#define UNITS 0
#endif

enum {
    MOST_TRIES = 64,  /* atoms that a step of OMP evaluates after a coarse screen */
    LEFT_OVER = 8,    /* signals that it leaves open, taken together */
    ASK_EVERY = 8,    /* rounds of steps: the question whether to stop reads a clock */
    IN_FLIGHT = 2,    /* signals in flight on a thread: one's Gram row is fetched during the other's pass; */
    FLIGHT = 1 << 20, /* bytes of rows u of T, or one signal at a time: a second-level cache would not hold both */
    OPEN = -2,        /* no atom was chosen: a coarse screen cannot tell */
    CROWDED = -3,     /* nor was one here: evaluating those that may be best costs more than alphas made anew */
    NEAR_SHARE = 8,   /* lasso: one atom in so many is evaluated by itself at most: all at once cost less each */
    SWEEPS = 14,      /* lasso: of coordinate descent, after which it is taken to creep */
    NEWCOMERS = 48,   /* lasso: atoms that join the set in a round, or as many as are in the code */
    ADMISSION_BINS = 64,
    CREEPS = 30,     /* lasso: rounds after which the set is solved exactly: others need 2 to 25; */
    STALLS = 3,      /* or so many in a row without a gap that falls */
    QUICK = 30,      /* denoising: penalties after which it is solved exactly: others need 2 to 5 */
    KEPT = 64,       /* atoms of which a signal that waits keeps the Gram matrix */
    FACTOR_ROWS = 4, /* of a Cholesky factor that are made together, by so many columns: */
    FACTOR_STRIP = 2 * VLEN_f64,
    RESIDUAL_PART = 64, /* coordinates of a residual that are summed together */
};
#define FIRST_SHARE 0.3 /* of the worst violation: most smaller ones are not of the code, as long as little is fitted */

/* Types of the templates, each explained where it is defined. */
#define state FN(state)
#define narrow FN(narrow)
#define job FN(job)
#define problem FN(problem)
#define inputs FN(inputs)
#define flight FN(flight)
#define scratch FN(scratch)
#define unit_code FN(unit_code)
#define lasso_job FN(lasso_job)
#define denoise_job FN(denoise_job)
#define pursuit_job FN(pursuit_job)
#define threshold_job FN(threshold_job)
#define guess FN(guess)
#define spikes_field FN(spikes_field)

/* What a step's pass reads of the chosen atom: the row u itself, or a row of a Gram matrix, of T or of 16 bits. */
typedef enum { U_ITSELF, GRAM_ROW, SHORT_ROW } pass_source;

#endif
