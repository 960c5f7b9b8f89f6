/* Room on a device for what a job brings: made by the thread that runs the job. */
#ifndef HMMFS_TRANSACTION_ROOM_H
#define HMMFS_TRANSACTION_ROOM_H
#include "transaction/transaction.h"

/* A step of a job that brings the pages wanted to a device has ended so, with the stripe held.
 * Where it found no room, and the device's policy is a built-in one: have others leave, and reserve
 * what was missing. Whether the step is to be tried again; otherwise the error stands. The stripe
 * is dropped meanwhile, the block stays busy. */
bool hm_room_made(struct transaction *t, int error, const struct hm_mask *wanted);
/* hm_bring, with room made for it. */
int hm_bring_in(struct transaction *t, const struct hm_mask *mask, bool populate, uint32_t limit);

#endif
