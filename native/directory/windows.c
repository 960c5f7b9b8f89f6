/* The windows through which a device's worker sees regions.
 *
 * A worker maps a region's pool of its node, the memfd itself, and registers the mapping with
 * userfaultfd for missing pages and for write-protection. What the directory says and what the
 * worker can do hang together like this:
 *   a page that the device does not own is a hole in its pool: any access is a fault;
 *   a page that it owns and has not written is write-protected: a store is a fault, and that is
 *   the device's dirty bit;
 *   a page that is dirty may be stored to.
 * Write-protection outlives holes (the kernel keeps a marker in the page table: seen on 6.18), so a
 * range is protected before it is filled, and is never reachable without. Before a page is copied
 * away it is protected again, so that the copy is the last word; the punch unmaps it.
 */
#include "directory/windows.h"

#include "directory/records.h"
#include "worker/remote.h"

#include <errno.h>
#include <linux/userfaultfd.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

int hm_devices_init(struct hm_core *core)
{
    core->device = calloc(HM_MAX_NODES, sizeof(*core->device));
    if (!core->device)
        return -ENOMEM;
    for (uint32_t node = 0; node < HM_MAX_NODES; node++) {
        pthread_rwlock_init(&core->device[node].lock, NULL);
        core->device[node].uffd = core->device[node].stop_fd = core->device[node].remote = -1;
    }
    return 0;
}

void hm_devices_deinit(struct hm_core *core)
{
    for (uint32_t node = 0; core->device && node < HM_MAX_NODES; node++) {
        free(core->device[node].windows);
        pthread_rwlock_destroy(&core->device[node].lock);
    }
    free(core->device);
}

/* ---- what a worker may do ----------------------------------------------------------------- */

/* 0 also when the worker is gone: nobody can store there any more. */
static int uffd_ioctl(int uffd, unsigned long request, void *argument)
{
    while (ioctl(uffd, request, argument) < 0) {
        if (errno == ESRCH)
            return 0;
        if (errno != EAGAIN && errno != EINTR)
            return -errno;
    }
    return 0;
}

static struct uffdio_range range_of(uint64_t window, uint64_t block, uint32_t first, uint32_t count)
{
    return (struct uffdio_range){window + hm_page_offset(block, first),
                                 (uint64_t)count * HM_PAGE_SIZE};
}

/* -ENOENT: a part of it is not the window's any more, because it is unmapped or, remotely, mapped
 * from the mount. Then the kernel stops at that part, so it is done page by page. */
static int write_protect(int uffd, struct uffdio_range range, bool on)
{
    uint64_t mode = on ? UFFDIO_WRITEPROTECT_MODE_WP : UFFDIO_WRITEPROTECT_MODE_DONTWAKE;
    struct uffdio_writeprotect request = {range, mode};
    int error = uffd_ioctl(uffd, UFFDIO_WRITEPROTECT, &request);
    for (uint64_t at = 0; error == -ENOENT && at < range.len; at += HM_PAGE_SIZE) {
        struct uffdio_writeprotect page = {{range.start + at, HM_PAGE_SIZE}, mode};
        int result = uffd_ioctl(uffd, UFFDIO_WRITEPROTECT, &page);
        if (result && result != -ENOENT)
            error = result;
    }
    return error == -ENOENT ? 0 : error;
}

static int wake(int uffd, struct uffdio_range range)
{
    return uffd_ioctl(uffd, UFFDIO_WAKE, &range);
}

enum right { PROTECT, LET_STORE, WAKE };

/* That the region has no window on the node is found without a lock: it gets one before its worker
 * hears of it, and its pages are protected then. That it has one is looked up with the lock: when
 * hm_device_unmap has returned, nothing here waits for the worker's mmap_lock any more. */
static int give(struct hm_region *region, uint32_t node, uint64_t block, const struct hm_mask *mask,
                enum right right)
{
    struct hm_device *device = &region->core->device[node];
    uint64_t window;
    int error = 0;
    if (!atomic_load(&region->window[node]))
        return 0;
    hm_lock_to_read(HM_RANK_DEVICE, &device->lock);
    window = atomic_load(&region->window[node]);
    for (uint32_t first = 0, count;
         device->uffd >= 0 && window && !error && hm_next_run(mask->word, &first, &count);
         first += count) {
        struct uffdio_range range = range_of(window, block, first, count);
        if (right == WAKE)
            error = wake(device->uffd, range);
        else
            error = write_protect(device->uffd, range, right == PROTECT);
    }
    hm_unlock_either(HM_RANK_DEVICE, &device->lock);
    return error;
}

