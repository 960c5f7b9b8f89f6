/* Programs whose own memory devices work on: shared by process.c, space.c, take.c,
 * anonymous.c, pending.c, stays.c and vma.c. */
#ifndef HMMFS_PROCESS_H
#define HMMFS_PROCESS_H
#include "preload/preload.h"
#include "base/page_sets.h"
#include "transaction/transaction.h"

#include <linux/userfaultfd.h>
#include <sys/types.h>

/* A region's offsets are addresses modulo its size, so that neighbours stay neighbours. Each TiB of
 * it is one TiB of the program's, the first that was asked for. */
#define HM_AREA_BYTES (1ULL << 40)
#define HM_AREAS (HM_MAX_BYTES / HM_AREA_BYTES)

#define HM_DISCARDS 32
#define HM_DISCARD_MS 50   /* for a thread that was woken to get a processor */
#define HM_SETTLE_TRIES 16 /* of a child's changes, with a stripe held: some 0.5 ms each */
#define HM_HEAR_MOST 256   /* events of a child at a time */
#define HM_LOST_MS 10000   /* nothing that we wait for a program to do takes longer */
#define HM_LATE_BLOCKS 64
#define HM_LATE_PAGES 8192 /* most that are late, and for HM_LATE_MS when nothing happens */
#define HM_LATE_MS 2

/* An event that waits for the block that it is about. */
struct hm_pending {
    struct hm_pending *next;
    struct hm_pending *heard; /* of a child, what it has done itself since */
    uint64_t since_ns;        /* of a child, when it was to have its pages first; 0: not yet */
    uint64_t given;           /* and the pages of the region, from the first on, that it has */
    struct uffd_msg message;
};

struct hm_process {
    struct hm_core *core;
    struct hm_region *region; /* whose `process` this is; not counted */
    pid_t pid;
    int pidfd, maps, pagemap;
    int mem;                /* of the address space that it had; -1: we may not */
    int uffd;               /* -1: nothing of it can be migrated */
    int socket, stop, poke; /* socket -1: there is no library in it; with the lock */
    struct hm_control *control;
    uint64_t own, own_bytes, scratch, least; /* as in the hello */
    pthread_t thread;
    bool foreign; /* as in the config */
    _Atomic bool gone, detached;
    _Atomic uint32_t closed; /* a bit for each node that gets nothing of it */
    /* Held for every reading of the userfaultfd, and by whoever takes pages from the program or
     * gives it some, from the moment that it looks which events wait until that is done. The
     * kernel refuses both while there is an event that was not read; so what is moved is what is
     * meant. Taken before any stripe; waits for the program's helper thread, within a time. */
    pthread_mutex_t lock;
    struct hm_pending *pending, **pending_end; /* in the order in which they came */
    /* What the program discards it does so after it was told that we read of it. Where its library
     * does not say when: ranges that nothing is taken from for HM_DISCARD_MS. The last of them may
     * stand for several. With the lock. */
    struct hm_discard {
        uint64_t start, end, until_ns;
    } discard[HM_DISCARDS];
    uint32_t slots; /* a bit for each that is in use */
    /* Pages of devices' memory that went home by faults, and whose room is free again, but that are
     * not punched yet: one by one that would be a fifth of a fault. With the stripe. Of which
     * blocks, and how many in all: with the lock. A worker's window would show them, so there are
     * none while there is one. */
    hm_side_table late;
    uint64_t late_block[HM_LATE_BLOCKS];
    uint32_t late_blocks, late_pages;
    hm_side_table exclusive;  /* pages that a device has for itself; with the stripe */
    struct hm_slot *dropping; /* what the helper drops: REMOVE events of its runs are our own */
    _Atomic uint64_t area[HM_AREAS];           /* 1 + the high bits of its addresses; 0: free */
    _Atomic uint32_t remote[HM_MAX_MOVERS];    /* threads of ours that access its memory */
    _Atomic uint64_t remote_ns[HM_MAX_MOVERS]; /* since when */
    /* 1 + a block that pages are on their way from to a device, neither here nor there; 0: none.
     * With the lock. */
    uint64_t departing[HM_MAX_MOVERS];
};

/* vma.c: mappings of a program */
struct hm_vma {
    uint64_t start, end, ino;
    bool read, write, shared, anonymous, special, hugetlb;
};
/* The mapping that has the address, or the next one. -ENOENT: there is none; -ESRCH. */
int hm_vma_find(const struct hm_process *process, uint64_t address, struct hm_vma *out);
/* The ranges of addresses that a child has zeros in, from /proc/PID/smaps; how many, or -errno. To
 * be freed. */
