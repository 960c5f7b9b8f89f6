/* A worker's faults on one block: what they bring, what may be stored to, who is woken. */
#include "transaction/device_fault.h"

#include "base/times.h"
#include "books/cost.h"
#include "directory/copies.h"
#include "directory/labels.h"
#include "directory/records.h"
#include "directory/windows.h"
#include "rules/evict.h"
#include "rules/placement.h"
#include "rules/prefetch.h"
#include "rules/thrash.h"
#include "transaction/duplicate.h"
#include "transaction/evict_for.h"
#include "transaction/journal.h"
#include "transaction/migrate.h"

#include <errno.h>
#include <string.h>

/* What the faults bring: what the device's policy says. Around a page that has bytes no holes come
 * with it, or reading a sparse file would fill it; density's count wants them. */
static struct hm_mask fault_window(const struct transaction *t, const struct hm_mask *faulted,
                                   struct hm_stride *stride)
{
    const struct hm_prefetch *policy = atomic_load(&t->core->prefetch[t->job->node]);
    const struct hm_block *record = t->record;
    struct hm_mask inside = hm_inside_file(t->region, t->block), resident, mine, window;
    bool holes = policy->kind == HM_PREFETCH_DENSITY;
    if (t->job->flags & HM_JOB_CHOSEN) {
        window = hm_either(t->job->window, faulted->word);
        return hm_both(window.word, inside.word);
    }
    resident = hm_copies_on(t->region, t->block, t->job->node);
    mine = hm_owned(record, t->job->node);
    hm_add(resident.word, mine.word);
    window = hm_prefetch_window(policy, &resident, faulted, &inside, record->device_faults, stride);
    hm_advised_window(t->region, t->block, faulted, &window);
    HM_EACH_WORD (w)
        holes |= (faulted->word[w] & inside.word[w] & ~record->present[w]) != 0;
    HM_EACH_WORD (w)
        window.word[w] = (faulted->word[w] & inside.word[w]) |
                         (window.word[w] & (holes ? ~0ULL : record->present[w]));
    return window;
}

/* What a store makes writable, and dirty, beside its page. A table grows with the faults: what the
 * fault before brought, so that the first store of a kernel that mostly loads costs one page. With
 * the other policies, as in UVM, all that the store's fault brings; and a store to what loads
 * brought is for them as a fault on a device that has only what is dirty. */
static struct hm_mask store_window(const struct transaction *t, const struct hm_mask *stores,
                                   const struct hm_mask *arriving, uint32_t faults)
{
    static const struct hm_prefetch group = {HM_PREFETCH_TABLE, {16, 16, 16, 16}};
    const struct hm_prefetch *policy = atomic_load(&t->core->prefetch[t->job->node]);
    struct hm_mask inside = hm_inside_file(t->region, t->block), dirty = {{0}}, window;
    if (!hm_bits(stores->word) || (policy->kind == HM_PREFETCH_TABLE && !faults))
        return *stores;
    if (policy->kind == HM_PREFETCH_TABLE)
        return hm_prefetch_window(policy, &dirty, stores, &inside, faults - 1, NULL);
    if (policy->kind == HM_PREFETCH_SEQUENTIAL || policy->kind == HM_PREFETCH_ASK)
        policy = &group;
    dirty = hm_owned(t->record, t->job->node);
    hm_keep(dirty.word, t->record->dirty);
    window = hm_prefetch_window(policy, &dirty, stores, &inside, faults, NULL);
    hm_add(window.word, arriving->word);
    return window;
}

/* What a store's fault may bring without its bytes. A page that is loaded from comes with them,
 * for a kernel may use what it was not to need. */
static struct hm_mask blank_pages(const struct transaction *t, const struct hm_mask *stores)
{
    struct hm_mask blank = {{0}};
    if (!hm_bits(stores->word))
        return blank;
    blank = hm_window_discards(t->region, t->job->node, t->block);
    HM_EACH_WORD (w)
        blank.word[w] &= ~(t->job->pages[w] & ~stores->word[w]);
    return blank;
}

