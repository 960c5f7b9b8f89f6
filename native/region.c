/* Regions: sparse address spaces by inode number, with their record, directory and pools. */
#include "core.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

uint64_t hm_region_max_bytes(void)
{
    return HM_MAX_BYTES;
}

/* ---- the table ---------------------------------------------------------------------------- */

static struct hm_region **bucket_of(struct hm_core *core, uint64_t ino)
{
    return &core->buckets[ino % HM_REGION_BUCKETS];
}

struct hm_region *hm_region_get(struct hm_core *core, uint64_t ino)
{
    struct hm_region *region;
    pthread_rwlock_rdlock(&core->regions_lock);
    for (region = *bucket_of(core, ino); region && region->ino != ino; region = region->next)
        ;
    if (region)
        atomic_fetch_add(&region->refs, 1);
    pthread_rwlock_unlock(&core->regions_lock);
    return region;
}

static void region_free(struct hm_region *region)
{
    hm_unlist(region);
    hm_process_deinit(region);
    hm_history_free(region);
    hm_side_deinit(&region->copies);
    hm_side_deinit(&region->labels);
    hm_advice_free(region);
    hm_shared_deinit(region);
    for (uint32_t node = 0; node < HM_MAX_NODES; node++)
        hm_pool_close(&region->pools[node]);
    if (region->directory)
        munmap(region->directory, HM_DIRECTORY_BYTES);
    if (region->directory_fd >= 0)
        close(region->directory_fd);
    pthread_mutex_destroy(&region->pools_lock);
    if (region->record) { /* free again with its number, the first member, and not before */
        uint8_t *rest = (uint8_t *)region->record + sizeof(region->record->ino);
        memset(rest, 0, sizeof(*region->record) - sizeof(region->record->ino));
        __atomic_store_n(&region->record->ino, 0, __ATOMIC_RELEASE);
    }
    free(region);
}

void hm_region_put(struct hm_region *region)
{
    if (atomic_fetch_sub(&region->refs, 1) == 1)
        region_free(region);
}

static int directory_open(struct hm_region *region)
{
    uint64_t *header;
    region->directory_fd = memfd_create("hmmfs-directory", MFD_CLOEXEC);
    if (region->directory_fd < 0)
        return -errno;
    if (ftruncate(region->directory_fd, (off_t)HM_DIRECTORY_BYTES) < 0)
        return -errno;
    void *map = mmap(NULL, HM_DIRECTORY_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE,
                     region->directory_fd, 0);
    if (map == MAP_FAILED)
        return -errno;
    region->directory = map;
    header = map;
    header[0] = HM_DIRECTORY_MAGIC;
    header[1] = region->ino;
    region->touched = (uint64_t *)(region->directory + HM_PAGE_SIZE);
    region->blocks = (struct hm_block *)(region->directory + HM_DIRECTORY_HEADER);
    return 0;
}

/* A free record of the table; regions_lock is held for writing. */
static struct hm_region_record *record_find(struct hm_core *core)
{
    for (uint32_t i = 0; i < core->table_used; i++)
        if (!__atomic_load_n(&core->table[i].ino, __ATOMIC_ACQUIRE))
            return &core->table[i];
    return core->table_used < HM_MAX_REGIONS ? &core->table[core->table_used++] : NULL;
}

int hm_region_create(struct hm_core *core, uint64_t ino, uint32_t mode, uint32_t uid, uint32_t gid,
                     struct hm_region_record **ret)
{
    int error = -ENOMEM;
    struct hm_region *region = calloc(1, sizeof(*region));
    if (!region)
        return error;
    region->core = core;
    region->ino = ino;
    region->refs = 1;
    region->directory_fd = -1;
    pthread_mutex_init(&region->pools_lock, NULL);
    pthread_rwlock_init(&region->advice_lock, NULL);
    for (uint32_t node = 0; node < HM_MAX_NODES; node++)
        region->pools[node].fd = -1;
    region->kind = mode ? core->config.kind : HM_KIND_PRIVATE; /* no file: a program's memory */
    error = hm_shared_init(region);
    if (!error)
        error = directory_open(region);
    if (error)
        goto fail;
    pthread_rwlock_wrlock(&core->regions_lock);
    region->record = record_find(core);
    if (region->record) {
        *region->record =
            (struct hm_region_record){.ino = ino, .mode = mode, .uid = uid, .gid = gid, .nlink = 1};
        hm_times_begin(region->record);
        region->next = *bucket_of(core, ino);
        *bucket_of(core, ino) = region;
        *ret = region->record;
    }
    pthread_rwlock_unlock(&core->regions_lock);
    if (!region->record) {
        error = -ENOSPC;
        goto fail;
    }
    hm_count(&core->regions, 1);
    return 0;
fail:
    region_free(region);
    return error;
}

