/* What comes with a fault. */
#ifndef HMMFS_RULES_PREFETCH_H
#define HMMFS_RULES_PREFETCH_H
#include "base/mask.h"

struct hm_mask hm_prefetch_window(const struct hm_prefetch *policy, const struct hm_mask *resident,
                                  const struct hm_mask *touched, const struct hm_mask *inside,
                                  uint32_t faults, struct hm_stride *stride);

#endif
