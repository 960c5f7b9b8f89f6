/* Pages of a program's own memory: taken to a device, given back, accessed where they are.
 *
 * Taking is done by the program's helper (preload.h), which moves the pages out of the program's
 * reach; what was moved is what is copied to the device, so nothing can change meanwhile. A touch
 * from then on is a fault, and waits for the transaction's end. Giving back is UFFDIO_COPY: the
 * program has the page when it has its bytes. Until the owner is flipped the device's memory has
 * them too; so a page is always whole somewhere.
 */
#include "process.h"

#include <linux/futex.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#define ANSWER_MS 1000 /* a helper has this long to begin; a stopped program's does not */
#define NEWS_TRIES 200 /* times that the kernel may have news of a change before it is -EAGAIN */

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25 /* 6.1 */
#endif
#ifndef UFFDIO_REGISTER_MODE_WP
#error "linux/userfaultfd.h of 5.7 or later"
#endif

static uint64_t page_address(const struct transaction *t, uint32_t page)
{
    return hm_process_address(t->region->process, t->block) + (uint64_t)page * HM_PAGE_SIZE;
}

static uint8_t *device_page(const struct transaction *t, uint32_t page)
{
    return hm_pool_map(&t->region->pools[t->record->owner[page]],
                       t->block * HM_BLOCK_BYTES + (uint64_t)page * HM_PAGE_SIZE);
}

static struct hm_mask both(const struct hm_mask *one, const struct hm_mask *two)
{
    struct hm_mask mask;
    HM_EACH_WORD (w)
        mask.word[w] = one->word[w] & two->word[w];
    return mask;
}

static void set_page(struct hm_mask *mask, uint32_t page)
{
    mask->word[page / 64] |= 1ULL << (page % 64);
}

/* ---- the helper ----------------------------------------------------------------------------- */

/* A slot; the process's lock is held. -EBUSY: all are in use. */
static int claim_slot(struct hm_process *process)
{
    for (int i = 0; i < HM_PRELOAD_SLOTS; i++) {
        struct hm_slot *slot = &process->control->slot[i];
        bool used = process->slots >> i & 1;
        if (used && (slot->kind != HM_SLOT_RELEASE ||
                     __atomic_load_n(&slot->state, __ATOMIC_ACQUIRE) != HM_SLOT_DONE))
            continue;
        process->slots |= 1u << i;
        __atomic_store_n(&slot->state, HM_SLOT_FREE, __ATOMIC_RELEASE);
        return i;
    }
    return -EBUSY;
}