struct hm_pool *hm_region_pool(struct hm_region *region, uint32_t node)
{
    struct hm_pool *pool = &region->pools[hm_is_shared(region) ? HM_HOST : node];
    if (atomic_load_explicit(&pool->fd, memory_order_acquire) < 0) {
        char name[64];
        int error = 0;
        snprintf(name, sizeof(name), "hmmfs-pool-%u", node);
        pthread_mutex_lock(&region->pools_lock);
        if (pool->fd < 0)
            error = hm_pool_open(pool, name);
        pthread_mutex_unlock(&region->pools_lock);
        if (error) {
            errno = -error;
            return NULL;
        }
    }
    return pool;
}

/* ---- walking the touched blocks ----------------------------------------------------------- */

/* The first touched block at or after from; HM_MAX_BLOCKS when there is none. */
static uint64_t next_touched(struct hm_region *region, uint64_t from)
{
    while (from < HM_MAX_BLOCKS) {
        /* Skip what was never written without reading it: a read would allocate a page. */
        off_t data = from % 32768
                         ? 0
                         : lseek(region->directory_fd, (off_t)(HM_PAGE_SIZE + from / 8), SEEK_DATA);
        if (data >= (off_t)HM_DIRECTORY_HEADER || data < 0)
            return HM_MAX_BLOCKS;
        if ((uint64_t)data > HM_PAGE_SIZE + from / 8) {
            from = ((uint64_t)data - HM_PAGE_SIZE) / HM_PAGE_SIZE * 32768;
            continue;
        }
        do {
            uint64_t rest = __atomic_load_n(&region->touched[from / 64], __ATOMIC_ACQUIRE);
            rest >>= from % 64;
            if (rest)
                return from + (uint64_t)__builtin_ctzll(rest);
            from = (from / 64 + 1) * 64;
        } while (from % 32768);
    }
    return HM_MAX_BLOCKS;
}

int hm_region_touched(struct hm_core *core, uint64_t ino, uint64_t from, uint64_t *out, int max)
{
    struct hm_region *region = hm_region_get(core, ino);
    int n = 0;
    if (!region)
        return -ENOENT;
    while (n < max && (from = next_touched(region, from)) < HM_MAX_BLOCKS)
        out[n++] = from++;
    hm_region_put(region);
    return n;
}

struct hm_block *hm_region_blocks(struct hm_core *core, uint64_t ino)
{
    struct hm_region *region = hm_region_get(core, ino);
    struct hm_block *blocks = region ? region->blocks : NULL;
    if (region)
        hm_region_put(region);
    return blocks;
}

int hm_region_residency(struct hm_core *core, uint64_t ino, uint64_t out[22])
{
    struct hm_region *region = hm_region_get(core, ino);
    if (!region)
        return -ENOENT;
    memset(out, 0, 22 * sizeof(*out));
    for (uint64_t b = 0; (b = next_touched(region, b)) < HM_MAX_BLOCKS; b++) {
        struct hm_stripe *stripe = hm_stripe_of(core, ino, b);
        const struct hm_block *block = &region->blocks[b];
        pthread_mutex_lock(&stripe->lock);
        for (uint32_t node = 0; node < HM_MAX_NODES; node++) {
            struct hm_mask copies = hm_copies_on(region, b, node);
            out[node] += block->pages[node];
            out[21] += hm_bits(copies.word);
            copies = hm_labels_on(region, b, node);
            out[node] += hm_bits(copies.word);
        }
        out[HM_HOST] -= hm_labelled(region, b);
        HM_EACH_WORD (w) {
            uint64_t seen = block->cached[w] | block->recalling[w];
            out[16] += hm_popcount(block->dirty[w] & ~block->device[w]);
            out[17] += hm_popcount(block->dirty[w] & block->device[w]);
            out[18] += hm_popcount(seen);
            out[19] += hm_popcount(block->kept[w]);
            out[20] += hm_popcount(seen & ~block->present[w]);
        }
        pthread_mutex_unlock(&stripe->lock);
    }
    hm_region_put(region);
    return 0;
}

