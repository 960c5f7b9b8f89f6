/* Transactions on one block: migration, device operations, workers' faults.
 *
 * The only place that changes a page's owner is flip() and hm_bring_home(), both here.
 * The order is always: recall until proven clean, freeze, drain, copy, check the generation, flip,
 * punch, thaw. PROTOCOL.md in hmmfs/service says why each step is where it is.
 */
#include "core.h"

#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>
#include <zlib.h>

struct transaction {
    struct hm_core *core;
    struct hm_region *region;
    struct hm_stripe *stripe;
    struct hm_block *record;
    uint64_t block;
    const struct hm_job *job;
    uint32_t reserved;    /* pages reserved on job->node and not used yet */
    struct hm_mask blank; /* TOUCH: pages whose old bytes the worker's kernel does without */
    struct hm_event event;
};

static uint64_t page_offset(uint64_t block, uint32_t page)
{
    return block * HM_BLOCK_BYTES + (uint64_t)page * HM_PAGE_SIZE;
}

static void punch_runs(struct hm_region *region, uint32_t node, uint64_t block,
                       const uint64_t *words)
{
    for (uint32_t first = 0, count; hm_next_run(words, &first, &count); first += count)
        hm_pool_punch(&region->pools[node], page_offset(block, first),
                      (uint64_t)count * HM_PAGE_SIZE);
}

/* ---- migration ---------------------------------------------------------------------------- */

struct plan {
    struct hm_mask move;  /* present pages whose owner changes */
    struct hm_mask copy;  /* of these, the ones whose bytes have to be carried */
    struct hm_mask blank; /* of these, the ones that become pages of zeros instead */
    struct hm_mask fill;  /* holes that become pages of zeros */
    uint32_t moves, copies, fills;
    uint8_t from[HM_BLOCK_PAGES]; /* owners when planned: a truncate changes the record's */
};

/* The pages of the block before the end of the file: an operation that began before a truncate
 * makes none past it. */
static struct hm_mask inside_file(struct hm_region *region, uint64_t block)
{
    uint64_t size = hm_region_size(region);
    uint64_t base = block * HM_BLOCK_BYTES;
    uint64_t pages = size > base ? (size - base + HM_PAGE_SIZE - 1) / HM_PAGE_SIZE : 0;
    return hm_mask_range(0, pages < HM_BLOCK_PAGES ? (uint32_t)pages : HM_BLOCK_PAGES);
}

static void make_plan(const struct transaction *t, const struct hm_mask *mask, bool populate,
                      uint32_t limit, struct plan *plan)
{
    const struct hm_block *record = t->record;
    struct hm_mask wanted;
    memset(plan, 0, sizeof(*plan));
    memcpy(plan->from, record->owner, sizeof(plan->from));
    HM_EACH_WORD (w)
        wanted.word[w] = mask->word[w] & record->present[w];
    HM_EACH_PAGE (page, wanted.word) {
        uint64_t bit = 1ULL << (page % 64);
        uint32_t w = page / 64;
        if (plan->moves == limit)
            break;
        if (record->owner[page] == t->job->node)
            continue;
        plan->move.word[w] |= bit;
        plan->moves++;
        if (t->blank.word[w] & bit)
            plan->blank.word[w] |= bit;
        else if (t->job->node != HM_HOST || !(record->kept[w] & bit))
            plan->copy.word[w] |= bit;
    }
    if (populate) {
        struct hm_mask inside = inside_file(t->region, t->block);
        HM_EACH_WORD (w)
            plan->fill.word[w] = mask->word[w] & ~record->present[w] & inside.word[w];
    }
    plan->copies = hm_bits(plan->copy.word);
    plan->fills = hm_bits(plan->fill.word);
}

static int copy_pages(struct transaction *t, const struct plan *plan, const struct hm_mask *copy)
{
    struct hm_pool *to = hm_region_pool(t->region, t->job->node);
    uint32_t first = 0, count;
    if (!to)
        return -errno;
    for (; hm_next_run(copy->word, &first, &count); first += count) {
        uint32_t from = plan->from[first], n = 1;
        int error;
        while (n < count && plan->from[first + n] == from)
            n++;
        count = n;
        error = hm_pool_copy(to, &t->region->pools[from], page_offset(t->block, first),
                             (size_t)count * HM_PAGE_SIZE);
        if (error)
            return error;
    }
    return 0;
}

