/* recovery_l1_impl.h: the lasso, and basis pursuit denoising on top of it, for one number type
 * and one instruction set; included after recovery_omp_impl.h.
 *
 * Signals have unit norm and atoms too, so a penalty alpha on the codes of the atoms as given
 * becomes lambda_j = alpha / (|x| |d_j|) for atom j. With r = x - sum z_j d_j and c = [d_j . r]:
 *   primal  P = |r|^2 / 2 + sum lambda_j |z_j|
 *   dual    D = x . y - |y|^2 / 2 for any y with |d_j . y| <= lambda_j; y = s r with
 *           s = min(1, 1 / nu), nu = max |c_j| / lambda_j
 * Coordinate descent runs on a working set only, with the Gram matrix of the set side by side in
 * cache; after each run c is brought up to date for all atoms, P - D says whether to stop, and
 * the atoms that violate the dual constraint most join the set. */

#define FIRST_SHARE 0.3 /* of the worst violation: most smaller ones are not of the code, as long as little is fitted */
#define NEAR_SHARE 8    /* one atom in so many is evaluated by itself at most: all at once cost less each */
#define KEPT 64         /* atoms of which a signal that waits keeps the Gram matrix */

/* A signal's problem, reused from signal to signal. c is brought up to date for all atoms, from the Gram matrix if there
 * is one; or else `ref` holds the correlations with an earlier residual, taken for many signals at once. No d_j . r is
 * further from those than the residual has moved, so that few atoms can reach the penalty: these are evaluated, and
 * the others, which have no part in the gap, have c = 0. When they are no longer few, the signal waits for a new
 * `ref`. It may be of 16-bit products, with a bound on what that takes. */
typedef struct {
    const atoms_dict *dict;
    const T *alpha0, *x; /* d_j . x for all atoms; x itself */
    T *c, *weight;       /* (np) c; |d_j| of the atoms as given */
    int32_t *where;      /* (np) place in the set, or -1 */
    T *r;                /* (d) x - sum z_k d_k */
    const T *ref, *r_ref; /* (np) and (d), or NULL */
    double ref_error;    /* the most that ref is off by */
    int32_t *near;       /* (np) atoms to evaluate */
    T *near_c;           /* (np) */
    int64_t m, ld;       /* atoms in the set, room for so many */
    int32_t *set;        /* (ld) */
    T *g, *a;            /* (ld, ld) their Gram matrix, (ld) d_j . x */
    T *z, *z_old, *cw;   /* (ld) codes, codes when c was last brought up to date, c on the set */
    T *limit;            /* (ld) penalties on the set, in `descend` */
    double *chol, *fit, *lean; /* (ld, ld), (ld), (ld): see on_support */
    int32_t *support;          /* (ld) */
    bool positive;
    double x_dot_r, r2; /* of z as of the last gap */
    atoms_team *team;   /* asked in every round */
} FN(problem);

static void FN(problem_free)(FN(problem) *q)
{
    void *blocks[] = {q->c, q->weight, q->where, q->r,     q->near, q->near_c, q->set,  q->g,      q->a,
                      q->z, q->z_old,  q->cw,    q->limit, q->chol, q->fit,    q->lean, q->support};
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++)
        atoms_free(blocks[i]);
}

/* Room for a working set of ld atoms, ld a multiple of 64; what is there is kept. */
static atoms_status FN(make_room)(FN(problem) *q, int64_t ld)
{
    FN(problem) old = *q;
    q->ld = ld;
    q->set = atoms_alloc(ld, sizeof *q->set);
    q->g = atoms_calloc(ld * ld, sizeof(T));
    q->a = atoms_alloc(ld, sizeof(T));
    q->limit = atoms_alloc(ld, sizeof(T));
    q->z = atoms_calloc(ld, sizeof(T));
    q->z_old = atoms_calloc(ld, sizeof(T));
    q->cw = atoms_calloc(ld, sizeof(T));
    q->chol = atoms_alloc(ld * ld, sizeof *q->chol);
    q->fit = atoms_alloc(ld, sizeof *q->fit);
    q->lean = atoms_alloc(ld, sizeof *q->lean);
    q->support = atoms_alloc(ld, sizeof *q->support);
    bool short_of = !q->set || !q->g || !q->a || !q->limit || !q->z || !q->z_old || !q->cw || !q->chol || !q->fit ||
                    !q->lean || !q->support;
    if (!short_of && old.m > 0) {
        memcpy(q->set, old.set, (size_t)old.m * sizeof *q->set);
        memcpy(q->a, old.a, (size_t)old.m * sizeof(T));
        memcpy(q->z, old.z, (size_t)old.m * sizeof(T));
        memcpy(q->z_old, old.z_old, (size_t)old.m * sizeof(T));
        for (int64_t k = 0; k < old.m; k++)
            memcpy(q->g + k * ld, old.g + k * old.ld, (size_t)old.m * sizeof(T));
    }
    void *blocks[] = {old.set,   old.g,    old.a,   old.z,    old.z_old,  old.cw,
                      old.limit, old.chol, old.fit, old.lean, old.support};
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++)
        atoms_free(blocks[i]);
    return short_of ? ATOMS_ERR_MEMORY : ATOMS_OK;
}