int hm_window_protect(struct hm_region *region, uint32_t node, uint64_t block,
                      const struct hm_mask *mask)
{
    return give(region, node, block, mask, PROTECT);
}

int hm_window_let_store(struct hm_region *region, uint32_t node, uint64_t block,
                        const struct hm_mask *mask)
{
    return give(region, node, block, mask, LET_STORE);
}

int hm_window_wake(struct hm_region *region, uint32_t node, uint64_t block,
                   const struct hm_mask *mask)
{
    return give(region, node, block, mask, WAKE);
}

int hm_window_copy(struct hm_region *region, uint32_t node, uint64_t block, uint32_t first,
                   uint32_t count, const void *from)
{
    struct hm_device *device = &region->core->device[node];
    struct uffdio_copy copy = {.src = (uint64_t)(uintptr_t)from,
                               .len = (uint64_t)count * HM_PAGE_SIZE,
                               .mode = UFFDIO_COPY_MODE_WP | UFFDIO_COPY_MODE_DONTWAKE};
    uint64_t window;
    int error = 0;
    hm_lock_to_read(HM_RANK_DEVICE, &device->lock);
    window = atomic_load(&region->window[node]);
    copy.dst = window + hm_page_offset(block, first);
    if (device->uffd < 0 || !window)
        error = -ESRCH;
    else if (ioctl(device->uffd, UFFDIO_COPY, &copy) < 0)
        error = -errno;
    hm_unlock_either(HM_RANK_DEVICE, &device->lock);
    return error;
}

struct hm_window *hm_window_of(const struct hm_device *device, uint64_t ino)
{
    for (uint32_t i = 0; i < device->windows_used; i++)
        if (device->windows[i].ino == ino)
            return &device->windows[i];
    return NULL;
}

void hm_window_note_remote(struct hm_device *device, uint64_t ino, uint64_t block,
                           const struct hm_mask *mask, bool on)
{
    const struct hm_window *window = hm_window_of(device, ino);
    if (!window || block >= window->bytes / HM_BLOCK_BYTES)
        return;
    HM_EACH_WORD (w) {
        uint64_t *word = &window->remote[block * HM_WORDS + (uint32_t)w];
        if (on)
            __atomic_fetch_or(word, mask->word[w], __ATOMIC_RELAXED);
        else
            __atomic_fetch_and(word, ~mask->word[w], __ATOMIC_RELAXED);
    }
    if (on)
        atomic_store(&device->reaches, true);
}

struct hm_mask hm_window_remote(struct hm_region *region, uint32_t node, uint64_t block)
{
    struct hm_device *device = &region->core->device[node];
    const struct hm_window *window;
    struct hm_mask mask = {{0}};
    if (!atomic_load(&device->reaches))
        return mask;
    hm_lock_to_read(HM_RANK_DEVICE, &device->lock);
    window = hm_window_of(device, region->ino);
    if (window && block < window->bytes / HM_BLOCK_BYTES)
        HM_EACH_WORD (w)
            mask.word[w] =
                __atomic_load_n(&window->remote[block * HM_WORDS + (uint32_t)w], __ATOMIC_RELAXED);
    hm_unlock_either(HM_RANK_DEVICE, &device->lock);
    return mask;
}

void hm_window_free(struct hm_window *window)
{
    free(window->had);
    hm_free_memory(window->remote, window->bytes / HM_PAGE_SIZE / 8);
}

