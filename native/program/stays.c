/* Pages of a program that the kernel uses by itself, and that stay where it finds them.
 *
 * For a thread that ends it gives up the robust mutexes that it holds, and wakes who joins it; on
 * its way back to a thread it may write to the area of its restartable sequences. Where a page is
 * away then, it does not wait for it: the work is left undone, without a word. So all that it
 * follows stays: what the C library keeps of each thread, and each mutex in the thread's list.
 *
 * A list may grow while it is looked at. So it is looked at once more when pages have been taken:
 * who has locked a mutex in one of them has done so before, and can't unlock it now. (A thread
 * that locks one and ends between both looks, within a millisecond, is missed.)
 *
 * The arguments and the environment stay, too, for ps to show; but not from a kernel that works on
 * the page: main's first variables are beside them.
 */
#include "program/stays.h"

#include "directory/records.h"
#include "program/memory.h"
#include "program/program.h"
#include "program/vma.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define THREAD_MOST 65536  /* bytes that a library may say of a thread, before and after */
#define MUTEXES_MOST 65536 /* of one thread; the kernel follows 2048 */

/* What is looked for in a block: its pages, from an address on. */
struct search {
    struct hm_process *process;
    uint64_t base;
    struct hm_mask found;
};

static void keep(struct search *search, uint64_t start, uint64_t length)
{
    uint64_t end = start + length < start ? UINT64_MAX : start + length;
    hm_add_part(&search->found, search->base, start - start % HM_PAGE_SIZE, end);
}

/* ---- reading without a fault ---------------------------------------------------------------- */

/* Of a page that a device has. */
static bool peek_device(const struct search *search, uint64_t address, void *bytes, size_t length)
{
    struct hm_process *process = search->process;
    struct hm_region *region = process->region;
    uint64_t offset = address % HM_MAX_BYTES, block = offset / HM_BLOCK_BYTES;
    uint32_t page = (uint32_t)(offset % HM_BLOCK_BYTES / HM_PAGE_SIZE);
    struct hm_stripe *stripe = hm_stripe_of(process->core, region->ino, block);
    const uint8_t *from = NULL;
    if (!hm_region_is_touched(region, block) ||
        hm_page_address(process, block, page) != address - address % HM_PAGE_SIZE)
        return false;
    HM_GUARD(HM_RANK_STRIPE, &stripe->lock);
    if (hm_test(region->blocks[block].device, page))
        from = hm_pool_map(&region->pools[region->blocks[block].owner[page]], offset);
    if (from)
        memcpy(bytes, from, length);
    return from;
}

/* 0; -EFAULT: nothing is mapped there; -EBUSY: the page is on its way. By /proc/PID/mem, which
 * waits for no page that is away: of our own threads' faults nobody would know what they are for.
 */
static int peek(const struct search *search, uint64_t address, void *bytes, size_t length)
{
    struct hm_vma vma;
    size_t most = HM_PAGE_SIZE - address % HM_PAGE_SIZE;
    if (most < length) {
        int error = peek(search, address, bytes, most);
        return error ? error : peek(search, address + most, (uint8_t *)bytes + most, length - most);
    }
    if (pread(search->process->mem, bytes, length, (off_t)address) == (ssize_t)length ||
        peek_device(search, address, bytes, length))
        return 0;
    if (hm_vma_find(search->process, address, &vma) || vma.start > address || !vma.anonymous)
        return -EFAULT;
    return -EBUSY;
}

/* ---- threads -------------------------------------------------------------------------------- */

/* In a list of mutexes an address's last bit is a flag. */
static void keep_mutex(struct search *search, uint64_t entry, int64_t futex)
{
    keep(search, entry, sizeof(uint64_t));
    keep(search, entry + (uint64_t)futex, sizeof(uint32_t));
}

