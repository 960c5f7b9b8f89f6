/* Where a READ or WRITE on a region file is answered, parked or refused: the one place.
 *
 * A request is cut at block boundaries (at most two parts: requests are at most 1 MiB). A part is
 * admitted under its stripe's lock, carried out without it while `inflight` holds back migrations,
 * and closed under the lock again. A READ of more than one page is never parked: readahead locks
 * all its folios, and parking it would tie pages, and blocks, together. Direct I/O is an exception:
 * its READs hold no lock, leave nothing in the page cache, and EAGAIN would reach the program.
 *
 * A WRITE of several pages may hold the lock of its last folio (a partial page that is not up to
 * date), so it must not wait for anything that waits for a recall of that folio. Hence: while its
 * block is in a recall it is carried out at once, bringing pages home under the recall's eyes, some
 * at a time; before each of its rounds a recall replays what is parked on the pages; and one that
 * straddles blocks never waits for capacity that is to be freed, which a recall of its second block
 * could do. What it may wait for, for 2 seconds at most, is that a region is destroyed (retry.c):
 * that takes no transaction.
 */
#include "gate/access.h"

#include "base/capacity.h"
#include "base/events.h"
#include "base/fuse.h"
#include "base/pause.h"
#include "base/times.h"
#include "books/cost.h"
#include "books/counters.h"
#include "books/trace.h"
#include "directory/copies.h"
#include "directory/owner.h"
#include "directory/records.h"
#include "gate/order.h"
#include "gate/retry.h"
#include "rules/prefetch.h"
#include "rules/thrash.h"
#include "transaction/migrate.h"
#include "transaction/parked.h"
#include "transaction/transaction.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define MAX_PARTS 2
#define MAX_IOV (2 + HM_MAX_WRITE / HM_PAGE_SIZE + 2)

/* AGAIN: some of it is done. The stripe is left for a moment, and it is to be admitted anew. */
enum admission { ADMITTED, AGAIN, PARK_BUSY, PARK_SERVICE, REFUSED, SKIPPED, PINNED, NO_MEMORY };

struct part {
    struct hm_region *region;
    struct hm_stripe *stripe;
    struct hm_block *record;
    uint64_t block, offset, length; /* bytes of the file */
    uint32_t first, count;          /* pages of the block */
    uint32_t generation;            /* when a READ was admitted */
    uint64_t faulted_at;            /* when it was found to want a device's page; 0: it was not */
    bool charged;                   /* that fault; some of its pages are home already */
    struct hm_mask mask;            /* of a WRITE: without the pages that a newer one has written */
};

static struct part part_of(struct hm_region *region, uint64_t offset, uint64_t end)
{
    struct part part = {.region = region, .block = offset / HM_BLOCK_BYTES, .offset = offset};
    uint64_t limit = (part.block + 1) * HM_BLOCK_BYTES;
    part.length = (end < limit ? end : limit) - offset;
    part.first = (uint32_t)(offset % HM_BLOCK_BYTES / HM_PAGE_SIZE);
    part.count =
        (uint32_t)((offset + part.length - 1) % HM_BLOCK_BYTES / HM_PAGE_SIZE) + 1 - part.first;
    part.mask = hm_mask_range(part.first, part.count);
    part.stripe = hm_stripe_of(region->core, region->ino, part.block);
    part.record = &region->blocks[part.block];
    return part;
}

/* ---- faults of programs ------------------------------------------------------------------ */

/* The part wants pages that a device has: enter that, once. The stripe is held. */
static void begin_fault(struct part *part, bool write)
{
    struct hm_mask all = hm_mask_range(part->first, part->count);
    if (part->faulted_at)
        return;
    part->faulted_at = hm_now();
    part->record->cpu_faulted++;
    hm_count_faults(part->region, HM_HOST, write ? HM_FAULTS_WRITE : HM_FAULTS_READ, 1);
    hm_trace_cpu_fault(part->region, part->block, &all, write, part->faulted_at, false);
}

