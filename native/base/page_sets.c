#include "base/page_sets.h"

#include "base/pool.h"

#include <errno.h>
#include <string.h>

#define SIDE_BYTES (HM_MAX_BLOCKS * sizeof(struct hm_side))

int hm_side_init(hm_side_table *table)
{
    struct hm_side *made, *nothing = NULL;
    if (atomic_load(table))
        return 0;
    made = hm_reserve_memory(SIDE_BYTES);
    if (!made)
        return -ENOMEM;
    if (!atomic_compare_exchange_strong(table, &nothing, made))
        hm_free_memory(made, SIDE_BYTES);
    return 0;
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
