/* The threads that hmmfs run's library adds to a program.
 *
 * The helper takes pages out of the program's reach for the daemon: only the program itself can.
 * The guard waits for the daemon's end. If that comes unannounced it takes the daemon's place at
 * the userfaultfd, so that nobody reads zeros where data were: touching those is a SIGBUS. They are
 * two because that may wait for the daemon, which may end just then.
 *
 * They are threads to the kernel only. The C library does not know of them, so a program with one
 * thread stays one for it: its locks cost nothing, and it ends when main calls pthread_exit. So
 * they have neither a thread control block nor errno, and may call nothing of the C library, nor
 * what a compiler would call: this file makes its system calls itself, is compiled without stack
 * protectors, and its object refers to no symbol from elsewhere (a test sees to that).
 *
 * They have a table of descriptors of their own, with nothing but what they need: the program finds
 * no descriptor that it did not open, can close none of these, and none of its files is kept open.
 * For the same reason they have a directory of their own. All signals are blocked.
 */
#include "preload/helper.h"

#include "preload/arch/machine.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <linux/sched.h>
#include <linux/userfaultfd.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#ifndef POLLRDHUP
#define POLLRDHUP 0x2000
#endif
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23 /* 5.14 */
#endif
#define MOVE_TRIES 4

/* ---- system calls ------------------------------------------------------------------------- */

