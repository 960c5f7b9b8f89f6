/* Eviction from a device that is full, for what a job brings there, on the job's own thread. */
#ifndef HMMFS_TRANSACTION_EVICT_FOR_H
#define HMMFS_TRANSACTION_EVICT_FOR_H
#include "transaction/transaction.h"

/* A step of a job that brings the pages wanted to a device has ended so, with the stripe held.
 * Where the device was full, and its policy is a built-in one: evict others, and reserve what was
 * missing. Whether the step is to be tried again; otherwise the error stands. The stripe
 * is dropped meanwhile, the block stays busy. */
bool hm_evict_for(struct transaction *t, int error, const struct hm_mask *wanted);
/* hm_bring, with hm_evict_for. */
int hm_bring_in(struct transaction *t, const struct hm_mask *mask, bool populate, uint32_t limit);

#endif
