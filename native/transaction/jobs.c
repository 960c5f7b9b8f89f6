/* Running a job: take the block or line up for it, carry the job out, let the next go on. */
#include "transaction/jobs.h"

#include "base/events.h"
#include "base/pause.h"
#include "directory/labels.h"
#include "directory/records.h"
#include "directory/windows.h"
#include "rules/evict.h"
#include "rules/placement.h"
#include "transaction/device_fault.h"
#include "transaction/duplicate.h"
#include "transaction/evict_for.h"
#include "transaction/journal.h"
#include "transaction/movers.h"
#include "transaction/operation.h"
#include "transaction/parked.h"
#include "transaction/recall.h"
#include "transaction/relabel.h"
#include "transaction/transaction.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static struct hm_mask job_mask(const struct hm_job *job)
{
    uint32_t first = job->offset / HM_PAGE_SIZE;
    struct hm_mask mask;
    if (job->flags & HM_JOB_CHOSEN) {
        memcpy(mask.word, job->window, sizeof(mask));
        return mask;
    }
    if (job->kind == HM_JOB_MIGRATE || job->kind == HM_JOB_RECALL)
        return hm_mask_range(job->first, job->count);
    return hm_mask_range(first, (job->offset + job->length - 1) / HM_PAGE_SIZE - first + 1);
}

static int job_check(struct hm_core *core, const struct hm_job *job)
{
    bool operation = job->kind >= HM_JOB_READ && job->kind <= HM_JOB_CRC;
    if (job->flags & HM_JOB_REMOTE && job->kind != HM_JOB_READ && job->kind != HM_JOB_WRITE)
        return -EINVAL;
    if (job->kind > HM_JOB_DEVICE_FAULT || job->block >= HM_MAX_BLOCKS)
        return -EINVAL;
    if (job->node >= core->config.nodes ||
        ((operation || job->kind == HM_JOB_DEVICE_FAULT) && job->node == HM_HOST))
        return -ENODEV;
    if (operation)
        return !job->length || job->offset >= HM_BLOCK_BYTES ||
                       job->length > HM_BLOCK_BYTES - job->offset
                   ? -EINVAL
                   : 0;
    return job->first >= HM_BLOCK_PAGES || job->count > HM_BLOCK_PAGES - job->first ? -EINVAL : 0;
}

/* Whether pages of the mask that are elsewhere may not come to the job's node. */
static bool any_stays(const struct transaction *t, const struct hm_mask *mask)
{
    struct hm_mask stay = hm_stay(t), mine = hm_said_on(t->region, t->block, t->job->node);
    HM_EACH_WORD (w)
        stay.word[w] &= mask->word[w] & t->record->present[w];
    hm_drop(stay.word, mine.word);
    return hm_bits(stay.word) != 0;
}

/* -EPERM: pages that were asked for may not come to the job's node, so none does. A hole that the
 * CPU has may be a page by a store that only the page cache knows of: a recall tells. */
static int refuse_stays(struct transaction *t, const struct hm_mask *mask)
{
    struct hm_mask stay = hm_stay(t);
    int error = 0;
    HM_EACH_WORD (w)
        stay.word[w] &= mask->word[w] & t->record->cached[w] & ~t->record->present[w];
    if (t->job->node != HM_HOST && hm_bits(stay.word)) {
        error = hm_recall(t, &stay);
        hm_thaw(t->record, t->stripe);
        hm_step_of(t, "thawed", NULL);
    }
    return error ? error : any_stays(t, mask) ? -EPERM : 0;
}

/* What an operation to come will have on the device: of read-mostly pages it has none. */
static struct hm_mask placed(const struct transaction *t, const struct hm_mask *mask)
{
    struct hm_placement place = hm_place(t->region, t->block, t->job->node, mask, false, NULL);
    struct hm_advised said;
    hm_advised(t->region, t->block, t->job->node, &said);
    hm_drop(place.bring.word, said.read_mostly.word);
    return place.bring;
}

/* Of read-mostly pages who asks for them gets copies. `mask` keeps the others, and those that get
 * none. */
static int duplicate_asked(struct transaction *t, struct hm_mask *mask)
{
    struct hm_mask copy, mine = hm_owned(t->record, t->job->node);
    struct hm_advised said;
    int error;
    if (hm_changes_unseen(t->region) || !hm_advised(t->region, t->block, t->job->node, &said))
        return 0;
    copy = hm_both(hm_both(mask->word, said.read_mostly.word).word, t->record->present);
    hm_drop(mask->word, copy.word);
    hm_drop(copy.word, mine.word);
    if (!hm_bits(copy.word))
        return 0;
    do
        error = hm_duplicate(t, &copy);
    while (hm_evict_for(t, error, &copy));
    hm_add(mask->word, copy.word);
    return error;
}

