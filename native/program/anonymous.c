/* Pages of a program's own memory: taken to a device, given back, accessed where they are.
 *
 * Taking is done by the program's helper (preload/preload.h), which moves the pages out of the
 * program's reach; what was moved is what is copied to the device, so nothing can change meanwhile.
 * An access from then on is a fault, and waits for the transaction's end. Giving back is
 * UFFDIO_COPY: the program has the page when it has its bytes. Until the owner is flipped the
 * device's memory has them too; so a page is always whole somewhere.
 */
#include "program/anonymous.h"

#include "base/pause.h"
#include "directory/cut.h"
#include "directory/owner.h"
#include "directory/records.h"
#include "directory/windows.h"
#include "program/late.h"
#include "program/marks.h"
#include "program/memory.h"
#include "program/program.h"
#include "program/stays.h"
#include "program/take.h"
#include "program/vma.h"
#include "transaction/journal.h"
#include "transaction/migrate.h"
#include "transaction/operation.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>
#include <zlib.h>

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25 /* 6.1 */
#endif

static uint8_t *device_page(const struct transaction *t, uint32_t page)
{
    return hm_pool_map(&t->region->pools[t->record->owner[page]], hm_page_offset(t->block, page));
}

/* Give back what devices have lost: its memory, and its reservation. */
static void punch_freed(const struct transaction *t, const struct hm_mask freed[HM_MAX_NODES])
{
    for (uint32_t node = 1; node < t->core->config.nodes; node++) {
        hm_punch_runs(t->region, node, t->block, freed[node].word);
        hm_release(t->core, node, hm_bits(freed[node].word));
    }
}

/* ---- to a device ---------------------------------------------------------------------------- */

/* Pages that the job can't do without. */
static struct hm_mask needed(const struct transaction *t, const struct hm_mask *mask)
{
    struct hm_mask faulted = hm_either(t->job->pages, t->job->stores);
    if (t->job->kind == HM_JOB_MIGRATE)
        return (struct hm_mask){{0}};
    if (t->job->kind != HM_JOB_DEVICE_FAULT)
        return *mask;
    return hm_both(mask->word, faulted.word);
}

/* What devices have of the mask goes to this one, from pool to pool. */
static int copy_between(const struct transaction *t, const struct hm_mask *mask)
{
    struct hm_pool *to = hm_region_pool(t->region, t->job->node);
    int error = to ? 0 : -errno;
    HM_EACH_PAGE (page, mask->word) {
        struct hm_mask one = hm_mask_range(page, 1);
        uint32_t from = t->record->owner[page];
        if (!error)
            error = hm_window_protect(t->region, from, t->block, &one);
        if (!error)
            error = hm_pool_copy(to, &t->region->pools[from], hm_page_offset(t->block, page),
                                 HM_PAGE_SIZE);
    }
    return error;
}

static int fill_zeros(const struct transaction *t, const struct hm_mask *mask)
{
    struct hm_pool *pool = hm_region_pool(t->region, t->job->node);
    int error = pool ? 0 : -errno;
    for (uint32_t first = 0, count; !error && hm_next_run(mask->word, &first, &count);
         first += count)
        error = hm_pool_zero(pool, hm_page_offset(t->block, first), (uint64_t)count * HM_PAGE_SIZE);
    return error;
}

/* Put what comes on the device, out of its worker's reach: other devices' pages, what is taken, and
 * zeros where nothing was. In the masks is left what has come, whatever failed then: what was taken
 * is nowhere else. */
static int carry(struct transaction *t, struct hm_mask *others, struct hm_taking *taking)
{
    static const struct hm_mask none;
    struct hm_mask arriving;
    int error;
    arriving = hm_either(hm_either(taking->movable.word, taking->fixed.word).word, others->word);
    error = hm_window_protect(t->region, t->job->node, t->block, &arriving);
    if (!error)
        error = copy_between(t, others);
    if (error) {
        hm_punch_runs(t->region, t->job->node, t->block, others->word);
        *others = none;
        return error;
    }
    error = hm_take(t, taking);
    if (fill_zeros(t, &taking->holes)) {
        hm_punch_runs(t->region, t->job->node, t->block, taking->holes.word);
        taking->holes = none;
        error = error ? error : -ENOMEM;
    }
    /* What came in vain would be in a hole that the device takes later. */
    hm_drop(arriving.word, others->word);
    hm_drop(arriving.word, taking->taken.word);
    hm_drop(arriving.word, taking->holes.word);
    hm_punch_runs(t->region, t->job->node, t->block, arriving.word);
    return error;
}

