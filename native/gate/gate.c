/* The gate: native threads that own /dev/fuse. READ, WRITE, LSEEK, FALLOCATE and GETATTR on region
 * files are answered here; every other request goes to pyfuse3 through the relay.
 */
#include "base/events.h"
#include "base/fuse.h"
#include "base/fuse_wire.h"
#include "base/region.h"
#include "base/times.h"
#include "gate/access.h"
#include "gate/fallocate.h"
#include "gate/order.h"
#include "gate/relay.h"
#include "gate/retry.h"
#include "gate/shared_access.h"
#include "gate/threads.h"
#include "transaction/parked.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define FIRST_REGION_INO (1ULL << 32)
#define WRITE_HEADERS (sizeof(struct fuse_in_header) + sizeof(struct fuse_write_in))
#define LEAVE_NS 10000000000ULL /* for what is being invalidated */

/* ---- requests ----------------------------------------------------------------------------- */

int hm_gate_parse(const uint8_t *message, size_t length, struct hm_request *ret)
{
    struct fuse_in_header header;
    size_t body;
    memset(ret, 0, sizeof(*ret));
    if (length < sizeof(header))
        return -EINVAL;
    memcpy(&header, message, sizeof(header));
    ret->unique = header.unique;
    ret->ino = header.nodeid;
    ret->opcode = header.opcode;
    ret->pid = header.pid;
    ret->uid = header.uid;
    if (header.len != length || length > HM_REQUEST_BYTES)
        return -EINVAL;
    message += sizeof(header);
    body = length - sizeof(header);
    switch (header.opcode) {
    case FUSE_READ: {
        struct fuse_read_in in;
        if (body != sizeof(in))
            return -EINVAL;
        memcpy(&in, message, sizeof(in));
        ret->fh = in.fh;
        ret->offset = in.offset;
        ret->size = in.size;
        ret->flags = in.flags;
        ret->mode = in.read_flags;
        break;
    }
    case FUSE_WRITE: {
        struct fuse_write_in in;
        if (body < sizeof(in))
            return -EINVAL;
        memcpy(&in, message, sizeof(in));
        if (body - sizeof(in) != in.size)
            return -EINVAL;
        ret->fh = in.fh;
        ret->offset = in.offset;
        ret->size = in.size;
        ret->flags = in.write_flags;
        ret->data = message + sizeof(in);
        break;
    }
    case FUSE_LSEEK: {
        struct fuse_lseek_in in;
        if (body != sizeof(in))
            return -EINVAL;
        memcpy(&in, message, sizeof(in));
        ret->fh = in.fh;
        ret->offset = in.offset;
        ret->mode = in.whence;
        break;
    }
    case FUSE_FALLOCATE: {
        struct fuse_fallocate_in in;
        if (body != sizeof(in))
            return -EINVAL;
        memcpy(&in, message, sizeof(in));
        ret->fh = in.fh;
        ret->offset = in.offset;
        ret->length = in.length;
        ret->mode = in.mode;
        break;
    }
    case FUSE_COPY_FILE_RANGE:
        if (body != sizeof(struct fuse_copy_file_range_in))
            return -EINVAL;
        ret->data = message;
        ret->size = sizeof(struct fuse_copy_file_range_in);
        return 0;
    case FUSE_IOCTL: {
        struct fuse_ioctl_in in;
        if (body < sizeof(in))
            return -EINVAL;
        memcpy(&in, message, sizeof(in));
        if (body - sizeof(in) != in.in_size)
            return -EINVAL;
        ret->fh = in.fh;
        ret->flags = in.flags;
        ret->mode = in.cmd;
        ret->size = in.in_size;
        ret->length = in.out_size;
        ret->data = message + sizeof(in);
        break;
    }
    case FUSE_INTERRUPT: {
        struct fuse_interrupt_in in;
        if (body != sizeof(in))
            return -EINVAL;
        memcpy(&in, message, sizeof(in));
        ret->length = in.unique;
        return 0;
    }
    default:
        return 0;
    }
    if (header.opcode == FUSE_LSEEK && ret->offset > INT64_MAX)
        return -ENXIO; /* what a tmpfs says of a negative offset */
    if (ret->offset > INT64_MAX || ret->length > INT64_MAX - ret->offset ||
        ret->size > HM_MAX_WRITE)
        return -EINVAL;
    return 0;
}

