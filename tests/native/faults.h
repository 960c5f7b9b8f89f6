/* System calls that fail, or do less than they were asked for, by a seed: for coroutines.h. Linked
 * with --wrap for each function below that begins with __wrap_.
 *
 * What every caller has to make good by itself (a signal, a part of the bytes) may come at any
 * call; of a call that may fail for good, the errors it has. A punch is not among these: a pool
 * that keeps what was punched is for the audit to tell. */
#ifndef FAULTS_H
#define FAULTS_H
#include "coroutines.h"

#include <fcntl.h>
#include <sys/mman.h>

enum faults { NO_FAULTS, MADE_GOOD, ERRORS };

static enum faults faults;
static uint64_t faults_chance;
static bool failed_once; /* an error was given, so an operation may fail */

/* One in so many, while a task of the core runs. */
static bool one_in(uint32_t n)
{
    if (!current || faults == NO_FAULTS)
        return false;
    faults_chance = faults_chance * 6364136223846793005ULL + 1442695040888963407ULL;
    return (faults_chance >> 33) % n == 0;
}

static bool interrupts(void)
{
    if (!one_in(4))
        return false;
    errno = EINTR;
    return true;
}

static bool fails_for_good(int error)
{
    if (faults != ERRORS || !one_in(8))
        return false;
    failed_once = true;
    errno = error;
    return true;
}

static size_t part_of_it(size_t length)
{
    return length > 1 && one_in(3) ? 1 + length / 64 : length;
}

ssize_t __real_pwrite(int fd, const void *bytes, size_t length, off_t offset);
ssize_t __wrap_pwrite(int fd, const void *bytes, size_t length, off_t offset);
ssize_t __wrap_pwrite(int fd, const void *bytes, size_t length, off_t offset)
{
    if (interrupts() || fails_for_good(ENOSPC))
        return -1;
    return __real_pwrite(fd, bytes, part_of_it(length), offset);
}

ssize_t __real_pread(int fd, void *bytes, size_t length, off_t offset);
ssize_t __wrap_pread(int fd, void *bytes, size_t length, off_t offset);
ssize_t __wrap_pread(int fd, void *bytes, size_t length, off_t offset)
{
    return interrupts() ? -1 : __real_pread(fd, bytes, part_of_it(length), offset);
}

ssize_t __real_copy_file_range(int from, off_t *in, int to, off_t *out, size_t length,
                               unsigned int flags);
ssize_t __wrap_copy_file_range(int from, off_t *in, int to, off_t *out, size_t length,
                               unsigned int flags);
ssize_t __wrap_copy_file_range(int from, off_t *in, int to, off_t *out, size_t length,
                               unsigned int flags)
{
    if (interrupts() || fails_for_good(ENOSPC))
        return -1;
    return __real_copy_file_range(from, in, to, out, part_of_it(length), flags);
}

int __real_fallocate(int fd, int mode, off_t offset, off_t length);
int __wrap_fallocate(int fd, int mode, off_t offset, off_t length);
int __wrap_fallocate(int fd, int mode, off_t offset, off_t length)
{
    if (interrupts() || (!(mode & FALLOC_FL_PUNCH_HOLE) && fails_for_good(ENOSPC)))
        return -1;
    return __real_fallocate(fd, mode, offset, length);
}

int __real_memfd_create(const char *name, unsigned int flags);
int __wrap_memfd_create(const char *name, unsigned int flags);
int __wrap_memfd_create(const char *name, unsigned int flags)
{
    return fails_for_good(EMFILE) ? -1 : __real_memfd_create(name, flags);
}

void *__real_mmap(void *at, size_t length, int protection, int flags, int fd, off_t offset);
void *__wrap_mmap(void *at, size_t length, int protection, int flags, int fd, off_t offset);
void *__wrap_mmap(void *at, size_t length, int protection, int flags, int fd, off_t offset)
{
    if (fails_for_good(ENOMEM))
        return MAP_FAILED;
    return __real_mmap(at, length, protection, flags, fd, offset);
}

void *__real_malloc(size_t size);
void *__wrap_malloc(size_t size);
void *__wrap_malloc(size_t size)
{
    return fails_for_good(ENOMEM) ? NULL : __real_malloc(size);
}

void *__real_calloc(size_t n, size_t size);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_calloc(size_t n, size_t size)
{
    return fails_for_good(ENOMEM) ? NULL : __real_calloc(n, size);
}

#endif
