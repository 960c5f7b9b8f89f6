/* In which order WRITEs of one page take effect. */
#ifndef HMMFS_GATE_ORDER_H
#define HMMFS_GATE_ORDER_H
#include "base/core.h"

/* Called with the stripe held, but the first. */
void hm_order_read(struct hm_core *core, uint64_t unique); /* a WRITE was read from /dev/fuse */
/* The pages of the mask that a newer WRITE than `unique` has written. */
struct hm_mask hm_order_overtaken(struct hm_stripe *stripe, uint64_t ino, uint64_t block,
                                  const struct hm_mask *mask, uint64_t unique);
/* This WRITE is admitted and covers the pages of `whole` from end to end. -ENOMEM. */
int hm_order_remember(struct hm_core *core, struct hm_stripe *stripe, uint64_t ino, uint64_t block,
                      const struct hm_mask *whole, uint64_t unique);
void hm_order_free(struct hm_stripe *stripe);

#endif
