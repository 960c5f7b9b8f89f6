#include "program/memory.h"

#include "program/program.h"

#include <errno.h>
#include <sys/ioctl.h>
#include <sys/uio.h>
#include <unistd.h>

uint64_t hm_process_address(const struct hm_process *process, uint64_t block)
{
    uint64_t offset = block * HM_BLOCK_BYTES;
    uint64_t area = atomic_load(&process->area[offset / HM_AREA_BYTES]);
    return area ? (area - 1) * HM_MAX_BYTES + offset : 0;
}

void hm_process_wake(struct hm_process *process, uint64_t start, uint64_t length)
{
    struct uffdio_range range = {start, length};
    ioctl(process->uffd, UFFDIO_WAKE, &range);
}

void hm_add_part(struct hm_mask *mask, uint64_t base, uint64_t start, uint64_t end)
{
    uint64_t limit = base + HM_BLOCK_BYTES;
    struct hm_mask part;
    start = start > base ? start : base;
    end = end < limit ? end : limit;
    if (start >= end)
        return;
    part = hm_mask_range((uint32_t)((start - base) / HM_PAGE_SIZE),
                         (uint32_t)((end - start + HM_PAGE_SIZE - 1) / HM_PAGE_SIZE));
    hm_add(mask->word, part.word);
}

void hm_process_fill(struct hm_process *process, uint64_t address, uint32_t pages)
{
    struct uffdio_zeropage zeros = {.range = {address, (uint64_t)pages * HM_PAGE_SIZE}};
    if (ioctl(process->uffd, UFFDIO_ZEROPAGE, &zeros) < 0 && zeros.zeropage <= 0) {
        /* It reaches into another mapping; or there is a marker of what was forgotten since. */
        struct uffdio_writeprotect clear = {.range = {address, HM_PAGE_SIZE},
                                            .mode = UFFDIO_WRITEPROTECT_MODE_DONTWAKE};
        ioctl(process->uffd, UFFDIO_WRITEPROTECT, &clear);
        zeros = (struct uffdio_zeropage){.range = {address, HM_PAGE_SIZE}};
        ioctl(process->uffd, UFFDIO_ZEROPAGE, &zeros);
    }
    hm_process_wake(process, address, HM_PAGE_SIZE); /* it may have been there */
}

int hm_process_enter(struct hm_process *process)
{
    uint32_t nobody = 0, self = (uint32_t)gettid();
    int slot = 0;
    while (!atomic_compare_exchange_strong(&process->remote[slot], &nobody, self)) {
        nobody = 0;
        slot = (slot + 1) % HM_MAX_MOVERS;
    }
    atomic_store(&process->remote_ns[slot], hm_now());
    return slot;
}

void hm_process_leave(struct hm_process *process, int slot)
{
    atomic_store(&process->remote[slot], 0);
}

/* By number, since only so a fault is waited for; but a program whose main thread has ended is none
 * by number. And somebody of fewer rights might have another program run under it by now, of more
 * rights: there it is the address space that we were given. */
ssize_t hm_process_copy(const struct hm_process *process, uint64_t address, void *bytes,
                        size_t length, bool store)
{
    struct iovec local = {bytes, length}, remote = {(void *)address, length};
    ssize_t n = -1;
    errno = ESRCH;
    if (!process->foreign || process->mem < 0)
        n = store ? process_vm_writev(process->pid, &local, 1, &remote, 1, 0)
                  : process_vm_readv(process->pid, &local, 1, &remote, 1, 0);
    if (n < 0 && errno == ESRCH && process->mem >= 0) {
        n = store ? pwrite(process->mem, bytes, length, (off_t)address)
                  : pread(process->mem, bytes, length, (off_t)address);
        if (n < 0)
            return errno == EIO ? -EFAULT : -errno;
        return n ? n : -ESRCH;
    }
    return n < 0 ? -errno : n;
}

void hm_process_depart(struct hm_process *process, uint64_t block)
{
    int i = 0;
    while (process->departing[i] && process->departing[i] != block + 1)
        i++; /* one for each mover: there is always a free one */
    process->departing[i] = block + 1;
}

void hm_process_arrive(struct hm_process *process, uint64_t block)
{
    HM_GUARD(HM_RANK_PROCESS, &process->lock);
    for (int i = 0; i < HM_MAX_MOVERS; i++)
        if (process->departing[i] == block + 1)
            process->departing[i] = 0;
}

bool hm_process_departs(const struct hm_process *process, uint64_t block)
{
    for (int i = 0; i < HM_MAX_MOVERS; i++)
        if (process->departing[i] == block + 1)
            return true;
    return false;
}

int hm_process_lose(struct hm_process *process)
{
    uint64_t one = 1;
    atomic_store(&process->gone, true);
    if (write(process->poke, &one, sizeof(one)) < 0)
        return -ESRCH; /* it is signalled already */
    return -ESRCH;
}
