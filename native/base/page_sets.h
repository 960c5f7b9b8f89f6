/* Masks of pages by block and node, beside a region's records: which pages a device has copies of
 * (copies.c), and which are labelled as its own (labels.c). Few regions have either, so a table is
 * address space from the first use on and memory where it is written.
 *
 * A block's masks are read and changed with its stripe held. */
#ifndef HMMFS_BASE_PAGE_SETS_H
#define HMMFS_BASE_PAGE_SETS_H
#include "base/mask.h"

#include <stdatomic.h>

/* Of a block, a mask for each node; and the table of these by block, NULL until first used. */
struct hm_page_sets {
    uint64_t on[HM_MAX_NODES][HM_WORDS];
};
typedef _Atomic(struct hm_page_sets *) hm_page_sets_table;

/* Made at first use (-ENOMEM), and freed with what it belongs to. */
int hm_page_sets_init(hm_page_sets_table *table);
void hm_page_sets_deinit(hm_page_sets_table *table);
/* With the stripe held from here on. */
struct hm_page_sets *hm_page_sets_of(const hm_page_sets_table *table,
                                     uint64_t block); /* NULL: it was never used */
struct hm_mask hm_page_set(const hm_page_sets_table *table, uint64_t block, uint32_t node);
/* Take pages out of the node's mask; returns those that were in it. */
struct hm_mask hm_page_set_take(struct hm_page_sets *sets, uint32_t node,
                                const struct hm_mask *mask);

#endif
