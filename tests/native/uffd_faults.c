/* Calls on a userfaultfd that fail as the kernel may have them fail: EAGAIN while the worker's
 * mappings change, EINTR, and for a copy no memory, which leaves it to the pool. Linked with
 * --wrap=ioctl beside device.c. */
#include <errno.h>
#include <linux/userfaultfd.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>

int __real_ioctl(int fd, unsigned long request, ...);
int __wrap_ioctl(int fd, unsigned long request, ...);

static _Atomic uint64_t calls, failed;

static void tell(void)
{
    printf("failed %llu of %llu\n", (unsigned long long)failed, (unsigned long long)calls);
}

__attribute__((constructor)) static void begin(void)
{
    atexit(tell);
}

static int fail(int error)
{
    atomic_fetch_add(&failed, 1);
    errno = error;
    return -1;
}

int __wrap_ioctl(int fd, unsigned long request, ...)
{
    uint64_t chance;
    va_list list;
    void *argument;
    va_start(list, request);
    argument = va_arg(list, void *);
    va_end(list);
    if (request != UFFDIO_COPY && request != UFFDIO_WRITEPROTECT && request != UFFDIO_WAKE)
        return __real_ioctl(fd, request, argument);
    chance = atomic_fetch_add(&calls, 1) * 0x9e3779b97f4a7c15ULL >> 40;
    if (request == UFFDIO_COPY && chance % 4 == 0)
        return fail(ENOMEM);
    if (chance % 4 < 2)
        return fail(chance & 8 ? EAGAIN : EINTR);
    return __real_ioctl(fd, request, argument);
}
