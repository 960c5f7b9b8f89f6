/* A program's address space: what its addresses are to the devices, and what becomes of pages when
 * the program changes its mappings. */
#include "program/space.h"

#include "directory/cut.h"
#include "directory/records.h"
#include "directory/windows.h"
#include "program/marks.h"
#include "program/memory.h"
#include "program/pending.h"
#include "program/program.h"
#include "program/vma.h"

#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <unistd.h>

/* ---- addresses ---------------------------------------------------------------------------- */

/* Claim an address's TiB, if the program has anything in it: a wrong address takes none away. */
static int claim(struct hm_process *process, uint64_t address)
{
    _Atomic uint64_t *area = &process->area[address % HM_MAX_BYTES / HM_AREA_BYTES];
    uint64_t is = 0, high = address / HM_MAX_BYTES + 1, start = address - address % HM_AREA_BYTES;
    struct hm_vma vma;
    if (!atomic_load(area) &&
        (hm_vma_find(process, start, &vma) || vma.start >= start + HM_AREA_BYTES))
        return -EFAULT;
    if (atomic_compare_exchange_strong(area, &is, high) || is == high)
        return 0;
    return -EADDRINUSE;
}

int64_t hm_process_offset(struct hm_core *core, uint64_t ino, uint64_t address, uint64_t length)
{
    HM_AUTO_PUT struct hm_region *region = hm_region_get(core, ino);
    uint64_t offset = address % HM_MAX_BYTES;
    int error = 0;
    if (!region || !region->process)
        return -ESRCH;
    if (address + length < address || address + length > 1ULL << 56 ||
        length > HM_MAX_BYTES - offset)
        return -EFAULT;
    for (uint64_t at = 0; !error && at < length; at += HM_AREA_BYTES)
        error = claim(region->process, address + at);
    if (!error && length)
        error = claim(region->process, address + length - 1);
    return error ? error : (int64_t)offset;
}

uint64_t hm_process_address_of(struct hm_core *core, uint64_t ino, uint64_t offset)
{
    HM_AUTO_PUT struct hm_region *region = hm_region_get(core, ino);
    uint64_t address = 0;
    if (region && region->process && offset < HM_MAX_BYTES) {
        address = hm_process_address(region->process, offset / HM_BLOCK_BYTES);
        address += address ? offset % HM_BLOCK_BYTES : 0;
    }
    return address;
}

/* Of addresses [*start, end) the next part in one block of the region that may have pages on a
 * device; false: there is none. *start is left at the part's end. */
static bool next_part(const struct hm_process *process, uint64_t *start, uint64_t end,
                      uint64_t *block, struct hm_mask *mask)
{
    const struct hm_region *region = process->region;
    while (*start < end) {
        uint64_t offset = *start % HM_MAX_BYTES, last, next;
        uint64_t area = atomic_load(&process->area[offset / HM_AREA_BYTES]);
        uint64_t area_end = (*start / HM_AREA_BYTES + 1) * HM_AREA_BYTES;
        uint32_t first = (uint32_t)(offset % HM_BLOCK_BYTES / HM_PAGE_SIZE);
        *block = offset / HM_BLOCK_BYTES;
        if (area != *start / HM_MAX_BYTES + 1 ||
            hm_region_touched(process->core, region->ino, *block, &next, 1) != 1) {
            *start = area_end;
            continue;
        }
        if (next != *block) {
            uint64_t to = *start - *start % HM_BLOCK_BYTES + (next - *block) * HM_BLOCK_BYTES;
            *start = to < area_end ? to : area_end;
            continue;
        }
        last = *start - *start % HM_BLOCK_BYTES + HM_BLOCK_BYTES;
        last = last < end ? last : end;
        *mask = hm_mask_range(first, (uint32_t)((last - *start) / HM_PAGE_SIZE));
        *start = last;
        return true;
    }
    return false;
}

/* ---- changes of the address space ----------------------------------------------------------- */

/* Pages went: so does what devices have of them. False: a transaction holds one of the blocks. */
bool hm_process_cut(struct hm_process *process, uint64_t start, uint64_t end)
{
    struct hm_mask mask;
    uint64_t block;
    while (next_part(process, &start, end, &block, &mask)) {
        struct hm_stripe *stripe = hm_stripe_of(process->core, process->region->ino, block);
        struct hm_block *record = &process->region->blocks[block];
        bool busy;
        hm_lock(HM_RANK_STRIPE, &stripe->lock);
        busy = record->busy &&
               (hm_any(record->device, mask.word) || hm_any(record->recalling, mask.word));
        if (!busy && hm_any(record->device, mask.word)) {
            hm_keep(mask.word, record->device);
            hm_process_revoke(process, block, &mask);
            (void)hm_block_cut(process->region, block, &mask, false); /* the audit tells */
        }
        hm_unlock(HM_RANK_STRIPE, &stripe->lock);
        if (busy)
            return false;
    }
    return true;
}

