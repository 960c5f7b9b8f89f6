/* Pages are cut out of the directory, and parts of pages become zeros. */
#ifndef HMMFS_DIRECTORY_CUT_H
#define HMMFS_DIRECTORY_CUT_H
#include "base/region.h"

/* Zero [from, to) of one page in every copy of it; the stripe is held */
int hm_zero_part(struct hm_region *region, uint64_t from, uint64_t to);

/* Forget the pages of the mask, punch them everywhere, release them; bumps generation. */
int hm_block_cut(struct hm_region *region, uint64_t block, const struct hm_mask *mask,
                 bool forget_cached);
/* Cut [start, end) bytes out of the directory, all of it, also where a block can't be
 * cut: the first error */
int hm_cut_range(struct hm_region *region, uint64_t start, uint64_t end, bool forget_cached);

#endif
