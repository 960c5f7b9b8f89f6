/* A program's address space: what its addresses are to the devices, and what becomes of pages when
 * the program changes its mappings. */
#include "process.h"

#include <sched.h>
#include <sys/ioctl.h>
#include <unistd.h>

static uint64_t page_address(const struct hm_process *process, uint64_t block, uint32_t page)
{
    return hm_process_address(process, block) + (uint64_t)page * HM_PAGE_SIZE;
}

/* ---- addresses ---------------------------------------------------------------------------- */

uint64_t hm_process_address(const struct hm_process *process, uint64_t block)
{
    uint64_t offset = block * HM_BLOCK_BYTES;
    uint64_t area = atomic_load(&process->area[offset / HM_AREA_BYTES]);
    return area ? (area - 1) * HM_MAX_BYTES + offset : 0;
}

/* Claim an address's TiB. */
static int claim(struct hm_process *process, uint64_t address)
{
    _Atomic uint64_t *area = &process->area[address % HM_MAX_BYTES / HM_AREA_BYTES];
    uint64_t is = 0, high = address / HM_MAX_BYTES + 1;
    if (atomic_compare_exchange_strong(area, &is, high) || is == high)
        return 0;
    return -EADDRINUSE;
}

int64_t hm_process_offset(struct hm_core *core, uint64_t ino, uint64_t address, uint64_t length)
{
    struct hm_region *region = hm_region_get(core, ino);
    int64_t offset = -ESRCH;
    if (region && region->process) {
        offset = (int64_t)(address % HM_MAX_BYTES);
        if (address + length < address || address + length > 1ULL << 56 ||
            length > HM_MAX_BYTES - (uint64_t)offset)
            offset = -EFAULT;
        for (uint64_t at = 0; offset >= 0 && at < length; at += HM_AREA_BYTES)
            if (claim(region->process, address + at))
                offset = -EADDRINUSE;
        if (offset >= 0 && length && claim(region->process, address + length - 1))
            offset = -EADDRINUSE;
    }
    if (region)
        hm_region_put(region);
    return offset;
}

uint64_t hm_process_address_of(struct hm_core *core, uint64_t ino, uint64_t offset)
{
    struct hm_region *region = hm_region_get(core, ino);
    uint64_t address = 0;
    if (region && region->process && offset < HM_MAX_BYTES) {
        address = hm_process_address(region->process, offset / HM_BLOCK_BYTES);
        address += address ? offset % HM_BLOCK_BYTES : 0;
    }
    if (region)
        hm_region_put(region);
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
        pthread_mutex_lock(&stripe->lock);
        busy = record->busy &&
               (hm_any(record->device, mask.word) || hm_any(record->recalling, mask.word));
        if (!busy && hm_any(record->device, mask.word)) {
            HM_EACH_WORD (w)
                mask.word[w] &= record->device[w];
            hm_process_revoke(process, block, &mask);
            hm_block_cut(process->region, block, &mask, false);
        }
        pthread_mutex_unlock(&stripe->lock);
        if (busy)
            return false;
    }
    return true;
}

int hm_process_forget(struct hm_core *core, uint64_t ino, uint64_t address, uint64_t length)
{
    struct hm_region *region = hm_region_get(core, ino);
    struct hm_process *process = region ? region->process : NULL;
    int error = process ? 0 : -ESRCH;
    if (!error && (address % HM_PAGE_SIZE || length % HM_PAGE_SIZE))
        error = -EINVAL;
    if (!error) {
        pthread_mutex_lock(&process->lock);
        error = hm_process_cut(process, address, address + length) ? 0 : -EBUSY;
        pthread_mutex_unlock(&process->lock);
    }
    if (region)
        hm_region_put(region);
    return error;
}

/* Give an address space a copy of a device's page. A hole there is not what the page came from: it
 * was dropped since, and stays one. -EAGAIN: the kernel has news of that address space. */
