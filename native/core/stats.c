/* What there is, counted anew each time that somebody asks. */
#include "base/region.h"
#include "books/counters.h"
#include "books/trace.h"
#include "directory/copies.h"
#include "directory/labels.h"
#include "directory/records.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>

static uint64_t allocated(int fd)
{
    struct stat status;
    return fd >= 0 && fstat(fd, &status) == 0 ? (uint64_t)status.st_blocks * 512 : 0;
}

HM_UNLOCKED static uint64_t cached_of(const struct hm_listed *at)
{
    const struct hm_block *block = &at->region->blocks[at->block];
    uint64_t n = 0;
    HM_EACH_WORD (w)
        n += hm_popcount(block->cached[w] | block->recalling[w]);
    return n;
}

int hm_stats_get(struct hm_core *core, struct hm_stats *out)
{
    hm_counted(core, out);
    hm_lock(HM_RANK_TRACE, &core->trace->lock);
    out->trace_recorded = core->trace->head;
    hm_unlock(HM_RANK_TRACE, &core->trace->lock);
    hm_lock(HM_RANK_JOBS, &core->jobs_lock);
    out->movers = core->movers;
    hm_unlock(HM_RANK_JOBS, &core->jobs_lock);
    hm_lock_to_read(HM_RANK_REGIONS, &core->regions_lock);
    for (uint32_t i = 0; i < HM_REGION_BUCKETS; i++)
        for (struct hm_region *region = core->buckets[i]; region; region = region->next) {
            out->directory_bytes += allocated(region->directory_fd);
            for (uint32_t node = 0; node < HM_MAX_NODES; node++)
                out->pages_touched += hm_region_pages(region, node);
        }
    hm_unlock_either(HM_RANK_REGIONS, &core->regions_lock);
    hm_lock(HM_RANK_LIST, &core->list_lock);
    for (uint32_t i = 0; i < core->list_used; i++)
        out->cached_pages += cached_of(&core->list[i]);
    hm_unlock(HM_RANK_LIST, &core->list_lock);
    return 0;
}

static void count_block(struct hm_region *region, uint64_t b, struct hm_block_counts *out)
{
    const struct hm_block *block = &region->blocks[b];
    struct hm_stripe *stripe = hm_stripe_of(region->core, region->ino, b);
    memset(out, 0, sizeof(*out));
    out->block = b;
    HM_GUARD(HM_RANK_STRIPE, &stripe->lock);
    for (uint32_t node = 0; node < region->core->config.nodes; node++) {
        struct hm_mask pages = hm_said_on(region, b, node);
        memcpy(out->on[node], pages.word, sizeof(pages.word));
        out->pages[node] = hm_bits(pages.word);
    }
    HM_EACH_WORD (w)
        out->cached += hm_popcount(block->cached[w] | block->recalling[w]);
    memcpy(out->dirty_on, block->dirty, sizeof(out->dirty_on));
    out->dirty = hm_bits(block->dirty);
    out->kept = hm_bits(block->kept);
    out->cpu_faults = block->cpu_faulted;
    out->device_faults = block->device_faulted;
    out->evictions = block->evictions;
}

int hm_region_block_counts(struct hm_core *core, uint64_t ino, uint64_t from,
                           struct hm_block_counts *out, int max)
{
    HM_AUTO_PUT struct hm_region *region = hm_region_get(core, ino);
    int n = 0;
    if (!region)
        return -ENOENT;
    for (; n < max && (from = hm_next_touched(region, from)) < HM_MAX_BLOCKS; from++)
        count_block(region, from, &out[n++]);
    return n;
}

int hm_region_residency(struct hm_core *core, uint64_t ino, uint64_t out[22])
{
    HM_AUTO_PUT struct hm_region *region = hm_region_get(core, ino);
    if (!region)
        return -ENOENT;
    memset(out, 0, 22 * sizeof(*out));
    for (uint64_t b = 0; (b = hm_next_touched(region, b)) < HM_MAX_BLOCKS; b++) {
        struct hm_stripe *stripe = hm_stripe_of(core, ino, b);
        const struct hm_block *block = &region->blocks[b];
        hm_lock(HM_RANK_STRIPE, &stripe->lock);
        for (uint32_t node = 0; node < HM_MAX_NODES; node++) {
            struct hm_mask copies = hm_copies_on(region, b, node);
            out[node] += block->pages[node];
            out[21] += hm_bits(copies.word);
            copies = hm_labels_on(region, b, node);
            out[node] += hm_bits(copies.word);
        }
        out[HM_HOST] -= hm_labelled(region, b);
        HM_EACH_WORD (w) {
            uint64_t seen = block->cached[w] | block->recalling[w];
            out[16] += hm_popcount(block->dirty[w] & ~block->device[w]);
            out[17] += hm_popcount(block->dirty[w] & block->device[w]);
            out[18] += hm_popcount(seen);
            out[19] += hm_popcount(block->kept[w]);
            out[20] += hm_popcount(seen & ~block->present[w]);
        }
        hm_unlock(HM_RANK_STRIPE, &stripe->lock);
    }
    return 0;
}
