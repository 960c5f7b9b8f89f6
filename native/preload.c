/* What `hmmfs run` preloads into a program, so that its memory is the devices' too.
 *
 * It connects to the mount's daemon and hands over what preload.h says: a userfaultfd and the
 * memory of requests. Two threads then do what only the program itself can (helper.c). Whatever
 * fails costs one sentence on standard error, and the program runs on by itself.
 *
 * A fork is attached anew, by itself: threads do not survive a fork, and its memory is another. It
 * may be one of many threads, so nothing here takes a lock or allocates. A program that replaces
 * this one is attached by its own copy of this library; vfork and posix_spawn need nothing.
 *
 * It also stands before open, for the device files of the kernel's HMM tests; before mremap, for
 * pages that the daemon has registered split the kernel's mappings, which mremap does not cross;
 * and before what changes mappings or discards pages, which taking pages has to know of.
 */
#include "attach.h"
#include "helper.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#ifndef PR_SET_PTRACER
#define PR_SET_PTRACER 0x59616d61
#endif
#ifndef PR_GET_TID_ADDRESS
#define PR_GET_TID_ADDRESS 40
#endif
#ifndef UFFD_FEATURE_WP_UNPOPULATED
#define UFFD_FEATURE_WP_UNPOPULATED (1 << 13)
#endif
#ifndef UFFD_FEATURE_POISON
#define UFFD_FEATURE_POISON (1 << 14)
#endif
#ifndef PIDFD_THREAD
#define PIDFD_THREAD O_EXCL
#endif
#define FEATURES                                                                                   \
    (UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_EVENT_FORK | UFFD_FEATURE_EVENT_REMAP |         \
     UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_UNMAP | UFFD_FEATURE_THREAD_ID |               \
     UFFD_FEATURE_WP_UNPOPULATED | UFFD_FEATURE_POISON | UFFD_FEATURE_MOVE)
#ifndef UFFD_FEATURE_MOVE
#define UFFD_FEATURE_MOVE (1 << 16)
#endif
#define SCRATCH_BYTES ((uint64_t)HM_PRELOAD_SLOTS * HM_SCRATCH)
#define OWN_BYTES (SCRATCH_BYTES + HM_SCRATCH) /* to align it */
#define RSEQ_BYTES 32    /* what the kernel uses of it may be more than the library says */
#define LIMIT_SECONDS 5  /* for the daemon to answer */
#define LEAVE_SECONDS 60 /* and to bring all pages home */

/* Of the environment, which a program may change. */
static struct {
    struct sockaddr_un address;
    socklen_t address_length; /* 0: not under hmmfs run */
    uint64_t least;
    char directory[PATH_MAX];
} settings;

static uint32_t wipes;             /* as in the control memory; children inherit such mappings */
static struct hm_threads *threads; /* NULL: not attached */
static pid_t attached;             /* whose they are */
static char *own_memory;           /* OWN_BYTES that go with them */

/* ---- sentences ---------------------------------------------------------------------------- */

void hm_complain(const char *what, int error, const char *consequence)
{
    char line[512];
    const char *why = strerrordesc_np(error);
    const char *parts[] = {"hmmfs run: ", what,        " (", why ? why : "unknown error",
                           "): ",         consequence, ".\n"};
    size_t used = 0;
    for (size_t i = 0; i < sizeof(parts) / sizeof(*parts); i++)
        for (const char *c = parts[i]; *c && used < sizeof(line); c++)
            line[used++] = *c;
    (void)!write(STDERR_FILENO, line, used);
}

/* NULL also in a child that a system call made: it has not inherited them, and we were not told. */
static struct hm_threads *own_threads(void)
{
    struct hm_threads *ours = __atomic_load_n(&threads, __ATOMIC_RELAXED);
    return ours && attached == getpid() ? ours : NULL;
}

/* ---- attaching ---------------------------------------------------------------------------- */

struct attempt {
    int socket, uffd, memory, file;
    int uffd_error; /* why there is none; 0: there is */
    struct hm_threads *threads;
    struct hm_control *control;
    char *own;          /* HM_OWN bytes of address space, of which the scratch is used */
    const char *failed; /* at what */
};
#define NO_ATTEMPT                                                                                 \
    {                                                                                              \
        .socket = -1, .uffd = -1, .memory = -1, .file = -1                                         \
    }

