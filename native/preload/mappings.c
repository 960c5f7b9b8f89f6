/* Before what changes mappings or discards pages: taking pages has to know of it. And before
 * mremap, for pages that the daemon has registered split the kernel's mappings, which mremap does
 * not cross. */
#include "preload/mappings.h"

#include "preload/attach.h"
#include "preload/exported.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <linux/userfaultfd.h>
#include <stdarg.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#ifndef PIDFD_THREAD
#define PIDFD_THREAD O_EXCL
#endif

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
    struct hm_threads *ours = hm_own_threads();
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
    struct hm_threads *ours = hm_own_threads();
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

/* What allocates before the constructor has run may do so by these: nothing is looked up. */
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
    void *(*next)(void *, size_t, size_t, int, ...) = hm_real(&real_mremap, "mremap");
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
    struct hm_threads *ours = hm_own_threads();
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

/* The kernel tells the daemon of a discard before it does it, and not when it has. */
EXPORTED int madvise(void *address, size_t length, int advice)
{
    int (*next)(void *, size_t, int) = hm_real(&real_madvise, "madvise");
    bool discards = advice == MADV_DONTNEED || advice == MADV_FREE || advice == MADV_REMOVE ||
                    advice == DONTNEED_LOCKED || advice == GUARD_INSTALL;
    uint64_t start = (uint64_t)(uintptr_t)address, page = (uint64_t)sysconf(_SC_PAGESIZE);
    struct hm_discarding *entry = NULL;
    int result;
    if (advice == MADV_WIPEONFORK)
        hm_tell_of_wiping();
    if (discards && start && length)
        entry = announce(start, (start + length + page - 1) & ~(page - 1));
    result = next(address, length, advice);
    /* ENOMEM: all is a guard that there is between holes. */
    if (advice == GUARD_INSTALL && (!result || errno == ENOMEM) && hm_own_threads())
        tell_of_guards(next, address, length);
    if (entry)
        __atomic_store_n(&entry->start, 0, __ATOMIC_SEQ_CST);
    return result;
}

void hm_mappings_find(void)
{
    hm_real(&real_mremap, "mremap");
    hm_real(&real_madvise, "madvise");
    hm_real(&real_mmap, "mmap");
    hm_real(&real_munmap, "munmap");
}