static int run_with_record(struct transaction *t)
{
    const struct hm_job *job = t->job;
    struct hm_mask mask = job_mask(job);
    int error = 0;
    switch (job->kind) {
    case HM_JOB_MIGRATE:
        if (job->flags & HM_JOB_ASKED && (error = refuse_stays(t, &mask)))
            return error;
        if (job->flags & HM_JOB_PLACED)
            mask = placed(t, &mask);
        if (job->flags & HM_JOB_ASKED && job->node != HM_HOST)
            error = duplicate_asked(t, &mask);
        if (!error && hm_labels(t->region, job->node)) {
            struct hm_mask rest;
            do {
                rest = mask;
                error = hm_label(t, &rest);
            } while (hm_evict_for(t, error, &mask));
            mask = rest;
        }
        if (!error && job->node == HM_HOST && job->flags & (HM_JOB_ASKED | HM_JOB_EVICT))
            error = hm_label_home(t, &mask);
        if (error)
            return error;
        /* Who asks for a program's memory means what was never touched, too. */
        return hm_bring_in(t, &mask, hm_changes_unseen(t->region) && job->flags & HM_JOB_ASKED,
                           job->limit ? job->limit : HM_BLOCK_PAGES);
    case HM_JOB_RECALL:
        error = hm_recall(t, &mask);
        hm_thaw(t->record, t->stripe);
        hm_step_of(t, "thawed", NULL);
        return error;
    case HM_JOB_DEVICE_FAULT:
        return hm_device_fault(t);
    default:
        return atomic_load(&t->region->ops)->operate(t, &mask);
    }
}

/* The first job that waits for the block, if nobody has it. Also where this one never had it, for
 * it may be one that waited, and that was refused when its turn came: the file is shorter now, or
 * gone. NULL: none waits. */
static struct hm_queued_job *next_deferred(const struct transaction *t)
{
    struct hm_stripe *stripe = hm_stripe_of(t->core, t->job->ino, t->block);
    const struct hm_block *record = t->region ? &t->region->blocks[t->block] : NULL;
    struct hm_queued_job **at, *next = NULL;
    HM_GUARD(HM_RANK_STRIPE, &stripe->lock);
    for (at = &stripe->deferred; !(record && record->busy) && *at; at = &(*at)->next)
        if ((*at)->job.ino == t->job->ino && (*at)->job.block == t->block) {
            next = *at;
            *at = next->next;
            if (!*at)
                stripe->deferred_end = at;
            break;
        }
    return next;
}

/* Free the block, let what waited for it go on, and tell who waits for the job. CPU requests
 * go first: a device that is always ready with its next job must not starve them. */
static void finish(struct transaction *t, bool held)
{
    const struct hm_kind_ops *ops = held ? atomic_load(&t->region->ops) : NULL;
    struct hm_queued_job *next;
    if (t->job->node < t->core->config.nodes)
        hm_release(t->core, t->job->node, t->reserved);
    if (t->job->flags & HM_JOB_FAULT)
        t->charged += t->core->nodes[HM_HOST].fault_cost; /* the gate has put it to the clock */
    if (held && t->core->config.realtime && t->charged)
        nanosleep(&(struct timespec){(time_t)(t->charged / 1000000000), t->charged % 1000000000},
                  NULL);
    if (held) {
        hm_lock(HM_RANK_STRIPE, &t->stripe->lock);
        t->record->busy = 0;
        hm_step_of(t, "finished", NULL);
        hm_evict_note(t->region, t->block);
        hm_unlock(HM_RANK_STRIPE, &t->stripe->lock);
        hm_pause("job.freed");
        if (t->job->kind == HM_JOB_DEVICE_FAULT && !t->event.result && !hm_bits(t->remote.word))
            hm_faults_served(t);
        /* Not before: the next fault of the worker would sometimes find the block busy, and others
         * be evicted in its place. */
        hm_window_wake(t->region, t->job->node, t->block, &t->wake);
        if (hm_bits(t->remote.word) && !t->event.result) {
            t->event.result =
                hm_window_map_remote(t->region, t->job->node, t->block, &t->remote, t->job->worker);
            if (!t->event.result)
                hm_faults_served(t);
        }
        if (ops->freed)
            ops->freed(t->region, t->block);
        hm_replay(t->region, t->block);
    }
    next = next_deferred(t);
    if (next)
        hm_queue(t->core, next);
    if (!(t->job->flags & HM_JOB_QUIET))
        hm_event_push(t->core, &t->event);
    else if (t->job->kind == HM_JOB_DEVICE_FAULT && t->event.result)
        hm_device_fault_report(t->core, t->job, t->event.result, t->event.need);
}

void hm_device_fault_report(struct hm_core *core, const struct hm_job *job, int result,
                            uint32_t need)
{
    struct hm_event event = {.kind = HM_EVENT_DEVICE_FAULT,
                             .ino = job->ino,
                             .block = job->block,
                             .node = job->node,
                             .worker = job->worker,
                             .faulted_at = job->faulted_at,
                             .result = result,
                             .need = need};
    memcpy(event.pages, job->pages, sizeof(event.pages));
    memcpy(event.stores, job->stores, sizeof(event.stores));
    hm_event_push(core, &event);
}

static bool defer(struct transaction *t, struct hm_queued_job *queued)
{
    if (!t->record->busy)
        return false;
    queued->next = NULL;
    *t->stripe->deferred_end = queued;
    t->stripe->deferred_end = &queued->next;
    return true;
}

