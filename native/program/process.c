/* Programs whose own memory devices work on: the twin of a device's worker (device/faults.c).
 *
 * A program under `hmmfs run` has handed us its userfaultfd. Where pages of it have been taken to a
 * device, its accesses are faults here, and what it does to its address space (unmap, move,
 * discard, fork) are events. The kernel sends them in order and holds the program up until they are
 * read. One thread reads; it waits for nobody but for who holds the process's lock, which is
 * for as long as the program's helper takes. What concerns a block that a transaction holds is put
 * in a list with all that came later, and looked at again when a transaction ends.
 *
 * The directory knows only what devices have: any other page is the program's, whether there is
 * one or not, and is counted as the host's just for the moment of a move.
 */
#include "program/process.h"

#include "base/events.h"
#include "base/pause.h"
#include "books/cost.h"
#include "books/counters.h"
#include "books/trace.h"
#include "directory/records.h"
#include "program/anonymous.h"
#include "program/late.h"
#include "program/memory.h"
#include "program/pending.h"
#include "program/program.h"
#include "program/space.h"
#include "rules/prefetch.h"
#include "transaction/journal.h"
#include "transaction/kinds.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define CHILDREN_MS 5000 /* more than any transaction takes */
#define ZERO_PAGES 16    /* holes that are filled with one fault */

/* ---- faults --------------------------------------------------------------------------------- */

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
    home = hm_without(all.word, record->device);
    window =
        hm_prefetch_window(policy, &home, touched, &all, record->cpu_faults, &record->cpu_stride);
    hm_advised_window(t->region, t->block, touched, &window);
    hm_add(window.word, touched->word);
    return hm_both(window.word, record->device);
}

/* Bring pages home for a program that waits for one of them: at once if they are few. Both locks
 * are held. False: it has to be tried again. */
static bool bring_home(struct transaction *t, const struct hm_mask *touched)
{
    struct hm_mask window = home_window(t, touched);
    int error;
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
    error = hm_process_home(t, &window);
    return error != -EAGAIN && error != -ENOMEM;
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
    const uint64_t start = address - address % HM_BLOCK_BYTES;
    /* What was read with it is about another mapping than the page is in by now, or about a fork
     * that has to have the page, too: it is to fault again, behind that. */
    if (hm_process_waits(process, start, start + HM_BLOCK_BYTES)) {
        hm_process_wake(process, address, HM_PAGE_SIZE);
        return true;
    }
    if (!hm_region_is_touched(process->region, block)) {
        hm_process_fill(process, address, 1);
        return true;
    }
    hm_lock(HM_RANK_STRIPE, &t.stripe->lock);
    if (t.record->busy) {
        t.record->parked += t.record->parked < UINT16_MAX;
    } else if (hm_test(t.record->device, page)) {
        uint64_t began = hm_now();
        hm_count_faults(t.region, HM_HOST, write ? HM_FAULTS_WRITE : HM_FAULTS_READ, 1);
        hm_count(&t.core->count.express_faults, 1);
        hm_charge_faults(t.core, HM_HOST, 1);
        t.record->cpu_faulted++;
        hm_trace_cpu_fault(t.region, block, &touched, write, began, false);
        done = bring_home(&t, &touched);
        t.record->cpu_faults += t.record->cpu_faults < UINT8_MAX;
        hm_trace_cpu_fault(t.region, block, &touched, write, began, true);
    } else if (message->arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WP) {
        struct uffdio_writeprotect request = {.range = {address, HM_PAGE_SIZE}};
        done = !ioctl(process->uffd, UFFDIO_WRITEPROTECT, &request) || errno != EAGAIN;
    } else {
        holes = holes_from(t.record, page);
        hm_unlock(HM_RANK_STRIPE, &t.stripe->lock);
        hm_process_fill(process, address, holes);
        return true;
    }
    hm_unlock(HM_RANK_STRIPE, &t.stripe->lock);
    return done;
}

/* ---- events -------------------------------------------------------------------------------- */

static bool serve(struct hm_process *process, struct hm_pending *pending)
{
    const struct uffd_msg *message = &pending->message;
    switch (message->event) {
    case UFFD_EVENT_PAGEFAULT:
        return serve_fault(process, message);
    case UFFD_EVENT_REMOVE:
    case UFFD_EVENT_UNMAP:
        return hm_process_cut(process, message->arg.remove.start, message->arg.remove.end);
    case UFFD_EVENT_REMAP:
        return hm_process_remapped(process, pending);
    case UFFD_EVENT_FORK:
        return hm_process_forked(process, pending);
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
        if (!serve(process, first))
            return false;
        process->pending = first->next;
        if (!process->pending)
            process->pending_end = &process->pending;
        hm_pending_free(first);
    }
    return true;
}

