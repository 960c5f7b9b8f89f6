/* A program is attached: it connects to the mount's daemon and hands over what preload.h says, a
 * userfaultfd and the memory of requests. Whatever fails costs one sentence on standard error, and
 * the program runs on by itself.
 *
 * A fork is attached anew, by itself: threads do not survive a fork, and its memory is another. It
 * may be one of many threads, so nothing here takes a lock or allocates. A program that replaces
 * this one is attached by its own copy of this library; vfork and posix_spawn need nothing. */
#include "preload/attach.h"

#include "preload/complain.h"
#include "preload/dump_pages.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/userfaultfd.h>
#include <stddef.h>
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

/* NULL also in a child that a system call made: it has not inherited them, and we were not told. */
struct hm_threads *hm_own_threads(void)
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
    char *own;          /* HM_OWN bytes of address space; the scratch is used */
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

/* Not for forks: each has its own. Guards are left where the stacks end. */
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
    attempt->failed = "The daemon of its mount speaks another language. Run the same hmmfs";
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
    struct hm_threads *ours = hm_own_threads();
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
    struct hm_threads *ours = hm_own_threads();
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

void hm_attach_child(void)
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
void hm_before_fork(void)
{
    struct hm_threads *ours = hm_own_threads();
    if (ours && __atomic_load_n(&ours->link.gone, __ATOMIC_ACQUIRE))
        __atomic_store_n(&threads, NULL, __ATOMIC_RELAXED);
}

bool hm_read_settings(void)
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

void hm_tell_of_wiping(void)
{
    struct hm_threads *ours = hm_own_threads();
    __atomic_store_n(&wipes, 1, __ATOMIC_RELAXED);
    if (ours)
        __atomic_store_n(&ours->link.control->wipes, 1, __ATOMIC_SEQ_CST);
}

const char *hm_mount_directory(void)
{
    return settings.directory;
}