static atoms_status FN(problem_new)(const atoms_dict *dict, bool positive, atoms_team *team,
                                    FN(problem) *q)
{
    *q = (FN(problem)){.dict = dict, .positive = positive, .team = team};
    q->c = atoms_calloc(dict->np, sizeof(T));
    q->weight = atoms_calloc(dict->np, sizeof(T));
    q->where = atoms_alloc(dict->np, sizeof *q->where);
    q->r = atoms_alloc(dict->d, sizeof(T));
    q->near = atoms_alloc(dict->np, sizeof *q->near);
    q->near_c = atoms_alloc(dict->np, sizeof(T));
    if (!q->c || !q->weight || !q->where || !q->r || !q->near || !q->near_c || FN(make_room)(q, 64) < 0)
        return ATOMS_ERR_MEMORY; /* the caller frees what there is */
    for (int64_t j = 0; j < dict->np; j++)
        q->where[j] = -1;
    for (int64_t j = 0; j < dict->n; j++)
        q->weight[j] = (T)dict->norm[j];
    return ATOMS_OK;
}

static void FN(problem_start)(FN(problem) *q, const T *x, const T *alpha0)
{
    for (int64_t k = 0; k < q->m; k++)
        q->where[q->set[k]] = -1;
    q->m = 0;
    q->x = x;
    q->alpha0 = alpha0;
    q->ref = NULL;
    q->x_dot_r = q->r2 = 1;
    memcpy(q->c, alpha0, (size_t)q->dict->np * sizeof(T));
}

/* out[k] = d_ids[k] . v, four at a time */
static void FN(products_with)(const atoms_dict *dict, int64_t n, const int32_t *ids, const T *v, T *out)
{
    const T *atoms = dict->atoms;
    int64_t d = dict->d, whole = d / VLEN * VLEN;
    for (int64_t k = 0; k < n; k += 4) {
        const T *row[4];
        vec s[4] = {{0}};
        for (int i = 0; i < 4; i++)
            row[i] = atoms + ids[ATOMS_MIN(k + i, n - 1)] * d;
        for (int64_t e = 0; e < whole; e += VLEN)
            for (int i = 0; i < 4; i++)
                s[i] += *(const vec_u *)(row[i] + e) * *(const vec_u *)(v + e);
        for (int i = 0; i < 4 && k + i < n; i++) {
            T tail = 0;
            for (int64_t e = whole; e < d; e++)
                tail += row[i][e] * v[e];
            out[k + i] = SUM_LANES(s[i]) + tail;
        }
    }
}

/* Atom j joins the set. kept: its row of g up to itself, then d_j . x, or NULL. */
static atoms_status FN(join)(FN(problem) *q, int64_t j, const T *kept)
{
    if (q->m == q->ld && FN(make_room)(q, 2 * q->ld) < 0)
        return ATOMS_ERR_MEMORY;
    int64_t m = q->m++;
    q->set[m] = (int32_t)j;
    q->where[j] = (int32_t)m;
    q->z[m] = q->z_old[m] = 0;
    const atoms_dict *dict = q->dict;
    const T *atom = (const T *)dict->atoms + j * dict->d, *gram = q->ref ? NULL : dict->gram;
    T *row = q->g + m * q->ld;
    if (kept)
        memcpy(row, kept, (size_t)(m + 1) * sizeof(T));
    else if (!gram)
        FN(products_with)(dict, m + 1, q->set, atom, row);
    for (int64_t k = 0; k <= m; k++)
        q->g[k * q->ld + m] = row[k] = gram ? gram[j * dict->np + q->set[k]] : row[k];
    q->a[m] = kept ? kept[m + 1] : q->ref ? FN(dot)(dict->d, atom, q->x) : q->alpha0[j];
    if (q->ref && !kept)
        q->c[j] = FN(dot)(dict->d, atom, q->r); /* it was but a bound */
    return ATOMS_OK;
}

