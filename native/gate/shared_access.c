/* READ, WRITE and COPY_FILE_RANGE on coherent and DAX regions, from files that are open for
 * writing.
 *
 * The kernel passes mappings of every open file, and reads of one that is open for reading alone,
 * through to the memfd. What is written by a system call comes here (FOPEN_DIRECT_IO beside
 * FOPEN_PASSTHROUGH): a write that was passed through would make the memfd longer without a word,
 * past any capacity. Here new pages are reserved first, as at a truncate. A write(2) of
 * 4 KiB takes 65 us instead of 4; mappings, which programs compute on, cost what they did.
 *
 * The same flag sends read(2) here, which is as fresh, and makes the kernel's splice_read fill the
 * inode's page cache. Nothing would drop that when somebody stores through a mapping, so such a
 * READ is refused with EINVAL, after which sendfile(2) and splice(2) say to use read and write. It
 * is told by the owner of locks, which only a READ into a program's memory names.
 */
#include "gate/shared_access.h"

#include "base/fuse_wire.h"

#include "base/fuse.h"
#include "base/region.h"
#include "directory/shared_size.h"
#include "gate/access.h"
#include "gate/retry.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#define COPY_BYTES HM_MAX_WRITE /* of one COPY_FILE_RANGE; programs ask again for the rest */

/* Up to `length` bytes before the file's end. Returns how many, or -errno. */
static int64_t load(struct hm_region *region, uint64_t offset, uint8_t *to, uint64_t length)
{
    uint64_t size = hm_region_size(region), done = 0;
    if (offset >= size)
        return 0;
    length = length < size - offset ? length : size - offset;
    while (done < length) {
        ssize_t n =
            pread(region->pools[HM_HOST].fd, to + done, length - done, (off_t)(offset + done));
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && !done)
            return -errno;
        if (n <= 0)
            break;
        done += (uint64_t)n;
    }
    return (int64_t)done;
}

/* Make the file long enough for [offset, *end); with some, where not all of that fits, for as much
 * as does, which becomes *end. shared_lock is held. -ENOSPC: not all fits, or with some not one
 * byte. */
static int make_longer(struct hm_region *region, uint64_t offset, uint64_t *end, bool some)
{
    uint64_t fits = offset / HM_PAGE_SIZE + 1, beyond = (*end + HM_PAGE_SIZE - 1) / HM_PAGE_SIZE;
    int error = hm_shared_resize_locked(region, *end);
    if (error != -ENOSPC || !some || fits == beyond)
        return error;
    if (fits * HM_PAGE_SIZE > hm_region_size(region))
        error = hm_shared_resize_locked(region, fits * HM_PAGE_SIZE);
    else
        error = 0;
    if (error)
        return error;
    while (beyond - fits > 1) {
        uint64_t middle = fits + (beyond - fits) / 2;
        if (hm_shared_resize_locked(region, middle * HM_PAGE_SIZE))
            beyond = middle;
        else
            fits = middle;
    }
    *end = fits * HM_PAGE_SIZE;
    return 0;
}

/* Store, making the file longer if need be: all, or with `some` as much as fits. Returns how many
 * bytes, or -errno: nothing changed. */
static int64_t store(struct hm_region *region, uint64_t offset, const uint8_t *from,
                     uint64_t length, bool some)
{
    uint64_t end = offset + length, done = 0, old;
    int error = 0;
    if (end > HM_MAX_BYTES)
        return -EFBIG;
    HM_GUARD(HM_RANK_SHARED, &region->shared_lock);
    old = hm_region_size(region);
    if (end > old)
        error = make_longer(region, offset, &end, some);
    while (!error && offset + done < end) {
        ssize_t n = pwrite(region->pools[HM_HOST].fd, from + done, end - offset - done,
                           (off_t)(offset + done));
        if (n > 0)
            done += (uint64_t)n;
        else if (n == 0 || errno != EINTR)
            error = n ? -errno : -EIO;
    }
    /* The computer is out of memory: the file ends where its bytes do. */
    if (error && end > old && hm_region_size(region) > old)
        hm_shared_resize_locked(region, done && offset + done > old ? offset + done : old);
    return done ? (int64_t)done : error;
}