/* ---- size, holes -------------------------------------------------------------------------- */

int hm_zero_part(struct hm_region *region, uint64_t from, uint64_t to)
{
    static const uint8_t zeros[HM_PAGE_SIZE];
    struct hm_block *block = &region->blocks[from / HM_BLOCK_BYTES];
    uint32_t page = (uint32_t)(from / HM_PAGE_SIZE % HM_BLOCK_PAGES);
    struct hm_mask one;
    int error = 0;
    block->generation++;
    one = hm_mask_range(page, 1);
    hm_collapse(region, from / HM_BLOCK_BYTES, &one, HM_HOST);
    hm_step(region, from / HM_BLOCK_BYTES, "cut.part", HM_BY_GATE, NULL);
    if (!hm_test(block->present, page))
        return 0;
    error = hm_pool_write(&region->pools[block->owner[page]], from, zeros, to - from);
    if (!error && hm_test(block->kept, page))
        error = hm_pool_write(&region->pools[HM_HOST], from, zeros, to - from);
    return error;
}

/* Cut [start, end) bytes out of one touched block. */
static int cut_block(struct hm_region *region, uint64_t start, uint64_t end, bool forget_cached)
{
    uint64_t block = start / HM_BLOCK_BYTES;
    uint64_t base = block * HM_BLOCK_BYTES;
    uint64_t first = (start + HM_PAGE_SIZE - 1) / HM_PAGE_SIZE * HM_PAGE_SIZE;
    uint64_t last = end / HM_PAGE_SIZE * HM_PAGE_SIZE;
    struct hm_stripe *stripe = hm_stripe_of(region->core, region->ino, block);
    int error = 0;
    pthread_mutex_lock(&stripe->lock);
    if (first > last) { /* inside one page */
        error = hm_zero_part(region, start, end);
    } else {
        if (start < first)
            error = hm_zero_part(region, start, first);
        if (!error && last < end)
            error = hm_zero_part(region, last, end);
        if (!error && first < last) {
            struct hm_mask mask = hm_mask_range((uint32_t)((first - base) / HM_PAGE_SIZE),
                                                (uint32_t)((last - first) / HM_PAGE_SIZE));
            error = hm_block_cut(region, block, &mask, forget_cached);
        }
    }
    pthread_mutex_unlock(&stripe->lock);
    return error;
}

/* All of it, also where a block can't be cut: the first error. */
static int cut(struct hm_region *region, uint64_t start, uint64_t end, bool forget_cached)
{
    int error = 0;
    for (uint64_t b = start / HM_BLOCK_BYTES;
         (b = next_touched(region, b)) < HM_MAX_BLOCKS && b * HM_BLOCK_BYTES < end; b++) {
        uint64_t from = b * HM_BLOCK_BYTES, to = from + HM_BLOCK_BYTES;
        int failed =
            cut_block(region, from > start ? from : start, to < end ? to : end, forget_cached);
        error = error ? error : failed;
    }
    return error;
}

int hm_region_cut(struct hm_region *region, uint64_t start, uint64_t end)
{
    return cut(region, start, end, true);
}

int hm_region_destroy(struct hm_core *core, uint64_t ino)
{
    struct hm_region *region = NULL, **at;
    pthread_rwlock_wrlock(&core->regions_lock);
    for (at = bucket_of(core, ino); *at && (*at)->ino != ino; at = &(*at)->next)
        ;
    if (*at) {
        region = *at;
        *at = region->next;
        hm_trace_gone(region);
        hm_count(&core->dying, 1);
    }
    pthread_rwlock_unlock(&core->regions_lock);
    if (!region)
        return -ENOENT;
    /* Nobody finds it any more; a mover that still has it sees the generation and gives up. */
    cut(region, 0, HM_MAX_BYTES, true);
    atomic_fetch_sub_explicit(&core->regions, 1, memory_order_relaxed);
    hm_region_put(region);
    atomic_fetch_sub(&core->dying, 1);
    return 0;
}