/* Atom j joins the set, unless a member points the same way and is no dearer. */
static atoms_status FN(admit)(FN(problem) *q, int64_t j)
{
    atoms_status status = FN(join)(q, j, NULL);
    for (int64_t k = 0; status == ATOMS_OK && k + 1 < q->m; k++) {
        T g = q->g[(q->m - 1) * q->ld + k];
        bool twin = q->positive ? g > 1 - 8 * EPS : fabs((double)g) > 1 - 8 * EPS;
        if (twin && q->weight[j] <= q->weight[q->set[k]]) {
            q->where[j] = -1;
            q->m--;
            break;
        }
    }
    return status;
}

/* y -= sum over k < n of a[k] row[k], four rows at a time */
static void FN(subtract_rows)(int64_t np, int64_t n, const T *a, const T *const *rows, T *y)
{
    for (int64_t k = 0; k < n; k += 4) {
        const T *r[4];
        T s[4] = {0};
        for (int i = 0; i < 4; i++) {
            r[i] = rows[ATOMS_MIN(k + i, n - 1)];
            s[i] = k + i < n ? a[k + i] : 0;
        }
        for (int64_t j = 0; j < np; j += VLEN)
            *(vec *)(y + j) -= (s[0] * *(const vec *)(r[0] + j) + s[1] * *(const vec *)(r[1] + j)) +
                               (s[2] * *(const vec *)(r[2] + j) + s[3] * *(const vec *)(r[3] + j));
    }
}

/* r = x - sum z_k d_k */
static void FN(residual)(FN(problem) *q)
{
    int64_t d = q->dict->d;
    memcpy(q->r, q->x, (size_t)d * sizeof(T));
    for (int64_t k = 0; k < q->m; k++) {
        const T *atom = (const T *)q->dict->atoms + q->set[k] * d;
        T z = q->z[k];
        for (int64_t e = 0; z != 0 && e < d; e++)
            q->r[e] -= z * atom[e];
    }
}

/* |a - b|, erring upwards */
static double FN(distance)(int64_t n, const T *a, const T *b)
{
    vec s[4] = {{0}};
    int64_t i = 0;
    for (; i + 4 * VLEN <= n; i += 4 * VLEN)
        for (int k = 0; k < 4; k++) {
            vec e = *(const vec_u *)(a + i + k * VLEN) - *(const vec_u *)(b + i + k * VLEN);
            s[k] += e * e;
        }
    double sum = SUM_LANES((s[0] + s[1]) + (s[2] + s[3]));
    for (; i < n; i++)
        sum += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
    return sqrt(sum) * (1 + (double)n * EPS);
}

/* max over atoms of |c_j| |d_j|, the penalty below which some atom would move. */
static double FN(steepest)(const FN(problem) *q)
{
    vec top = {0}, zero = {0};
    for (int64_t j = 0; j < q->dict->np; j += VLEN) {
        vec c = *(const vec *)(q->c + j);
        if (!q->positive)
            c = VMAX(c, zero - c);
        top = VMAX(top, c * *(const vec *)(q->weight + j));
    }
    T best = 0;
    for (int k = 0; k < VLEN; k++)
        best = ATOMS_MAX(best, top[k]);
    return best;
}

/* c for the codes z as they are now, of the set and of the atoms that may reach lambda, from `ref`. False where the
 * residual has moved so far that they are too many. */
static bool FN(refresh_near)(FN(problem) *q, double lambda)
{
    const atoms_dict *dict = q->dict;
    int64_t n = 0, most = dict->np / NEAR_SHARE;
    FN(residual)(q);
    double moved = FN(distance)(dict->d, q->r, q->r_ref);
    vec reach = BCAST((T)((q->ref_error + moved) * (1 + 8 * EPS))), zero = {0}, least = BCAST((T)lambda);
    for (int64_t p = 0; p < dict->np; p += VLEN) {
        vec c = *(const vec *)(q->ref + p);
        c = VMAX(c, q->positive ? zero : zero - c) + reach;
        lanes_of matters = c * *(const vec *)(q->weight + p) >= least;
        *(vec *)(q->c + p) = (vec)(matters & (lanes_of)c);
    }
    for (int64_t k = 0; k < q->m; k++)
        q->c[q->set[k]] = 0;
    /* to choose the first set by, the bounds do */
    for (int64_t p = 0; q->m > 0 && p < dict->np; p += VLEN) {
        vec c = *(const vec *)(q->c + p) * *(const vec *)(q->weight + p);
        for (unsigned lanes = (unsigned)GE_LANES(c, least); lanes; lanes &= lanes - 1) {
            if (moved > 0 && n == most)
                return false;
            q->near[n++] = (int32_t)(p + __builtin_ctz(lanes));
        }
    }
    FN(products_with)(dict, n, q->near, q->r, q->near_c);
    for (int64_t k = 0; k < n; k++)
        q->c[q->near[k]] = q->near_c[k];
    FN(products_with)(dict, q->m, q->set, q->r, q->cw);
    for (int64_t k = 0; k < q->m; k++)
        q->c[q->set[k]] = q->cw[k];
    return true;
}

