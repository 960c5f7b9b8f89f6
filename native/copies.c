/* Read-mostly pages: copies of host-owned pages on devices that loaded from them.
 *
 * Always: a page with copies is the host's, and its bytes are equal everywhere. What could make
 * them differ ends the copies first: a store by a device is a fault, since its copy is
 * write-protected: the page becomes its own, and flip() takes the others' copies; a write(2), or
 * the page cache's writeback, is a WRITE: it collapses what it covers; a store by a program through
 * a mapping is announced by nobody. So the page cache may hold a page that has copies only while no
 * file of the region is open for writing: no mapping can be stored to then, nor become so, for the
 * kernel keeps a file open until its last mapping is gone. An open for writing collapses all copies
 * before it is answered; and while there is one, making a copy recalls the page from the CPU, and a
 * READ collapses what it hands out.
 *
 * Opens that come at once each collapse by themselves, so none waits for another, and none is
 * answered before all of the region's copies were looked at since it was counted.
 */
#include "transaction.h"

struct hm_mask hm_copies_on(const struct hm_region *region, uint64_t block, uint32_t node)
{
    return hm_side_on(&region->copies, block, node);
}

void hm_copies_set(struct hm_region *region, uint64_t block, uint32_t node,
                   const struct hm_mask *mask, bool there)
{
    struct hm_side *copies = hm_side(&region->copies, block);
    if (copies)
        HM_EACH_WORD (w)
            copies->on[node][w] =
                there ? copies->on[node][w] | mask->word[w] : copies->on[node][w] & ~mask->word[w];
}

uint32_t hm_collapse(struct hm_region *region, uint64_t block, const struct hm_mask *mask,
                     uint32_t only)
{
    struct hm_side *copies = hm_side(&region->copies, block);
    uint32_t all = 0;
    for (uint32_t node = 1; copies && node < region->core->config.nodes; node++) {
        struct hm_mask gone;
        uint32_t pages;
        if (only != HM_HOST && only != node)
            continue;
        gone = hm_side_take(copies, node, mask);
        pages = hm_bits(gone.word);
        if (!pages)
            continue;
        hm_punch_runs(region, node, block, gone.word);
        hm_release(region->core, node, pages);
        hm_count(&region->core->nodes[node].copies_ended, pages);
        hm_trace(region, block, &gone,
                 (struct hm_trace_event){.kind = HM_TRACE_READ_DUPLICATE_INVALIDATE,
                                         .node = (uint8_t)node,
                                         .from = HM_HOST,
                                         .to = (uint8_t)node});
        all += pages;
    }
    return all;
}

void hm_collapse_all(struct hm_region *region)
{
    const struct hm_mask every = hm_mask_range(0, HM_BLOCK_PAGES);
    uint64_t block, from = 0;
    while (atomic_load(&region->copies) &&
           hm_region_touched(region->core, region->ino, from, &block, 1) == 1) {
        struct hm_stripe *stripe = hm_stripe_of(region->core, region->ino, block);
        hm_pause("open.collapses");
        pthread_mutex_lock(&stripe->lock);
        /* The generation: a transaction may have planned with a copy instead of carrying it. */
        if (hm_collapse(region, block, &every, HM_HOST))
            region->blocks[block].generation++;
        hm_step(region, block, "open.ended", HM_BY_GATE, NULL);
        pthread_mutex_unlock(&stripe->lock);
        from = block + 1;
    }
}

/* -EINVAL: none is open. */
static int close_writer(struct hm_region *region)
{
    uint32_t old = atomic_load(&region->writers), now;
    do {
        if (!(old & ~HM_COPIES_ENDED))
            return -EINVAL;
        now = old - 1;
        if (!(now & ~HM_COPIES_ENDED))
            now = 0;
    } while (!atomic_compare_exchange_weak(&region->writers, &old, now));
    return 0;
}

int hm_region_writers(struct hm_core *core, uint64_t ino, int by)
{
    struct hm_region *region = hm_region_get(core, ino);
    int error = 0;
    if (!region)
        return -ENOENT;
    if (by < 0) {
        error = close_writer(region);
    } else if (!(atomic_fetch_add(&region->writers, 1) & HM_COPIES_ENDED)) {
        /* Counted first: a copy that is made meanwhile sees it, or is seen here. Our own count
         * keeps the number above 0, so the bit is of this time. */
        hm_collapse_all(region);
        atomic_fetch_or(&region->writers, HM_COPIES_ENDED);
    }
    hm_region_put(region);
    return error;
}

