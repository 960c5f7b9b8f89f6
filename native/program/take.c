/* Taking pages from a program: what its helper is asked for, and what becomes of it. */
#include "program/take.h"

#include "base/pause.h"
#include "program/memory.h"
#include "program/pending.h"
#include "program/program.h"
#include "program/stays.h"
#include "program/vma.h"
#include "transaction/jobs.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define ANSWER_MS 1000 /* a helper has this long to begin; a stopped program's does not */
#define HELP_MS 10     /* more than any request takes */
#define NEWS_US 50

#ifndef UFFDIO_REGISTER_MODE_WP
#error "linux/userfaultfd.h of 5.7 or later"
#endif

/* ---- the helper ----------------------------------------------------------------------------- */

static int result_of(const struct hm_slot *slot)
{
    return __atomic_load_n(&slot->result, __ATOMIC_RELAXED);
}

/* A slot; the process's lock is held. -EBUSY: all are in use. */
static int claim_slot(struct hm_process *process)
{
    for (int i = 0; i < HM_PRELOAD_SLOTS; i++) {
        struct hm_slot *slot = &process->control->slot[i];
        bool used = process->slots >> i & 1;
        if (used &&
            (__atomic_load_n(&slot->kind, __ATOMIC_RELAXED) != HM_SLOT_RELEASE ||
             __atomic_load_n(&slot->state, __ATOMIC_ACQUIRE) != HM_SLOT_DONE || result_of(slot)))
            continue;
        process->slots |= 1u << i;
        __atomic_store_n(&slot->state, HM_SLOT_FREE, __ATOMIC_RELEASE);
        return i;
    }
    return -EBUSY;
}

static uint64_t scratch_of(const struct hm_process *process, int slot)
{
    return process->scratch + (uint64_t)slot * HM_BLOCK_BYTES;
}

static int post(struct hm_process *process, int slot, enum hm_slot_kind kind)
{
    struct hm_slot *request = &process->control->slot[slot];
    uint32_t number = (uint32_t)slot, state = HM_SLOT_PENDING;
    __atomic_store_n(&request->kind, kind, __ATOMIC_RELAXED);
    __atomic_store_n(&request->result, 0, __ATOMIC_RELAXED);
    __atomic_store_n(&request->state, HM_SLOT_PENDING, __ATOMIC_RELEASE);
    if (send(process->socket, &number, sizeof(number), MSG_DONTWAIT | MSG_NOSIGNAL) >= 0)
        return 0;
    if (errno != EAGAIN)
        return -ESRCH;
    /* An older message about the slot may have led the helper to it. */
    return __atomic_compare_exchange_n(&request->state, &state, HM_SLOT_FREE, false,
                                       __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)
               ? -EBUSY
               : 0;
}

static bool is_there(const struct hm_process *process)
{
    struct pollfd ready = {.fd = process->socket, .events = POLLIN};
    return process->socket >= 0 && poll(&ready, 1, 0) == 0;
}

/* Whether the program is stopped, as by SIGSTOP or a debugger. */
static bool is_stopped(const struct hm_process *process)
{
    char text[HM_STAT_BYTES];
    const char *said = hm_thread_stat(process, process->pid, text);
    return said && said[0] == ' ' && (said[1] == 'T' || said[1] == 't');
}

/* Wait for the helper, with the process's lock held. reads: what it does may be an event or a
 * fault, which is read here. -EBUSY: it did not begin in time, and won't. Once it has begun it
 * can't be left while it lives. What came of it is the request's result. */
