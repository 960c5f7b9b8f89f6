/* Pages of a program's own memory come and go. */
#ifndef HMMFS_PROGRAM_ANONYMOUS_H
#define HMMFS_PROGRAM_ANONYMOUS_H
#include "program/program.h"

/* hm_kind_ops of a program's memory. */
int hm_process_bring(struct transaction *t, const struct hm_mask *mask, bool populate,
                     uint32_t limit);
int hm_process_operate(struct transaction *t, const struct hm_mask *mask);
/* Give device-owned pages of the mask back; the process's lock and the stripe are held, and with
 * `busy` the block. Which were given comes back in the mask. */
int hm_process_home(struct transaction *t, struct hm_mask *mask);
/* Whether a device may store to all pages of the mask. */
int hm_process_may_write(struct transaction *t, const struct hm_mask *mask);

#endif