/* The device becomes the owner; the stripe is held. What other devices lose comes back. */
static void flip_to(struct transaction *t, const struct hm_mask *others,
                    const struct hm_taking *taking, struct hm_mask freed[HM_MAX_NODES],
                    uint64_t began)
{
    struct hm_block *record = t->record;
    uint32_t to = t->job->node, taken = hm_bits(taking->taken.word);
    uint8_t from[HM_BLOCK_PAGES];
    struct hm_mask moved, all;
    memset(freed, 0, HM_MAX_NODES * sizeof(*freed));
    memcpy(from, record->owner, sizeof(from));
    hm_process_revoke(t->region->process, t->block, others);
    HM_EACH_PAGE (page, others->word)
        hm_set(freed[record->owner[page]].word, page);
    moved = hm_either(others->word, taking->taken.word);
    all = hm_either(moved.word, taking->holes.word);
    /* What is taken was the program's: it is entered just to leave. */
    hm_populate(t->region, record, &taking->taken, HM_HOST);
    hm_own(t->region, record, &all, to, t->cause.trigger, NULL);
    record->last_migrated = hm_tick(t->core);
    record->cpu_faults = 0;
    t->event.moved += hm_bits(moved.word);
    hm_count(&t->core->count.migrations, 1);
    hm_count(&t->core->nodes[HM_HOST].counts.copies_made, taken);
    hm_carried(t, HM_TRACE_MIGRATE_END, &moved, &moved, from, began);
    if (t->job->kind == HM_JOB_DEVICE_FAULT)
        t->moved = moved;
}

/* Leave out guards, and what stays because the kernel uses it. */
static int leave_out(const struct transaction *t, const struct hm_mask *need,
                     struct hm_taking *taking)
{
    struct hm_process *process = t->region->process;
    struct hm_mask wanted, guards, stays, shown, out;
    int error;
    wanted = hm_either(taking->movable.word, taking->fixed.word);
    if (!hm_bits(wanted.word))
        return 0;
    error = hm_pages_there(process, hm_page_of(t, 0), &wanted, &taking->there, &guards);
    if (!error)
        error = hm_stays_for_kernel(process, t->block, &stays);
    if (error)
        return error;
    shown = hm_stays_for_ps(process, t->block);
    hm_drop(shown.word, need->word);
    out = hm_either(hm_either(guards.word, stays.word).word, shown.word);
    hm_drop(taking->movable.word, out.word);
    hm_drop(taking->fixed.word, out.word);
    hm_drop(taking->there.word, out.word);
    return 0;
}

/* What may and can come of the program's pages in the mask. */
static int choose(struct transaction *t, const struct hm_mask *mask, bool populate,
                  struct hm_taking *taking)
{
    struct hm_mask need = needed(t, mask), missing, come;
    int error;
    memset(taking, 0, sizeof(*taking));
    if (atomic_load(&t->region->process->gone))
        return -ESRCH;
    if (t->region->process->uffd < 0)
        return hm_bits(need.word) ? -EOPNOTSUPP : 0;
    error = hm_take_sort(t, mask, taking);
    if (!error)
        error = leave_out(t, &need, taking);
    missing = hm_without(need.word, taking->movable.word);
    hm_drop(missing.word, taking->fixed.word);
    if (!error && hm_bits(missing.word))
        error = -EFAULT;
    if (populate && t->job->kind != HM_JOB_DEVICE_FAULT)
        return error;
    come = taking->there; /* no holes come with what was touched */
    if (populate)
        hm_add(come.word, need.word);
    hm_keep(taking->movable.word, come.word);
    hm_keep(taking->fixed.word, come.word);
    return error;
}

