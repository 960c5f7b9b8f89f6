/* What is said of a program's pages that devices have. */
#ifndef HMMFS_PROGRAM_MARKS_H
#define HMMFS_PROGRAM_MARKS_H
#include "program/program.h"

/* Pages leave the devices that have them, which had them for themselves no longer. */
void hm_process_revoke(struct hm_process *process, uint64_t block, const struct hm_mask *mask);

#endif