bool hm_run(struct hm_core *core, struct hm_queued_job *queued)
{
    const struct hm_job *job = &queued->job;
    struct transaction t = {.core = core,
                            .job = job,
                            .block = job->block,
                            .reserved = job->reserved,
                            .cause = hm_cause(job)};
    const struct hm_kind_ops *ops;
    bool held = false;
    bool stores =
        job->kind == HM_JOB_WRITE || job->kind == HM_JOB_FILL || job->kind == HM_JOB_DEVICE_FAULT;
    int error = job_check(core, job);
    t.event = (struct hm_event){.kind = HM_EVENT_JOB,
                                .cookie = job->cookie,
                                .ino = job->ino,
                                .block = job->block,
                                .crc = job->byte};
    t.region = error ? NULL : hm_region_get(core, job->ino);
    if (!error && !t.region)
        error = -ENOENT;
    if (error)
        goto out;
    if (job->kind == HM_JOB_FAIL) {
        hm_fail_parked(t.region, job->block, job->error);
        goto out;
    }
    if (job->kind != HM_JOB_DEVICE_FAULT && job->kind >= HM_JOB_READ &&
        job->block * HM_BLOCK_BYTES + job->offset + job->length > hm_region_size(t.region)) {
        error = -ERANGE;
        goto out;
    }
    /* Pages that come home are looked at later, when nothing more can be told meanwhile. */
    ops = atomic_load(&t.region->ops);
    if (ops->settle && !ops->settle(t.region, job->block) && job->node != HM_HOST) {
        error = -EBUSY;
        goto out;
    }
    t.stripe = hm_stripe_of(core, job->ino, job->block);
    hm_lock(HM_RANK_STRIPE, &t.stripe->lock);
    if (stores || ops->changes_unseen) /* whose pages are there without our knowing */
        hm_block_touch(t.region, job->block);
    if (!hm_region_is_touched(t.region, job->block)) {
        hm_unlock(HM_RANK_STRIPE, &t.stripe->lock);
        error = hm_operate_without_record(&t);
        goto out;
    }
    t.record = &t.region->blocks[job->block];
    if (defer(&t, queued)) {
        hm_unlock(HM_RANK_STRIPE, &t.stripe->lock);
        hm_region_put(t.region);
        return false;
    }
    held = true;
    t.record->busy = 1;
    hm_step_of(&t, "begun", NULL);
    error = run_with_record(&t);
    hm_unlock(HM_RANK_STRIPE, &t.stripe->lock);
out:
    t.event.result = error;
    finish(&t, held);
    if (t.region)
        hm_region_put(t.region);
    return true;
}

/* Find the block of a job that the calling thread runs itself. False: there is no such block.
 * Otherwise the region is to be put. */
static bool look_up(struct transaction *t)
{
    const struct hm_job *job = t->job;
    t->region = job_check(t->core, job) ? NULL : hm_region_get(t->core, job->ino);
    if (!t->region)
        return false;
    t->event = (struct hm_event){.ino = job->ino, .block = job->block};
    t->stripe = hm_stripe_of(t->core, job->ino, job->block);
    t->record = &t->region->blocks[job->block];
    return true;
}

int hm_run_now(struct hm_core *core, const struct hm_job *job, struct hm_event *event)
{
    struct transaction t = {.core = core, .job = job, .block = job->block, .cause = hm_cause(job)};
    const struct hm_kind_ops *ops;
    int error = -EBUSY;
    bool held = false;
    if (!look_up(&t))
        return -ENOENT;
    ops = atomic_load(&t.region->ops);
    if (ops->settle)
        ops->settle(t.region, job->block);
    hm_lock(HM_RANK_STRIPE, &t.stripe->lock);
    if (hm_region_is_touched(t.region, job->block) && !t.record->busy && !t.record->parked) {
        t.record->busy = held = true;
        hm_step_of(&t, "begun", NULL);
        error = run_with_record(&t);
    }
    hm_unlock(HM_RANK_STRIPE, &t.stripe->lock);
    if (held)
        finish(&t, true);
    *event = t.event;
    hm_region_put(t.region);
    return error;
}

bool hm_device_fault_now(struct hm_core *core, const struct hm_job *job)
{
    struct transaction t = {
        .core = core, .job = job, .block = job->block, .cause = hm_cause(job), .at_once = true};
    if (!look_up(&t))
        return false;
    hm_lock(HM_RANK_STRIPE, &t.stripe->lock);
    hm_block_touch(t.region, job->block);
    if (!hm_device_fault_is_easy(&t)) {
        hm_unlock(HM_RANK_STRIPE, &t.stripe->lock);
        hm_region_put(t.region);
        return false;
    }
    t.record->busy = 1;
    hm_step_of(&t, "begun", NULL);
    t.event.result = hm_device_fault(&t);
    hm_unlock(HM_RANK_STRIPE, &t.stripe->lock);
    finish(&t, true);
    hm_region_put(t.region);
    return true;
}
