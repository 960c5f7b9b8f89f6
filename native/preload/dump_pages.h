#ifndef HMMFS_DUMP_PAGES_H
#define HMMFS_DUMP_PAGES_H

/* Map the file that came with the welcome, and forget it. Below 0: none came. */
void hm_map_for_dumps(int file);
void hm_unmap_for_dumps(void);

#endif
