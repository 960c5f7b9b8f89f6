/* Pools: the memfds that hold the bytes of a region, one for each node. */
#include "core.h"

#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

int hm_pool_open(struct hm_pool *pool, const char *name)
{
    int error;
    int fd = memfd_create(name, MFD_CLOEXEC);
    if (fd < 0)
        return -errno;
    /* As long as the largest region from the start: a file that is never shortened cannot give a
     * SIGBUS to whoever maps it, and growing a region costs nothing. */
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
    for (uint64_t i = 0; i < HM_CHUNKS; i++) {
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
    uint8_t *chunk = atomic_load_explicit(slot, memory_order_acquire);
    if (!chunk) {
        uint8_t *expected = NULL;
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
        if (errno != EINTR)
            return -errno;
    return 0;
}

int hm_pool_write(struct hm_pool *pool, uint64_t offset, const void *bytes, size_t length)
{
    const uint8_t *from = bytes;
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

int hm_pool_read(struct hm_pool *pool, uint64_t offset, void *bytes, size_t length)
{
    uint8_t *to = bytes;
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

int hm_pool_copy(struct hm_pool *to, struct hm_pool *from, uint64_t offset, size_t length)
{
    /* pwrite from the mapping fills holes without zeroing them first. For a page or two reading
     * into a buffer is cheaper: no entry of our page table to fill, then zap at the punch. */
    uint8_t few[2 * HM_PAGE_SIZE];
    uint8_t *bytes;
    if (length <= sizeof(few)) {
        int error = hm_pool_read(from, offset, few, length);
        return error ? error : hm_pool_write(to, offset, few, length);
    }
    bytes = hm_pool_map(from, offset);
    return bytes ? hm_pool_write(to, offset, bytes, length) : -ENOMEM;
}

uint64_t hm_pool_allocated(struct hm_pool *pool)
{
    struct stat status;
    if (pool->fd < 0 || fstat(pool->fd, &status) < 0)
        return 0;
    return (uint64_t)status.st_blocks * 512 / HM_PAGE_SIZE;
}
