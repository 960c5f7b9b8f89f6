/* Devices' workers: the windows through which they see regions, and the faults they take there.
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
 *
 * Whoever waits for a fault has an event in the descriptor. It becomes a HM_JOB_TOUCH, which ends
 * by waking it, whatever became of the page meanwhile: an access that still can't go on faults
 * anew.
 */
#include "worker/afar.h"
#include "rest.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#define BATCH 64 /* faults taken at a time */

int hm_devices_init(struct hm_core *core)
{
    core->device = calloc(HM_MAX_NODES, sizeof(*core->device));
    if (!core->device)
        return -ENOMEM;
    for (uint32_t node = 0; node < HM_MAX_NODES; node++) {
        pthread_rwlock_init(&core->device[node].lock, NULL);
        core->device[node].uffd = core->device[node].stop_fd = core->device[node].afar = -1;
    }
    return 0;
}

void hm_devices_deinit(struct hm_core *core)
{
    for (uint32_t node = 0; core->device && node < HM_MAX_NODES; node++)
        pthread_rwlock_destroy(&core->device[node].lock);
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
    return (struct uffdio_range){window + block * HM_BLOCK_BYTES + (uint64_t)first * HM_PAGE_SIZE,
                                 (uint64_t)count * HM_PAGE_SIZE};
}

/* -ENOENT: a part of it is not the window's any more, because it is unmapped or, from afar, mapped
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

/* Whether the region has a window on the node is looked up without a lock: it gets one before its
 * worker hears of it, and its pages are protected then. */
static int give(struct hm_region *region, uint32_t node, uint64_t block, const struct hm_mask *mask,
                enum right right)
{
    struct hm_device *device = &region->core->device[node];
    uint64_t window = atomic_load(&region->window[node]);
    int error = 0;
    if (!window)
        return 0;
    pthread_rwlock_rdlock(&device->lock);
    for (uint32_t first = 0, count;
         device->uffd >= 0 && !error && hm_next_run(mask->word, &first, &count); first += count) {
        struct uffdio_range range = range_of(window, block, first, count);
        if (right == WAKE)
            error = wake(device->uffd, range);
        else
            error = write_protect(device->uffd, range, right == PROTECT);
    }
    pthread_rwlock_unlock(&device->lock);
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
    uint64_t window = atomic_load(&region->window[node]);
    struct uffdio_range range = range_of(window, block, first, count);
    struct uffdio_copy copy = {.dst = range.start,
                               .src = (uint64_t)(uintptr_t)from,
                               .len = range.len,
                               .mode = UFFDIO_COPY_MODE_WP | UFFDIO_COPY_MODE_DONTWAKE};
    int error = 0;
    if (!window)
        return -ESRCH;
    pthread_rwlock_rdlock(&device->lock);
    if (device->uffd < 0)
        error = -ESRCH;
    else if (ioctl(device->uffd, UFFDIO_COPY, &copy) < 0)
        error = -errno;
    pthread_rwlock_unlock(&device->lock);
    return error;
}

/* The device's lock is held. */
static struct hm_window *window_of(const struct hm_device *device, uint64_t ino)
{
    for (uint32_t i = 0; i < device->windows_used; i++)
        if (device->windows[i].ino == ino)
            return &device->windows[i];
    return NULL;
}

/* Note what is mapped from afar, or no more; the device's lock is held. */
static void note_afar(struct hm_device *device, uint64_t ino, uint64_t block,
                      const struct hm_mask *mask, bool on)
{
    const struct hm_window *window = window_of(device, ino);
    if (!window || block >= window->bytes / HM_BLOCK_BYTES)
        return;
    HM_EACH_WORD (w) {
        uint64_t *word = &window->afar[block * HM_WORDS + (uint32_t)w];
        if (on)
            __atomic_fetch_or(word, mask->word[w], __ATOMIC_RELAXED);
        else
            __atomic_fetch_and(word, ~mask->word[w], __ATOMIC_RELAXED);
    }
    if (on)
        atomic_store(&device->reaches, true);
}