/* Of the pages that it began with: meanwhile a newer WRITE may have taken some off the mask. */
static void end_fault(const struct part *part, bool write, enum admission admission)
{
    struct hm_mask all = hm_mask_range(part->first, part->count);
    if (part->faulted_at && admission != PARK_BUSY && admission != PARK_SERVICE)
        hm_trace_cpu_fault(part->region, part->block, &all, write, part->faulted_at, true);
}

/* ---- waiting ------------------------------------------------------------------------------ */

static bool is_wide(const struct hm_request *request)
{
    return request->offset / HM_PAGE_SIZE != (request->offset + request->size - 1) / HM_PAGE_SIZE;
}

/* Put a request aside until a transaction on the block ends. The stripe is held. had: where it was
 * before, with its bytes; or NULL. */
static int park(struct part *part, const struct hm_request *request, struct hm_parked *had,
                enum hm_wait wait)
{
    struct hm_request waiting = *request;
    struct hm_parked *parked = had ? had : hm_aside(part->region->core, request);
    if (!parked)
        return -ENOMEM;
    waiting.faulted_at = part->faulted_at;
    waiting.charged = part->charged;
    if (waiting.tries == HM_NEXT_TRY)
        waiting.tries = HM_FIRST_TRY;
    if (!had && request->data)
        waiting.data = parked->data;
    parked->request = waiting;
    parked->next = NULL;
    parked->block = part->block;
    parked->wait = wait;
    hm_block_touch(part->region, part->block);
    part->record->parked++;
    if (request->opcode == FUSE_WRITE)
        atomic_fetch_add(&part->region->core->parked_writes, 1);
    *part->stripe->parked_end = parked;
    part->stripe->parked_end = &parked->next;
    hm_count(&part->region->core->count.parked, 1);
    hm_step(part->region, part->block,
            hm_is_direct_read(request)          ? "direct.parked"
            : request->opcode == FUSE_READ      ? is_wide(request) ? "ahead.parked" : "read.parked"
            : request->flags & FUSE_WRITE_CACHE ? "back.parked"
                                                : "write.parked",
            HM_BY_GATE, &part->mask);
    return 0;
}

/* window: what the host's policy brings home, or NULL. */
static void report_fault(struct part *part, uint32_t reason, const struct hm_mask *window,
                         bool write)
{
    struct hm_core *core = part->region->core;
    struct hm_event event = {.kind = HM_EVENT_FAULT,
                             .reason = reason,
                             .ino = part->region->ino,
                             .block = part->block,
                             .first = part->first,
                             .count = part->count,
                             .write = write};
    if (window)
        memcpy(event.pages, window->word, sizeof(event.pages));
    hm_count(reason == HM_FAULT_OWNER ? &core->count.service_faults : &core->count.no_room, 1);
    hm_event_push(core, &event);
}

/* ---- the express path --------------------------------------------------------------------- */

/* The device-owned pages that a CPU fault on the part brings home, by the host's policy. */
static struct hm_mask fault_window(const struct part *part, const struct hm_prefetch *policy,
                                   uint32_t *pages)
{
    struct hm_block *record = part->record;
    struct hm_mask touched = hm_mask_range(part->first, part->count), home, window;
    struct hm_mask inside = hm_inside_file(part->region, part->block);
    home = hm_without(record->present, record->device);
    window = hm_prefetch_window(policy, &home, &touched, &inside, record->cpu_faults,
                                &record->cpu_stride);
    if (atomic_load_explicit(&part->region->advised, memory_order_relaxed)) {
        struct hm_mask pinned = hm_pinned(part->region, part->block);
        hm_advised_window(part->region, part->block, &touched, &window);
        hm_drop(window.word, pinned.word);
    }
    hm_add(window.word, touched.word);
    hm_keep(window.word, record->device);
    *pages = hm_bits(window.word);
    return window;
}

/* Whether a device has pages of the part that may not leave it. */
static bool pinned_away(const struct part *part)
{
    struct hm_mask pinned;
    if (!atomic_load_explicit(&part->region->advised, memory_order_relaxed))
        return false;
    pinned = hm_pinned(part->region, part->block);
    hm_keep(pinned.word, part->record->device);
    return hm_any(pinned.word, part->mask.word);
}