/* Let no worker store to what is about to be copied. */
static int protect(struct transaction *t, const struct plan *plan)
{
    struct hm_mask from[HM_MAX_NODES] = {0};
    int error = 0;
    HM_EACH_PAGE (page, plan->move.word)
        from[plan->from[page]].word[page / 64] |= 1ULL << (page % 64);
    for (uint32_t node = 1; node < t->core->config.nodes && !error; node++)
        error = hm_window_protect(t->region, node, t->block, &from[node]);
    return error;
}

/* A few pages for a worker that waits for them, through its userfaultfd: a fault takes 10.9 us
 * then, on one CPU, instead of 13.0. Takes the pages that are done off `copy` and `zeros`. A load
 * from a page of zeros or from one that another copies meanwhile is as good as after the flip: what
 * comes is protected. */
static void hand_over(struct transaction *t, const struct plan *plan, struct hm_mask *copy,
                      struct hm_mask *zeros)
{
    if (t->job->kind != HM_JOB_TOUCH ||
        hm_bits(copy->word) + hm_bits(zeros->word) > HM_INLINE_PAGES)
        return;
    for (int pass = 0; pass < 2; pass++) {
        struct hm_mask *mask = pass ? zeros : copy;
        HM_EACH_PAGE (page, mask->word) {
            const uint8_t *from = t->core->zeros;
            if (!pass)
                from =
                    hm_pool_map(&t->region->pools[plan->from[page]], page_offset(t->block, page));
            if (!from || hm_window_copy(t->region, t->job->node, t->block, page, 1, from,
                                        !hm_test(t->job->stores, page)))
                return;
            mask->word[page / 64] &= ~(1ULL << (page % 64));
        }
    }
}

/* Put what the plan brings where it goes, out of every worker's reach or protected. Holes that a
 * worker touched, and what it does without, become pages of zeros; a store of ours makes its own.
 */
static int carry(struct transaction *t, const struct plan *plan)
{
    struct hm_pool *pool = hm_region_pool(t->region, t->job->node);
    struct hm_mask copy = plan->copy, zeros, arriving;
    uint32_t first = 0, count;
    int error = pool ? protect(t, plan) : -errno;
    if (error)
        return error;
    HM_EACH_WORD (w)
        zeros.word[w] = plan->fill.word[w] | plan->blank.word[w];
    hand_over(t, plan, &copy, &zeros);
    HM_EACH_WORD (w)
        arriving.word[w] = copy.word[w] | zeros.word[w];
    error = hm_window_protect(t->region, t->job->node, t->block, &arriving);
    if (!error)
        error = copy_pages(t, plan, &copy);
    if (t->job->kind == HM_JOB_TOUCH)
        for (; !error && hm_next_run(zeros.word, &first, &count); first += count)
            error =
                hm_pool_zero(pool, page_offset(t->block, first), (uint64_t)count * HM_PAGE_SIZE);
    return error;
}

static bool lives(const struct hm_block *record, uint32_t page, uint32_t node)
{
    if (node == HM_HOST && hm_test(record->kept, page))
        return true;
    return hm_test(record->present, page) && record->owner[page] == node;
}

/* Punch what a copy left behind without touching pages that live there: in the destination, and in
 * the source as well, since reading a page that a truncate has just punched through the mapping
 * allocates it again. The block is still frozen, so no WRITE is under way. */
static void discard(struct transaction *t, const struct plan *plan)
{
    struct hm_mask gone[HM_MAX_NODES] = {0};
    for (uint32_t page = 0; page < HM_BLOCK_PAGES; page++) {
        uint64_t bit = 1ULL << (page % 64);
        bool copied = hm_test(plan->copy.word, page);
        bool zeroed = hm_test(plan->fill.word, page) || hm_test(plan->blank.word, page);
        if ((copied || zeroed) && !lives(t->record, page, t->job->node))
            gone[t->job->node].word[page / 64] |= bit;
        if (copied && !lives(t->record, page, plan->from[page]))
            gone[plan->from[page]].word[page / 64] |= bit;
    }
    for (uint32_t node = 0; node < t->core->config.nodes; node++)
        punch_runs(t->region, node, t->block, gone[node].word);
    hm_count(&t->core->count.migrations_discarded, 1);
}