struct hm_mask hm_window_afar(struct hm_region *region, uint32_t node, uint64_t block)
{
    struct hm_device *device = &region->core->device[node];
    const struct hm_window *window;
    struct hm_mask mask = {{0}};
    if (!atomic_load(&device->reaches))
        return mask;
    pthread_rwlock_rdlock(&device->lock);
    window = window_of(device, region->ino);
    if (window && block < window->bytes / HM_BLOCK_BYTES)
        HM_EACH_WORD (w)
            mask.word[w] =
                __atomic_load_n(&window->afar[block * HM_WORDS + (uint32_t)w], __ATOMIC_RELAXED);
    pthread_rwlock_unlock(&device->lock);
    return mask;
}

/* What a worker has mapped from afar ends with its window. */
static void window_free(struct hm_window *window)
{
    free(window->had);
    hm_free_memory(window->afar, window->bytes / HM_PAGE_SIZE / 8);
}

int hm_window_map_afar(struct hm_region *region, uint32_t node, uint64_t block,
                       const struct hm_mask *mask, uint32_t worker)
{
    struct hm_device *device = &region->core->device[node];
    int error = 0;
    pthread_rwlock_rdlock(&device->lock);
    if (worker && worker != atomic_load(&device->worker))
        error = -ESRCH;
    else if (device->afar < 0)
        error = -ENOTCONN;
    else
        note_afar(device, region->ino, block, mask, true);
    for (uint32_t first = 0, count; !error && hm_next_run(mask->word, &first, &count);
         first += count) {
        struct hm_afar_request request = {.ino = region->ino,
                                          .offset = block * HM_BLOCK_BYTES +
                                                    (uint64_t)first * HM_PAGE_SIZE,
                                          .length = (uint64_t)count * HM_PAGE_SIZE};
        if (send(device->afar, &request, sizeof(request), MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
            error = errno == EAGAIN ? -EBUSY : -ENOTCONN;
        else
            hm_count(&region->core->nodes[node].mapped_pages, count);
    }
    if (error == -ENOTCONN)
        note_afar(device, region->ino, block, mask, false);
    pthread_rwlock_unlock(&device->lock);
    return error;
}

/* The pages that a refusal is of. False: it is not one of pages that the worker could be asked for.
 * The process runs its user's code, which may write there what it likes. The device's lock is
 * held. */
static bool is_refusal(const struct hm_device *device, const struct hm_afar_request *request,
                       struct hm_mask *pages)
{
    uint64_t block = request->offset / HM_BLOCK_BYTES, at = request->offset % HM_BLOCK_BYTES;
    const struct hm_window *window = window_of(device, request->ino);
    if (!window || block >= window->bytes / HM_BLOCK_BYTES || !request->length ||
        request->length > HM_BLOCK_BYTES - at || (at | request->length) % HM_PAGE_SIZE)
        return false;
    *pages =
        hm_mask_range((uint32_t)(at / HM_PAGE_SIZE), (uint32_t)(request->length / HM_PAGE_SIZE));
    return true; /* unasked for, or twice: then it brings pages that the worker may touch */
}

/* What the helper could not map is brought after all. False: nothing more will come, because the
 * worker has closed its end, or because it is to be ended for what it sent. */
static bool take_refusals(struct hm_core *core, uint32_t node)
{
    struct hm_device *device = &core->device[node];
    struct hm_afar_request request;
    ssize_t n;
    while ((n = recv(device->afar, &request, sizeof(request), MSG_DONTWAIT | MSG_TRUNC)) > 0) {
        struct hm_job job = {
            .kind = HM_JOB_TOUCH, .node = node, .worker = atomic_load(&device->worker)};
        struct hm_mask pages;
        bool sound;
        pthread_rwlock_rdlock(&device->lock);
        sound = n == sizeof(request) && is_refusal(device, &request, &pages);
        if (sound) {
            job.ino = request.ino;
            job.block = request.offset / HM_BLOCK_BYTES;
            note_afar(device, request.ino, job.block, &pages, false);
        }
        pthread_rwlock_unlock(&device->lock);
        if (!sound) {
            hm_touch_report(core, &job, -EBADMSG, 0);
            return false;
        }
        memcpy(job.pages, pages.word, sizeof(job.pages));
        hm_touch_report(core, &job, -ENOTCONN, 0);
    }
    return n < 0 && (errno == EAGAIN || errno == EINTR);
}

/* ---- what need not be copied to a worker --------------------------------------------------- */

/* The words of `had` of a block, or NULL; the device's lock is held. */
static uint64_t *had_of(const struct hm_device *device, uint64_t ino, uint64_t block,
                        uint64_t *discard)
{
    const struct hm_window *window = window_of(device, ino);
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
    pthread_rwlock_rdlock(&device->lock);
    had = had_of(device, region->ino, block, &discard);
    if (had) {
        uint64_t pages = (discard - block * HM_BLOCK_BYTES) / HM_PAGE_SIZE;
        mask = hm_mask_range(0, pages < HM_BLOCK_PAGES ? (uint32_t)pages : HM_BLOCK_PAGES);
        HM_EACH_WORD (w)
            mask.word[w] &= ~had[w];
    }
    pthread_rwlock_unlock(&device->lock);
    return mask;
}

void hm_window_had(struct hm_region *region, uint32_t node, uint64_t block,
                   const struct hm_mask *mask)
{
    struct hm_device *device = &region->core->device[node];
    uint64_t discard, *had;
    if (!atomic_load(&region->window[node]))
        return;
    pthread_rwlock_rdlock(&device->lock);
    had = had_of(device, region->ino, block, &discard);
    if (had)
        HM_EACH_WORD (w)
            had[w] |= mask->word[w];
    pthread_rwlock_unlock(&device->lock);
}

/* What the device owns of the region already. NULL with errno when there is no memory. */
static uint64_t *owned_pages(struct hm_region *region, uint32_t node, uint64_t bytes)
{
    uint64_t blocks = (bytes + HM_BLOCK_BYTES - 1) / HM_BLOCK_BYTES, block, from = 0;
    uint64_t *had = calloc(blocks, HM_WORDS * sizeof(*had));
    while (had && hm_region_touched(region->core, region->ino, from, &block, 1) == 1 &&
           block < blocks) {
        const struct hm_block *record = &region->blocks[block];
        struct hm_stripe *stripe = hm_stripe_of(region->core, region->ino, block);
        struct hm_mask mine;
        pthread_mutex_lock(&stripe->lock);
        mine = hm_owned(record, node);
        memcpy(had + block * HM_WORDS, mine.word, sizeof(mine.word));
        pthread_mutex_unlock(&stripe->lock);
        from = block + 1;
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
    pthread_rwlock_wrlock(&device->lock);
    window = window_of(device, ino);
    if (window && bytes <= window->bytes) {
        old = window->had;
        window->had = had;
        window->discard = bytes;
        had = NULL;
        error = 0;
    }
    pthread_rwlock_unlock(&device->lock);
    free(had);
    free(old);
    return error;
}

/* ---- faults ------------------------------------------------------------------------------- */

/* The window that an address lies in; the device's lock is held. NULL: none. */
static const struct hm_window *window_at(const struct hm_device *device, uint64_t address)
{
    for (uint32_t i = 0; i < device->windows_used; i++) {
        const struct hm_window *window = &device->windows[i];
        if (address - window->address < window->bytes)
            return window;
    }
    return NULL;
}

/* The faults of one block in a batch. */
struct filed {
    struct hm_job job;
    uint32_t reads, writes, duplicates;
};

/* File a fault with the others of its block; returns how many blocks have some now. */
static uint32_t file_fault(struct hm_device *device, const struct uffd_msg *message,
                           struct filed *filed, uint32_t used)
{
    uint64_t address = message->arg.pagefault.address, offset;
    const struct hm_window *window = window_at(device, address);
    bool store =
        message->arg.pagefault.flags & (UFFD_PAGEFAULT_FLAG_WRITE | UFFD_PAGEFAULT_FLAG_WP);
    struct hm_job *job;
    uint32_t page, at = 0;
    if (message->event != UFFD_EVENT_PAGEFAULT || !window) { /* its region has just gone */
        hm_counter *counts = device->core->flows.faults[device - device->core->device];
        hm_count(&counts[store ? HM_FAULTS_WRITE : HM_FAULTS_READ], 1);
        hm_count(&counts[HM_FAULTS_STALE], 1);
        return used;
    }
    offset = address - window->address;
    while (at < used &&
           (filed[at].job.ino != window->ino || filed[at].job.block != offset / HM_BLOCK_BYTES))
        at++;
    if (at == used)
        filed[used++] = (struct filed){.job = {.kind = HM_JOB_TOUCH,
                                               .flags = HM_JOB_QUIET,
                                               .ino = window->ino,
                                               .block = offset / HM_BLOCK_BYTES}};
    job = &filed[at].job;
    page = (uint32_t)(offset % HM_BLOCK_BYTES / HM_PAGE_SIZE);
    filed[at].duplicates += hm_test(job->pages, page);
    job->pages[page / 64] |= 1ULL << (page % 64);
    if (store)
        job->stores[page / 64] |= 1ULL << (page % 64);
    filed[at].reads += !store;
    filed[at].writes += store;
    return used;
}

/* Enter the faults of one block, taken at that time. */
static void begin_faults(struct hm_core *core, const struct filed *filed)
{
    const struct hm_job *job = &filed->job;
    struct hm_region *region = hm_region_get(core, job->ino);
    if (!region) {
        hm_counter *counts = core->flows.faults[job->node];
        hm_count(&counts[HM_FAULTS_READ], filed->reads);
        hm_count(&counts[HM_FAULTS_WRITE], filed->writes);
        hm_count(&counts[HM_FAULTS_DUPLICATE], filed->duplicates);
        return;
    }
    hm_count_faults(region, job->node, HM_FAULTS_READ, filed->reads);
    hm_count_faults(region, job->node, HM_FAULTS_WRITE, filed->writes);
    hm_count_faults(region, job->node, HM_FAULTS_DUPLICATE, filed->duplicates);
    if (hm_traced(region, HM_TRACE_PAGE_FAULT_START)) {
        struct hm_mask pages;
        memcpy(pages.word, job->pages, sizeof(pages));
        hm_trace(region, job->block, &pages,
                 (struct hm_trace_event){.kind = HM_TRACE_PAGE_FAULT_START,
                                         .trigger = filed->writes ? HM_BY_WRITE : HM_BY_READ,
                                         .node = (uint8_t)job->node,
                                         .from = HM_NOWHERE,
                                         .to = HM_NOWHERE,
                                         .at_ns = job->faulted_at});
    }
    hm_region_put(region);
}

/* False: there were none. */
static bool take_faults(struct hm_core *core, uint32_t node)
{
    struct hm_device *device = &core->device[node];
    struct uffd_msg messages[BATCH];
    struct filed filed[BATCH];
    uint32_t used = 0;
    uint64_t now;
    ssize_t n = read(device->uffd, messages, sizeof(messages));
    if (n <= 0)
        return false;
    n /= (ssize_t)sizeof(*messages);
    now = hm_now();
    hm_count(&core->nodes[node].faults, (uint64_t)n);
    hm_count(&core->nodes[node].fault_batches, 1);
    pthread_rwlock_rdlock(&device->lock);
    for (ssize_t i = 0; i < n; i++)
        used = file_fault(device, &messages[i], filed, used);
    pthread_rwlock_unlock(&device->lock);
    for (uint32_t i = 0; i < used; i++) {
        struct hm_job *job = &filed[i].job;
        job->node = node;
        job->worker = atomic_load(&device->worker);
        job->faulted_at = now;
        begin_faults(core, &filed[i]);
        if (atomic_load(&core->prefetch[node])->kind == HM_PREFETCH_ASK) {
            hm_touch_report(core, job, -EAGAIN, 0);
            continue;
        }
        if (hm_touch_now(core, job))
            continue;
        while (hm_submit(core, job) == -ENOMEM)
            usleep(1000); /* the worker's thread waits for this job */
    }
    return true;
}

static void *fault_thread(void *arg)
{
    struct hm_device *device = arg;
    struct hm_core *core = device->core;
    uint32_t node = (uint32_t)(device - core->device);
    struct pollfd ready[3] = {{.fd = device->uffd, .events = POLLIN},
                              {.fd = device->stop_fd, .events = POLLIN},
                              {.fd = device->afar, .events = POLLIN}};
    for (;;) {
        while (take_faults(core, node))
            ;
        if (poll(ready, 3, -1) < 0 && errno != EINTR)
            break;
        if (ready[2].revents && !take_refusals(core, node))
            ready[2].fd = -1;
        if (ready[1].revents || ready[0].revents & (POLLERR | POLLHUP | POLLNVAL))
            break;
    }
    return NULL;
}

/* ---- workers and windows ------------------------------------------------------------------ */

/* What a worker has sent may be anything. */
static bool is_userfaultfd(int fd)
{
    static const char wanted[] = "anon_inode:[userfaultfd]";
    char path[32], name[sizeof(wanted)];
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    return readlink(path, name, sizeof(name)) == sizeof(wanted) - 1 &&
           !memcmp(name, wanted, sizeof(wanted) - 1);
}

int hm_device_attach(struct hm_core *core, uint32_t node, int uffd, int afar)
{
    struct hm_device *device = &core->device[node];
    int error = 0;
    if (node == HM_HOST || node >= core->config.nodes)
        return -ENODEV;
    if (!is_userfaultfd(uffd))
        return -EINVAL;
    if (fcntl(uffd, F_SETFL, O_NONBLOCK) < 0)
        return -errno;
    pthread_rwlock_wrlock(&device->lock);
    if (device->uffd >= 0)
        error = -EBUSY;
    if (!error && (device->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) < 0)
        error = -errno;
    if (!error) {
        device->core = core;
        device->uffd = uffd;
        device->afar = afar;
        atomic_fetch_add(&device->worker, 1);
        error = -pthread_create(&device->thread, NULL, fault_thread, device);
        if (error) {
            close(device->stop_fd);
            device->uffd = device->stop_fd = device->afar = -1;
        }
    }
    pthread_rwlock_unlock(&device->lock);
    return error;
}

uint32_t hm_device_worker(struct hm_core *core, uint32_t node)
{
    return node < core->config.nodes ? atomic_load(&core->device[node].worker) : 0;
}

int hm_device_detach(struct hm_core *core, uint32_t node)
{
    struct hm_device *device = &core->device[node];
    uint64_t one = 1;
    if (node == HM_HOST || node >= core->config.nodes)
        return -ENODEV;
    if (device->uffd < 0)
        return -ENOENT;
    if (write(device->stop_fd, &one, sizeof(one)) < 0)
        return -errno;
    pthread_join(device->thread, NULL);
    pthread_rwlock_wrlock(&device->lock);
    for (uint32_t i = 0; i < device->windows_used; i++) {
        struct hm_region *region = hm_region_get(core, device->windows[i].ino);
        if (region) {
            atomic_store(&region->window[node], 0);
            hm_region_put(region);
        }
        window_free(&device->windows[i]);
    }
    atomic_store(&device->reaches, false);
    free(device->windows);
    device->windows = NULL;
    device->windows_used = 0;
    close(device->uffd);
    close(device->stop_fd);
    if (device->afar >= 0)
        close(device->afar);
    device->uffd = device->stop_fd = device->afar = -1;
    pthread_rwlock_unlock(&device->lock);
    return 0;
}

static int window_add(struct hm_device *device, struct hm_window window)
{
    struct hm_window *windows;
    if (device->uffd < 0)
        return -ENOTCONN;
    if (window_of(device, window.ino))
        return -EEXIST;
    windows = realloc(device->windows, (device->windows_used + 1) * sizeof(*windows));
    if (!windows)
        return -ENOMEM;
    device->windows = windows;
    windows[device->windows_used++] = window;
    return 0;
}

/* Protect what the device has of the region already: nothing of it was protected till now. */
static int protect_all(struct hm_region *region, uint32_t node)
{
    uint64_t block, from = 0;
    int error = 0;
    while (!error && hm_region_touched(region->core, region->ino, from, &block, 1) == 1) {
        struct hm_stripe *stripe = hm_stripe_of(region->core, region->ino, block);
        struct hm_mask mask = hm_mask_range(0, HM_BLOCK_PAGES);
        pthread_mutex_lock(&stripe->lock);
        error = hm_window_protect(region, node, block, &mask);
        pthread_mutex_unlock(&stripe->lock);
        from = block + 1;
    }
    return error;
}

int hm_device_map(struct hm_core *core, uint32_t node, uint64_t ino, uint64_t address,
                  uint64_t bytes)
{
    struct hm_device *device = &core->device[node];
    struct hm_region *region;
    uint64_t *afar;
    int error;
    if (node == HM_HOST || node >= core->config.nodes)
        return -ENODEV;
    if (!address || address % HM_PAGE_SIZE || bytes % HM_BLOCK_BYTES || bytes > HM_MAX_BYTES ||
        address > (uint64_t)INT64_MAX - bytes)
        return -EINVAL;
    region = hm_region_get(core, ino);
    if (!region)
        return -ENOENT;
    afar = hm_reserve_memory(bytes / HM_PAGE_SIZE / 8);
    pthread_rwlock_wrlock(&device->lock);
    error =
        afar ? window_add(device, (struct hm_window){ino, address, bytes, 0, NULL, afar}) : -ENOMEM;
    if (!error)
        atomic_store(&region->window[node], address);
    else
        hm_free_memory(afar, bytes / HM_PAGE_SIZE / 8);
    pthread_rwlock_unlock(&device->lock);
    if (!error)
        error = protect_all(region, node);
    if (!error && region->process)
        hm_process_punch(region);
    hm_region_put(region);
    return error;
}

int hm_device_unmap(struct hm_core *core, uint32_t node, uint64_t ino)
{
    struct hm_device *device = &core->device[node];
    struct hm_region *region = hm_region_get(core, ino);
    int error = -ENOENT;
    if (region) {
        atomic_store(&region->window[node], 0);
        hm_region_put(region);
    }
    pthread_rwlock_wrlock(&device->lock);
    for (uint32_t i = 0; i < device->windows_used; i++)
        if (device->windows[i].ino == ino) {
            window_free(&device->windows[i]);
            device->windows[i] = device->windows[--device->windows_used];
            error = 0;
            break;
        }
    pthread_rwlock_unlock(&device->lock);
    return error;
}

int hm_pool_descriptor(struct hm_core *core, uint64_t ino, uint32_t node)
{
    struct hm_region *region;
    struct hm_pool *pool;
    int fd;
    if (node >= core->config.nodes)
        return -ENODEV;
    region = hm_region_get(core, ino);
    if (!region)
        return -ENOENT;
    pool = hm_region_pool(region, node);
    fd = pool ? fcntl(pool->fd, F_DUPFD_CLOEXEC, 3) : -1;
    if (fd < 0)
        fd = -errno;
    hm_region_put(region);
    return fd;
}
