/* What is written to /dev/fuse: answers, and what the kernel is to drop. */
#ifndef HMMFS_BASE_FUSE_H
#define HMMFS_BASE_FUSE_H
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#define HM_MAX_WRITE (1u << 20)
#define HM_REQUEST_BYTES (HM_MAX_WRITE + 4096)

struct hm_core;

void hm_reply(struct hm_core *core, uint64_t unique, int error, struct iovec *iov, int count);
void hm_reply_bytes(struct hm_core *core, uint64_t unique, void *bytes, size_t length);
void hm_reply_write(struct hm_core *core, uint64_t unique, uint32_t size);
int hm_invalidate(struct hm_core *core, uint64_t ino, uint64_t offset, uint64_t length);

#endif