/* Whether all came that the job can't do without; the stripe is held. */
static int all_came(const struct transaction *t, const struct hm_mask *need)
{
    struct hm_mask mine = hm_owned(t->record, t->job->node), missing;
    missing = hm_without(need->word, mine.word);
    return hm_bits(missing.word) ? -EBUSY : 0;
}

static int bring_to_device(struct transaction *t, const struct hm_mask *mask, bool populate)
{
    struct hm_block *record = t->record;
    struct hm_mask mine = hm_owned(record, t->job->node), others, absent, freed[HM_MAX_NODES];
    uint32_t generation = record->generation, pages;
    struct hm_taking taking;
    struct hm_mask moving, moved;
    uint8_t owners[HM_BLOCK_PAGES];
    uint64_t began;
    int error;
    if (atomic_load(&t->region->process->closed) >> t->job->node & 1) {
        struct hm_mask need = needed(t, mask);
        return hm_bits(need.word) ? -EACCES : 0;
    }
    others = hm_without(mask->word, mine.word);
    absent = hm_without(others.word, record->device);
    hm_keep(others.word, record->device);
    hm_add(record->recalling, absent.word);
    memcpy(owners, record->owner, sizeof(owners));
    hm_process_flush_block(t->region->process, t->block);
    hm_unlock(HM_RANK_STRIPE, &t->stripe->lock);
    error = choose(t, &absent, populate, &taking);
    moving = hm_either(hm_either(others.word, taking.movable.word).word, taking.fixed.word);
    pages = error ? 0 : hm_bits(moving.word);
    if (!error)
        error = hm_reserve_for_job(t, pages, hm_overcommit_of(t->job));
    if (error || !pages) {
        hm_lock(HM_RANK_STRIPE, &t->stripe->lock);
        memset(record->recalling, 0, sizeof(record->recalling));
        return error;
    }
    began = hm_trace_move(t, &moving, owners, 0);
    error = carry(t, &others, &taking);
    hm_lock(HM_RANK_STRIPE, &t->stripe->lock);
    memset(record->recalling, 0, sizeof(record->recalling));
    t->reserved += pages;
    if (record->generation != generation) { /* the program is gone, and all of it */
        hm_unlock(HM_RANK_STRIPE, &t->stripe->lock);
        hm_process_arrive(t->region->process, t->block);
        hm_lock(HM_RANK_STRIPE, &t->stripe->lock);
        hm_trace_move(t, &moving, owners, began);
        return -ESRCH;
    }
    flip_to(t, &others, &taking, freed, began);
    moved = hm_either(others.word, taking.taken.word);
    hm_trace_stayed(t, &moving, &moved, owners, began);
    t->reserved -= hm_bits(others.word) + hm_bits(taking.taken.word) + hm_bits(taking.holes.word);
    hm_unlock(HM_RANK_STRIPE, &t->stripe->lock);
    hm_process_arrive(t->region->process, t->block);
    punch_freed(t, freed);
    hm_lock(HM_RANK_STRIPE, &t->stripe->lock);
    if (!error) {
        struct hm_mask need = needed(t, mask);
        struct hm_mask there = hm_either(taking.there.word, record->device);
        if (!populate)
            hm_keep(need.word, there.word);
        error = all_came(t, &need);
    }
    return error;
}

/* ---- home ----------------------------------------------------------------------------------- */

/* Give the program pages that lie side by side on one device; returns how many it has, or -errno.
 * ENOENT: nothing is mapped there any more, and it is about to be cut. */
static int give_run(const struct transaction *t, uint32_t first, uint32_t count, uint64_t mode)
{
    struct uffdio_copy copy = {.dst = hm_page_of(t, first),
                               .src = (uintptr_t)device_page(t, first),
                               .len = (uint64_t)count * HM_PAGE_SIZE,
                               .mode = mode};
    uint8_t bytes[HM_PAGE_SIZE] __attribute__((aligned(HM_PAGE_SIZE)));
    if (!copy.src) { /* no address space for that */
        struct iovec where;
        int error = hm_pool_read(&t->region->pools[t->record->owner[first]],
                                 hm_page_offset(t->block, first), bytes, sizeof(bytes), &where);
        if (error)
            return error;
        copy.src = (uintptr_t)bytes;
        copy.len = sizeof(bytes);
    }
    if (ioctl(t->region->process->uffd, UFFDIO_COPY, &copy) == 0)
        return (int)(copy.len / HM_PAGE_SIZE);
    if (copy.copy > 0)
        return (int)((uint64_t)copy.copy / HM_PAGE_SIZE);
    return -errno;
}

