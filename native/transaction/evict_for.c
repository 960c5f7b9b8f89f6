/* Evicts from a device that is full, for what a job brings there.
 *
 * Who waits for whom: a job whose block is busy for the evict_lock of its device; who has that for
 * a victim's own job, which runs on the same thread. A victim is a block that nobody has and nobody
 * waits for, so its job waits for no other; and as it moves pages off a device, which the CPU's
 * page cache never has, it recalls nothing. What this can't do (the host is full as well, each
 * block is in use) ends as -ENOSPC, and the service goes on.
 */
#include "transaction/evict_for.h"

#include "base/pause.h"
#include "rules/evict.h"
#include "transaction/journal.h"
#include "transaction/relabel.h"

#include <errno.h>
#include <string.h>

#define MAX_SPARED 32   /* blocks that did not go; after so many it is left to the service */
#define MAX_VICTIMS 256 /* for one need, and four more for each page: a policy may go by pages */
#define MAX_WAITERS (HM_MAX_MOVERS / 4) /* others have work that needs no eviction */

/* The blocks that one job does not evict, or not again. */
struct search {
    struct hm_spared spared;
    uint64_t keys[2 * MAX_SPARED];
};

static void spare(struct search *search, uint64_t ino, uint64_t block)
{
    search->keys[2 * search->spared.count] = ino;
    search->keys[2 * search->spared.count++ + 1] = block;
}

/* Pages of the job's own block leave: it is busy already. Returns how many went. */
static uint32_t send_own(struct transaction *t, const struct hm_job *job)
{
    struct hm_mask mask;
    struct transaction out = *t;
    memcpy(mask.word, job->window, sizeof(mask));
    out.job = job;
    out.cause = hm_cause(job);
    out.blank = (struct hm_mask){{0}}; /* which are of what comes */
    out.reserved = 0;
    out.event.moved = 0;
    hm_lock(HM_RANK_STRIPE, &t->stripe->lock);
    if (!hm_label_home(&out, &mask))
        (void)hm_bring(&out, &mask, false, HM_BLOCK_PAGES); /* what did not move is still there */
    hm_release(t->core, HM_HOST, out.reserved);
    hm_unlock(HM_RANK_STRIPE, &t->stripe->lock);
    t->charged = out.charged;
    return out.event.moved;
}

/* Have a victim leave for the host. Returns how many pages went. */
static uint32_t send_home(struct transaction *t, const struct hm_victim *victim, uint32_t missing)
{
    struct hm_job job = {.kind = HM_JOB_MIGRATE,
                         .flags = HM_JOB_EVICT | HM_JOB_CHOSEN | HM_JOB_QUIET,
                         .ino = victim->ino,
                         .block = victim->block,
                         .node = HM_HOST,
                         .source = t->job->node};
    struct hm_event event = {0};
    memcpy(job.window, victim->window, sizeof(job.window));
    if (victim->ino == t->region->ino && victim->block == t->block)
        return send_own(t, &job);
    if (t->core->run_now(t->core, &job, &event) != -ENOSPC)
        return event.moved;
    /* The host is almost full: what it keeps of others' pages goes, and no more than needed. */
    job.limit = missing;
    if (hm_drop_kept(t->core, missing) <= 0)
        return 0;
    t->core->run_now(t->core, &job, &event);
    return event.moved;
}

/* The device's evict_lock is held. */
static bool evict_until(struct transaction *t, uint32_t need, const struct hm_mask *wanted)
{
    struct hm_node *node = &t->core->nodes[t->job->node];
    struct search search = {.spared = {search.keys, 0, t->record, wanted}};
    uint32_t victims = MAX_VICTIMS + 4 * need;
    if (!hm_evict_by_page(t->core, t->job->node))
        spare(&search, t->region->ino, t->block);
    while (victims--) {
        struct hm_victim victim;
        uint64_t used = atomic_load(&node->used);
        uint32_t missing = need - t->reserved;
        if (!hm_reserve(t->core, t->job->node, missing, 0)) {
            t->reserved = need;
            return true;
        }
        if (node->capacity > used && missing > node->capacity - used)
            missing -= (uint32_t)(node->capacity - used);
        if (!hm_evict_choose(t->core, t->job->node, missing, &search.spared, &victim))
            return false;
        if (!send_home(t, &victim, missing)) {
            if (search.spared.count == MAX_SPARED)
                return false;
            spare(&search, victim.ino, victim.block);
        }
    }
    return false;
}

bool hm_evict_for(struct transaction *t, int error, const struct hm_mask *wanted)
{
    struct hm_core *core = t->core;
    uint32_t need = t->event.need, node = t->job->node;
    uint64_t began;
    bool made;
    if (error != -ENOSPC || node == HM_HOST || t->at_once || t->job->flags & HM_JOB_EVICT ||
        need <= t->reserved || need > core->nodes[node].capacity || !hm_evict_is_native(core, node))
        return false;
    if (atomic_fetch_add(&core->evict_waiters, 1) >= MAX_WAITERS) {
        atomic_fetch_sub(&core->evict_waiters, 1);
        return false;
    }
    hm_unlock(HM_RANK_STRIPE, &t->stripe->lock);
    hm_pause("evict.wanted");
    began = hm_trace_wait(t, 0);
    hm_lock(HM_RANK_EVICT, &core->evict_lock[node]);
    made = evict_until(t, need, wanted);
    hm_unlock(HM_RANK_EVICT, &core->evict_lock[node]);
    atomic_fetch_sub(&core->evict_waiters, 1);
    hm_trace_wait(t, began);
    hm_lock(HM_RANK_STRIPE, &t->stripe->lock);
    return made;
}

int hm_bring_in(struct transaction *t, const struct hm_mask *mask, bool populate, uint32_t limit)
{
    int error;
    do
        error = hm_bring(t, mask, populate, limit);
    while (hm_evict_for(t, error, mask));
    return error;
}
