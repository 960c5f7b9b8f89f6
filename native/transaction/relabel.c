/* Host-owned pages get labels, or lose them: see directory/labels.c. */
#include "transaction/relabel.h"

#include "books/counters.h"
#include "directory/labels.h"
#include "directory/records.h"
#include "transaction/duplicate.h"
#include "transaction/journal.h"
#include "transaction/migrate.h"

#include <string.h>

/* Pages that were said to be on devices are another node's now, by label. */
static void count_relabelled(struct transaction *t, const uint32_t of[HM_MAX_NODES], uint32_t to)
{
    for (uint32_t node = 1; node < t->core->config.nodes; node++)
        hm_count_moved(t->core, node, to, of[node], t->cause.trigger);
}

/* Leave the first so many pages in the mask. */
static void trim(struct hm_mask *mask, uint32_t pages)
{
    HM_EACH_PAGE (page, mask->word)
        if (!pages || !pages--)
            mask->word[page / 64] &= ~(1ULL << (page % 64));
}

/* By page the device that it is labelled as, or the host. */
static void labelled_as(const struct transaction *t, const struct hm_page_sets *labels,
                        uint8_t nodes[HM_BLOCK_PAGES])
{
    memset(nodes, HM_HOST, HM_BLOCK_PAGES);
    for (uint32_t node = 1; node < t->core->config.nodes; node++)
        HM_EACH_PAGE (page, labels->on[node])
            nodes[page] = (uint8_t)node;
}

int hm_label_home(struct transaction *t, const struct hm_mask *mask)
{
    const struct hm_page_sets *labels = hm_page_sets_of(&t->region->labels, t->block);
    uint8_t from[HM_BLOCK_PAGES];
    struct hm_mask moving = {{0}}, stay;
    uint32_t pages, of[HM_MAX_NODES];
    uint64_t began;
    int error;
    if (!labels)
        return 0;
    labelled_as(t, labels, from);
    HM_EACH_PAGE (page, mask->word)
        if (from[page] != HM_HOST)
            hm_set(moving.word, page);
    stay = hm_stay(t);
    hm_drop(moving.word, stay.word);
    if (t->job->limit)
        trim(&moving, t->job->limit);
    pages = hm_bits(moving.word);
    error = pages ? hm_reserve_for_job(t, pages, hm_overcommit_of(t->job)) : 0;
    if (error || !pages)
        return error;
    if (t->job->flags & HM_JOB_EVICT && t->job->source) {
        hm_count(&t->core->nodes[t->job->source].counts.evicted_pages, pages);
        hm_count(&t->core->nodes[t->job->source].counts.evicted_blocks, 1);
    }
    began = hm_trace_move(t, &moving, from, 0);
    hm_unlabel(t->region, t->block, &moving, of);
    hm_release_labels(t->core, of);
    count_relabelled(t, of, HM_HOST);
    hm_carried(t, HM_TRACE_MIGRATE_END, &moving, &moving, from, began);
    t->event.moved += pages;
    return 0;
}

/* Claim up to so many of the pages of a device that programs can reach. */
static uint32_t claim(struct hm_core *core, uint32_t node, uint32_t pages)
{
    hm_counter *labelled = &core->nodes[node].labelled;
    uint64_t used = atomic_load(labelled), visible = core->config.visible[node], take;
    do {
        take = used < visible ? visible - used : 0;
        take = take < pages ? take : pages;
    } while (!atomic_compare_exchange_weak(labelled, &used, used + take));
    return (uint32_t)take;
}

/* Of the mask, the pages with bytes that are not the node's by owner or label, and may become it.
 */
static struct hm_mask strangers(const struct transaction *t, const struct hm_mask *mask)
{
    struct hm_mask had = hm_labels_on(t->region, t->block, t->job->node), found;
    struct hm_mask mine = hm_owned(t->record, t->job->node), stay = hm_stay(t);
    found = hm_both(mask->word, t->record->present);
    found = hm_without(hm_without(found.word, had.word).word, stay.word);
    return hm_without(found.word, mine.word);
}

/* Give host-owned pages the node's label. They are reserved on the node. */
static void relabel(struct transaction *t, const struct hm_mask *pages)
{
    struct hm_page_sets *labels = hm_page_sets_of(&t->region->labels, t->block);
    uint32_t node = t->job->node, count = hm_bits(pages->word), host, of[HM_MAX_NODES];
    uint8_t from[HM_BLOCK_PAGES];
    uint64_t began;
    labelled_as(t, labels, from);
    began = hm_trace_move(t, pages, from, 0);
    host = count - hm_unlabel(t->region, t->block, pages, of);
    hm_release_labels(t->core, of);
    hm_release(t->core, HM_HOST, host);
    if (!t->record->pages[node] && !hm_bits(labels->on[node]))
        t->record->arrived = hm_tick(t->core);
    hm_add(labels->on[node], pages->word);
    count_relabelled(t, of, node);
    hm_count_moved(t->core, HM_HOST, node, host, t->cause.trigger);
    hm_count(&t->core->count.migrations, 1);
    hm_carried(t, HM_TRACE_MIGRATE_END, pages, pages, from, began);
    t->record->last_migrated = hm_tick(t->core);
    t->event.moved += count;
}

int hm_label(struct transaction *t, struct hm_mask *mask)
{
    uint32_t node = t->job->node, claimed, pages = 0;
    struct hm_mask want, away, had;
    int error = hm_page_sets_init(&t->region->labels);
    if (error)
        return error;
    want = strangers(t, mask);
    claimed = claim(t->core, node, hm_bits(want.word));
    trim(&want, claimed);
    had = hm_labels_on(t->region, t->block, node);
    HM_EACH_WORD (w) {
        mask->word[w] &= ~(want.word[w] | had.word[w]);
        away.word[w] = want.word[w] & t->record->device[w];
    }
    if (hm_bits(away.word))
        error = hm_fetch_home(t, &away);
    /* The stripe was dropped: what is there still. */
    HM_EACH_WORD (w)
        want.word[w] &= t->record->present[w] & ~t->record->device[w];
    if (!error)
        error = hm_reserve_for_job(t, hm_bits(want.word), HM_OVERCOMMIT_NONE);
    if (!error) {
        pages = hm_bits(want.word);
        if (pages)
            relabel(t, &want);
    }
    atomic_fetch_sub(&t->core->nodes[node].labelled, claimed - pages);
    return error;
}
