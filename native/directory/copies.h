/* Which pages devices have copies of. */
#ifndef HMMFS_DIRECTORY_COPIES_H
#define HMMFS_DIRECTORY_COPIES_H
#include "base/region.h"

/* With the stripe held: the pages of a block that a node has copies of. */
struct hm_mask hm_copies_on(const struct hm_region *region, uint64_t block, uint32_t node);
void hm_copies_set(struct hm_region *region, uint64_t block, uint32_t node,
                   const struct hm_mask *mask, bool there);
/* End the copies of the pages: on one device, or with HM_HOST on all. Returns how many. */
uint32_t hm_collapse(struct hm_region *region, uint64_t block, const struct hm_mask *mask,
                     uint32_t only);
void hm_collapse_all(struct hm_region *region); /* takes the stripes itself */

#endif