struct hm_range {
    uint64_t start, end;
};
int hm_vma_wiped(const struct hm_process *process, struct hm_range **out);
/* Entries of /proc/PID/pagemap. */
#define HM_PM_PRESENT (1ULL << 63)
#define HM_PM_SWAPPED (1ULL << 62)
#define HM_PM_PROTECTED (1ULL << 57)
#define HM_PM_EXCLUSIVE (1ULL << 56)
#define HM_PM_FRAME ((1ULL << 55) - 1)
#define HM_PM_GUARD (1ULL << 58) /* 6.15 */
int hm_pagemap(const struct hm_process *process, uint64_t address, uint32_t pages, uint64_t *out);
/* What /proc says of a thread behind its name: " STATE PPID ...", where STATE is field 3. NULL: it
 * has ended. */
#define HM_STAT_BYTES 1024
const char *hm_thread_stat(const struct hm_process *process, pid_t thread,
                           char text[HM_STAT_BYTES]);
/* Of a block's pages from an address on, those of the mask that there are; and guards, where there
 * is none and nobody may have one. */
int hm_pages_there(const struct hm_process *process, uint64_t address, const struct hm_mask *mask,
                   struct hm_mask *there, struct hm_mask *guards);
/* A page that any access to is an error: a guard (MADV_GUARD_INSTALL, 6.13), or poison. Where the
 * kernel has no bit for it yet the marker says so, as a swap entry of type 31 that has more in its
 * offset than write protection. */
static inline bool hm_pm_guard(uint64_t entry)
{
    return entry & HM_PM_GUARD || (!(entry & HM_PM_PRESENT) && entry & HM_PM_SWAPPED &&
                                   entry % 32 == 31 && (entry & HM_PM_FRAME) / 32 > 1);
}

/* Whether there is a page, wherever its bytes are; a marker is none. */
static inline bool hm_pm_there(uint64_t entry)
{
    return entry & HM_PM_PRESENT ||
           (entry & HM_PM_SWAPPED && !(entry & HM_PM_PROTECTED) && !hm_pm_guard(entry));
}

/* pending.c: what the kernel tells of the program */
/* With the lock held: whether an event that is not dealt with concerns the range. */
bool hm_process_waits(const struct hm_process *process, uint64_t start, uint64_t end);
/* With the lock held: pages of a block that the program may be about to discard. */
struct hm_mask hm_process_discards(const struct hm_process *process, uint64_t block);
/* Add the pages of [start, end), of which start begins a page, that are in the block whose first
 * address is `base`. */
void hm_add_part(struct hm_mask *mask, uint64_t base, uint64_t start, uint64_t end);
/* With the lock held: read what events there are, to be dealt with later. */
void hm_process_read(struct hm_process *process);
/* With the lock held: the helper takes its time. If it is in a page fault, read one message: faults
 * come before events, of which none may be read now. In the same pid namespace only. */
void hm_process_help(struct hm_process *process);
/* Append to a list, of which the end is given and comes back. */
struct hm_pending **hm_pending_add(struct hm_pending **end, const struct uffd_msg *message);
/* What an event is about; nothing, if it is a fault. */
void hm_pending_range(const struct hm_pending *pending, uint64_t *start, uint64_t *end);
/* Whether it moves pages to a range; whether it changes anything there. */
bool hm_pending_comes_to(const struct hm_pending *pending, uint64_t start, uint64_t end);
bool hm_pending_concerns(const struct hm_pending *pending, uint64_t start, uint64_t end);
/* Where a page is after an event that is no fork; 0: nowhere. */
uint64_t hm_pending_follow(const struct hm_pending *pending, uint64_t address);
void hm_pending_free(struct hm_pending *pending);
/* A thread of ours accesses the program's memory from here on, without the lock: its faults are
 * served whatever is held. Returns what to end it with. */
int hm_process_enter(struct hm_process *process);
void hm_process_leave(struct hm_process *process, int slot);
/* Copy from its memory, or to it; returns bytes or -errno. ESRCH: it has ended. */
ssize_t hm_process_copy(const struct hm_process *process, uint64_t address, void *bytes,
                        size_t length, bool store);
/* Pages of a block leave the program, with the lock held; and they are all somewhere again,
 * without.
 */
void hm_process_depart(struct hm_process *process, uint64_t block);
void hm_process_arrive(struct hm_process *process, uint64_t block);
bool hm_process_departs(const struct hm_process *process, uint64_t block);
/* It does what no library of ours does, such as writing to its requests itself. It is no longer
 * served; what devices have of it is a SIGBUS to it. Returns -ESRCH. */
