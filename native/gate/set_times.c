/* Setting a region's times (base/times.c).
 *
 * A time that was set stays until the next store. The stores that nobody has announced until then
 * are found first: what programs stored through the page cache is written back, and devices take a
 * fault at their next store to any page.
 */
#include "base/fuse.h"
#include "base/region.h"
#include "base/times.h"
#include "directory/records.h"
#include "directory/windows.h"

#include <errno.h>

/* Have the kernel write back what it has of the region that may be dirty. Waits for the answers to
 * what is parked on these pages. */
static void write_back(struct hm_region *region)
{
    for (uint64_t block = 0; (block = hm_next_touched(region, block)) < HM_MAX_BLOCKS; block++) {
        struct hm_stripe *stripe = hm_stripe_of(region->core, region->ino, block);
        const struct hm_block *record = &region->blocks[block];
        struct hm_mask seen;
        hm_lock(HM_RANK_STRIPE, &stripe->lock);
        seen = hm_either(record->cached, record->recalling);
        hm_unlock(HM_RANK_STRIPE, &stripe->lock);
        for (uint32_t first = 0, count; hm_next_run(seen.word, &first, &count); first += count)
            hm_invalidate(region->core, region->ino, hm_page_offset(block, first),
                          (uint64_t)count * HM_PAGE_SIZE);
    }
}

/* Have the next store of a device to any page be a fault. */
static void protect_windows(struct hm_region *region)
{
    struct hm_core *core = region->core;
    bool any = false;
    for (uint32_t node = 1; node < core->config.nodes; node++)
        any |= atomic_load(&region->window[node]) != 0;
    for (uint64_t block = 0; any && (block = hm_next_touched(region, block)) < HM_MAX_BLOCKS;
         block++) {
        struct hm_stripe *stripe = hm_stripe_of(core, region->ino, block);
        const struct hm_block *record = &region->blocks[block];
        hm_lock(HM_RANK_STRIPE, &stripe->lock);
        for (uint32_t node = 1; node < core->config.nodes; node++) {
            struct hm_mask mine = {{0}};
            if (record->pages[node])
                mine = hm_owned(record, node);
            hm_keep(mine.word, record->dirty);
            hm_window_protect(region, node, block, &mine);
        }
        hm_unlock(HM_RANK_STRIPE, &stripe->lock);
    }
}

int hm_region_set_times(struct hm_core *core, uint64_t ino, int64_t atime, int64_t mtime,
                        int settle)
{
    HM_AUTO_PUT struct hm_region *region = hm_region_get(core, ino);
    if (!region)
        return -ENOENT;
    settle = settle && mtime != INT64_MIN && !hm_is_shared(region);
    /* The last mapping is gone, and its stores are written back, before the last such file is. */
    if (settle && atomic_load(&region->writers))
        write_back(region);
    hm_times_set(region, atime, mtime);
    if (settle)
        protect_windows(region);
    hm_region_changed(region, false);
    return 0;
}
