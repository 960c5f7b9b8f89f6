/* A worker's faults on one block. */
#ifndef HMMFS_TRANSACTION_DEVICE_FAULT_H
#define HMMFS_TRANSACTION_DEVICE_FAULT_H
#include "transaction/transaction.h"

/* A worker's faults; and whether serving them waits for nobody and copies little */
int hm_touch(struct transaction *t);
bool hm_touch_is_easy(const struct transaction *t);

#endif
