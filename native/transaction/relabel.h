/* Host-owned pages get labels, or lose them. */
#ifndef HMMFS_TRANSACTION_RELABEL_H
#define HMMFS_TRANSACTION_RELABEL_H
#include "transaction/transaction.h"

/* Have pages labelled as job->node's, and leave in the mask those that it takes truly;
 * take labels off for the host. -ENOSPC, or -ENOBUFS where it is the host that is full. */
int hm_label(struct transaction *t, struct hm_mask *mask);
int hm_label_home(struct transaction *t, const struct hm_mask *mask);

#endif