static int await(struct hm_process *process, int slot, bool reads)
{
    struct hm_slot *request = &process->control->slot[slot];
    struct timespec step = {0, reads ? 100000 : 20000000};
    uint64_t end = hm_now() + ANSWER_MS * 1000000ULL, begun = hm_now() + HELP_MS * 1000000ULL;
    uint64_t lost = hm_now() + HM_LOST_MS * 1000000ULL;
    uint32_t state;
    while ((state = __atomic_load_n(&request->state, __ATOMIC_ACQUIRE)) != HM_SLOT_DONE) {
        if (state == HM_SLOT_PENDING && hm_now() > end &&
            __atomic_compare_exchange_n(&request->state, &state, HM_SLOT_FREE, false,
                                        __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
            return -EBUSY;
        if (state == HM_SLOT_TAKEN && hm_now() > lost && !is_stopped(process))
            return hm_process_lose(process);
        if (state != HM_SLOT_PENDING && state != HM_SLOT_TAKEN)
            return hm_process_lose(process);
        if (syscall(SYS_futex, &request->state, FUTEX_WAIT, state, &step, NULL, 0) < 0 &&
            errno == ETIMEDOUT && !is_there(process))
            return -ESRCH;
        if (reads)
            hm_process_read(process);
        else if (state == HM_SLOT_TAKEN && hm_now() > begun)
            hm_process_help(process);
    }
    return 0;
}

static int ask(struct hm_process *process, int slot, enum hm_slot_kind kind)
{
    int error = post(process, slot, kind);
    return error ? error : await(process, slot, kind == HM_SLOT_DROP || kind == HM_SLOT_PRIVATE);
}

/* With scratch, the slot is free again when the helper has emptied that. */
static void release_slot(struct hm_process *process, int slot, bool scratch)
{
    __atomic_store_n(&process->control->slot[slot].runs, 0, __ATOMIC_RELAXED);
    if (scratch)
        post(process, slot, HM_SLOT_RELEASE);
    else
        process->slots &= ~(1u << slot);
}

/* The next runs of a mask as a request; none goes on past the first page of a mapping;
 * false: there are no more. *page is where to go on. */
static bool fill_runs(const struct transaction *t, struct hm_slot *request,
                      const struct hm_mask *mask, const struct hm_mask *firsts, uint32_t *page)
{
    uint32_t count, runs = 0; /* the program may change what is in the slot at any time */
    while (runs < HM_PRELOAD_RUNS && hm_next_run(mask->word, page, &count)) {
        uint32_t next = hm_next_page(firsts->word, *page + 1);
        count = next < *page + count ? next - *page : count;
        request->run[runs++] =
            (struct hm_run){hm_page_of(t, *page), (uint64_t)count * HM_PAGE_SIZE};
        *page += count;
    }
    __atomic_store_n(&request->runs, runs, __ATOMIC_RELAXED);
    return runs;
}

/* ---- what may be taken ---------------------------------------------------------------------- */

static bool is_own(const struct hm_process *process, uint64_t address)
{
    return address - process->own < process->own_bytes;
}

/* Whether one mapping has all of the range. Just after a registration that makes it registered, or
 * there is news of it: the kernel registers what there is, and says nothing of holes, nor of what
 * is mapped into them later. */
static bool spans(const struct hm_process *process, uint64_t start, uint64_t end)
{
    struct hm_vma vma;
    return !hm_vma_find(process, start, &vma) && vma.start <= start && vma.end >= end;
}

int hm_take_sort(const struct transaction *t, const struct hm_mask *mask, struct hm_taking *out)
{
    struct hm_process *process = t->region->process;
    uint64_t base = hm_page_of(t, 0), end = base + HM_BLOCK_BYTES;
    struct hm_vma vma;
    int error = 0;
    for (uint64_t at = base; at < end; at = vma.end) {
        struct uffdio_register request;
        struct hm_mask part;
        uint64_t from, to;
        error = hm_vma_find(process, at, &vma);
        if (error || vma.start >= end)
            break;
        from = vma.start > at ? vma.start : at; /* it may have grown backwards meanwhile */
        to = vma.end < end ? vma.end : end;
        part = hm_mask_range((uint32_t)((from - base) / HM_PAGE_SIZE),
                             (uint32_t)((to - from) / HM_PAGE_SIZE));
        hm_set(out->firsts.word, (uint32_t)((from - base) / HM_PAGE_SIZE));
        hm_keep(part.word, mask->word);
        if (!hm_bits(part.word) || !vma.anonymous || !vma.read || is_own(process, from) ||
            vma.end - vma.start < process->least)
            continue;
        request = (struct uffdio_register){
            {from, to - from}, UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP, 0};
        /* EBUSY: another userfaultfd has it. What can't be registered stays where it is. */
        if (ioctl(process->uffd, UFFDIO_REGISTER, &request) < 0 || !spans(process, from, to))
            continue;
        hm_add((vma.write ? &out->movable : &out->fixed)->word, part.word);
    }
    return error == -ENOENT ? 0 : error;
}

int hm_pages_there(const struct hm_process *process, uint64_t address, const struct hm_mask *mask,
                   struct hm_mask *there, struct hm_mask *guards)
{
    uint64_t entry[HM_BLOCK_PAGES];
    int error = hm_pagemap(process, address, HM_BLOCK_PAGES, entry);
    memset(there, 0, sizeof(*there));
    memset(guards, 0, sizeof(*guards));
    if (error)
        return error;
    HM_EACH_PAGE (page, mask->word)
        if (hm_pm_there(entry[page]))
            hm_set(there->word, page);
        else if (hm_pm_guard(entry[page]))
            hm_set(guards->word, page);
    return 0;
}

/* The same for scratch, where no markers are: a page that is swapped out keeps its protection when
 * it is moved, and looks like one. */
static int which_were_moved(const struct hm_process *process, uint64_t scratch,
                            const struct hm_mask *mask, struct hm_mask *moved)
{
    uint64_t entry[HM_BLOCK_PAGES];
    int error = hm_pagemap(process, scratch, HM_BLOCK_PAGES, entry);
    memset(moved, 0, sizeof(*moved));
    if (!error)
        HM_EACH_PAGE (page, mask->word)
            if (entry[page] & (HM_PM_PRESENT | HM_PM_SWAPPED))
                hm_set(moved->word, page);
    return error;
}

/* ---- taking --------------------------------------------------------------------------------- */

/* Read pages of the program, or of its scratch, into the device's pool; the lock is not held. */
static int read_into_pool(const struct transaction *t, uint64_t base, const struct hm_mask *mask)
{
    struct hm_process *process = t->region->process;
    struct hm_pool *pool = hm_region_pool(t->region, t->job->node);
    uint8_t *to = pool ? hm_pool_map(pool, t->block * HM_BLOCK_BYTES) : NULL;
    int error = 0, slot;
    if (!to)
        return -ENOMEM;
    slot = hm_process_enter(process);
    for (uint32_t first = 0, count; !error && hm_next_run(mask->word, &first, &count);
         first += count) {
        size_t at = (size_t)first * HM_PAGE_SIZE, length = (size_t)count * HM_PAGE_SIZE;
        ssize_t n = hm_process_copy(process, base + at, to + at, length, false);
        if (n != (ssize_t)length)
            error = n < 0 ? (int)n : -EFAULT;
    }
    hm_process_leave(process, slot);
    return error;
}

/* The kernel has news. Who made the change has to run once more after that was read. False: there
 * is no sense in another try, since the program is gone, or has had news without a pause since
 * then. */
static bool hear(struct hm_process *process, uint64_t since)
{
    hm_process_read(process);
    usleep(NEWS_US);
    if (hm_now() - since > HM_LOST_MS * 1000000ULL)
        hm_process_lose(process);
    return is_there(process) && !atomic_load(&process->gone);
}

/* What was moved to scratch goes back. It can't fail but with the program: its pages are holes with
 * markers, which nobody but us fills. */
static void put_back(const struct transaction *t, uint64_t scratch, const struct hm_mask *mask)
{
    struct hm_process *process = t->region->process;
    uint64_t since = hm_now();
    uint8_t bytes[HM_PAGE_SIZE];
    HM_EACH_PAGE (page, mask->word) {
        uint64_t from = scratch + (uint64_t)page * HM_PAGE_SIZE;
        struct uffdio_copy copy = {
            .dst = hm_page_of(t, page), .src = (uintptr_t)bytes, .len = sizeof(bytes)};
        if (hm_process_copy(process, from, bytes, sizeof(bytes), false) != sizeof(bytes))
            continue;
        while (ioctl(process->uffd, UFFDIO_COPY, &copy) < 0 && errno == EAGAIN &&
               hear(process, since))
            ;
    }
}

/* Some of what was moved goes back, to stay, unless the program has changed its mappings there:
 * then what is told of that says where the pages go from the device. Returns which are back; the
 * lock is held. */
static struct hm_mask let_stay(const struct transaction *t, uint64_t scratch,
                               const struct hm_mask *mask)
{
    struct hm_process *process = t->region->process;
    uint64_t since = hm_now();
    uint8_t bytes[HM_PAGE_SIZE];
    struct hm_mask back = {{0}};
    HM_EACH_PAGE (page, mask->word) {
        uint64_t from = scratch + (uint64_t)page * HM_PAGE_SIZE;
        struct uffdio_copy copy = {
            .dst = hm_page_of(t, page), .src = (uintptr_t)bytes, .len = sizeof(bytes)};
        if (hm_process_copy(process, from, bytes, sizeof(bytes), false) != sizeof(bytes))
            continue;
        while (!hm_take_no_news(t)) {
            if (!ioctl(process->uffd, UFFDIO_COPY, &copy))
                hm_set(back.word, page);
            else if (errno == EAGAIN && hear(process, since))
                continue;
            break;
        }
    }
    return back;
}

/* Whether what we know of the address space is all there is to know; the lock is held. */
int hm_take_no_news(const struct transaction *t)
{
    struct hm_process *process = t->region->process;
    uint64_t base = hm_page_of(t, 0);
    hm_process_read(process);
    return hm_process_waits(process, base, base + HM_BLOCK_BYTES) ? -EBUSY : 0;
}

static int protect(const struct transaction *t, const struct hm_mask *mask, bool on)
{
    struct hm_process *process = t->region->process;
    uint64_t since = hm_now();
    int error = 0;
    for (uint32_t first = 0, count; hm_next_run(mask->word, &first, &count); first += count) {
        struct uffdio_writeprotect request = {
            {hm_page_of(t, first), (uint64_t)count * HM_PAGE_SIZE},
            on ? UFFDIO_WRITEPROTECT_MODE_WP : 0};
        while (ioctl(process->uffd, UFFDIO_WRITEPROTECT, &request) < 0)
            if (errno != EAGAIN || !hear(process, since)) {
                error = errno == ENOENT ? -EBUSY : -ESRCH;
                break;
            }
    }
    return error;
}

static bool mark(int uffd, uint64_t address)
{
    struct uffdio_writeprotect request = {{address, HM_PAGE_SIZE}, UFFDIO_WRITEPROTECT_MODE_WP};
    return !ioctl(uffd, UFFDIO_WRITEPROTECT, &request) || errno != EAGAIN;
}

/* No marker is where one was left. The kernel refuses to leave another one while there is a change
 * that we have not heard of, such as a move, which would have taken the marker along. */
struct hm_mask hm_take_discarded(const struct transaction *t, const struct hm_mask *mask)
{
    const struct hm_process *process = t->region->process;
    uint32_t first = hm_next_page(mask->word, 0), end = first;
    uint64_t entry[HM_BLOCK_PAGES];
    struct hm_mask gone = {{0}};
    HM_EACH_PAGE (page, mask->word)
        end = page + 1;
    if (first == end || hm_pagemap(process, hm_page_of(t, first), end - first, entry))
        return gone;
    HM_EACH_PAGE (page, mask->word) {
        struct uffdio_writeprotect request = {{hm_page_of(t, page), HM_PAGE_SIZE},
                                              UFFDIO_WRITEPROTECT_MODE_WP};
        uint64_t is = entry[page - first];
        if ((hm_pm_guard(is) || !(is & (HM_PM_PRESENT | HM_PM_SWAPPED))) &&
            !ioctl(process->uffd, UFFDIO_WRITEPROTECT, &request))
            hm_set(gone.word, page);
    }
    return gone;
}

/* Whatever waits and concerns the page came after it was taken. */
static bool mark_where_it_is(struct hm_process *process, uint64_t address)
{
    for (const struct hm_pending *at = process->pending; at && address; at = at->next)
        if (at->message.event == UFFD_EVENT_FORK)
            mark((int)at->message.arg.fork.ufd, address);
        else
            address = hm_pending_follow(at, address);
    return !address || mark(process->uffd, address);
}

/* Where the address space was changing all the while, what looked like a hole may be a page that a
 * move has yet to put there: that is none of ours. */
static void leave_to_come(const struct transaction *t, struct hm_mask *holes)
{
    const struct hm_pending *at = t->region->process->pending;
    for (; at; at = at->next)
        HM_EACH_PAGE (page, holes->word)
            if (hm_pending_comes_to(at, hm_page_of(t, page), hm_page_of(t, page) + HM_PAGE_SIZE))
                holes->word[page / 64] &= ~(1ULL << (page % 64));
}

/* Markers that the helper could not leave, for the address space was changing: where the pages are
 * by now, and in children that were made meanwhile. Without one a page that moves is a hole. */
static void mark_late(const struct transaction *t, const struct hm_mask *mask)
{
    struct hm_process *process = t->region->process;
    uint64_t since = hm_now();
    hm_process_read(process);
    HM_EACH_PAGE (page, mask->word)
        while (!mark_where_it_is(process, hm_page_of(t, page)) && hear(process, since))
            ;
}

/* The same before pages are taken; those that may be about to be discarded are left out. */
static int may_take(const struct transaction *t, struct hm_mask *pages)
{
    struct hm_mask discards;
    int error = hm_take_no_news(t);
    if (!error) {
        discards = hm_process_discards(t->region->process, t->block);
        hm_drop(pages->word, discards.word);
    }
    return error;
}

/* What can't be moved stays: pagemap tells which. 0 if any request was carried out, for what that
 * one moved has to be seen to. */
static int move_pages(const struct transaction *t, const struct hm_taking *taking,
                      const struct hm_mask *mask, int slot, bool *unmarked)
{
    struct hm_process *process = t->region->process;
    struct hm_slot *request = &process->control->slot[slot];
    bool some = false;
    uint32_t page = 0;
    while (fill_runs(t, request, mask, &taking->firsts, &page)) {
        int error = ask(process, slot, HM_SLOT_MOVE);
        if (error == -EBUSY && some)
            *unmarked = true;
        if (error)
            return error == -EBUSY && some ? 0 : error;
        *unmarked |= result_of(request) == -EAGAIN;
        some = true;
    }
    return 0;
}

/* Into the slot's scratch, after which nothing of the pages changes. What stays is told. */
static int move_away(const struct transaction *t, struct hm_taking *taking,
                     const struct hm_mask *mask, int slot, struct hm_mask *stay)
{
    struct hm_process *process = t->region->process;
    uint64_t scratch = scratch_of(process, slot);
    struct hm_mask moved, holes, away, guards;
    bool unmarked = false;
    int error = move_pages(t, taking, mask, slot, &unmarked);
    if (!error)
        error = which_were_moved(process, scratch, mask, &moved);
    if (!error)
        error = hm_pages_there(process, hm_page_of(t, 0), mask, stay, &guards);
    if (error)
        return error;
    away = hm_without(mask->word, stay->word);
    hm_drop(away.word, guards.word);
    holes = hm_without(away.word, moved.word);
    if (unmarked) {
        mark_late(t, &away);
        leave_to_come(t, &holes);
    }
    hm_add(taking->taken.word, moved.word);
    hm_add(taking->holes.word, holes.word);
    return 0;
}

/* Pages that stayed may be shared with forks. Not within a move: breaking that may be a fault,
 * which waits for events to be read where the address space has just changed. Whether they may be
 * moved now. */
static bool make_private(const struct transaction *t, const struct hm_taking *taking,
                         struct hm_mask *mask, int slot)
{
    struct hm_process *process = t->region->process;
    struct hm_slot *request = &process->control->slot[slot];
    uint32_t page = 0;
    while (fill_runs(t, request, mask, &taking->firsts, &page))
        if (ask(process, slot, HM_SLOT_PRIVATE))
            return false;
    return !may_take(t, mask);
}

static int move_all(const struct transaction *t, struct hm_taking *taking, int slot)
{
    struct hm_mask stay, still;
    int error = move_away(t, taking, &taking->movable, slot, &stay);
    if (error || !hm_bits(stay.word) || !make_private(t, taking, &stay, slot))
        return error;
    error = move_away(t, taking, &stay, slot, &still);
    return error == -EBUSY ? 0 : error; /* then none of these were */
}

/* Begin to take pages, and leave in the mask those that may be. A slot, and then the process's lock
 * is held; below 0: -errno, and it is not. */
static int begin_take(const struct transaction *t, struct hm_mask *pages)
{
    struct hm_process *process = t->region->process;
    int slot;
    hm_lock(HM_RANK_PROCESS, &process->lock);
    slot = may_take(t, pages);
    if (!slot)
        slot = claim_slot(process);
    if (slot < 0)
        hm_unlock(HM_RANK_PROCESS, &process->lock);
    return slot;
}

static int take_movable(const struct transaction *t, struct hm_taking *taking)
{
    struct hm_process *process = t->region->process;
    struct hm_mask locked = {{0}};
    int slot, error;
    if (!hm_bits(taking->movable.word))
        return 0;
    slot = begin_take(t, &taking->movable);
    if (slot < 0)
        return slot;
    hm_process_depart(process, t->block);
    error = move_all(t, taking, slot);
    if (error == -EBUSY) {
        release_slot(process, slot, false);
        hm_unlock(HM_RANK_PROCESS, &process->lock);
        return error;
    }
    hm_unlock(HM_RANK_PROCESS, &process->lock);
    hm_pause("take.moved");
    if (!error)
        error = read_into_pool(t, scratch_of(process, slot), &taking->taken);
    if (!error && hm_stays_for_kernel(process, t->block, &locked))
        locked = taking->taken; /* it can't be said: any of them may be */
    hm_lock(HM_RANK_PROCESS, &process->lock);
    hm_keep(locked.word, taking->taken.word);
    if (!error) {
        locked = let_stay(t, scratch_of(process, slot), &locked);
        hm_drop(taking->taken.word, locked.word);
    } else {
        put_back(t, scratch_of(process, slot), &taking->taken);
        memset(&taking->taken, 0, sizeof(taking->taken));
        memset(&taking->holes, 0, sizeof(taking->holes));
    }
    release_slot(process, slot, true);
    hm_unlock(HM_RANK_PROCESS, &process->lock);
    return error;
}

/* Drop pages that were copied; those that can't be dropped stay. */
static int drop_pages(const struct transaction *t, const struct hm_taking *taking, int slot,
                      uint32_t changes, bool *unmarked)
{
    struct hm_process *process = t->region->process;
    struct hm_slot *request = &process->control->slot[slot];
    uint32_t page = 0;
    int error = 0;
    __atomic_store_n(&request->changes, changes, __ATOMIC_RELAXED);
    while (!error && fill_runs(t, request, &taking->fixed, &taking->firsts, &page)) {
        process->dropping = request;
        error = ask(process, slot, HM_SLOT_DROP);
        process->dropping = NULL;
        *unmarked |= !error && result_of(request) == -EAGAIN;
        if (!error && result_of(request) == -EBUSY)
            error = -EBUSY;
    }
    return error;
}

/* The program's library is not changing any mapping; and how often it has. */
static int no_changes(const struct hm_process *process, uint32_t *changes)
{
    *changes = __atomic_load_n(&process->control->changes_ended, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(&process->control->changes_begun, __ATOMIC_SEQ_CST) != *changes)
        return -EBUSY;
    return 0;
}

/* With the lock held: from now on nothing of the pages changes without a fault that waits for us.
 */
static int hold_still(const struct transaction *t, const struct hm_mask *wanted,
                      struct hm_mask *there)
{
    struct hm_mask guards;
    int error = protect(t, wanted, true);
    if (!error) /* a change since is of mappings that are not protected */
        error = hm_take_no_news(t);
    if (!error)
        error = hm_pages_there(t->region->process, hm_page_of(t, 0), wanted, there, &guards);
    return error;
}

/* With the lock held: what was copied leaves the program. Whatever fails, what is gone is nowhere
 * else. */
static int let_go(const struct transaction *t, struct hm_taking *taking,
                  const struct hm_mask *there, int slot, uint32_t changes)
{
    struct hm_mask still = *there, gone, holes, guards = {{0}};
    bool unmarked = false;
    int error = drop_pages(t, taking, slot, changes, &unmarked);
    if (hm_pages_there(t->region->process, hm_page_of(t, 0), &taking->fixed, &still, &guards))
        error = -ESRCH;
    gone = hm_without(there->word, still.word);
    hm_drop(gone.word, guards.word);
    holes = error ? (struct hm_mask){{0}} : hm_without(taking->fixed.word, there->word);
    hm_drop(holes.word, guards.word);
    hm_add(taking->taken.word, gone.word);
    hm_add(taking->holes.word, holes.word);
    still = hm_without(taking->fixed.word, gone.word);
    hm_drop(still.word, holes.word);
    if (error != -ESRCH) {
        protect(t, &still, false);
        if (unmarked)
            protect(t, &gone, true);
    }
    return error;
}

/* Pages of read-only mappings. Should the program make one writable meanwhile its stores wait, too.
 */
static int take_fixed(const struct transaction *t, struct hm_taking *taking)
{
    struct hm_process *process = t->region->process;
    struct hm_mask there;
    uint32_t changes = 0;
    int slot, error;
    if (!hm_bits(taking->fixed.word))
        return 0;
    slot = begin_take(t, &taking->fixed);
    if (slot < 0)
        return slot;
    error = hold_still(t, &taking->fixed, &there);
    if (!error) {
        hm_unlock(HM_RANK_PROCESS, &process->lock);
        error = read_into_pool(t, hm_page_of(t, 0), &there);
        hm_lock(HM_RANK_PROCESS, &process->lock);
    }
    if (!error)
        error = no_changes(process, &changes);
    if (!error) /* all of it was of the mappings that we know */
        error = hm_take_no_news(t);
    hm_process_depart(process, t->block);
    if (!error)
        error = let_go(t, taking, &there, slot, changes);
    else if (error != -ESRCH)
        protect(t, &taking->fixed, false);
    release_slot(process, slot, false);
    hm_unlock(HM_RANK_PROCESS, &process->lock);
    return error;
}

/* First those that are read where the program has them: a thread of ours that waits there for a
 * page may be given it, since none of the block is on its way yet. */
int hm_take(const struct transaction *t, struct hm_taking *taking)
{
    struct hm_taking moving = {.movable = taking->movable, .firsts = taking->firsts};
    int error = take_fixed(t, taking);
    if (!error)
        error = take_movable(t, &moving);
    hm_add(taking->taken.word, moving.taken.word);
    hm_add(taking->holes.word, moving.holes.word);
    return error;
}
