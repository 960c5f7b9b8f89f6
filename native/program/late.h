/* Pages of devices' memory that are punched late. */
#ifndef HMMFS_PROGRAM_LATE_H
#define HMMFS_PROGRAM_LATE_H
#include "program/program.h"

/* What is to be punched late goes now: a worker is about to have a window on it, say. */
void hm_process_punch(struct hm_region *region);

/* Punch what is late, all of it, but for blocks that a transaction holds. The lock is held. */
void hm_process_flush(struct hm_process *process);
/* And of a block that a transaction holds, with the stripe, which is dropped meanwhile. */
void hm_process_flush_block(struct hm_process *process, uint64_t block);

#endif