/* c for the codes z as they are now, from c for z_old. */
static void FN(refresh)(FN(problem) *q)
{
    const atoms_dict *dict = q->dict;
    const T *atoms = dict->atoms, *gram = dict->gram;
    if (gram) {
        const T *rows[32];
        T change[32];
        int64_t n = 0;
        for (int64_t k = 0; k < q->m; k++) {
            if (q->z[k] != q->z_old[k]) {
                change[n] = q->z[k] - q->z_old[k];
                rows[n++] = gram + q->set[k] * dict->np;
            }
            if (n == 32 || (n > 0 && k + 1 == q->m)) {
                FN(subtract_rows)(dict->np, n, change, rows, q->c);
                n = 0;
            }
        }
    } else {
        FN(residual)(q);
        for (int64_t j = 0; j < dict->n; j++)
            q->c[j] = FN(dot)(dict->d, atoms + j * dict->d, q->r);
    }
    memcpy(q->z_old, q->z, (size_t)q->m * sizeof(T));
}

/* sum |z_j| / |d_j|, and |r|^2 and x . r into the problem. */
static double FN(measure)(FN(problem) *q)
{
    double l1 = 0, x_dot_r = 1, r2 = 1;
    for (int64_t k = 0; k < q->m; k++) {
        double z = q->z[k], a = q->a[k];
        if (z == 0)
            continue;
        l1 += fabs(z) / q->weight[q->set[k]];
        x_dot_r -= z * a;
        r2 -= z * (a + q->c[q->set[k]]);
    }
    q->x_dot_r = x_dot_r;
    q->r2 = ATOMS_MAX(r2, 0);
    return l1;
}

/* P - D at penalty lambda; `nu` as above. */
static double FN(lasso_gap)(FN(problem) *q, double lambda, double *nu)
{
    double l1 = FN(measure)(q);
    *nu = FN(steepest)(q) / lambda;
    double s = *nu > 1 ? 1 / *nu : 1;
    return q->r2 / 2 + lambda * l1 - s * q->x_dot_r + s * s * q->r2 / 2;
}

/* Sweeps of coordinate descent on the set until one lowers the objective by less than `enough`. */
static void FN(descend)(FN(problem) *q, double lambda, double enough)
{
    int64_t m = q->m, ld = q->ld, padded = (m + VLEN - 1) / VLEN * VLEN;
    for (int64_t k = 0; k < m; k++) {
        q->cw[k] = q->c[q->set[k]];
        q->limit[k] = (T)(lambda / q->weight[q->set[k]]);
    }
    for (int sweep = 0; sweep < 200; sweep++) {
        double fall = 0;
        for (int64_t k = 0; k < m; k++) {
            T limit = q->limit[k], b = q->z[k] + q->cw[k];
            T z = b > limit ? b - limit : b < -limit && !q->positive ? b + limit : 0;
            T change = z - q->z[k];
            if (change == 0)
                continue;
            q->z[k] = z;
            fall += (double)change * change / 2;
            for (int64_t j = 0; j < padded; j += VLEN)
                *(vec *)(q->cw + j) -= change * *(const vec *)(q->g + k * ld + j);
        }
        if (fall <= enough)
            break;
    }
}

/* On the support S of the present codes, signs s: z(lambda) = G_SS^-1 (b - lambda s / |d|). The
 * two parts go into q->fit and q->lean, the places of S into q->support. Atoms that depend on
 * earlier ones stay out of S with their codes as they are; *frozen counts them. Returns the size
 * of S, or -1 where there are more atoms than coordinates. */