static int post(struct hm_process *process, int slot, enum hm_slot_kind kind)
{
    struct hm_slot *request = &process->control->slot[slot];
    uint32_t number = (uint32_t)slot;
    request->kind = kind;
    request->result = 0;
    __atomic_store_n(&request->state, HM_SLOT_PENDING, __ATOMIC_RELEASE);
    if (send(process->socket, &number, sizeof(number), MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
        return errno == EAGAIN ? -EBUSY : -ESRCH;
    return 0;
}

static bool is_there(const struct hm_process *process)
{
    struct pollfd ready = {.fd = process->socket, .events = POLLIN};
    return process->socket >= 0 && poll(&ready, 1, 0) == 0;
}

/* Wait for the helper, with the process's lock held. reads: what it does is an event, which is read
 * here. -EBUSY: it did not begin in time. Once it has begun it can't be left while it lives. */
static int await(struct hm_process *process, int slot, bool reads)
{
    struct hm_slot *request = &process->control->slot[slot];
    struct timespec step = {0, reads ? 100000 : 20000000};
    uint64_t end = hm_now() + ANSWER_MS * 1000000ULL;
    uint32_t state;
    while ((state = __atomic_load_n(&request->state, __ATOMIC_ACQUIRE)) != HM_SLOT_DONE) {
        if (state == HM_SLOT_PENDING && hm_now() > end &&
            __atomic_compare_exchange_n(&request->state, &state, HM_SLOT_FREE, false,
                                        __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
            return -EBUSY;
        if (state != HM_SLOT_PENDING && state != HM_SLOT_TAKEN)
            return -ESRCH; /* no helper of ours writes that */
        if (syscall(SYS_futex, &request->state, FUTEX_WAIT, state, &step, NULL, 0) < 0 &&
            errno == ETIMEDOUT && !is_there(process))
            return -ESRCH;
        if (reads)
            hm_process_read(process);
    }
    /* A run's own -EBUSY is of pages that are pinned or shared, and another thing. */
    return request->result == -EBUSY ? -EAGAIN : request->result;
}

static int ask(struct hm_process *process, int slot, enum hm_slot_kind kind)
{
    int error = post(process, slot, kind);
    return error ? error : await(process, slot, kind == HM_SLOT_DROP);
}

/* The slot is free again when the helper has emptied its scratch. */
static void release_slot(struct hm_process *process, int slot, bool scratch)
{
    process->control->slot[slot].runs = 0;
    if (scratch && !post(process, slot, HM_SLOT_RELEASE))
        return;
    process->slots &= ~(1u << slot);
}

/* The next runs of a mask as a request, none of which goes on past the first page of a mapping;
 * false: there are no more. *page is where to go on. */
static bool fill_runs(const struct transaction *t, struct hm_slot *request,
                      const struct hm_mask *mask, const struct hm_mask *firsts, uint32_t *page)
{
    uint32_t count;
    request->runs = 0;
    while (request->runs < HM_PRELOAD_RUNS && hm_next_run(mask->word, page, &count)) {
        uint32_t next = hm_next_page(firsts->word, *page + 1);
        count = next < *page + count ? next - *page : count;
        request->run[request->runs++] =
            (struct hm_run){page_address(t, *page), (uint64_t)count * HM_PAGE_SIZE};
        *page += count;
    }
    return request->runs;
}

/* ---- what may be taken ---------------------------------------------------------------------- */

struct taking {
    struct hm_mask movable; /* of writable mappings: by moving */
    struct hm_mask fixed;   /* of read-only ones: by copying, and dropping */
    struct hm_mask firsts;  /* pages that a mapping begins with */
    struct hm_mask there;   /* of both, those that have a page */
    struct hm_mask taken;   /* bytes of these are on the device */
    struct hm_mask holes;   /* there is nothing of these: they are zeros */
};

static bool is_own(const struct hm_process *process, uint64_t address)
{
    return address - process->own < process->own_bytes;
}

/* Sort pages by their mappings, and have the kernel tell us of them from now on. */
static int sort_pages(const struct transaction *t, const struct hm_mask *mask, struct taking *out)
{
    struct hm_process *process = t->region->process;
    uint64_t base = page_address(t, 0), end = base + HM_BLOCK_BYTES;
    struct hm_vma vma;
    int error = 0;
    for (uint64_t at = base; at < end; at = vma.end) {
        struct uffdio_register request;
        struct hm_mask part;
        uint64_t from, to;
        error = hm_vma_find(process, at, &vma);
        if (error || vma.start >= end)
            break;
        from = vma.start > base ? vma.start : base;
        to = vma.end < end ? vma.end : end;
        part = hm_mask_range((uint32_t)((from - base) / HM_PAGE_SIZE),
                             (uint32_t)((to - from) / HM_PAGE_SIZE));
        set_page(&out->firsts, (uint32_t)((from - base) / HM_PAGE_SIZE));
        part = both(&part, mask);
        if (!hm_bits(part.word) || !vma.anonymous || !vma.read || is_own(process, from) ||
            vma.end - vma.start < process->least)
            continue;
        request = (struct uffdio_register){
            {from, to - from}, UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP, 0};
        /* EBUSY: another userfaultfd has it. What can't be registered stays where it is. */
        if (ioctl(process->uffd, UFFDIO_REGISTER, &request) < 0)
            continue;
        HM_EACH_WORD (w)
            (vma.write ? &out->movable : &out->fixed)->word[w] |= part.word[w];
    }
    return error == -ENOENT ? 0 : error;
}

/* Which pages of a mask there are, by pagemap. */
static int which_are_there(const struct hm_process *process, uint64_t address,
                           const struct hm_mask *mask, struct hm_mask *there)
{
    uint64_t entry[HM_BLOCK_PAGES];
    int error = hm_pagemap(process, address, HM_BLOCK_PAGES, entry);
    memset(there, 0, sizeof(*there));
    if (!error)
        HM_EACH_PAGE (page, mask->word)
            if (hm_pm_there(entry[page]))
                set_page(there, page);
    return error;
}

/* ---- taking --------------------------------------------------------------------------------- */

/* Read pages of the program, or of its scratch, into the device's pool. */
static int read_into_pool(const struct transaction *t, uint64_t base, const struct hm_mask *mask)
{
    struct hm_pool *pool = hm_region_pool(t->region, t->job->node);
    uint8_t *to = pool ? hm_pool_map(pool, t->block * HM_BLOCK_BYTES) : NULL;
    if (!to)
        return -ENOMEM;
    for (uint32_t first = 0, count; hm_next_run(mask->word, &first, &count); first += count) {
        size_t at = (size_t)first * HM_PAGE_SIZE, length = (size_t)count * HM_PAGE_SIZE;
        struct iovec local = {to + at, length}, remote = {(void *)(base + at), length};
        ssize_t n = process_vm_readv(t->region->process->pid, &local, 1, &remote, 1, 0);
        if (n != (ssize_t)length)
            return n < 0 ? -errno : -EFAULT;
    }
    return 0;
}

/* What was moved to scratch goes back. It can't fail but with the program: its pages are holes with
 * markers, which nobody but us fills. */
static void put_back(const struct transaction *t, uint64_t scratch, const struct hm_mask *mask)
{
    struct hm_process *process = t->region->process;
    uint8_t bytes[HM_PAGE_SIZE];
    HM_EACH_PAGE (page, mask->word) {
        struct iovec local = {bytes, sizeof(bytes)};
        struct iovec remote = {(void *)(scratch + (uint64_t)page * HM_PAGE_SIZE), sizeof(bytes)};
        struct uffdio_copy copy = {
            .dst = page_address(t, page), .src = (uintptr_t)bytes, .len = sizeof(bytes)};
        if (process_vm_readv(process->pid, &local, 1, &remote, 1, 0) != sizeof(bytes))
            continue;
        for (int i = 0;
             i < NEWS_TRIES && ioctl(process->uffd, UFFDIO_COPY, &copy) < 0 && errno == EAGAIN; i++)
            hm_process_read(process);
    }
}

/* Whether what we know of the address space is all there is to know; the lock is held. */
static int no_news(const struct transaction *t)
{
    struct hm_process *process = t->region->process;
    uint64_t base = page_address(t, 0);
    hm_process_read(process);
    return hm_process_waits(process, base, base + HM_BLOCK_BYTES) ? -EBUSY : 0;
}

static int move_pages(const struct transaction *t, const struct taking *taking, int slot)
{
    struct hm_process *process = t->region->process;
    struct hm_slot *request = &process->control->slot[slot];
    uint32_t page = 0;
    int error = 0;
    while (!error && fill_runs(t, request, &taking->movable, &taking->firsts, &page)) {
        error = ask(process, slot, HM_SLOT_MOVE);
        if (error != -ESRCH && error != -EBUSY)
            error = 0; /* some stayed: pagemap tells which */
    }
    return error;
}

static int take_movable(const struct transaction *t, struct taking *taking)
{
    struct hm_process *process = t->region->process;
    struct hm_mask wanted = taking->movable, there;
    int slot, error;
    uint64_t scratch;
    if (!hm_bits(wanted.word))
        return 0;
    pthread_mutex_lock(&process->lock);
    error = no_news(t);
    slot = error ? error : claim_slot(process);
    if (slot < 0) {
        pthread_mutex_unlock(&process->lock);
        return slot;
    }
    scratch = process->scratch + (uint64_t)slot * HM_BLOCK_BYTES;
    error = move_pages(t, taking, slot);
    if (!error)
        error = which_are_there(process, scratch, &wanted, &taking->taken);
    if (!error)
        error = which_are_there(process, page_address(t, 0), &wanted, &there);
    if (!error) {
        taking->holes = hm_without(wanted, &there);
        taking->holes = hm_without(taking->holes, &taking->taken);
        error = read_into_pool(t, scratch, &taking->taken);
    }
    if (error && error != -ESRCH)
        put_back(t, scratch, &taking->taken);
    /* A helper that did not begin may still do so. */
    if (error != -EBUSY)
        release_slot(process, slot, true);
    pthread_mutex_unlock(&process->lock);
    return error;
}

static void protect(const struct transaction *t, const struct hm_mask *mask, bool on)
{
    for (uint32_t first = 0, count; hm_next_run(mask->word, &first, &count); first += count) {
        struct uffdio_writeprotect request = {
            {page_address(t, first), (uint64_t)count * HM_PAGE_SIZE},
            on ? UFFDIO_WRITEPROTECT_MODE_WP : 0};
        for (int i = 0;
             i < NEWS_TRIES && ioctl(t->region->process->uffd, UFFDIO_WRITEPROTECT, &request) < 0 &&
             errno == EAGAIN;
             i++)
            hm_process_read(t->region->process);
    }
}

/* Pages of read-only mappings. Should the program make one writable meanwhile its stores wait, too.
 */
static int take_fixed(const struct transaction *t, struct taking *taking)
{
    struct hm_process *process = t->region->process;
    struct hm_mask wanted = taking->fixed, there;
    struct hm_slot *request;
    uint32_t page = 0;
    int slot, error;
    if (!hm_bits(wanted.word))
        return 0;
    pthread_mutex_lock(&process->lock);
    error = no_news(t);
    slot = error ? error : claim_slot(process);
    if (slot < 0) {
        pthread_mutex_unlock(&process->lock);
        return slot;
    }
    request = &process->control->slot[slot];
    protect(t, &wanted, true);
    error = which_are_there(process, page_address(t, 0), &wanted, &there);
    if (!error)
        error = read_into_pool(t, page_address(t, 0), &there);
    while (!error && fill_runs(t, request, &wanted, &taking->firsts, &page)) {
        process->dropping = request->runs;
        error = ask(process, slot, HM_SLOT_DROP);
        process->dropping = 0;
    }
    if (error && error != -ESRCH)
        protect(t, &wanted, false);
    if (!error)
        HM_EACH_WORD (w) {
            taking->taken.word[w] |= there.word[w];
            taking->holes.word[w] |= wanted.word[w] & ~there.word[w];
        }
    if (error != -EBUSY)
        release_slot(process, slot, false);
    pthread_mutex_unlock(&process->lock);
    return error;
}

/* ---- to a device ---------------------------------------------------------------------------- */

/* Pages that the job can't do without. */
static struct hm_mask needed(const struct transaction *t, const struct hm_mask *mask)
{
    struct hm_mask need = {{0}};
    if (t->job->kind == HM_JOB_MIGRATE)
        return need;
    if (t->job->kind != HM_JOB_TOUCH)
        return *mask;
    HM_EACH_WORD (w)
        need.word[w] = mask->word[w] & (t->job->pages[w] | t->job->stores[w]);
    return need;
}

/* What devices have of the mask goes to this one, from pool to pool. */
static int copy_between(const struct transaction *t, const struct hm_mask *mask)
{
    struct hm_pool *to = hm_region_pool(t->region, t->job->node);
    int error = to ? 0 : -errno;
    HM_EACH_PAGE (page, mask->word) {
        struct hm_mask one = hm_mask_range(page, 1);
        uint32_t from = t->record->owner[page];
        if (!error)
            error = hm_window_protect(t->region, from, t->block, &one);
        if (!error)
            error = hm_pool_copy(to, &t->region->pools[from],
                                 t->block * HM_BLOCK_BYTES + (uint64_t)page * HM_PAGE_SIZE,
                                 HM_PAGE_SIZE);
    }
    return error;
}

/* Put what is taken on the device, and zeros where nothing was: out of its worker's reach. */
static int carry(struct transaction *t, const struct hm_mask *others, struct taking *taking)
{
    struct hm_mask arriving, zeros;
    int error;
    HM_EACH_WORD (w)
        arriving.word[w] = taking->movable.word[w] | taking->fixed.word[w] | others->word[w];
    error = hm_window_protect(t->region, t->job->node, t->block, &arriving);
    if (!error)
        error = copy_between(t, others);
    if (!error)
        error = take_movable(t, taking);
    if (error == -EBUSY || error == -ESRCH)
        return error;
    if (!error) {
        error = take_fixed(t, taking);
        if (error == -EBUSY) /* what was moved is on the device, the rest stays */
            error = 0;
    }
    zeros = taking->holes;
    for (uint32_t first = 0, count; !error && hm_next_run(zeros.word, &first, &count);
         first += count)
        error = hm_pool_zero(hm_region_pool(t->region, t->job->node),
                             t->block * HM_BLOCK_BYTES + (uint64_t)first * HM_PAGE_SIZE,
                             (uint64_t)count * HM_PAGE_SIZE);
    return error;
}

/* The device becomes the owner; the stripe is held. What other devices lose comes back. */
static void flip_to(struct transaction *t, const struct hm_mask *others,
                    const struct taking *taking, struct hm_mask freed[HM_MAX_NODES], uint64_t began)
{
    struct hm_block *record = t->record;
    uint32_t to = t->job->node, taken = hm_bits(taking->taken.word);
    uint8_t from[HM_BLOCK_PAGES];
    struct hm_mask moved, all;
    memset(freed, 0, HM_MAX_NODES * sizeof(*freed));
    memcpy(from, record->owner, sizeof(from));
    hm_process_revoke(t->region->process, t->block, others);
    HM_EACH_WORD (w) {
        moved.word[w] = others->word[w] | taking->taken.word[w];
        all.word[w] = moved.word[w] | taking->holes.word[w];
        record->present[w] |= all.word[w];
        record->device[w] |= all.word[w];
        record->dirty[w] &= ~all.word[w];
    }
    HM_EACH_PAGE (page, all.word) {
        if (hm_test(others->word, page))
            set_page(&freed[record->owner[page]], page);
        record->owner[page] = (uint8_t)to;
    }
    for (uint32_t node = 1; node < t->core->config.nodes; node++) {
        uint32_t pages = hm_bits(freed[node].word);
        hm_block_pages(t->region, record, node, -(int64_t)pages);
        hm_count_moved(t->core, node, to, pages, t->cause.trigger);
    }
    if (!record->pages[to]) {
        record->arrived = hm_tick(t->core);
        record->uses = 0;
    }
    hm_block_populate(t->region, record, HM_HOST, taken);
    hm_block_pages(t->region, record, HM_HOST, -(int64_t)taken);
    hm_count_moved(t->core, HM_HOST, to, taken, t->cause.trigger);
    hm_block_pages(t->region, record, to, hm_bits(moved.word));
    hm_block_populate(t->region, record, to, hm_bits(taking->holes.word));
    record->last_migrated = hm_tick(t->core);
    record->cpu_faults = 0;
    t->event.moved += hm_bits(moved.word);
    hm_count(&t->core->count.migrations, 1);
    hm_count(&t->core->nodes[HM_HOST].copies_made, taken);
    hm_carried(t, HM_TRACE_MIGRATE_END, &moved, &moved, from, began);
    if (t->job->kind == HM_JOB_TOUCH)
        t->moved = moved;
}

/* What may and can come of the program's pages in the mask. */
static int choose(struct transaction *t, const struct hm_mask *mask, bool populate,
                  struct taking *taking)
{
    struct hm_mask need = needed(t, mask), wanted, missing;
    int error;
    memset(taking, 0, sizeof(*taking));
    if (t->region->process->uffd < 0)
        return hm_bits(need.word) ? -EOPNOTSUPP : 0;
    error = sort_pages(t, mask, taking);
    HM_EACH_WORD (w)
        wanted.word[w] = taking->movable.word[w] | taking->fixed.word[w];
    missing = hm_without(need, &wanted);
    if (!error && hm_bits(missing.word))
        error = -EFAULT;
    if (!error)
        error = which_are_there(t->region->process, page_address(t, 0), &wanted, &taking->there);
    if (populate && t->job->kind != HM_JOB_TOUCH)
        return error;
    HM_EACH_WORD (w) { /* no holes come with what was touched */
        uint64_t come = taking->there.word[w] | (populate ? need.word[w] : 0);
        taking->movable.word[w] &= come;
        taking->fixed.word[w] &= come;
    }
    return error;
}

static int bring_to_device(struct transaction *t, const struct hm_mask *mask, bool populate)
{
    struct hm_block *record = t->record;
    struct hm_mask mine = hm_owned(record, t->job->node), others, absent, freed[HM_MAX_NODES];
    uint32_t generation = record->generation, room, used;
    struct taking taking;
    uint64_t began;
    int error;
    others = hm_without(*mask, &mine);
    HM_EACH_WORD (w) {
        absent.word[w] = others.word[w] & ~record->device[w];
        others.word[w] &= record->device[w];
        record->recalling[w] |= absent.word[w];
    }
    pthread_mutex_unlock(&t->stripe->lock);
    error = choose(t, &absent, populate, &taking);
    room = hm_bits(others.word) + hm_bits(taking.movable.word) + hm_bits(taking.fixed.word);
    if (!error)
        error = hm_take_room(t, room, hm_room_for(t->job));
    else
        room = 0;
    began = hm_now();
    if (!error && room) {
        struct hm_mask moving = others;
        HM_EACH_WORD (w)
            moving.word[w] |=
                taking.there.word[w] & (taking.movable.word[w] | taking.fixed.word[w]);
        hm_trace_move(t, &moving, record->owner, 0);
        error = carry(t, &others, &taking);
    }
    pthread_mutex_lock(&t->stripe->lock);
    memset(record->recalling, 0, sizeof(record->recalling));
    if (error || !room || record->generation != generation) {
        if (room && error != -ENOSPC)
            t->reserved += room;
        return error;
    }
    flip_to(t, &others, &taking, freed, began);
    used = hm_bits(others.word) + hm_bits(taking.taken.word) + hm_bits(taking.holes.word);
    t->reserved += room - used;
    pthread_mutex_unlock(&t->stripe->lock);
    for (uint32_t node = 1; node < t->core->config.nodes; node++) {
        hm_punch_runs(t->region, node, t->block, freed[node].word);
        hm_release(t->core, node, hm_bits(freed[node].word));
    }
    pthread_mutex_lock(&t->stripe->lock);
    return 0;
}

/* ---- home ----------------------------------------------------------------------------------- */

/* Give the program pages that lie side by side on one device; returns how many it has, or -errno.
 * ENOENT: nothing is mapped there any more, and it is about to be cut. */
static int give_run(const struct transaction *t, uint32_t first, uint32_t count, uint64_t mode)
{
    struct uffdio_copy copy = {.dst = page_address(t, first),
                               .src = (uintptr_t)device_page(t, first),
                               .len = (uint64_t)count * HM_PAGE_SIZE,
                               .mode = mode};
    if (!copy.src)
        return -ENOMEM;
    if (ioctl(t->region->process->uffd, UFFDIO_COPY, &copy) == 0)
        return (int)count;
    if (copy.copy > 0)
        return (int)((uint64_t)copy.copy / HM_PAGE_SIZE);
    return -errno;
}

/* Give the program the pages of the mask, and leave in it those that it has. A page that it has
 * already (EEXIST) it put there by itself, past all rules: that one is its own from now on. */
static int give(const struct transaction *t, struct hm_mask *mask, uint64_t mode)
{
    const struct hm_block *record = t->record;
    struct hm_mask given = {{0}};
    int error = 0;
    for (uint32_t first = 0, count; !error && hm_next_run(mask->word, &first, &count);) {
        uint32_t n = 1, owner = record->owner[first];
        struct hm_mask run;
        int done;
        while (n < count && record->owner[first + n] == owner)
            n++;
        run = hm_mask_range(first, n);
        error = hm_window_protect(t->region, owner, t->block, &run);
        done = error ? error : give_run(t, first, n, mode);
        if (done == -ENOENT && n > 1) /* it may go on into another mapping */
            done = give_run(t, first, 1, mode);
        if (done == -EEXIST)
            done = 1;
        if (done == -ENOENT) {
            first++;
            continue;
        }
        if (done < 0) {
            error = done;
            break;
        }
        run = hm_mask_range(first, (uint32_t)done);
        HM_EACH_WORD (w)
            given.word[w] |= run.word[w];
        first += (uint32_t)done;
    }
    *mask = given;
    return error;
}

/* The pages are the program's; the stripe is held. */
static void flip_home(struct transaction *t, const struct hm_mask *mask, uint64_t began)
{
    struct hm_block *record = t->record;
    uint32_t pages = hm_bits(mask->word), from[HM_MAX_NODES] = {0};
    uint8_t owners[HM_BLOCK_PAGES];
    memcpy(owners, record->owner, sizeof(owners));
    hm_process_revoke(t->region->process, t->block, mask);
    HM_EACH_PAGE (page, mask->word) {
        from[record->owner[page]]++;
        record->owner[page] = HM_HOST;
    }
    HM_EACH_WORD (w) {
        record->present[w] &= ~mask->word[w];
        record->device[w] &= ~mask->word[w];
        record->dirty[w] &= ~mask->word[w];
    }
    for (uint32_t node = 1; node < t->core->config.nodes; node++) {
        if (!from[node])
            continue;
        hm_block_pages(t->region, record, node, -(int64_t)from[node]);
        hm_count_moved(t->core, node, HM_HOST, from[node], t->cause.trigger);
        hm_count(&t->core->nodes[node].copies_made, from[node]);
        if (t->job->flags & HM_JOB_EVICT) {
            hm_count(&t->core->nodes[node].evicted_blocks, 1);
            hm_count(&t->core->nodes[node].evicted_pages, from[node]);
            hm_count(&t->region->accounts.evicted[node], from[node]);
            record->evictions++;
            record->evicted = 1 + t->core->nodes[node].evicted_pages;
        }
    }
    /* They are the program's to keep or to drop, which nobody tells us: so they are no more. */
    hm_count(&t->core->nodes[HM_HOST].dropped_pages, pages);
    hm_count(&t->core->count.migrations, 1);
    hm_carried(t, HM_TRACE_MIGRATE_END, mask, mask, owners, began);
    record->last_migrated = hm_tick(t->core);
    record->device_faults = 0;
    t->event.moved += pages;
}

/* What was one huge page on a device is one at home, too, where the kernel finds room for it.
 * Programs wait for that, till the transaction's end wakes them. */
static void collapse(const struct transaction *t)
{
    struct iovec block = {(void *)page_address(t, 0), HM_BLOCK_BYTES};
    syscall(SYS_process_madvise, t->region->process->pidfd, &block, 1, MADV_COLLAPSE, 0);
}

static void punch(struct transaction *t, const uint8_t owners[HM_BLOCK_PAGES],
                  const struct hm_mask *mask)
{
    struct hm_mask freed[HM_MAX_NODES] = {0};
    HM_EACH_PAGE (page, mask->word)
        set_page(&freed[owners[page]], page);
    for (uint32_t node = 1; node < t->core->config.nodes; node++) {
        hm_punch_runs(t->region, node, t->block, freed[node].word);
        hm_release(t->core, node, hm_bits(freed[node].word));
    }
}

int hm_process_home(struct transaction *t, struct hm_mask *mask)
{
    uint8_t owners[HM_BLOCK_PAGES];
    uint64_t began;
    int error;
    memcpy(owners, t->record->owner, sizeof(owners));
    began = hm_trace_move(t, mask, owners, 0);
    error = give(t, mask, 0);
    if (hm_bits(mask->word)) {
        flip_home(t, mask, began);
        punch(t, owners, mask);
    }
    return error;
}

/* The same within a job, which holds the block: the stripe is dropped meanwhile. */
static int bring_home(struct transaction *t, const struct hm_mask *mask, uint32_t limit)
{
    struct hm_process *process = t->region->process;
    struct hm_mask moving = {{0}};
    uint8_t owners[HM_BLOCK_PAGES];
    bool huge = t->record->huge;
    uint32_t generation = t->record->generation;
    uint64_t began;
    int error;
    HM_EACH_PAGE (page, mask->word)
        if (hm_test(t->record->device, page) && limit && limit--)
            set_page(&moving, page);
    if (!hm_bits(moving.word))
        return 0;
    memcpy(owners, t->record->owner, sizeof(owners));
    pthread_mutex_unlock(&t->stripe->lock);
    pthread_mutex_lock(&process->lock);
    error = process->uffd < 0 ? -ESRCH : no_news(t);
    began = hm_now();
    if (error)
        memset(&moving, 0, sizeof(moving));
    else
        error = give(t, &moving, huge ? UFFDIO_COPY_MODE_DONTWAKE : 0);
    pthread_mutex_lock(&t->stripe->lock);
    if (t->record->generation != generation)
        memset(&moving, 0, sizeof(moving));
    if (hm_bits(moving.word))
        flip_home(t, &moving, began);
    pthread_mutex_unlock(&process->lock);
    pthread_mutex_unlock(&t->stripe->lock);
    punch(t, owners, &moving);
    if (huge && hm_bits(moving.word) == HM_BLOCK_PAGES)
        collapse(t);
    pthread_mutex_lock(&t->stripe->lock);
    return error == -EAGAIN ? -EBUSY : error;
}

int hm_process_bring(struct transaction *t, const struct hm_mask *mask, bool populate,
                     uint32_t limit)
{
    return t->job->node == HM_HOST ? bring_home(t, mask, limit)
                                   : bring_to_device(t, mask, populate);
}

/* ---- where they are ------------------------------------------------------------------------- */

int hm_process_may_write(struct transaction *t, const struct hm_mask *mask)
{
    uint64_t base = page_address(t, 0);
    for (uint32_t first = 0, count; hm_next_run(mask->word, &first, &count);) {
        struct hm_vma vma;
        uint64_t at = base + (uint64_t)first * HM_PAGE_SIZE;
        if (hm_vma_find(t->region->process, at, &vma) || vma.start > at)
            return -EFAULT;
        if (!vma.write)
            return -EPERM;
        first = vma.end >= base + HM_BLOCK_BYTES ? HM_BLOCK_PAGES
                                                 : (uint32_t)((vma.end - base) / HM_PAGE_SIZE);
    }
    return 0;
}

/* Access [at, at+length) of the job's range in the program, by a thread that it may have to wait
 * for: a fault of it is not to wait for the block. */
static int access_program(const struct transaction *t, uint32_t at, uint32_t length)
{
    struct hm_process *process = t->region->process;
    uint64_t start = page_address(t, 0) + t->job->offset + at;
    struct iovec local = {(uint8_t *)t->job->buffer + at, length};
    struct iovec remote = {(void *)start, length};
    uint32_t nobody = 0, self = (uint32_t)gettid();
    int slot = 0;
    ssize_t n;
    while (!atomic_compare_exchange_strong(&process->remote[slot], &nobody, self)) {
        nobody = 0;
        slot = (slot + 1) % HM_MAX_MOVERS;
    }
    if (t->job->kind == HM_JOB_READ)
        n = process_vm_readv(process->pid, &local, 1, &remote, 1, 0);
    else
        n = process_vm_writev(process->pid, &local, 1, &remote, 1, 0);
    if (n < 0)
        n = -errno;
    atomic_store(&process->remote[slot], 0);
    if (n == (ssize_t)length)
        return 0;
    return n < 0 && n != -EFAULT ? (int)n : -EFAULT;
}

static int access_device(const struct transaction *t, uint32_t at, uint32_t length)
{
    uint8_t *bytes = hm_pool_map(&t->region->pools[t->job->node], t->block * HM_BLOCK_BYTES);
    if (!bytes)
        return -ENOMEM;
    bytes += t->job->offset + at;
    if (t->job->kind == HM_JOB_READ)
        memcpy((uint8_t *)t->job->buffer + at, bytes, length);
    else
        memcpy(bytes, (uint8_t *)t->job->buffer + at, length);
    return 0;
}

int hm_process_remote(struct transaction *t)
{
    const struct hm_job *job = t->job;
    uint32_t first = job->offset / HM_PAGE_SIZE;
    uint32_t pages = (job->offset + job->length - 1) / HM_PAGE_SIZE - first + 1, at = 0;
    struct hm_mask mask = hm_mask_range(first, pages), mine = hm_owned(t->record, job->node), away;
    int error = 0;
    HM_EACH_WORD (w)
        away.word[w] = mask.word[w] & t->record->device[w] & ~mine.word[w];
    if (hm_bits(away.word)) {
        struct hm_job home = {.kind = HM_JOB_MIGRATE, .ino = job->ino, .node = HM_HOST};
        struct transaction other = *t;
        other.job = &home;
        error = bring_home(&other, &away, HM_BLOCK_PAGES);
        t->charged = other.charged;
        away = both(&away, &(struct hm_mask){{t->record->device[0], t->record->device[1],
                                              t->record->device[2], t->record->device[3],
                                              t->record->device[4], t->record->device[5],
                                              t->record->device[6], t->record->device[7]}});
        if (!error && hm_bits(away.word))
            error = -EFAULT; /* nothing is mapped there any more */
    }
    if (!error && job->kind == HM_JOB_WRITE) {
        error = hm_process_may_write(t, &mask);
        mine = hm_owned(t->record, job->node);
        if (!error) {
            away = both(&mask, &mine);
            hm_mark_written(t, &away);
        }
    }
    t->record->last_device = hm_tick(t->core);
    pthread_mutex_unlock(&t->stripe->lock);
    while (!error && at < job->length) {
        uint32_t page = (job->offset + at) / HM_PAGE_SIZE, end = page + 1, n;
        bool here = hm_test(mine.word, page);
        while (end < first + pages && hm_test(mine.word, end) == here)
            end++;
        n = end * HM_PAGE_SIZE - (job->offset + at);
        n = n < job->length - at ? n : job->length - at;
        error = here ? access_device(t, at, n) : access_program(t, at, n);
        at += n;
    }
    pthread_mutex_lock(&t->stripe->lock);
    return error;
}
