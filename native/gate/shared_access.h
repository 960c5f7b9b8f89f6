/* READ, WRITE and COPY_FILE_RANGE on coherent and DAX regions. */
#ifndef HMMFS_GATE_SHARED_ACCESS_H
#define HMMFS_GATE_SHARED_ACCESS_H
#include "base/core.h"

/* What the kernel does not pass through; answers the request. */
void hm_shared_access(struct hm_core *core, const struct hm_request *request, bool write);
void hm_shared_copy(struct hm_core *core, const struct hm_request *request);

#endif
