/* Taking pages of a block from the CPU. */
#ifndef HMMFS_TRANSACTION_RECALL_H
#define HMMFS_TRANSACTION_RECALL_H
#include "transaction/transaction.h"

#define HM_RECALL_ROUNDS 4 /* over all pages at once, then one page at a time */

/* Take the pages of the mask from the CPU. Called and returns with the stripe held and
 * the block busy; 0: proven clean, the block is FROZEN. -EBUSY: the CPU keeps taking them back. */
int hm_recall(struct transaction *t, const struct hm_mask *mask);

/* Nothing has to wait for the block's transaction any more, FALLOCATE included. */
void hm_thaw(struct hm_block *record, struct hm_stripe *stripe);

#endif
