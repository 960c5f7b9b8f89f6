/* Pages that processors keep taking from each other. */
#ifndef HMMFS_RULES_THRASH_H
#define HMMFS_RULES_THRASH_H
#include "base/region.h"

/* With the stripe held. Pages moved to the node, by its fault or because somebody asked.
 */
void hm_thrash_note(struct hm_region *region, uint64_t block, uint32_t node,
                    const struct hm_mask *moved, bool by_fault);
/* The node has a fault on the pages. It may have to wait, which takes simulated time, and pages may
 * be pinned. */
void hm_thrash_fault(struct hm_region *region, uint64_t block, uint32_t node,
                     const struct hm_mask *touched);
/* The pages of the mask that are pinned to the host. */
struct hm_mask hm_thrash_is_pinned(struct hm_region *region, uint64_t block,
                                   const struct hm_mask *mask);

#endif
