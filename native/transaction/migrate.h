/* Transactions on one block of private memory. */
#ifndef HMMFS_TRANSACTION_MIGRATE_H
#define HMMFS_TRANSACTION_MIGRATE_H
#include "transaction/transaction.h"

/* hm_kind_ops.bring of private memory. */
int hm_migrate(struct transaction *t, const struct hm_mask *mask, bool populate, uint32_t limit);
/* Reserve pages on the job's node beyond what the job brought along. -ENOSPC: event.need is set. */
int hm_reserve_for_job(struct transaction *t, uint32_t pages, enum hm_overcommit overcommit);
/* Mark before the first byte changes: from here on no kept copy may pass for the page. */
void hm_mark_written(struct transaction *t, const struct hm_mask *mask);

/* Bring device-owned pages home at once: the block is stable and not busy, or in a recall, whose
 * transaction plans only after it. The stripe is held throughout. With their bytes, also where a
 * WRITE is about to replace them: until it has, they are read, and it may fail yet. -ENOSPC:
 * nothing changed. */
int hm_bring_home(struct hm_region *region, uint64_t block, const struct hm_mask *mask,
                  enum hm_overcommit overcommit);

#endif
