/* What a transaction does is entered in the books. */
#ifndef HMMFS_TRANSACTION_JOURNAL_H
#define HMMFS_TRANSACTION_JOURNAL_H
#include "transaction/transaction.h"
#include "books/trace.h"

struct cause hm_cause(const struct hm_job *job);
/* Pages begin to move to job->node, by owners; returns when. Or, with when they began, they failed
 * to. */
uint64_t hm_trace_move(struct transaction *t, const struct hm_mask *moving,
                       const uint8_t from[HM_BLOCK_PAGES], uint64_t failed);
/* The end of those that began to move and have not. */
void hm_trace_stayed(struct transaction *t, const struct hm_mask *moving,
                     const struct hm_mask *moved, const uint8_t from[HM_BLOCK_PAGES],
                     uint64_t began);
/* Of pages concerned, by owners before, these had their bytes copied to job->node, or used
 * remotely: charge for them, enter them, and trace it. began: when, or 0 for an instant. */
void hm_carried(struct transaction *t, enum hm_trace_kind kind, const struct hm_mask *concerned,
                const struct hm_mask *copied, const uint8_t from[HM_BLOCK_PAGES], uint64_t began);
void hm_trace_job(struct transaction *t, enum hm_trace_kind kind, const struct hm_mask *mask,
                  uint32_t from, uint32_t to, uint64_t began);
/* The job's device stands still while it is full: that begins, or with when it began has ended.
 * Returns the time of the event. */
uint64_t hm_trace_wait(struct transaction *t, uint64_t began);
/* A device fault is served. */
void hm_faults_served(struct transaction *t);
/* Pages that a device's fault brought and that it had before: evicted since, or taken by
 * programs. */
void hm_count_thrashing(struct transaction *t, bool sharing, const struct hm_mask *pages);

#endif
