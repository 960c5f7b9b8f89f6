/* How long a region is, and its holes: truncate, punch, allocate, seek. */
#include "base/region.h"
#include "base/step.h"
#include "base/times.h"
#include "directory/cut.h"
#include "directory/owner.h"
#include "directory/records.h"
#include "directory/shared_size.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

int hm_region_truncate(struct hm_core *core, uint64_t ino, uint64_t size)
{
    uint64_t old;
    int error = 0;
    if (size > HM_MAX_BYTES)
        return -EFBIG;
    HM_AUTO_PUT struct hm_region *region = hm_region_get(core, ino);
    if (!region)
        return -ENOENT;
    if (hm_is_shared(region)) {
        error = hm_shared_resize(region, size);
        if (!error)
            hm_region_changed(region, true);
        return error;
    }
    old = __atomic_exchange_n(&region->record->size, size, __ATOMIC_ACQ_REL);
    if (size < old) {
        __atomic_fetch_add(&region->record->generation, 1, __ATOMIC_RELAXED);
        error = hm_cut_range(region, size, HM_MAX_BYTES, true);
    }
    hm_region_changed(region, true);
    return error;
}

int hm_region_punch(struct hm_core *core, uint64_t ino, uint64_t offset, uint64_t length)
{
    int error;
    if (offset > HM_MAX_BYTES || length > HM_MAX_BYTES - offset)
        return -EFBIG;
    HM_AUTO_PUT struct hm_region *region = hm_region_get(core, ino);
    if (!region)
        return -ENOENT;
    /* The kernel drops its copies only after our answer: they stay marked until a recall. */
    if (hm_is_shared(region))
        error = hm_pool_punch(&region->pools[HM_HOST], offset, length);
    else
        error = hm_cut_range(region, offset, offset + length, false);
    if (!error)
        hm_region_changed(region, true);
    return error;
}

static uint32_t holes_of(struct hm_region *region, uint64_t block, const struct hm_mask *mask)
{
    struct hm_stripe *stripe = hm_stripe_of(region->core, region->ino, block);
    if (!hm_region_is_touched(region, block))
        return hm_bits(mask->word);
    HM_GUARD(HM_RANK_STRIPE, &stripe->lock);
    return hm_unreserved_holes(&region->blocks[block], mask);
}

/* Give the holes among a few pages of a block zeros. What they need is taken off *reserved first: a
 * punch may have made more holes meanwhile, a READ or WRITE fewer. */
static int allocate_some(struct hm_region *region, uint64_t block, const struct hm_mask *mask,
                         uint64_t *reserved)
{
    struct hm_core *core = region->core;
    struct hm_block *record = &region->blocks[block];
    struct hm_stripe *stripe = hm_stripe_of(core, region->ino, block);
    struct hm_pool *pool = hm_region_pool(region, HM_HOST);
    uint32_t first = 0, count, need, missing;
    struct hm_mask hole;
    int error;
    if (!pool)
        return -errno;
    HM_GUARD(HM_RANK_STRIPE, &stripe->lock);
    /* A transaction between its plan and its last punch counts on who has pages and who has not;
     * it waits for copies alone. */
    while (record->state == HM_FROZEN)
        pthread_cond_wait(&stripe->changed, &stripe->lock);
    hm_block_touch(region, block);
    need = hm_unreserved_holes(record, mask);
    missing = need > *reserved ? need - (uint32_t)*reserved : 0;
    error = hm_reserve(core, HM_HOST, missing, 0);
    if (error)
        return error;
    *reserved += missing;
    hole = hm_without(mask->word, record->present);
    while (!error && hm_next_run(hole.word, &first, &count)) {
        uint64_t offset = hm_page_offset(block, first);
        error = hm_pool_zero(pool, offset, (uint64_t)count * HM_PAGE_SIZE);
        first += count;
    }
    if (error) {
        hm_punch_runs(region, HM_HOST, block, hole.word);
        return error;
    }
    *reserved -= need;
    hm_populate(region, record, &hole, HM_HOST);
    hm_step(region, block, "allocated", HM_BY_GATE, &hole);
    return 0;
}

