#ifndef HMMFS_BASE_PUBLISHED_H
#define HMMFS_BASE_PUBLISHED_H
#include <stddef.h>

struct hm_core;

/* A copy of bytes that stays as it is until the core ends: for settings that anybody may be reading
 * while they are replaced. NULL: no memory. */
const void *hm_publish(struct hm_core *core, const void *bytes, size_t size);
void hm_published_free(struct hm_core *core);

#endif