/* A page that the program has already it put there by itself, past all rules. It is its own from
 * now on; and somebody may wait for it, whom no copy wakes. */
static int let_have(const struct transaction *t, uint32_t page)
{
    struct uffdio_writeprotect request = {.range = {hm_page_of(t, page), HM_PAGE_SIZE}};
    if (!ioctl(t->region->process->uffd, UFFDIO_WRITEPROTECT, &request))
        return 1;
    if (errno == EAGAIN)
        return -EAGAIN;
    hm_process_wake(t->region->process, hm_page_of(t, page), HM_PAGE_SIZE);
    return 1;
}

/* Give the program the pages of the mask, and leave in it those that it has. */
static int give(const struct transaction *t, struct hm_mask *mask, uint64_t mode)
{
    const struct hm_block *record = t->record;
    struct hm_mask given = {{0}};
    int error = 0;
    for (uint32_t first = 0, count; !error && hm_next_run(mask->word, &first, &count);) {
        uint32_t n = 1, owner = record->owner[first];
        struct hm_mask run;
        int done;
        while (n < count && record->owner[first + n] == owner)
            n++;
        run = hm_mask_range(first, n);
        error = hm_window_protect(t->region, owner, t->block, &run);
        done = error ? error : give_run(t, first, n, mode);
        if (done == -ENOENT && n > 1) /* it may go on into another mapping */
            done = give_run(t, first, 1, mode);
        if (done == -EEXIST)
            done = let_have(t, first);
        if (done == -ENOENT) {
            first++;
            continue;
        }
        if (done < 0) {
            error = done;
            break;
        }
        run = hm_mask_range(first, (uint32_t)done);
        hm_add(given.word, run.word);
        first += (uint32_t)done;
    }
    *mask = given;
    return error;
}

/* The pages are the program's; the stripe is held. */
static void flip_home(struct transaction *t, const struct hm_mask *mask, uint64_t began)
{
    struct hm_block *record = t->record;
    uint32_t pages = hm_bits(mask->word), from[HM_MAX_NODES], gone[HM_MAX_NODES];
    uint8_t owners[HM_BLOCK_PAGES];
    memcpy(owners, record->owner, sizeof(owners));
    hm_process_revoke(t->region->process, t->block, mask);
    hm_own(t->region, record, mask, HM_HOST, t->cause.trigger, from);
    /* They are the program's to keep or to drop, which nobody tells us: so they are no more. */
    hm_disown(t->region, record, mask, gone);
    for (uint32_t node = 1; node < t->core->config.nodes; node++) {
        if (!from[node])
            continue;
        hm_count(&t->core->nodes[node].counts.copies_made, from[node]);
        if (t->job->flags & HM_JOB_EVICT) {
            hm_count(&t->core->nodes[node].counts.evicted_blocks, 1);
            hm_count(&t->core->nodes[node].counts.evicted_pages, from[node]);
            hm_count(&t->region->flows.evicted[node], from[node]);
            record->evictions++;
            record->evicted = 1 + hm_read(&t->core->nodes[node].counts.evicted_pages);
        }
    }
    hm_count(&t->core->count.migrations, 1);
    hm_carried(t, HM_TRACE_MIGRATE_END, mask, mask, owners, began);
    record->last_migrated = hm_tick(t->core);
    record->device_faults = 0;
    t->event.moved += pages;
}

/* What was one huge page on a device is one at home, too, where the kernel finds memory for it.
 * Programs wait for that, until the transaction's end wakes them. */