int hm_window_map_remote(struct hm_region *region, uint32_t node, uint64_t block,
                         const struct hm_mask *mask, uint32_t worker)
{
    struct hm_device *device = &region->core->device[node];
    int error = 0;
    hm_lock_to_read(HM_RANK_DEVICE, &device->lock);
    if (worker && worker != atomic_load(&device->worker))
        error = -ESRCH;
    else if (device->remote < 0)
        error = -ENOTCONN;
    else
        hm_window_note_remote(device, region->ino, block, mask, true);
    for (uint32_t first = 0, count; !error && hm_next_run(mask->word, &first, &count);
         first += count) {
        struct hm_remote_request request = {.ino = region->ino,
                                            .offset = hm_page_offset(block, first),
                                            .length = (uint64_t)count * HM_PAGE_SIZE};
        if (send(device->remote, &request, sizeof(request), MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
            error = errno == EAGAIN ? -EBUSY : -ENOTCONN;
        else
            hm_count(&region->core->nodes[node].counts.mapped_pages, count);
    }
    if (error == -ENOTCONN)
        hm_window_note_remote(device, region->ino, block, mask, false);
    hm_unlock_either(HM_RANK_DEVICE, &device->lock);
    return error;
}

/* ---- what need not be copied to a worker --------------------------------------------------- */

/* The words of `had` of a block, or NULL; the device's lock is held. */
static uint64_t *had_of(const struct hm_device *device, uint64_t ino, uint64_t block,
                        uint64_t *discard)
{
    const struct hm_window *window = hm_window_of(device, ino);
    if (!window || !window->had || block * HM_BLOCK_BYTES >= window->discard)
        return NULL;
    *discard = window->discard;
    return window->had + block * HM_WORDS;
}

struct hm_mask hm_window_discards(struct hm_region *region, uint32_t node, uint64_t block)
{
    struct hm_device *device = &region->core->device[node];
    struct hm_mask mask = {{0}};
    uint64_t discard, *had;
    if (!atomic_load(&region->window[node]))
        return mask;
    hm_lock_to_read(HM_RANK_DEVICE, &device->lock);
    had = had_of(device, region->ino, block, &discard);
    if (had) {
        uint64_t pages = (discard - block * HM_BLOCK_BYTES) / HM_PAGE_SIZE;
        mask = hm_mask_range(0, pages < HM_BLOCK_PAGES ? (uint32_t)pages : HM_BLOCK_PAGES);
        hm_drop(mask.word, had);
    }
    hm_unlock_either(HM_RANK_DEVICE, &device->lock);
    return mask;
}

void hm_window_had(struct hm_region *region, uint32_t node, uint64_t block,
                   const struct hm_mask *mask)
{
    struct hm_device *device = &region->core->device[node];
    uint64_t discard, *had;
    if (!atomic_load(&region->window[node]))
        return;
    hm_lock_to_read(HM_RANK_DEVICE, &device->lock);
    had = had_of(device, region->ino, block, &discard);
    if (had)
        hm_add(had, mask->word);
    hm_unlock_either(HM_RANK_DEVICE, &device->lock);
}

/* What the device owns of the region already. NULL with errno when there is no memory. */
static uint64_t *owned_pages(struct hm_region *region, uint32_t node, uint64_t bytes)
{
    uint64_t blocks = (bytes + HM_BLOCK_BYTES - 1) / HM_BLOCK_BYTES;
    uint64_t *had = calloc(blocks, HM_WORDS * sizeof(*had));
    for (uint64_t block = 0; had && (block = hm_next_touched(region, block)) < blocks; block++) {
        const struct hm_block *record = &region->blocks[block];
        struct hm_stripe *stripe = hm_stripe_of(region->core, region->ino, block);
        struct hm_mask mine;
        hm_lock(HM_RANK_STRIPE, &stripe->lock);
        mine = hm_owned(record, node);
        memcpy(had + block * HM_WORDS, mine.word, sizeof(mine.word));
        hm_unlock(HM_RANK_STRIPE, &stripe->lock);
    }
    return had;
}

int hm_device_discard(struct hm_core *core, uint32_t node, uint64_t ino, uint64_t bytes)
{
    struct hm_device *device = &core->device[node];
    struct hm_window *window;
    struct hm_region *region;
    uint64_t *had = NULL, *old = NULL;
    int error = -ENOENT;
    if (node == HM_HOST || node >= core->config.nodes)
        return -ENODEV;
    if (bytes > HM_MAX_BYTES)
        return -EINVAL;
    region = bytes ? hm_region_get(core, ino) : NULL;
    if (region) {
        had = owned_pages(region, node, bytes);
        hm_region_put(region);
        if (!had)
            return -ENOMEM;
    }
    hm_lock_to_write(HM_RANK_DEVICE, &device->lock);
    window = hm_window_of(device, ino);
    if (window && bytes <= window->bytes) {
        old = window->had;
        window->had = had;
        window->discard = bytes;
        had = NULL;
        error = 0;
    }
    hm_unlock_either(HM_RANK_DEVICE, &device->lock);
    free(had);
    free(old);
    return error;
}