static bool is_settled(const struct hm_process *process, uint64_t block)
{
    uint64_t start = hm_process_address(process, block);
    return !hm_process_waits(process, start, start + HM_BLOCK_BYTES);
}

/* The thread alone may come too late, time after time, where processors are few and the program
 * changes its mappings all the while. */
static bool settle(struct hm_region *region, uint64_t block)
{
    struct hm_process *process = region->process;
    bool settled;
    if (process->uffd < 0)
        return true;
    HM_GUARD(HM_RANK_PROCESS, &process->lock);
    serve_all(process);
    settled = is_settled(process, block);
    return settled;
}

/* False, too, if somebody takes pages just now. */
static bool is_settled_now(struct hm_region *region, uint64_t block)
{
    struct hm_process *process = region->process;
    bool settled;
    if (process->uffd < 0)
        return true;
    if (!hm_try_lock(HM_RANK_PROCESS, &process->lock))
        return false;
    settled = is_settled(process, block);
    hm_unlock(HM_RANK_PROCESS, &process->lock);
    return settled;
}

/* Who waits for the block may try again. */
static void let_go(struct hm_region *region, uint64_t block)
{
    struct hm_process *process = region->process;
    struct hm_stripe *stripe = hm_stripe_of(region->core, region->ino, block);
    struct hm_block *record = &region->blocks[block];
    uint64_t one = 1;
    bool waits;
    hm_lock(HM_RANK_STRIPE, &stripe->lock);
    waits = record->parked;
    record->parked = 0;
    hm_unlock(HM_RANK_STRIPE, &stripe->lock);
    if (waits)
        hm_process_wake(process, hm_process_address(process, block), HM_BLOCK_BYTES);
    if (write(process->poke, &one, sizeof(one)) < 0)
        return; /* it is signalled already */
}

static const struct hm_kind_ops program_ops = {.changes_unseen = true,
                                               .settle = settle,
                                               .is_settled = is_settled_now,
                                               .freed = let_go,
                                               .bring = hm_process_bring,
                                               .may_write = hm_process_may_write,
                                               .operate = hm_process_operate};

/* ---- the thread ----------------------------------------------------------------------------- */

static bool any_fork(const struct hm_process *process)
{
    const struct hm_pending *at = process->pending;
    while (at && at->message.event != UFFD_EVENT_FORK)
        at = at->next;
    return at;
}

/* A child lives from the moment that its event was read, and needs what devices have of its parent
 * whatever becomes of that. */
static void see_to_children(struct hm_process *process)
{
    bool some = process->uffd >= 0;
    for (int ms = 0; some && ms < CHILDREN_MS; ms++) {
        hm_lock(HM_RANK_PROCESS, &process->lock);
        serve_all(process);
        some = any_fork(process);
        hm_unlock(HM_RANK_PROCESS, &process->lock);
        if (some)
            usleep(1000);
    }
}

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
        int limit = -1, n;
        hm_pause("process.turn");
        if (process->uffd >= 0) {
            hm_lock(HM_RANK_PROCESS, &process->lock);
            /* Most of what waits does so for a transaction, which pokes; the rest is the kernel's.
             */
            limit = !serve_all(process) ? 1 : process->late_pages ? HM_LATE_MS : -1;
            if (process->late_pages >= HM_LATE_PAGES || process->late_blocks == HM_LATE_BLOCKS)
                hm_process_flush(process);
            hm_unlock(HM_RANK_PROCESS, &process->lock);
        }
        n = poll(ready, 5, limit);
        if (n < 0 && errno != EINTR)
            break;
        if (!n && process->uffd >= 0) {
            hm_lock(HM_RANK_PROCESS, &process->lock);
            hm_process_flush(process);
            hm_unlock(HM_RANK_PROCESS, &process->lock);
        }
        if (ready[1].revents && read(process->poke, &count, sizeof(count)) < 0)
            continue;
        if (ready[2].revents || ready[3].revents || ready[4].revents || atomic_load(&process->gone))
            break;
    }
    see_to_children(process);
    if (ready[2].revents)
        return NULL;
    atomic_store(&process->gone, true);
    hm_event_push(process->core, &gone);
    return NULL;
}

/* ---- coming and going ----------------------------------------------------------------------- */

static int open_proc(const struct hm_process *process, const char *name, int mode)
{
    char path[64];
    snprintf(path, sizeof(path), "/proc/%d/%s", process->pid, name);
    return open(path, mode | O_CLOEXEC);
}