int hm_region_truncate(struct hm_core *core, uint64_t ino, uint64_t size)
{
    struct hm_region *region;
    uint64_t old;
    int error = 0;
    if (size > HM_MAX_BYTES)
        return -EFBIG;
    region = hm_region_get(core, ino);
    if (!region)
        return -ENOENT;
    if (hm_is_shared(region)) {
        error = hm_shared_resize(region, size);
        if (!error)
            hm_region_changed(region, true);
        hm_region_put(region);
        return error;
    }
    old = __atomic_exchange_n(&region->record->size, size, __ATOMIC_ACQ_REL);
    if (size < old) {
        __atomic_fetch_add(&region->record->generation, 1, __ATOMIC_RELAXED);
        error = cut(region, size, HM_MAX_BYTES, true);
    }
    hm_region_changed(region, true);
    hm_region_put(region);
    return error;
}

int hm_region_punch(struct hm_core *core, uint64_t ino, uint64_t offset, uint64_t length)
{
    struct hm_region *region;
    int error;
    if (offset > HM_MAX_BYTES || length > HM_MAX_BYTES - offset)
        return -EFBIG;
    region = hm_region_get(core, ino);
    if (!region)
        return -ENOENT;
    /* The kernel drops its copies only after our answer: they stay marked until a recall. */
    if (hm_is_shared(region))
        error = hm_pool_punch(&region->pools[HM_HOST], offset, length);
    else
        error = cut(region, offset, offset + length, false);
    if (!error)
        hm_region_changed(region, true);
    hm_region_put(region);
    return error;
}

/* Holes without a host reservation among the pages of mask. */
static uint32_t holes(const struct hm_block *block, const struct hm_mask *mask, bool charged)
{
    uint32_t n = 0;
    HM_EACH_WORD (w) {
        uint64_t held = charged ? block->cached[w] | block->recalling[w] : 0;
        n += hm_popcount(mask->word[w] & ~block->present[w] & ~held);
    }
    return n;
}

static uint32_t holes_of(struct hm_region *region, uint64_t block, const struct hm_mask *mask)
{
    struct hm_stripe *stripe = hm_stripe_of(region->core, region->ino, block);
    uint32_t n;
    if (!hm_region_is_touched(region, block))
        return hm_bits(mask->word);
    pthread_mutex_lock(&stripe->lock);
    n = holes(&region->blocks[block], mask, true);
    pthread_mutex_unlock(&stripe->lock);
    return n;
}

static int allocate_block(struct hm_region *region, uint64_t block, const struct hm_mask *mask)
{
    struct hm_core *core = region->core;
    struct hm_block *record = &region->blocks[block];
    struct hm_stripe *stripe = hm_stripe_of(core, region->ino, block);
    struct hm_pool *pool = hm_region_pool(region, HM_HOST);
    uint32_t first = 0, count, need, new;
    struct hm_mask hole;
    int error;
    if (!pool)
        return -errno;
    pthread_mutex_lock(&stripe->lock);
    /* A transaction between its plan and its last punch counts on who has pages and who has not;
     * it waits for copies alone. */
    while (record->state == HM_FROZEN)
        pthread_cond_wait(&stripe->changed, &stripe->lock);
    hm_block_touch(region, block);
    need = holes(record, mask, true);
    new = holes(record, mask, false);
    error = hm_reserve(core, HM_HOST, need, 0);
    if (error)
        goto out;
    HM_EACH_WORD (w)
        hole.word[w] = mask->word[w] & ~record->present[w];
    while (!error && hm_next_run(hole.word, &first, &count)) {
        uint64_t offset = block * HM_BLOCK_BYTES + (uint64_t)first * HM_PAGE_SIZE;
        error = hm_pool_zero(pool, offset, (uint64_t)count * HM_PAGE_SIZE);
        first += count;
    }
    if (error) {
        for (first = 0; hm_next_run(hole.word, &first, &count); first += count)
            hm_pool_punch(pool, block * HM_BLOCK_BYTES + (uint64_t)first * HM_PAGE_SIZE,
                          (uint64_t)count * HM_PAGE_SIZE);
        hm_release(core, HM_HOST, need);
        goto out;
    }
    HM_EACH_WORD (w)
        record->present[w] |= hole.word[w];
    hm_step(region, block, "allocated", HM_BY_GATE, &hole);
    hm_block_populate(region, record, HM_HOST, new);
out:
    pthread_mutex_unlock(&stripe->lock);
    return error;
}

