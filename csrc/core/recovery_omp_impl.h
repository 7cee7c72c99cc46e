/* recovery_omp_impl.h: orthogonal matching pursuit of one tile of signals, for one number type
 * and one instruction set. Included by recovery_{portable,avx2,avx512}.c, which define
 *   T, GEMM, FN(name)                     number type, its product, name mangling
 *   VLEN, VMAX, VMIN, VRCP, BCAST          vectors of T
 *   GE_LANES                               those lanes of a that are at least b's, as bits
 *   EPS, DEPENDENT                         rounding of T; least rho^2 of an atom that counts as new
 *   NRM_FLOOR                              least nrm in a score, against division by nothing
 *   QUANTISED                              0, or 1 with the operations on 16-bit pairs:
 *   IVEC, MADD, TO_T, TO_INT, ...          see recovery_avx512.c
 *   UNITS, UNITS_ROW                       if defined, 16-bit correlations and Gram matrices will do
 *
 * With chosen atoms d_1 .. d_t (unit rows), q_1 .. q_t their Gram-Schmidt basis and L = [d_i . q_k]:
 *   u_k[j] = q_k . d_j         kept for every atom j, in panels [atoms / PANEL][step][PANEL], so
 *                              that a step reads one stream: u_t = (G_i - sum_k w_k u_k) / rho
 *                              with w = L^-1 G_i,chosen and rho^2 = 1 - |w|^2;
 *   alpha[j] = d_j . r         falls by c u_t[j], c = alpha[i] / rho;
 *   nrm[j] = 1 - sum_k u_k[j]^2, what is left of atom j outside the span (for OLS);
 *   gamma = L^-T c             the coefficients, updated by c times a row of L^-1.
 * The update of alpha and nrm and the search for the next atom are one pass over the atoms,
 * bound by the bandwidth of the panels. float32 work on vector machines therefore keeps u, and
 * w during the pass, as 16-bit integers, unit 2^-15, two steps to a 32-bit word: half the
 * bytes, and one multiply-add for two steps. No sum overflows: by Cauchy and Schwarz every
 * partial sum of w_k u_k is at most 1 = 2^30 units. The pass then only screens. With rounding
 * errors e of at most 2^-16 in u and w, alpha[j] is off by at most
 *   2^-16 (|gamma rho|_1 + |gamma|_1 sqrt(t (1 - nrm[j])));
 * every atom that could win within that bound is evaluated from the Gram matrix at full
 * precision, and so are w, rho, c and gamma: the choice and the codes are those of T.
 *
 * Correlations with the signal from 16-bit products only make alpha less certain by their error; the atom that is
 * evaluated is multiplied with the signal anew. A pass may read a Gram matrix of 16 bits, off by at most e: the full one
 * rounded, to read half as much, or a coarse one of 16-bit products in its place, and then what is evaluated comes
 * from the atoms themselves. The rows u are L^-1 times rows that are off by e, so alpha[j] is off by e |gamma|_1 more,
 * and nrm[j] by 2 |du| + |du|^2 with |du| <= e sqrt(t) |L^-1|_F. Where either leaves more than MOST_TRIES atoms open,
 * the signal is coded again without such shortcuts. */

#define vec FN(vec)
#define vec_u FN(vec_u)
#define lanes_of FN(lanes_of)
#define state FN(state)
#ifndef UNITS
#define UNITS 0
#endif
#define MOST_TRIES 64
#define LEFT_OVER 8 /* signals that run_free takes at a time from a coarse tile */
#define GROUP 2 /* signals in flight on a thread: one's Gram row is fetched during the other's pass */

typedef T vec __attribute__((vector_size(VLEN * sizeof(T))));
typedef __typeof__((vec){0} < (vec){0}) lanes_of;
typedef T vec_u __attribute__((vector_size(VLEN * sizeof(T)), aligned(sizeof(T)), may_alias));

#if QUANTISED
typedef int32_t FN(stored); /* (u_2k in the low half, u_2k+1 in the high one) */
#define ROWS(ld) ((ld) / 2) /* of a panel: ld is even */
#else
typedef T FN(stored);
#define ROWS(ld) (ld)
#endif

typedef struct {
    int64_t i; /* signal within the tile; -1: slot empty */
    int64_t t, ld, np;
    const int32_t *warm;
    int64_t n_warm;
    double energy, tol2; /* |r|^2 and its limit, signal at unit norm */
    bool dependent, drained;
    const T *alpha0, *x;
    double alpha_error; /* of alpha0; 0 where nothing is 16-bit but u */
    const int16_t *rows; /* the Gram matrix in 16 bits that passes read, off by row_error; NULL: they read dict->gram */
    double row_error;
    double inverse2;    /* |L^-1|_F^2 */
    double spanned;     /* the best score of the atoms in the span that were met in this step */
    T *alpha, *nrm, *lanes; /* lanes: VLEN lane-wise best scores for each panel */
    T top, nrm_min, slack;  /* nrm is kept lower by slack: scores err upwards */
    int64_t at;             /* the atom of the best score; -1: not looked up yet */
    FN(stored) *u;
    T *linv, *linv_t;             /* L^-1 by rows and by columns */
    T *w, *w_try, *g, *c, *gamma, *rho;
    T alpha_i, rho2; /* of the atom whose w is in `w` */
    int32_t *chosen, *pairs; /* pairs: w in 16-bit units, two steps to a word */
} state;

/* ------------------------------------------------------------- vector odds */

#ifdef VSUM
#define SUM_LANES(v) VSUM(v)
#define MAX_LANES(v) VTOP(v)
#define MIN_LANES(v) VLOW(v)
#else
#define BY_LANE(name, op)                                                                                             \
    static inline T FN(name)(vec v)                                                                                   \
    {                                                                                                                 \
        T s = v[0];                                                                                                   \
        for (int k = 1; k < VLEN; k++)                                                                                \
            s = op(s, v[k]);                                                                                          \
        return s;                                                                                                     \
    }
