/* What a device reads, writes, fills or checksums on its own, block by block: submitted operations
 * that need no worker. */
#include "transaction/operation.h"

#include "base/pause.h"
#include "base/times.h"
#include "directory/copies.h"
#include "directory/cut.h"
#include "directory/owner.h"
#include "directory/records.h"
#include "rules/placement.h"
#include "transaction/duplicate.h"
#include "transaction/evict_for.h"
#include "transaction/journal.h"
#include "transaction/migrate.h"
#include "transaction/recall.h"

#include <errno.h>
#include <string.h>
#include <zlib.h>

/* Loads don't write to the bytes. */
typedef void use_bytes(const struct hm_job *job, struct hm_event *event, uint32_t at,
                       uint8_t *bytes, uint32_t n);

/* Where the bytes of an operation's pages are: on the device, or on the host, remotely. */
struct places {
    struct hm_mask here, host;
};

/* The pool of the run of pages that begins at `page` and ends before *end; NULL: they are holes.
 * The host's was made by hold_remote, if there was anything to make. */
static struct hm_pool *pool_of(struct transaction *t, const struct places *places, uint32_t page,
                               uint32_t *end)
{
    const struct hm_mask *mask = hm_test(places->here.word, page)   ? &places->here
                                 : hm_test(places->host.word, page) ? &places->host
                                                                    : NULL;
    uint32_t last = page + 1;
    while (last < *end &&
           (mask ? hm_test(mask->word, last)
                 : !hm_test(places->here.word, last) && !hm_test(places->host.word, last)))
        last++;
    *end = last;
    return mask ? hm_region_pool(t->region, mask == &places->here ? t->job->node : HM_HOST) : NULL;
}

/* Use [offset, offset+length) of the block run by run: the bytes of the pages that are there, and
 * for the others `holes`, or with NULL nothing. */
static int each_run(struct transaction *t, const struct places *places, use_bytes *use,
                    uint8_t *holes)
{
    const struct hm_job *job = t->job;
    uint32_t last = (job->offset + job->length - 1) / HM_PAGE_SIZE, at = 0;
    while (at < job->length) {
        uint32_t end = last + 1, n;
        struct hm_pool *pool = pool_of(t, places, (job->offset + at) / HM_PAGE_SIZE, &end);
        uint8_t *bytes = holes;
        n = end * HM_PAGE_SIZE - (job->offset + at);
        n = n < job->length - at ? n : job->length - at;
        if (pool) {
            bytes = hm_pool_map(pool, t->block * HM_BLOCK_BYTES);
            if (!bytes)
                return -ENOMEM;
            bytes += job->offset + at;
        }
        if (bytes)
            use(job, &t->event, at, bytes, n);
        at += n;
    }
    return 0;
}

static void use_read(const struct hm_job *job, struct hm_event *event, uint32_t at, uint8_t *bytes,
                     uint32_t n)
{
    (void)event;
    memcpy((uint8_t *)job->buffer + at, bytes, n);
}

static void use_crc(const struct hm_job *job, struct hm_event *event, uint32_t at, uint8_t *bytes,
                    uint32_t n)
{
    (void)job;
    (void)at;
    event->crc = (uint32_t)crc32(event->crc, bytes, n);
}

static void use_fill(const struct hm_job *job, struct hm_event *event, uint32_t at, uint8_t *bytes,
                     uint32_t n)
{
    (void)event;
    (void)at;
    memset(bytes, (int)job->byte, n);
}

static void use_write(const struct hm_job *job, struct hm_event *event, uint32_t at, uint8_t *bytes,
                      uint32_t n)
{
    (void)event;
    memcpy(bytes, (const uint8_t *)job->buffer + at, n);
}

static int store(struct transaction *t, const struct places *places)
{
    int error = each_run(t, places, t->job->kind == HM_JOB_FILL ? use_fill : use_write, NULL);
    if (!error)
        hm_region_changed(t->region, true);
    return error;
}

static int load(struct transaction *t, const struct places *places)
{
    return each_run(t, places, t->job->kind == HM_JOB_READ ? use_read : use_crc,
                    (uint8_t *)t->core->zeros);
}

/* A truncate or punch since the pages came took some away that the operation may have allocated
 * again: a load from a hole through the mapping allocates, too. And stores past a new end of the
 * file must not show when it grows. The stripe is held. */
static void drop_strays(struct transaction *t, const struct hm_mask *mask, uint32_t node)
{
    struct hm_mask there = hm_owned(t->record, node), gone;
    uint64_t size = hm_region_size(t->region);
    uint32_t last = (uint32_t)(size % HM_BLOCK_BYTES / HM_PAGE_SIZE);
    gone = hm_without(mask->word, there.word);
    if (node == HM_HOST)
        hm_drop(gone.word, t->record->kept);
    hm_punch_runs(t->region, node, t->block, gone.word);
    if (size % HM_PAGE_SIZE && size / HM_BLOCK_BYTES == t->block && hm_test(mask->word, last) &&
        hm_test(there.word, last))
        hm_zero_part(t->region, size, (size / HM_PAGE_SIZE + 1) * HM_PAGE_SIZE);
}

/* A store that failed has not made the pages that it was to make of holes: they are holes again.
 * The stripe is held. */