int hm_process_lose(struct hm_process *process);
/* Give a page, and holes that follow it in the block, their zeros. */
void hm_process_fill(struct hm_process *process, uint64_t address, uint32_t pages);

/* process.c */
/* Pages leave the devices that have them, which had them for themselves no longer. */
void hm_process_revoke(struct hm_process *process, uint64_t block, const struct hm_mask *mask);
void hm_process_deinit(struct hm_region *region);
/* What is to be punched late goes now: a worker is about to have a window on it, say. */
void hm_process_punch(struct hm_region *region);

/* Punch what is late, all of it, but for blocks that a transaction holds. The lock is held. */
void hm_process_flush(struct hm_process *process);
/* And of a block that a transaction holds, with the stripe, which is dropped meanwhile. */
void hm_process_flush_block(struct hm_process *process, uint64_t block);
void hm_process_wake(struct hm_process *process, uint64_t start, uint64_t length);

/* space.c */
uint64_t hm_process_address(const struct hm_process *process, uint64_t block); /* of its start */
static inline uint64_t hm_page_address(const struct hm_process *process, uint64_t block,
                                       uint32_t page)
{
    return hm_process_address(process, block) + (uint64_t)page * HM_PAGE_SIZE;
}

static inline uint64_t hm_page_of(const struct transaction *t, uint32_t page)
{
    return hm_page_address(t->region->process, t->block, page);
}

/* With the lock held, what an event is about. False: a transaction holds one of the blocks, or the
 * kernel has news: once more later. Pages went, and so does what devices have of them; a child has
 * all that its parent had; pages come home at their new place. */
bool hm_process_cut(struct hm_process *process, uint64_t start, uint64_t end);
bool hm_process_forked(struct hm_process *process, struct hm_pending *fork);
bool hm_process_remapped(struct hm_process *process, struct hm_pending *remap);
/* With the lock held: a page that an event which waits is to put at an address is wanted there now.
 * -ENOENT: there is none to come; -EAGAIN: it can't be had at the moment. */
int hm_process_put_early(const struct hm_process *process, uint64_t address);

/* take.c: taking pages of a block from a program, to the device of the transaction's job */
struct hm_taking {
    struct hm_mask movable; /* of writable mappings: by moving */
    struct hm_mask fixed;   /* of read-only ones: by copying, and dropping */
    struct hm_mask firsts;  /* pages that a mapping begins with */
    struct hm_mask there;   /* of both, those that have a page */
    struct hm_mask taken;   /* bytes of these are on the device */
    struct hm_mask holes;   /* there is nothing of these: they are zeros */
};
/* Sort pages by their mappings into the first four, and have the kernel tell us of them from now
 * on. */
int hm_take_sort(const struct transaction *t, const struct hm_mask *mask, struct hm_taking *out);
/* Take movable and fixed, of which some may stay; neither the stripe nor the lock is held. Whatever
 * is returned, what is in `taken` is nowhere else. -EBUSY: the program does not answer, or changes
 * its mappings. */
int hm_take(const struct transaction *t, struct hm_taking *taking);
/* Whether we may go on as if we knew all of a block's mappings; the lock is held. */
int hm_take_no_news(const struct transaction *t);
/* With the lock held: of a block's pages that devices have, those that the program has discarded
 * without an event: it has made them guards, and perhaps removed these again. */
struct hm_mask hm_take_discarded(const struct transaction *t, const struct hm_mask *mask);

/* stays.c: pages of a block that stay in the program: those that the kernel uses for its threads,
 * -EBUSY: it can't be said now; and those of its arguments and environment. No stripe is held. */
int hm_stays_for_kernel(struct hm_process *process, uint64_t block, struct hm_mask *out);
struct hm_mask hm_stays_for_ps(struct hm_process *process, uint64_t block);

/* anonymous.c: hm_kind_ops of a program's memory. */
int hm_process_bring(struct transaction *t, const struct hm_mask *mask, bool populate,
                     uint32_t limit);
int hm_process_operate(struct transaction *t, const struct hm_mask *mask);
/* Give device-owned pages of the mask back; the process's lock and the stripe are held, and with
 * `busy` the block. Which were given comes back in the mask. */
int hm_process_home(struct transaction *t, struct hm_mask *mask);
/* Whether a device may store to all pages of the mask. */
int hm_process_may_write(struct transaction *t, const struct hm_mask *mask);

#endif