#define ADD(a, b) ((a) + (b))
BY_LANE(sum_lanes, ADD)
BY_LANE(max_lanes, ATOMS_MAX)
BY_LANE(min_lanes, ATOMS_MIN)
#define SUM_LANES(v) FN(sum_lanes)(v)
#define MAX_LANES(v) FN(max_lanes)(v)
#define MIN_LANES(v) FN(min_lanes)(v)
#endif

static inline T FN(dot)(int64_t n, const T *a, const T *b)
{
    vec s[4] = {{0}};
    int64_t i = 0;
    for (; i + 4 * VLEN <= n; i += 4 * VLEN)
        for (int k = 0; k < 4; k++)
            s[k] += *(const vec_u *)(a + i + k * VLEN) * *(const vec_u *)(b + i + k * VLEN);
    T tail = 0;
    for (; i < n; i++)
        tail += a[i] * b[i];
    return SUM_LANES((s[0] + s[1]) + (s[2] + s[3])) + tail;
}

/* The same over whole vectors: n rounded up, both zero from n on. */
static inline T FN(short_dot)(int64_t n, const T *a, const T *b)
{
    vec s = {0};
    for (int64_t i = 0; i < n; i += VLEN)
        s += *(const vec *)(a + i) * *(const vec *)(b + i);
    return SUM_LANES(s);
}

/* y (rows, padded) = sum over k < n of x[k] m[k][.], m with leading dimension ld */
static inline void FN(combine)(int64_t n, int64_t rows, const T *m, int64_t ld, const T *x, T *y)
{
    for (int64_t r = 0; r < rows; r += VLEN) {
        vec even = {0}, odd = {0};
        int64_t k = 0;
        for (; k + 2 <= n; k += 2) {
            even += x[k] * *(const vec *)(m + k * ld + r);
            odd += x[k + 1] * *(const vec *)(m + (k + 1) * ld + r);
        }
        if (k < n)
            even += x[k] * *(const vec *)(m + k * ld + r);
        *(vec *)(y + r) = even + odd;
    }
}

/* ------------------------------------------------------------------ passes */

static inline __attribute__((always_inline)) vec FN(scores)(vec alpha, vec nrm, bool nonnegative)
{
    vec zero = {0};
    if (nonnegative)
        alpha = VMAX(alpha, zero);
    return alpha * alpha * VRCP(VMAX(nrm, BCAST(NRM_FLOOR)));
}

static inline void FN(close_pass)(state *s, vec best, vec nrm_min)
{
    s->at = -1;
    s->top = MAX_LANES(best);
    s->nrm_min = MIN_LANES(nrm_min);
}

/* The first pass: nothing chosen yet. */
static void FN(open_pass)(state *s, bool nonnegative)
{
    vec all = {0}, nrm_min = BCAST(1);
    for (int64_t p = 0; p < s->np; p += PANEL) {
        vec best = {0};
        for (int64_t j = p; j < p + PANEL; j += VLEN) {
            vec a = *(const vec *)(s->alpha0 + j);
            *(vec *)(s->alpha + j) = a;
            best = VMAX(best, FN(scores)(a, *(const vec *)(s->nrm + j), nonnegative));
        }
        *(vec *)(s->lanes + p / PANEL * VLEN) = best;
        all = VMAX(all, best);
    }
    FN(close_pass)(s, all, nrm_min);
}

#if QUANTISED
/* w in units of 2^-15, in pairs; an odd one out is paired with zero. */
static void FN(pack_pairs)(int64_t t, const T *w, int32_t *pairs)
{
    for (int64_t k = 0; k < t; k += 2) {
        int32_t low = (int32_t)lrintf(w[k] * 0x1p15f);
        int32_t high = k + 1 < t ? (int32_t)lrintf(w[k + 1] * 0x1p15f) : 0;
        pairs[k / 2] = (int32_t)((uint32_t)low & 0xffff) | (int32_t)((uint32_t)high << 16);
    }
}
#endif

/* a (4 VLEN atoms) = (a - sum over k < t of w_k u_k) / rho for the strip whose stored rows begin
 * at u; the result becomes row t. */
#if QUANTISED
static inline __attribute__((always_inline)) void FN(orthogonalise)(vec *a, int32_t *u, int64_t t,
                                                                    const int32_t *pairs,
                                                                    int64_t next, T inverse)
{
    IVEC sum[4] = {{0}}, last[4] = {{0}};
    for (int64_t k = 0; k < (t + 1) / 2; k++) {
        IVEC w = IBCAST(pairs[k]);
        __builtin_prefetch(u + k * PANEL + next);
        __builtin_prefetch(u + k * PANEL + next + 2 * VLEN);
        for (int m = 0; m < 4; m++) {
            last[m] = *(const IVEC *)(u + k * PANEL + m * VLEN);
            sum[m] = MADD(sum[m], w, last[m]);
        }
    }
    for (int m = 0; m < 4; m++) {
        a[m] = (a[m] - TO_T(sum[m]) * (T)0x1p-30) * inverse;
        IVEC units = TO_INT(VMAX(VMIN(a[m] * (T)0x1p15, BCAST(0x7fff)), BCAST(-0x7fff)));
        IVEC *to = (IVEC *)(u + t / 2 * PANEL + m * VLEN);
        *to = t % 2 ? HIGH_HALF(last[m], units) : LOW_HALF(units);
    }
}
#else
static inline __attribute__((always_inline)) void FN(orthogonalise)(vec *a, T *u, int64_t t,
                                                                    const T *w, int64_t next,
                                                                    T inverse)
{
    for (int64_t k = 0; k < t; k++) {
        vec wk = BCAST(w[k]);
        __builtin_prefetch(u + k * PANEL + next);
        for (int m = 0; m < 4; m++)
            a[m] -= wk * *(const vec *)(u + k * PANEL + m * VLEN);
    }
    for (int m = 0; m < 4; m++) {
        a[m] *= inverse;
        *(vec *)(u + t * PANEL + m * VLEN) = a[m];
    }
}
#endif

