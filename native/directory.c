/* The page directory: block records and what follows from their bits. Callers hold the stripe. */
#include "rest.h"

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
        HM_EACH_WORD (w)
            owned.word[w] = block->present[w] & ~block->device[w];
        return owned;
    }
    HM_EACH_PAGE (page, block->device)
        if (block->owner[page] == node)
            owned.word[page / 64] |= 1ULL << (page % 64);
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
    pthread_mutex_lock(&core->list_lock);
    if (core->list_used == core->list_room) {
        uint32_t room = core->list_room ? core->list_room * 2 : 1024;
        struct hm_listed *list = realloc(core->list, room * sizeof(*list));
        if (!list)
            goto out; /* unlisted: it works, but is never chosen for eviction */
        core->list = list;
        core->list_room = room;
    }
    core->list[core->list_used] = (struct hm_listed){region, block};
    set_slot(&region->blocks[block], ++core->list_used);
out:
    pthread_mutex_unlock(&core->list_lock);
}

static void list_remove(struct hm_core *core, struct hm_block *record)
{
    pthread_mutex_lock(&core->list_lock);
    if (record->slot) {
        struct hm_listed *last = &core->list[--core->list_used];
        core->list[record->slot - 1] = *last;
        set_slot(&last->region->blocks[last->block], record->slot);
        set_slot(record, 0);
    }
    pthread_mutex_unlock(&core->list_lock);
}

void hm_unlist(struct hm_region *region)
{
    struct hm_core *core = region->core;
    pthread_mutex_lock(&core->list_lock);
    for (uint32_t i = 0; i < core->list_used;) {
        if (core->list[i].region != region) {
            i++;
            continue;
        }
        core->list[i] = core->list[--core->list_used];
        if (core->list[i].region != region)
            set_slot(&core->list[i].region->blocks[core->list[i].block], i + 1);
    }
    pthread_mutex_unlock(&core->list_lock);
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
    struct hm_region *region = hm_region_get(core, ino);
    int n = 0;
    if (!region)
        return -ENOENT;
    while (n < max && (from = hm_next_touched(region, from)) < HM_MAX_BLOCKS)
        out[n++] = from++;
    hm_region_put(region);
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

void hm_block_pages(struct hm_region *region, struct hm_block *record, uint32_t node, int64_t by)
{
    record->pages[node] = (uint16_t)(record->pages[node] + by);
    __atomic_fetch_add(&region->record->pages[node], (uint64_t)by, __ATOMIC_RELAXED);
}

void hm_block_populate(struct hm_region *region, struct hm_block *record, uint32_t node,
                       uint32_t pages)
{
    hm_block_pages(region, record, node, pages);
    hm_count(&region->core->nodes[node].populated_pages, pages);
}

/* A page that is cut and stays cached becomes a hole that the host has room for. Pages with a label
 * have their room on a device: take the host's for them or, where it has none, make them zeros
 * instead of cutting them. Returns how many pages of room were taken. */
static uint32_t room_of_labelled(struct hm_region *region, uint64_t block, struct hm_mask *mask)
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
            uint64_t offset = block * HM_BLOCK_BYTES + (uint64_t)page * HM_PAGE_SIZE;
            hm_zero_part(region, offset, offset + HM_PAGE_SIZE);
        }
    *mask = hm_without(*mask, &labelled);
    return 0;
}

int hm_block_cut(struct hm_region *region, uint64_t block, const struct hm_mask *pages,
                 bool forget_cached)
{
    struct hm_core *core = region->core;
    struct hm_block *record = &region->blocks[block];
    uint32_t before = hm_block_charge(region, record), taken, labelled, first = 0, count;
    uint32_t gone[HM_MAX_NODES] = {0}, of[HM_MAX_NODES];
    struct hm_mask cut = *pages, *mask = &cut;
    int error = 0;
    record->generation++;
    hm_collapse(region, block, pages, HM_HOST);
    taken = forget_cached ? 0 : room_of_labelled(region, block, mask);
    labelled = hm_unlabel(region, block, mask, of);
    while (hm_next_run(mask->word, &first, &count)) {
        uint64_t offset = block * HM_BLOCK_BYTES + (uint64_t)first * HM_PAGE_SIZE;
        for (uint32_t page = first; page < first + count; page++) {
            if (hm_test(record->present, page))
                gone[record->owner[page]]++;
            record->owner[page] = HM_HOST;
        }
        for (uint32_t node = 0; node < core->config.nodes; node++)
            if (!hm_is_shared(region)) { /* whose memfd ends where the file does */
                int refused =
                    hm_pool_punch(&region->pools[node], offset, (uint64_t)count * HM_PAGE_SIZE);
                error = error ? error : refused;
            }
        first += count;
    }
    HM_EACH_WORD (w) {
        uint64_t keep = ~mask->word[w];
        record->present[w] &= keep;
        record->device[w] &= keep;
        record->dirty[w] &= keep;
        record->kept[w] &= keep;
        if (forget_cached) {
            record->cached[w] &= keep;
            record->recalling[w] &= keep;
        }
    }
    for (uint32_t node = 0; node < core->config.nodes; node++) {
        if (gone[node])
            hm_block_pages(region, record, node, -(int64_t)gone[node]);
        hm_count(&core->nodes[node].dropped_pages, gone[node] + of[node]);
        if (node != HM_HOST)
            hm_release(core, node, gone[node]);
    }
    for (uint32_t node = 1; node < core->config.nodes;
         node++) /* which they were not said to be on */
        atomic_fetch_sub(&core->nodes[HM_HOST].dropped_pages, of[node]);
    hm_release_labels(core, of);
    /* Pages that stay cached become holes with a reservation, so the charge never grows here. */
    hm_release(core, HM_HOST, before + taken - labelled - hm_block_charge(region, record));
    hm_step(region, block, forget_cached ? "cut.truncate" : "cut.punch", HM_BY_GATE, mask);
    if (hm_block_empty(record) && !record->busy && !record->parked && !record->inflight)
        list_remove(core, record);
    return error;
}