int hm_region_allocate(struct hm_core *core, uint64_t ino, uint64_t offset, uint64_t length)
{
    uint64_t first = offset / HM_PAGE_SIZE, end, reserved = 0;
    int error = 0;
    if (offset > HM_MAX_BYTES || length > HM_MAX_BYTES - offset)
        return -EFBIG;
    HM_AUTO_PUT struct hm_region *region = hm_region_get(core, ino);
    if (!region)
        return -ENOENT;
    if (hm_is_shared(region)) {
        /* It reserves by its size; the memory behind it is made now. */
        uint64_t size = hm_region_size(region);
        if (offset < size)
            error = hm_pool_zero(&region->pools[HM_HOST], offset,
                                 length < size - offset ? length : size - offset);
        return error;
    }
    end = (offset + length + HM_PAGE_SIZE - 1) / HM_PAGE_SIZE;
    /* Twice: a range that can't fit changes nothing, and takes nothing from others. Zeros are made
     * in pieces, as under a stripe nothing takes long. */
    for (int pass = 0; pass < 2 && !error; pass++) {
        for (uint64_t page = first, n; page < end && !error; page += n) {
            uint64_t block = page / HM_BLOCK_PAGES;
            uint32_t low = (uint32_t)(page % HM_BLOCK_PAGES);
            struct hm_mask mask;
            n = pass ? HM_INLINE_PAGES : HM_BLOCK_PAGES;
            n = HM_BLOCK_PAGES - low < n ? HM_BLOCK_PAGES - low : n;
            n = end - page < n ? end - page : n;
            mask = hm_mask_range(low, (uint32_t)n);
            if (pass)
                error = allocate_some(region, block, &mask, &reserved);
            else
                reserved += holes_of(region, block, &mask);
        }
        if (!pass && (error = hm_reserve(core, HM_HOST, reserved, 0)))
            return error;
    }
    hm_release(core, HM_HOST, reserved);
    return error;
}

/* A hole that the CPU's page cache may fill unannounced is data. It may while a file is open for
 * writing: the last close and munmap write back all stores. */
static void data_of(struct hm_region *region, uint64_t block, uint64_t words[HM_WORDS])
{
    struct hm_stripe *stripe = hm_stripe_of(region->core, region->ino, block);
    const struct hm_block *record = &region->blocks[block];
    bool writers = atomic_load(&region->writers) != 0;
    memset(words, 0, HM_WORDS * sizeof(*words));
    if (!hm_region_is_touched(region, block))
        return;
    HM_GUARD(HM_RANK_STRIPE, &stripe->lock);
    HM_EACH_WORD (w)
        words[w] = record->present[w] | (writers ? record->cached[w] | record->recalling[w] : 0);
}

int64_t hm_region_seek(struct hm_core *core, uint64_t ino, uint64_t offset, int hole)
{
    HM_AUTO_PUT struct hm_region *region = hm_region_get(core, ino);
    uint64_t size, at = offset;
    int64_t found = -ENXIO;
    if (!region)
        return -ENOENT;
    size = hm_region_size(region);
    if (hm_is_shared(region)) {
        found = lseek(region->pools[HM_HOST].fd, (off_t)offset, hole ? SEEK_HOLE : SEEK_DATA);
        found = found < 0 ? -errno : found;
        return found;
    }
    while (at < size) {
        uint64_t block = at / HM_BLOCK_BYTES;
        uint32_t first = (uint32_t)(at % HM_BLOCK_BYTES / HM_PAGE_SIZE), count, was = first;
        uint64_t next = hole ? block : hm_next_touched(region, block), words[HM_WORDS];
        if (next != block) {
            at = next * HM_BLOCK_BYTES;
            continue;
        }
        data_of(region, block, words);
        if (hole)
            HM_EACH_WORD (w)
                words[w] = ~words[w];
        if (hm_next_run(words, &first, &count)) {
            at = first == was ? at : hm_page_offset(block, first);
            found = at < size ? (int64_t)at : -ENXIO;
            break;
        }
        at = (block + 1) * HM_BLOCK_BYTES;
    }
    if (hole && offset < size && (found < 0 || (uint64_t)found > size))
        found = (int64_t)size;
    return found;
}