typedef enum { FN(U_ITSELF), FN(GRAM_ROW), FN(SHORT_ROW) } FN(source);

/* One step's pass. row: what the source says, of T or of 16 bits. */
static inline __attribute__((always_inline)) void FN(pass)(state *s, const void *restrict row, FN(source) source,
                                                           bool ols, bool nonnegative)
{
    bool gram = source != FN(U_ITSELF);
    int64_t t = s->t, np = s->np, height = ROWS(s->ld) * PANEL;
    T c = s->c[t], inverse = 1 / s->rho[t];
    T *restrict alphas = s->alpha, *restrict nrms = s->nrm, *restrict lanes = s->lanes;
#if QUANTISED
    FN(pack_pairs)(t, s->w, s->pairs);
    const int32_t *w = s->pairs;
#else
    const T *w = s->w;
#endif
    vec all = {0}, nrm_min = BCAST(1);
    for (int64_t p = 0; p < np; p += PANEL) {
        vec best = {0};
        FN(stored) *panel = gram ? s->u + p / PANEL * height : NULL;
        for (int64_t j = 0; j < PANEL; j += 4 * VLEN) {
            vec a[4];
            for (int m = 0; m < 4; m++) {
                int64_t at = p + j + m * VLEN;
#if UNITS
                if (source == FN(SHORT_ROW)) {
                    a[m] = UNITS_ROW((const int16_t *)row + at) * (T)(1.0 / SHORT_ONE);
                    continue;
                }
#endif
                a[m] = *(const vec *)((const T *)row + at);
            }
            if (gram)
                FN(orthogonalise)(a, panel + j, t, w, height, inverse);
            for (int m = 0; m < 4; m++) {
                vec *alpha = (vec *)(alphas + p + j + m * VLEN);
                vec *nrm = (vec *)(nrms + p + j + m * VLEN);
                vec x = *alpha - c * a[m], y = *nrm;
                *alpha = x;
                if (ols) {
                    y -= a[m] * a[m];
                    *nrm = y;
                    nrm_min = VMIN(nrm_min, y);
                }
                best = VMAX(best, FN(scores)(x, y, nonnegative));
            }
        }
        *(vec *)(lanes + p / PANEL * VLEN) = best;
        all = VMAX(all, best);
    }
    FN(close_pass)(s, all, nrm_min);
}

static inline __attribute__((always_inline)) void FN(pass_by)(state *s, const void *row, FN(source) source,
                                                              const atoms_omp_params *p)
{
    if (p->ols)
        FN(pass)(s, row, source, true, false);
    else if (p->nonnegative)
        FN(pass)(s, row, source, false, true);
    else
        FN(pass)(s, row, source, false, false);
}

static void FN(run_pass)(state *s, const void *row, FN(source) source, const atoms_omp_params *p)
{
    if (source == FN(GRAM_ROW))
        FN(pass_by)(s, row, FN(GRAM_ROW), p);
#if UNITS
    else if (source == FN(SHORT_ROW))
        FN(pass_by)(s, row, FN(SHORT_ROW), p);
#endif
    else
        FN(pass_by)(s, row, FN(U_ITSELF), p);
}

/* --------------------------------------------------------------- selection */

static inline T FN(score)(const state *s, int64_t j, bool nonnegative)
{
    T a = s->alpha[j];
    if (nonnegative && a < 0)
        return 0;
    return a * a / ATOMS_MAX(s->nrm[j], (T)NRM_FLOOR);
}

static inline vec FN(score_at)(const state *s, int64_t j, bool nonnegative)
{
    return FN(scores)(*(const vec *)(s->alpha + j), *(const vec *)(s->nrm + j), nonnegative);
}

/* The atom of the best score, as far as the pass can tell; -1 when every score is zero. */
static int64_t FN(locate)(state *s, bool nonnegative)
{
    if (s->at >= 0 || !(s->top > 0))
        return s->at;
    vec top = BCAST(s->top);
    int64_t p = 0;
    while (!GE_LANES(*(const vec *)(s->lanes + p / PANEL * VLEN), top))
        p += PANEL;
    while (!GE_LANES(FN(score_at)(s, p, nonnegative), top))
        p += VLEN;
    vec score = FN(score_at)(s, p, nonnegative);
    int k = 0;
    while (score[k] < s->top)
        k++;
    return s->at = p + k;
}

/* Takes atom j out of the running for good. */
static void FN(exclude)(state *s, int64_t j, bool nonnegative)
{
    int64_t p = j / PANEL * PANEL;
    s->nrm[j] = (T)INFINITY;
    vec best = {0}, all = {0};
    for (int64_t i = p; i < p + PANEL; i += VLEN)
        best = VMAX(best, FN(score_at)(s, i, nonnegative));
    *(vec *)(s->lanes + p / PANEL * VLEN) = best;
    for (int64_t i = 0; i < s->np / PANEL * VLEN; i += VLEN)
        all = VMAX(all, *(const vec *)(s->lanes + i));
    FN(close_pass)(s, all, BCAST(s->nrm_min));
}

/* alpha, rho^2 and w of atom j at full precision; the score, 0 where alpha is but rounding, or -1 where j is in the
 * span. */
