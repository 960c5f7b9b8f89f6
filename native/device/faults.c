/* The faults of devices' workers (directory/windows.c), and workers that come and go.
 *
 * A thread that waits for a fault has an event in the descriptor. It becomes a HM_JOB_DEVICE_FAULT,
 * which ends by waking it, whatever became of the page meanwhile: an access that still can't go on
 * faults anew.
 */
#include "base/region.h"
#include "books/counters.h"
#include "books/trace.h"
#include "directory/records.h"
#include "directory/windows.h"
#include "program/late.h"
#include "transaction/jobs.h"
#include "worker/remote.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#define BATCH 64 /* faults taken at a time */

/* The pages that a refusal is of. False: it is not one of pages that the worker could be asked for.
 * The process runs its user's code, which may write there what it likes. The device's lock is
 * held. */
static bool is_refusal(const struct hm_device *device, const struct hm_remote_request *request,
                       struct hm_mask *pages)
{
    uint64_t block = request->offset / HM_BLOCK_BYTES, at = request->offset % HM_BLOCK_BYTES;
    const struct hm_window *window = hm_window_of(device, request->ino);
    if (!window || block >= window->bytes / HM_BLOCK_BYTES || !request->length ||
        request->length > HM_BLOCK_BYTES - at || (at | request->length) % HM_PAGE_SIZE)
        return false;
    *pages =
        hm_mask_range((uint32_t)(at / HM_PAGE_SIZE), (uint32_t)(request->length / HM_PAGE_SIZE));
    return true; /* unasked for, or twice: then it brings pages that the worker may access */
}

/* What the helper could not map is brought after all. False: nothing more will come, because the
 * worker has closed its end, or because it is to be ended for what it sent. */
static bool take_refusals(struct hm_core *core, uint32_t node)
{
    struct hm_device *device = &core->device[node];
    struct hm_remote_request request;
    ssize_t n;
    while ((n = recv(device->remote, &request, sizeof(request), MSG_DONTWAIT | MSG_TRUNC)) > 0) {
        struct hm_job job = {
            .kind = HM_JOB_DEVICE_FAULT, .node = node, .worker = atomic_load(&device->worker)};
        struct hm_mask pages;
        bool sound;
        hm_lock_to_read(HM_RANK_DEVICE, &device->lock);
        sound = n == sizeof(request) && is_refusal(device, &request, &pages);
        if (sound) {
            job.ino = request.ino;
            job.block = request.offset / HM_BLOCK_BYTES;
            hm_window_note_remote(device, request.ino, job.block, &pages, false);
        }
        hm_unlock_either(HM_RANK_DEVICE, &device->lock);
        if (!sound) {
            hm_device_fault_report(core, &job, -EBADMSG, 0);
            return false;
        }
        memcpy(job.pages, pages.word, sizeof(job.pages));
        hm_device_fault_report(core, &job, -ENOTCONN, 0);
    }
    return n < 0 && (errno == EAGAIN || errno == EINTR);
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
        uint64_t *counts = device->core->flows.faults[device - device->core->device];
        hm_count(&counts[store ? HM_FAULTS_WRITE : HM_FAULTS_READ], 1);
        hm_count(&counts[HM_FAULTS_STALE], 1);
        return used;
    }
    offset = address - window->address;
    while (at < used &&
           (filed[at].job.ino != window->ino || filed[at].job.block != offset / HM_BLOCK_BYTES))
        at++;
    if (at == used)
        filed[used++] = (struct filed){.job = {.kind = HM_JOB_DEVICE_FAULT,
                                               .flags = HM_JOB_QUIET,
                                               .ino = window->ino,
                                               .block = offset / HM_BLOCK_BYTES}};
    job = &filed[at].job;
    page = (uint32_t)(offset % HM_BLOCK_BYTES / HM_PAGE_SIZE);
    filed[at].duplicates += hm_test(job->pages, page);
    hm_set(job->pages, page);
    if (store)
        hm_set(job->stores, page);
    filed[at].reads += !store;
    filed[at].writes += store;
    return used;
}

