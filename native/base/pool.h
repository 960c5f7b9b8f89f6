/* Pools: the memfds that hold the bytes of a region, one for each node. */
#ifndef HMMFS_BASE_POOL_H
#define HMMFS_BASE_POOL_H
#include "base/mask.h"

#include <stdatomic.h>
#include <stddef.h>
#include <sys/uio.h>

#define HM_MAX_BYTES (1ULL << 44) /* of a region */
#define HM_MAX_BLOCKS (HM_MAX_BYTES / HM_BLOCK_BYTES)
#define HM_CHUNK_BYTES (1ULL << 30)
#define HM_CHUNKS (HM_MAX_BYTES / HM_CHUNK_BYTES)

/* A region's bytes on one node: a memfd with the region's own offsets, as long as the largest
 * region and never shortened (punched only), mapped 1 GiB at a time when first touched. */
struct hm_pool {
    _Atomic int fd; /* -1 until first use */
    _Atomic(uint8_t *) *chunks;
    _Atomic uint64_t chunks_end; /* no chunk is mapped from here on */
    _Atomic uint64_t unpunched;  /* punches that the kernel refused */
};

int hm_pool_open(struct hm_pool *pool, const char *name);
void hm_pool_close(struct hm_pool *pool);
/* The mapping of [offset, offset+length), which lies in one block. NULL: no address space. */
uint8_t *hm_pool_map(struct hm_pool *pool, uint64_t offset);
/* A memfd refuses no punch, so an error is not undone anywhere: it goes to who asked for the
 * hole, and the audit tells that the pool holds what nobody owns. */
int hm_pool_punch(struct hm_pool *pool, uint64_t offset, uint64_t length);
int hm_pool_write(struct hm_pool *pool, uint64_t offset, const void *bytes, size_t length);
/* Read bytes of one page where they can't be mapped, and say in iov where they are now. */
int hm_pool_read(struct hm_pool *pool, uint64_t offset, void *bytes, size_t length,
                 struct iovec *iov);
/* hm_pool_write for pages that are there, in one block; it also works if they are punched
 * meanwhile. */
int hm_pool_store(struct hm_pool *pool, uint64_t offset, const void *bytes, size_t length);
/* Give holes pages of zeros. */
int hm_pool_zero(struct hm_pool *pool, uint64_t offset, uint64_t length);
int hm_pool_copy(struct hm_pool *to, struct hm_pool *from, uint64_t offset, size_t length);
uint64_t hm_pool_allocated(struct hm_pool *pool); /* pages */
bool hm_pool_is_hole(const struct hm_pool *pool, uint64_t offset);
uint64_t hm_pool_length(struct hm_pool *pool); /* bytes */
/* Address space that reads as zeros and takes memory where it is written; NULL: there is none. */
void *hm_reserve_memory(size_t bytes);
void hm_free_memory(void *memory, size_t bytes);

#endif