static double FN(evaluate)(const atoms_dict *dict, state *s, int64_t j,
                           const atoms_omp_params *p, T *w, T *alpha, T *rho2)
{
    const T *atoms = dict->atoms, *gram = dict->gram;
    int64_t t = s->t;
    for (int64_t k = 0; k < t; k++)
        s->g[k] = gram ? gram[j * dict->np + s->chosen[k]]
                       : FN(dot)(dict->d, atoms + j * dict->d, atoms + s->chosen[k] * dict->d);
    FN(combine)(t, t, s->linv_t, s->ld, s->g, w);
    for (int64_t k = t; k % VLEN; k++)
        w[k] = 0;
    *rho2 = 1 - FN(short_dot)(t, w, w);
    T alpha0 = s->alpha_error > 0 ? FN(dot)(dict->d, atoms + j * dict->d, s->x) : s->alpha0[j];
    *alpha = alpha0 - FN(short_dot)(t, s->c, w);
    if (*rho2 < DEPENDENT)
        return -1;
    if (fabs((double)*alpha) <= 32 * EPS || (p->nonnegative && *alpha < 0))
        return 0;
    return (double)*alpha * *alpha / (p->ols ? *rho2 : 1);
}

/* How far a screened alpha may be from the true one. */
static double FN(screen_error)(const state *s, bool ols)
{
#if QUANTISED
    vec sums = {0}, weights = {0}, zero = {0};
    for (int64_t k = 0; k < s->t; k += VLEN) {
        vec gamma = *(const vec *)(s->gamma + k);
        gamma = VMAX(gamma, zero - gamma);
        sums += gamma;
        weights += gamma * *(const vec *)(s->rho + k);
    }
    double sum = SUM_LANES(sums), weighted = SUM_LANES(weights);
    double inside = ols ? ATOMS_MIN(1, 1 - (double)s->nrm_min) : 1;
    return 0x1p-16 * (weighted + sum * sqrt((double)s->t * inside)) + s->row_error * sum + s->alpha_error + 8 * EPS;
#else
    (void)s;
    (void)ols;
    return 8 * EPS;
#endif
}

/* How far a screened nrm may be above the true one. The slack is for rows of the full Gram matrix, rounded or not. */
static double FN(nrm_error)(const atoms_dict *dict, const state *s, bool ols)
{
    if (!ols || !s->rows || dict->gram)
        return 0;
    double t = (double)s->t, row = s->row_error + 0x1p-16 * (1 + sqrt(t)), du = row * sqrt(t * s->inverse2);
    return ATOMS_MAX(0, 2 * du + du * du - (double)s->slack);
}

/* Atom j, of this alpha and rho^2, turned out to be in the span. It has alpha = 0 but for rounding, and leaving it
 * out loses nothing; one just outside could have lowered the residual. A coarse screen also meets such as would
 * never have been chosen. */
static void FN(meet_spanned)(state *s, T alpha, T rho2, bool ols)
{
    if (fabs((double)alpha) <= 64 * EPS)
        return;
    double score = (double)alpha * alpha / (ols ? ATOMS_MAX((double)rho2, NRM_FLOOR) : 1);
    s->spanned = ATOMS_MAX(s->spanned, s->rows || s->alpha_error > 0 ? score : INFINITY);
}

/* Evaluates every atom that may still beat *score; keeps the best in s->w, s->alpha_i, s->rho2, *score. -1: a coarse
 * screen leaves too many. */
static int64_t FN(recheck)(const atoms_dict *dict, state *s, int64_t first, double *least_score,
                           const atoms_omp_params *p)
{
    double error = FN(screen_error)(s, p->ols), above = FN(nrm_error)(dict, s, p->ols), low = 1 - 8 * EPS;
    double nrm_min = p->ols ? ATOMS_MAX((double)s->nrm_min - above, NRM_FLOOR) : 1 - (double)s->slack;
    double score = *least_score, limit = sqrt(score) * low - error / sqrt(nrm_min);
    vec least = BCAST((T)(limit > 0 ? limit * limit * low * (nrm_min / (nrm_min + above)) : 0));
    int64_t best = first;
    int tries = 0;
    for (int64_t j = 0; j < s->np; j += VLEN) {
        if (j % PANEL == 0 && !GE_LANES(*(const vec *)(s->lanes + j / PANEL * VLEN), least)) {
            j += PANEL - VLEN;
            continue;
        }
        vec scores = FN(score_at)(s, j, p->nonnegative);
        if (!GE_LANES(scores, least))
            continue;
        for (int64_t i = j; i < j + VLEN; i++) {
            if (scores[i - j] < least[0] || i == first)
                continue;
            double a = p->nonnegative ? ATOMS_MAX(s->alpha[i], 0) : fabs((double)s->alpha[i]);
            double upper = (a + error) * (a + error) / ATOMS_MAX((double)s->nrm[i] - above, NRM_FLOOR);
            if (upper < score * low || isinf(s->nrm[i]))
                continue;
            if (s->alpha_error > 0 && ++tries > MOST_TRIES)
                return -1;
            T alpha, rho2;
            double found = FN(evaluate)(dict, s, i, p, s->w_try, &alpha, &rho2);
            if (found < 0) {
                s->nrm[i] = (T)INFINITY;
                FN(meet_spanned)(s, alpha, rho2, p->ols);
            } else if (found > score || (found == score && i < best)) {
                T *swap = s->w;
                s->w = s->w_try;
                s->w_try = swap;
                s->alpha_i = alpha;
                s->rho2 = rho2;
                score = found;
                best = i;
            }
        }
    }
    *least_score = score;
    return best;
}