static int give_copy(struct hm_process *process, int uffd, uint64_t block, uint32_t page,
                     uint64_t to)
{
    uint32_t owner = process->region->blocks[block].owner[page];
    uint64_t offset = block * HM_BLOCK_BYTES + (uint64_t)page * HM_PAGE_SIZE;
    const struct hm_mask one = hm_mask_range(page, 1);
    struct uffdio_zeropage zeros = {.range = {to, HM_PAGE_SIZE}};
    struct uffdio_copy copy = {.dst = to, .len = HM_PAGE_SIZE};
    if (ioctl(uffd, UFFDIO_ZEROPAGE, &zeros) == 0)
        return 0;
    if (errno == EAGAIN)
        return -EAGAIN;
    hm_window_protect(process->region, owner, block, &one);
    copy.src = (uintptr_t)hm_pool_map(&process->region->pools[owner], offset);
    return copy.src && ioctl(uffd, UFFDIO_COPY, &copy) < 0 && errno == EAGAIN ? -EAGAIN : 0;
}

/* Copies of all that devices have of [start, start+length), into another address space or another
 * place of this one. -EBUSY: a transaction holds one of the blocks; -EAGAIN: as above. */
static int copy_out(struct hm_process *process, int uffd, uint64_t start, uint64_t length,
                    uint64_t to)
{
    uint64_t at = start, block;
    struct hm_mask mask;
    int error = 0;
    while (!error && next_part(process, &at, start + length, &block, &mask)) {
        struct hm_stripe *stripe = hm_stripe_of(process->core, process->region->ino, block);
        const struct hm_block *record = &process->region->blocks[block];
        pthread_mutex_lock(&stripe->lock);
        if (record->busy)
            error = -EBUSY;
        HM_EACH_WORD (w)
            mask.word[w] &= error ? 0 : record->device[w];
        HM_EACH_PAGE (page, mask.word)
            if (!error)
                error = give_copy(process, uffd, block, page,
                                  page_address(process, block, page) - start + to);
        pthread_mutex_unlock(&stripe->lock);
    }
    return error;
}

/* Read what the kernel has to say of a child: it may have forked itself, and moved pages. */
static int hear_heir(struct hm_process *process, int uffd)
{
    struct uffd_msg message;
    while (process->heirs < HM_HEIRS && read(uffd, &message, sizeof(message)) > 0) {
        int error = 0;
        if (message.event == UFFD_EVENT_FORK)
            process->heir[process->heirs++] = (int)message.arg.fork.ufd;
        while (message.event == UFFD_EVENT_REMAP &&
               (error = copy_out(process, uffd, message.arg.remap.from, message.arg.remap.len,
                                 message.arg.remap.to)) == -EAGAIN &&
               hear_heir(process, uffd) == 0)
            sched_yield();
        if (error)
            return error;
    }
    return 0;
}

static int copy_to_heir(struct hm_process *process, int uffd)
{
    for (uint64_t area = 0; area < HM_AREAS; area++) {
        uint64_t start = hm_process_address(process, area * HM_AREA_BYTES / HM_BLOCK_BYTES);
        int error;
        if (!atomic_load(&process->area[area]))
            continue;
        while ((error = copy_out(process, uffd, start, HM_AREA_BYTES, start)) == -EAGAIN)
            if ((error = hear_heir(process, uffd)))
                return error;
            else
                sched_yield();
        if (error)
            return error;
    }
    return 0;
}

/* A child has all that its parent had: of what devices have, copies; and so have its children that
 * it made before it had all. Its own library sends another userfaultfd; this one ends, and with it
 * the watch over its pages. A fork that we have not read of by then began when all was there, or
 * the kernel would have refused the last page. */
bool hm_process_forked(struct hm_process *process, const struct uffd_msg *message)
{
    if (!process->heirs)
        process->heir[process->heirs++] = (int)message->arg.fork.ufd;
    while (process->heirs) {
        uint32_t last = process->heirs - 1;
        int uffd = process->heir[last];
        if (copy_to_heir(process, uffd) || hear_heir(process, uffd))
            return false;
        if (process->heirs - 1 > last) /* it has children: they go first, as it may have more */
            continue;
        close(uffd);
        process->heirs--;
    }
    return true;
}

bool hm_process_remapped(struct hm_process *process, const struct uffd_msg *message)
{
    uint64_t from = message->arg.remap.from, length = message->arg.remap.len;
    return !copy_out(process, process->uffd, from, length, message->arg.remap.to) &&
           hm_process_cut(process, from, from + length);
}
