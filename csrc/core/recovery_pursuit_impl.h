/* recovery_pursuit_impl.h: matching pursuit, gradient pursuit, CoSaMP and iterative hard
 * thresholding, on the working set of recovery_l1_impl.h: z holds the code, `refresh` brings
 * c = [d_j . r] up to date after any change of it. Included after that file. */

/* The k largest |value|, in `top` in no order; fewer where the rest is zero. keys: (k). A heap
 * with its smallest member at the root. */
static int64_t FN(largest)(int64_t n, const T *value, int64_t k, int32_t *top, T *keys)
{
    int64_t size = 0;
    for (int64_t j = 0; j < n; j++) {
        T key = value[j] < 0 ? -value[j] : value[j];
        if (key == 0 || (size == k && key <= keys[0]))
            continue;
        int64_t at = 0;
        if (size < k) { /* sift up from the end */
            for (at = size++; at > 0 && keys[(at - 1) / 2] > key; at = (at - 1) / 2) {
                keys[at] = keys[(at - 1) / 2];
                top[at] = top[(at - 1) / 2];
            }
        } else { /* the root goes: sift down */
            for (int64_t child; (child = 2 * at + 1) < size; at = child) {
                if (child + 1 < size && keys[child + 1] < keys[child])
                    child++;
                if (keys[child] >= key)
                    break;
                keys[at] = keys[child];
                top[at] = top[child];
            }
        }
        keys[at] = key;
        top[at] = (int32_t)j;
    }
    return size;
}

/* Room for the pursuits that weigh many atoms at once: most = 3 n_nonzero. */
typedef struct {
    int64_t most;
    double *chol, *fit;
    int32_t *list, *top;
    T *keys, *all; /* all: (np) */
} FN(scratch);

static void FN(scratch_free)(FN(scratch) *w)
{
    void *blocks[] = {w->chol, w->fit, w->list, w->top, w->keys, w->all};
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++)
        atoms_free(blocks[i]);
}

static atoms_status FN(scratch_new)(int64_t np, int64_t most, FN(scratch) *w)
{
    *w = (FN(scratch)){.most = most};
    w->chol = atoms_alloc(most * most, sizeof *w->chol);
    w->fit = atoms_alloc(most, sizeof *w->fit);
    w->list = atoms_alloc(most, sizeof *w->list);
    w->top = atoms_alloc(most, sizeof *w->top);
    w->keys = atoms_alloc(most, sizeof *w->keys);
    w->all = atoms_alloc(np, sizeof *w->all);
    if (w->chol && w->fit && w->list && w->top && w->keys && w->all)
        return ATOMS_OK;
    return ATOMS_ERR_MEMORY;
}

static atoms_status FN(ensure)(FN(problem) *q, int64_t j)
{
    return q->where[j] < 0 ? FN(join)(q, j, NULL) : ATOMS_OK;
}

/* Squared norm of sum v_k d_k over the working set; v is cw's sibling, (m). */
static double FN(energy)(const FN(problem) *q, const T *v)
{
    double sum = 0;
    for (int64_t k = 0; k < q->m; k++)
        if (v[k] != 0)
            sum += (double)v[k] * FN(dot)(q->m, q->g + k * q->ld, v);
    return sum;
}

/* The atom of the largest |c|; only among those in the set when the set is full. */
static int64_t FN(strongest)(const FN(problem) *q, int64_t n_nonzero)
{
    int64_t best = -1;
    T value = 0;
    if (q->m < n_nonzero) {
        for (int64_t j = 0; j < q->dict->n; j++) {
            T a = q->c[j] < 0 ? -q->c[j] : q->c[j];
            if (a > value) {
                value = a;
                best = j;
            }
        }
        return best;
    }
    for (int64_t k = 0; k < q->m; k++) {
        T a = q->c[q->set[k]] < 0 ? -q->c[q->set[k]] : q->c[q->set[k]];
        if (a > value) {
            value = a;
            best = q->set[k];
        }
    }
    return best;
}