static void collapse(const struct transaction *t)
{
    struct iovec block = {(void *)hm_page_of(t, 0), HM_BLOCK_BYTES};
    syscall(SYS_process_madvise, t->region->process->pidfd, &block, 1, MADV_COLLAPSE, 0);
}

static void punch(struct transaction *t, const uint8_t owners[HM_BLOCK_PAGES],
                  const struct hm_mask *mask)
{
    struct hm_mask freed[HM_MAX_NODES] = {0};
    HM_EACH_PAGE (page, mask->word)
        hm_set(freed[owners[page]].word, page);
    punch_freed(t, freed);
}

/* The same later; the process's lock and the stripe are held. */
static void punch_later(struct transaction *t, const uint8_t owners[HM_BLOCK_PAGES],
                        const struct hm_mask *mask)
{
    struct hm_process *process = t->region->process;
    struct hm_mask now = {{0}};
    struct hm_page_sets *side;
    uint32_t i = 0;
    while (i < process->late_blocks && process->late_block[i] != t->block)
        i++;
    if (i == HM_LATE_BLOCKS || hm_page_sets_init(&process->late)) {
        punch(t, owners, mask);
        return;
    }
    if (i == process->late_blocks)
        process->late_block[process->late_blocks++] = t->block;
    side = hm_page_sets_of(&process->late, t->block);
    HM_EACH_PAGE (page, mask->word) {
        uint32_t node = owners[page];
        if (atomic_load(&t->region->window[node])) {
            hm_set(now.word, page);
            continue;
        }
        hm_set(side->on[node], page);
        hm_release(t->core, node, 1);
        process->late_pages++;
    }
    if (hm_bits(now.word))
        punch(t, owners, &now);
}

/* Cut from the mask, and from the directory, what is not to come home; whether there was any. The
 * process's lock and the stripe are held. */
static bool cut_discarded(struct transaction *t, struct hm_mask *mask)
{
    struct hm_mask gone = hm_take_discarded(t, mask);
    if (!hm_bits(gone.word))
        return false;
    hm_drop(mask->word, gone.word);
    hm_process_revoke(t->region->process, t->block, &gone);
    hm_block_cut(t->region, t->block, &gone, false);
    return true;
}

int hm_process_home(struct transaction *t, struct hm_mask *mask)
{
    bool discarded = cut_discarded(t, mask);
    struct hm_mask moving = *mask;
    uint8_t owners[HM_BLOCK_PAGES];
    uint64_t began;
    int error;
    memcpy(owners, t->record->owner, sizeof(owners));
    began = hm_trace_move(t, mask, owners, 0);
    error = give(t, mask, 0);
    hm_trace_stayed(t, &moving, mask, owners, began);
    if (hm_bits(mask->word)) {
        flip_home(t, mask, began);
        punch_later(t, owners, mask);
    }
    return !error && discarded ? -EAGAIN : error; /* who waits for those may have zeros */
}

/* The same within a job, which holds the block: the stripe is dropped meanwhile. */
static int bring_home(struct transaction *t, const struct hm_mask *mask, uint32_t limit)
{
    struct hm_process *process = t->region->process;
    struct hm_mask moving = {{0}}, stay = {{0}}, begun;
    uint8_t owners[HM_BLOCK_PAGES];
    bool huge = t->record->huge;
    uint32_t generation = t->record->generation;
    uint64_t began;
    int error;
    if (t->job->flags & HM_JOB_EVICT && t->region->advised)
        stay = hm_pinned(t->region, t->block); /* an access brings them home all the same */
    HM_EACH_PAGE (page, mask->word)
        if (hm_test(t->record->device, page) && !hm_test(stay.word, page) && limit && limit--)
            hm_set(moving.word, page);
    if (!hm_bits(moving.word))
        return 0;
    memcpy(owners, t->record->owner, sizeof(owners));
    hm_unlock(HM_RANK_STRIPE, &t->stripe->lock);
    hm_lock(HM_RANK_PROCESS, &process->lock);
    error = atomic_load(&process->gone) ? -ESRCH : hm_take_no_news(t);
    if (!error) {
        hm_lock(HM_RANK_STRIPE, &t->stripe->lock);
        if (t->record->generation == generation && cut_discarded(t, &moving))
            generation = t->record->generation;
        hm_unlock(HM_RANK_STRIPE, &t->stripe->lock);
    }
    if (error)
        memset(&moving, 0, sizeof(moving));
    begun = moving;
    began = hm_trace_move(t, &begun, owners, 0);
    if (!error)
        error = give(t, &moving, huge ? UFFDIO_COPY_MODE_DONTWAKE : 0);
    hm_lock(HM_RANK_STRIPE, &t->stripe->lock);
    if (t->record->generation != generation)
        memset(&moving, 0, sizeof(moving));
    hm_trace_stayed(t, &begun, &moving, owners, began);
    if (hm_bits(moving.word))
        flip_home(t, &moving, began);
    hm_unlock(HM_RANK_PROCESS, &process->lock);
    hm_unlock(HM_RANK_STRIPE, &t->stripe->lock);
    punch(t, owners, &moving);
    if (huge && hm_bits(moving.word) == HM_BLOCK_PAGES)
        collapse(t);
    hm_lock(HM_RANK_STRIPE, &t->stripe->lock);
    return error == -EAGAIN ? -EBUSY : error;
}

