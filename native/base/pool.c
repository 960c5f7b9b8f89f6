#include "base/pool.h"

#include "base/lock.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* From here on a store through the mapping beats pwrite, what it takes to map and zap included. */
#define HM_STORE_BYTES 65536
#define FAULT_AROUND_BYTES 65536 /* the kernel's default */

int hm_pool_open(struct hm_pool *pool, const char *name)
{
    int error;
    int fd = memfd_create(name, MFD_CLOEXEC);
    if (fd < 0)
        return -errno;
    /* As long as the largest region from the start: a file that is never shortened cannot give a
     * SIGBUS to programs that map it, and growing a region costs nothing. */
    if (ftruncate(fd, (off_t)HM_MAX_BYTES) < 0) {
        error = -errno;
        goto fail;
    }
    pool->chunks = calloc(HM_CHUNKS, sizeof(*pool->chunks));
    if (!pool->chunks) {
        error = -ENOMEM;
        goto fail;
    }
    atomic_store_explicit(&pool->fd, fd, memory_order_release);
    return 0;
fail:
    close(fd);
    return error;
}

void hm_pool_close(struct hm_pool *pool)
{
    int fd = atomic_exchange(&pool->fd, -1);
    if (fd < 0)
        return;
    /* A shared region's memfd has none: nobody maps it here. */
    for (uint64_t i = 0; pool->chunks && i < atomic_load(&pool->chunks_end); i++) {
        uint8_t *chunk = atomic_load_explicit(&pool->chunks[i], memory_order_relaxed);
        if (chunk)
            munmap(chunk, HM_CHUNK_BYTES);
    }
    free(pool->chunks);
    pool->chunks = NULL;
    close(fd);
}

uint8_t *hm_pool_map(struct hm_pool *pool, uint64_t offset)
{
    _Atomic(uint8_t *) *slot = &pool->chunks[offset / HM_CHUNK_BYTES];
    uint64_t end = atomic_load_explicit(&pool->chunks_end, memory_order_relaxed);
    uint8_t *chunk = atomic_load_explicit(slot, memory_order_acquire);
    if (!chunk) {
        uint8_t *expected = NULL;
        while (end <= offset / HM_CHUNK_BYTES &&
               !atomic_compare_exchange_weak(&pool->chunks_end, &end, offset / HM_CHUNK_BYTES + 1))
            ;
        chunk = mmap(NULL, HM_CHUNK_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE,
                     pool->fd, (off_t)(offset - offset % HM_CHUNK_BYTES));
        if (chunk == MAP_FAILED)
            return NULL;
        if (!atomic_compare_exchange_strong(slot, &expected, chunk)) {
            munmap(chunk, HM_CHUNK_BYTES);
            chunk = expected;
        }
    }
    return chunk + offset % HM_CHUNK_BYTES;
}

int hm_pool_punch(struct hm_pool *pool, uint64_t offset, uint64_t length)
{
    if (pool->fd < 0 || !length)
        return 0;
    while (fallocate(pool->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset,
                     (off_t)length) < 0)
        if (errno != EINTR) {
            atomic_fetch_add(&pool->unpunched, 1);
            return -errno;
        }
    return 0;
}

int hm_pool_write(struct hm_pool *pool, uint64_t offset, const void *bytes, size_t length)
{
    const uint8_t *from = bytes;
    hm_rank_copies(length);
    while (length) {
        ssize_t n = pwrite(pool->fd, from, length, (off_t)offset);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? -errno : -EIO;
        from += n;
        offset += (uint64_t)n;
        length -= (size_t)n;
    }
    return 0;
}

int hm_pool_read(struct hm_pool *pool, uint64_t offset, void *bytes, size_t length,
                 struct iovec *iov)
{
    uint8_t *to = bytes;
    *iov = (struct iovec){bytes, length};
    while (length) {
        ssize_t n = pread(pool->fd, to, length, (off_t)offset);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? -errno : -EIO;
        to += n;
        offset += (uint64_t)n;
        length -= (size_t)n;
    }
    return 0;
}

#ifdef __SANITIZE_THREAD__
/* The pages may be read by an answer at the same time, and programs that share bytes without an
 * order among them get either: theirs to sort out, and not a race for ThreadSanitizer to report. */
__attribute__((no_sanitize("thread"))) static void copy_shared(uint8_t *to, const uint8_t *from,
                                                               size_t length)
{
    for (size_t at = 0; at < length; at++)
        ((volatile uint8_t *)to)[at] = from[at];
}
#else
#define copy_shared memcpy
#endif

int hm_pool_store(struct hm_pool *pool, uint64_t offset, const void *bytes, size_t length)
{
    uint8_t *to;
    if (length < HM_STORE_BYTES)
        return hm_pool_write(pool, offset, bytes, length);
    to = hm_pool_map(pool, offset);
    if (!to)
        return hm_pool_write(pool, offset, bytes, length);
    hm_rank_copies(length);
    /* A load maps the 64 KiB around it, writable; a store's fault would map one page. */
    for (uint64_t at = 0; at < length;
         at += FAULT_AROUND_BYTES - (offset + at) % FAULT_AROUND_BYTES)
        (void)__atomic_load_n(to + at, __ATOMIC_RELAXED);
    copy_shared(to, bytes, length);
    return 0;
}

int hm_pool_zero(struct hm_pool *pool, uint64_t offset, uint64_t length)
{
    hm_rank_copies(length);
    while (fallocate(pool->fd, FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)length) < 0)
        if (errno != EINTR)
            return -errno;
    return 0;
}

int hm_pool_copy(struct hm_pool *to, struct hm_pool *from, uint64_t offset, size_t length)
{
    /* In the kernel, from page to page: 2 MiB take 1.0 ms with the punch that follows. From our
     * mapping it would be 1.1 ms, since that has to be filled before and zapped by the punch, and
     * reading a hole through it would allocate. For single pages it makes no difference. */
    off_t in = (off_t)offset, out = (off_t)offset;
    hm_rank_copies(length);
    while (length) {
        ssize_t n = copy_file_range(from->fd, &in, to->fd, &out, length, 0);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? -errno : -EIO;
        length -= (size_t)n;
    }
    return 0;
}

uint64_t hm_pool_allocated(struct hm_pool *pool)
{
    struct stat status;
    if (pool->fd < 0 || fstat(pool->fd, &status) < 0)
        return 0;
    return (uint64_t)status.st_blocks * 512 / HM_PAGE_SIZE;
}

bool hm_pool_is_hole(const struct hm_pool *pool, uint64_t offset)
{
    return pool->fd < 0 || lseek(pool->fd, (off_t)offset, SEEK_DATA) != (off_t)offset;
}

uint64_t hm_pool_length(struct hm_pool *pool)
{
    struct stat status;
    if (pool->fd < 0 || fstat(pool->fd, &status) < 0)
        return 0;
    return (uint64_t)status.st_size;
}

void *hm_reserve_memory(size_t bytes)
{
    void *map = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return map == MAP_FAILED ? NULL : map;
}

void hm_free_memory(void *memory, size_t bytes)
{
    if (memory)
        munmap(memory, bytes);
}
