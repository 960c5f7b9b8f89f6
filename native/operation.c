/* What a device reads, writes, fills or checksums on its own, block by block: submitted operations
 * that need no worker. */
#include "transaction.h"

#include <zlib.h>

typedef void use_bytes(const struct hm_job *job, struct hm_event *event, uint32_t at,
                       const uint8_t *bytes, uint32_t n);

/* What a device reads of [offset, offset+length) of the block, run by run: the bytes of the pages
 * that are there, zeros for the others. */
static int each_run(struct transaction *t, const struct hm_mask *there, use_bytes *use)
{
    const struct hm_job *job = t->job;
    uint32_t at = 0;
    while (at < job->length) {
        uint32_t page = (job->offset + at) / HM_PAGE_SIZE, end = page + 1;
        bool present = hm_test(there->word, page);
        uint32_t last = (job->offset + job->length - 1) / HM_PAGE_SIZE, n;
        const uint8_t *bytes = t->core->zeros;
        while (end <= last && hm_test(there->word, end) == present)
            end++;
        n = end * HM_PAGE_SIZE - (job->offset + at);
        n = n < job->length - at ? n : job->length - at;
        if (present) {
            struct hm_pool *pool = hm_region_pool(t->region, job->node);
            bytes = pool ? hm_pool_map(pool, t->block * HM_BLOCK_BYTES) : NULL;
            if (!bytes)
                return -ENOMEM;
            bytes += job->offset + at;
        }
        use(job, &t->event, at, bytes, n);
        at += n;
    }
    return 0;
}

static void use_read(const struct hm_job *job, struct hm_event *event, uint32_t at,
                     const uint8_t *bytes, uint32_t n)
{
    (void)event;
    memcpy((uint8_t *)job->buffer + at, bytes, n);
}

static void use_crc(const struct hm_job *job, struct hm_event *event, uint32_t at,
                    const uint8_t *bytes, uint32_t n)
{
    (void)job;
    (void)at;
    event->crc = (uint32_t)crc32(event->crc, bytes, n);
}

static int store(struct transaction *t)
{
    const struct hm_job *job = t->job;
    struct hm_pool *pool = hm_region_pool(t->region, job->node);
    uint8_t *to = pool ? hm_pool_map(pool, t->block * HM_BLOCK_BYTES) : NULL;
    if (!to)
        return -ENOMEM;
    if (job->kind == HM_JOB_FILL)
        memset(to + job->offset, (int)job->byte, job->length);
    else
        memcpy(to + job->offset, job->buffer, job->length);
    hm_region_changed(t->region, true);
    return 0;
}

/* A truncate or punch since the pages came took some away that the operation may have allocated
 * again: a load from a hole through the mapping allocates, too. And stores past a new end of the
 * file must not show when it grows. The stripe is held. */
static void drop_strays(struct transaction *t, const struct hm_mask *mask)
{
    uint64_t gone[HM_WORDS] = {0};
    uint64_t size = hm_region_size(t->region);
    uint32_t last = (uint32_t)(size % HM_BLOCK_BYTES / HM_PAGE_SIZE);
    HM_EACH_PAGE (page, mask->word)
        if (t->record->owner[page] != t->job->node)
            gone[page / 64] |= 1ULL << (page % 64);
    hm_punch_runs(t->region, t->job->node, t->block, gone);
    if (size % HM_PAGE_SIZE && size / HM_BLOCK_BYTES == t->block && hm_test(mask->word, last) &&
        t->record->owner[last] == t->job->node)
        hm_zero_part(t->region, size, (size / HM_PAGE_SIZE + 1) * HM_PAGE_SIZE);
}

int hm_operate(struct transaction *t, const struct hm_mask *mask)
{
    const struct hm_job *job = t->job;
    bool stores = job->kind == HM_JOB_WRITE || job->kind == HM_JOB_FILL;
    struct hm_mask there = {{0}};
    uint32_t generation;
    int error;
    if (hm_is_shared(t->region))
        return hm_shared_operate(t);
    error = hm_bring(t, mask, stores, HM_BLOCK_PAGES);
    if (error)
        return error;
    HM_EACH_PAGE (page, t->record->present)
        if (t->record->owner[page] == job->node)
            there.word[page / 64] |= 1ULL << (page % 64);
    hm_count(&t->core->nodes[job->node].operations, 1);
    t->record->last_device = hm_tick(t->core);
    t->record->uses += t->record->uses < UINT32_MAX;
    generation = t->record->generation;
    if (stores)
        hm_mark_written(t, mask);
    pthread_mutex_unlock(&t->stripe->lock);
    if (stores)
        error = store(t);
    else
        error = each_run(t, &there, job->kind == HM_JOB_READ ? use_read : use_crc);
    pthread_mutex_lock(&t->stripe->lock);
    if (stores || t->record->generation != generation)
        drop_strays(t, mask);
    return error;
}

/* A block that nobody touched: nothing to move, and reading it gives zeros. */
int hm_operate_untouched(struct transaction *t)
{
    static const struct hm_mask nothing;
    if (t->job->kind == HM_JOB_READ || t->job->kind == HM_JOB_CRC)
        return each_run(t, &nothing, t->job->kind == HM_JOB_READ ? use_read : use_crc);
    return 0;
}