/* |x - sum z_k d_k| over m atoms, summed in float64. */
static double FN(residual_norm)(const atoms_dict *dict, const T *x, int64_t m, const int32_t *set,
                                const T *z)
{
    const T *atoms = dict->atoms;
    double sum = 0;
    for (int64_t j = 0; j < dict->d; j += 64) {
        double r[64];
        int64_t n = ATOMS_MIN(64, dict->d - j);
        for (int64_t i = 0; i < n; i++)
            r[i] = x[j + i];
        for (int64_t k = 0; k < m; k++) {
            const T *row = atoms + set[k] * dict->d + j;
            double zk = z[k];
            for (int64_t i = 0; zk != 0 && i < n; i++)
                r[i] -= zk * row[i];
        }
        for (int64_t i = 0; i < n; i++)
            sum += r[i] * r[i];
    }
    return sqrt(sum);
}

static double FN(true_residual)(const atoms_dict *dict, const state *s)
{
    return FN(residual_norm)(dict, s->x, s->t, s->chosen, s->gamma);
}

#define OPEN (-2)

/* The next atom, its w, rho^2 and alpha in the state; -1 when nothing is left to explain; OPEN where a coarse
 * screen cannot tell. */
static int64_t FN(choose)(const atoms_dict *dict, state *s, const atoms_omp_params *p)
{
    while (s->n_warm > 0) {
        int64_t j = *s->warm++;
        s->n_warm--;
        if (isinf(s->nrm[j]))
            continue; /* given twice, or a zero atom */
        if (FN(evaluate)(dict, s, j, p, s->w, &s->alpha_i, &s->rho2) >= 0)
            return j;
        s->dependent = true;
        FN(exclude)(s, j, p->nonnegative);
    }
    /* no atom has more of the residual than there is: without this each would be tried, and each time all others */
    if (s->energy < 64 * EPS && s->t > 0 && FN(true_residual)(dict, s) <= 32 * EPS) {
        s->drained = true;
        return -1;
    }
    for (;;) {
        int64_t j = FN(locate)(s, p->nonnegative);
        if (j < 0) {
            s->dependent |= s->spanned > 0;
            s->drained = true;
            return -1;
        }
        double score = FN(evaluate)(dict, s, j, p, s->w, &s->alpha_i, &s->rho2);
        if (score < 0) {
            FN(meet_spanned)(s, s->alpha_i, s->rho2, p->ols);
            FN(exclude)(s, j, p->nonnegative);
            continue;
        }
        bool nothing = score == 0;
        int64_t best = FN(recheck)(dict, s, j, &score, p);
        if (best < 0)
            return OPEN;
        s->dependent |= s->spanned >= score * (1 - 8 * EPS) && s->spanned > 0;
        s->spanned = 0;
        if (score == 0) {
            s->drained = true;
            return -1;
        }
        if (nothing)
            FN(exclude)(s, j, p->nonnegative); /* what the screen thought best would come up again */
        return best;
    }
}

/* Chosen atom j, whose w, rho^2 and alpha are in the state: new c, gamma and row of L^-1. */
static void FN(accept)(state *s, int64_t j)
{
    int64_t t = s->t, ld = s->ld;
    T rho = (T)sqrt((double)s->rho2), c = s->alpha_i / rho, inverse = 1 / rho;
    T *row = s->linv + t * ld;
    FN(combine)(t, t, s->linv, ld, s->w, row);
    for (int64_t k = 0; k < t; k++) {
        row[k] *= -inverse;
        s->linv_t[k * ld + t] = row[k];
        s->gamma[k] += c * row[k];
    }
    row[t] = inverse;
    s->linv_t[t * ld + t] = inverse;
    s->gamma[t] = c * inverse;
    s->c[t] = c;
    s->rho[t] = rho;
    s->chosen[t] = (int32_t)j;
    s->nrm[j] = (T)INFINITY;
    s->energy -= (double)c * c;
    s->inverse2 += (1 + 0x1p-16) * (double)FN(short_dot)(t + 1, row, row); /* zero beyond t */
}

/* ------------------------------------------------------------ start and end */

static bool FN(met)(const atoms_dict *dict, state *s)
{
    if (s->tol2 < 0 || s->energy > s->tol2 * (1 + 1e-3) + 16 * EPS)
        return false;
    double r = FN(true_residual)(dict, s);
    s->energy = r * r;
    return s->energy <= s->tol2;
}

/* Writes the code of the state's signal, atoms increasing, at the signal's own scale. */
static void FN(finish)(const atoms_dict *dict, const atoms_omp_params *p, omp_tile *tile, state *s,
                       double scale)
{
    int64_t i = s->i, count = 0;
    int32_t *indices = tile->indices + i * p->n_nonzero;
    T *values = (T *)tile->values + i * p->n_nonzero;
    bool in_range = true;
    for (int64_t k = 0; k < s->t; k++) {
        T z = (T)((double)s->gamma[k] * (scale / dict->norm[s->chosen[k]]));
        in_range &= isfinite(z) != 0;
        if (s->gamma[k] == 0)
            continue;
        int64_t at = count++;
        for (; at > 0 && indices[at - 1] > s->chosen[k]; at--) {
            indices[at] = indices[at - 1];
            values[at] = values[at - 1];
        }
        indices[at] = s->chosen[k];
        values[at] = z;
    }
    bool met = p->tol < 0 || s->energy <= s->tol2 ||
               (s->drained && FN(true_residual)(dict, s) < 256 * EPS);
    int status = !in_range                   ? ATOMS_SIGNAL_RANGE
                 : !met                      ? ATOMS_SIGNAL_LIMIT
                 : s->dependent              ? ATOMS_SIGNAL_DEPENDENT
                                             : ATOMS_SIGNAL_CONVERGED;
    tile->status[i] = (int8_t)status;
    tile->counts[i] = in_range ? (int32_t)count : 0;
    if (tile->residual)
        tile->residual[i] = scale * (in_range ? FN(true_residual)(dict, s) : 1);
    s->i = -1;
}

/* ------------------------------------------------------------ non-negative */