int hm_process_bring(struct transaction *t, const struct hm_mask *mask, bool populate,
                     uint32_t limit)
{
    return t->job->node == HM_HOST ? bring_home(t, mask, limit)
                                   : bring_to_device(t, mask, populate);
}

/* ---- where they are ------------------------------------------------------------------------- */

int hm_process_may_write(struct transaction *t, const struct hm_mask *mask)
{
    uint64_t base = hm_page_of(t, 0);
    for (uint32_t first = 0, count; hm_next_run(mask->word, &first, &count);) {
        struct hm_vma vma;
        uint64_t at = base + (uint64_t)first * HM_PAGE_SIZE;
        if (hm_vma_find(t->region->process, at, &vma) || vma.start > at)
            return -EFAULT;
        if (!vma.write)
            return -EPERM;
        first = vma.end >= base + HM_BLOCK_BYTES ? HM_BLOCK_PAGES
                                                 : (uint32_t)((vma.end - base) / HM_PAGE_SIZE);
    }
    return 0;
}

static bool stores_of(const struct hm_job *job)
{
    return job->kind == HM_JOB_WRITE || job->kind == HM_JOB_FILL;
}

/* Copy [start, start+length) of the program, by a thread that it may have to wait for: a fault of
 * it is not to wait for the block. */
static int copy_program(struct hm_process *process, uint64_t start, uint8_t *bytes, uint32_t length,
                        bool store)
{
    int slot = hm_process_enter(process);
    ssize_t n = hm_process_copy(process, start, bytes, length, store);
    hm_process_leave(process, slot);
    if (n == (ssize_t)length)
        return 0;
    return n < 0 && n != -EFAULT ? (int)n : -EFAULT;
}

/* Access [at, at+length) of the job's range in the program. */
static int access_program(struct transaction *t, uint32_t at, uint32_t length)
{
    struct hm_process *process = t->region->process;
    const struct hm_job *job = t->job;
    uint64_t start = hm_page_of(t, 0) + job->offset + at;
    uint8_t bytes[HM_PAGE_SIZE];
    int error = 0;
    if (job->kind == HM_JOB_READ || job->kind == HM_JOB_WRITE)
        return copy_program(process, start, (uint8_t *)job->buffer + at, length, stores_of(job));
    memset(bytes, (int)job->byte, sizeof(bytes));
    for (uint32_t done = 0, n; !error && done < length; done += n) {
        n = length - done < sizeof(bytes) ? length - done : sizeof(bytes);
        error = copy_program(process, start + done, bytes, n, stores_of(job));
        if (!error && job->kind == HM_JOB_CRC)
            t->event.crc = (uint32_t)crc32(t->event.crc, bytes, n);
    }
    return error;
}

