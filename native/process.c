/* Programs whose own memory devices work on: the twin of a device's worker (uffd.c).
 *
 * A program under `hmmfs run` has handed us its userfaultfd. Where pages of it have been taken to a
 * device, its accesses are faults here, and what it does to its address space (unmap, move,
 * discard, fork) are events. The kernel sends them in order and holds the program up until they are
 * read. One thread reads; it waits for nobody but for whoever holds the process's lock, which is
 * for as long as the program's helper takes. What concerns a block that a transaction holds is put
 * in a list with all that came later, and looked at again when a transaction ends.
 *
 * The directory knows only what devices have: any other page is the program's, whether there is
 * one or not, and is counted as the host's just for the moment of a move.
 */
#include "process.h"

#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define BATCH 64
#define ZERO_PAGES 16 /* holes that are filled with one fault */

static uint64_t page_address(const struct hm_process *process, uint64_t block, uint32_t page)
{
    return hm_process_address(process, block) + (uint64_t)page * HM_PAGE_SIZE;
}

static int process_ioctl(struct hm_process *process, unsigned long request, void *argument)
{
    return ioctl(process->uffd, request, argument) < 0 ? -errno : 0;
}

int hm_process_wake(struct hm_process *process, uint64_t start, uint64_t length)
{
    struct uffdio_range range = {start, length};
    return process_ioctl(process, UFFDIO_WAKE, &range);
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

/* Of addresses [*start, end) the part in one block of the region that may have pages on a device;
 * false: there is none. *start is left at the part's end. */
static bool next_part(const struct hm_process *process, uint64_t *start, uint64_t end,
                      uint64_t *block, struct hm_mask *mask)
{
    while (*start < end) {
        uint64_t offset = *start % HM_MAX_BYTES, next = *start - *start % HM_BLOCK_BYTES;
        uint64_t area = atomic_load(&process->area[offset / HM_AREA_BYTES]), last;
        uint32_t first = (uint32_t)(offset % HM_BLOCK_BYTES / HM_PAGE_SIZE);
        next += HM_BLOCK_BYTES;
        *block = offset / HM_BLOCK_BYTES;
        if (area != *start / HM_MAX_BYTES + 1) {
            *start = (*start / HM_AREA_BYTES + 1) * HM_AREA_BYTES;
            continue;
        }
        last = next < end ? next : end;
        *mask = hm_mask_range(first, (uint32_t)((last - *start) / HM_PAGE_SIZE));
        *start = last;
        if (hm_region_is_touched(process->region, *block))
            return true;
    }
    return false;
}

/* ---- pages that a device has for itself ---------------------------------------------------------
 */

void hm_process_revoke(struct hm_process *process, uint64_t block, const struct hm_mask *mask)
{
    struct hm_side *side = hm_side(&process->exclusive, block);
    if (hm_bits(mask->word))
        process->region->blocks[block].huge = 0;
    for (uint32_t node = 1; side && node < process->core->config.nodes; node++)
        hm_side_take(side, node, mask);
}

int hm_process_exclusive(struct hm_core *core, uint64_t ino, uint32_t node, uint64_t block,
                         const uint64_t *set, uint64_t *out)
{
    struct hm_region *region = hm_region_get(core, ino);
    struct hm_process *process = region ? region->process : NULL;
    int error = process ? 0 : -ESRCH;
    if (!error && (!node || node >= core->config.nodes || block >= HM_MAX_BLOCKS))
        error = -EINVAL;
    if (!error && set)
        error = hm_side_init(region, &process->exclusive);
    if (out)
        memset(out, 0, HM_WORDS * sizeof(*out));
    if (!error && hm_side(&process->exclusive, block) && hm_region_is_touched(region, block)) {
        struct hm_side *side = hm_side(&process->exclusive, block);
        struct hm_stripe *stripe = hm_stripe_of(core, ino, block);
        struct hm_mask mine;
        pthread_mutex_lock(&stripe->lock);
        mine = hm_owned(&region->blocks[block], node);
        if (set)
            region->blocks[block].huge = 0; /* what is held is single pages */
        for (int w = 0; w < HM_WORDS; w++) {
            side->on[node][w] |= set ? set[w] & mine.word[w] : 0;
            if (out)
                out[w] = side->on[node][w];
        }
        pthread_mutex_unlock(&stripe->lock);
    }
    if (region)
        hm_region_put(region);
    return error;
}

static bool in_one_mapping(const struct hm_process *process, uint64_t block)
{
    uint64_t start = hm_process_address(process, block);
    struct hm_vma vma;
    return !hm_vma_find(process, start, &vma) && vma.start <= start &&
           vma.end >= start + HM_BLOCK_BYTES;
}

int hm_process_set_huge(struct hm_core *core, uint64_t ino, uint32_t node, uint64_t block)
{
    struct hm_region *region = hm_region_get(core, ino);
    int error = region && region->process ? 0 : -ESRCH;
    if (!error && (!node || node >= core->config.nodes || block >= HM_MAX_BLOCKS))
        error = -EINVAL;
    if (!error && hm_region_is_touched(region, block) && in_one_mapping(region->process, block)) {
        struct hm_stripe *stripe = hm_stripe_of(core, ino, block);
        struct hm_mask mine;
        pthread_mutex_lock(&stripe->lock);
        mine = hm_owned(&region->blocks[block], node);
        region->blocks[block].huge = hm_bits(mine.word) == HM_BLOCK_PAGES;
        pthread_mutex_unlock(&stripe->lock);
    }
    if (region)
        hm_region_put(region);
    return error;
}

/* ---- what waits ----------------------------------------------------------------------------- */

static void range_of(const struct uffd_msg *message, uint64_t *start, uint64_t *end)
{
    switch (message->event) {
    case UFFD_EVENT_REMOVE:
    case UFFD_EVENT_UNMAP:
        *start = message->arg.remove.start;
        *end = message->arg.remove.end;
        break;
    case UFFD_EVENT_REMAP:
        *start = message->arg.remap.from;
        *end = message->arg.remap.from + message->arg.remap.len;
        break;
    case UFFD_EVENT_FORK:
        *start = 0;
        *end = UINT64_MAX;
        break;
    default: /* a fault changes nothing */
        *start = *end = 0;
    }
}

bool hm_process_waits(const struct hm_process *process, uint64_t start, uint64_t end)
{
    for (const struct hm_pending *at = process->pending; at; at = at->next) {
        uint64_t from, to;
        range_of(&at->message, &from, &to);
        if (from < end && start < to)
            return true;
        if (at->message.event == UFFD_EVENT_REMAP && at->message.arg.remap.to < end &&
            start < at->message.arg.remap.to + at->message.arg.remap.len)
            return true;
    }
    return false;
}

static void put_aside(struct hm_process *process, const struct uffd_msg *message)
{
    struct hm_pending *pending;
    while (!(pending = malloc(sizeof(*pending))))
        usleep(1000); /* an event lost is a program that waits for ever */
    *pending = (struct hm_pending){.message = *message};
    *process->pending_end = pending;
    process->pending_end = &pending->next;
}

static bool is_ours(const struct hm_process *process, uint32_t thread)
{
    for (int i = 0; i < HM_MAX_MOVERS; i++)
        if (thread && atomic_load(&process->remote[i]) == thread)
            return true;
    return false;
}

/* MADV_FREE takes a device's page but leaves its marker, which the page of zeros does not replace.
 */
static void replace_marker(struct hm_process *process, uint64_t address)
{
    static const uint8_t zeros[HM_PAGE_SIZE];
    struct uffdio_copy copy = {.dst = address, .src = (uintptr_t)zeros, .len = HM_PAGE_SIZE};
    process_ioctl(process, UFFDIO_COPY, &copy);
}

/* Give a page, and holes that follow it in the block, their zeros. */
static void fill_holes(struct hm_process *process, uint64_t address, uint32_t pages)
{
    struct uffdio_zeropage zeros = {.range = {address, (uint64_t)pages * HM_PAGE_SIZE}};
    if (process_ioctl(process, UFFDIO_ZEROPAGE, &zeros) && zeros.zeropage <= 0) {
        zeros = (struct uffdio_zeropage){.range = {address, HM_PAGE_SIZE}};
        if (process_ioctl(process, UFFDIO_ZEROPAGE, &zeros) == -EEXIST)
            replace_marker(process, address);
    }
    hm_process_wake(process, address, HM_PAGE_SIZE); /* it may have been there */
}

void hm_process_read(struct hm_process *process)
{
    struct uffd_msg messages[BATCH];
    ssize_t n;
    while ((n = read(process->uffd, messages, sizeof(messages))) > 0)
        for (ssize_t i = 0; i < n / (ssize_t)sizeof(*messages); i++) {
            const struct uffd_msg *message = &messages[i];
            /* A thread of ours that holds the block waits for it: the page is a hole. */
            if (message->event == UFFD_EVENT_PAGEFAULT &&
                is_ours(process, message->arg.pagefault.feat.ptid))
                fill_holes(process, message->arg.pagefault.address & ~(HM_PAGE_SIZE - 1ULL), 1);
            else if (message->event == UFFD_EVENT_REMOVE && process->dropping)
                process->dropping--;
            else
                put_aside(process, message);
        }
}

/* ---- faults --------------------------------------------------------------------------------- */

static void trace_fault(struct transaction *t, const struct hm_mask *mask, bool write,
                        uint64_t since)
{
    enum hm_trace_kind kind = since ? HM_TRACE_PAGE_FAULT_END : HM_TRACE_PAGE_FAULT_START;
    uint64_t now = hm_now();
    if (hm_traced(t->region, kind))
        hm_trace(t->region, t->block, mask,
                 (struct hm_trace_event){.kind = (uint8_t)kind,
                                         .trigger = write ? HM_BY_WRITE : HM_BY_READ,
                                         .node = HM_HOST,
                                         .from = HM_NOWHERE,
                                         .to = HM_NOWHERE,
                                         .at_ns = now,
                                         .took_ns = since ? now - since : 0});
}

/* What the host's policy brings home with a page that a device has. */
static struct hm_mask home_window(const struct transaction *t, const struct hm_mask *touched)
{
    const struct hm_prefetch *policy = atomic_load(&t->core->prefetch[HM_HOST]);
    static const struct hm_mask all = {{~0ULL, ~0ULL, ~0ULL, ~0ULL, ~0ULL, ~0ULL, ~0ULL, ~0ULL}};
    struct hm_block *record = t->record;
    struct hm_mask home, window;
    if (record->huge)
        return all;
    if (policy->kind == HM_PREFETCH_ASK)
        return *touched;
    HM_EACH_WORD (w)
        home.word[w] = ~record->device[w];
    window =
        hm_prefetch_window(policy, &home, touched, &all, record->cpu_faults, &record->cpu_stride);
    hm_advised_window(t->region, t->block, touched, &window);
    HM_EACH_WORD (w)
        window.word[w] = (window.word[w] | touched->word[w]) & record->device[w];
    return window;
}

/* Bring pages home for a program that waits for one of them: at once if they are few. Both locks
 * are held. False: it has to be tried again. */
static bool bring_home(struct transaction *t, const struct hm_mask *touched)
{
    struct hm_mask window = home_window(t, touched);
    if (hm_bits(window.word) > HM_INLINE_PAGES) {
        struct hm_job job = {.kind = HM_JOB_MIGRATE,
                             .ino = t->region->ino,
                             .block = t->block,
                             .flags = HM_JOB_QUIET | HM_JOB_CHOSEN | HM_JOB_FAULT};
        memcpy(job.window, window.word, sizeof(job.window));
        t->record->parked += t->record->parked < UINT16_MAX;
        if (!hm_submit(t->core, &job))
            return true;
        t->record->parked--;
        window = *touched;
    }
    return hm_process_home(t, &window) != -EAGAIN;
}

/* Of the holes that follow a page in its block, those that can be filled with it. */
static uint32_t holes_from(const struct hm_block *record, uint32_t page)
{
    uint32_t n = 1;
    while (n < ZERO_PAGES && page + n < HM_BLOCK_PAGES && !hm_test(record->device, page + n))
        n++;
    return n;
}

static bool serve_fault(struct hm_process *process, const struct uffd_msg *message)
{
    uint64_t address = message->arg.pagefault.address & ~(HM_PAGE_SIZE - 1ULL);
    uint64_t offset = address % HM_MAX_BYTES, block = offset / HM_BLOCK_BYTES;
    uint32_t page = (uint32_t)(offset % HM_BLOCK_BYTES / HM_PAGE_SIZE), holes;
    bool write = message->arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WRITE, done = true;
    struct hm_job job = {.node = HM_HOST, .flags = HM_JOB_FAULT};
    struct transaction t = {.core = process->core,
                            .region = process->region,
                            .stripe = hm_stripe_of(process->core, process->region->ino, block),
                            .record = &process->region->blocks[block],
                            .block = block,
                            .job = &job,
                            .cause = hm_cause(&job)};
    struct hm_mask touched = hm_mask_range(page, 1);
    if (!hm_region_is_touched(process->region, block)) {
        fill_holes(process, address, 1);
        return true;
    }
    pthread_mutex_lock(&t.stripe->lock);
    if (t.record->busy) {
        t.record->parked += t.record->parked < UINT16_MAX;
    } else if (hm_test(t.record->device, page)) {
        uint64_t began = hm_now();
        hm_count_faults(t.region, HM_HOST, write ? HM_FAULTS_WRITE : HM_FAULTS_READ, 1);
        hm_count(&t.core->count.express_faults, 1);
        hm_charge_faults(t.core, HM_HOST, 1);
        t.record->cpu_faulted++;
        trace_fault(&t, &touched, write, 0);
        done = bring_home(&t, &touched);
        t.record->cpu_faults += t.record->cpu_faults < UINT8_MAX;
        trace_fault(&t, &touched, write, began);
    } else if (message->arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WP) {
        struct uffdio_writeprotect request = {.range = {address, HM_PAGE_SIZE}};
        done = process_ioctl(process, UFFDIO_WRITEPROTECT, &request) != -EAGAIN;
    } else {
        holes = holes_from(t.record, page);
        pthread_mutex_unlock(&t.stripe->lock);
        fill_holes(process, address, holes);
        return true;
    }
    pthread_mutex_unlock(&t.stripe->lock);
    return done;
}

/* ---- changes of the address space ----------------------------------------------------------- */

/* Pages went: so does what devices have of them. False: a transaction holds one of the blocks. */
static bool cut(struct hm_process *process, uint64_t start, uint64_t end)
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

/* Copies of all that devices have of [start, start+length), into another address space or another
 * place of this one. False: a transaction holds one of the blocks, or the kernel has news. */
static bool copy_out(struct hm_process *process, int uffd, uint64_t start, uint64_t length,
                     uint64_t to)
{
    uint64_t at = start, block;
    struct hm_mask mask;
    while (next_part(process, &at, start + length, &block, &mask)) {
        struct hm_stripe *stripe = hm_stripe_of(process->core, process->region->ino, block);
        const struct hm_block *record = &process->region->blocks[block];
        int error = 0;
        pthread_mutex_lock(&stripe->lock);
        if (record->busy)
            error = -EAGAIN;
        HM_EACH_WORD (w)
            mask.word[w] &= error ? 0 : record->device[w];
        HM_EACH_PAGE (page, mask.word) {
            struct hm_pool *pool = &process->region->pools[record->owner[page]];
            uint64_t offset = block * HM_BLOCK_BYTES + (uint64_t)page * HM_PAGE_SIZE;
            uint64_t was = page_address(process, block, page);
            struct uffdio_copy copy = {.dst = was - start + to,
                                       .src = (uintptr_t)hm_pool_map(pool, offset),
                                       .len = HM_PAGE_SIZE};
            if (error)
                break;
            hm_window_protect(process->region, record->owner[page], block, &mask);
            if (ioctl(uffd, UFFDIO_COPY, &copy) < 0 && errno == EAGAIN)
                error = -EAGAIN;
        }
        pthread_mutex_unlock(&stripe->lock);
        if (error)
            return false;
    }
    return true;
}

/* A child has all that its parent had: of what devices have, copies. Its own library sends another
 * userfaultfd; this one ends, and with it the watch over its pages. */
static bool serve_fork(struct hm_process *process, const struct uffd_msg *message)
{
    int uffd = (int)message->arg.fork.ufd;
    for (uint64_t area = 0; area < HM_AREAS; area++) {
        uint64_t start = hm_process_address(process, area * HM_AREA_BYTES / HM_BLOCK_BYTES);
        if (atomic_load(&process->area[area]) &&
            !copy_out(process, uffd, start, HM_AREA_BYTES, start))
            return false;
    }
    close(uffd);
    return true;
}

static bool serve_remap(struct hm_process *process, const struct uffd_msg *message)
{
    uint64_t from = message->arg.remap.from, length = message->arg.remap.len;
    return copy_out(process, process->uffd, from, length, message->arg.remap.to) &&
           cut(process, from, from + length);
}

static bool serve(struct hm_process *process, const struct uffd_msg *message)
{
    switch (message->event) {
    case UFFD_EVENT_PAGEFAULT:
        return serve_fault(process, message);
    case UFFD_EVENT_REMOVE:
    case UFFD_EVENT_UNMAP:
        return cut(process, message->arg.remove.start, message->arg.remove.end);
    case UFFD_EVENT_REMAP:
        return serve_remap(process, message);
    case UFFD_EVENT_FORK:
        return serve_fork(process, message);
    default:
        return true;
    }
}

/* Deal with what came, in order, up to what has to wait. False: something has to. */
static bool serve_all(struct hm_process *process)
{
    struct hm_pending *first;
    hm_process_read(process);
    while ((first = process->pending)) {
        if (!serve(process, &first->message))
            return false;
        process->pending = first->next;
        if (!process->pending)
            process->pending_end = &process->pending;
        free(first);
    }
    return true;
}

void hm_process_let_go(struct hm_region *region, uint64_t block)
{
    struct hm_process *process = region->process;
    struct hm_stripe *stripe = hm_stripe_of(region->core, region->ino, block);
    struct hm_block *record = &region->blocks[block];
    uint64_t one = 1;
    bool waits;
    pthread_mutex_lock(&stripe->lock);
    waits = record->parked;
    record->parked = 0;
    pthread_mutex_unlock(&stripe->lock);
    if (waits)
        hm_process_wake(process, hm_process_address(process, block), HM_BLOCK_BYTES);
    if (write(process->poke, &one, sizeof(one)) < 0)
        return; /* it is signalled already */
}

/* ---- the thread ----------------------------------------------------------------------------- */

static void *process_thread(void *arg)
{
    struct hm_process *process = arg;
    struct hm_event gone = {.kind = HM_EVENT_GONE, .ino = process->region->ino};
    struct pollfd ready[] = {{.fd = process->uffd, .events = POLLIN},
                             {.fd = process->poke, .events = POLLIN},
                             {.fd = process->stop, .events = POLLIN},
                             {.fd = process->pidfd, .events = POLLIN},
                             {.fd = process->socket, .events = POLLIN}};
    for (;;) {
        uint64_t count;
        bool waits = false;
        if (process->uffd >= 0) {
            pthread_mutex_lock(&process->lock);
            waits = !serve_all(process);
            pthread_mutex_unlock(&process->lock);
        }
        /* Most of what waits does so for a transaction, which pokes; the rest is the kernel's. */
        if (poll(ready, 5, waits ? 1 : -1) < 0 && errno != EINTR)
            break;
        if (ready[1].revents && read(process->poke, &count, sizeof(count)) < 0)
            continue;
        if (ready[2].revents)
            return NULL;
        if (ready[3].revents || ready[4].revents)
            break;
    }
    atomic_store(&process->gone, true);
    hm_event_push(process->core, &gone);
    return NULL;
}

/* ---- coming and going ----------------------------------------------------------------------- */

static int open_proc(const struct hm_process *process, const char *name)
{
    char path[64];
    snprintf(path, sizeof(path), "/proc/%d/%s", process->pid, name);
    return open(path, O_RDONLY | O_CLOEXEC);
}

static void close_all(struct hm_process *process)
{
    const int fds[] = {process->maps, process->pagemap, process->stop, process->poke};
    for (size_t i = 0; i < sizeof(fds) / sizeof(*fds); i++)
        if (fds[i] >= 0)
            close(fds[i]);
}

static void process_free(struct hm_process *process)
{
    while (process->pending) {
        struct hm_pending *pending = process->pending;
        process->pending = pending->next;
        if (pending->message.event == UFFD_EVENT_FORK)
            close((int)pending->message.arg.fork.ufd);
        free(pending);
    }
    hm_side_deinit(&process->exclusive);
    if (process->control)
        munmap(process->control, sizeof(*process->control));
    pthread_mutex_destroy(&process->lock);
    free(process);
}

static int process_open(struct hm_process *process, const struct hm_process_config *config)
{
    process->maps = open_proc(process, "maps");
    process->pagemap = open_proc(process, "pagemap");
    process->stop = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    process->poke = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (process->maps < 0 || process->pagemap < 0 || process->stop < 0 || process->poke < 0)
        return errno == ENOENT ? -ESRCH : -errno;
    if (config->control >= 0) {
        struct stat status;
        /* Memory that can be shortened would end us by SIGBUS. */
        int seals = fcntl(config->control, F_GET_SEALS);
        if (seals < 0 || !(seals & F_SEAL_SHRINK) || fstat(config->control, &status) < 0 ||
            status.st_size < (off_t)sizeof(*process->control))
            return -EPROTO;
        void *map = mmap(NULL, sizeof(*process->control), PROT_READ | PROT_WRITE, MAP_SHARED,
                         config->control, 0);
        if (map == MAP_FAILED)
            return -errno;
        process->control = map;
    }
    if (config->uffd >= 0 && fcntl(config->uffd, F_SETFL, O_NONBLOCK) < 0)
        return -errno;
    return 0;
}

int hm_process_attach(struct hm_core *core, uint64_t ino, const struct hm_process_config *config)
{
    struct hm_region *region = hm_region_get(core, ino);
    struct hm_process *process;
    int error = -ENOMEM;
    if (!region)
        return -ENOENT;
    if (region->process || hm_is_shared(region)) {
        hm_region_put(region);
        return -EBUSY;
    }
    process = calloc(1, sizeof(*process));
    if (!process)
        goto put;
    process->core = core;
    process->region = region;
    process->pid = config->pid;
    process->pidfd = config->pidfd;
    process->uffd = config->control >= 0 ? config->uffd : -1;
    process->socket = config->socket;
    process->own = config->own;
    process->own_bytes = config->own_bytes;
    process->scratch = config->scratch;
    process->least = config->least;
    process->pending_end = &process->pending;
    pthread_mutex_init(&process->lock, NULL);
    error = process_open(process, config);
    if (!error) {
        __atomic_store_n(&region->record->size, HM_MAX_BYTES, __ATOMIC_RELEASE);
        region->process = process;
        error = -pthread_create(&process->thread, NULL, process_thread, process);
    }
    if (error) {
        region->process = NULL;
        close_all(process);
        process_free(process);
        goto put;
    }
    if (config->control >= 0)
        close(config->control);
put:
    hm_region_put(region);
    return error;
}

/* Bring home what devices have, block by block; what can't be is lost with its program. */
static void all_home(struct hm_process *process)
{
    uint64_t block, from = 0;
    while (!atomic_load(&process->gone) &&
           hm_region_touched(process->core, process->region->ino, from, &block, 1) == 1) {
        struct hm_job job = {.kind = HM_JOB_MIGRATE,
                             .ino = process->region->ino,
                             .block = block,
                             .count = HM_BLOCK_PAGES,
                             .flags = HM_JOB_QUIET};
        struct hm_stripe *stripe = hm_stripe_of(process->core, job.ino, block);
        const struct hm_block *record = &process->region->blocks[block];
        bool some, sent = false;
        for (int tries = 0; tries < 5000; tries++) {
            pthread_mutex_lock(&stripe->lock);
            some = record->busy || hm_bits(record->device);
            pthread_mutex_unlock(&stripe->lock);
            if (!some || atomic_load(&process->gone))
                break;
            if (!sent || tries % 64 == 63)
                sent = !hm_submit(process->core, &job);
            usleep(200);
        }
        from = block + 1;
    }
}

int hm_process_detach(struct hm_core *core, uint64_t ino, int home)
{
    struct hm_region *region = hm_region_get(core, ino);
    struct hm_process *process = region ? region->process : NULL;
    uint64_t one = 1;
    if (!process || atomic_exchange(&process->detached, true)) {
        if (region)
            hm_region_put(region);
        return -ENOENT;
    }
    if (home && process->uffd >= 0) {
        all_home(process);
        __atomic_store_n(&process->control->leaving, 1, __ATOMIC_RELEASE);
    }
    if (write(process->stop, &one, sizeof(one)) < 0)
        one = 0; /* it is signalled already */
    pthread_join(process->thread, NULL);
    pthread_mutex_lock(&process->lock);
    atomic_store(&process->gone, true);
    if (process->uffd >= 0)
        close(process->uffd);
    if (process->socket >= 0)
        close(process->socket);
    if (process->pidfd >= 0)
        close(process->pidfd);
    process->uffd = process->socket = process->pidfd = -1;
    pthread_mutex_unlock(&process->lock);
    hm_region_put(region);
    return 0;
}

void hm_process_deinit(struct hm_region *region)
{
    struct hm_process *process = region->process;
    if (!process)
        return;
    close_all(process);
    process_free(process);
    region->process = NULL;
}