static struct hm_mask faulted_pages(const struct hm_job *job)
{
    struct hm_mask faulted;
    faulted = hm_either(job->pages, job->stores);
    return faulted;
}

/* The pages of the mask that are not the device's. */
static struct hm_mask elsewhere(const struct transaction *t, const struct hm_mask *mask)
{
    struct hm_mask other = *mask;
    HM_EACH_PAGE (page, mask->word) /* few, where hm_owned would look at all of the device's */
        if (hm_test(t->record->present, page) && t->record->owner[page] == t->job->node)
            other.word[page / 64] &= ~(1ULL << (page % 64));
    return other;
}

/* Capacity thrash: pages that were evicted are wanted back. With twice the memory those would have
 * stayed whose refault distance, as in Linux's workingset.c but by block, is no more than there is.
 */
static void count_refault(struct transaction *t, const struct hm_mask *arriving)
{
    struct hm_node *node = &t->core->nodes[t->job->node];
    uint32_t pages = hm_bits(arriving->word);
    if (!t->record->evicted || !pages)
        return;
    hm_count_thrashing(t, false, arriving);
    if (hm_read(&node->counts.evicted_pages) - (t->record->evicted - 1) > node->capacity)
        return;
    hm_count(&node->counts.thrashed_pages, pages);
    hm_count(&t->region->flows.thrashed[t->job->node], pages);
}

/* Thrash between a device and programs, by block: whether programs took pages of it between two of
 * the device's faults. It ends when some of the block is evicted. */
static void count_sharing(struct transaction *t, bool taken)
{
    if (taken && hm_bits(t->moved.word))
        t->record->turns += t->record->turns < UINT16_MAX;
    if (t->record->turns >= HM_SHARING_TURNS)
        hm_count_thrashing(t, true, &t->moved);
}

/* What becomes of the pages of a fault follows from what they were before. */
struct before {
    struct hm_mask holes, clean;
    bool taken; /* by programs, since pages last came to a device */
};

static struct before look(const struct transaction *t, const struct hm_mask *faulted,
                          const struct hm_mask *stores)
{
    struct before before = {.taken = t->record->cpu_faults != 0};
    struct hm_mask other = elsewhere(t, stores), inside = hm_inside_file(t->region, t->block);
    HM_EACH_WORD (w) {
        before.holes.word[w] = faulted->word[w] & inside.word[w] & ~t->record->present[w];
        before.clean.word[w] = stores->word[w] & ~other.word[w] & ~t->record->dirty[w];
    }
    return before;
}

static void account(struct transaction *t, const struct hm_mask *faulted,
                    const struct before *before, const struct hm_mask *copied)
{
    struct hm_mask moved, populated = before->holes, other;
    moved = hm_both(t->moved.word, faulted->word);
    t->served.migrated = hm_bits(moved.word);
    if (hm_bits(populated.word)) {
        other = elsewhere(t, &before->holes);
        hm_drop(populated.word, other.word);
        /* A store that only the page cache knew of may have made it a page meanwhile. */
        hm_drop(populated.word, moved.word);
        t->served.populated = hm_bits(populated.word);
    }
    if (hm_bits(copied->word)) {
        struct hm_mask copies = hm_copies_on(t->region, t->block, t->job->node);
        hm_keep(copies.word, copied->word);
        t->served.copied = hm_bits(copies.word);
    }
    t->served.upgraded = hm_bits(before->clean.word);
    t->record->device_faulted += hm_bits(faulted->word);
}

/* What a policy in Python leaves where it is. */
static const uint64_t *left(const struct hm_job *job)
{
    return job->flags & HM_JOB_CHOSEN && hm_bits(job->remote) ? job->remote : NULL;
}

/* Take from `faulted`, and from `stores`, what does not come to the device, and fill in what is
 * mapped remotely instead. -EPERM: some of it is pinned elsewhere. -ENOLINK: the worker can't map
 * what may not come. */
