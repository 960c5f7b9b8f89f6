/* Which pages leave a full device: the built-in policies. hmmfs/policy/eviction.py has the same
 * rules to read. What a policy knows is kept in order as blocks are used, so that finding a victim
 * does not take longer where there are more. */
#ifndef HMMFS_RULES_EVICT_H
#define HMMFS_RULES_EVICT_H
#include "base/region.h"

/* By node; list_lock guards them and what hangs off the listed blocks. */
struct hm_evictors;
int hm_evictors_init(struct hm_core *core); /* -ENOMEM */
void hm_evictors_deinit(struct hm_core *core);
/* A block is off the list. list_lock is held. */
void hm_residents_free(struct hm_core *core, struct hm_resident *residents);

/* With the stripe held. A job on the block has ended, or some of it went home. */
void hm_evict_note(struct hm_region *region, uint64_t block);
/* A fault of the device on `used` is about to be served by bringing `coming`. */
void hm_evict_used(struct hm_region *region, uint64_t block, uint32_t node,
                   const struct hm_mask *used, const struct hm_mask *coming);
/* Whether a policy here decides, and none in Python. */
bool hm_evict_is_native(struct hm_core *core, uint32_t node);
/* Blocks that may not be chosen, but for those in use, which never may. */
struct hm_spared {
    const uint64_t *keys; /* inode and block number of each */
    uint32_t count;
    const struct hm_block *own;   /* in use by who asks; or NULL */
    const struct hm_mask *wanted; /* pages of it that stay; with `own` */
};
/* As hm_victim_next. */
bool hm_evict_choose(struct hm_core *core, uint32_t node, uint32_t need,
                     const struct hm_spared *spared, struct hm_victim *out);
/* Whether pages of the very block that a job brings may leave. */
bool hm_evict_by_page(struct hm_core *core, uint32_t node);

#endif