static int64_t FN(on_support)(FN(problem) *q, int64_t *frozen)
{
    int64_t m = 0, ld = q->ld, active = 0;
    for (int64_t k = 0; k < q->m; k++)
        active += q->z[k] != 0;
    if (active > q->dict->d)
        return -1;
    *frozen = 0;
    for (int64_t k = 0; k < q->m; k++) {
        if (q->z[k] == 0)
            continue;
        double *row = q->chol + m * ld, pivot = 1;
        for (int64_t l = 0; l < m; l++) {
            double s = q->g[k * ld + q->support[l]];
            for (int64_t e = 0; e < l; e++)
                s -= row[e] * q->chol[l * ld + e];
            row[l] = s / q->chol[l * ld + l];
            pivot -= row[l] * row[l];
        }
        if (pivot < 8 * EPS) {
            q->support[ld - 1 - (*frozen)++] = (int32_t)k;
            continue;
        }
        row[m] = sqrt(pivot);
        q->support[m++] = (int32_t)k;
    }
    for (int64_t i = 0; i < m; i++) {
        int32_t k = q->support[i], j = q->set[k];
        q->fit[i] = q->a[k];
        for (int64_t f = 0; f < *frozen; f++) {
            int32_t other = q->support[ld - 1 - f];
            q->fit[i] -= (double)q->g[k * ld + other] * q->z[other];
        }
        q->lean[i] = (q->z[k] > 0 ? 1 : -1) / (double)q->weight[j];
    }
    atoms_cholesky_solve(m, q->chol, ld, q->fit);
    atoms_cholesky_solve(m, q->chol, ld, q->lean);
    return m;
}

/* Coordinate descent creeps where atoms are alike. Towards the minimiser on the support the
 * objective falls all the way to the first sign change, so that far is safe to go. */
static void FN(leap)(FN(problem) *q, double lambda)
{
    int64_t frozen, m = FN(on_support)(q, &frozen), first = -1;
    double step = 1;
    for (int64_t i = 0; i < m; i++) {
        double z = q->z[q->support[i]], to = q->fit[i] - lambda * q->lean[i];
        if (z * to < 0 && z / (z - to) < step) {
            step = z / (z - to);
            first = i;
        }
    }
    for (int64_t i = 0; i < m; i++) {
        T *z = &q->z[q->support[i]];
        *z = i == first ? 0 : (T)(*z + step * (q->fit[i] - lambda * q->lean[i] - *z));
    }
}

/* Solves at penalty lambda from the present codes; the gap reached. Where a new `ref` is needed, it `waits`: call it
 * again then. rounds: so far. */
static atoms_status FN(lasso_solve)(FN(problem) *q, double lambda, double tol, int64_t max_rounds,
                                    double *gap, int32_t *rounds, bool *waits)
{
    double nu, enough = INFINITY;
    for (;; ++*rounds) {
        *waits = q->ref && !FN(refresh_near)(q, lambda);
        if (*waits)
            return ATOMS_OK;
        *gap = FN(lasso_gap)(q, lambda, &nu);
        if (!(*gap > tol) || *rounds >= max_rounds)
            return ATOMS_OK;
        atoms_status go_on = atoms_team_ask(q->team);
        if (go_on < 0)
            return go_on;
        /* the violators join; of the first, those above a share of the worst violation */
        double share = 1 + (*rounds == 0 ? FIRST_SHARE : 0) * (nu - 1);
        double limit = lambda * ATOMS_MAX(share, 1 + 4 * EPS);
        int64_t before = q->m;
        for (int64_t p = 0; nu > 1 && p < q->dict->np; p += VLEN) {
            vec c = *(const vec *)(q->c + p), zero = {0};
            c = VMAX(c, q->positive ? zero : zero - c) * *(const vec *)(q->weight + p);
            for (unsigned lanes = (unsigned)GE_LANES(c, BCAST((T)limit)); lanes; lanes &= lanes - 1) {
                int64_t j = p + __builtin_ctz(lanes);
                if (q->where[j] < 0 && FN(admit)(q, j) < 0)
                    return ATOMS_ERR_MEMORY;
            }
        }
        enough = q->m > before ? 1e-3 * *gap : ATOMS_MIN(1e-3 * *gap, 0.1 * enough);
        FN(descend)(q, lambda, enough);
        if (*rounds > 0) /* the set is about right, and to be solved on to the end */
            FN(leap)(q, lambda);
        if (!q->ref)
            FN(refresh)(q);
    }
}

/* ----------------------------------------------------------------- output */

/* Writes a code, given by m (atom, unit-scale coefficient) pairs, into row `row` of the tile. */
static void FN(write_code)(const atoms_dict *dict, code_tile *tile, int64_t row, int64_t m,
                           const int32_t *set, const T *z, double scale, const T *x, int status)
{
    int32_t *indices = tile->indices + row * tile->width, count = 0;
    T *values = (T *)tile->values + row * tile->width;
    for (int64_t k = 0; k < m; k++) {
        if (z[k] == 0)
            continue;
        T value = (T)((double)z[k] * (scale / dict->norm[set[k]]));
        if (!isfinite(value))
            status = ATOMS_SIGNAL_RANGE;
        int64_t at = count++;
        for (; at > 0 && indices[at - 1] > set[k]; at--) {
            indices[at] = indices[at - 1];
            values[at] = values[at - 1];
        }
        indices[at] = set[k];
        values[at] = value;
    }
    tile->counts[row] = status == ATOMS_SIGNAL_RANGE ? 0 : count;
    tile->status[row] = (int8_t)status;
    if (!tile->residual)
        return;
    tile->residual[row] =
        scale * FN(residual_norm)(dict, x, status == ATOMS_SIGNAL_RANGE ? 0 : m, set, z);
}