static void count_express(struct part *part)
{
    hm_count(&part->region->core->count.express_faults, 1);
}

/* Have a mover bring the window home, with its pages reserved now. False: the host is full. */
static bool submit_window(struct part *part, const struct hm_mask *window, uint32_t pages)
{
    struct hm_core *core = part->region->core;
    struct hm_job job = {.kind = HM_JOB_MIGRATE,
                         .ino = part->region->ino,
                         .block = part->block,
                         .flags = HM_JOB_QUIET | HM_JOB_CHOSEN | HM_JOB_FAULT,
                         .reserved = pages};
    memcpy(job.window, window->word, sizeof(job.window));
    if (hm_reserve(core, HM_HOST, pages, 0))
        return false;
    if (!hm_submit(core, &job))
        return true;
    hm_release(core, HM_HOST, pages);
    return false;
}

/* Charge the part's fault on pages that a device has, once, and find what the host's policy brings
 * home for it. */
static struct hm_mask charge_fault(struct part *part, const struct hm_prefetch *policy,
                                   uint32_t *pages)
{
    struct hm_block *record = part->record;
    struct hm_mask window = hm_both(part->mask.word, record->device);
    if (!part->charged)
        hm_thrash_fault(part->region, part->block, HM_HOST, &window);
    window = fault_window(part, policy, pages);
    if (part->charged)
        return window;
    record->cpu_faults += record->cpu_faults < UINT8_MAX;
    hm_charge_faults(part->region->core, HM_HOST, 1);
    return window;
}

/* Bring home what the part itself wants, as many pages as the stripe may be held for. All of them
 * have to fit before the first comes; where others take that capacity meanwhile, a WRITE that is
 * refused leaves some at home. */
static enum admission bring_some(struct part *part, enum hm_overcommit overcommit)
{
    struct hm_core *core = part->region->core;
    struct hm_mask window = hm_both(part->mask.word, part->record->device);
    struct hm_mask copies = hm_without(window.word, part->record->kept);
    uint32_t pages = hm_bits(copies.word);
    if (overcommit == HM_OVERCOMMIT_STAGING) {
        if (hm_reserve(core, HM_HOST, pages, 1))
            return REFUSED;
        hm_release(core, HM_HOST, pages);
    }
    hm_limit(&window, HM_INLINE_PAGES);
    if (hm_bring_home(part->region, part->block, &window, overcommit))
        return overcommit == HM_OVERCOMMIT_ALWAYS ? NO_MEMORY : REFUSED;
    if (!part->charged)
        count_express(part);
    part->charged = true;
    return hm_any(part->record->device, part->mask.word) ? AGAIN : ADMITTED;
}

/* Bring device-owned pages of the part home: at once for a few, with a mover for many, and when
 * that takes a decision by asking the service. Urgent: never by waiting, but in pieces. The stripe
 * is held. ADMITTED: they are home. */
static enum admission express(struct part *part, bool write, enum hm_overcommit overcommit)
{
    struct hm_core *core = part->region->core;
    struct hm_block *record = part->record;
    const struct hm_prefetch *policy = atomic_load(&core->prefetch[HM_HOST]);
    bool by_itself = core->config.express && policy->kind != HM_PREFETCH_ASK;
    struct hm_mask window, wide;
    uint32_t pages;
    bool urgent = overcommit != HM_OVERCOMMIT_NONE;
    if (record->busy && !(urgent && record->state == HM_RECALL))
        return PARK_BUSY;
    if (urgent && part->charged)
        return bring_some(part, overcommit);
    window = wide = charge_fault(part, policy, &pages);
    if (urgent)
        return bring_some(part, overcommit);
    /* Who is to wait in real time can't do so in here, where the stripe is held. */
    if (by_itself && (pages > HM_INLINE_PAGES || core->config.realtime) &&
        submit_window(part, &window, pages)) {
        count_express(part);
        return PARK_BUSY;
    }
    if (pages > HM_INLINE_PAGES) { /* no more than what must be home */
        window = hm_both(part->mask.word, record->device);
        pages = hm_bits(window.word);
    }
    if (by_itself && pages <= HM_INLINE_PAGES &&
        !hm_bring_home(part->region, part->block, &window, overcommit)) {
        count_express(part);
        return ADMITTED;
    }
    report_fault(part, HM_FAULT_OWNER, &wide, write);
    return PARK_SERVICE;
}

