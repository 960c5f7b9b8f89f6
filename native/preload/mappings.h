#ifndef HMMFS_MAPPINGS_H
#define HMMFS_MAPPINGS_H

/* Look up the functions that the library stands before. */
void hm_mappings_find(void);

#endif
