/* Whose pages are: the one place that changes which pages of a block there are, and who owns them.
 * The stripe is held. */
#ifndef HMMFS_DIRECTORY_OWNER_H
#define HMMFS_DIRECTORY_OWNER_H
#include "base/region.h"

/* Pages become the node's. Those that are there move, and are counted as moved by the trigger; the
 * others come out of nothing. What a node gets is clean until somebody stores to it. moved: gets
 * how many came from each node; or NULL. */
void hm_own(struct hm_region *region, struct hm_block *record, const struct hm_mask *pages,
            uint32_t node, enum hm_trigger trigger, uint32_t moved[HM_MAX_NODES]);
/* Pages come out of nothing: none of them is there. */
void hm_populate(struct hm_region *region, struct hm_block *record, const struct hm_mask *pages,
                 uint32_t node);
/* Pages are no more, nor what the host keeps of them. gone: gets how many each node had. */
void hm_disown(struct hm_region *region, struct hm_block *record, const struct hm_mask *pages,
               uint32_t gone[HM_MAX_NODES]);

#endif