static void close_all(struct hm_process *process)
{
    const int fds[] = {process->maps, process->pagemap, process->mem, process->stop, process->poke};
    for (size_t i = 0; i < sizeof(fds) / sizeof(*fds); i++)
        if (fds[i] >= 0)
            close(fds[i]);
}

static void process_free(struct hm_process *process)
{
    while (process->pending) {
        struct hm_pending *pending = process->pending;
        process->pending = pending->next;
        hm_pending_free(pending);
    }
    hm_page_sets_deinit(&process->exclusive);
    hm_page_sets_deinit(&process->late);
    if (process->control)
        munmap(process->control, sizeof(*process->control));
    pthread_mutex_destroy(&process->lock);
    free(process);
}

static int process_open(struct hm_process *process, const struct hm_process_config *config)
{
    process->maps = open_proc(process, "maps", O_RDONLY);
    process->pagemap = open_proc(process, "pagemap", O_RDONLY);
    process->mem = open_proc(process, "mem", O_RDWR);
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
    HM_AUTO_PUT struct hm_region *region = hm_region_get(core, ino);
    struct hm_process *process;
    int error;
    if (!region)
        return -ENOENT;
    if (region->process || hm_is_shared(region))
        return -EBUSY;
    process = calloc(1, sizeof(*process));
    if (!process)
        return -ENOMEM;
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
    process->foreign = config->foreign;
    process->pending_end = &process->pending;
    pthread_mutex_init(&process->lock, NULL);
    error = process_open(process, config);
    if (!error) {
        __atomic_store_n(&region->record->size, HM_MAX_BYTES, __ATOMIC_RELEASE);
        process->put_early = hm_process_put_early;
        region->process = process;
        region->ops = &program_ops;
        error = -pthread_create(&process->thread, NULL, process_thread, process);
    }
    if (error) {
        region->ops = &hm_private_ops;
        region->process = NULL;
        close_all(process);
        process_free(process);
        return error;
    }
    if (config->control >= 0)
        close(config->control);
    return 0;
}

/* Bring home what devices have, block by block; what can't be is lost with its program. */
static void all_home(struct hm_process *process)
{
    struct hm_region *region = process->region;
    for (uint64_t block = 0;
         !atomic_load(&process->gone) && (block = hm_next_touched(region, block)) < HM_MAX_BLOCKS;
         block++) {
        struct hm_job job = {.kind = HM_JOB_MIGRATE,
                             .ino = region->ino,
                             .block = block,
                             .count = HM_BLOCK_PAGES,
                             .flags = HM_JOB_QUIET};
        struct hm_stripe *stripe = hm_stripe_of(process->core, job.ino, block);
        const struct hm_block *record = &region->blocks[block];
        bool some, sent = false;
        for (int tries = 0; tries < 5000; tries++) {
            hm_lock(HM_RANK_STRIPE, &stripe->lock);
            some = record->busy || hm_bits(record->device);
            hm_unlock(HM_RANK_STRIPE, &stripe->lock);
            if (!some || atomic_load(&process->gone))
                break;
            if (!sent || tries % 64 == 63)
                sent = !hm_submit(process->core, &job);
            usleep(200);
        }
    }
}

/* Let go of what a descriptor is of; its number stays ours, for jobs under way may use it yet. */
static void let_go_of(const struct hm_process *process, int fd)
{
    if (fd >= 0)
        dup3(process->stop, fd, O_CLOEXEC);
}

int hm_process_detach(struct hm_core *core, uint64_t ino, int home)
{
    HM_AUTO_PUT struct hm_region *region = hm_region_get(core, ino);
    struct hm_process *process = region ? region->process : NULL;
    uint64_t one = 1;
    if (!process || atomic_exchange(&process->detached, true))
        return -ENOENT;
    if (home && process->uffd >= 0) {
        all_home(process);
        __atomic_store_n(&process->control->leaving, 1, __ATOMIC_RELEASE);
    }
    if (write(process->stop, &one, sizeof(one)) < 0)
        one = 0; /* it is signalled already */
    pthread_join(process->thread, NULL);
    HM_GUARD(HM_RANK_PROCESS, &process->lock);
    hm_process_flush(process);
    atomic_store(&process->gone, true);
    let_go_of(process, process->uffd);
    let_go_of(process, process->pidfd);
    if (process->socket >= 0)
        close(process->socket);
    process->socket = -1;
    return 0;
}

void hm_process_deinit(struct hm_region *region)
{
    struct hm_process *process = region->process;
    if (!process)
        return;
    if (process->uffd >= 0)
        close(process->uffd);
    if (process->pidfd >= 0)
        close(process->pidfd);
    close_all(process);
    process_free(process);
    region->process = NULL;
}
