/* A worker's faults on one block. */
#ifndef HMMFS_TRANSACTION_DEVICE_FAULT_H
#define HMMFS_TRANSACTION_DEVICE_FAULT_H
#include "transaction/transaction.h"

/* Serve a worker's faults; and whether that waits for nobody and copies little. */
int hm_device_fault(struct transaction *t);
bool hm_device_fault_is_easy(const struct transaction *t);

#endif
