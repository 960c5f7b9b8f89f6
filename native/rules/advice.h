/* What programs said of ranges of a region. */
#ifndef HMMFS_RULES_ADVICE_H
#define HMMFS_RULES_ADVICE_H
#include "base/region.h"

/* What was said of the pages of a block, as `node` has to see it. */
struct hm_advised {
    struct hm_mask read_mostly, pinned, no_migrate;
    struct hm_mask here;      /* preferred location: the node */
    struct hm_mask at_host;   /* preferred location: the host */
    struct hm_mask elsewhere; /* preferred location: another device */
    struct hm_mask mapped;    /* accessed by the node */
};
/* False: nothing was said of the block, and `out` is empty. */
bool hm_advised(struct hm_region *region, uint64_t block, uint32_t node, struct hm_advised *out);
/* The window of a fault where a granularity was said for the pages faulted on; else as it is. */
void hm_advised_window(struct hm_region *region, uint64_t block, const struct hm_mask *touched,
                       struct hm_mask *window);
/* Pages that stay where they are. */
struct hm_mask hm_pinned(struct hm_region *region, uint64_t block);
/* Pages that may not come to a node. */
struct hm_mask hm_stays(struct hm_region *region, uint64_t block, uint32_t node);
void hm_advice_free(struct hm_region *region);

#endif
