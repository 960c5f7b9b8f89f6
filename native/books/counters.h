/* What moved, why, over which links, and what became of faults: the sums. */
#ifndef HMMFS_BOOKS_COUNTERS_H
#define HMMFS_BOOKS_COUNTERS_H
#include "base/region.h"

void hm_count_moved(struct hm_core *core, uint32_t from, uint32_t to, uint32_t pages,
                    enum hm_trigger trigger);
void hm_count_faults(struct hm_region *region, uint32_t node, enum hm_fault_count what,
                     uint32_t faults);

/* Whether what came, went and is there agrees for a node; `resident` pages are. A
 * sentence in text if not. */
bool hm_books_agree(struct hm_core *core, uint32_t node, uint64_t resident, char *text,
                    size_t size);
/* What was counted as it happened; the rest of hm_stats is 0. */
void hm_counted(struct hm_core *core, struct hm_stats *out);

#endif
