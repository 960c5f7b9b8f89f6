/* What the kernel tells of a program: it is read here, and kept in order until it can be dealt
 * with.
 *
 * Until then the directory is about the past. So nothing is decided by it for addresses that an
 * event which waits is about; hm_process_waits tells which.
 */
#include "program/pending.h"

#include "program/memory.h"
#include "program/program.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/uio.h>
#include <unistd.h>

#define BATCH 64

/* ---- the list ------------------------------------------------------------------------------- */

void hm_pending_range(const struct hm_pending *pending, uint64_t *start, uint64_t *end)
{
    const struct uffd_msg *message = &pending->message;
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

bool hm_pending_comes_to(const struct hm_pending *pending, uint64_t start, uint64_t end)
{
    const struct uffd_msg *message = &pending->message;
    return message->event == UFFD_EVENT_REMAP && message->arg.remap.to < end &&
           start < message->arg.remap.to + message->arg.remap.len;
}

bool hm_pending_concerns(const struct hm_pending *pending, uint64_t start, uint64_t end)
{
    uint64_t from, to;
    hm_pending_range(pending, &from, &to);
    return (from < end && start < to) || hm_pending_comes_to(pending, start, end);
}

bool hm_process_waits(const struct hm_process *process, uint64_t start, uint64_t end)
{
    const struct hm_pending *at = process->pending;
    while (at && !hm_pending_concerns(at, start, end))
        at = at->next;
    return at;
}

void hm_pending_free(struct hm_pending *pending)
{
    while (pending->heard) {
        struct hm_pending *heard = pending->heard;
        pending->heard = heard->next;
        hm_pending_free(heard);
    }
    if (pending->message.event == UFFD_EVENT_FORK)
        close((int)pending->message.arg.fork.ufd);
    free(pending);
}

uint64_t hm_pending_follow(const struct hm_pending *pending, uint64_t address)
{
    uint64_t from, to;
    hm_pending_range(pending, &from, &to);
    if (address < from || address >= to)
        return address;
    return pending->message.event == UFFD_EVENT_REMAP
               ? address - from + pending->message.arg.remap.to
               : 0;
}

struct hm_pending **hm_pending_add(struct hm_pending **end, const struct uffd_msg *message)
{
    struct hm_pending *pending;
    while (!(pending = malloc(sizeof(*pending))))
        usleep(1000); /* an event lost is a program that waits for ever */
    *pending = (struct hm_pending){.message = *message};
    *end = pending;
    return &pending->next;
}

/* ---- what the program discards ----------------------------------------------------------------
 */

/* Whether the library tells of it, and so of its end. */
static bool is_announced(const struct hm_process *process, uint64_t start, uint64_t end)
{
    const struct hm_discarding *all = process->control->discarding;
    for (int i = 0; i < HM_PRELOAD_DISCARDS; i++) {
        uint64_t from = __atomic_load_n(&all[i].start, __ATOMIC_SEQ_CST);
        if (from > 1 && from <= start && end <= __atomic_load_n(&all[i].end, __ATOMIC_RELAXED))
            return true;
    }
    return false;
}

static void note_discard(struct hm_process *process, uint64_t start, uint64_t end)
{
    uint64_t now = hm_now();
    struct hm_discard *at = process->discard, *last = at + HM_DISCARDS - 1;
    while (at < last && at->until_ns > now)
        at++;
    if (at->until_ns > now) { /* there are too many: widen it */
        start = at->start < start ? at->start : start;
        end = at->end > end ? at->end : end;
    }
    *at = (struct hm_discard){start, end, now + HM_DISCARD_MS * 1000000ULL};
}

struct hm_mask hm_process_discards(const struct hm_process *process, uint64_t block)
{
    uint64_t base = hm_process_address(process, block), now = hm_now();
    const struct hm_discarding *all = process->control->discarding;
    struct hm_mask mask = {{0}};
    for (int i = 0; i < HM_DISCARDS; i++)
        if (process->discard[i].until_ns > now)
            hm_add_part(&mask, base, process->discard[i].start, process->discard[i].end);
    for (int i = 0; i < HM_PRELOAD_DISCARDS; i++) {
        uint64_t start = __atomic_load_n(&all[i].start, __ATOMIC_SEQ_CST);
        if (start > 1)
            hm_add_part(&mask, base, start, __atomic_load_n(&all[i].end, __ATOMIC_RELAXED));
    }
    return mask;
}

/* ---- faults of our own threads ------------------------------------------------------------------
 */

static bool is_helper(const struct hm_process *process, uint32_t thread)
{
    return process->control &&
           thread == __atomic_load_n(&process->control->helper, __ATOMIC_RELAXED);
}

/* Which of the threads that access its memory; -1: none of them. */
static int remote_slot(const struct hm_process *process, uint32_t thread)
{
    for (int i = 0; i < HM_MAX_MOVERS; i++)
        if (atomic_load(&process->remote[i]) == thread)
            return i;
    return -1;
}

static bool is_ours(const struct hm_process *process, uint32_t thread)
{
    return thread && (is_helper(process, thread) || remote_slot(process, thread) >= 0);
}

/* It faults again, until the page has arrived. No thread of ours waits for ever: what it waits for
 * is under way, unless the program works against us. */
static void try_again(struct hm_process *process, const struct uffd_msg *message)
{
    int slot = remote_slot(process, message->arg.pagefault.feat.ptid);
    if (slot >= 0 && hm_now() - atomic_load(&process->remote_ns[slot]) > HM_LOST_MS * 1000000ULL)
        hm_process_lose(process);
    else
        hm_process_wake(process, message->arg.pagefault.address & ~(HM_PAGE_SIZE - 1ULL),
                        HM_PAGE_SIZE);
}

/* A thread of ours faults, or the program's helper, with a block held: the page is a hole, or yet
 * to be put there, or was protected in vain. */
static void serve_own(struct hm_process *process, const struct uffd_msg *message)
{
    uint64_t address = message->arg.pagefault.address & ~(HM_PAGE_SIZE - 1ULL);
    struct uffdio_writeprotect request = {.range = {address, HM_PAGE_SIZE}};
    int error = 0;
    if (message->arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WP)
        ioctl(process->uffd, UFFDIO_WRITEPROTECT, &request);
    else
        error = process->put_early(process, address);
    if (error == -ENOENT)
        hm_process_fill(process, address, 1);
    else
        try_again(process, message);
}

/* ---- reading ------------------------------------------------------------------------------------
 */

/* Whether it is what the helper was asked to drop, or a part: mappings may have been split since.
 */
static bool is_dropped(const struct hm_process *process, const struct uffd_msg *message)
{
    const struct hm_slot *slot = process->dropping;
    uint64_t start = message->arg.remove.start, end = message->arg.remove.end;
    if (!slot || message->event != UFFD_EVENT_REMOVE || is_announced(process, start, end))
        return false; /* what the program discards at the same time goes, no matter who was first */
    for (uint32_t i = 0, runs = __atomic_load_n(&slot->runs, __ATOMIC_RELAXED);
         i < HM_PRELOAD_RUNS && i < runs; i++)
        if (start >= slot->run[i].address && end <= slot->run[i].address + slot->run[i].length)
            return true;
    return false;
}

static bool is_own_fault(const struct hm_process *process, const struct uffd_msg *message)
{
    return message->event == UFFD_EVENT_PAGEFAULT &&
           is_ours(process, message->arg.pagefault.feat.ptid);
}

static void note_event(struct hm_process *process, const struct uffd_msg *message)
{
    if (is_dropped(process, message))
        return;
    if (message->event == UFFD_EVENT_REMOVE &&
        !is_announced(process, message->arg.remove.start, message->arg.remove.end))
        note_discard(process, message->arg.remove.start, message->arg.remove.end);
    process->pending_end = hm_pending_add(process->pending_end, message);
}

/* One system call; false: there is nothing more. Faults come before events that are older, so those
 * of our own are served when all the rest is known: once it was read, the kernel does not refuse
 * zeros any more where it is to put a page. */
static bool read_some(struct hm_process *process, size_t most)
{
    struct uffd_msg messages[BATCH];
    ssize_t n = read(process->uffd, messages, most * sizeof(*messages));
    ssize_t count = n > 0 ? n / (ssize_t)sizeof(*messages) : 0;
    ssize_t own = 0;
    for (ssize_t i = 0; i < count; i++)
        if (is_own_fault(process, &messages[i]))
            messages[own++] = messages[i];
        else
            note_event(process, &messages[i]);
    for (ssize_t i = 0; i < own; i++)
        serve_own(process, &messages[i]);
    return count == (ssize_t)most;
}

void hm_process_read(struct hm_process *process)
{
    while (read_some(process, BATCH))
        ;
}

void hm_process_help(struct hm_process *process)
{
    uint32_t helper = __atomic_load_n(&process->control->helper, __ATOMIC_RELAXED);
    char path[80], where[32] = "";
    int fd;
    snprintf(path, sizeof(path), "/proc/%d/task/%u/wchan", process->pid, helper);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return;
    if (read(fd, where, sizeof(where) - 1) > 0 && !strcmp(where, "handle_userfault"))
        read_some(process, 1);
    close(fd);
}