/* alpha = alpha0 - G gamma */
static void FN(correlate)(const atoms_dict *dict, state *s, T *r)
{
    const T *atoms = dict->atoms, *gram = dict->gram;
    int64_t d = dict->d;
    memcpy(s->alpha, s->alpha0, (size_t)dict->np * sizeof(T));
    if (gram) {
        for (int64_t k = 0; k < s->t; k++)
            for (int64_t j = 0; j < dict->np; j++)
                s->alpha[j] -= s->gamma[k] * gram[s->chosen[k] * dict->np + j];
        return;
    }
    memcpy(r, s->x, (size_t)d * sizeof(T));
    for (int64_t k = 0; k < s->t; k++)
        for (int64_t j = 0; j < d; j++)
            r[j] -= s->gamma[k] * atoms[s->chosen[k] * d + j];
    for (int64_t j = 0; j < dict->n; j++)
        s->alpha[j] = FN(dot)(d, atoms + j * d, r);
}

/* Once a refit has turned a coefficient negative the atoms in the code change by more than one
 * a step, and the recurrences end: the rest goes by non-negative least squares on the Gram
 * matrix of the chosen atoms, and alpha from scratch. work: n_nonzero (2 n_nonzero + 6) doubles
 * and d of T. */
static int FN(nonnegative_rest)(const atoms_dict *dict, const atoms_omp_params *p, state *s,
                                double *work, T *r, int8_t *passive)
{
    const T *atoms = dict->atoms;
    int64_t most = p->n_nonzero, d = dict->d;
    double *gram = work, *b = gram + most * most, *z = b + most, *inner = z + most;
    for (int step = 0; step < 3 * most + 10; step++) {
        for (int64_t k = 0; k < s->t; k++) {
            b[k] = s->alpha0[s->chosen[k]];
            for (int64_t l = 0; l <= k; l++)
                gram[k * most + l] = gram[l * most + k] =
                    FN(dot)(d, atoms + s->chosen[k] * d, atoms + s->chosen[l] * d);
        }
        if (atoms_nnls_gram(s->t, gram, most, b, z, inner, passive) < 0)
            return step + 1;
        int64_t kept = 0;
        s->energy = 1;
        for (int64_t k = 0; k < s->t; k++) {
            if (z[k] <= 0) {
                s->nrm[s->chosen[k]] = 1; /* free to come back */
                continue;
            }
            s->energy -= z[k] * b[k];
            s->chosen[kept] = s->chosen[k];
            s->gamma[kept++] = (T)z[k];
        }
        s->t = kept;
        if (s->t == most || FN(met)(dict, s))
            return step + 1;
        FN(correlate)(dict, s, r);
        int64_t best = -1;
        T best_alpha = (T)(32 * EPS);
        for (int64_t j = 0; j < dict->n; j++)
            if (s->alpha[j] > best_alpha && !isinf(s->nrm[j])) {
                best_alpha = s->alpha[j];
                best = j;
            }
        if (best < 0) {
            s->drained = true;
            return step + 1;
        }
        s->nrm[best] = (T)INFINITY;
        s->chosen[s->t] = (int32_t)best;
        s->gamma[s->t++] = 0;
    }
    return 3 * (int)most + 10;
}

static bool FN(some_negative)(const state *s)
{
    bool some = false;
    for (int64_t k = 0; k < s->t; k++)
        some |= s->gamma[k] < 0;
    return some;
}

/* -------------------------------------------------------------------- tile */

typedef struct {
    T *x, *alpha0, *q, *uq, *r; /* (tile, d), (tile, np), Gram-free: (tile, d), (tile, np) */
    T *nrm;                     /* (np,) with nothing chosen: infinite for zero atoms and padding */
    double *row, *scale, *nonneg;
    int8_t *passive;
    int16_t *short_x; /* (tile, dict->units.ld) */
    float *units;     /* (tile, chunks) */
    double *rounding; /* (tile,) what rounding took from the signals */
    int64_t *list;    /* (tile,) signals to code */
    state *slots;
    int64_t n_slots;
    bool screened; /* by 16-bit correlations */
    const int16_t *rows; /* see state */
    double row_error;
} FN(room);