/* What a zero or a non-finite signal gets. */
static void FN(write_empty)(code_tile *tile, int64_t row, signal_kind kind)
{
    bool bad = kind == SIGNAL_NONFINITE;
    tile->counts[row] = tile->steps[row] = 0;
    tile->status[row] = bad ? ATOMS_SIGNAL_NONFINITE : ATOMS_SIGNAL_CONVERGED;
    if (tile->residual)
        tile->residual[row] = bad ? NAN : 0;
    if (tile->gap)
        tile->gap[row] = bad ? NAN : 0;
}

/* The tile's signals at unit norm, their norms and kinds, and d_j . x for all of them. */
typedef struct {
    T *x, *alpha0;
    double *row, *scale;
    signal_kind *kind;
} FN(inputs);

static void FN(inputs_free)(FN(inputs) *in)
{
    atoms_free(in->x);
    atoms_free(in->alpha0);
    atoms_free(in->row);
    atoms_free(in->scale);
    atoms_free(in->kind);
}

static atoms_status FN(inputs_new)(const atoms_dict *dict, const code_tile *tile, FN(inputs) *in)
{
    int64_t n = tile->n, d = dict->d;
    int64_t size = tile->x_type == ATOMS_F64 ? 8 : tile->x_type == ATOMS_F32 ? 4 : 2;
    in->x = atoms_alloc(n * d, sizeof(T));
    in->alpha0 = atoms_alloc(n * dict->np, sizeof(T));
    in->row = atoms_alloc(d, sizeof(double));
    in->scale = atoms_alloc(n, sizeof(double));
    in->kind = atoms_alloc(n, sizeof *in->kind);
    if (!in->x || !in->alpha0 || !in->row || !in->scale || !in->kind)
        return ATOMS_ERR_MEMORY; /* the caller frees what there is */
    for (int64_t i = 0; i < n; i++) {
        const char *from = (const char *)tile->x + i * tile->rs * size;
        in->kind[i] = atoms_load_signal(d, from, tile->x_type, tile->cs, in->row, &in->scale[i]);
        for (int64_t j = 0; j < d; j++)
            in->x[i * d + j] = (T)in->row[j];
    }
    return ATOMS_OK;
}

/* The signals of a tile that wait for correlations, side by side. */
typedef struct {
    T *r;             /* (tile, d) residuals */
    int64_t *order;   /* (tile) which signals they are of */
    double *error;    /* (tile) see atoms_correlate; zeros for products of full precision */
    int16_t *short_r;
    float *units;
    int64_t *penalty; /* (tile) by signal: the penalty it is at */
    T *kept;          /* (tile, KEPT (KEPT + 3) / 2) by signal: see join */
} FN(flight);

static void FN(flight_free)(FN(flight) *f)
{
    void *blocks[] = {f->r, f->error, f->order, f->penalty, f->kept, f->short_r, f->units};
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++)
        atoms_free(blocks[i]);
}

static atoms_status FN(flight_new)(const atoms_dict *dict, int64_t n, FN(flight) *f)
{
    *f = (FN(flight)){.r = atoms_alloc(n * dict->d, sizeof(T)),
                      .error = atoms_calloc(n, sizeof *f->error),
                      .order = atoms_alloc(n, sizeof *f->order),
                      .penalty = atoms_calloc(n, sizeof *f->penalty),
                      .kept = atoms_alloc(n * KEPT * (KEPT + 3) / 2, sizeof(T))};
    if (dict->units.panels) {
        f->short_r = atoms_alloc(n * dict->units.ld, sizeof *f->short_r);
        f->units = atoms_alloc(n * CHUNKS(dict->units.ld), sizeof *f->units);
    }
    bool ok = f->r && f->error && f->order && f->penalty && f->kept && !dict->units.panels == !(f->short_r && f->units);
    return ok ? ATOMS_OK : ATOMS_ERR_MEMORY;
}

/* A signal that waits leaves its code in its row of the output. */
static void FN(park)(const FN(problem) *q, code_tile *tile, int64_t row, T *kept)
{
    tile->counts[row] = (int32_t)q->m;
    memcpy(tile->indices + row * tile->width, q->set, (size_t)q->m * sizeof *q->set);
    memcpy((T *)tile->values + row * tile->width, q->z, (size_t)q->m * sizeof(T));
    for (int64_t k = 0; k < ATOMS_MIN(q->m, KEPT); k++, kept += k + 1) {
        memcpy(kept, q->g + k * q->ld, (size_t)(k + 1) * sizeof(T));
        kept[k + 1] = q->a[k];
    }
}