int hm_process_forget(struct hm_core *core, uint64_t ino, uint64_t address, uint64_t length)
{
    HM_AUTO_PUT struct hm_region *region = hm_region_get(core, ino);
    struct hm_process *process = region ? region->process : NULL;
    if (!process)
        return -ESRCH;
    if (address % HM_PAGE_SIZE || length % HM_PAGE_SIZE)
        return -EINVAL;
    HM_GUARD(HM_RANK_PROCESS, &process->lock);
    return hm_process_cut(process, address, address + length) ? 0 : -EBUSY;
}

/* ---- copies for other places -------------------------------------------------------------------
 */

/* Give an address space a copy of a device's page, to which nobody may store meanwhile. -EAGAIN:
 * the kernel has news of it. Another error: the page can't be protected, so try again. */
static int give_copy(const struct hm_process *process, int uffd, uint64_t block, uint32_t page,
                     uint64_t to)
{
    uint32_t owner = process->region->blocks[block].owner[page];
    uint64_t offset = hm_page_offset(block, page);
    const struct hm_mask one = hm_mask_range(page, 1);
    struct hm_pool *pool = &process->region->pools[owner];
    struct uffdio_copy copy = {.dst = to, .len = HM_PAGE_SIZE};
    uint8_t bytes[HM_PAGE_SIZE] __attribute__((aligned(HM_PAGE_SIZE)));
    int error = hm_window_protect(process->region, owner, block, &one);
    if (error)
        return error;
    copy.src = (uintptr_t)hm_pool_map(pool, offset);
    if (!copy.src) { /* no address space for that */
        if (pread(pool->fd, bytes, sizeof(bytes), (off_t)offset) != sizeof(bytes))
            return 0;
        copy.src = (uintptr_t)bytes;
    }
    if (!ioctl(uffd, UFFDIO_COPY, &copy))
        return 0;
    /* There may have been no news at its start, but some at the mapping that is gone. */
    if (errno == ENOENT && !ioctl(uffd, UFFDIO_COPY, &copy))
        return 0;
    return errno == EAGAIN ? -EAGAIN : 0;
}

static bool takes_away(const struct uffd_msg *message)
{
    return message->event == UFFD_EVENT_REMOVE || message->event == UFFD_EVENT_UNMAP;
}

/* Whether nothing of a range is left to take away, since nothing has come to it. */
static bool is_gone(const struct hm_pending *heard, const struct uffd_msg *message)
{
    bool gone = false;
    for (; heard; heard = heard->next)
        if (!takes_away(&heard->message))
            gone = false;
        else if (heard->message.arg.remove.start <= message->arg.remove.start &&
                 heard->message.arg.remove.end >= message->arg.remove.end)
            gone = true;
    return gone;
}

/* Read what the kernel has to say of a child. Its faults wait for the end of its userfaultfd. A
 * child that discards the same all the time makes no list that grows. */
static void hear(struct hm_pending *fork)
{
    struct hm_pending **end = &fork->heard;
    struct uffd_msg message;
    while (*end)
        end = &(*end)->next;
    for (int i = 0; i < HM_HEAR_MOST && read((int)fork->message.arg.fork.ufd, &message,
                                             sizeof(message)) == sizeof(message);
         i++)
        if (message.event != UFFD_EVENT_PAGEFAULT &&
            !(takes_away(&message) && is_gone(fork->heard, &message)))
            end = hm_pending_add(end, &message);
}

static int give_child(const struct hm_process *process, struct hm_pending *fork, uint64_t block,
                      uint32_t page, uint64_t to, int *tries);

/* Copies of a page for an address space that `since` became known of, after it had the page at
 * `to`: one for it, wherever that is now, and one for each child that it has made. */
static int spread(const struct hm_process *process, int uffd, struct hm_pending *since,
                  uint64_t block, uint32_t page, uint64_t to, int *tries)
{
    for (; since && to; since = since->next) {
        int error = 0;
        if (since->message.event != UFFD_EVENT_FORK)
            to = hm_pending_follow(since, to);
        else
            error = give_child(process, since, block, page, to, tries);
        if (error)
            return error;
    }
    return to ? give_copy(process, uffd, block, page, to) : 0;
}

/* -EAGAIN: its address space does not settle, and there are no tries left. */
static int give_child(const struct hm_process *process, struct hm_pending *fork, uint64_t block,
                      uint32_t page, uint64_t to, int *tries)
{
    int uffd = (int)fork->message.arg.fork.ufd, error;
    while ((error = spread(process, uffd, fork->heard, block, page, to, tries)) == -EAGAIN &&
           *tries > 0) {
        --*tries;
        hear(fork);
        sched_yield();
    }
    return error;
}

/* Copies of all that devices have of [start, start+length): for the child, at the same place; or
 * without one for this program, at `to`, that `since` became known of. -EBUSY: a transaction
 * holds one of the blocks; -EAGAIN: as above. What was given is given: it goes on from there. */