/* z_j += c_j for the strongest atom. */
static atoms_status FN(matching_step)(FN(problem) *q, const atoms_pursuit_params *p, bool *moved)
{
    int64_t j = FN(strongest)(q, p->n_nonzero);
    *moved = j >= 0 && fabs((double)q->c[j]) > 32 * EPS;
    if (!*moved)
        return ATOMS_OK;
    if (FN(ensure)(q, j) < 0)
        return ATOMS_ERR_MEMORY;
    q->z[q->where[j]] += q->c[j];
    FN(refresh)(q);
    return ATOMS_OK;
}

/* The strongest atom joins; z moves along the gradient on the set as far as helps. */
static atoms_status FN(gradient_step)(FN(problem) *q, const atoms_pursuit_params *p, bool *moved)
{
    int64_t j = FN(strongest)(q, p->n_nonzero);
    *moved = j >= 0 && fabs((double)q->c[j]) > 32 * EPS;
    if (!*moved)
        return ATOMS_OK;
    if (FN(ensure)(q, j) < 0)
        return ATOMS_ERR_MEMORY;
    double square = 0;
    for (int64_t k = 0; k < q->m; k++) {
        q->cw[k] = q->c[q->set[k]];
        square += (double)q->cw[k] * q->cw[k];
    }
    double curve = FN(energy)(q, q->cw);
    for (int64_t k = 0; curve > 0 && k < q->m; k++)
        q->z[k] += (T)(square / curve) * q->cw[k];
    FN(refresh)(q);
    return ATOMS_OK;
}

/* Least squares on the listed places of the set; dependent ones leave the list. Into w->fit. */
static int64_t FN(fit_listed)(const FN(problem) *q, FN(scratch) *w, int64_t n)
{
    int64_t m = 0, ld = w->most;
    for (int64_t i = 0; i < n; i++) {
        int32_t k = w->list[i];
        double *row = w->chol + m * ld, pivot = 1;
        for (int64_t l = 0; l < m; l++) {
            double s = q->g[k * q->ld + w->list[l]];
            for (int64_t e = 0; e < l; e++)
                s -= row[e] * w->chol[l * ld + e];
            row[l] = s / w->chol[l * ld + l];
            pivot -= row[l] * row[l];
        }
        if (pivot < DEPENDENT)
            continue;
        row[m] = sqrt(pivot);
        w->fit[m] = q->a[k];
        w->list[m++] = k;
    }
    atoms_cholesky_solve(m, w->chol, ld, w->fit);
    return m;
}

/* Merge the 2 k strongest atoms with the code's own, fit by least squares, keep k. */
static atoms_status FN(cosamp_step)(FN(problem) *q, const atoms_pursuit_params *p, FN(scratch) *w)
{
    int64_t k = p->n_nonzero, n = 0;
    int64_t found = FN(largest)(q->dict->np, q->c, 2 * k, w->top, w->keys);
    for (int64_t i = 0; i < q->m; i++)
        if (q->z[i] != 0)
            w->list[n++] = (int32_t)i;
    for (int64_t i = 0; i < found; i++) {
        if (FN(ensure)(q, w->top[i]) < 0)
            return ATOMS_ERR_MEMORY;
        if (q->z[q->where[w->top[i]]] == 0)
            w->list[n++] = q->where[w->top[i]];
    }
    n = FN(fit_listed)(q, w, n);
    for (int64_t i = 0; i < n; i++)
        w->all[i] = (T)w->fit[i];
    memset(q->z, 0, (size_t)q->m * sizeof(T));
    found = FN(largest)(n, w->all, k, w->top, w->keys);
    for (int64_t i = 0; i < found; i++)
        q->z[w->list[w->top[i]]] = w->all[w->top[i]];
    FN(refresh)(q);
    return ATOMS_OK;
}

/* Normalised iterative hard thresholding: the k largest of z + mu c, mu small enough that the
 * residual cannot grow. */
