/* Coherent and DAX regions: their memfd, and their size. */
#ifndef HMMFS_DIRECTORY_SHARED_SIZE_H
#define HMMFS_DIRECTORY_SHARED_SIZE_H
#include "base/region.h"

int hm_shared_init(struct hm_region *region);
void hm_shared_deinit(struct hm_region *region);
int hm_shared_resize(struct hm_region *region, uint64_t size);
int hm_shared_resize_locked(struct hm_region *region, uint64_t size); /* with shared_lock */
int hm_shared_backing(struct hm_region *region); /* the kernel's number for its memfd, or -errno */

#endif
