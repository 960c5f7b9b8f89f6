#include "directory/records.h"

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

uint32_t hm_block_charge(const struct hm_region *region, const struct hm_block *block)
{
    uint32_t pages = 0;
    if (region->process)
        return 0;
    HM_EACH_WORD (w) {
        uint64_t held = (block->present[w] & ~block->device[w]) | block->kept[w] |
                        ((block->cached[w] | block->recalling[w]) & ~block->present[w]);
        pages += hm_popcount(held);
    }
    return pages;
}

struct hm_mask hm_owned(const struct hm_block *block, uint32_t node)
{
    struct hm_mask owned = {{0}};
    if (node == HM_HOST) {
        owned = hm_without(block->present, block->device);
        return owned;
    }
    HM_EACH_PAGE (page, block->device)
        if (block->owner[page] == node)
            hm_set(owned.word, page);
    return owned;
}

bool hm_block_empty(const struct hm_block *block)
{
    uint64_t any = 0;
    HM_EACH_WORD (w)
        any |= block->present[w] | block->cached[w] | block->recalling[w];
    return !any;
}

/* list_lock is held. It becomes 0, or something else, with the block's stripe only; from one place
 * in the list to another it changes under the eyes of who holds that. */
static void set_slot(struct hm_block *record, uint32_t slot)
{
    __atomic_store_n(&record->slot, slot, __ATOMIC_RELAXED);
}

static void list_add(struct hm_core *core, struct hm_region *region, uint64_t block)
{
    HM_GUARD(HM_RANK_LIST, &core->list_lock);
    if (core->list_used == core->list_capacity) {
        uint32_t capacity = core->list_capacity ? core->list_capacity * 2 : 1024;
        struct hm_listed *list = realloc(core->list, capacity * sizeof(*list));
        if (!list)
            return; /* unlisted: it works, but is never chosen for eviction */
        core->list = list;
        core->list_capacity = capacity;
    }
    core->list[core->list_used] = (struct hm_listed){region, block, NULL};
    set_slot(&region->blocks[block], ++core->list_used);
}

static void list_remove(struct hm_core *core, struct hm_block *record)
{
    HM_GUARD(HM_RANK_LIST, &core->list_lock);
    if (record->slot) {
        struct hm_listed *last = &core->list[--core->list_used];
        core->unlisted(core, core->list[record->slot - 1].residents);
        core->list[record->slot - 1] = *last;
        set_slot(&last->region->blocks[last->block], record->slot);
        set_slot(record, 0);
    }
}

void hm_block_forget(struct hm_core *core, struct hm_block *record)
{
    if (hm_block_empty(record) && !record->busy && !record->parked && !record->inflight)
        list_remove(core, record);
}

uint32_t hm_unreserved_holes(const struct hm_block *block, const struct hm_mask *mask)
{
    uint32_t n = 0;
    HM_EACH_WORD (w)
        n += hm_popcount(mask->word[w] & ~block->present[w] & ~block->cached[w] &
                         ~block->recalling[w]);
    return n;
}

void hm_unlist(struct hm_region *region)
{
    struct hm_core *core = region->core;
    HM_GUARD(HM_RANK_LIST, &core->list_lock);
    for (uint32_t i = 0; i < core->list_used;) {
        if (core->list[i].region != region) {
            i++;
            continue;
        }
        core->unlisted(core, core->list[i].residents);
        core->list[i] = core->list[--core->list_used];
        if (core->list[i].region != region)
            set_slot(&core->list[i].region->blocks[core->list[i].block], i + 1);
    }
}

bool hm_region_is_touched(struct hm_region *region, uint64_t block)
{
    uint64_t word = __atomic_load_n(&region->touched[block / 64], __ATOMIC_ACQUIRE);
    return word >> (block % 64) & 1;
}

uint64_t hm_next_touched(struct hm_region *region, uint64_t from)
{
    while (from < HM_MAX_BLOCKS) {
        /* Skip what was never written without reading it: a read would allocate a page. */
        off_t data = from % 32768
                         ? 0
                         : lseek(region->directory_fd, (off_t)(HM_PAGE_SIZE + from / 8), SEEK_DATA);
        if (data >= (off_t)HM_DIRECTORY_HEADER || data < 0)
            return HM_MAX_BLOCKS;
        if ((uint64_t)data > HM_PAGE_SIZE + from / 8) {
            from = ((uint64_t)data - HM_PAGE_SIZE) / HM_PAGE_SIZE * 32768;
            continue;
        }
        do {
            uint64_t rest = __atomic_load_n(&region->touched[from / 64], __ATOMIC_ACQUIRE);
            rest >>= from % 64;
            if (rest)
                return from + (uint64_t)__builtin_ctzll(rest);
            from = (from / 64 + 1) * 64;
        } while (from % 32768);
    }
    return HM_MAX_BLOCKS;
}

int hm_region_touched(struct hm_core *core, uint64_t ino, uint64_t from, uint64_t *out, int max)
{
    HM_AUTO_PUT struct hm_region *region = hm_region_get(core, ino);
    int n = 0;
    if (!region)
        return -ENOENT;
    while (n < max && (from = hm_next_touched(region, from)) < HM_MAX_BLOCKS)
        out[n++] = from++;
    return n;
}

void hm_block_touch(struct hm_region *region, uint64_t block)
{
    struct hm_block *record = &region->blocks[block];
    if (!hm_region_is_touched(region, block))
        __atomic_fetch_or(&region->touched[block / 64], 1ULL << (block % 64), __ATOMIC_RELEASE);
    if (!__atomic_load_n(&record->slot, __ATOMIC_RELAXED))
        list_add(region->core, region, block);
}