/* Its abstract name can be taken by anybody once the daemon is gone. */
static int connect_daemon(struct attempt *attempt)
{
    struct timeval limit = {.tv_sec = LIMIT_SECONDS};
    struct ucred peer;
    socklen_t length = sizeof(peer);
    attempt->failed = "The daemon of its mount can't be reached";
    attempt->socket = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (attempt->socket < 0)
        return errno;
    setsockopt(attempt->socket, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
    setsockopt(attempt->socket, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
    while (connect(attempt->socket, (struct sockaddr *)&settings.address, settings.address_length) <
           0)
        if (errno != EINTR)
            return errno;
    if (getsockopt(attempt->socket, SOL_SOCKET, SO_PEERCRED, &peer, &length) < 0)
        return errno;
    attempt->failed = "The daemon of its mount is neither root's nor this user's";
    if (peer.uid != 0 && peer.uid != geteuid())
        return EPERM;
    prctl(PR_SET_PTRACER, (unsigned long)peer.pid, 0, 0, 0); /* where there is Yama */
    return 0;
}

static int open_uffd(int *ret)
{
    struct uffdio_api api = {.api = UFFD_API, .features = FEATURES};
    int uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK), error;
    if (uffd < 0)
        return errno;
    if (ioctl(uffd, UFFDIO_API, &api) < 0) {
        error = errno;
        close(uffd);
        return error;
    }
    *ret = uffd;
    return 0;
}

/* What the kernel uses of a thread: the list of robust mutexes, the number that it sets to 0 at the
 * thread's end, the area of restartable sequences. The C library keeps all three at the same
 * distances from each other for every thread. */
static void say_where_threads_are(struct hm_control *control)
{
    const ptrdiff_t *rseq = dlsym(RTLD_DEFAULT, "__rseq_offset");
    const unsigned *rseq_size = dlsym(RTLD_DEFAULT, "__rseq_size");
    uintptr_t head = 0, number = 0, low, high;
    size_t length = 0;
    if (syscall(SYS_get_robust_list, 0, &head, &length) < 0 || !head)
        return;
    low = head;
    high = head + length;
    prctl(PR_GET_TID_ADDRESS, &number, 0, 0, 0); /* 0: a kernel that doesn't tell */
    if (number && number < low)
        low = number;
    if (number && number + sizeof(pid_t) > high)
        high = number + sizeof(pid_t);
    if (rseq && rseq_size && *rseq_size) {
        uintptr_t area = (uintptr_t)__builtin_thread_pointer() + (uintptr_t)*rseq;
        size_t most = *rseq_size > RSEQ_BYTES ? *rseq_size : RSEQ_BYTES;
        low = area < low ? area : low;
        high = area + most > high ? area + most : high;
    }
    control->thread_before = (uint32_t)(head - low);
    control->thread_after = (uint32_t)(high - head);
}

/* Not for forks, of which each has its own. Guards are left where the stacks end. */
static int make_memory(struct attempt *attempt)
{
    struct hm_threads *made;
    attempt->failed = "There is no memory for talking to the daemon";
    made = mmap(NULL, sizeof(*made), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (made == MAP_FAILED)
        return errno;
    attempt->threads = made;
    if (madvise(made, sizeof(*made), MADV_DONTFORK) < 0 ||
        mprotect(made->guard0, HM_PART, PROT_NONE) < 0 ||
        mprotect(made->guard1, HM_PART, PROT_NONE) < 0)
        return errno;
    attempt->own = mmap(NULL, OWN_BYTES, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (attempt->own == MAP_FAILED) {
        attempt->own = NULL;
        return errno;
    }
    if (madvise(attempt->own, OWN_BYTES, MADV_DONTFORK) < 0)
        return errno;
    attempt->memory = memfd_create("hmmfs-run", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (attempt->memory < 0 || ftruncate(attempt->memory, sizeof(struct hm_control)) < 0 ||
        fcntl(attempt->memory, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0)
        return errno;
    attempt->control = mmap(NULL, sizeof(struct hm_control), PROT_READ | PROT_WRITE, MAP_SHARED,
                            attempt->memory, 0);
    if (attempt->control == MAP_FAILED) {
        attempt->control = NULL;
        return errno;
    }
    attempt->control->wipes = wipes;
    say_where_threads_are(attempt->control);
    return madvise(attempt->control, sizeof(struct hm_control), MADV_DONTFORK) < 0 ? errno : 0;
}

static uint64_t scratch(const struct attempt *attempt)
{
    return ((uintptr_t)attempt->own + HM_SCRATCH - 1) / HM_SCRATCH * HM_SCRATCH;
}

static int send_hello(const struct attempt *attempt)
{
    bool migrates = attempt->uffd >= 0;
    struct hm_hello hello = {.magic = HM_PRELOAD_MAGIC,
                             .version = HM_PRELOAD_VERSION,
                             .flags = migrates ? HM_HELLO_MIGRATES : 0,
                             .least = settings.least,
                             .own = (uintptr_t)attempt->own,
                             .own_bytes = OWN_BYTES,
                             .scratch = scratch(attempt)};
    int fds[2] = {attempt->memory, attempt->uffd};
    size_t bytes = migrates ? sizeof(fds) : sizeof(*fds);
    _Alignas(struct cmsghdr) char space[CMSG_SPACE(sizeof(fds))] = {0};
    struct iovec part = {&hello, sizeof(hello)};
    struct msghdr message = {.msg_iov = &part,
                             .msg_iovlen = 1,
                             .msg_control = space,
                             .msg_controllen = CMSG_SPACE(bytes)};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(bytes);
    memcpy(CMSG_DATA(header), fds, bytes);
    while (sendmsg(attempt->socket, &message, MSG_NOSIGNAL) < 0)
        if (errno != EINTR)
            return errno == EPIPE ? 0 : errno; /* it has refused already, and says why */
    return 0;
}

/* A welcome, and a descriptor that may come with it. What a refusal's sender did not read is a
 * reset, once, before the refusal. */
static ssize_t receive(int socket, struct hm_welcome *welcome, int *fd)
{
    _Alignas(struct cmsghdr) char space[CMSG_SPACE(sizeof(*fd))];
    struct iovec part = {welcome, sizeof(*welcome)};
    struct msghdr message;
    struct cmsghdr *header;
    bool reset = false;
    ssize_t n;
    for (;;) {
        message = (struct msghdr){.msg_iov = &part,
                                  .msg_iovlen = 1,
                                  .msg_control = space,
                                  .msg_controllen = sizeof(space)};
        n = recvmsg(socket, &message, MSG_TRUNC | MSG_CMSG_CLOEXEC);
        if (n >= 0)
            break;
        if (errno != EINTR && (errno != ECONNRESET || reset))
            return -1;
        reset |= errno == ECONNRESET;
    }
    header = CMSG_FIRSTHDR(&message);
    if (header && header->cmsg_level == SOL_SOCKET && header->cmsg_type == SCM_RIGHTS)
        memcpy(fd, CMSG_DATA(header), sizeof(*fd));
    return n;
}

static int greet(struct attempt *attempt)
{
    struct timeval none = {0};
    struct hm_welcome welcome;
    ssize_t n;
    int error;
    attempt->failed = "The daemon of its mount did not answer";
    error = send_hello(attempt);
    if (error)
        return error;
    n = receive(attempt->socket, &welcome, &attempt->file);
    if (n < 0)
        return errno == EAGAIN ? ETIMEDOUT : errno;
    if (n == 0)
        return ECONNRESET;
    attempt->failed = "The daemon of its mount speaks another language: run the same hmmfs";
    if (n != sizeof(welcome) || (!welcome.error && welcome.version != HM_PRELOAD_VERSION))
        return EPROTO;
    attempt->failed = "The daemon of its mount refused it";
    setsockopt(attempt->socket, SOL_SOCKET, SO_RCVTIMEO, &none, sizeof(none));
    return welcome.error < 0 ? -welcome.error : welcome.error;
}

static int start_threads(struct attempt *attempt)
{
    struct hm_link *link = &attempt->threads->link;
    attempt->failed = "No thread can be started for the daemon's requests";
    link->control = attempt->control;
    link->socket = attempt->socket;
    link->uffd = attempt->uffd;
    link->scratch = scratch(attempt);
    link->page = (uint64_t)sysconf(_SC_PAGESIZE);
    return -hm_helper_start(attempt->threads);
}

static void close_one(int fd)
{
    if (fd >= 0)
        close(fd);
}

/* True: the program is attached; false: it was said why not. */
static bool attach(struct attempt *attempt)
{
    int error = connect_daemon(attempt);
    if (!error)
        attempt->uffd_error = open_uffd(&attempt->uffd);
    if (!error)
        error = make_memory(attempt);
    if (!error)
        error = greet(attempt);
    if (!error)
        error = start_threads(attempt);
    close_one(attempt->socket); /* the threads have their own of all these */
    close_one(attempt->uffd);
    close_one(attempt->memory);
    if (!error)
        hm_map_for_dumps(attempt->file);
    close_one(attempt->file);
    if (!error) {
        attached = getpid();
        own_memory = attempt->own;
        threads = attempt->threads;
        return true;
    }
    if (attempt->threads)
        munmap(attempt->threads, sizeof(*attempt->threads));
    if (attempt->control)
        munmap(attempt->control, sizeof(*attempt->control));
    if (attempt->own)
        munmap(attempt->own, OWN_BYTES);
    hm_complain(attempt->failed, error, "the program runs on without devices");
    return false;
}

/* ---- leaving, and coming back --------------------------------------------------------------- */

bool hm_has_only_ours(void)
{
    struct hm_threads *ours = own_threads();
    struct stat tasks;
    nlink_t known = 3; /* of the directory itself: two links, and one for each thread */
    if (!ours)
        return false;
    known += 1 + (ours->link.guard > 0);
    return stat("/proc/self/task", &tasks) < 0 || tasks.st_nlink == known;
}

static int say_goodbye(struct attempt *attempt)
{
    struct hm_hello hello = {
        .magic = HM_PRELOAD_MAGIC, .version = HM_PRELOAD_VERSION, .flags = HM_HELLO_LEAVES};
    struct timeval limit = {.tv_sec = LEAVE_SECONDS};
    struct hm_welcome welcome;
    int error = connect_daemon(attempt);
    if (error)
        return error;
    setsockopt(attempt->socket, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
    if (send(attempt->socket, &hello, sizeof(hello), MSG_NOSIGNAL) < 0)
        return errno;
    if (receive(attempt->socket, &welcome, &attempt->file) != sizeof(welcome))
        return EPROTO;
    return welcome.error;
}

static bool has_ended(int thread)
{
    return thread <= 0 || (syscall(SYS_tgkill, getpid(), thread, 0) < 0 && errno == ESRCH);
}

bool hm_leave(void)
{
    struct attempt attempt = NO_ATTEMPT;
    struct hm_threads *ours = own_threads();
    struct hm_control *control = ours ? ours->link.control : NULL;
    struct timespec step = {.tv_nsec = 100000};
    int tries = LEAVE_SECONDS * 10000, error;
    if (!ours)
        return false;
    error = say_goodbye(&attempt);
    close_one(attempt.socket);
    if (error)
        return false;
    while (!(has_ended((int)control->helper) && has_ended(ours->link.guard)) && tries--)
        nanosleep(&step, NULL);
    if (tries < 0)
        return false;
    threads = NULL;
    munmap(ours, sizeof(*ours));
    munmap(control, sizeof(*control));
    munmap(own_memory, OWN_BYTES);
    hm_unmap_for_dumps();
    return true;
}

void hm_attach(void)
{
    struct attempt attempt = NO_ATTEMPT;
    if (attach(&attempt) && attempt.uffd_error)
        hm_complain("Devices can read and write its memory but not migrate it", attempt.uffd_error,
                    "that takes root or CAP_SYS_PTRACE, and Linux 6.8 or later");
}

static void attach_child(void)
{
    struct attempt attempt = NO_ATTEMPT;
    int kept = errno;
    if (threads) {
        threads = NULL; /* it has not been inherited */
        attach(&attempt);
    }
    errno = kept;
}

/* Forks of a program that has lost its daemon are not attached, and say nothing. */
static void before_fork(void)
{
    struct hm_threads *ours = own_threads();
    if (ours && __atomic_load_n(&ours->link.gone, __ATOMIC_ACQUIRE))
        __atomic_store_n(&threads, NULL, __ATOMIC_RELAXED);
}

/* False: the program is not under hmmfs run. */
static bool read_settings(void)
{
    const char *name = getenv("HMMFS_SOCKET"), *least = getenv("HMMFS_LEAST");
    const char *directory = getenv("HMMFS_DIR");
    size_t length = name ? strlen(name) : 0;
    if (!length)
        return false;
    if (length >= sizeof(settings.address.sun_path)) {
        hm_complain("HMMFS_SOCKET names no socket", ENAMETOOLONG,
                    "the program runs on without devices");
        return false;
    }
    settings.address.sun_family = AF_UNIX;
    memcpy(settings.address.sun_path + 1, name, length);
    settings.address_length = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + length);
    settings.least = least ? strtoull(least, NULL, 10) : 0;
    if (directory && strlen(directory) < sizeof(settings.directory))
        strcpy(settings.directory, directory);
    return true;
}

/* ---- before the C library's functions ----------------------------------------------------- */

/* Looked up in the constructor, and by whoever is even before that. */
static void *real(void **found, const char *name)
{
    void *function = __atomic_load_n(found, __ATOMIC_RELAXED);
    if (!function) {
        function = dlsym(RTLD_NEXT, name);
        __atomic_store_n(found, function, __ATOMIC_RELAXED);
    }
    return function;
}

/* Where a path leads here: the mount's file for a device file of the kernel's HMM tests, which is
 * /dev/hmm_dmirror and a number. */
static const char *redirected(const char *path, char room[PATH_MAX])
{
    static const char prefix[] = "/dev/hmm_dmirror";
    const char *number;
    size_t digits;
    __asm__("" : "+r"(path)); /* headers say that nobody gives NULL */
    if (!path || !settings.directory[0] || strncmp(path, prefix, sizeof(prefix) - 1) != 0)
        return path;
    number = path + sizeof(prefix) - 1;
    digits = strspn(number, "0123456789");
    if (!digits || number[digits] || (number[0] == '0' && digits > 1))
        return path;
    if (snprintf(room, PATH_MAX, "%s/devices/dev%s/dmirror", settings.directory, number) >=
        PATH_MAX)
        return path;
    return room;
}

#define MODE_OF(flags, mode)                                                                       \
    do {                                                                                           \
        if ((flags)&O_CREAT || ((flags)&O_TMPFILE) == O_TMPFILE) {                                 \
            va_list rest;                                                                          \
            va_start(rest, flags);                                                                 \
            mode = va_arg(rest, mode_t);                                                           \
            va_end(rest);                                                                          \
        }                                                                                          \
    } while (0)

#define STAND_BEFORE_OPEN(name)                                                                    \
    static void *real_##name;                                                                      \
    EXPORTED int name(const char *path, int flags, ...)                                            \
    {                                                                                              \
        char room[PATH_MAX];                                                                       \
        int (*next)(const char *, int, ...) = real(&real_##name, #name);                           \
        mode_t mode = 0;                                                                           \
        MODE_OF(flags, mode);                                                                      \
        return next(redirected(path, room), flags, mode);                                          \
    }

#define STAND_BEFORE_OPENAT(name)                                                                  \
    static void *real_##name;                                                                      \
    EXPORTED int name(int directory, const char *path, int flags, ...)                             \
    {                                                                                              \
        char room[PATH_MAX];                                                                       \
        int (*next)(int, const char *, int, ...) = real(&real_##name, #name);                      \
        mode_t mode = 0;                                                                           \
        MODE_OF(flags, mode);                                                                      \
        return next(directory, redirected(path, room), flags, mode);                               \
    }

/* What open is with _FORTIFY_SOURCE. */
#define STAND_BEFORE_OPEN_2(name)                                                                  \
    static void *real_##name;                                                                      \
    EXPORTED int name(const char *path, int flags);                                                \
    int name(const char *path, int flags)                                                          \
    {                                                                                              \
        char room[PATH_MAX];                                                                       \
        int (*next)(const char *, int) = real(&real_##name, #name);                                \
        return next(redirected(path, room), flags);                                                \
    }

#define STAND_BEFORE_OPENAT_2(name)                                                                \
    static void *real_##name;                                                                      \
    EXPORTED int name(int directory, const char *path, int flags);                                 \
    int name(int directory, const char *path, int flags)                                           \
    {                                                                                              \
        char room[PATH_MAX];                                                                       \
        int (*next)(int, const char *, int) = real(&real_##name, #name);                           \
        return next(directory, redirected(path, room), flags);                                     \
    }

STAND_BEFORE_OPEN(open)
STAND_BEFORE_OPEN(open64)
STAND_BEFORE_OPENAT(openat)
STAND_BEFORE_OPENAT(openat64)
STAND_BEFORE_OPEN_2(__open_2)
STAND_BEFORE_OPEN_2(__open64_2)
STAND_BEFORE_OPENAT_2(__openat_2)
STAND_BEFORE_OPENAT_2(__openat64_2)

/* The userfaultfd is in the threads' table: have it for a moment. Before Linux 6.9 that can't be
 * had, and the range stays in pieces. */
static int borrow_uffd(const struct hm_link *link)
{
    int thread = (int)syscall(SYS_pidfd_open, link->guard, PIDFD_THREAD), uffd;
    if (thread < 0)
        return -1;
    uffd = (int)syscall(SYS_pidfd_getfd, thread, link->uffd, 0);
    close(thread);
    return uffd;
}

/* Have all of a range registered alike, so that it is one mapping to the kernel. */
static bool join(void *address, size_t length)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    struct uffdio_register request = {
        .range = {(uint64_t)(uintptr_t)address, (length + page - 1) & ~(page - 1)},
        .mode = UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP};
    struct hm_threads *ours = own_threads();
    int uffd, error;
    if (!ours || ours->link.uffd < 0 || !length)
        return false;
    uffd = borrow_uffd(&ours->link);
    if (uffd < 0)
        return false;
    error = ioctl(uffd, UFFDIO_REGISTER, &request);
    close(uffd);
    return error == 0;
}

/* The helper may be about to drop pages of a mapping, and the kernel would drop what replaces it.
 * It takes some 20 us, and not longer than the daemon needs to read an event. errno stays. NULL:
 * there is none. */
static struct hm_control *begin_change(void)
{
    struct hm_threads *ours = own_threads();
    struct timespec most = {.tv_sec = 1};
    int kept = errno;
    if (!ours || ours->link.uffd < 0)
        return NULL;
    __atomic_add_fetch(&ours->link.control->changes_begun, 1, __ATOMIC_SEQ_CST);
    for (int tries = 0; tries < 3 && __atomic_load_n(&ours->link.dropping, __ATOMIC_SEQ_CST);
         tries++)
        syscall(SYS_futex, &ours->link.dropping, FUTEX_WAIT, 1, &most, NULL, 0);
    errno = kept;
    return ours->link.control;
}

static void end_change(struct hm_control *control)
{
    if (control)
        __atomic_add_fetch(&control->changes_ended, 1, __ATOMIC_SEQ_CST);
}

/* Whoever allocates before the constructor has run may do so by these: nothing is looked up. */
static void *real_mmap, *real_munmap;

static void *map(void *address, size_t length, int protection, int flags, int fd, off64_t offset)
{
    void *(*next)(void *, size_t, int, int, int, off64_t) =
        __atomic_load_n(&real_mmap, __ATOMIC_RELAXED);
    struct hm_control *change = flags & MAP_FIXED ? begin_change() : NULL;
    void *result;
    if (next)
        result = next(address, length, protection, flags, fd, offset);
    else
        result = (void *)syscall(SYS_mmap, address, length, protection, flags, fd, offset);
    end_change(change);
    return result;
}

EXPORTED void *mmap(void *address, size_t length, int protection, int flags, int fd, off_t offset)
{
    return map(address, length, protection, flags, fd, offset);
}

EXPORTED void *mmap64(void *address, size_t length, int protection, int flags, int fd,
                      off64_t offset)
{
    return map(address, length, protection, flags, fd, offset);
}

EXPORTED int munmap(void *address, size_t length)
{
    int (*next)(void *, size_t) = __atomic_load_n(&real_munmap, __ATOMIC_RELAXED);
    struct hm_control *change = begin_change();
    int result = next ? next(address, length) : (int)syscall(SYS_munmap, address, length);
    end_change(change);
    return result;
}

static void *real_mremap;

/* From Linux 6.17 on a move of all of a range goes mapping by mapping, and stops at one that is
 * registered: what went before it has gone, and a second try would put what is left in its place.
 */
static bool moves_in_parts(size_t length, size_t wanted, int flags)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    return flags & MREMAP_FIXED && (length + page - 1) / page == (wanted + page - 1) / page;
}

static void *remap(void *address, size_t length, size_t wanted, int flags, void *to)
{
    void *(*next)(void *, size_t, size_t, int, ...) = real(&real_mremap, "mremap");
    int kept = errno;
    void *result;
    if (moves_in_parts(length, wanted, flags)) {
        join(address, length);
        errno = kept;
        return next(address, length, wanted, flags, to);
    }
    result = next(address, length, wanted, flags, to);
    if (result != MAP_FAILED || errno != EFAULT)
        return result;
    if (join(address, length)) {
        errno = kept;
        return next(address, length, wanted, flags, to);
    }
    errno = EFAULT;
    return MAP_FAILED;
}

EXPORTED void *mremap(void *address, size_t length, size_t wanted, int flags, ...)
{
    struct hm_control *change;
    void *to, *result;
    va_list rest;
    va_start(rest, flags);
    to = va_arg(rest, void *);
    va_end(rest);
    change = begin_change();
    result = remap(address, length, wanted, flags, to);
    end_change(change);
    return result;
}

static void *real_madvise;

/* What headers lack: Linux 5.18, 6.13. */
enum { DONTNEED_LOCKED = 24, GUARD_INSTALL = 102 };

/* An entry for a range that is being discarded; NULL: there is none, so it is as if nobody told. */
static struct hm_discarding *announce(uint64_t start, uint64_t end)
{
    struct hm_threads *ours = own_threads();
    struct hm_discarding *all =
        ours && ours->link.uffd >= 0 ? ours->link.control->discarding : NULL;
    for (int i = 0; all && i < HM_PRELOAD_DISCARDS; i++) {
        uint64_t nothing = 0;
        if (!__atomic_compare_exchange_n(&all[i].start, &nothing, 1, false, __ATOMIC_SEQ_CST,
                                         __ATOMIC_RELAXED))
            continue;
        __atomic_store_n(&all[i].end, end, __ATOMIC_RELAXED);
        __atomic_store_n(&all[i].start, start, __ATOMIC_SEQ_CST);
        return &all[i];
    }
    return NULL;
}

/* The kernel tells the daemon nothing of guards: so the pages are discarded, too, which it does
 * tell. One of them may come home, over its guard, until then. */
static void tell_of_guards(int (*next)(void *, size_t, int), void *address, size_t length)
{
    int kept = errno;
    next(address, length, DONTNEED_LOCKED);
    next(address, length, GUARD_INSTALL);
    errno = kept;
}

/* The daemon gives each child what devices have, but for such mappings; it looks for them only if
 * there may be any, which takes long. */
static void tell_of_wiping(void)
{
    struct hm_threads *ours = own_threads();
    __atomic_store_n(&wipes, 1, __ATOMIC_RELAXED);
    if (ours)
        __atomic_store_n(&ours->link.control->wipes, 1, __ATOMIC_SEQ_CST);
}

/* The kernel tells the daemon of a discard before it does it, and not when it has. */
EXPORTED int madvise(void *address, size_t length, int advice)
{
    int (*next)(void *, size_t, int) = real(&real_madvise, "madvise");
    bool discards = advice == MADV_DONTNEED || advice == MADV_FREE || advice == MADV_REMOVE ||
                    advice == DONTNEED_LOCKED || advice == GUARD_INSTALL;
    uint64_t start = (uint64_t)(uintptr_t)address, page = (uint64_t)sysconf(_SC_PAGESIZE);
    struct hm_discarding *entry = NULL;
    int result;
    if (advice == MADV_WIPEONFORK)
        tell_of_wiping();
    if (discards && start && length)
        entry = announce(start, (start + length + page - 1) & ~(page - 1));
    result = next(address, length, advice);
    /* ENOMEM: all is a guard that there is between holes. */
    if (advice == GUARD_INSTALL && (!result || errno == ENOMEM) && own_threads())
        tell_of_guards(next, address, length);
    if (entry)
        __atomic_store_n(&entry->start, 0, __ATOMIC_SEQ_CST);
    return result;
}

/* ---- the constructor ---------------------------------------------------------------------- */

static void find_real(void)
{
    real(&real_open, "open");
    real(&real_open64, "open64");
    real(&real_openat, "openat");
    real(&real_openat64, "openat64");
    real(&real___open_2, "__open_2");
    real(&real___open64_2, "__open64_2");
    real(&real___openat_2, "__openat_2");
    real(&real___openat64_2, "__openat64_2");
    real(&real_mremap, "mremap");
    real(&real_madvise, "madvise");
    real(&real_mmap, "mmap");
    real(&real_munmap, "munmap");
}

__attribute__((constructor)) static void begin(void)
{
    int kept = errno;
    find_real();
    if (read_settings() && hm_can_attach()) {
        hm_attach();
        pthread_atfork(before_fork, NULL, attach_child);
    }
    errno = kept;
}
