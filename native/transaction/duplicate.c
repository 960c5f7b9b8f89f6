/* Copies of read-mostly pages are made: see directory/copies.c. */
#include "transaction/duplicate.h"

#include "base/pause.h"
#include "directory/copies.h"
#include "directory/records.h"
#include "directory/windows.h"
#include "transaction/journal.h"
#include "transaction/migrate.h"
#include "transaction/recall.h"

#include <errno.h>

/* Pages of the mask that some other device owns. */
static struct hm_mask away(const struct transaction *t, const struct hm_mask *mask)
{
    struct hm_mask mine = hm_owned(t->record, t->job->node), other;
    other = hm_both(mask->word, t->record->device);
    return hm_without(other.word, mine.word);
}

int hm_fetch_home(struct transaction *t, const struct hm_mask *mask)
{
    struct hm_job home = {.node = HM_HOST, .flags = t->job->flags & HM_JOB_STAGING};
    struct transaction back = *t;
    int error;
    back.job = &home;
    back.reserved = 0;
    back.charged = 0;
    error = hm_bring(&back, mask, false, HM_BLOCK_PAGES);
    hm_release(t->core, HM_HOST, back.reserved);
    t->charged += back.charged;
    return error == -ENOSPC ? -ENOBUFS : error;
}

/* Copy the pages to the device, out of its worker's reach or protected. */
static int copy_to(struct transaction *t, const struct hm_mask *mask)
{
    struct hm_pool *to = hm_region_pool(t->region, t->job->node);
    int error = to ? hm_window_protect(t->region, t->job->node, t->block, mask) : -errno;
    for (uint32_t first = 0, count; !error && hm_next_run(mask->word, &first, &count);
         first += count)
        error = hm_pool_copy(to, &t->region->pools[HM_HOST], hm_page_offset(t->block, first),
                             (size_t)count * HM_PAGE_SIZE);
    return error;
}

static void count_copies(struct transaction *t, const struct hm_mask *made, uint64_t began)
{
    static const uint8_t host[HM_BLOCK_PAGES];
    hm_copies_set(t->region, t->block, t->job->node, made, true);
    hm_count(&t->core->nodes[t->job->node].counts.copies_begun, hm_bits(made->word));
    hm_carried(t, HM_TRACE_READ_DUPLICATE, made, made, host, began);
    t->event.moved += hm_bits(made->word);
    t->record->last_migrated = hm_tick(t->core);
}

/* It recalls the pages also where no file is open for writing. A worker reaches what is in its
 * pool, marked or not; and an open may be answered meanwhile, after which nobody announces a store
 * to what the CPU has. */
static int make_copies(struct transaction *t, const struct hm_mask *mask)
{
    struct hm_block *record = t->record;
    struct hm_mask rest;
    for (;;) {
        struct hm_mask other = away(t, mask), had, make;
        uint32_t generation, pages;
        uint64_t began;
        int error = hm_bits(other.word) ? hm_fetch_home(t, &other) : 0;
        if (error == -ENOBUFS) {
            rest = hm_without(mask->word, other.word);
            mask = &rest;
            continue;
        }
        if (!error)
            error = hm_recall(t, mask);
        if (error)
            return error;
        while (record->inflight)
            pthread_cond_wait(&t->stripe->changed, &t->stripe->lock);
        had = hm_copies_on(t->region, t->block, t->job->node);
        make = hm_without(
            hm_without(hm_both(mask->word, record->present).word, record->device).word, had.word);
        pages = hm_bits(make.word);
        error = hm_reserve_for_job(t, pages, hm_overcommit_of(t->job));
        if (error || !pages) {
            hm_thaw(record, t->stripe);
            hm_step_of(t, "thawed", NULL);
            return error;
        }
        generation = record->generation;
        began = hm_now();
        hm_step_of(t, "copy.planned", NULL);
        hm_unlock(HM_RANK_STRIPE, &t->stripe->lock);
        error = copy_to(t, &make);
        hm_pause("duplicate.copied");
        hm_lock(HM_RANK_STRIPE, &t->stripe->lock);
        if (!error && record->generation == generation) {
            count_copies(t, &make, began);
            hm_thaw(record, t->stripe);
            hm_step_of(t, "copy.made", &make);
            return 0;
        }
        hm_punch_runs(t->region, t->job->node, t->block, make.word);
        t->reserved += pages;
        hm_thaw(record, t->stripe);
        hm_step_of(t, error ? "failed" : "discarded", NULL);
        if (error)
            return error;
    }
}

int hm_duplicate(struct transaction *t, struct hm_mask *mask)
{
    int error = make_copies(t, mask);
    struct hm_mask copied = hm_copies_on(t->region, t->block, t->job->node);
    hm_drop(mask->word, copied.word);
    return error;
}
