/* What is remembered of a block's past. */
#ifndef HMMFS_RULES_HISTORY_H
#define HMMFS_RULES_HISTORY_H
#include "base/region.h"

/* What is remembered of a block, made at first use; with the stripe held. NULL: no memory. */
struct hm_history {
    struct hm_history *next;                              /* of the region's */
    uint16_t accesses[HM_MAX_NODES][HM_BLOCK_PAGES / 16]; /* remotely, by 64 KiB */
    /* thrash.c: who last moved pages here by a fault, when; since when it thrashes, or 0 */
    uint64_t last, last_thrashing;
    uint32_t last_processor, resets, pins;
    struct hm_thrashing_page *pages; /* NULL: only one processor did, or seldom */
};
struct hm_history *hm_history(struct hm_region *region, uint64_t block);
void hm_history_free(struct hm_region *region);

#endif
