#ifndef HMMFS_BASE_TIMES_H
#define HMMFS_BASE_TIMES_H
#include "include/hmmfs.h"

#include <stdbool.h>

struct hm_region;
struct stat;

/* Its bytes changed now (or, without `bytes`, only what is known of it): mtime and ctime. */
void hm_region_changed(struct hm_region *region, bool bytes);
void hm_times_begin(struct hm_region_record *record);
void hm_times_copy(struct hm_region *region,
                   const struct stat *status); /* of a shared one's memfd */
/* Nanoseconds since 1970; INT64_MIN: that time stays. */
void hm_times_set(struct hm_region *region, int64_t atime, int64_t mtime);

#endif
