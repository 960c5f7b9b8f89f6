/* Taking pages of a block from the CPU: the rounds, and when they prove it clean.
 *
 * Only a transaction that holds the block calls this; docs/coherence.md has the reasons.
 */
#include "transaction/recall.h"

#include "base/fuse.h"
#include "base/pause.h"
#include "books/trace.h"
#include "directory/records.h"
#include "transaction/journal.h"
#include "transaction/parked.h"

#include <errno.h>
#include <string.h>

#define TRIES 256
#define TRIES_A_PAGE 8 /* on top, for each page that has to be recalled by itself */

/* One round of a recall: unmap the pages of `round` from every program, have their stores written
 * back, drop them from the page cache. The stripe is dropped meanwhile. */
static void recall_round(struct transaction *t, const struct hm_mask *round)
{
    struct hm_block *record = t->record;
    uint32_t first = 0, count;
    hm_count(&t->core->count.recalled_pages, hm_bits(round->word));
    /* A READ answered from now on sets `cached` again: that is the retry check, by page. */
    HM_EACH_WORD (w) {
        record->cached[w] &= ~round->word[w];
        record->recalling[w] |= round->word[w];
    }
    record->state = HM_RECALL;
    hm_step_of(t, "recall.round", round);
    hm_unlock(HM_RANK_STRIPE, &t->stripe->lock);
    /* Exactly these runs: a page between them may have a parked READ, which would hold the
     * kernel's notification until this transaction ends, that is for ever. */
    hm_pause("recall.begun");
    for (; hm_next_run(round->word, &first, &count); first += count)
        hm_invalidate(t->core, t->region->ino, hm_page_offset(t->block, first),
                      (uint64_t)count * HM_PAGE_SIZE);
    hm_pause("recall.done");
    hm_lock(HM_RANK_STRIPE, &t->stripe->lock);
}

/* The pages of the mask that are cached, in state RECALL, with nothing parked on them: a folio that
 * waits for a parked request is locked, and the kernel's invalidation would wait for it. What is
 * replayed is answered: its pages are the host's, are reserved, and RECALL holds nothing up. */
static struct hm_mask next_round(struct transaction *t, const struct hm_mask *mask)
{
    struct hm_block *record = t->record;
    struct hm_mask round;
    do {
        round = hm_both(record->cached, mask->word);
        if (!hm_bits(round.word))
            break;
        record->state = HM_RECALL;
        hm_step_of(t, "recall.next", NULL); /* what is told next is not by the gate alone */
    } while (hm_replay_pages(t->region, t->block, &round));
    return round;
}

/* The first page of the mask that is cached; false when none is. */
static bool next_cached(const struct hm_block *record, const struct hm_mask *mask,
                        struct hm_mask *page)
{
    struct hm_mask left;
    uint32_t first = 0, count;
    left = hm_both(record->cached, mask->word);
    if (!hm_next_run(left.word, &first, &count))
        return false;
    *page = hm_mask_range(first, 1);
    return true;
}

/* A contended recall: one page at a time, and a page that is proven clean is frozen for READs at
 * once, so that loads and stores can't take it back while the others are dealt with. What remains
 * to lose against is one program in the 2 us that one notification takes, and WRITEs, which pass.
 * False: that was lost, again and again. */
static bool recall_by_page(struct transaction *t, const struct hm_mask *mask)
{
    struct hm_block *record = t->record;
    struct hm_stripe *stripe = t->stripe;
    uint32_t tries = TRIES + TRIES_A_PAGE * hm_bits(mask->word);
    struct hm_mask page;
    stripe->frozen_ino = t->region->ino;
    stripe->frozen_block = t->block;
    stripe->frozen = hm_without(mask->word, record->cached);
    while (next_cached(record, mask, &page) && tries--) {
        hm_drop(stripe->frozen.word, page.word);
        page = next_round(t, &page);
        hm_count(&t->core->count.recall_retries, 1);
        recall_round(t, &page);
        HM_EACH_WORD (w)
            stripe->frozen.word[w] |= page.word[w] & ~record->cached[w];
    }
    stripe->frozen_ino = 0;
    return !next_cached(record, mask, &page);
}

void hm_thaw(struct hm_block *record, struct hm_stripe *stripe)
{
    record->state = HM_STABLE;
    pthread_cond_broadcast(&stripe->changed);
}

int hm_recall(struct transaction *t, const struct hm_mask *mask)
{
    struct hm_core *core = t->core;
    struct hm_block *record = t->record;
    struct hm_stripe *stripe = t->stripe;
    uint64_t began = 0;
    struct hm_mask unmapped = {{0}};
    uint32_t before;
    for (int tries = 0;; tries++) {
        struct hm_mask round = next_round(t, mask);
        if (!hm_bits(round.word))
            break;
        if (tries >= HM_RECALL_ROUNDS && !stripe->frozen_ino) {
            if (recall_by_page(t, mask))
                break;
            goto thrashing;
        }
        if (tries >= TRIES)
            goto thrashing;
        hm_count(tries ? &core->count.recall_retries : &core->count.recalls, 1);
        began = began ? began : hm_now();
        hm_add(unmapped.word, round.word);
        recall_round(t, &round);
    }
    record->state = HM_FROZEN;
    before = hm_block_charge(t->region, record);
    memset(record->recalling, 0, sizeof(record->recalling));
    hm_release(core, HM_HOST, before - hm_block_charge(t->region, record));
    hm_step_of(t, "recall.frozen", mask);
    if (began)
        hm_trace_job(t, HM_TRACE_UNMAP, &unmapped, HM_HOST, HM_NOWHERE, began);
    return 0;
thrashing:
    hm_add(record->cached, record->recalling);
    memset(record->recalling, 0, sizeof(record->recalling));
    hm_thaw(record, stripe);
    hm_step_of(t, "recall.failed", NULL);
    hm_count(&core->count.recalls_failed, 1);
    return -EBUSY;
}
