#ifndef HMMFS_OPENS_H
#define HMMFS_OPENS_H

/* Look up the functions that the library stands before. */
void hm_opens_find(void);

#endif