int hm_region_allocate(struct hm_core *core, uint64_t ino, uint64_t offset, uint64_t length)
{
    struct hm_region *region;
    uint64_t first = offset / HM_PAGE_SIZE, end, need = 0;
    int error = 0;
    if (offset > HM_MAX_BYTES || length > HM_MAX_BYTES - offset)
        return -EFBIG;
    region = hm_region_get(core, ino);
    if (!region)
        return -ENOENT;
    if (hm_is_shared(region)) {
        /* Its room is taken by its size; the memory behind it is made now. */
        uint64_t size = hm_region_size(region);
        if (offset < size)
            error = hm_pool_zero(&region->pools[HM_HOST], offset,
                                 length < size - offset ? length : size - offset);
        hm_region_put(region);
        return error;
    }
    end = (offset + length + HM_PAGE_SIZE - 1) / HM_PAGE_SIZE;
    /* Twice: a range that can't fit changes nothing. */
    for (int pass = 0; pass < 2 && !error; pass++) {
        for (uint64_t page = first, n; page < end && !error; page += n) {
            uint64_t block = page / HM_BLOCK_PAGES;
            uint32_t low = (uint32_t)(page % HM_BLOCK_PAGES);
            struct hm_mask mask;
            n = HM_BLOCK_PAGES - low < end - page ? HM_BLOCK_PAGES - low : end - page;
            mask = hm_mask_range(low, (uint32_t)n);
            if (pass)
                error = allocate_block(region, block, &mask);
            else
                need += holes_of(region, block, &mask);
        }
        if (!pass && !(error = hm_reserve(core, HM_HOST, need, 0)))
            hm_release(core, HM_HOST, need);
    }
    hm_region_put(region);
    return error;
}

/* A hole that the CPU's page cache may fill unannounced is data. It may while a file is open for
 * writing: the last close and munmap write back all stores. */
static void data_of(struct hm_region *region, uint64_t block, uint64_t words[HM_WORDS])
{
    struct hm_stripe *stripe = hm_stripe_of(region->core, region->ino, block);
    const struct hm_block *record = &region->blocks[block];
    bool writers = atomic_load(&region->writers) != 0;
    memset(words, 0, HM_WORDS * sizeof(*words));
    if (!hm_region_is_touched(region, block))
        return;
    pthread_mutex_lock(&stripe->lock);
    HM_EACH_WORD (w)
        words[w] = record->present[w] | (writers ? record->cached[w] | record->recalling[w] : 0);
    pthread_mutex_unlock(&stripe->lock);
}

int64_t hm_region_seek(struct hm_core *core, uint64_t ino, uint64_t offset, int hole)
{
    struct hm_region *region = hm_region_get(core, ino);
    uint64_t size, at = offset;
    int64_t found = -ENXIO;
    if (!region)
        return -ENOENT;
    size = hm_region_size(region);
    if (hm_is_shared(region)) {
        found = lseek(region->pools[HM_HOST].fd, (off_t)offset, hole ? SEEK_HOLE : SEEK_DATA);
        found = found < 0 ? -errno : found;
        hm_region_put(region);
        return found;
    }
    while (at < size) {
        uint64_t block = at / HM_BLOCK_BYTES;
        uint32_t first = (uint32_t)(at % HM_BLOCK_BYTES / HM_PAGE_SIZE), count, was = first;
        uint64_t next = hole ? block : next_touched(region, block), words[HM_WORDS];
        if (next != block) {
            at = next * HM_BLOCK_BYTES;
            continue;
        }
        data_of(region, block, words);
        if (hole)
            HM_EACH_WORD (w)
                words[w] = ~words[w];
        if (hm_next_run(words, &first, &count)) {
            at = first == was ? at : block * HM_BLOCK_BYTES + (uint64_t)first * HM_PAGE_SIZE;
            found = at < size ? (int64_t)at : -ENXIO;
            break;
        }
        at = (block + 1) * HM_BLOCK_BYTES;
    }
    if (hole && offset < size && (found < 0 || (uint64_t)found > size))
        found = (int64_t)size;
    hm_region_put(region);
    return found;
}
