/* Whether a page comes to the device that accesses it. */
#ifndef HMMFS_RULES_PLACEMENT_H
#define HMMFS_RULES_PLACEMENT_H
#include "base/region.h"

/* Where a device's access to pages finds them. */
struct hm_placement {
    struct hm_mask bring;  /* on the device */
    struct hm_mask remote; /* on the host, where the device reaches them */
    struct hm_mask refuse; /* nowhere: they are pinned to another node */
};
/* With the stripe held. count: these are faults, which a policy may count. left: what a policy in
 * Python leaves where it is; NULL: it was not asked. */
struct hm_placement hm_place(struct hm_region *region, uint64_t block, uint32_t node,
                             const struct hm_mask *mask, bool count, const uint64_t *left);
/* Of the 64 KiB around pages that are reached remotely, what is mapped with them. */
struct hm_mask hm_remote_window(struct hm_region *region, uint64_t block, uint32_t node,
                                const struct hm_mask *remote);

#endif