static void answer_seek(struct hm_core *core, const struct hm_request *request)
{
    struct fuse_lseek_out out = {0};
    int64_t found = -EINVAL;
    if (request->mode == SEEK_DATA || request->mode == SEEK_HOLE)
        found = hm_region_seek(core, request->ino, request->offset, request->mode == SEEK_HOLE);
    if (found < 0) {
        hm_reply(core, request->unique, (int)-found, NULL, 0);
        return;
    }
    out.offset = (uint64_t)found;
    hm_reply_bytes(core, request->unique, &out, sizeof(out));
}

/* A region is always ready, as any file. io_uring asks 256 times for each read and write: it tries
 * 128 times not to wait before a thread of its own does the work. */
static void answer_poll(struct hm_core *core, const struct hm_request *request)
{
    struct fuse_poll_out out = {.revents = POLLIN | POLLOUT | POLLRDNORM | POLLWRNORM};
    hm_reply_bytes(core, request->unique, &out, sizeof(out));
}

static void put_time(int64_t ns, uint64_t *seconds, uint32_t *rest)
{
    int64_t below = ns % 1000000000;
    below += below < 0 ? 1000000000 : 0;
    *seconds = (uint64_t)((ns - below) / 1000000000);
    *rest = (uint32_t)below;
}

/* What `ls -l` asks of each region, each time: stores through mappings and devices change sizes and
 * times without a request, so the kernel keeps no attributes. The twin of _attributes in
 * hmmfs/filesystem/operations.py. */
static void answer_getattr(struct hm_core *core, const struct hm_request *request)
{
    HM_AUTO_PUT struct hm_region *region = hm_region_get(core, request->ino);
    struct fuse_attr_out out = {.attr.ino = request->ino, .attr.blksize = HM_PAGE_SIZE};
    const struct hm_region_record *record;
    int error = region ? hm_region_sync(core, request->ino) : -ESTALE;
    if (!error) {
        record = region->record;
        out.attr.size = hm_region_size(region);
        for (uint32_t node = 0; node < core->config.nodes; node++)
            out.attr.blocks += hm_region_pages(region, node) * (HM_PAGE_SIZE / 512);
        out.attr.mode = record->mode;
        out.attr.nlink = record->nlink;
        out.attr.uid = record->uid;
        out.attr.gid = record->gid;
        put_time(record->atime, &out.attr.atime, &out.attr.atimensec);
        put_time(record->mtime, &out.attr.mtime, &out.attr.mtimensec);
        put_time(record->ctime, &out.attr.ctime, &out.attr.ctimensec);
    }
    if (error)
        hm_reply(core, request->unique, -error, NULL, 0);
    else
        hm_reply_bytes(core, request->unique, &out, sizeof(out));
}

/* pyfuse3 has no handler for it, so the service gets it as an event. */
static void take_ioctl(struct hm_core *core, const struct hm_request *request)
{
    struct hm_event event = {.kind = HM_EVENT_IOCTL,
                             .cookie = request->unique,
                             .ino = request->ino,
                             .block = request->fh,
                             .first = request->mode,
                             .count = request->size,
                             .write = (uint32_t)request->length,
                             .reason = request->pid,
                             .node = request->uid};
    _Static_assert(HM_IOCTL_BYTES == sizeof(event.pages), "what an event can hold");
    if (request->ino >= FIRST_REGION_INO || request->flags || request->size > HM_IOCTL_BYTES) {
        hm_reply(core, request->unique, ENOTTY, NULL, 0);
        return;
    }
    memcpy(event.pages, request->data, request->size);
    hm_event_push(core, &event);
}