static int keep_mutexes(struct search *search, uint64_t head)
{
    struct {
        uint64_t next;
        int64_t futex;
        uint64_t pending;
    } list;
    int error = peek(search, head, &list, sizeof(list));
    if (error)
        return error == -EFAULT ? 0 : error;
    if (list.pending)
        keep_mutex(search, list.pending & ~1ULL, list.futex);
    for (int i = 0; i < MUTEXES_MOST && list.next != head; i++) {
        uint64_t entry = list.next & ~1ULL;
        keep_mutex(search, entry, list.futex);
        error = peek(search, entry, &list.next, sizeof(list.next));
        if (error)
            return error == -EFAULT ? 0 : error; /* the kernel gives up there, too */
    }
    return 0;
}

/* Whether a thread has no list any more because it is about to end. */
static bool is_ending(const struct hm_process *process, pid_t thread)
{
    char text[HM_STAT_BYTES];
    const char *said = hm_thread_stat(process, thread, text);
    unsigned long flags = 0;
    char state = 'Z';
    if (said)
        sscanf(said, " %c %*d %*d %*d %*d %*d %lu", &state, &flags);
    return flags & 4 /* PF_EXITING */ && state != 'Z' && state != 'X';
}

static int keep_thread(struct search *search, pid_t thread)
{
    const struct hm_control *control = search->process->control;
    uint64_t before = __atomic_load_n(&control->thread_before, __ATOMIC_RELAXED);
    uint64_t after = __atomic_load_n(&control->thread_after, __ATOMIC_RELAXED);
    struct robust_list_head *head = NULL;
    size_t length;
    if ((uint32_t)thread == __atomic_load_n(&control->helper, __ATOMIC_RELAXED) ||
        (uint32_t)thread == __atomic_load_n(&control->guard, __ATOMIC_RELAXED) ||
        syscall(SYS_get_robust_list, thread, &head, &length) < 0)
        return 0; /* it is ours, or has ended */
    if (!head)
        return is_ending(search->process, thread) ? -EBUSY : 0;
    before = before < THREAD_MOST ? before : THREAD_MOST;
    after = after < THREAD_MOST ? after : THREAD_MOST;
    keep(search, (uintptr_t)head - before, before + after);
    return keep_mutexes(search, (uintptr_t)head);
}

static int keep_threads(struct search *search)
{
    char path[64];
    const struct dirent *entry;
    int error = 0;
    DIR *tasks;
    snprintf(path, sizeof(path), "/proc/%d/task", search->process->pid);
    tasks = opendir(path);
    if (!tasks)
        return errno == ENOENT ? -ESRCH : -errno;
    while (!error && (entry = readdir(tasks)))
        if (entry->d_name[0] != '.')
            error = keep_thread(search, (pid_t)atoi(entry->d_name));
    closedir(tasks);
    return error;
}

int hm_stays_for_kernel(struct hm_process *process, uint64_t block, struct hm_mask *out)
{
    struct search search = {process, hm_process_address(process, block), {{0}}};
    int error = process->mem < 0 || !process->control ? 0 : keep_threads(&search);
    *out = search.found;
    return error;
}

/* ---- arguments ------------------------------------------------------------------------------ */

/* A program may say that they are elsewhere (prctl). */
struct hm_mask hm_stays_for_ps(struct hm_process *process, uint64_t block)
{
    struct search search = {process, hm_process_address(process, block), {{0}}};
    unsigned long long at[4] = {0};
    char text[HM_STAT_BYTES];
    const char *said = hm_thread_stat(process, process->pid, text);
    for (int field = 3; said && field <= 48; field++) /* from 48 on come what we want */
        said = strchr(said + (field > 3), ' ');
    if (said && sscanf(said, " %llu %llu %llu %llu", &at[0], &at[1], &at[2], &at[3]) == 4)
        for (int i = 0; i < 4; i += 2)
            if (at[i] < at[i + 1])
                keep(&search, at[i], at[i + 1] - at[i]);
    return search.found;
}
