#ifndef HMMFS_COMPLAIN_H
#define HMMFS_COMPLAIN_H

/* One sentence on standard error: what failed, why, and what follows from that. */
void hm_complain(const char *what, int error, const char *consequence);

#endif
