/* What becomes of pages when a program changes its mappings. */
#ifndef HMMFS_PROGRAM_SPACE_H
#define HMMFS_PROGRAM_SPACE_H
#include "program/program.h"

/* With the lock held, what an event is about. False: a transaction holds one of the blocks, or the
 * kernel has news: once more later. Pages went, and so does what devices have of them; a child has
 * all that its parent had; pages come home at their new place. */
bool hm_process_cut(struct hm_process *process, uint64_t start, uint64_t end);
bool hm_process_forked(struct hm_process *process, struct hm_pending *fork);
bool hm_process_remapped(struct hm_process *process, struct hm_pending *remap);
/* With the lock held: a page that an event which waits is to put at an address is wanted there now.
 * -ENOENT: there is none to come; -EAGAIN: it can't be had at the moment. */
int hm_process_put_early(const struct hm_process *process, uint64_t address);

#endif