/* ---- READ --------------------------------------------------------------------------------- */

static bool is_frozen(const struct part *part)
{
    return hm_frozen(part->stripe, part->region->ino, part->block, part->record, &part->mask);
}

/* waits: the READ may be parked. direct: it leaves nothing in the page cache. */
static enum admission admit_read(struct part *part, bool waits, bool direct)
{
    struct hm_block *record = part->record;
    hm_block_touch(part->region, part->block);
    if (is_frozen(part))
        return waits ? PARK_BUSY : REFUSED;
    if (!waits && hm_any(record->recalling, part->mask.word))
        return REFUSED;
    if (hm_any(record->device, part->mask.word)) {
        enum admission admission;
        if (!waits)
            return REFUSED;
        if (pinned_away(part))
            return PINNED;
        begin_fault(part, false);
        admission = express(part, false, HM_OVERCOMMIT_NONE);
        if (admission != ADMITTED)
            return admission;
    }
    if (atomic_load_explicit(&part->region->copies, memory_order_relaxed) &&
        atomic_load(&part->region->writers) && !direct) {
        hm_collapse(part->region, part->block, &part->mask, HM_HOST);
        hm_step(part->region, part->block, "copies.ended", HM_BY_GATE, &part->mask);
    }
    /* The page cache may fill a hole with stores nobody announces: what will hold them is made now,
     * and reserved. */
    if (!direct && !hm_region_pool(part->region, HM_HOST))
        return waits ? NO_MEMORY : REFUSED;
    if (!direct && hm_reserve(part->region->core, HM_HOST,
                              hm_unreserved_holes(part->record, &part->mask), 0)) {
        if (!waits)
            return REFUSED;
        report_fault(part, HM_FAULT_HOST_FULL, NULL, false);
        hm_step(part->region, part->block, "host.full", HM_BY_GATE, NULL);
        return PARK_SERVICE;
    }
    if (!direct)
        hm_add(record->cached, part->mask.word);
    record->inflight++;
    part->generation = record->generation;
    record->last_cpu = hm_tick(part->region->core);
    hm_step(part->region, part->block,
            direct  ? "direct.admitted"
            : waits ? "read.admitted"
                    : "ahead.admitted",
            HM_BY_GATE, &part->mask);
    return ADMITTED;
}

/* Where the bytes of an admitted part are; the stripe is held. `page_bytes`: for those of one page,
 * if there is no address space to map them. */
static int gather(const struct part *part, struct iovec *iov, int *count,
                  uint8_t page_bytes[HM_PAGE_SIZE])
{
    struct hm_core *core = part->region->core;
    uint64_t at = part->offset, end = part->offset + part->length;
    uint8_t *base = NULL;
    while (at < end) {
        uint32_t page = (uint32_t)(at % HM_BLOCK_BYTES / HM_PAGE_SIZE), last = page + 1;
        bool present = hm_test(part->record->present, page);
        uint64_t stop;
        while (last < part->first + part->count && hm_test(part->record->present, last) == present)
            last++;
        stop = hm_page_offset(part->block, last);
        stop = stop < end ? stop : end;
        if (present && !base) {
            base = hm_pool_map(&part->region->pools[HM_HOST], part->block * HM_BLOCK_BYTES);
            if (!base && part->count > 1)
                return -ENOMEM;
            if (!base)
                return hm_pool_read(&part->region->pools[HM_HOST], at, page_bytes, part->length,
                                    &iov[(*count)++]);
        }
        iov[*count].iov_base = present ? base + at % HM_BLOCK_BYTES : (uint8_t *)core->zeros;
        iov[(*count)++].iov_len = stop - at;
        at = stop;
    }
    return 0;
}

