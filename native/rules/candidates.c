/* What may leave a node: blocks to evict, and kept copies to drop. */
#include "base/capacity.h"
#include "base/step.h"
#include "directory/copies.h"
#include "directory/records.h"
#include "rules/advice.h"

#include <errno.h>
#include <string.h>

/* Looked at with one hold of the lock, some 60 us. A block that is listed elsewhere meanwhile may
 * be missed, or told of twice. */
#define AT_ONCE 256

/* Duplicates on the node and pages labelled as its, but for those of `pinned`; with HM_HOST the
 * labels of all devices. */
HM_UNLOCKED static uint32_t labelled_or_duplicate(const struct hm_listed *at, uint32_t node,
                                                  const struct hm_mask *pinned)
{
    const struct hm_page_sets *copies = atomic_load(&at->region->copies);
    const struct hm_page_sets *labels = atomic_load(&at->region->labels);
    uint32_t pages = 0;
    for (uint32_t other = 1; other < at->region->core->config.nodes; other++) {
        if (node != HM_HOST && node != other)
            continue;
        HM_EACH_WORD (w) {
            uint64_t copied = copies && node ? copies[at->block].on[other][w] : 0;
            uint64_t labelled = labels ? labels[at->block].on[other][w] : 0;
            pages += hm_popcount(copied) + hm_popcount(labelled & ~pinned->word[w]);
        }
    }
    return pages;
}

/* Pages on the node that may leave it. */
HM_UNLOCKED static uint32_t movable(const struct hm_listed *at, uint32_t node)
{
    const struct hm_block *block = &at->region->blocks[at->block];
    struct hm_mask pinned = {{0}};
    uint32_t pages = block->pages[node], others;
    if (at->region->advised)
        pinned = hm_pinned(at->region, at->block);
    HM_EACH_PAGE (page, pinned.word)
        pages -= pages && hm_test(block->present, page) && block->owner[page] == node;
    others = labelled_or_duplicate(at, node, &pinned);
    if (node != HM_HOST)
        return pages + others;
    return pages - (pages < others ? pages : others); /* one may be older than the other */
}

HM_UNLOCKED static struct hm_candidate candidate_of(const struct hm_listed *at, uint32_t node)
{
    const struct hm_block *block = &at->region->blocks[at->block];
    struct hm_candidate found = {.ino = at->region->ino,
                                 .block = at->block,
                                 .last_cpu = block->last_cpu,
                                 .last_device = block->last_device,
                                 .last_migrated = block->last_migrated,
                                 .arrived = block->arrived,
                                 .uses = block->uses,
                                 .pages = movable(at, node),
                                 .held = block->busy || block->parked ||
                                         at->region->kind == HM_KIND_DAX};
    if (node == HM_HOST)
        HM_EACH_WORD (w) {
            uint64_t seen = block->cached[w] | block->recalling[w];
            found.reserved += hm_popcount(seen & ~block->present[w]);
            found.kept += hm_popcount(block->kept[w]);
        }
    return found;
}

int hm_candidates(struct hm_core *core, uint32_t node, struct hm_candidate *out, int max)
{
    int n = 0;
    if (node >= core->config.nodes)
        return -ENODEV;
    hm_lock(HM_RANK_LIST, &core->list_lock);
    for (uint32_t i = 0; i < core->list_used && n < max; i++) {
        struct hm_candidate found;
        if (i % AT_ONCE == AT_ONCE - 1) { /* every job's end waits for the lock */
            hm_unlock(HM_RANK_LIST, &core->list_lock);
            hm_lock(HM_RANK_LIST, &core->list_lock);
            if (i >= core->list_used)
                break;
        }
        found = candidate_of(&core->list[i], node);
        if (found.pages || found.reserved || found.kept)
            out[n++] = found;
    }
    hm_unlock(HM_RANK_LIST, &core->list_lock);
    return n;
}

/* Punch the kept copies of one block; a busy block is somebody's to decide about. */
static uint32_t drop_kept(struct hm_region *region, uint64_t block)
{
    struct hm_block *record = &region->blocks[block];
    struct hm_stripe *stripe = hm_stripe_of(region->core, region->ino, block);
    uint32_t dropped = 0;
    HM_GUARD(HM_RANK_STRIPE, &stripe->lock);
    if (!record->busy) {
        hm_punch_runs(region, HM_HOST, block, record->kept);
        dropped = hm_bits(record->kept);
        memset(record->kept, 0, sizeof(record->kept));
        hm_step(region, block, "kept.dropped", HM_BY_GATE, NULL);
        hm_release(region->core, HM_HOST, dropped);
    }
    return dropped;
}

/* The next block with kept copies, of at most *left blocks. The search goes on where the last one
 * ended, no matter whose it was, so that not each looks at the same blocks that have none. */
HM_UNLOCKED static bool next_kept(struct hm_core *core, uint32_t *left, uint64_t *ino,
                                  uint64_t *block)
{
    HM_GUARD(HM_RANK_LIST, &core->list_lock);
    *left = *left < core->list_used ? *left : core->list_used;
    for (uint32_t i = 0; *left && i < AT_ONCE; i++) {
        const struct hm_listed *at;
        uint64_t kept = 0;
        --*left;
        core->kept_at = core->kept_at < core->list_used ? core->kept_at : 0;
        at = &core->list[core->kept_at++];
        *ino = at->region->ino;
        *block = at->block;
        HM_EACH_WORD (w)
            kept |= at->region->blocks[at->block].kept[w];
        if (kept)
            return true;
    }
    return false;
}

int64_t hm_drop_kept(struct hm_core *core, uint64_t pages)
{
    int64_t dropped = 0;
    uint32_t left = core->config.keep_clean ? UINT32_MAX : 0;
    while (left && (uint64_t)dropped < pages) {
        uint64_t ino, block;
        bool found = next_kept(core, &left, &ino, &block);
        HM_AUTO_PUT struct hm_region *region = found ? hm_region_get(core, ino) : NULL;
        if (region)
            dropped += drop_kept(region, block);
    }
    return dropped;
}
