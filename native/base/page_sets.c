#include "base/page_sets.h"

#include "base/pool.h"

#include <errno.h>
#include <string.h>

#define TABLE_BYTES (HM_MAX_BLOCKS * sizeof(struct hm_page_sets))

int hm_page_sets_init(hm_page_sets_table *table)
{
    struct hm_page_sets *made, *nothing = NULL;
    if (atomic_load(table))
        return 0;
    made = hm_reserve_memory(TABLE_BYTES);
    if (!made)
        return -ENOMEM;
    if (!atomic_compare_exchange_strong(table, &nothing, made))
        hm_free_memory(made, TABLE_BYTES);
    return 0;
}

void hm_page_sets_deinit(hm_page_sets_table *table)
{
    hm_free_memory(atomic_load(table), TABLE_BYTES);
}

struct hm_page_sets *hm_page_sets_of(const hm_page_sets_table *table, uint64_t block)
{
    struct hm_page_sets *all = atomic_load_explicit(table, memory_order_acquire);
    return all ? &all[block] : NULL;
}

struct hm_mask hm_page_set(const hm_page_sets_table *table, uint64_t block, uint32_t node)
{
    const struct hm_page_sets *sets = hm_page_sets_of(table, block);
    struct hm_mask mask = {{0}};
    if (sets)
        memcpy(mask.word, sets->on[node], sizeof(mask.word));
    return mask;
}

struct hm_mask hm_page_set_take(struct hm_page_sets *sets, uint32_t node,
                                const struct hm_mask *mask)
{
    struct hm_mask gone = hm_both(sets->on[node], mask->word);
    hm_drop(sets->on[node], mask->word);
    return gone;
}