static atoms_status FN(iht_step)(FN(problem) *q, const atoms_pursuit_params *p, FN(scratch) *w)
{
    int64_t np = q->dict->np, k = p->n_nonzero, found;
    bool empty = true;
    for (int64_t i = 0; i < q->m; i++)
        empty &= q->z[i] == 0;
    if (empty) { /* the step is sized on the atoms that would come in first */
        found = FN(largest)(np, q->c, k, w->top, w->keys);
        for (int64_t i = 0; i < found; i++)
            if (FN(ensure)(q, w->top[i]) < 0)
                return ATOMS_ERR_MEMORY;
    }
    double square = 0;
    for (int64_t i = 0; i < q->m; i++) {
        q->cw[i] = empty || q->z[i] != 0 ? q->c[q->set[i]] : 0;
        square += (double)q->cw[i] * q->cw[i];
    }
    double curve = FN(energy)(q, q->cw), mu = curve > 0 ? square / curve : 1;
    for (int attempt = 0; attempt < 60; attempt++) {
        for (int64_t j = 0; j < np; j++)
            w->all[j] = (T)mu * q->c[j];
        for (int64_t i = 0; i < q->m; i++)
            w->all[q->set[i]] += q->z[i];
        found = FN(largest)(np, w->all, k, w->top, w->keys);
        for (int64_t i = 0; i < found; i++)
            if (FN(ensure)(q, w->top[i]) < 0)
                return ATOMS_ERR_MEMORY;
        for (int64_t i = 0; i < q->m; i++)
            q->cw[i] = -q->z[i];
        for (int64_t i = 0; i < found; i++)
            q->cw[q->where[w->top[i]]] += w->all[w->top[i]];
        double moved = 0;
        for (int64_t i = 0; i < q->m; i++)
            moved += (double)q->cw[i] * q->cw[i];
        if (mu * FN(energy)(q, q->cw) <= 0.99 * moved || moved == 0)
            break;
        mu *= 0.5;
    }
    for (int64_t i = 0; i < q->m; i++)
        q->z[i] += q->cw[i];
    for (int64_t i = 0; i < q->m; i++) /* what cancelled but for rounding is zero */
        if (fabs((double)q->z[i]) <= 4 * EPS * fabs((double)q->cw[i]))
            q->z[i] = 0;
    FN(refresh)(q);
    return ATOMS_OK;
}

static atoms_status FN(pursue)(FN(problem) *q, const atoms_pursuit_params *p, FN(scratch) *w,
                               double tol, int32_t *steps, int *verdict)
{
    bool greedy = p->method == ATOMS_PURSUIT_MP || p->method == ATOMS_PURSUIT_GRADIENT;
    bool moved = true;
    double before = 1;
    *verdict = ATOMS_SIGNAL_LIMIT;
    for (*steps = 0; *steps < p->max_steps; ++*steps) {
        atoms_status status = atoms_team_ask(q->team);
        if (status < 0)
            return status;
        status = p->method == ATOMS_PURSUIT_MP         ? FN(matching_step)(q, p, &moved)
                 : p->method == ATOMS_PURSUIT_GRADIENT ? FN(gradient_step)(q, p, &moved)
                 : p->method == ATOMS_PURSUIT_COSAMP   ? FN(cosamp_step)(q, p, w)
                                                       : FN(iht_step)(q, p, w);
        if (status < 0)
            return status;
        FN(measure)(q);
        if (q->r2 < 1e-3) { /* too small a difference for the sum in `measure` */
            double r = FN(residual_norm)(q->dict, q->x, q->m, q->set, q->z);
            q->r2 = r * r;
        }
        bool still = greedy ? !moved : q->r2 >= before * (1 - 1e-10) || q->r2 < EPS * EPS * 1e4;
        if (still || q->r2 <= tol * tol) {
            *verdict = ATOMS_SIGNAL_CONVERGED;
            *steps += !still;
            return ATOMS_OK;
        }
        before = q->r2;
    }
    /* with no tolerance asked for, the pursuits that add one atom a step end when told to */
    if (greedy && p->tol < 0)
        *verdict = ATOMS_SIGNAL_CONVERGED;
    return ATOMS_OK;
}

