/* What will be used, for the policy that knows it. The evictors' lock, list_lock, is held. */
#ifndef HMMFS_RULES_FUTURE_H
#define HMMFS_RULES_FUTURE_H
#include "base/mask.h"

#define HM_NEVER (1ULL << 62) /* the place in a trace of what is not used again */

struct hm_future;
struct hm_resident;

/* Of a trace, block * HM_BLOCK_PAGES + page for each access. NULL: no memory. */
struct hm_future *hm_future_make(const uint64_t *trace, uint64_t length);
void hm_future_free(struct hm_future *future);
/* Of the pages in both masks of a block the one whose next use is farthest away, of several the
 * last; returns when that is. False: there is no such page. */
bool hm_future_farthest(const struct hm_future *future, uint64_t block, const struct hm_mask *pages,
                        uint32_t *page, uint64_t *when);
/* Pages are used that were not there since their last use: the trace has come to their next.
 * Calls `passed` with the block of each page that was passed on the way. */
void hm_future_used(struct hm_future *future, uint64_t block, const struct hm_mask *pages,
                    void (*passed)(void *context, uint64_t block), void *context);

#endif
