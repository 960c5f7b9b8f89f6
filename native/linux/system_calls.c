#include "linux/system_calls.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

/* The same numbers on every architecture: they came after the tables were merged, and after the
 * oldest headers that this is built with. */
#define SYS_FSOPEN 430
#define SYS_FSCONFIG 431
#define SYS_FSMOUNT 432
#define FSCONFIG_STRING 1
#define FSCONFIG_CREATE 6
#define FS_CLOEXEC 1
#define USER_MODE_ONLY 1 /* UFFD_USER_MODE_ONLY, of Linux 5.11 */

int hm_mount(const char *source, const char *target, const char *kind, unsigned long flags,
             const char *data)
{
    return mount(source, target, kind, flags, data) < 0 ? -errno : 0;
}

int hm_umount(const char *target, int flags)
{
    return umount2(target, flags | UMOUNT_NOFOLLOW) < 0 ? -errno : 0;
}

int hm_signal_on_parent_death(int number)
{
    return prctl(PR_SET_PDEATHSIG, (unsigned long)number) < 0 ? -errno : 0;
}

int hm_name_process(const char *name)
{
    char cut[16] = {0};
    strncpy(cut, name, sizeof(cut) - 1);
    return prctl(PR_SET_NAME, cut) < 0 ? -errno : 0;
}

static int configure(int context, const char *const *names, const char *const *values, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (syscall(SYS_FSCONFIG, context, FSCONFIG_STRING, names[i], values[i], 0) < 0)
            return -errno;
    return syscall(SYS_FSCONFIG, context, FSCONFIG_CREATE, NULL, NULL, 0) < 0 ? -errno : 0;
}

int hm_detached_mount(const char *kind, const char *const *names, const char *const *values,
                      size_t count)
{
    int context = (int)syscall(SYS_FSOPEN, kind, FS_CLOEXEC), result;
    if (context < 0)
        return -errno;
    result = configure(context, names, values, count);
    if (!result) {
        result = (int)syscall(SYS_FSMOUNT, context, FS_CLOEXEC, 0);
        result = result < 0 ? -errno : result;
    }
    close(context);
    return result;
}

int hm_userfaultfd(void)
{
    struct uffdio_api api = {.api = UFFD_API, .features = UFFD_FEATURE_PAGEFAULT_FLAG_WP};
    int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK), error;
    if (fd < 0)
        fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | USER_MODE_ONLY);
    if (fd < 0)
        return -errno;
    if (ioctl(fd, UFFDIO_API, &api) < 0) {
        error = -errno;
        close(fd);
        return error;
    }
    return fd;
}

int hm_window_map(int pool, uint64_t size, int uffd, uint64_t *address)
{
    void *window = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, pool, 0);
    struct uffdio_register range = {
        {(uintptr_t)window, size}, UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP, 0};
    if (window == MAP_FAILED)
        return -errno;
    /* A child of a kernel would read zeros where we fault, and a huge page would hide faults. */
    madvise(window, size, MADV_DONTFORK);
    madvise(window, size, MADV_NOHUGEPAGE);
    if (uffd >= 0 && ioctl(uffd, UFFDIO_REGISTER, &range) < 0) {
        int error = -errno;
        munmap(window, size);
        return error;
    }
    *address = (uintptr_t)window;
    return 0;
}

int hm_window_unmap(uint64_t address, uint64_t size)
{
    return munmap((void *)(uintptr_t)address, size) < 0 ? -errno : 0;
}

int64_t hm_copy_memory(int pid, uint64_t address, void *buffer, size_t length, int store)
{
    struct iovec here = {buffer, length}, there = {(void *)(uintptr_t)address, length};
    ssize_t n = store ? process_vm_writev(pid, &here, 1, &there, 1, 0)
                      : process_vm_readv(pid, &here, 1, &there, 1, 0);
    return n < 0 ? -errno : n ? n : -EFAULT;
}
