/* Pages of a program that stay. */
#ifndef HMMFS_PROGRAM_STAYS_H
#define HMMFS_PROGRAM_STAYS_H
#include "program/program.h"

/* Pages of a block that stay in the program: those that the kernel uses for its threads,
 * -EBUSY: it can't be said now; and those of its arguments and environment. No stripe is held. */
int hm_stays_for_kernel(struct hm_process *process, uint64_t block, struct hm_mask *out);
struct hm_mask hm_stays_for_ps(struct hm_process *process, uint64_t block);

#endif
