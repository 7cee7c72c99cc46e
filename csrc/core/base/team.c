/* team.c: the question whether to stop, asked by one thread, answered to all. */
#include "core.h"

#include <time.h>

atoms_status atoms_poll(const atoms_ctx *ctx, atoms_pollster *pollster)
{
    if (!ctx->p.poll)
        return ATOMS_OK;
    struct timespec t;
    timespec_get(&t, TIME_UTC);
    double now = (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
    if (now >= pollster->last && now - pollster->last < 0.1) /* a clock that was set back does not silence it */
        return ATOMS_OK;
    pollster->last = now;
    return ctx->p.poll(ctx->p.poll_data) ? ATOMS_ERR_CANCELLED : ATOMS_OK;
}

static atoms_status team_status(atoms_team *team)
{
    atoms_status status;
#pragma omp atomic read
    status = team->status;
    return status;
}

bool atoms_team_stopped(atoms_team *team)
{
    return team_status(team) < 0;
}

void atoms_team_report(atoms_team *team, atoms_status status)
{
    if (status == ATOMS_OK && atoms_thread() == 0)
        status = atoms_poll(team->ctx, &team->pollster);
    if (status < 0) {
#pragma omp atomic write
        team->status = status;
    }
}

atoms_status atoms_team_ask(atoms_team *team)
{
    if (!atoms_team_stopped(team))
        atoms_team_report(team, ATOMS_OK);
    return team_status(team);
}
