/* A program whose own memory devices work on. */
#ifndef HMMFS_PROGRAM_PROGRAM_H
#define HMMFS_PROGRAM_PROGRAM_H
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
    /* Held for every reading of the userfaultfd, and by who takes pages from the program or
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
    /* Pages of devices' memory that went home by faults, and that are released but not punched
     * yet: one by one that would be a fifth of a fault. With the stripe. Which blocks have some,
     * and how many in all: with the lock. A worker's window would show them, so there are none
     * while there is one. */
    hm_page_sets_table late;
    uint64_t late_block[HM_LATE_BLOCKS];
    uint32_t late_blocks, late_pages;
    hm_page_sets_table exclusive; /* pages that a device has for itself; with the stripe */
    struct hm_slot *dropping;     /* what the helper drops: REMOVE events of its runs are our own */
    _Atomic uint64_t area[HM_AREAS];           /* 1 + the high bits of its addresses; 0: free */
    _Atomic uint32_t remote[HM_MAX_MOVERS];    /* threads of ours that access its memory */
    _Atomic uint64_t remote_ns[HM_MAX_MOVERS]; /* since when */
    /* 1 + a block that pages are on their way from to a device, neither here nor there; 0: none.
     * With the lock. */
    uint64_t departing[HM_MAX_MOVERS];
    /* With the lock held: a page that an event which waits is to put at an address is wanted there
     * now. -ENOENT: there is none to come; -EAGAIN: it can't be had at the moment. space.h */
    int (*put_early)(const struct hm_process *process, uint64_t address);
};

#endif