static atoms_status FN(unpark)(FN(problem) *q, const code_tile *tile, int64_t row, const T *kept)
{
    for (int64_t k = 0; k < tile->counts[row]; k++, kept += k + 1) {
        if (FN(join)(q, tile->indices[row * tile->width + k], k < KEPT ? kept : NULL) < 0)
            return ATOMS_ERR_MEMORY;
        q->z[k] = ((T *)tile->values)[row * tile->width + k];
    }
    return ATOMS_OK;
}

/* The signal in place l goes on until it is done with all penalties, or waits. */
static atoms_status FN(lasso_signal)(const atoms_dict *dict, const atoms_lasso_params *p, code_tile *tile,
                                     const FN(inputs) *in, const FN(flight) *f, int64_t l, FN(problem) *q, bool *waits)
{
    int64_t i = f->order[l], *a = &f->penalty[i];
    double s = in->scale[i], gap;
    for (; *a < p->n_alphas; ++*a) {
        int64_t row = *a * tile->stride + i;
        atoms_status status =
            FN(lasso_solve)(q, p->alphas[*a] / s, p->tol, p->max_rounds, &gap, &tile->steps[row], waits);
        if (status < 0)
            return status;
        if (*waits) {
            FN(park)(q, tile, row, f->kept + i * KEPT * (KEPT + 3) / 2);
            return ATOMS_OK;
        }
        FN(write_code)(dict, tile, row, q->m, q->set, q->z, s, q->x,
                       gap <= p->tol ? ATOMS_SIGNAL_CONVERGED : ATOMS_SIGNAL_LIMIT);
        if (tile->gap)
            tile->gap[row] = gap * s * s;
    }
    return ATOMS_OK;
}

static atoms_status FN(lasso_tile)(const atoms_ctx *ctx, const atoms_dict *dict,
                                   const atoms_lasso_params *p, code_tile *tile)
{
    int64_t d = dict->d, np = dict->np, open = 0;
    FN(inputs) in;
    FN(problem) q = {0};
    FN(flight) f = {0};
    atoms_status status = FN(inputs_new)(dict, tile, &in);
    if (status == ATOMS_OK)
        status = FN(problem_new)(dict, p->positive, tile->team, &q);
    if (status == ATOMS_OK)
        status = FN(flight_new)(dict, tile->n, &f);
    for (int64_t i = 0; status == ATOMS_OK && i < tile->n; i++) {
        for (int64_t row = i; row < i + p->n_alphas * tile->stride; row += tile->stride)
            FN(write_empty)(tile, row, in.kind[i]);
        if (in.kind[i] != SIGNAL_OK)
            continue;
        memcpy(f.r + open * d, in.x + i * d, (size_t)d * sizeof(T));
        f.order[open++] = i;
    }
    for (int64_t n = open; status == ATOMS_OK && n > 0; n = open) {
        atoms_correlate(ctx, dict, n, f.r, f.short_r, f.units, in.alpha0, f.error);
        open = 0;
        for (int64_t l = 0; status == ATOMS_OK && l < n; l++) {
            int64_t i = f.order[l], row = f.penalty[i] * tile->stride + i;
            bool waits = false;
            FN(problem_start)(&q, in.x + i * d, in.alpha0 + l * np);
            if (dict->units.panels || !dict->gram) {
                q.ref = in.alpha0 + l * np;
                q.r_ref = f.r + l * d;
                q.ref_error = f.error[l];
            }
            status = FN(unpark)(&q, tile, row, f.kept + i * KEPT * (KEPT + 3) / 2);
            if (status == ATOMS_OK)
                status = FN(lasso_signal)(dict, p, tile, &in, &f, l, &q, &waits);
            if (status == ATOMS_OK && waits) {
                memmove(f.r + open * d, q.r, (size_t)d * sizeof(T));
                f.order[open++] = i;
            }
        }
    }
    FN(flight_free)(&f);
    FN(problem_free)(&q);
    FN(inputs_free)(&in);
    return status;
}

/* -------------------------------------------------- basis pursuit denoising */

/* Gap of min l1 subject to |r| <= sigma, relative to l1: dual x . y - sigma |y|, |d_j . y| |d_j|
 * <= 1, at the multiple of r that is feasible. */
static double FN(denoise_gap)(FN(problem) *q, double sigma, double *l1)
{
    *l1 = FN(measure)(q);
    double top = FN(steepest)(q);
    double dual = top > 0 ? (q->x_dot_r - sigma * sqrt(q->r2)) / top : 0;
    return *l1 - ATOMS_MAX(dual, 0);
}