#define CALL(number, a, b, c, d, e, f)                                                             \
    call6(SYS_##number, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), (long)(f))

static long uffd_ioctl(int uffd, unsigned long request, void *argument)
{
    return CALL(ioctl, uffd, request, argument, 0, 0, 0);
}

/* Which of the events there are; -errno. In milliseconds; below 0: any time. */
static int poll_for(struct pollfd *poll, uint32_t used, long limit)
{
    struct {
        int64_t seconds, nanoseconds;
    } time = {limit / 1000, limit % 1000 * 1000000};
    return (int)CALL(ppoll, poll, used, limit < 0 ? NULL : &time, NULL, 8, 0);
}

static void wake_futex(void *futex)
{
    CALL(futex, futex, FUTEX_WAKE, INT_MAX, 0, 0, 0);
}

static _Noreturn void end_thread(void)
{
    for (;;)
        CALL(exit, 0, 0, 0, 0, 0, 0);
}

/* Whether the daemon is gone, waiting for it up to that many milliseconds. */
static bool hung_up(struct hm_link *link, long limit)
{
    struct pollfd poll = {.fd = link->socket, .events = POLLRDHUP};
    return poll_for(&poll, 1, limit) > 0 && poll.revents;
}

/* ---- taking pages ------------------------------------------------------------------------- */

static uint64_t scratch_of(const struct hm_link *link, uint32_t slot)
{
    return link->scratch + (uint64_t)slot * HM_SCRATCH;
}

static struct uffdio_range range_of(uint64_t start, uint64_t length)
{
    return (struct uffdio_range){start, length};
}

/* Have the slot's scratch take pages, which takes a userfaultfd; or not, which a drop of them does.
 */
static long watch_scratch(const struct hm_link *link, uint32_t slot, bool on)
{
    struct uffdio_range range = range_of(scratch_of(link, slot), HM_SCRATCH);
    struct uffdio_register request = {range, UFFDIO_REGISTER_MODE_MISSING, 0};
    return on ? uffd_ioctl(link->uffd, UFFDIO_REGISTER, &request)
              : uffd_ioctl(link->uffd, UFFDIO_UNREGISTER, &range);
}

/* Let nobody store to it, or with another mode everybody. */
static long write_protect(int uffd, struct uffdio_range range, uint64_t mode)
{
    struct uffdio_writeprotect request = {range, mode};
    return uffd_ioctl(uffd, UFFDIO_WRITEPROTECT, &request);
}

/* Wherever a run has no page, a marker: that there was one, which is not here. -EAGAIN while the
 * address space changes: the daemon, which has yet to hear of that, sees to them. */
static long mark(const struct hm_link *link, const struct hm_run *run)
{
    return write_protect(link->uffd, range_of(run->address, run->length),
                         UFFDIO_WRITEPROTECT_MODE_WP);
}

/* By stores that change nothing, for which a page may not be write-protected. */
static long make_private(const struct hm_link *link, const struct hm_run *run)
{
    long error = write_protect(link->uffd, range_of(run->address, run->length),
                               UFFDIO_WRITEPROTECT_MODE_DONTWAKE);
    return error ? error : CALL(madvise, run->address, run->length, MADV_POPULATE_WRITE, 0, 0, 0);
}

/* Move what there is of a run. A page that is shared since a fork, or is being used, gets a few
 * tries; then it stays. Where a marker is (-EFAULT) there is no page. A call that moves some says
 * nothing of why it stopped, but the next one does. */
static long move_run(const struct hm_link *link, uint32_t slot, const struct hm_run *run)
{
    uint64_t at = run->address, end = run->address + run->length;
    uint64_t to = scratch_of(link, slot) + run->address % HM_SCRATCH;
    long first = 0;
    int tries = 0;
    while (at < end) {
        struct hm_uffdio_move request = {to, at, end - at,
                                         HM_MOVE_DONTWAKE | HM_MOVE_ALLOW_SRC_HOLES, 0};
        long error = uffd_ioctl(link->uffd, HM_UFFDIO_MOVE, &request);
        uint64_t done = request.moved > 0 ? (uint64_t)request.moved : 0;
        if (!error)
            break;
        if (!done) {
            if (error == -ENOENT || error == -EINVAL || error == -ESRCH)
                return error;
            if (error != -EFAULT && ++tries < MOVE_TRIES)
                continue;
            if (error != -EFAULT && !first)
                first = error;
            done = link->page;
        }
        tries = 0;
        at += done;
        to += done;
    }
    return first;
}

static bool is_sound(const struct hm_link *link, const struct hm_run *run)
{
    return !((run->address | run->length) & (link->page - 1)) &&
           run->length <= HM_SCRATCH - run->address % HM_SCRATCH;
}

static long take_run(const struct hm_link *link, uint32_t slot, uint32_t kind,
                     const struct hm_run *run)
{
    long error, unmarked = 0;
    if (!is_sound(link, run))
        return -EINVAL;
    if (kind == HM_SLOT_PRIVATE)
        return make_private(link, run);
    if (kind == HM_SLOT_MOVE)
        error = move_run(link, slot, run);
    else
        error = CALL(madvise, run->address, run->length, MADV_DONTNEED, 0, 0, 0);
    if (kind == HM_SLOT_MOVE || !error)
        unmarked = mark(link, run);
    return unmarked == -EAGAIN ? unmarked : error;
}

/* Dropping, unless a mapping has changed or is about to; for the change that comes now waits. */
static bool begin_drop(struct hm_link *link, const struct hm_slot *slot)
{
    uint32_t changes = __atomic_load_n(&slot->changes, __ATOMIC_RELAXED);
    __atomic_store_n(&link->dropping, 1, __ATOMIC_SEQ_CST);
    return __atomic_load_n(&link->control->changes_begun, __ATOMIC_SEQ_CST) == changes;
}

static void end_drop(struct hm_link *link)
{
    __atomic_store_n(&link->dropping, 0, __ATOMIC_SEQ_CST);
    wake_futex(&link->dropping);
}

static long release(const struct hm_link *link, uint32_t number)
{
    long error = watch_scratch(link, number, false);
    return error ? error
                 : CALL(madvise, scratch_of(link, number), HM_SCRATCH, MADV_DONTNEED, 0, 0, 0);
}

static void carry_out(struct hm_link *link, uint32_t number)
{
    struct hm_slot *slot = &link->control->slot[number];
    uint32_t runs = __atomic_load_n(&slot->runs, __ATOMIC_RELAXED);
    uint32_t kind = __atomic_load_n(&slot->kind, __ATOMIC_RELAXED);
    bool wrong = runs > HM_PRELOAD_RUNS || kind > HM_SLOT_RELEASE || link->uffd < 0;
    long error = wrong ? -EINVAL : 0, first;
    if (!error && kind == HM_SLOT_MOVE)
        error = watch_scratch(link, number, true);
    if (!error && kind == HM_SLOT_RELEASE)
        error = release(link, number);
    if (!error && kind == HM_SLOT_DROP && !begin_drop(link, slot))
        error = -EBUSY;
    first = error;
    for (uint32_t i = 0; !error && kind != HM_SLOT_RELEASE && i < runs; i++) {
        struct hm_run run = slot->run[i];
        long result = take_run(link, number, kind, &run);
        if (!first || result == -EAGAIN)
            first = result;
    }
    if (kind == HM_SLOT_DROP)
        end_drop(link);
    __atomic_store_n(&slot->result, (int32_t)first, __ATOMIC_RELAXED);
    __atomic_store_n(&slot->state, HM_SLOT_DONE, __ATOMIC_RELEASE);
    wake_futex(&slot->state);
}

/* False: the daemon is gone. What it asked for before is left undone, for the data are still here.
 */
static bool take(struct hm_link *link)
{
    uint32_t number, state = HM_SLOT_PENDING;
    struct hm_slot *slot;
    long n = CALL(recvfrom, link->socket, &number, sizeof(number), MSG_TRUNC, 0, 0);
    if ((n < 0 && n != -EINTR) || hung_up(link, 0))
        return false;
    if (n != sizeof(number) || number >= HM_PRELOAD_SLOTS)
        return true;
    slot = &link->control->slot[number];
    if (__atomic_compare_exchange_n(&slot->state, &state, HM_SLOT_TAKEN, false, __ATOMIC_ACQ_REL,
                                    __ATOMIC_RELAXED))
        carry_out(link, number);
    return true;
}

/* ---- in the daemon's place ---------------------------------------------------------------- */

static struct uffdio_range page_at(const struct hm_link *link, uint64_t address)
{
    return (struct uffdio_range){address & ~(link->page - 1), link->page};
}

static long poison(int uffd, struct uffdio_range page)
{
    struct hm_uffdio_poison request = {.start = page.start, .length = page.len};
    return uffd_ioctl(uffd, UFFDIO_POISON, &request);
}

static long zero(int uffd, struct uffdio_range page)
{
    struct uffdio_zeropage request = {.range = page};
    return uffd_ioctl(uffd, UFFDIO_ZEROPAGE, &request);
}

/* Pages that were being taken when the daemon ended may not have their marker yet. */
static bool in_flight(struct hm_link *link, uint64_t address)
{
    for (uint32_t i = 0; i < HM_PRELOAD_SLOTS; i++) {
        struct hm_slot *slot = &link->control->slot[i];
        uint32_t state = __atomic_load_n(&slot->state, __ATOMIC_ACQUIRE);
        if (state != HM_SLOT_TAKEN && state != HM_SLOT_DONE)
            continue;
        for (uint32_t r = 0; r < slot->runs && r < HM_PRELOAD_RUNS; r++)
            if (address - slot->run[r].address < slot->run[r].length)
                return true;
    }
    return false;
}

/* Free the entries of address spaces that are gone. Nothing of ours is registered, so that this
 * fails in any case. */
static void forget_ended(struct hm_link *link)
{
    struct uffdio_range page = page_at(link, (uint64_t)(uintptr_t)link);
    for (uint32_t i = 1; i < link->served;) {
        int uffd = link->poll[i].fd;
        if (write_protect(uffd, page, UFFDIO_WRITEPROTECT_MODE_DONTWAKE) != -ESRCH) {
            i++;
            continue;
        }
        CALL(close, uffd, 0, 0, 0, 0, 0);
        link->poll[i] = link->poll[--link->served];
    }
}

/* One too many is not closed either: it waits at pages that are away, but sees no zeros. */
static void serve_fork(struct hm_link *link, int uffd)
{
    forget_ended(link);
    if (link->served < HM_SERVED)
        link->poll[link->served++] = (struct pollfd){.fd = uffd, .events = POLLIN};
}

/* The page's marker is gone already, and while the address space changes it can't be poisoned: see
 * to the changes. A fork among them may have missed the marker. */
static void settle(struct hm_link *link, int uffd, struct uffdio_range away)
{
    struct uffd_msg message;
    if (CALL(read, uffd, &message, sizeof(message), 0, 0, 0) != sizeof(message)) {
        CALL(sched_yield, 0, 0, 0, 0, 0, 0);
    } else if (message.event == UFFD_EVENT_FORK) {
        serve_fork(link, (int)message.arg.fork.ufd);
        poison((int)message.arg.fork.ufd, away);
    } else if (message.event == UFFD_EVENT_PAGEFAULT) { /* it will be back */
        struct uffdio_range page = page_at(link, message.arg.pagefault.address);
        uffd_ioctl(uffd, UFFDIO_WAKE, &page);
    }
}

/* The daemon leaves a marker, write-protection without a page, for each page that is away. A page
 * of zeros does not replace it, and is as good as any page where there never was one. Poison does
 * not replace it either, so it is taken first. */
static void answer_missing(struct hm_link *link, int uffd, struct uffdio_range page)
{
    long error = in_flight(link, page.start) ? -EEXIST : zero(uffd, page);
    if (error == -EEXIST)
        error = write_protect(uffd, page, UFFDIO_WRITEPROTECT_MODE_DONTWAKE);
    else if (!error)
        return;
    if (!error)
        while ((error = poison(uffd, page)) == -EAGAIN)
            settle(link, uffd, page);
    if (error) /* it changes, or there is a page by now, or no memory at all */
        uffd_ioctl(uffd, UFFDIO_WAKE, &page);
}

static void answer(struct hm_link *link, int uffd, const struct uffd_msg *message)
{
    struct uffdio_range page;
    if (message->event == UFFD_EVENT_FORK)
        serve_fork(link, (int)message->arg.fork.ufd);
    if (message->event != UFFD_EVENT_PAGEFAULT)
        return;
    page = page_at(link, message->arg.pagefault.address);
    if (!(message->arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WP))
        answer_missing(link, uffd, page);
    else if (write_protect(uffd, page, 0))
        uffd_ioctl(uffd, UFFDIO_WAKE, &page);
}

static void serve(struct hm_link *link)
{
    struct uffd_msg message;
    for (;;) {
        poll_for(link->poll, link->served, -1);
        for (uint32_t i = 0; i < link->served; i++) {
            int uffd = link->poll[i].fd;
            while (link->poll[i].revents & POLLIN && link->poll[i].fd == uffd &&
                   CALL(read, uffd, &message, sizeof(message), 0, 0, 0) == sizeof(message))
                answer(link, uffd, &message);
        }
    }
}

/* Faults that the daemon had read and not answered: who waits for them faults anew. Nobody says
 * where the address space ends, but a range beyond is refused. */
static void wake_all(struct hm_link *link)
{
    for (int bits = 63; bits > 30; bits--) {
        struct uffdio_range range = {HM_PART, (1ULL << bits) - link->page - HM_PART};
        if (uffd_ioctl(link->uffd, UFFDIO_WAKE, &range) == 0)
            return;
    }
}

/* On the program's standard error. No copy is kept, and it is dropped unless taken at once. */
static void tell(void)
{
    static const char sentence[] = "hmmfs run: The daemon is gone: touching memory that was on a "
                                   "device is a SIGBUS from now on.\n";
    long process = CALL(getpid, 0, 0, 0, 0, 0, 0);
    int handle = (int)CALL(pidfd_open, process, 0, 0, 0, 0, 0);
    struct pollfd error = {.fd = (int)CALL(pidfd_getfd, handle, 2, 0, 0, 0, 0), .events = POLLOUT};
    if (error.fd >= 0) {
        if (poll_for(&error, 1, 0) > 0 && error.revents & POLLOUT)
            CALL(write, error.fd, sentence, sizeof(sentence) - 1, 0, 0, 0);
        CALL(close, error.fd, 0, 0, 0, 0, 0);
    }
    if (handle >= 0)
        CALL(close, handle, 0, 0, 0, 0, 0);
}

/* ---- the threads -------------------------------------------------------------------------- */

/* With a number that the kernel sets to 0, and wakes, when the thread is off its stack. */
#define THREAD                                                                                     \
    (CLONE_VM | CLONE_SIGHAND | CLONE_THREAD | CLONE_PARENT_SETTID | CLONE_CHILD_CLEARTID)

/* When the daemon takes its leave all pages are here, and without a userfaultfd all memory is the
 * program's alone. It is closed here: the helper may be waiting for an event to be read. */
static void guard(void *arg)
{
    struct hm_link *link = arg;
    CALL(prctl, PR_SET_NAME, "hmmfs guard", 0, 0, 0, 0);
    while (!hung_up(link, -1))
        ;
    __atomic_store_n(&link->gone, 1, __ATOMIC_RELEASE);
    if (__atomic_load_n(&link->control->leaving, __ATOMIC_ACQUIRE)) {
        CALL(close, link->uffd, 0, 0, 0, 0, 0);
    } else {
        tell();
        wake_all(link);
        link->poll[0] = (struct pollfd){.fd = link->uffd, .events = POLLIN};
        link->served = 1;
        serve(link);
    }
    end_thread();
}

static int close_others(const struct hm_link *link)
{
    int low = link->socket, high = link->uffd;
    long error = 0;
    if (high < low) {
        low = link->uffd;
        high = link->socket;
    }
    if (low > 0)
        error = CALL(close_range, 0, low - 1, 0, 0, 0, 0);
    if (!error && high > low + 1)
        error = CALL(close_range, low + 1, high - 1, 0, 0, 0, 0);
    return error ? (int)error : (int)CALL(close_range, high + 1, -1, 0, 0, 0, 0);
}

static void helper(void *arg)
{
    struct hm_threads *threads = arg;
    struct hm_link *link = &threads->link;
    long error = close_others(link);
    CALL(chdir, "/", 0, 0, 0, 0, 0);
    CALL(prctl, PR_SET_NAME, "hmmfs helper", 0, 0, 0, 0);
    __atomic_store_n(&link->control->helper, (uint32_t)CALL(gettid, 0, 0, 0, 0, 0, 0),
                     __ATOMIC_RELAXED);
    if (!error && link->uffd >= 0) {
        error = start_thread(THREAD | CLONE_FILES | CLONE_FS, &threads->stack1[HM_PART], guard,
                             link, &link->guard);
        __atomic_store_n(&link->control->guard, link->guard, __ATOMIC_RELAXED);
    }
    __atomic_store_n(&link->ready, error < 0 ? (int)error : 1, __ATOMIC_RELEASE);
    wake_futex(&link->ready);
    if (error >= 0)
        while (take(link))
            ;
    __atomic_store_n(&link->gone, 1, __ATOMIC_RELEASE);
    end_thread();
}

int hm_helper_start(struct hm_threads *threads)
{
    struct hm_link *link = &threads->link;
    uint64_t all = ~0ULL, before;
    long error;
    int ready, number;
    CALL(rt_sigprocmask, SIG_SETMASK, &all, &before, sizeof(all), 0, 0);
    error = start_thread(THREAD, &threads->stack0[HM_PART], helper, threads, &link->helper);
    CALL(rt_sigprocmask, SIG_SETMASK, &before, NULL, sizeof(all), 0, 0);
    if (error < 0)
        return (int)error;
    while (!(ready = __atomic_load_n(&link->ready, __ATOMIC_ACQUIRE)))
        CALL(futex, &link->ready, FUTEX_WAIT, 0, NULL, 0, 0);
    while (ready < 0 && (number = __atomic_load_n(&link->helper, __ATOMIC_ACQUIRE)))
        CALL(futex, &link->helper, FUTEX_WAIT, number, NULL, 0, 0);
    return ready < 0 ? ready : 0;
}
