#ifndef HMMFS_CORE_REGIONS_H
#define HMMFS_CORE_REGIONS_H
struct hm_region;

/* What core->region_free is. */
void hm_region_free(struct hm_region *region);

#endif
