/* Masks of pages by block and node, beside a region's records: which pages a device has copies of
 * (copies.c), and which are labelled as its own (labels.c). Few regions have either, so a table is
 * address space from the first use on and memory where it is written.
 *
 * A block's masks are read and changed with its stripe held. */
#include "core.h"

#define SIDE_BYTES (HM_MAX_BLOCKS * sizeof(struct hm_side))

int hm_side_init(struct hm_region *region, hm_side_table *table)
{
    int error = 0;
    if (atomic_load(table))
        return 0;
    pthread_mutex_lock(&region->pools_lock);
    if (!atomic_load(table)) {
        void *map = hm_reserve_memory(SIDE_BYTES);
        if (map)
            atomic_store(table, map);
        else
            error = -ENOMEM;
    }
    pthread_mutex_unlock(&region->pools_lock);
    return error;
}

void hm_side_deinit(hm_side_table *table)
{
    hm_free_memory(atomic_load(table), SIDE_BYTES);
}

struct hm_side *hm_side(const hm_side_table *table, uint64_t block)
{
    struct hm_side *all = atomic_load_explicit(table, memory_order_acquire);
    return all ? &all[block] : NULL;
}

struct hm_mask hm_side_on(const hm_side_table *table, uint64_t block, uint32_t node)
{
    const struct hm_side *side = hm_side(table, block);
    struct hm_mask mask = {{0}};
    if (side)
        memcpy(mask.word, side->on[node], sizeof(mask.word));
    return mask;
}

struct hm_mask hm_side_take(struct hm_side *side, uint32_t node, const struct hm_mask *mask)
{
    struct hm_mask gone;
    HM_EACH_WORD (w) {
        gone.word[w] = side->on[node][w] & mask->word[w];
        side->on[node][w] &= ~mask->word[w];
    }
    return gone;
}