static void forget_unmade(struct transaction *t, const struct hm_mask *mask, uint32_t node)
{
    struct hm_mask there = hm_owned(t->record, node), unmade = {{0}};
    hm_keep(there.word, mask->word);
    HM_EACH_PAGE (page, there.word)
        if (hm_pool_is_hole(&t->region->pools[node], hm_page_offset(t->block, page)))
            hm_set(unmade.word, page);
    if (hm_bits(unmade.word))
        (void)hm_block_cut(t->region, t->block, &unmade, false); /* the audit tells */
}

/* ---- remote access --------------------------------------------------------------------------- */

/* Have the pages that the operation reaches remotely at home, out of the CPU's hands, and for a
 * store present. On success the block is FROZEN. */
static int hold_remote(struct transaction *t, const struct hm_mask *remote, bool stores)
{
    struct hm_block *record = t->record;
    struct hm_mask inside, fill;
    for (;;) {
        uint32_t before;
        int error = hm_fetch_home(t, remote);
        if (!error)
            error = hm_recall(t, remote);
        if (error)
            return error;
        while (record->inflight)
            pthread_cond_wait(&t->stripe->changed, &t->stripe->lock);
        if (hm_any(record->device, remote->word)) { /* cut and filled anew meanwhile, or pinned */
            struct hm_mask pinned = hm_pinned(t->region, t->block);
            hm_keep(pinned.word, remote->word);
            hm_thaw(record, t->stripe);
            hm_step_of(t, "thawed", NULL);
            if (hm_any(record->device, pinned.word))
                return -EPERM;
            continue;
        }
        if (!stores)
            return 0;
        inside = hm_inside_file(t->region, t->block);
        fill = hm_both(hm_without(remote->word, record->present).word, inside.word);
        before = hm_bits(fill.word);
        if (hm_reserve(t->core, HM_HOST, before, 0)) {
            hm_thaw(record, t->stripe);
            hm_step_of(t, "thawed", NULL);
            return -ENOBUFS;
        }
        if (!hm_region_pool(t->region, HM_HOST)) {
            hm_release(t->core, HM_HOST, before);
            hm_thaw(record, t->stripe);
            hm_step_of(t, "thawed", NULL);
            return -ENOMEM;
        }
        hm_collapse(t->region, t->block, remote,
                    HM_HOST); /* made before the pages were said to stay */
        hm_populate(t->region, record, &fill, HM_HOST);
        HM_EACH_WORD (w)
            record->dirty[w] |= remote->word[w] & record->present[w];
        hm_step_of(t, "remote.written", remote);
        return 0;
    }
}

/* Read-mostly pages are looked at where they are: a copy might end while it is read. */
static void look_remotely(const struct transaction *t, struct hm_placement *place)
{
    struct hm_advised said;
    if (!hm_advised(t->region, t->block, t->job->node, &said))
        return;
    HM_EACH_WORD (w) {
        uint64_t pages = place->bring.word[w] & said.read_mostly.word[w] & ~t->record->device[w];
        place->bring.word[w] &= ~pages;
        place->remote.word[w] |= pages;
    }
}

int hm_operate(struct transaction *t, const struct hm_mask *mask)
{
    const struct hm_job *job = t->job;
    bool stores = job->kind == HM_JOB_WRITE || job->kind == HM_JOB_FILL, remote;
    struct hm_placement place;
    struct places places;
    uint32_t generation;
    int error;
    place = hm_place(t->region, t->block, job->node, mask, true, NULL);
    if (hm_bits(place.refuse.word))
        return -EPERM;
    if (!stores)
        look_remotely(t, &place);
    remote = hm_bits(place.remote.word) != 0;
    error = hm_bring_in(t, &place.bring, stores, HM_BLOCK_PAGES);
    if (!error && remote)
        error = hold_remote(t, &place.remote, stores);
    if (error)
        return error;
    places.here = hm_owned(t->record, job->node);
    places.host = hm_owned(t->record, HM_HOST);
    hm_keep(places.host.word, place.remote.word);
    hm_count(&t->core->nodes[job->node].counts.operations, 1);
    t->record->last_device = hm_tick(t->core);
    t->record->uses += t->record->uses < UINT32_MAX;
    generation = t->record->generation;
    if (stores)
        hm_mark_written(t, &place.bring);
    if (remote)
        hm_carried(t, HM_TRACE_MAP_REMOTE, &places.host, &places.host, t->record->owner, 0);
    hm_unlock(HM_RANK_STRIPE, &t->stripe->lock);
    hm_pause("operate.begun");
    error = stores ? store(t, &places) : load(t, &places);
    hm_lock(HM_RANK_STRIPE, &t->stripe->lock);
    if (stores && error) {
        forget_unmade(t, &place.bring, job->node);
        if (remote)
            forget_unmade(t, &place.remote, HM_HOST);
    }
    if (stores || t->record->generation != generation) {
        drop_strays(t, &place.bring, job->node);
        if (remote)
            drop_strays(t, &place.remote, HM_HOST);
    }
    if (remote) {
        hm_thaw(t->record, t->stripe);
        hm_step_of(t, "thawed", NULL);
    }
    return error;
}

/* A block that nobody has accessed: there is nothing to move, and reading it gives zeros. */
int hm_operate_without_record(struct transaction *t)
{
    static const struct places nowhere;
    if (t->job->kind == HM_JOB_READ || t->job->kind == HM_JOB_CRC)
        return load(t, &nowhere);
    return 0;
}