/* Change the owner of plan->move and give plan->fill its first. The stripe is held, the copies are
 * made, the generation was checked. Which pages each node loses for good comes back in `freed`. */
static void flip(struct transaction *t, const struct plan *plan, struct hm_mask freed[HM_MAX_NODES])
{
    struct hm_block *record = t->record;
    uint32_t to = t->job->node, moved[HM_MAX_NODES] = {0};
    struct hm_mask changing;
    bool keep = t->core->config.keep_clean;
    memset(freed, 0, HM_MAX_NODES * sizeof(*freed));
    HM_EACH_WORD (w)
        changing.word[w] = plan->move.word[w] | plan->fill.word[w];
    HM_EACH_PAGE (page, changing.word) {
        uint32_t w = page / 64, from = record->owner[page];
        uint64_t bit = 1ULL << (page % 64);
        bool move = plan->move.word[w] & bit;
        record->owner[page] = (uint8_t)to;
        record->dirty[w] &= ~bit;
        if (to == HM_HOST) {
            record->device[w] &= ~bit;
            record->kept[w] &= ~bit;
        } else {
            record->device[w] |= bit;
            if (plan->blank.word[w] & bit) {
                freed[HM_HOST].word[w] |= record->kept[w] & bit;
                record->kept[w] &= ~bit;
            } else if (move && from == HM_HOST && keep) {
                record->kept[w] |= bit;
            }
        }
        if (!move) {
            record->present[w] |= bit;
            continue;
        }
        moved[from]++;
        if (!(record->kept[w] & bit) || from != HM_HOST)
            freed[from].word[w] |= bit;
    }
    for (uint32_t node = 0; node < t->core->config.nodes; node++) {
        if (!moved[node])
            continue;
        hm_block_pages(t->region, record, node, -(int64_t)moved[node]);
        hm_count(&t->core->nodes[node].pages_out, moved[node]);
    }
    hm_block_pages(t->region, record, to, (int64_t)plan->moves + plan->fills);
    hm_count(&t->core->nodes[to].pages_in, plan->moves);
}

static void count_migration(struct transaction *t, const struct plan *plan,
                            const struct hm_mask freed[HM_MAX_NODES])
{
    struct hm_core *core = t->core;
    uint32_t from = HM_HOST;
    for (uint32_t node = 1; node < core->config.nodes; node++)
        if (hm_bits(freed[node].word))
            from = node;
    hm_count(&core->nodes[from].copies_made, plan->copies);
    hm_count(&core->nodes[from].copies_saved, plan->moves - plan->copies);
    if (t->job->flags & HM_JOB_EVICT) {
        hm_count(&core->nodes[from].evicted_blocks, 1);
        hm_count(&core->nodes[from].evicted_pages, plan->moves);
    }
    hm_count(&core->count.migrations, 1);
    t->event.moved += plan->moves;
    t->event.saved += plan->moves - plan->copies;
    t->record->last_migrated = hm_now();
    if (t->job->node != HM_HOST)
        t->record->cpu_faults = 0;
    else
        t->record->device_faults = 0;
}

static int take_room(struct transaction *t, uint32_t pages, enum hm_room room)
{
    uint32_t missing = pages > t->reserved ? pages - t->reserved : 0;
    int error = hm_reserve(t->core, t->job->node, missing, room != HM_ROOM);
    if (error && room == HM_ROOM_ALWAYS) {
        hm_reserve_always(t->core, t->job->node, missing);
        error = 0;
    }
    if (error) {
        t->event.need = pages;
        return error;
    }
    t->reserved = t->reserved + missing - pages;
    return 0;
}

/* Bring the pages of mask to job->node. The stripe is held and the block busy, on return too;
 * the lock is dropped for the recall, the copy and the punch. */