static atoms_status FN(pursuit_tile)(const atoms_ctx *ctx, const atoms_dict *dict,
                                     const atoms_pursuit_params *p, code_tile *tile)
{
    FN(inputs) in;
    FN(problem) q = {0};
    FN(scratch) w = {0};
    atoms_status status = FN(inputs_new)(dict, tile, &in);
    if (status == ATOMS_OK)
        status = FN(problem_new)(dict, false, tile->team, &q);
    if (status == ATOMS_OK)
        status = FN(scratch_new)(dict->np, 3 * p->n_nonzero, &w);
    if (status == ATOMS_OK)
        atoms_correlate(ctx, dict, tile->n, in.x, NULL, NULL, in.alpha0, NULL);
    for (int64_t i = 0; status == ATOMS_OK && i < tile->n; i++) {
        if (in.kind[i] != SIGNAL_OK) {
            FN(write_empty)(tile, i, in.kind[i]);
            continue;
        }
        int verdict;
        double s = in.scale[i];
        FN(problem_start)(&q, in.x + i * dict->d, in.alpha0 + i * dict->np);
        status = FN(pursue)(&q, p, &w, p->tol < 0 ? 0 : p->tol / s, &tile->steps[i], &verdict);
        FN(write_code)(dict, tile, i, q.m, q.set, q.z, s, q.x, verdict);
    }
    FN(scratch_free)(&w);
    FN(problem_free)(&q);
    FN(inputs_free)(&in);
    return status;
}

/* ------------------------------------------------------------ threshold coding */

static atoms_status FN(threshold_tile)(const atoms_ctx *ctx, const atoms_dict *dict,
                                       const int *signed_codes, code_tile *tile)
{
    FN(inputs) in;
    atoms_status status = FN(inputs_new)(dict, tile, &in);
    int32_t *set = atoms_alloc(dict->n, sizeof *set);
    T *z = atoms_alloc(dict->n, sizeof *z);
    if (status == ATOMS_OK && (!set || !z))
        status = ATOMS_ERR_MEMORY;
    if (status == ATOMS_OK)
        atoms_correlate(ctx, dict, tile->n, in.x, NULL, NULL, in.alpha0, NULL);
    for (int64_t i = 0; status == ATOMS_OK && i < tile->n; i++) {
        const T *alpha = in.alpha0 + i * dict->np;
        double s = in.scale[i], top = 0;
        if (!tile->indices) {
            for (int64_t j = 0; j < dict->n; j++)
                top = ATOMS_MAX(top, fabs((double)alpha[j]) * dict->norm[j]);
            tile->gap[i] = in.kind[i] == SIGNAL_NONFINITE ? NAN : top * s;
            continue;
        }
        FN(write_empty)(tile, i, in.kind[i]);
        if (in.kind[i] != SIGNAL_OK)
            continue;
        int64_t m = 0;
        for (int64_t j = 0; j < dict->n; j++) {
            double code = (double)alpha[j] * dict->norm[j] * s;
            if ((*signed_codes ? fabs(code) : code) < tile->tau[i] || code == 0)
                continue;
            set[m] = (int32_t)j;
            z[m++] = (T)((double)alpha[j] * dict->norm[j] * dict->norm[j]); /* undone by write_code */
        }
        FN(write_code)(dict, tile, i, m, set, z, s, in.x + i * dict->d, ATOMS_SIGNAL_CONVERGED);
    }
    atoms_free(z);
    atoms_free(set);
    FN(inputs_free)(&in);
    return status;
}

const code_kernel FN(atoms_code) = {FN(lasso_tile), FN(denoise_tile), FN(pursuit_tile),
                                    FN(threshold_tile)};
