/* What the core and the helper thread in a worker say to each other: see remote.c. */
#ifndef HMMFS_REMOTE_H
#define HMMFS_REMOTE_H
#include "include/hmmfs.h"

/* Map [offset, offset+length) bytes of the region's file over its window. Sent back with an errno
 * (negative) when that can't be done. */
struct hm_remote_request {
    uint64_t ino, offset, length;
    int64_t error;
};

#endif
