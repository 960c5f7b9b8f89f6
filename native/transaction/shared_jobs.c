/* Jobs on coherent and DAX regions (directory/shared_size.c): a migration relabels. */
#include "transaction/shared_jobs.h"

#include "directory/owner.h"
#include "transaction/journal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zlib.h>

int hm_shared_relabel(struct transaction *t, const struct hm_mask *mask, bool populate,
                      uint32_t limit)
{
    struct hm_block *record = t->record;
    uint32_t to = t->job->node, moved[HM_MAX_NODES], moves = 0, error;
    uint8_t from[HM_BLOCK_PAGES];
    uint64_t began;
    struct hm_mask move = {{0}}, stay = hm_stay(t), may = hm_without(mask->word, stay.word);
    memcpy(from, record->owner, sizeof(from));
    HM_EACH_PAGE (page, may.word)
        if (hm_test(record->present, page) && from[page] != to && moves < limit) {
            hm_set(move.word, page);
            moves++;
        }
    if (!moves)
        return 0;
    if (t->region->kind == HM_KIND_DAX)
        return -EOPNOTSUPP;
    error = moves > t->reserved ? moves - t->reserved : 0;
    if (hm_reserve(t->core, to, error, t->job->flags & HM_JOB_STAGING)) {
        t->event.need = moves;
        return -ENOSPC;
    }
    t->reserved += error - moves;
    began = hm_trace_move(t, &move, from, 0);
    hm_own(t->region, record, &move, to, t->cause.trigger, moved);
    for (uint32_t node = 0; node < t->core->config.nodes; node++) {
        struct hm_node *counts = &t->core->nodes[node];
        if (!moved[node])
            continue;
        hm_release(t->core, node, moved[node]);
        hm_count(&counts->counts.copies_made, moved[node]);
        if (t->job->flags & HM_JOB_EVICT) {
            hm_count(&counts->counts.evicted_blocks, 1);
            hm_count(&counts->counts.evicted_pages, moved[node]);
            hm_count(&t->region->flows.evicted[node], moved[node]);
            record->evictions++;
        }
    }
    hm_count(&t->core->count.migrations, 1);
    hm_carried(t, HM_TRACE_MIGRATE_END, &move, &move, from, began);
    record->last_migrated = hm_tick(t->core);
    t->event.moved += moves;
    return 0;
}

/* ---- a device's operations ------------------------------------------------------------------ */

/* Bytes past the end read as zeros: the file was cut meanwhile. */
static int fetch(struct hm_region *region, uint64_t offset, uint8_t *to, size_t length)
{
    while (length) {
        ssize_t n = pread(region->pools[HM_HOST].fd, to, length, (off_t)offset);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        if (!n) {
            memset(to, 0, length);
            return 0;
        }
        to += n;
        offset += (uint64_t)n;
        length -= (size_t)n;
    }
    return 0;
}

static int put(struct hm_region *region, uint64_t offset, const uint8_t *from, uint64_t length)
{
    int error = 0;
    uint64_t size;
    HM_GUARD(HM_RANK_SHARED, &region->shared_lock); /* or a truncate would be undone */
    size = hm_region_size(region);
    if (offset < size)
        error = hm_pool_write(&region->pools[HM_HOST], offset, from,
                              length < size - offset ? length : size - offset);
    return error;
}

int hm_shared_operate(struct transaction *t, const struct hm_mask *mask)
{
    const struct hm_job *job = t->job;
    uint64_t at = t->block * HM_BLOCK_BYTES + job->offset;
    uint8_t *bytes = job->buffer;
    int error = 0;
    if (job->kind == HM_JOB_FILL || job->kind == HM_JOB_CRC)
        bytes = malloc(job->length);
    if (!bytes)
        return -ENOMEM;
    t->record->last_device = hm_tick(t->core);
    t->record->uses += t->record->uses < UINT32_MAX;
    hm_count(&t->core->nodes[job->node].counts.operations, 1);
    hm_unlock(HM_RANK_STRIPE, &t->stripe->lock);
    if (job->kind == HM_JOB_FILL)
        memset(bytes, (int)job->byte, job->length);
    if (job->kind == HM_JOB_READ || job->kind == HM_JOB_CRC)
        error = fetch(t->region, at, bytes, job->length);
    else
        error = put(t->region, at, bytes, job->length);
    if (!error && job->kind == HM_JOB_CRC)
        t->event.crc = (uint32_t)crc32(t->event.crc, bytes, job->length);
    hm_lock(HM_RANK_STRIPE, &t->stripe->lock);
    if (bytes != job->buffer)
        free(bytes);
    return error;
}