static void close_part(struct part *part)
{
    HM_GUARD(HM_RANK_STRIPE, &part->stripe->lock);
    part->record->inflight--;
    /* What was cut while it was being read came back as pages of zeros: drop them. If that took
     * bytes of a WRITE that is being copied, it sees the generation and begins again. */
    if (part->record->generation != part->generation) {
        for (uint32_t page = part->first; page < part->first + part->count; page++)
            if (!hm_test(part->record->present, page))
                hm_pool_punch(&part->region->pools[HM_HOST], hm_page_offset(part->block, page),
                              HM_PAGE_SIZE);
        part->record->generation += part->record->writing;
    }
    hm_step(part->region, part->block, "read.answered", HM_BY_GATE, &part->mask);
    pthread_cond_broadcast(&part->stripe->changed);
}

/* True: it was parked. */
static bool read_region(struct hm_core *core, struct hm_region *region,
                        const struct hm_request *request, struct hm_parked *had)
{
    uint64_t size = hm_region_size(region);
    uint64_t at = request->offset, end = at + request->size;
    uint8_t page_bytes[HM_PAGE_SIZE];
    struct iovec iov[MAX_IOV];
    struct part parts[MAX_PARTS];
    int admitted = 0, count = 1, error = 0;
    enum admission admission = ADMITTED;
    bool direct = hm_is_direct_read(request), waits = direct || !is_wide(request), parked = false;
    end = end < size ? end : size;
    while (at < end && !error && admission == ADMITTED) {
        struct part *part = &parts[admitted];
        *part = part_of(region, at, end);
        part->faulted_at = request->faulted_at;
        hm_lock(HM_RANK_STRIPE, &part->stripe->lock);
        admission = admit_read(part, waits, direct);
        end_fault(part, false, admission);
        if (admission == ADMITTED) {
            admitted++;
            error = gather(part, iov, &count, page_bytes);
            if (error && !waits)
                admission = REFUSED; /* the kernel asks again, for single pages */
        } else if (admission == PINNED) {
            error = -EBUSY;
        } else if (admission == NO_MEMORY) {
            error = -ENOMEM;
        } else if (admission != REFUSED) {
            error =
                park(part, request, had, admission == PARK_BUSY ? HM_WAIT_BUSY : HM_WAIT_SERVICE);
            parked = !error;
        }
        hm_unlock(HM_RANK_STRIPE, &part->stripe->lock);
        at += part->length;
    }
    if (admission == REFUSED) {
        hm_count(&core->count.readahead_refused, 1);
        error = -EAGAIN;
    }
    if (error) {
        hm_reply(core, request->unique, -error, NULL, 0);
    } else if (admission == ADMITTED) {
        hm_pause("read.admitted");
        hm_reply(core, request->unique, 0, iov, count);
        hm_count(&core->count.reads, 1);
        hm_count(&core->count.read_bytes, at > request->offset ? at - request->offset : 0);
    }
    while (admitted)
        close_part(&parts[--admitted]);
    return parked;
}

/* ---- WRITE -------------------------------------------------------------------------------- */

/* The pages of the part that the WRITE covers from end to end. */
static struct hm_mask whole_pages(const struct part *part)
{
    uint32_t first = part->first, count = part->count;
    if (part->offset % HM_PAGE_SIZE) {
        first++;
        count--;
    }
    if (count && (part->offset + part->length) % HM_PAGE_SIZE)
        count--;
    return hm_mask_range(first, count);
}

/* Leave to the part's mask what no newer WRITE has written. */
static void leave_out_overtaken(struct part *part, uint64_t unique)
{
    struct hm_mask all = hm_mask_range(part->first, part->count), overtaken;
    overtaken = hm_order_overtaken(part->stripe, part->region->ino, part->block, &all, unique);
    if (hm_bits(overtaken.word))
        hm_count(&part->region->core->count.stale_writes_skipped, 1);
    part->mask = hm_without(all.word, overtaken.word);
}