static int bring(struct transaction *t, const struct hm_mask *mask, bool populate, uint32_t limit)
{
    struct hm_block *record = t->record;
    static const struct hm_mask nothing;
    /* What comes home is owned by devices, so the CPU has none of it. */
    const struct hm_mask *from_cpu = t->job->node == HM_HOST ? &nothing : mask;
    struct hm_mask freed[HM_MAX_NODES];
    struct plan plan;
    for (;;) {
        uint32_t generation, room;
        int error = hm_recall(t->region, t->block, from_cpu);
        if (error)
            return error;
        while (record->inflight)
            pthread_cond_wait(&t->stripe->changed, &t->stripe->lock);
        generation = record->generation;
        make_plan(t, mask, populate, limit, &plan);
        room = plan.copies + plan.fills + hm_bits(plan.blank.word);
        error = take_room(t, room, t->job->flags & HM_JOB_STAGING ? HM_ROOM_STAGING : HM_ROOM);
        if (error || !(plan.moves + plan.fills)) {
            hm_thaw(record, t->stripe);
            return error;
        }
        pthread_mutex_unlock(&t->stripe->lock);
        error = carry(t, &plan);
        pthread_mutex_lock(&t->stripe->lock);
        if (!error && record->generation == generation)
            break;
        discard(t, &plan);
        t->reserved += room;
        hm_thaw(record, t->stripe);
        if (error)
            return error;
    }
    flip(t, &plan, freed);
    count_migration(t, &plan, freed);
    /* Still frozen: nobody gives one of these pages to its old owner again before the punch. */
    pthread_mutex_unlock(&t->stripe->lock);
    for (uint32_t node = 0; node < t->core->config.nodes; node++) {
        punch_runs(t->region, node, t->block, freed[node].word);
        hm_release(t->core, node, hm_bits(freed[node].word));
    }
    pthread_mutex_lock(&t->stripe->lock);
    hm_thaw(record, t->stripe);
    return 0;
}

int hm_bring_home(struct hm_region *region, uint64_t block, const struct hm_mask *mask,
                  const struct hm_mask *overwritten, enum hm_room room)
{
    struct hm_job job = {.node = HM_HOST};
    struct transaction t = {.core = region->core,
                            .region = region,
                            .stripe = hm_stripe_of(region->core, region->ino, block),
                            .record = &region->blocks[block],
                            .block = block,
                            .job = &job};
    struct hm_mask freed[HM_MAX_NODES], carry;
    struct plan plan;
    int error;
    make_plan(&t, mask, false, HM_BLOCK_PAGES, &plan);
    error = take_room(&t, plan.copies, room);
    if (error)
        return error;
    HM_EACH_WORD (w)
        carry.word[w] = plan.copy.word[w] & ~overwritten->word[w];
    error = protect(&t, &plan);
    if (!error)
        error = copy_pages(&t, &plan, &carry);
    if (error) {
        discard(&t, &plan);
        hm_release(region->core, HM_HOST, plan.copies);
        return error;
    }
    flip(&t, &plan, freed);
    count_migration(&t, &plan, freed);
    for (uint32_t node = 1; node < region->core->config.nodes; node++) {
        punch_runs(region, node, block, freed[node].word);
        hm_release(region->core, node, hm_bits(freed[node].word));
    }
    return 0;
}

/* ---- device operations -------------------------------------------------------------------- */

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

/* Mark before the first byte changes: from here on no kept copy may pass for the page. */
static void mark_written(struct transaction *t, const struct hm_mask *mask)
{
    struct hm_mask stale;
    HM_EACH_WORD (w) {
        stale.word[w] = t->record->kept[w] & mask->word[w];
        t->record->kept[w] &= ~mask->word[w];
        t->record->dirty[w] |= t->record->present[w] & mask->word[w];
    }
    punch_runs(t->region, HM_HOST, t->block, stale.word);
    hm_release(t->core, HM_HOST, hm_bits(stale.word));
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
    punch_runs(t->region, t->job->node, t->block, gone);
    if (size % HM_PAGE_SIZE && size / HM_BLOCK_BYTES == t->block && hm_test(mask->word, last) &&
        t->record->owner[last] == t->job->node)
        hm_zero_part(t->region, size, (size / HM_PAGE_SIZE + 1) * HM_PAGE_SIZE);
}

