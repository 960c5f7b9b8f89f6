/* Copies of read-mostly pages are made. */
#ifndef HMMFS_TRANSACTION_DUPLICATE_H
#define HMMFS_TRANSACTION_DUPLICATE_H
#include "transaction/transaction.h"

/* Bring devices' pages home within another job. -ENOBUFS: the host is full. */
int hm_fetch_home(struct transaction *t, const struct hm_mask *mask);
/* Give job->node copies of the pages that have bytes, and leave in the mask those that
 * get none: holes, and other devices' if the host is full. As hm_bring. */
int hm_duplicate(struct transaction *t, struct hm_mask *mask);

#endif