static enum admission admit_write(struct part *part, const struct hm_request *request,
                                  bool straddles)
{
    struct hm_core *core = part->region->core;
    struct hm_block *record = part->record;
    bool from_cache = request->flags & FUSE_WRITE_CACHE;
    enum hm_overcommit overcommit = HM_OVERCOMMIT_NONE;
    struct hm_mask whole = whole_pages(part);
    uint32_t holes;
    while (record->writing && record->state != HM_FROZEN)
        pthread_cond_wait(&part->stripe->changed, &part->stripe->lock);
    hm_block_touch(part->region, part->block);
    if (record->state == HM_FROZEN)
        return PARK_BUSY;
    if (from_cache)
        overcommit = HM_OVERCOMMIT_ALWAYS; /* refused, its stores would be lost */
    else if (straddles || (record->state == HM_RECALL && is_wide(request)))
        overcommit = HM_OVERCOMMIT_STAGING;
    leave_out_overtaken(part, request->unique);
    if (!hm_bits(part->mask.word))
        return SKIPPED;
    if (hm_any(record->device, part->mask.word)) {
        enum admission admission;
        if (!from_cache && pinned_away(part))
            return PINNED;
        begin_fault(part, true);
        admission = express(part, true, overcommit);
        if (admission != ADMITTED)
            return admission;
    }
    if (atomic_load_explicit(&part->region->copies, memory_order_relaxed)) {
        hm_collapse(part->region, part->block, &part->mask, HM_HOST);
        hm_step(part->region, part->block, "copies.ended", HM_BY_GATE, &part->mask);
    }
    holes = hm_unreserved_holes(record, &part->mask);
    if (hm_reserve(core, HM_HOST, holes, overcommit != HM_OVERCOMMIT_NONE)) {
        if (overcommit == HM_OVERCOMMIT_STAGING)
            return REFUSED;
        if (overcommit == HM_OVERCOMMIT_NONE) {
            report_fault(part, HM_FAULT_HOST_FULL, NULL, true);
            hm_step(part->region, part->block, "host.full", HM_BY_GATE, NULL);
            return PARK_SERVICE;
        }
        hm_reserve_always(core, HM_HOST, holes);
    }
    /* What the page cache writes back is the page to its end, or to the file's. */
    if (hm_order_remember(core, part->stripe, part->region->ino, part->block,
                          from_cache ? &part->mask : &whole, request->unique)) {
        hm_release(core, HM_HOST, holes);
        return NO_MEMORY;
    }
    /* The page cache's own WRITEs mark, too: theirs may be the only ones that tell of a folio
     * that a write(2) made, if they overtook its WRITE. It costs a recall one more, empty round. */
    hm_add(record->cached, part->mask.word);
    record->inflight++;
    record->writing = 1;
    record->last_cpu = hm_tick(part->region->core);
    hm_step(part->region, part->block, from_cache ? "back.admitted" : "write.admitted", HM_BY_GATE,
            &part->mask);
    return ADMITTED;
}

/* Copy what the runs of `pages` take of the part into the host pool: through the mapping, which is
 * 1.4 times as fast, if they were there when it was admitted. */
static int copy_in(const struct part *part, const struct hm_request *request,
                   const struct hm_mask *pages, bool there)
{
    struct hm_pool *pool = hm_region_pool(part->region, HM_HOST);
    uint64_t base = part->block * HM_BLOCK_BYTES, end = part->offset + part->length;
    int error = pool ? 0 : -errno;
    for (uint32_t first = 0, count; !error && hm_next_run(pages->word, &first, &count);
         first += count) {
        uint64_t from = base + (uint64_t)first * HM_PAGE_SIZE;
        uint64_t to = base + (uint64_t)(first + count) * HM_PAGE_SIZE;
        const uint8_t *bytes;
        from = from > part->offset ? from : part->offset;
        to = to < end ? to : end;
        bytes = request->data + (from - request->offset);
        error = there ? hm_pool_store(pool, from, bytes, to - from)
                      : hm_pool_write(pool, from, bytes, to - from);
    }
    return error;
}