int hm_lent(struct hm_core *core, uint64_t ino, uint64_t block, uint32_t node, uint64_t out[8])
{
    struct hm_region *region;
    struct hm_stripe *stripe;
    struct hm_mask mask, labels;
    if (node >= core->config.nodes)
        return -ENODEV;
    region = hm_region_get(core, ino);
    if (!region)
        return -ENOENT;
    if (block >= HM_MAX_BLOCKS) {
        hm_region_put(region);
        return -EINVAL;
    }
    stripe = hm_stripe_of(core, ino, block);
    pthread_mutex_lock(&stripe->lock);
    mask = hm_copies_on(region, block, node);
    labels = node ? hm_labels_on(region, block, node) : hm_all_labels(region, block);
    pthread_mutex_unlock(&stripe->lock);
    HM_EACH_WORD (w)
        out[w] = mask.word[w] | labels.word[w];
    hm_region_put(region);
    return 0;
}

/* ---- making them ---------------------------------------------------------------------------- */

/* Pages of the mask that some other device owns. */
static struct hm_mask away(const struct transaction *t, const struct hm_mask *mask)
{
    struct hm_mask mine = hm_owned(t->record, t->job->node), other;
    HM_EACH_WORD (w)
        other.word[w] = mask->word[w] & t->record->device[w];
    return hm_without(other, &mine);
}

int hm_fetch_home(struct transaction *t, const struct hm_mask *mask)
{
    struct hm_job home = {.node = HM_HOST, .flags = t->job->flags & HM_JOB_STAGING};
    struct transaction back = *t;
    int error;
    back.job = &home;
    back.reserved = 0;
    back.charged = 0;
    error = hm_bring(&back, mask, false, HM_BLOCK_PAGES);
    hm_release(t->core, HM_HOST, back.reserved);
    t->charged += back.charged;
    return error == -ENOSPC ? -ENOBUFS : error;
}

/* Copy the pages to the device, out of its worker's reach or protected. */
static int copy_to(struct transaction *t, const struct hm_mask *mask)
{
    struct hm_pool *to = hm_region_pool(t->region, t->job->node);
    int error = to ? hm_window_protect(t->region, t->job->node, t->block, mask) : -errno;
    for (uint32_t first = 0, count; !error && hm_next_run(mask->word, &first, &count);
         first += count)
        error = hm_pool_copy(to, &t->region->pools[HM_HOST],
                             t->block * HM_BLOCK_BYTES + (uint64_t)first * HM_PAGE_SIZE,
                             (size_t)count * HM_PAGE_SIZE);
    return error;
}

static void count_copies(struct transaction *t, const struct hm_mask *made, uint64_t began)
{
    static const uint8_t host[HM_BLOCK_PAGES];
    hm_copies_set(t->region, t->block, t->job->node, made, true);
    hm_count(&t->core->nodes[t->job->node].copies_begun, hm_bits(made->word));
    hm_carried(t, HM_TRACE_READ_DUPLICATE, made, made, host, began);
    t->event.moved += hm_bits(made->word);
    t->record->last_migrated = hm_tick(t->core);
}

/* It recalls the pages also where no file is open for writing. A worker reaches what is in its
 * pool, marked or not; and an open may be answered meanwhile, after which nobody announces a store
 * to what the CPU has. */
static int make_copies(struct transaction *t, const struct hm_mask *mask)
{
    struct hm_block *record = t->record;
    struct hm_mask rest;
    for (;;) {
        struct hm_mask other = away(t, mask), had, make;
        uint32_t generation, pages;
        uint64_t began;
        int error = hm_bits(other.word) ? hm_fetch_home(t, &other) : 0;
        if (error == -ENOBUFS) {
            rest = hm_without(*mask, &other);
            mask = &rest;
            continue;
        }
        if (!error)
            error = hm_recall(t, mask);
        if (error)
            return error;
        while (record->inflight)
            pthread_cond_wait(&t->stripe->changed, &t->stripe->lock);
        had = hm_copies_on(t->region, t->block, t->job->node);
        HM_EACH_WORD (w)
            make.word[w] = mask->word[w] & record->present[w] & ~record->device[w] & ~had.word[w];
        pages = hm_bits(make.word);
        error = hm_take_room(t, pages, hm_room_for(t->job));
        if (error || !pages) {
            hm_thaw(record, t->stripe);
            hm_step_of(t, "thawed", NULL);
            return error;
        }
        generation = record->generation;
        began = hm_now();
        hm_step_of(t, "copy.planned", NULL);
        pthread_mutex_unlock(&t->stripe->lock);
        error = copy_to(t, &make);
        hm_pause("duplicate.copied");
        pthread_mutex_lock(&t->stripe->lock);
        if (!error && record->generation == generation) {
            count_copies(t, &make, began);
            hm_thaw(record, t->stripe);
            hm_step_of(t, "copy.made", &make);
            return 0;
        }
        hm_punch_runs(t->region, t->job->node, t->block, make.word);
        t->reserved += pages;
        hm_thaw(record, t->stripe);
        hm_step_of(t, error ? "failed" : "discarded", NULL);
        if (error)
            return error;
    }
}

int hm_duplicate(struct transaction *t, struct hm_mask *mask)
{
    int error = make_copies(t, mask);
    struct hm_mask copied = hm_copies_on(t->region, t->block, t->job->node);
    *mask = hm_without(*mask, &copied);
    return error;
}
