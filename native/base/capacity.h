/* Capacity of the nodes: pages are reserved before they come, and released when they have gone.
 * hmmfs.h has hm_reserve and hm_release. */
#ifndef HMMFS_BASE_CAPACITY_H
#define HMMFS_BASE_CAPACITY_H
#include <stdint.h>

struct hm_core;

/* Add to a node's use without asking; for bytes that must not be refused: what the page cache
 * writes back, whose capacity was reserved when it was read. */
void hm_reserve_always(struct hm_core *core, uint32_t node, uint64_t pages);

#endif