/* Copy an admitted part into the host pool and close it. -EAGAIN: a punch came between. */
static int apply_write(struct part *part, const struct hm_request *request)
{
    struct hm_block *record = part->record;
    uint32_t generation = record->generation, before;
    struct hm_mask there, new_pages;
    int error;
    there = hm_both(part->mask.word, record->present);
    new_pages = hm_without(part->mask.word, record->present);
    hm_unlock(HM_RANK_STRIPE, &part->stripe->lock);
    hm_pause("write.admitted");
    error = copy_in(part, request, &there, true);
    if (!error)
        error = copy_in(part, request, &new_pages, false);
    hm_lock(HM_RANK_STRIPE, &part->stripe->lock);
    record->writing = 0;
    record->inflight--;
    pthread_cond_broadcast(&part->stripe->changed);
    if (error || record->generation != generation) {
        /* What was put into holes is nobody's: it would show when they are filled. */
        new_pages = hm_without(part->mask.word, record->present);
        hm_punch_runs(part->region, HM_HOST, part->block, new_pages.word);
        hm_step(part->region, part->block, "write.undone", HM_BY_GATE, &part->mask);
        return record->generation != generation ? -EAGAIN : error;
    }
    before = hm_block_charge(part->region, record);
    new_pages = hm_without(part->mask.word, record->present);
    hm_populate(part->region, record, &new_pages, HM_HOST);
    hm_add(record->dirty, part->mask.word);
    hm_reserve_always(part->region->core, HM_HOST, hm_block_charge(part->region, record) - before);
    hm_step(part->region, part->block,
            request->flags & FUSE_WRITE_CACHE ? "back.applied" : "write.applied", HM_BY_GATE,
            &part->mask);
    return 0;
}