/* Enter the faults of one block, taken at that time. */
static void begin_faults(struct hm_core *core, const struct filed *filed)
{
    const struct hm_job *job = &filed->job;
    HM_AUTO_PUT struct hm_region *region = hm_region_get(core, job->ino);
    if (!region) {
        uint64_t *counts = core->flows.faults[job->node];
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
    hm_count(&core->nodes[node].counts.faults, (uint64_t)n);
    hm_count(&core->nodes[node].counts.fault_batches, 1);
    hm_lock_to_read(HM_RANK_DEVICE, &device->lock);
    for (ssize_t i = 0; i < n; i++)
        used = file_fault(device, &messages[i], filed, used);
    hm_unlock_either(HM_RANK_DEVICE, &device->lock);
    for (uint32_t i = 0; i < used; i++) {
        struct hm_job *job = &filed[i].job;
        job->node = node;
        job->worker = atomic_load(&device->worker);
        job->faulted_at = now;
        begin_faults(core, &filed[i]);
        if (atomic_load(&core->prefetch[node])->kind == HM_PREFETCH_ASK) {
            hm_device_fault_report(core, job, -EAGAIN, 0);
            continue;
        }
        if (hm_device_fault_now(core, job))
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
                              {.fd = device->remote, .events = POLLIN}};
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

int hm_device_attach(struct hm_core *core, uint32_t node, int uffd, int remote)
{
    struct hm_device *device = &core->device[node];
    int error = 0;
    if (node == HM_HOST || node >= core->config.nodes)
        return -ENODEV;
    if (!is_userfaultfd(uffd))
        return -EINVAL;
    if (fcntl(uffd, F_SETFL, O_NONBLOCK) < 0)
        return -errno;
    hm_lock_to_write(HM_RANK_DEVICE, &device->lock);
    if (device->uffd >= 0)
        error = -EBUSY;
    if (!error && (device->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) < 0)
        error = -errno;
    if (!error) {
        device->core = core;
        device->uffd = uffd;
        device->remote = remote;
        atomic_fetch_add(&device->worker, 1);
        error = -pthread_create(&device->thread, NULL, fault_thread, device);
        if (error) {
            close(device->stop_fd);
            device->uffd = device->stop_fd = device->remote = -1;
        }
    }
    hm_unlock_either(HM_RANK_DEVICE, &device->lock);
    return error;
}

uint32_t hm_device_worker(struct hm_core *core, uint32_t node)
{
    return node < core->config.nodes ? atomic_load(&core->device[node].worker) : 0;
}

/* The region that some window of the device is on; 0: it has none. */
static uint64_t any_window(struct hm_device *device)
{
    uint64_t ino;
    hm_lock_to_read(HM_RANK_DEVICE, &device->lock);
    ino = device->windows_used ? device->windows[0].ino : 0;
    hm_unlock_either(HM_RANK_DEVICE, &device->lock);
    return ino;
}

int hm_device_detach(struct hm_core *core, uint32_t node)
{
    struct hm_device *device = &core->device[node];
    uint64_t one = 1, ino;
    if (node == HM_HOST || node >= core->config.nodes)
        return -ENODEV;
    if (device->uffd < 0)
        return -ENOENT;
    if (write(device->stop_fd, &one, sizeof(one)) < 0)
        return -errno;
    pthread_join(device->thread, NULL);
    /* Without a userfaultfd nothing is done to a window any more, so they may go one by one. */
    hm_lock_to_write(HM_RANK_DEVICE, &device->lock);
    close(device->uffd);
    close(device->stop_fd);
    if (device->remote >= 0)
        close(device->remote);
    device->uffd = device->stop_fd = device->remote = -1;
    atomic_store(&device->reaches, false);
    hm_unlock_either(HM_RANK_DEVICE, &device->lock);
    while ((ino = any_window(device)))
        hm_device_unmap(core, node, ino); /* takes the table's lock before the device's */
    return 0;
}

static int window_add(struct hm_device *device, struct hm_window window)
{
    struct hm_window *windows;
    if (device->uffd < 0)
        return -ENOTCONN;
    if (hm_window_of(device, window.ino))
        return -EEXIST;
    windows = realloc(device->windows, (device->windows_used + 1) * sizeof(*windows));
    if (!windows)
        return -ENOMEM;
    device->windows = windows;
    windows[device->windows_used++] = window;
    return 0;
}

/* Protect what the device has of the region already: nothing of it was protected until now. */
static int protect_all(struct hm_region *region, uint32_t node)
{
    int error = 0;
    for (uint64_t block = 0; !error && (block = hm_next_touched(region, block)) < HM_MAX_BLOCKS;
         block++) {
        struct hm_stripe *stripe = hm_stripe_of(region->core, region->ino, block);
        struct hm_mask mask = hm_mask_range(0, HM_BLOCK_PAGES);
        hm_lock(HM_RANK_STRIPE, &stripe->lock);
        error = hm_window_protect(region, node, block, &mask);
        hm_unlock(HM_RANK_STRIPE, &stripe->lock);
    }
    return error;
}

int hm_device_map(struct hm_core *core, uint32_t node, uint64_t ino, uint64_t address,
                  uint64_t bytes)
{
    struct hm_device *device = &core->device[node];
    uint64_t *remote;
    int error;
    if (node == HM_HOST || node >= core->config.nodes)
        return -ENODEV;
    if (!address || address % HM_PAGE_SIZE || bytes % HM_BLOCK_BYTES || bytes > HM_MAX_BYTES ||
        address > (uint64_t)INT64_MAX - bytes)
        return -EINVAL;
    HM_AUTO_PUT struct hm_region *region = hm_region_get(core, ino);
    if (!region)
        return -ENOENT;
    remote = hm_reserve_memory(bytes / HM_PAGE_SIZE / 8);
    hm_lock_to_write(HM_RANK_DEVICE, &device->lock);
    error = remote ? window_add(device, (struct hm_window){ino, address, bytes, 0, NULL, remote})
                   : -ENOMEM;
    if (!error)
        atomic_store(&region->window[node], address);
    else
        hm_free_memory(remote, bytes / HM_PAGE_SIZE / 8);
    hm_unlock_either(HM_RANK_DEVICE, &device->lock);
    if (!error)
        error = protect_all(region, node);
    if (!error && region->process)
        hm_process_punch(region);
    return error;
}

int hm_device_unmap(struct hm_core *core, uint32_t node, uint64_t ino)
{
    struct hm_device *device = &core->device[node];
    HM_AUTO_PUT struct hm_region *region = hm_region_get(core, ino);
    int error = -ENOENT;
    if (region)
        atomic_store(&region->window[node], 0);
    hm_lock_to_write(HM_RANK_DEVICE, &device->lock);
    for (uint32_t i = 0; i < device->windows_used; i++)
        if (device->windows[i].ino == ino) {
            hm_window_free(&device->windows[i]);
            device->windows[i] = device->windows[--device->windows_used];
            error = 0;
            break;
        }
    hm_unlock_either(HM_RANK_DEVICE, &device->lock);
    return error;
}

int hm_pool_descriptor(struct hm_core *core, uint64_t ino, uint32_t node)
{
    struct hm_pool *pool;
    int fd;
    if (node >= core->config.nodes)
        return -ENODEV;
    HM_AUTO_PUT struct hm_region *region = hm_region_get(core, ino);
    if (!region)
        return -ENOENT;
    pool = hm_region_pool(region, node);
    fd = pool ? fcntl(pool->fd, F_DUPFD_CLOEXEC, 3) : -1;
    if (fd < 0)
        fd = -errno;
    return fd;
}