/* Whether a GETXATTR asks for a name that a file may have. */
static bool is_user_xattr(const uint8_t *message, size_t length)
{
    static const char prefix[] = "user.";
    size_t at = sizeof(struct fuse_in_header) + sizeof(struct fuse_getxattr_in);
    return length >= at + sizeof(prefix) && !memcmp(message + at, prefix, sizeof(prefix) - 1);
}

/* ls asks it of every file. False: it has some, or the question is odd. */
static bool answer_no_xattrs(struct hm_core *core, const struct hm_request *request,
                             const uint8_t *message, size_t length)
{
    HM_AUTO_PUT struct hm_region *region = hm_region_get(core, request->ino);
    struct fuse_getxattr_out out = {0};
    struct fuse_getxattr_in in;
    bool none = region && !__atomic_load_n(&region->record->attributes, __ATOMIC_RELAXED);
    if (!none || length != sizeof(struct fuse_in_header) + sizeof(in))
        return false;
    memcpy(&in, message + sizeof(struct fuse_in_header), sizeof(in));
    if (in.size)
        hm_reply(core, request->unique, 0, NULL, 0);
    else
        hm_reply_bytes(core, request->unique, &out, sizeof(out));
    return true;
}

/* With "now" the kernel sends the time of its last tick, which pyfuse3 would take: what is touched
 * would seem older than what was written before, up to 4 ms. Without, pyfuse3 looks at the clock.
 * Of a shared region the kernel moves the times, by its ticks, too. */
static void set_now(struct hm_core *core, uint64_t ino, uint8_t *message, size_t length)
{
    HM_AUTO_PUT struct hm_region *region = hm_region_get(core, ino);
    bool shared = region && hm_is_shared(region);
    uint8_t *at = message + sizeof(struct fuse_in_header) + offsetof(struct fuse_setattr_in, valid);
    uint32_t valid;
    if (shared || length < sizeof(struct fuse_in_header) + sizeof(struct fuse_setattr_in))
        return;
    memcpy(&valid, at, sizeof(valid));
    valid &= valid & FATTR_ATIME_NOW ? ~(uint32_t)FATTR_ATIME : UINT32_MAX;
    valid &= valid & FATTR_MTIME_NOW ? ~(uint32_t)FATTR_MTIME : UINT32_MAX;
    memcpy(at, &valid, sizeof(valid));
}

/* pyfuse3 gives a handler no flags of a READ: O_NONBLOCK is told by a bit of the offset, which no
 * file is long enough for. */
static void mark_nonblocking(uint8_t *message, const struct hm_request *request)
{
    uint64_t offset = request->offset | 1ULL << HM_READ_NONBLOCK;
    if (request->flags & O_NONBLOCK)
        memcpy(message + sizeof(struct fuse_in_header) + offsetof(struct fuse_read_in, offset),
               &offset, sizeof(offset));
}

/* What open(2) with O_TMPFILE sends is laid out as a CREATE, whose name is "/" then. libfuse does
 * not know it, so it goes on as one. */
static void make_create(uint8_t *message)
{
    uint32_t opcode = FUSE_CREATE;
    memcpy(message + offsetof(struct fuse_in_header, opcode), &opcode, sizeof(opcode));
}

