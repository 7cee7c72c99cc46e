/* train.c: steps in a row, and what steers them from one to the next: sparsity on its target, thresholds for inference. */
#include "sae.h"

#include <math.h>

/* Of the latest steps: a twentieth of it is new each time. */
static double running_mean(double mean, double value)
{
    return mean == 0 ? value : 0.95 * mean + 0.05 * value;
}

static double within(double value, double most)
{
    return fmin(fmax(value, -most), most);
}

/* The price at which the thresholds' gradients balance, and the Newton step common to them. */
static void steer_thresholds(atoms_sae *sae, double target_l0, atoms_sae_control *c, const atoms_sae_stats *stats)
{
    double excess = stats->l0 / target_l0 - 1;
    if (stats->band > 0) {
        c->price = running_mean(c->price, fmax(stats->band_gain, 0));
        double density = stats->band / (double)sae->p.bandwidth;
        c->shift = within(0.3 * (stats->l0 - target_l0) / density, 0.05);
    } else {
        c->shift = excess > 0 ? 0.01 : excess < 0 ? -0.01 : 0;
    }
    if (excess < -0.4) { /* L0 is so low that most bands are empty and say nothing: all thresholds shrink */
        float factor = (float)pow(fmax(1 + excess, 0.1), 0.1);
        for (int64_t j = 0; j < sae->p.d_sae; j++)
            sae->thr.w[j] *= factor;
    }
}

static void steer_l1(double target_l0, atoms_sae_control *c, const atoms_sae_stats *stats)
{
    double excess = stats->l0 / target_l0 - 1;
    if (c->l1 == 0)
        c->l1 = 0.01 * fmax(stats->squared_error, 1e-12) / target_l0;
    /* L0 drifts for as long as the coefficient is off: by the sum over all steps alone, it would swing for ever */
    c->press = within(3 * excess, 2);
    c->l1 *= exp(within(0.1 * excess, 0.05));
    /* beyond 2 |error| it shrinks every activation, and only has further to come back */
    c->l1 = fmin(c->l1, 2 * sqrt(stats->squared_error));
}

static void steer(atoms_sae *sae, const atoms_sae_plan *plan, atoms_sae_control *c, const atoms_sae_stats *stats)
{
    c->row = running_mean(c->row, stats->row_scale);
    if (sae->p.activation == ATOMS_JUMPRELU)
        steer_thresholds(sae, plan->target_l0, c, stats);
    else if (sae->p.activation == ATOMS_RELU && !plan->fixed_l1)
        steer_l1(plan->target_l0, c, stats);
    else if (sae->p.activation == ATOMS_BATCHTOPK)
        c->cut = running_mean(c->cut, stats->lowest);
}

/* Whether it is time to look for dead latents, and there are some. */
static bool found_dead(const atoms_sae *sae, const atoms_sae_plan *plan, atoms_sae_control *c)
{
    double step = (double)sae->counters[0];
    if (!(plan->wait > 0) || step < c->look)
        return false;
    for (int64_t j = 0; j < sae->p.d_sae; j++)
        if (sae->last_fired[j] <= sae->counters[1] - plan->dead_after)
            return true;
    c->look = step + plan->wait;
    return false;
}

/* The n rows of x from number `from` on. */
static atoms_batch part_of(const atoms_batch *x, int64_t from, int64_t n)
{
    atoms_batch part = *x;
    part.n = n;
    if (x->index)
        part.index = x->index + from;
    else
        part.x.data = atoms_element(x->x, from, 0);
    return part;
}

atoms_status atoms_sae_train(const atoms_ctx *ctx, atoms_sae *sae, const atoms_batch *x, const atoms_sae_plan *plan,
                             atoms_sae_control *control, int64_t *done, atoms_sae_stats *stats)
{
    *done = 0;
    *stats = (atoms_sae_stats){.bad_row = -1};
    bool steered = sae->p.activation == ATOMS_JUMPRELU || (sae->p.activation == ATOMS_RELU && !plan->fixed_l1);
    if (plan->steps < 1 || x->n % plan->steps || (x->target && x->target->n != x->n) ||
        (steered && !(plan->target_l0 > 0)))
        return ATOMS_ERR_ARGUMENT;
    int64_t n = x->n / plan->steps;
    while (*done < plan->steps) {
        atoms_batch rows = part_of(x, *done * n, n), target;
        if (x->target) {
            target = part_of(x->target, *done * n, n);
            rows.target = &target;
        }
        float rate = plan->rates[*done];
        atoms_sae_step_params params = {.learning_rate = rate,
                                        .threshold_rate = rate,
                                        .l0_coefficient = (float)control->price,
                                        .l1_coefficient = (float)(control->l1 * exp(control->press)),
                                        .threshold_shift = (float)control->shift,
                                        .k = plan->k,
                                        .aux_k = plan->aux_k,
                                        .dead_after = plan->dead_after,
                                        .aux_coefficient = plan->aux_coefficient,
                                        .row_limit = plan->row_multiple * control->row};
        atoms_status status = sae_take_step(ctx, sae, &rows, &params, stats);
        if (status != ATOMS_OK) {
            const atoms_batch *bad = stats->bad_target ? x->target : x;
            if (stats->bad_row >= 0 && !bad->index)
                stats->bad_row += *done * n;
            return status;
        }
        steer(sae, plan, control, stats);
        ++*done;
        if (!isfinite(stats->squared_error) || found_dead(sae, plan, control))
            break;
    }
    stats->total_variance = sae_total_variance(sae);
    return ATOMS_OK;
}