/* Finds the penalty whose residual is sigma: Newton's way on the support, inside a bracket. */
static atoms_status FN(denoise_solve)(FN(problem) *q, double sigma, const atoms_basis_params *p,
                                      double *gap, int32_t *steps, int *verdict)
{
    double low = 0, high = FN(steepest)(q), lambda = 0.5 * high, l1;
    for (*steps = 0; *steps < p->max_steps; ++*steps) {
        double inner;
        int32_t rounds = 0;
        double goal = ATOMS_MIN(1e-6, 1e-4 * lambda * lambda);
        bool waits;
        atoms_status status = FN(lasso_solve)(q, lambda, goal, 1000, &inner, &rounds, &waits);
        if (status < 0)
            return status;
        int64_t frozen, m = FN(on_support)(q, &frozen);
        double rest = 1, curve = 0; /* |r(lambda)|^2 = rest + lambda^2 curve on the support */
        for (int64_t i = 0; i < m; i++) {
            int32_t k = q->support[i], j = q->set[k];
            rest -= q->fit[i] * q->a[k];
            curve += q->lean[i] * (q->z[k] > 0 ? 1 : -1) / q->weight[j];
        }
        double next = -1;
        if (m > 0 && frozen == 0 && sigma * sigma > rest && curve > 0)
            next = sqrt((sigma * sigma - rest) / curve);
        if (next > 0) {
            bool same = true; /* no sign changes on the way: z(next) is a candidate */
            for (int64_t i = 0; i < m; i++)
                same &= (q->fit[i] - next * q->lean[i]) * q->z[q->support[i]] > 0;
            if (same) {
                for (int64_t i = 0; i < m; i++)
                    q->z[q->support[i]] = (T)(q->fit[i] - next * q->lean[i]);
                FN(refresh)(q);
                *gap = FN(denoise_gap)(q, sigma, &l1);
                if (*gap <= p->tol * l1) {
                    *verdict = ATOMS_SIGNAL_CONVERGED;
                    return ATOMS_OK;
                }
            }
        }
        FN(measure)(q);
        if (!(next > 0) || lambda == next) { /* nothing to aim at: bisect on the residual */
            *(q->r2 > sigma * sigma ? &high : &low) = lambda;
        } else if (next < lambda) {
            high = lambda;
        } else {
            low = lambda;
        }
        if (high < 1e-12 || high - low < 1e-14 * high)
            break;
        if (next > low && next < high)
            lambda = next;
        else
            lambda = low > 0 ? sqrt(low * high) : 0.2 * high;
    }
    *gap = FN(denoise_gap)(q, sigma, &l1);
    bool feasible = sqrt(q->r2) <= sigma * (1 + 1e-6) + 1e-9;
    *verdict = feasible && *gap <= p->tol * l1 ? ATOMS_SIGNAL_CONVERGED
               : !feasible && high < 1e-9      ? ATOMS_SIGNAL_INFEASIBLE
                                               : ATOMS_SIGNAL_LIMIT;
    return ATOMS_OK;
}

static atoms_status FN(denoise_tile)(const atoms_ctx *ctx, const atoms_dict *dict,
                                     const atoms_basis_params *p, code_tile *tile)
{
    int64_t d = dict->d;
    FN(inputs) in;
    FN(problem) q = {0};
    atoms_status status = FN(inputs_new)(dict, tile, &in);
    if (status == ATOMS_OK)
        status = FN(problem_new)(dict, false, tile->team, &q);
    if (status == ATOMS_OK)
        atoms_correlate(ctx, dict, tile->n, in.x, NULL, NULL, in.alpha0, NULL);
    for (int64_t i = 0; status == ATOMS_OK && i < tile->n; i++) {
        if (in.kind[i] != SIGNAL_OK) {
            FN(write_empty)(tile, i, in.kind[i]);
            continue;
        }
        double s = in.scale[i], gap = 0;
        int verdict = ATOMS_SIGNAL_CONVERGED;
        tile->steps[i] = 0;
        FN(problem_start)(&q, in.x + i * d, in.alpha0 + i * dict->np);
        if (p->sigma < s)
            status = FN(denoise_solve)(&q, p->sigma / s, p, &gap, &tile->steps[i], &verdict);
        FN(write_code)(dict, tile, i, q.m, q.set, q.z, s, q.x, verdict);
        if (tile->gap)
            tile->gap[i] = gap * s;
    }
    FN(problem_free)(&q);
    FN(inputs_free)(&in);
    return status;
}
