/* A program is attached to a region of its own, and detached. */
#ifndef HMMFS_PROGRAM_PROCESS_H
#define HMMFS_PROGRAM_PROCESS_H
struct hm_region;

void hm_process_deinit(struct hm_region *region);

#endif