/* Bytes up to `end` were written: the size follows, and so do the times. */
static void written(struct hm_region *region, uint64_t end)
{
    uint64_t size = hm_region_size(region);
    while (size < end && !__atomic_compare_exchange_n(&region->record->size, &size, end, false,
                                                      __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
        ;
    hm_region_changed(region, true);
}

/* Put the rest of a WRITE aside, from the part on. */
static int park_rest(struct part *part, const struct hm_request *request, struct hm_parked *had,
                     enum admission admission)
{
    struct hm_request rest = *request;
    uint64_t done = part->offset - request->offset;
    rest.offset += done;
    rest.size -= (uint32_t)done;
    rest.data += done;
    rest.done += (uint32_t)done;
    return park(part, &rest, had, admission == PARK_BUSY ? HM_WAIT_BUSY : HM_WAIT_SERVICE);
}

void hm_drop_privileges(struct hm_region_record *record)
{
    uint32_t mode = __atomic_load_n(&record->mode, __ATOMIC_RELAXED);
    uint32_t drop = S_ISUID | (mode & S_IXGRP ? S_ISGID : 0);
    if (mode & drop)
        __atomic_store_n(&record->mode, mode & ~drop, __ATOMIC_RELAXED);
}

/* One part of a WRITE: 0 applied, 1 parked with what follows, or -errno. */
static int try_part(struct part *part, const struct hm_request *request, struct hm_parked *had,
                    bool straddles)
{
    enum admission admission;
    bool again;
    int error;
    hm_lock(HM_RANK_STRIPE, &part->stripe->lock);
    do {
        error = 0;
        admission = admit_write(part, request, straddles);
        if (admission == ADMITTED)
            error = apply_write(part, request);
        if (admission == AGAIN) {
            hm_unlock(HM_RANK_STRIPE, &part->stripe->lock);
            sched_yield(); /* or this thread has the lock again before one that waits for it */
            hm_pause("write.goes.on");
            hm_lock(HM_RANK_STRIPE, &part->stripe->lock);
        }
    } while (admission == AGAIN || error == -EAGAIN);
    if (admission == REFUSED)
        error = -ENOSPC;
    else if (admission == PINNED)
        error = -EBUSY;
    else if (admission == NO_MEMORY)
        error = -ENOMEM;
    else if (admission == PARK_BUSY || admission == PARK_SERVICE)
        error = park_rest(part, request, had, admission) ? -ENOMEM : 1;
    again = error == -ENOMEM && request->flags & FUSE_WRITE_CACHE;
    if (!again)
        end_fault(part, true, error == -ENOMEM ? NO_MEMORY : admission);
    hm_unlock(HM_RANK_STRIPE, &part->stripe->lock);
    return error;
}

/* The bytes of a WRITE from the page cache are nowhere else: without memory to put it aside it is
 * tried again and again. What it may wait for meanwhile is no more than the end of a copy: a WRITE
 * from the page cache never waits for capacity, and in a recall it is carried out at once. */
static int write_part(struct part *part, const struct hm_request *request, struct hm_parked *had,
                      bool straddles)
{
    int error;
    while ((error = try_part(part, request, had, straddles)) == -ENOMEM &&
           request->flags & FUSE_WRITE_CACHE)
        usleep(1000);
    return error;
}

/* True: its rest was parked. */
static bool write_region(struct hm_core *core, struct hm_region *region,
                         const struct hm_request *request, struct hm_parked *had)
{
    uint64_t at = request->offset, end = at + request->size;
    uint64_t size = hm_region_size(region);
    bool from_cache = request->flags & FUSE_WRITE_CACHE;
    bool straddles = at / HM_BLOCK_BYTES != (end - 1) / HM_BLOCK_BYTES;
    struct hm_request again = *request;
    int error = 0;
    again.faulted_at = 0; /* the fault of this try ends with it */
    if (end > HM_MAX_BYTES) {
        hm_reply(core, request->unique, EFBIG, NULL, 0);
        return false;
    }
    if (request->flags & FUSE_WRITE_KILL_SUIDGID)
        hm_drop_privileges(region->record);
    if (from_cache && end > size)
        end = at < size ? size : at;
    while (at < end && !error) {
        struct part part = part_of(region, at, end);
        part.faulted_at = request->faulted_at;
        part.charged = request->charged;
        error = write_part(&part, request, had, straddles);
        at += error ? 0 : part.length;
        again.charged = part.charged;
    }
    if (at > request->offset)
        written(region, from_cache ? 0 : at); /* the page cache never moves the end */
    if (from_cache && !error)
        at = request->offset + request->size;
    hm_count(&core->count.written_bytes, at - request->offset);
    if (error > 0)
        return true; /* who carries out the rest answers */
    if (error == -ENOSPC && at == request->offset && !request->done && hm_retry_later(core, &again))
        return false;
    hm_count(&core->count.writes, 1);
    at += request->done;
    if (error && at == request->offset)
        hm_reply(core, request->unique, -error, NULL, 0);
    else
        hm_reply_write(core, request->unique, (uint32_t)(at - request->offset));
    return false;
}

/* ------------------------------------------------------------------------------------------- */

/* True: it waits (again), and `had` with it. */
static bool carry_out(struct hm_core *core, const struct hm_request *request, struct hm_parked *had)
{
    HM_AUTO_PUT struct hm_region *region = hm_region_get(core, request->ino);
    bool waits = false;
    if (!region) {
        hm_reply(core, request->unique, ENOENT, NULL, 0);
        return false;
    }
    if (!request->size)
        hm_reply(core, request->unique, EINVAL, NULL, 0);
    else if (request->opcode == FUSE_READ)
        waits = read_region(core, region, request, had);
    else
        waits = write_region(core, region, request, had);
    return waits;
}

bool hm_answer(struct hm_core *core, const struct hm_request *request, struct hm_parked *had,
               int error)
{
    bool write = request->opcode == FUSE_WRITE;
    /* A WRITE from the page cache carries stores that have no other copy. */
    if (!error || (write && request->flags & FUSE_WRITE_CACHE)) {
        hm_count(&core->count.replayed, 1);
        return carry_out(core, request, had);
    }
    HM_AUTO_PUT struct hm_region *region = hm_region_get(core, request->ino);
    if (region) {
        struct part part = part_of(region, request->offset, request->offset + request->size);
        part.faulted_at = request->faulted_at;
        end_fault(&part, write, REFUSED);
    }
    hm_reply(core, request->unique, error, NULL, 0);
    return false;
}

void hm_access(struct hm_core *core, const struct hm_request *request)
{
    carry_out(core, request, NULL);
}