/* Carves a workspace; with base NULL only its size is found. */
static int64_t FN(carve)(const atoms_dict *dict, const atoms_omp_params *p, int64_t tile,
                         char *base, FN(room) *room)
{
    int64_t used = 0, np = dict->np, ld = (p->n_nonzero + VLEN - 1) / VLEN * VLEN, d = dict->d;
    bool gram = dict->gram != NULL, units = UNITS && !p->nonnegative;
    const int16_t *rows = !units ? NULL : gram ? dict->fine : dict->coarse;
    bool screened = units && (rows || gram) && dict->units.panels;
    room->rows = rows;
    T slack = QUANTISED ? (T)(1.5e-3 + (double)p->n_nonzero * 0x1p-15) : 0;
    room->row_error = !rows ? 0 : gram ? SHORT_ERROR : dict->coarse_error;
    room->screened = screened;
#define TAKE(member, type, count)                                                                 \
    do {                                                                                          \
        (member) = base ? (type *)(base + used) : NULL;                                           \
        used += ((int64_t)(count) * (int64_t)sizeof(type) + 63) / 64 * 64;                        \
    } while (0)
    room->n_slots = gram ? GROUP : rows ? ATOMS_MAX(GROUP, LEFT_OVER) : tile;
    TAKE(room->x, T, tile * d);
    TAKE(room->alpha0, T, tile * np);
    TAKE(room->q, T, gram ? 0 : room->n_slots * d);
    TAKE(room->uq, T, gram ? 0 : room->n_slots * np);
    TAKE(room->r, T, d);
    TAKE(room->nrm, T, np);
    TAKE(room->row, double, d);
    TAKE(room->scale, double, tile);
    TAKE(room->nonneg, double, p->nonnegative ? p->n_nonzero * (2 * p->n_nonzero + 6) : 0);
    TAKE(room->passive, int8_t, p->n_nonzero);
    TAKE(room->short_x, int16_t, screened ? tile * dict->units.ld : 0);
    TAKE(room->units, float, screened ? tile * CHUNKS(dict->units.ld) : 0);
    TAKE(room->rounding, double, screened ? tile : 0);
    TAKE(room->list, int64_t, tile);
    TAKE(room->slots, state, room->n_slots);
    for (int64_t k = 0; k < room->n_slots; k++) {
        state spare, *s = base ? &room->slots[k] : &spare;
        memset(s, 0, sizeof *s);
        s->i = -1;
        s->ld = ld;
        s->slack = slack;
        s->np = np;
        TAKE(s->alpha, T, np);
        TAKE(s->nrm, T, np);
        TAKE(s->lanes, T, np / PANEL * VLEN);
        TAKE(s->u, FN(stored), gram || (rows && k < GROUP) ? np * ROWS(ld) : 0);
        TAKE(s->pairs, int32_t, ld);
        TAKE(s->linv, T, ld * ld);
        TAKE(s->linv_t, T, ld * ld);
        TAKE(s->w, T, ld);
        TAKE(s->w_try, T, ld);
        TAKE(s->g, T, ld);
        TAKE(s->c, T, ld);
        TAKE(s->gamma, T, ld);
        TAKE(s->rho, T, ld);
        TAKE(s->chosen, int32_t, ld);
        if (base) {
            memset(s->linv, 0, (size_t)(ld * ld) * sizeof(T));
            memset(s->linv_t, 0, (size_t)(ld * ld) * sizeof(T));
        }
    }
#undef TAKE
    for (int64_t j = 0; base && j < np; j++)
        room->nrm[j] = j < dict->n && dict->norm[j] > 0 ? 1 - slack : (T)INFINITY;
    return used;
}

static int64_t FN(workspace)(const atoms_dict *dict, const atoms_omp_params *p, int64_t tile)
{
    FN(room) room;
    return FN(carve)(dict, p, tile, NULL, &room);
}

/* The state for signal i of the tile; alpha_error: of the correlations in the room. */
static void FN(begin)(const atoms_dict *dict, const atoms_omp_params *p, const omp_tile *tile, const FN(room) *room,
                      state *s, int64_t i, double alpha_error)
{
    double scale = room->scale[i];
    s->i = i;
    s->t = 0;
    s->x = room->x + i * dict->d;
    s->alpha0 = room->alpha0 + i * dict->np;
    s->energy = 1;
    s->tol2 = p->tol < 0 ? -1 : (p->tol / scale) * (p->tol / scale);
    s->dependent = s->drained = false;
    s->rows = room->rows;
    s->row_error = room->row_error;
    s->alpha_error = alpha_error;
    s->inverse2 = s->spanned = 0;
    s->n_warm = 0;
    T *padded[] = {s->c, s->gamma, s->rho}; /* zero beyond t: see short_dot */
    for (int k = 0; k < 3; k++)
        memset(padded[k], 0, (size_t)s->ld * sizeof(T));
    if (tile->warm_indptr) {
        s->warm = tile->warm_indices + tile->warm_indptr[i];
        s->n_warm = tile->warm_indptr[i + 1] - tile->warm_indptr[i];
    }
    memcpy(s->nrm, room->nrm, (size_t)dict->np * sizeof(T));
    FN(open_pass)(s, p->nonnegative);
}

/* One step of a state up to its pass: the chosen atom; -1 after the code has been written; OPEN. */
static int64_t FN(step)(const atoms_dict *dict, const atoms_omp_params *p, omp_tile *tile,
                        FN(room) *room, state *s)
{
    bool done = FN(met)(dict, s) || s->t == p->n_nonzero;
    int64_t j = done ? -1 : FN(choose)(dict, s, p);
    if (j >= 0) {
        FN(accept)(s, j);
        tile->steps[s->i]++;
    } else if (j != OPEN) {
        FN(finish)(dict, p, tile, s, room->scale[s->i]);
    }
    return j;
}

/* After the pass: t grows, and a non-negative code that went negative is brought to its end. */
static void FN(settle)(const atoms_dict *dict, const atoms_omp_params *p, omp_tile *tile,
                       FN(room) *room, state *s)
{
    s->t++;
    if (!p->nonnegative || !FN(some_negative)(s))
        return;
    tile->steps[s->i] += FN(nonnegative_rest)(dict, p, s, room->nonneg, room->r, room->passive);
    FN(finish)(dict, p, tile, s, room->scale[s->i]);
}

static void FN(prefetch)(const void *from, int64_t bytes)
{
    for (int64_t k = 0; k < bytes; k += 64)
        __builtin_prefetch((const char *)from + k, 0, 2);
}

static const void *FN(row_of)(const atoms_dict *dict, const state *s, int64_t j)
{
    return s->rows ? (const void *)(s->rows + j * dict->np) : (const T *)dict->gram + j * dict->np;
}

/* Fetches what the next step of this state will read from Gram matrices or the atoms. */
static void FN(fetch)(const atoms_dict *dict, state *s, const atoms_omp_params *p)
{
    int64_t j = s->i >= 0 ? FN(locate)(s, p->nonnegative) : -1, np = dict->np;
    if (j < 0)
        return;
    if (dict->gram)
        for (int64_t k = 0; k < s->t; k++)
            __builtin_prefetch((const T *)dict->gram + j * np + s->chosen[k], 0, 2);
    if (!dict->gram || s->alpha_error > 0)
        FN(prefetch)((const T *)dict->atoms + j * dict->d, dict->d * (int64_t)sizeof(T));
    FN(prefetch)(FN(row_of)(dict, s, j), np * (int64_t)(s->rows ? sizeof *s->rows : sizeof(T)));
}