static void dispatch(struct hm_core *core, uint8_t *message, size_t length)
{
    struct hm_request request;
    int error = hm_gate_parse(message, length, &request);
    if (error) {
        hm_reply(core, request.unique, -error, NULL, 0);
        return;
    }
    if (request.opcode == FUSE_INTERRUPT) {
        hm_relay_interrupt(core->relay, request.length);
        return;
    }
    if (request.opcode == FUSE_IOCTL) {
        take_ioctl(core, &request);
        return;
    }
    if (request.opcode == FUSE_GETXATTR && !is_user_xattr(message, length)) {
        /* The kernel asks for security.capability of every file that is written to, ls for labels
         * and access lists of each that it lists, until it hears that this file system has none. */
        hm_reply(core, request.unique, EOPNOTSUPP, NULL, 0);
        return;
    }
    if (request.ino >= FIRST_REGION_INO) {
        if (core->config.kind != HM_KIND_PRIVATE &&
            (request.opcode == FUSE_READ || request.opcode == FUSE_WRITE)) {
            hm_shared_access(core, &request, request.opcode == FUSE_WRITE);
            return;
        }
        if (core->config.kind != HM_KIND_PRIVATE && request.opcode == FUSE_COPY_FILE_RANGE) {
            hm_shared_copy(core, &request);
            return;
        }
        switch (request.opcode) {
        case FUSE_WRITE:
            hm_order_read(core, request.unique);
            hm_access(core, &request);
            return;
        case FUSE_READ:
            hm_access(core, &request);
            return;
        case FUSE_LSEEK:
            answer_seek(core, &request);
            return;
        case FUSE_FALLOCATE:
            hm_fallocate(core, &request);
            return;
        case FUSE_POLL:
            answer_poll(core, &request);
            return;
        case FUSE_GETATTR:
            answer_getattr(core, &request);
            return;
        case FUSE_LISTXATTR:
            if (answer_no_xattrs(core, &request, message, length))
                return;
            break;
        }
    }
    if (request.opcode == FUSE_SETATTR)
        set_now(core, request.ino, message, length);
    if (request.opcode == HM_FUSE_TMPFILE)
        make_create(message);
    /* pyfuse3 knows neither: its ENOSYS would end both for the whole mount. */
    if (request.opcode == FUSE_LSEEK || request.opcode == FUSE_FALLOCATE) {
        hm_reply(core, request.unique, request.opcode == FUSE_LSEEK ? EINVAL : EOPNOTSUPP, NULL, 0);
        return;
    }
    if (request.opcode == FUSE_READ)
        mark_nonblocking(message, &request);
    hm_relay_send(core->relay, message, length);
}

int hm_gate_retry(struct hm_core *core, uint64_t unique, int last)
{
    struct hm_parked *parked = hm_retry_begin(core, unique, last);
    if (!parked)
        return 0;
    if (parked->request.opcode == FUSE_FALLOCATE)
        hm_fallocate(core, &parked->request);
    else if (parked->request.opcode == FUSE_COPY_FILE_RANGE)
        hm_shared_copy(core, &parked->request);
    else if (core->config.kind == HM_KIND_PRIVATE)
        hm_access(core, &parked->request);
    else
        hm_shared_access(core, &parked->request, true);
    return hm_retry_end(core, parked);
}

/* ---- threads ------------------------------------------------------------------------------ */

/* With poll_us the descriptor is non-blocking and one thread spins before it blocks: waking an
 * idle virtual CPU takes longer than answering a fault. */
static ssize_t read_polling(struct hm_core *core, uint8_t *buffer)
{
    struct pollfd ready = {.fd = core->fuse_fd, .events = POLLIN};
    uint32_t nobody = 0;
    ssize_t n = read(core->fuse_fd, buffer, HM_REQUEST_BYTES);
    if (n >= 0 || errno != EAGAIN)
        return n;
    if (atomic_compare_exchange_strong(&core->spinner, &nobody, 1)) {
        uint64_t end = hm_now() + core->config.poll_us * 1000ULL;
        do {
            sched_yield();
            n = read(core->fuse_fd, buffer, HM_REQUEST_BYTES);
        } while (n < 0 && errno == EAGAIN && hm_now() < end);
        atomic_store(&core->spinner, 0);
        if (n >= 0 || errno != EAGAIN)
            return n;
    }
    if (poll(&ready, 1, -1) < 0 && errno != EINTR)
        return -1;
    return read(core->fuse_fd, buffer, HM_REQUEST_BYTES);
}