static int access_device(struct transaction *t, uint32_t at, uint32_t length)
{
    uint8_t *bytes = hm_pool_map(&t->region->pools[t->job->node], t->block * HM_BLOCK_BYTES);
    if (!bytes)
        return -ENOMEM;
    bytes += t->job->offset + at;
    if (t->job->kind == HM_JOB_READ)
        memcpy((uint8_t *)t->job->buffer + at, bytes, length);
    else if (t->job->kind == HM_JOB_WRITE)
        memcpy(bytes, (uint8_t *)t->job->buffer + at, length);
    else if (t->job->kind == HM_JOB_FILL)
        memset(bytes, (int)t->job->byte, length);
    else
        t->event.crc = (uint32_t)crc32(t->event.crc, bytes, length);
    return 0;
}

/* Whether pages of the mask stay in the program, so that an operation uses them there. The stripe
 * is dropped meanwhile. */
static bool must_stay(struct transaction *t, const struct hm_mask *mask)
{
    struct hm_process *process = t->region->process;
    struct hm_mask stays = {{0}}, shown, absent;
    absent = hm_without(mask->word, t->record->device);
    if (!hm_bits(absent.word) || process->uffd < 0)
        return false;
    hm_unlock(HM_RANK_STRIPE, &t->stripe->lock);
    if (hm_stays_for_kernel(process, t->block, &stays))
        stays = (struct hm_mask){{0}}; /* who takes any of them is told */
    shown = hm_stays_for_ps(process, t->block);
    hm_lock(HM_RANK_STRIPE, &t->stripe->lock);
    return hm_any(stays.word, absent.word) || hm_any(shown.word, absent.word);
}

static int remote(struct transaction *t)
{
    const struct hm_job *job = t->job;
    uint32_t first = job->offset / HM_PAGE_SIZE;
    uint32_t pages = (job->offset + job->length - 1) / HM_PAGE_SIZE - first + 1, at = 0;
    struct hm_mask mask = hm_mask_range(first, pages), mine = hm_owned(t->record, job->node), away;
    int error = 0;
    away = hm_without(hm_both(mask.word, t->record->device).word, mine.word);
    if (hm_bits(away.word)) {
        struct hm_job home = {.kind = HM_JOB_MIGRATE, .ino = job->ino, .node = HM_HOST};
        struct transaction other = *t;
        other.job = &home;
        error = bring_home(&other, &away, HM_BLOCK_PAGES);
        t->charged = other.charged;
        hm_keep(away.word, t->record->device);
        if (!error && hm_bits(away.word))
            error = -EFAULT; /* nothing is mapped there any more */
    }
    if (!error && stores_of(job)) {
        error = hm_process_may_write(t, &mask);
        mine = hm_owned(t->record, job->node);
        if (!error) {
            away = hm_both(mask.word, mine.word);
            hm_mark_written(t, &away);
        }
    }
    t->record->last_device = hm_tick(t->core);
    hm_unlock(HM_RANK_STRIPE, &t->stripe->lock);
    if (!error && t->region->process->uffd >= 0) {
        /* What looks like a hole may be a page that is yet to be put there. */
        hm_lock(HM_RANK_PROCESS, &t->region->process->lock);
        error = hm_take_no_news(t);
        hm_unlock(HM_RANK_PROCESS, &t->region->process->lock);
    }
    hm_pause("remote.begun");
    while (!error && at < job->length) {
        uint32_t page = (job->offset + at) / HM_PAGE_SIZE, end = page + 1, n;
        bool here = hm_test(mine.word, page);
        while (end < first + pages && hm_test(mine.word, end) == here)
            end++;
        n = end * HM_PAGE_SIZE - (job->offset + at);
        n = n < job->length - at ? n : job->length - at;
        error = here ? access_device(t, at, n) : access_program(t, at, n);
        at += n;
    }
    hm_lock(HM_RANK_STRIPE, &t->stripe->lock);
    return error;
}

int hm_process_operate(struct transaction *t, const struct hm_mask *mask)
{
    int error;
    if (t->job->flags & HM_JOB_REMOTE || must_stay(t, mask))
        return remote(t);
    error = stores_of(t->job) ? hm_process_may_write(t, mask) : 0;
    return error ? error : hm_operate(t, mask);
}
