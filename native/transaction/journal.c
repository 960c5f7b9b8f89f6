/* What a transaction does is entered in the books: in the trace, the counters and the clock. */
#include "transaction/journal.h"

#include "books/cost.h"
#include "books/counters.h"
#include "books/trace.h"

#include <errno.h>
#include <string.h>

int hm_faults_failed(struct hm_core *core, uint32_t node, uint64_t ino, uint64_t block,
                     const uint64_t pages[8], int stores, uint64_t faulted_at)
{
    struct hm_mask mask;
    if (node == HM_HOST || node >= core->config.nodes)
        return -ENODEV;
    if (!faulted_at)
        return 0;
    memcpy(mask.word, pages, sizeof(mask.word));
    HM_AUTO_PUT struct hm_region *region = hm_region_get(core, ino);
    if (!region) {
        hm_count(&core->flows.faults[node][HM_FAULTS_FAILED], hm_bits(mask.word));
        return 0;
    }
    hm_count_faults(region, node, HM_FAULTS_FAILED, hm_bits(mask.word));
    if (hm_traced(region, HM_TRACE_PAGE_FAULT_END)) {
        uint64_t now = hm_now();
        hm_trace(region, block, &mask,
                 (struct hm_trace_event){.kind = HM_TRACE_PAGE_FAULT_END,
                                         .trigger = stores ? HM_BY_WRITE : HM_BY_READ,
                                         .node = (uint8_t)node,
                                         .from = HM_NOWHERE,
                                         .to = HM_NOWHERE,
                                         .at_ns = now,
                                         .took_ns = faulted_at ? now - faulted_at : 0});
    }
    return 0;
}

/* ---- moves ---------------------------------------------------------------------------------- */

struct cause hm_cause(const struct hm_job *job)
{
    if (job->flags & HM_JOB_EVICT)
        return (struct cause){HM_BY_EVICTION, job->source};
    if (job->flags & HM_JOB_FAULT)
        return (struct cause){HM_BY_CPU_FAULT, HM_HOST};
    if (job->kind == HM_JOB_DEVICE_FAULT)
        return (struct cause){HM_BY_DEVICE_FAULT, job->node};
    if (job->flags & HM_JOB_ASKED)
        return (struct cause){HM_BY_PREFETCH, job->node};
    if (job->kind == HM_JOB_RECALL)
        return (struct cause){HM_BY_EVICTION, HM_HOST};
    return (struct cause){HM_BY_OPERATION, job->node};
}

/* Take the pages of the first page's source out of the mask: they are returned. */
static struct hm_mask from_one(struct hm_mask *mask, const uint8_t from[HM_BLOCK_PAGES],
                               uint32_t *node)
{
    struct hm_mask some = {{0}};
    *node = from[hm_next_page(mask->word, 0)];
    HM_EACH_PAGE (page, mask->word)
        if (from[page] == *node)
            hm_set(some.word, page);
    hm_drop(mask->word, some.word);
    return some;
}

static struct hm_trace_event event_of(const struct transaction *t, enum hm_trace_kind kind,
                                      uint32_t from, uint32_t to, uint64_t began, uint64_t now)
{
    return (struct hm_trace_event){.at_ns = now,
                                   .took_ns = began ? now - began : 0,
                                   .kind = (uint8_t)kind,
                                   .trigger = (uint8_t)t->cause.trigger,
                                   .node = (uint8_t)t->cause.node,
                                   .from = (uint8_t)from,
                                   .to = (uint8_t)to};
}

uint64_t hm_trace_wait(struct transaction *t, uint64_t began)
{
    enum hm_trace_kind kind = began ? HM_TRACE_QUEUE_RESTORE : HM_TRACE_QUEUE_EVICTION;
    const struct hm_mask all = hm_mask_range(0, HM_BLOCK_PAGES);
    uint64_t now = hm_now();
    hm_trace(t->region, t->block, &all, event_of(t, kind, t->job->node, HM_NOWHERE, began, now));
    return now;
}

void hm_trace_job(struct transaction *t, enum hm_trace_kind kind, const struct hm_mask *mask,
                  uint32_t from, uint32_t to, uint64_t began)
{
    if (hm_traced(t->region, kind))
        hm_trace(t->region, t->block, mask, event_of(t, kind, from, to, began, hm_now()));
}

