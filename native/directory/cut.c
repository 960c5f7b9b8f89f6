#include "directory/cut.h"

#include "base/step.h"
#include "directory/copies.h"
#include "directory/labels.h"
#include "directory/owner.h"
#include "directory/records.h"

int hm_zero_part(struct hm_region *region, uint64_t from, uint64_t to)
{
    static const uint8_t zeros[HM_PAGE_SIZE];
    struct hm_block *block = &region->blocks[from / HM_BLOCK_BYTES];
    uint32_t page = (uint32_t)(from / HM_PAGE_SIZE % HM_BLOCK_PAGES);
    struct hm_mask one;
    int error = 0;
    block->generation++;
    one = hm_mask_range(page, 1);
    hm_collapse(region, from / HM_BLOCK_BYTES, &one, HM_HOST);
    hm_step(region, from / HM_BLOCK_BYTES, "cut.part", HM_BY_GATE, NULL);
    if (!hm_test(block->present, page))
        return 0;
    error = hm_pool_write(&region->pools[block->owner[page]], from, zeros, to - from);
    if (!error && hm_test(block->kept, page))
        error = hm_pool_write(&region->pools[HM_HOST], from, zeros, to - from);
    return error;
}

/* A page that is cut and stays cached becomes a hole that is reserved on the host. Pages with a
 * label count on a device: reserve them on the host or, where that is full, make them zeros instead
 * of cutting them. Returns how many pages were reserved. */
static uint32_t reserve_for_labelled(struct hm_region *region, uint64_t block, struct hm_mask *mask)
{
    struct hm_block *record = &region->blocks[block];
    struct hm_mask labelled = hm_all_labels(region, block);
    uint32_t pages, first = 0, count;
    HM_EACH_WORD (w)
        labelled.word[w] &= mask->word[w] & (record->cached[w] | record->recalling[w]);
    pages = hm_bits(labelled.word);
    if (!pages || !hm_reserve(region->core, HM_HOST, pages, 0))
        return pages;
    for (; hm_next_run(labelled.word, &first, &count); first += count)
        for (uint32_t page = first; page < first + count; page++) {
            uint64_t offset = hm_page_offset(block, page);
            hm_zero_part(region, offset, offset + HM_PAGE_SIZE);
        }
    hm_drop(mask->word, labelled.word);
    return 0;
}

int hm_block_cut(struct hm_region *region, uint64_t block, const struct hm_mask *pages,
                 bool forget_cached)
{
    struct hm_core *core = region->core;
    struct hm_block *record = &region->blocks[block];
    uint32_t before = hm_block_charge(region, record), taken, labelled, first = 0, count;
    uint32_t gone[HM_MAX_NODES], of[HM_MAX_NODES];
    struct hm_mask cut = *pages, *mask = &cut;
    int error = 0;
    record->generation++;
    hm_collapse(region, block, pages, HM_HOST);
    taken = forget_cached ? 0 : reserve_for_labelled(region, block, mask);
    labelled = hm_unlabel(region, block, mask, of);
    while (hm_next_run(mask->word, &first, &count)) {
        uint64_t offset = hm_page_offset(block, first);
        for (uint32_t node = 0; node < core->config.nodes; node++)
            if (!hm_is_shared(region)) { /* whose memfd ends where the file does */
                int refused =
                    hm_pool_punch(&region->pools[node], offset, (uint64_t)count * HM_PAGE_SIZE);
                error = error ? error : refused;
            }
        first += count;
    }
    hm_disown(region, record, mask, gone);
    if (forget_cached) {
        hm_drop(record->cached, mask->word);
        hm_drop(record->recalling, mask->word);
    }
    for (uint32_t node = 1; node < core->config.nodes; node++) {
        hm_release(core, node, gone[node]);
        /* It is a device that loses those with a label, not the host. */
        hm_count(&core->nodes[node].counts.dropped_pages, of[node]);
        hm_count(&core->nodes[HM_HOST].counts.dropped_pages, -(uint64_t)of[node]);
    }
    hm_release_labels(core, of);
    /* Pages that stay cached become holes with a reservation, so the charge never grows here. */
    hm_release(core, HM_HOST, before + taken - labelled - hm_block_charge(region, record));
    hm_step(region, block, forget_cached ? "cut.truncate" : "cut.punch", HM_BY_GATE, mask);
    hm_block_forget(core, record);
    return error;
}

/* Cut [start, end) bytes out of one touched block. */
static int cut_block(struct hm_region *region, uint64_t start, uint64_t end, bool forget_cached)
{
    uint64_t block = start / HM_BLOCK_BYTES;
    uint64_t base = block * HM_BLOCK_BYTES;
    uint64_t first = (start + HM_PAGE_SIZE - 1) / HM_PAGE_SIZE * HM_PAGE_SIZE;
    uint64_t last = end / HM_PAGE_SIZE * HM_PAGE_SIZE;
    struct hm_stripe *stripe = hm_stripe_of(region->core, region->ino, block);
    struct hm_mask mask;
    int error = 0;
    HM_GUARD(HM_RANK_STRIPE, &stripe->lock);
    if (first > last) /* inside one page */
        return hm_zero_part(region, start, end);
    if (start < first)
        error = hm_zero_part(region, start, first);
    if (!error && last < end)
        error = hm_zero_part(region, last, end);
    if (error || first == last)
        return error;
    mask = hm_mask_range((uint32_t)((first - base) / HM_PAGE_SIZE),
                         (uint32_t)((last - first) / HM_PAGE_SIZE));
    return hm_block_cut(region, block, &mask, forget_cached);
}

int hm_cut_range(struct hm_region *region, uint64_t start, uint64_t end, bool forget_cached)
{
    /* Pages with a label may become zeros, which is a copy: those go in pieces. */
    bool in_pieces = atomic_load(&region->labels) && !forget_cached;
    uint64_t most = in_pieces ? HM_INLINE_PAGES * HM_PAGE_SIZE : HM_BLOCK_BYTES;
    int error = 0;
    while (start < end) {
        uint64_t block = hm_next_touched(region, start / HM_BLOCK_BYTES), stop;
        int failed;
        if (block >= HM_MAX_BLOCKS)
            break;
        start = block * HM_BLOCK_BYTES > start ? block * HM_BLOCK_BYTES : start;
        if (start >= end)
            break;
        stop = (start / most + 1) * most;
        stop = stop < end ? stop : end;
        failed = cut_block(region, start, stop, forget_cached);
        error = error ? error : failed;
        start = stop;
    }
    return error;
}
