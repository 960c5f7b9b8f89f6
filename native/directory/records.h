/* The page directory: block records and what follows from their bits. */
#ifndef HMMFS_DIRECTORY_RECORDS_H
#define HMMFS_DIRECTORY_RECORDS_H
#include "base/region.h"

#define HM_DIRECTORY_HEADER                                                                        \
    (1ULL << 21) /* version, then from 4096 on the bitmap of touched blocks */
#define HM_DIRECTORY_BYTES (HM_DIRECTORY_HEADER + HM_MAX_BLOCKS * sizeof(struct hm_block))

_Static_assert(sizeof(struct hm_block) == 1024, "four records a page of the directory");

bool hm_region_is_touched(struct hm_region *region, uint64_t block);
/* The first touched block at or after from; HM_MAX_BLOCKS when there is none. */
uint64_t hm_next_touched(struct hm_region *region, uint64_t from);
/* Called with the block's stripe held */
struct hm_mask hm_owned(const struct hm_block *block,
                        uint32_t node);                        /* pages that are the node's */
void hm_block_touch(struct hm_region *region, uint64_t block); /* mark and list it */
/* Host pages that it holds. A program's own memory is not charged, nor what is taken from it. */
uint32_t hm_block_charge(const struct hm_region *region, const struct hm_block *block);
/* Holes among the pages of the mask for which no host page is reserved: the page cache has none of
 * them. */
uint32_t hm_unreserved_holes(const struct hm_block *block, const struct hm_mask *mask);
void hm_unlist(struct hm_region *region); /* needs no stripe */
bool hm_block_empty(const struct hm_block *block);
/* Take it off the list where it is empty and nobody needs it. */
void hm_block_forget(struct hm_core *core, struct hm_block *record);

#endif