static void answer_read(struct hm_core *core, struct hm_region *region,
                        const struct hm_request *request)
{
    struct iovec iov[2] = {{NULL, 0}, {NULL, 0}};
    uint8_t *bytes;
    int64_t n;
    if (!(request->mode & FUSE_READ_LOCKOWNER)) {
        hm_reply(core, request->unique, EINVAL, NULL, 0);
        return;
    }
    bytes = malloc(request->size);
    n = bytes ? load(region, request->offset, bytes, request->size) : -ENOMEM;
    if (n < 0) {
        hm_reply(core, request->unique, (int)-n, NULL, 0);
    } else {
        iov[1] = (struct iovec){bytes, (size_t)n};
        hm_reply(core, request->unique, 0, iov, 2);
        hm_count(&core->count.reads, 1);
        hm_count(&core->count.read_bytes, (uint64_t)n);
    }
    free(bytes);
}

static void answer_write(struct hm_core *core, struct hm_region *region,
                         const struct hm_request *request)
{
    int64_t n;
    if (request->flags & FUSE_WRITE_KILL_SUIDGID)
        hm_drop_privileges(region->record);
    n = store(region, request->offset, request->data, request->size, false);
    if (n == -ENOSPC) {
        if (hm_retry_later(core, request))
            return;
        n = store(region, request->offset, request->data, request->size, true);
    }
    hm_count(&core->count.writes, 1);
    if (n < 0) {
        hm_reply(core, request->unique, (int)-n, NULL, 0);
        return;
    }
    hm_count(&core->count.written_bytes, (uint64_t)n);
    hm_reply_write(core, request->unique, (uint32_t)n);
}

void hm_shared_access(struct hm_core *core, const struct hm_request *request, bool write)
{
    HM_AUTO_PUT struct hm_region *region = hm_region_get(core, request->ino);
    if (!region || !hm_is_shared(region) || !request->size)
        hm_reply(core, request->unique, region ? EINVAL : ENOENT, NULL, 0);
    else if (write)
        answer_write(core, region, request);
    else
        answer_read(core, region, request);
}

static int64_t copy(struct hm_region *from, uint64_t at, struct hm_region *to, uint64_t offset,
                    uint64_t length, bool some)
{
    uint8_t *bytes;
    int64_t n;
    if (at > HM_MAX_BYTES || offset > HM_MAX_BYTES)
        return -EFBIG;
    length = length < COPY_BYTES ? length : COPY_BYTES;
    bytes = malloc(length + 1);
    if (!bytes)
        return -ENOMEM;
    n = load(from, at, bytes, length);
    if (n > 0)
        n = store(to, offset, bytes, (uint64_t)n, some);
    free(bytes);
    return n;
}

/* As store() and copy() return it. */
static int64_t carry_out(struct hm_core *core, const struct hm_request *request, bool some)
{
    struct fuse_copy_file_range_in in;
    int64_t n;
    memcpy(&in, request->data, sizeof(in));
    HM_AUTO_PUT struct hm_region *from = hm_region_get(core, request->ino);
    HM_AUTO_PUT struct hm_region *to = hm_region_get(core, in.nodeid_out);
    if (!from || !to || !hm_is_shared(from) || !hm_is_shared(to))
        return -EXDEV; /* a control file: the kernel copies by reading and writing */
    n = copy(from, in.off_in, to, in.off_out, in.len, some);
    if (n > 0 && request->uid)
        hm_drop_privileges(to->record);
    return n;
}

void hm_shared_copy(struct hm_core *core, const struct hm_request *request)
{
    int64_t n = carry_out(core, request, false);
    if (n == -ENOSPC) {
        if (hm_retry_later(core, request))
            return;
        n = carry_out(core, request, true);
    }
    if (n < 0)
        hm_reply(core, request->unique, (int)-n, NULL, 0);
    else
        hm_reply_write(core, request->unique, (uint32_t)n); /* the same answer */
}
