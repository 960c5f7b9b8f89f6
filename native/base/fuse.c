#include "base/fuse.h"

#include "base/core.h"
#include "base/fuse_wire.h"

#include <errno.h>
#include <unistd.h>

/* iov[0] is left free for the header. A failing write means that the kernel dropped the request:
 * the connection was aborted, or the program is gone. */
void hm_reply(struct hm_core *core, uint64_t unique, int error, struct iovec *iov, int count)
{
    struct fuse_out_header header = {.unique = unique, .error = -error};
    struct iovec only;
    size_t length = sizeof(header);
    if (!iov) {
        iov = &only;
        count = 1;
    }
    iov[0] = (struct iovec){&header, sizeof(header)};
    for (int i = 1; i < count; i++)
        length += iov[i].iov_len;
    header.len = (uint32_t)length;
    while (writev(core->fuse_fd, iov, count) < 0 && errno == EINTR)
        ;
}

void hm_reply_bytes(struct hm_core *core, uint64_t unique, void *bytes, size_t length)
{
    struct iovec iov[2] = {{NULL, 0}, {bytes, length}};
    hm_reply(core, unique, 0, iov, 2);
}

void hm_reply_write(struct hm_core *core, uint64_t unique, uint32_t size)
{
    struct fuse_write_out out = {.size = size};
    hm_reply_bytes(core, unique, &out, sizeof(out));
}

int hm_invalidate(struct hm_core *core, uint64_t ino, uint64_t offset, uint64_t length)
{
    struct {
        struct fuse_out_header header;
        struct fuse_notify_inval_inode_out out;
    } message = {{sizeof(message), FUSE_NOTIFY_INVAL_INODE, 0},
                 {ino, (int64_t)offset, (int64_t)length}};
    int error = 0;
    if (core->fuse_fd < 0)
        return 0;
    atomic_fetch_add(&core->invalidating, 1);
    if (atomic_load(&core->leaving))
        error = -ENOTCONN;
    while (!error && write(core->fuse_fd, &message, sizeof(message)) < 0) {
        /* ENOENT: the kernel has no such inode, so nothing of it is cached. ENODEV, ENOTCONN:
         * there is no CPU side any more. */
        if (errno != EINTR && errno != EAGAIN)
            error = -errno;
    }
    atomic_fetch_sub(&core->invalidating, 1);
    return error;
}

int hm_reply_ioctl(struct hm_core *core, uint64_t unique, int error, const void *out, uint32_t size)
{
    struct fuse_ioctl_out head = {0};
    struct iovec iov[3] = {{NULL, 0}, {&head, sizeof(head)}, {(void *)(uintptr_t)out, size}};
    if (core->fuse_fd < 0)
        return -ENOTCONN;
    if (error)
        hm_reply(core, unique, error, NULL, 0);
    else
        hm_reply(core, unique, 0, iov, size ? 3 : 2);
    return 0;
}
