/* Read-mostly pages: copies of host-owned pages on devices that loaded from them.
 *
 * Always: a page with copies is the host's, and its bytes are equal everywhere. What could make
 * them differ ends the copies first: a store by a device is a fault, since its copy is
 * write-protected: the page becomes its own, and flip() takes the others' copies; a write(2), or
 * the page cache's writeback, is a WRITE: it collapses what it covers; a store by a program through
 * a mapping is announced by nobody. So the page cache may hold a page that has copies only while no
 * file of the region is open for writing: no mapping can be stored to then, nor become so, for the
 * kernel keeps a file open until its last mapping is gone. An open for writing collapses all copies
 * before it is answered; and while there is one, making a copy recalls the page from the CPU, and a
 * READ collapses what it hands out.
 *
 * Opens that come at once each collapse by themselves, so none waits for another, and none is
 * answered before all of the region's copies were looked at since it was counted.
 */
#include "directory/copies.h"

#include "base/capacity.h"
#include "base/pause.h"
#include "base/step.h"
#include "books/trace.h"
#include "directory/records.h"

#include <errno.h>

struct hm_mask hm_copies_on(const struct hm_region *region, uint64_t block, uint32_t node)
{
    return hm_page_set(&region->copies, block, node);
}

void hm_copies_set(struct hm_region *region, uint64_t block, uint32_t node,
                   const struct hm_mask *mask, bool there)
{
    struct hm_page_sets *copies = hm_page_sets_of(&region->copies, block);
    if (copies)
        HM_EACH_WORD (w)
            copies->on[node][w] =
                there ? copies->on[node][w] | mask->word[w] : copies->on[node][w] & ~mask->word[w];
}

uint32_t hm_collapse(struct hm_region *region, uint64_t block, const struct hm_mask *mask,
                     uint32_t only)
{
    struct hm_page_sets *copies = hm_page_sets_of(&region->copies, block);
    uint32_t all = 0;
    for (uint32_t node = 1; copies && node < region->core->config.nodes; node++) {
        struct hm_mask gone;
        uint32_t pages;
        if (only != HM_HOST && only != node)
            continue;
        gone = hm_page_set_take(copies, node, mask);
        pages = hm_bits(gone.word);
        if (!pages)
            continue;
        hm_punch_runs(region, node, block, gone.word);
        hm_release(region->core, node, pages);
        hm_count(&region->core->nodes[node].counts.copies_ended, pages);
        hm_trace(region, block, &gone,
                 (struct hm_trace_event){.kind = HM_TRACE_READ_DUPLICATE_INVALIDATE,
                                         .node = (uint8_t)node,
                                         .from = HM_HOST,
                                         .to = (uint8_t)node});
        all += pages;
    }
    return all;
}

void hm_collapse_all(struct hm_region *region)
{
    const struct hm_mask every = hm_mask_range(0, HM_BLOCK_PAGES);
    for (uint64_t block = 0;
         atomic_load(&region->copies) && (block = hm_next_touched(region, block)) < HM_MAX_BLOCKS;
         block++) {
        struct hm_stripe *stripe = hm_stripe_of(region->core, region->ino, block);
        hm_pause("open.collapses");
        hm_lock(HM_RANK_STRIPE, &stripe->lock);
        /* The generation: a transaction may have planned with a copy instead of carrying it. */
        if (hm_collapse(region, block, &every, HM_HOST))
            region->blocks[block].generation++;
        hm_step(region, block, "open.ended", HM_BY_GATE, NULL);
        hm_unlock(HM_RANK_STRIPE, &stripe->lock);
    }
}

/* -EINVAL: none is open. */
static int close_writer(struct hm_region *region)
{
    uint32_t old = atomic_load(&region->writers), now;
    do {
        if (!(old & ~HM_COPIES_ENDED))
            return -EINVAL;
        now = old - 1;
        if (!(now & ~HM_COPIES_ENDED))
            now = 0;
    } while (!atomic_compare_exchange_weak(&region->writers, &old, now));
    return 0;
}

int hm_region_writers(struct hm_core *core, uint64_t ino, int by)
{
    HM_AUTO_PUT struct hm_region *region = hm_region_get(core, ino);
    int error = 0;
    if (!region)
        return -ENOENT;
    if (by < 0) {
        error = close_writer(region);
    } else if (!(atomic_fetch_add(&region->writers, 1) & HM_COPIES_ENDED)) {
        /* Counted first: a copy that is made meanwhile sees it, or is seen here. Our own count
         * keeps the number above 0, so the bit is of this time. */
        hm_collapse_all(region);
        atomic_fetch_or(&region->writers, HM_COPIES_ENDED);
    }
    return error;
}