/* The n signals of room->list one by one, each from a Gram matrix. Returns how many are open; the list begins with
 * them. */
static int64_t FN(run_gram)(const atoms_dict *dict, const atoms_omp_params *p, omp_tile *tile,
                            FN(room) *room, int64_t n, bool screened)
{
    int64_t next = 0, busy = 0, open = 0;
    do {
        busy = 0;
        for (int64_t k = 0; k < GROUP; k++) {
            state *s = &room->slots[k];
            if (s->i < 0 && next < n) {
                int64_t i = room->list[next++];
                FN(begin)(dict, p, tile, room, s, i, screened ? room->rounding[i] : 0);
            }
            if (s->i < 0)
                continue;
            busy++;
            int64_t j = FN(step)(dict, p, tile, room, s);
            if (j >= 0) {
                if (s->t + 1 < p->n_nonzero)
                    FN(run_pass)(s, FN(row_of)(dict, s, j), s->rows ? FN(SHORT_ROW) : FN(GRAM_ROW), p);
                FN(settle)(dict, p, tile, room, s);
                FN(fetch)(dict, s, p);
            } else if (j == OPEN) {
                tile->steps[s->i] = 0;
                room->list[open++] = s->i;
                s->i = -1;
            }
        }
    } while (busy);
    return open;
}

/* Without a Gram matrix the n signals listed step together: q_t = sum_k (L^-1)_tk d_k for
 * each, then u_t = D q_t for all of them as one product. */
static void FN(run_free)(const atoms_ctx *ctx, const atoms_dict *dict, const atoms_omp_params *p,
                         omp_tile *tile, FN(room) *room, int64_t n, const int64_t *list)
{
    const T *atoms = dict->atoms;
    int64_t d = dict->d, np = dict->np;
    for (int64_t i = 0; i < n; i++) {
        FN(begin)(dict, p, tile, room, &room->slots[i], list[i], 0);
        room->slots[i].rows = NULL;
        room->slots[i].row_error = 0;
    }
    for (int64_t live = 1; live > 0;) {
        live = 0;
        for (int64_t i = 0; i < n; i++) {
            state *s = &room->slots[i];
            if (s->i < 0 || FN(step)(dict, p, tile, room, s) < 0)
                continue;
            T *q = room->q + live++ * d;
            memset(q, 0, (size_t)d * sizeof(T));
            for (int64_t k = 0; k <= s->t; k++) {
                const T *row = atoms + s->chosen[k] * d;
                T z = s->linv[s->t * s->ld + k];
                for (int64_t e = 0; e < d; e++)
                    q[e] += z * row[e];
            }
        }
        if (live == 0)
            break;
        GEMM(ctx, live, np, d, 1, room->q, d, 1, atoms, 1, d, 0, room->uq, np, 1);
        int64_t at = 0;
        for (int64_t i = 0; i < n; i++) {
            state *s = &room->slots[i];
            if (s->i < 0)
                continue;
            FN(run_pass)(s, room->uq + at++ * np, FN(U_ITSELF), p);
            FN(settle)(dict, p, tile, room, s);
        }
    }
}

/* The first n signals of the list, which the screen left open, from correlations of full precision. */
static void FN(run_open)(const atoms_ctx *ctx, const atoms_dict *dict, const atoms_omp_params *p,
                         omp_tile *tile, FN(room) *room, int64_t n)
{
    for (int64_t k = 0; k < n; k++)
        GEMM(ctx, 1, dict->np, dict->d, 1, room->x + room->list[k] * dict->d, dict->d, 1, dict->atoms, 1, dict->d, 0,
             room->alpha0 + room->list[k] * dict->np, dict->np, 1);
    if (dict->gram)
        FN(run_gram)(dict, p, tile, room, n, false);
    else
        for (int64_t k = 0; k < n; k += LEFT_OVER)
            FN(run_free)(ctx, dict, p, tile, room, ATOMS_MIN(LEFT_OVER, n - k), room->list + k);
}

static void FN(run)(const atoms_ctx *ctx, const atoms_dict *dict, const atoms_omp_params *p,
                    omp_tile *tile, void *workspace)
{
    FN(room) room;
    FN(carve)(dict, p, tile->n, workspace, &room);
    int64_t size = tile->x_type == ATOMS_F64 ? 8 : tile->x_type == ATOMS_F32 ? 4 : 2;
    for (int64_t i = 0; i < tile->n; i++) {
        const char *from = (const char *)tile->x + i * tile->rs * size;
        signal_kind kind = atoms_load_signal(dict->d, from, tile->x_type, tile->cs, room.row,
                                             &room.scale[i]);
        for (int64_t j = 0; j < dict->d; j++)
            room.x[i * dict->d + j] = (T)room.row[j];
        tile->counts[i] = tile->steps[i] = 0;
        tile->status[i] = kind == SIGNAL_NONFINITE ? ATOMS_SIGNAL_NONFINITE : 0;
        if (kind == SIGNAL_NONFINITE)
            room.scale[i] = 0;
        if (tile->residual)
            tile->residual[i] = kind == SIGNAL_NONFINITE ? NAN : 0;
    }
    int64_t n = 0;
    for (int64_t i = 0; i < tile->n; i++)
        if (room.scale[i] > 0)
            room.list[n++] = i;
    atoms_correlate(ctx, dict, tile->n, room.x, room.screened ? room.short_x : NULL, room.units, room.alpha0,
                    room.rounding);
    if (dict->gram || room.rows)
        FN(run_open)(ctx, dict, p, tile, &room, FN(run_gram)(dict, p, tile, &room, n, room.screened));
    else
        FN(run_free)(ctx, dict, p, tile, &room, n, room.list);
}

const omp_kernel FN(atoms_omp) = {FN(workspace), FN(run)};