static int place(struct transaction *t, struct hm_mask *faulted, struct hm_mask *stores, bool count)
{
    struct hm_mask inside = hm_inside_file(t->region, t->block), within;
    struct hm_placement found;
    within = hm_both(faulted->word, inside.word);
    if (count) {
        struct hm_mask coming = elsewhere(t, &within);
        hm_thrash_fault(t->region, t->block, t->job->node, &coming);
    }
    found = hm_place(t->region, t->block, t->job->node, &within, count, left(t->job));
    if (hm_bits(found.refuse.word))
        return -EPERM;
    if (t->job->flags & HM_JOB_HERE) {
        struct hm_mask stay = hm_stay(t), mine = hm_owned(t->record, t->job->node);
        hm_keep(stay.word, found.remote.word);
        hm_drop(stay.word, mine.word);
        return hm_bits(stay.word) ? -ENOLINK : 0;
    }
    if (!hm_bits(found.remote.word))
        return 0;
    hm_drop(faulted->word, found.remote.word);
    hm_drop(stores->word, found.remote.word);
    t->remote = hm_remote_window(t->region, t->block, t->job->node, &found.remote);
    return 0;
}

/* Leave to the window what may come to the device. */
static void placeable(const struct transaction *t, const struct hm_mask *faulted,
                      struct hm_mask *window)
{
    struct hm_mask rest;
    struct hm_placement found;
    rest = hm_without(window->word, faulted->word);
    found = hm_place(t->region, t->block, t->job->node, &rest, false, left(t->job));
    HM_EACH_WORD (w)
        window->word[w] &= faulted->word[w] | found.bring.word[w];
}

/* What is reached remotely costs a fault, and the link what it would cost to fetch it once: how
 * often it is used nobody sees. */
static void charge_remote(struct transaction *t)
{
    static const uint8_t host[HM_BLOCK_PAGES];
    if (!hm_bits(t->remote.word))
        return;
    t->record->last_cpu = hm_tick(t->core);
    t->record->device_faulted += t->served.mapped;
    if (hm_labels(t->region, t->job->node)) {
        /* There is no fault on such a machine, and loads and stores nobody sees. */
        hm_trace_job(t, HM_TRACE_MAP_REMOTE, &t->remote, HM_HOST, t->job->node, 0);
        return;
    }
    t->charged += hm_charge_faults(t->core, t->job->node, 1);
    hm_carried(t, HM_TRACE_MAP_REMOTE, &t->remote, &t->remote, host, 0);
}

/* Of the window, the read-mostly pages that are only loaded from: they are copied. Taken off the
 * window, since they don't become the device's. */
static struct hm_mask take_copies(const struct transaction *t, const struct hm_mask *stores,
                                  struct hm_mask *window)
{
    const struct hm_block *record = t->record;
    struct hm_mask copy = {{0}}, mine;
    struct hm_advised said;
    if (!atomic_load(&t->region->copies) || !hm_advised(t->region, t->block, t->job->node, &said))
        return copy;
    HM_EACH_WORD (w) {
        uint64_t there = record->present[w] | record->cached[w] | record->recalling[w];
        copy.word[w] = window->word[w] & said.read_mostly.word[w] & there & ~stores->word[w];
    }
    mine = hm_owned(record, t->job->node);
    hm_drop(copy.word, mine.word);
    hm_drop(window->word, copy.word);
    return copy;
}