static int operate(struct transaction *t, const struct hm_mask *mask)
{
    const struct hm_job *job = t->job;
    bool stores = job->kind == HM_JOB_WRITE || job->kind == HM_JOB_FILL;
    struct hm_mask there = {{0}};
    uint32_t generation;
    int error = bring(t, mask, stores, HM_BLOCK_PAGES);
    if (error)
        return error;
    HM_EACH_PAGE (page, t->record->present)
        if (t->record->owner[page] == job->node)
            there.word[page / 64] |= 1ULL << (page % 64);
    hm_count(&t->core->nodes[job->node].operations, 1);
    t->record->last_device = hm_now();
    generation = t->record->generation;
    if (stores)
        mark_written(t, mask);
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

/* ---- a worker's faults --------------------------------------------------------------------- */

/* The mask, and around each of its pages the aligned group of `size` that it lies in. */
static struct hm_mask around(const struct hm_mask *mask, uint32_t size)
{
    struct hm_mask wide = {{0}};
    size = size ? size : 1;
    for (uint32_t first = 0, count; hm_next_run(mask->word, &first, &count); first += count) {
        uint32_t low = first / size * size, high = (first + count + size - 1) / size * size;
        struct hm_mask group;
        high = high < HM_BLOCK_PAGES ? high : HM_BLOCK_PAGES;
        group = hm_mask_range(low, high - low);
        HM_EACH_WORD (w)
            wide.word[w] |= group.word[w];
    }
    return wide;
}

/* What the faults bring: more with each fault on the block, as the policy's table says. Holes
 * around them only if one of them is a hole: then somebody is filling the block. */
static struct hm_mask touch_window(const struct transaction *t, const struct hm_mask *touched,
                                   uint32_t size)
{
    const struct hm_block *record = t->record;
    struct hm_mask wide = around(touched, size), inside = inside_file(t->region, t->block);
    bool holes = false;
    HM_EACH_WORD (w)
        holes |= (touched->word[w] & inside.word[w] & ~record->present[w]) != 0;
    HM_EACH_WORD (w) {
        uint64_t wanted = holes ? wide.word[w] : wide.word[w] & record->present[w];
        wide.word[w] = (touched->word[w] | wanted) & inside.word[w];
    }
    return wide;
}

/* What a store's fault may bring without its bytes. A page that is loaded from comes with them, for
 * a kernel may use what it was not to need. */
static struct hm_mask blank_pages(const struct transaction *t, const struct hm_mask *stores)
{
    struct hm_mask blank = {{0}};
    if (!hm_bits(stores->word))
        return blank;
    blank = hm_window_discards(t->region, t->job->node, t->block);
    HM_EACH_WORD (w)
        blank.word[w] &= ~(t->job->pages[w] & ~stores->word[w]);
    return blank;
}

static int touch(struct transaction *t)
{
    const struct hm_config *config = &t->core->config;
    struct hm_block *record = t->record;
    struct hm_mask touched, stores, window, inside, past;
    uint32_t faults = record->device_faults < 3 ? record->device_faults : 3;
    int error;
    HM_EACH_WORD (w) {
        touched.word[w] = t->job->pages[w] | t->job->stores[w];
        stores.word[w] = t->job->stores[w];
    }
    window = touch_window(t, &touched, config->touch_pages[faults]);
    t->blank = blank_pages(t, &stores);
    error = bring(t, &window, true, HM_BLOCK_PAGES);
    if (error)
        return error;
    record->device_faults += record->device_faults < UINT16_MAX;
    record->last_device = hm_now();
    if (faults)
        stores = around(&stores, config->touch_pages[faults - 1]);
    inside = inside_file(t->region, t->block);
    HM_EACH_PAGE (page, stores.word)
        if (!hm_test(record->present, page) || record->owner[page] != t->job->node)
            stores.word[page / 64] &= ~(1ULL << (page % 64));
    HM_EACH_WORD (w) {
        past.word[w] = touched.word[w] & ~inside.word[w];
        touched.word[w] &= inside.word[w] & ~stores.word[w];
    }
    mark_written(t, &stores);
    HM_EACH_WORD (w)
        window.word[w] |= stores.word[w];
    hm_window_had(t->region, t->job->node, t->block, &window);
    hm_region_changed(t->region, hm_bits(stores.word) != 0);
    error = hm_window_let_store(t->region, t->job->node, t->block, &stores);
    if (!error)
        error = hm_window_wake(t->region, t->job->node, t->block, &touched);
    return !error && hm_bits(past.word) ? -ERANGE : error;
}

/* ---- running a job ------------------------------------------------------------------------ */

static struct hm_mask job_mask(const struct hm_job *job)
{
    uint32_t first = job->offset / HM_PAGE_SIZE;
    if (job->kind == HM_JOB_MIGRATE || job->kind == HM_JOB_RECALL)
        return hm_mask_range(job->first, job->count);
    return hm_mask_range(first, (job->offset + job->length - 1) / HM_PAGE_SIZE - first + 1);
}

static int job_check(struct hm_core *core, const struct hm_job *job)
{
    bool operation = job->kind >= HM_JOB_READ && job->kind <= HM_JOB_CRC;
    if (job->kind > HM_JOB_TOUCH || job->block >= HM_MAX_BLOCKS)
        return -EINVAL;
    if (job->node >= core->config.nodes ||
        ((operation || job->kind == HM_JOB_TOUCH) && job->node == HM_HOST))
        return -ENODEV;
    if (operation)
        return !job->length || job->offset >= HM_BLOCK_BYTES ||
                       job->length > HM_BLOCK_BYTES - job->offset
                   ? -EINVAL
                   : 0;
    return job->first >= HM_BLOCK_PAGES || job->count > HM_BLOCK_PAGES - job->first ? -EINVAL : 0;
}

/* A block that nobody touched: nothing to move, and reading it gives zeros. */
static int run_untouched(struct transaction *t)
{
    static const struct hm_mask nothing;
    if (t->job->kind == HM_JOB_READ || t->job->kind == HM_JOB_CRC)
        return each_run(t, &nothing, t->job->kind == HM_JOB_READ ? use_read : use_crc);
    return 0;
}

static int run_touched(struct transaction *t)
{
    const struct hm_job *job = t->job;
    struct hm_mask mask = job_mask(job);
    int error;
    switch (job->kind) {
    case HM_JOB_MIGRATE:
        return bring(t, &mask, false, job->limit ? job->limit : HM_BLOCK_PAGES);
    case HM_JOB_RECALL:
        error = hm_recall(t->region, t->block, &mask);
        hm_thaw(t->record, t->stripe);
        return error;
    case HM_JOB_TOUCH:
        return touch(t);
    default:
        return operate(t, &mask);
    }
}

/* Free the block, let what waited for it go on, and tell whoever waits for the job. CPU requests
 * go first: a device that is always ready with its next job must not starve them. */
static void finish(struct transaction *t, bool held)
{
    struct hm_queued_job **at, *next = NULL;
    if (t->job->node < t->core->config.nodes)
        hm_release(t->core, t->job->node, t->reserved);
    if (held) {
        pthread_mutex_lock(&t->stripe->lock);
        t->record->busy = 0;
        pthread_mutex_unlock(&t->stripe->lock);
        hm_replay(t->region, t->block);
        pthread_mutex_lock(&t->stripe->lock);
        for (at = &t->stripe->deferred; !t->record->busy && *at; at = &(*at)->next)
            if ((*at)->job.ino == t->job->ino && (*at)->job.block == t->block) {
                next = *at;
                *at = next->next;
                if (!*at)
                    t->stripe->deferred_end = at;
                break;
            }
        pthread_mutex_unlock(&t->stripe->lock);
    }
    if (next) {
        hm_submit(t->core, &next->job);
        free(next);
    }
    if (t->job->kind == HM_JOB_TOUCH && t->event.result && t->job->flags & HM_JOB_QUIET) {
        t->event.kind = HM_EVENT_TOUCH;
        t->event.node = t->job->node;
        memcpy(t->event.pages, t->job->pages, sizeof(t->event.pages));
        memcpy(t->event.stores, t->job->stores, sizeof(t->event.stores));
        hm_event_push(t->core, &t->event);
    } else if (!(t->job->flags & HM_JOB_QUIET)) {
        hm_event_push(t->core, &t->event);
    }
}

static bool defer(struct transaction *t, struct hm_queued_job *queued)
{
    if (!t->record->busy)
        return false;
    queued->next = NULL;
    *t->stripe->deferred_end = queued;
    t->stripe->deferred_end = &queued->next;
    return true;
}

bool hm_run(struct hm_core *core, struct hm_queued_job *queued)
{
    const struct hm_job *job = &queued->job;
    struct transaction t = {
        .core = core, .job = job, .block = job->block, .reserved = job->reserved};
    bool held = false;
    bool stores =
        job->kind == HM_JOB_WRITE || job->kind == HM_JOB_FILL || job->kind == HM_JOB_TOUCH;
    int error = job_check(core, job);
    t.event = (struct hm_event){.kind = HM_EVENT_JOB,
                                .cookie = job->cookie,
                                .ino = job->ino,
                                .block = job->block,
                                .crc = job->byte};
    t.region = error ? NULL : hm_region_get(core, job->ino);
    if (!error && !t.region)
        error = -ENOENT;
    if (error)
        goto out;
    if (job->kind == HM_JOB_FAIL) {
        hm_fail_parked(t.region, job->block, job->error);
        goto out;
    }
    if (job->kind != HM_JOB_TOUCH && job->kind >= HM_JOB_READ &&
        job->block * HM_BLOCK_BYTES + job->offset + job->length > hm_region_size(t.region)) {
        error = -ERANGE;
        goto out;
    }
    t.stripe = hm_stripe_of(core, job->ino, job->block);
    pthread_mutex_lock(&t.stripe->lock);
    if (stores)
        hm_block_touch(t.region, job->block);
    if (!hm_region_is_touched(t.region, job->block)) {
        pthread_mutex_unlock(&t.stripe->lock);
        error = run_untouched(&t);
        goto out;
    }
    t.record = &t.region->blocks[job->block];
    if (defer(&t, queued)) {
        pthread_mutex_unlock(&t.stripe->lock);
        hm_region_put(t.region);
        return false;
    }
    held = true;
    t.record->busy = 1;
    error = run_touched(&t);
    pthread_mutex_unlock(&t.stripe->lock);
out:
    t.event.result = error;
    finish(&t, held);
    if (t.region)
        hm_region_put(t.region);
    return true;
}

/* What a TOUCH would bring that is not on a device yet, if nothing has to be waited for: the block
 * is free, and the CPU has none of it. The stripe is held from here to the freezing of the block.
 */
static bool is_easy(const struct transaction *t)
{
    const struct hm_block *record = t->record;
    uint32_t faults = record->device_faults < 3 ? record->device_faults : 3;
    struct hm_mask touched, window;
    if (record->busy || record->inflight)
        return false;
    HM_EACH_WORD (w)
        touched.word[w] = t->job->pages[w] | t->job->stores[w];
    window = touch_window(t, &touched, t->core->config.touch_pages[faults]);
    if (hm_any(record->cached, window.word))
        return false;
    HM_EACH_WORD (w)
        window.word[w] &= ~record->device[w];
    return hm_bits(window.word) <= HM_INLINE_PAGES;
}

bool hm_touch_now(struct hm_core *core, const struct hm_job *job)
{
    struct transaction t = {.core = core, .job = job, .block = job->block};
    t.region = job_check(core, job) ? NULL : hm_region_get(core, job->ino);
    if (!t.region)
        return false;
    t.event = (struct hm_event){.ino = job->ino, .block = job->block};
    t.stripe = hm_stripe_of(core, job->ino, job->block);
    t.record = &t.region->blocks[job->block];
    pthread_mutex_lock(&t.stripe->lock);
    hm_block_touch(t.region, job->block);
    if (!is_easy(&t)) {
        pthread_mutex_unlock(&t.stripe->lock);
        hm_region_put(t.region);
        return false;
    }
    t.record->busy = 1;
    t.event.result = touch(&t);
    pthread_mutex_unlock(&t.stripe->lock);
    finish(&t, true);
    hm_region_put(t.region);
    return true;
}
