/* A program's memory, and the threads of ours that use it. */
#ifndef HMMFS_PROGRAM_MEMORY_H
#define HMMFS_PROGRAM_MEMORY_H
#include "program/program.h"

uint64_t hm_process_address(const struct hm_process *process, uint64_t block); /* of its start */
static inline uint64_t hm_page_address(const struct hm_process *process, uint64_t block,
                                       uint32_t page)
{
    return hm_process_address(process, block) + (uint64_t)page * HM_PAGE_SIZE;
}

static inline uint64_t hm_page_of(const struct transaction *t, uint32_t page)
{
    return hm_page_address(t->region->process, t->block, page);
}

void hm_process_wake(struct hm_process *process, uint64_t start, uint64_t length);
/* Add the pages of [start, end), where start begins a page, that are in the block whose first
 * address is `base`. */
void hm_add_part(struct hm_mask *mask, uint64_t base, uint64_t start, uint64_t end);
/* A thread of ours accesses the program's memory from here on, without the lock: its faults are
 * served whatever is held. Returns what to end it with. */
int hm_process_enter(struct hm_process *process);
void hm_process_leave(struct hm_process *process, int slot);
/* Copy from its memory, or to it; returns bytes or -errno. ESRCH: it has ended. */
ssize_t hm_process_copy(const struct hm_process *process, uint64_t address, void *bytes,
                        size_t length, bool store);
/* Pages of a block leave the program, with the lock held; and they are all somewhere again,
 * without.
 */
void hm_process_depart(struct hm_process *process, uint64_t block);
void hm_process_arrive(struct hm_process *process, uint64_t block);
bool hm_process_departs(const struct hm_process *process, uint64_t block);
/* It does what no library of ours does, such as writing to its requests itself. It is no longer
 * served; what devices have of it is a SIGBUS to it. Returns -ESRCH. */
int hm_process_lose(struct hm_process *process);
/* Give a page, and holes that follow it in the block, their zeros. */
void hm_process_fill(struct hm_process *process, uint64_t address, uint32_t pages);

#endif
