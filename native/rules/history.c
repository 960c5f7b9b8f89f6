#include "rules/history.h"

#include "base/pool.h"

#include <stdlib.h>

#define BLOCK_POINTERS (HM_MAX_BLOCKS * sizeof(struct hm_history *))

struct hm_history *hm_history(struct hm_region *region, uint64_t block)
{
    struct hm_history **table = atomic_load(&region->history), *made;
    if (!table) {
        void *map;
        hm_lock(HM_RANK_POOLS, &region->pools_lock);
        table = atomic_load(&region->history);
        map = table ? NULL : hm_reserve_memory(BLOCK_POINTERS);
        if (map)
            atomic_store(&region->history, map);
        table = atomic_load(&region->history);
        hm_unlock(HM_RANK_POOLS, &region->pools_lock);
        if (!table)
            return NULL;
    }
    if (table[block])
        return table[block];
    made = calloc(1, sizeof(*made));
    if (!made)
        return NULL;
    hm_lock(HM_RANK_POOLS, &region->pools_lock);
    made->next = region->histories;
    region->histories = made;
    hm_unlock(HM_RANK_POOLS, &region->pools_lock);
    return table[block] = made;
}

void hm_history_free(struct hm_region *region)
{
    struct hm_history *next;
    for (struct hm_history *at = region->histories; at; at = next) {
        next = at->next;
        free(at->pages);
        free(at);
    }
    hm_free_memory(atomic_load(&region->history), BLOCK_POINTERS);
}
