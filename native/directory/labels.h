/* Which host-owned pages are said to be a device's. */
#ifndef HMMFS_DIRECTORY_LABELS_H
#define HMMFS_DIRECTORY_LABELS_H
#include "base/region.h"

/* With the stripe held. Whether the region's pages on the node are the host's, with a
 * label. */
bool hm_labels(const struct hm_region *region, uint32_t node);
struct hm_mask hm_labels_on(const struct hm_region *region, uint64_t block, uint32_t node);
struct hm_mask hm_said_on(struct hm_region *region, uint64_t block, uint32_t node); /* or owned */
uint32_t hm_labelled(const struct hm_region *region, uint64_t block); /* pages, on any device */
/* The pages that have a label, of any device. */
struct hm_mask hm_all_labels(const struct hm_region *region, uint64_t block);
/* Take all labels off. Returns how many; `of` gets them by device, where they stay reserved until
 * hm_release_labels: the host's pool holds the pages, and the host may be full. */
uint32_t hm_unlabel(struct hm_region *region, uint64_t block, const struct hm_mask *mask,
                    uint32_t of[HM_MAX_NODES]);
void hm_release_labels(struct hm_core *core, const uint32_t of[HM_MAX_NODES]);

#endif
