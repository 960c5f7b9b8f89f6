/* The simulated clock. */
#ifndef HMMFS_BOOKS_COST_H
#define HMMFS_BOOKS_COST_H
#include "base/core.h"

/* Each returns the ns charged. Charge the simulated clock, and the links, for copies to
 * `to` by owners before it (hm_carried of journal.c is who calls it), and for faults that brought
 * pages to a node. */
uint64_t hm_charge_copies(struct hm_core *core, uint32_t from, uint32_t to,
                          const struct hm_mask *copied);
uint64_t hm_charge_faults(struct hm_core *core, uint32_t node, uint32_t faults);
void hm_links_free(struct hm_core *core);

#endif
