/* Jobs on coherent and DAX regions. */
#ifndef HMMFS_TRANSACTION_SHARED_JOBS_H
#define HMMFS_TRANSACTION_SHARED_JOBS_H
#include "transaction/transaction.h"

/* hm_kind_ops.bring and .operate of these. */
int hm_shared_relabel(struct transaction *t, const struct hm_mask *mask, bool populate,
                      uint32_t limit);
int hm_shared_operate(struct transaction *t, const struct hm_mask *mask);

#endif
