/* Operations of a device that need no worker. */
#ifndef HMMFS_TRANSACTION_OPERATION_H
#define HMMFS_TRANSACTION_OPERATION_H
#include "transaction/transaction.h"

/* hm_kind_ops.operate of private memory. */
int hm_operate(struct transaction *t, const struct hm_mask *mask);
int hm_operate_without_record(struct transaction *t); /* of a block that nobody has accessed */

#endif