static void *gate_thread(void *arg)
{
    struct hm_gate_thread *self = arg;
    struct hm_core *core = self->core;
    struct hm_event closed = {.kind = HM_EVENT_CLOSED};
    /* So that the bytes of a WRITE begin with a page: the kernel copies page by page. */
    uint8_t *buffer = self->pages + HM_PAGE_SIZE - WRITE_HEADERS;
    while (!atomic_load(&core->leaving) || atomic_load(&core->invalidating)) {
        ssize_t n;
        atomic_store(&self->floor, atomic_load(&core->written_up_to));
        n = core->config.poll_us ? read_polling(core, buffer)
                                 : read(core->fuse_fd, buffer, HM_REQUEST_BYTES);
        if (n > 0)
            dispatch(core, buffer, (size_t)n);
        else if (n < 0 && errno != EINTR && errno != EAGAIN && errno != ENOENT)
            break; /* ENODEV: unmounted or aborted */
    }
    free(self->pages);
    atomic_store(&self->floor, UINT64_MAX);
    if (atomic_fetch_sub(&core->gate_running, 1) == 1)
        hm_event_push(core, &closed);
    return NULL;
}

int hm_gate_start(struct hm_core *core, int fuse_fd, int relay_fd)
{
    int error;
    if (core->gate)
        return -EBUSY;
    core->fuse_fd = fuse_fd;
    error = core->config.poll_us && fcntl(fuse_fd, F_SETFL, O_NONBLOCK) < 0 ? -errno : 0;
    if (!error)
        error = hm_relay_start(core, relay_fd, &core->relay);
    if (error) {
        close(relay_fd);
        return error;
    }
    core->gate = calloc(core->config.threads, sizeof(*core->gate));
    if (!core->gate)
        return -ENOMEM;
    for (uint32_t i = 0; i < core->config.threads; i++) {
        core->gate[i].core = core;
        core->gate[i].pages = aligned_alloc(HM_PAGE_SIZE, HM_PAGE_SIZE + HM_REQUEST_BYTES);
        atomic_fetch_add(&core->gate_running, 1);
        error = core->gate[i].pages
                    ? pthread_create(&core->gate[i].thread, NULL, gate_thread, &core->gate[i])
                    : ENOMEM;
        if (error) {
            free(core->gate[i].pages);
            atomic_fetch_sub(&core->gate_running, 1);
            for (; i < core->config.threads; i++)
                atomic_store(&core->gate[i].floor, UINT64_MAX);
            return core->gate_threads ? 0 : -error; /* fewer threads serve, too */
        }
        core->gate_threads++;
    }
    return 0;
}

static void wake_up(int number)
{
    (void)number;
}

/* The kernel aborts a connection when the last of its users of /dev/fuse goes, and a thread that
 * reads or invalidates is one. One that invalidates can wait for an answer of ours: those first. */
int hm_gate_leave(struct hm_core *core)
{
    /* Ignored where no handler is, so a late one does no harm. Without SA_RESTART read(2) ends. */
    struct sigaction action = {.sa_handler = wake_up}, before;
    uint64_t end = hm_now() + LEAVE_NS;
    int null = open("/dev/null", O_RDWR | O_CLOEXEC), error = 0;
    if (null < 0 || sigaction(SIGURG, &action, &before)) {
        error = -errno;
        goto out;
    }
    atomic_store(&core->leaving, true);
    while (atomic_load(&core->gate_running) && hm_now() < end) {
        for (uint32_t i = 0; i < core->gate_threads && !atomic_load(&core->invalidating); i++)
            pthread_kill(core->gate[i].thread, SIGURG);
        usleep(1000);
    }
    if (atomic_load(&core->gate_running))
        error = -ETIMEDOUT;
    else if (dup3(null, core->fuse_fd, O_CLOEXEC) < 0) /* late answers go there */
        error = -errno;
    sigaction(SIGURG, &before, NULL);
out:
    if (null >= 0)
        close(null);
    return error;
}

int hm_gate_join(struct hm_core *core)
{
    for (uint32_t i = 0; i < core->gate_threads; i++)
        pthread_join(core->gate[i].thread, NULL);
    core->gate_threads = 0;
    return 0;
}