static int copy_out(const struct hm_process *process, struct hm_pending *child, uint64_t start,
                    uint64_t length, uint64_t to, struct hm_pending *since)
{
    uint64_t at = start, block;
    struct hm_mask mask;
    int error = 0;
    while (!error && next_part(process, &at, start + length, &block, &mask)) {
        struct hm_stripe *stripe = hm_stripe_of(process->core, process->region->ino, block);
        int tries = HM_SETTLE_TRIES;
        const struct hm_block *record = &process->region->blocks[block];
        hm_lock(HM_RANK_STRIPE, &stripe->lock);
        if (record->busy)
            error = -EBUSY;
        HM_EACH_WORD (w)
            mask.word[w] &= error ? 0 : record->device[w];
        HM_EACH_PAGE (page, mask.word) {
            uint64_t address = hm_page_address(process, block, page);
            uint64_t index = block * HM_BLOCK_PAGES + page;
            if (child && index < child->given)
                continue;
            if (!error && child)
                error = give_child(process, child, block, page, address, &tries);
            else if (!error)
                error = spread(process, process->uffd, since, block, page, address - start + to,
                               &tries);
            if (!error && child)
                child->given = index + 1;
        }
        hm_unlock(HM_RANK_STRIPE, &stripe->lock);
    }
    return error;
}

/* Of [from, to), all but mappings that a child has zeros in; these are in order. */
static bool give_all(const struct hm_process *process, struct hm_pending *fork, uint64_t from,
                     uint64_t to, const struct hm_range *wiped, int ranges)
{
    int error = 0;
    for (int i = 0; !error && i < ranges && wiped[i].start < to; i++) {
        if (wiped[i].start > from)
            error = copy_out(process, fork, from, wiped[i].start - from, 0, NULL);
        from = wiped[i].end > from ? wiped[i].end : from;
    }
    return !error && (from >= to || !copy_out(process, fork, from, to - from, 0, NULL));
}

/* A child's own library sends another userfaultfd; this one ends then, and with it the watch over
 * its pages. A change that we have not heard of by then began when all was there, or the kernel
 * would have refused the last page. */
bool hm_process_forked(struct hm_process *process, struct hm_pending *fork)
{
    struct hm_range *wiped = NULL;
    int ranges = 0;
    bool done = true;
    if (__atomic_load_n(&process->control->wipes, __ATOMIC_RELAXED))
        ranges = hm_vma_wiped(process, &wiped);
    for (uint64_t area = 0; done && area < HM_AREAS; area++) {
        uint64_t from = hm_process_address(process, area * HM_AREA_BYTES / HM_BLOCK_BYTES);
        if (atomic_load(&process->area[area]))
            done = give_all(process, fork, from, from + HM_AREA_BYTES, wiped, ranges);
    }
    free(wiped);
    if (!fork->since_ns)
        fork->since_ns = hm_now();
    /* Its threads change its address space without a pause, which harms its family alone. */
    return done || hm_now() - fork->since_ns > HM_LOST_MS * 1000000ULL;
}

bool hm_process_remapped(struct hm_process *process, struct hm_pending *remap)
{
    uint64_t from = remap->message.arg.remap.from, length = remap->message.arg.remap.len;
    return !copy_out(process, NULL, from, length, remap->message.arg.remap.to, remap->next) &&
           hm_process_cut(process, from, from + length);
}

/* Where the page that is to be at an address after all that waits was before; 0: nowhere. */
static uint64_t origin(const struct hm_process *process, uint64_t address)
{
    const struct hm_pending *end = NULL, *last;
    do {
        last = NULL;
        for (const struct hm_pending *at = process->pending; at != end; at = at->next)
            if (at->message.event != UFFD_EVENT_FORK &&
                hm_pending_concerns(at, address, address + 1))
                last = at;
        if (last && !hm_pending_comes_to(last, address, address + 1))
            return 0;
        if (last)
            address = address - last->message.arg.remap.to + last->message.arg.remap.from;
        end = last;
    } while (last);
    return address;
}

int hm_process_put_early(const struct hm_process *process, uint64_t address)
{
    struct hm_region *region = process->region;
    uint64_t from = origin(process, address), block = from % HM_MAX_BYTES / HM_BLOCK_BYTES;
    uint32_t page = (uint32_t)(from % HM_BLOCK_BYTES / HM_PAGE_SIZE);
    const struct hm_block *record = &region->blocks[block];
    struct hm_stripe *stripe = hm_stripe_of(process->core, region->ino, block);
    int error = -ENOENT;
    if (!from || from == address || !hm_region_is_touched(region, block) ||
        hm_page_address(process, block, page) != from)
        return -ENOENT;
    HM_GUARD(HM_RANK_STRIPE, &stripe->lock);
    /* Another transaction may write to a page that it holds and that we copy: that store is to
     * memory that has moved away under it. */
    if (hm_test(record->device, page))
        error = give_copy(process, process->uffd, block, page, address);
    else if (record->busy && hm_test(record->recalling, page) && hm_process_departs(process, block))
        error = -EAGAIN;
    return error;
}