uint64_t hm_trace_move(struct transaction *t, const struct hm_mask *moving,
                       const uint8_t from[HM_BLOCK_PAGES], uint64_t failed)
{
    struct hm_mask rest = *moving;
    uint64_t began = hm_now();
    uint32_t node;
    if (!hm_traced(t->region, failed ? HM_TRACE_MIGRATE_END : HM_TRACE_MIGRATE_START))
        return began;
    while (hm_bits(rest.word)) {
        struct hm_mask some = from_one(&rest, from, &node);
        struct hm_trace_event event =
            event_of(t, failed ? HM_TRACE_MIGRATE_END : HM_TRACE_MIGRATE_START, node,
                     failed ? node : t->job->node, failed, began);
        hm_trace(t->region, t->block, &some, event);
    }
    return began;
}

void hm_trace_stayed(struct transaction *t, const struct hm_mask *moving,
                     const struct hm_mask *moved, const uint8_t from[HM_BLOCK_PAGES],
                     uint64_t began)
{
    struct hm_mask rest = hm_without(moving->word, moved->word);
    if (hm_bits(rest.word))
        hm_trace_move(t, &rest, from, began);
}

void hm_carried(struct transaction *t, enum hm_trace_kind kind, const struct hm_mask *concerned,
                const struct hm_mask *copied, const uint8_t from[HM_BLOCK_PAGES], uint64_t began)
{
    struct hm_mask rest = *concerned;
    uint32_t node, to = t->job->node;
    while (hm_bits(rest.word)) {
        struct hm_mask some = from_one(&rest, from, &node), bytes;
        uint32_t pages;
        uint64_t charged;
        bytes = hm_both(some.word, copied->word);
        pages = hm_bits(bytes.word);
        charged = hm_charge_copies(t->core, node, to, &bytes);
        t->charged += charged;
        hm_count(&t->core->flows.carried[node][to], pages);
        if (hm_traced(t->region, kind)) {
            struct hm_trace_event event = event_of(t, kind, node, to, began, hm_now());
            event.copied = pages;
            event.charged_ns = charged;
            hm_trace(t->region, t->block, &some, event);
        }
    }
}

/* ---- a worker's faults ---------------------------------------------------------------------- */

static void end_faults(struct transaction *t, const struct hm_mask *faulted, bool stores)
{
    struct hm_trace_event event;
    if (!hm_traced(t->region, HM_TRACE_PAGE_FAULT_END))
        return;
    event =
        event_of(t, HM_TRACE_PAGE_FAULT_END, HM_NOWHERE, HM_NOWHERE, t->job->faulted_at, hm_now());
    event.trigger = stores ? HM_BY_WRITE : HM_BY_READ;
    event.charged_ns = t->charged;
    hm_trace(t->region, t->block, faulted, event);
}

void hm_faults_served(struct transaction *t)
{
    const struct hm_served *served = &t->served;
    uint32_t node = t->job->node, all, stale;
    struct hm_mask faulted;
    if (!t->job->faulted_at)
        return;
    faulted = hm_either(t->job->pages, t->job->stores);
    all = hm_bits(faulted.word);
    stale = all - served->migrated - served->populated - served->mapped - served->copied -
            served->upgraded;
    hm_count_faults(t->region, node, HM_FAULTS_MIGRATED, served->migrated);
    hm_count_faults(t->region, node, HM_FAULTS_POPULATED, served->populated);
    hm_count_faults(t->region, node, HM_FAULTS_MAPPED, served->mapped);
    hm_count_faults(t->region, node, HM_FAULTS_COPIED, served->copied);
    hm_count_faults(t->region, node, HM_FAULTS_UPGRADED, served->upgraded);
    hm_count_faults(t->region, node, HM_FAULTS_STALE, stale);
    end_faults(t, &faulted, hm_bits(t->job->stores) != 0);
}

void hm_count_thrashing(struct transaction *t, bool sharing, const struct hm_mask *pages)
{
    struct hm_region_flows *of = &t->region->flows;
    uint32_t node = t->job->node, count = hm_bits(pages->word);
    if (!count)
        return;
    hm_count(sharing ? &t->core->nodes[node].counts.shared_pages
                     : &t->core->nodes[node].counts.refaulted_pages,
             count);
    hm_count(sharing ? &of->shared[node] : &of->refaulted[node], count);
    __atomic_store_n(sharing ? &of->shared_at[node] : &of->refaulted_at[node], hm_now(),
                     __ATOMIC_RELAXED);
    if (hm_traced(t->region, HM_TRACE_THRASHING)) {
        struct hm_trace_event event = event_of(t, HM_TRACE_THRASHING, HM_HOST, node, 0, hm_now());
        event.trigger = sharing ? HM_BY_SHARING : HM_BY_CAPACITY;
        hm_trace(t->region, t->block, pages, event);
    }
}