int hm_device_fault(struct transaction *t)
{
    struct hm_block *record = t->record;
    struct hm_mask faulted = faulted_pages(t->job), stores, window, arriving, inside, past;
    struct hm_mask copy, copied = {{0}};
    struct before before;
    struct hm_stride stride = record->stride;
    uint32_t faults = record->device_faults;
    int error;
    memcpy(stores.word, t->job->stores, sizeof(stores));
    t->served.mapped = hm_bits(faulted.word);
    error = place(t, &faulted, &stores, !(t->job->flags & HM_JOB_AGAIN));
    if (error)
        return error;
    t->served.mapped -= hm_bits(faulted.word);
    if (hm_bits(stores.word) && (error = hm_may_write(t, &stores)))
        return error;
    before = look(t, &faulted, &stores);
    if (!hm_bits(faulted.word)) {
        charge_remote(t);
        return 0;
    }
    window = fault_window(t, &faulted, &stride);
    placeable(t, &faulted, &window);
    if (!(t->job->flags & HM_JOB_AGAIN))
        hm_evict_used(t->region, t->block, t->job->node, &faulted, &window);
    copy = take_copies(t, &stores, &window);
    if (hm_bits(copy.word)) {
        struct hm_mask had = hm_copies_on(t->region, t->block, t->job->node);
        copied = hm_without(hm_both(copy.word, faulted.word).word, had.word);
        struct hm_mask wanted = hm_either(copy.word, window.word);
        do
            error = hm_duplicate(t, &copy);
        while (hm_evict_for(t, error, &wanted));
        if (error)
            return error;
        t->charged += hm_charge_faults(t->core, t->job->node, hm_bits(copied.word));
        /* These become the device's: holes that the CPU only had zeros of, and other devices'
         * pages for which the host is full. */
        hm_add(window.word, copy.word);
    }
    arriving = elsewhere(t, &window);
    t->blank = blank_pages(t, &stores);
    error = hm_bring_in(t, &window, true, HM_BLOCK_PAGES);
    if (error)
        return error;
    charge_remote(t);
    past = hm_both(arriving.word, faulted.word);
    t->charged += hm_charge_faults(t->core, t->job->node, hm_bits(past.word));
    account(t, &faulted, &before, &copied);
    hm_thrash_note(t->region, t->block, t->job->node, &t->moved, true);
    count_refault(t, &arriving);
    count_sharing(t, before.taken);
    record->device_faults += record->device_faults < UINT16_MAX;
    record->uses += record->uses < UINT32_MAX;
    record->last_device = hm_tick(t->core);
    record->stride = stride;
    if (!hm_changes_unseen(t->region)) /* beside it may be what the program may not store to */
        stores = store_window(t, &stores, &arriving, faults);
    inside = hm_inside_file(t->region, t->block);
    past = elsewhere(t, &stores);
    HM_EACH_WORD (w) {
        stores.word[w] &= ~past.word[w];
        past.word[w] = faulted.word[w] & ~inside.word[w];
        faulted.word[w] &= inside.word[w] & ~stores.word[w];
        window.word[w] |= stores.word[w];
    }
    hm_mark_written(t, &stores);
    hm_window_had(t->region, t->job->node, t->block, &window);
    error = hm_window_let_store(t->region, t->job->node, t->block, &stores);
    if (hm_bits(stores.word)) /* and not before, or a time set in between would outlive the store */
        hm_region_changed(t->region, true);
    if (!error)
        t->wake = hm_either(faulted.word, stores.word);
    return !error && hm_bits(past.word) ? -ERANGE : error;
}

bool hm_device_fault_is_easy(const struct transaction *t)
{
    const struct hm_kind_ops *ops = atomic_load(&t->region->ops);
    const struct hm_block *record = t->record;
    struct hm_mask faulted = faulted_pages(t->job), window;
    struct hm_stride stride = record->stride;
    const struct hm_node *node = &t->core->nodes[t->job->node];
    uint32_t pages;
    if (record->busy || record->inflight)
        return false;
    window = fault_window(t, &faulted, &stride);
    placeable(t, &faulted, &window);
    if (hm_any(record->cached, window.word) || atomic_load(&t->region->copies))
        return false;
    if (ops->is_settled) {
        window = elsewhere(t, &window); /* taking it waits for the program */
        return !hm_bits(window.word) && ops->is_settled(t->region, t->block);
    }
    hm_drop(window.word, record->device);
    pages = hm_bits(window.word);
    return pages <= HM_INLINE_PAGES && atomic_load(&node->used) + pages <= node->capacity;
}
