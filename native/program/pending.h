/* What the kernel tells of a program. */
#ifndef HMMFS_PROGRAM_PENDING_H
#define HMMFS_PROGRAM_PENDING_H
#include "program/program.h"

/* With the lock held: whether an event that is not dealt with concerns the range. */
bool hm_process_waits(const struct hm_process *process, uint64_t start, uint64_t end);
/* With the lock held: pages of a block that the program may be about to discard. */
struct hm_mask hm_process_discards(const struct hm_process *process, uint64_t block);
/* With the lock held: read what events there are, to be dealt with later. */
void hm_process_read(struct hm_process *process);
/* With the lock held: the helper takes its time. If it is in a page fault, read one message: faults
 * come before events, and none may be read now. In the same pid namespace only. */
void hm_process_help(struct hm_process *process);
/* Append to a list: its end is given and comes back. */
struct hm_pending **hm_pending_add(struct hm_pending **end, const struct uffd_msg *message);
/* What an event is about; nothing, if it is a fault. */
void hm_pending_range(const struct hm_pending *pending, uint64_t *start, uint64_t *end);
/* Whether it moves pages to a range; whether it changes anything there. */
bool hm_pending_comes_to(const struct hm_pending *pending, uint64_t start, uint64_t end);
bool hm_pending_concerns(const struct hm_pending *pending, uint64_t start, uint64_t end);
/* Where a page is after an event that is not a fork; 0: nowhere. */
uint64_t hm_pending_follow(const struct hm_pending *pending, uint64_t address);
void hm_pending_free(struct hm_pending *pending);

#endif
