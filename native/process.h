/* Programs whose own memory devices work on: shared by process.c, anonymous.c and vma.c. */
#ifndef HMMFS_PROCESS_H
#define HMMFS_PROCESS_H
#include "preload.h"
#include "transaction.h"

#include <linux/userfaultfd.h>
#include <sys/types.h>

/* A region's offsets are addresses modulo its size, so that neighbours stay neighbours. Each TiB of
 * it is one TiB of the program's, the first that was asked for. */
#define HM_AREA_BYTES (1ULL << 40)
#define HM_AREAS (HM_MAX_BYTES / HM_AREA_BYTES)

/* An event that waits for the block that it is about. */
struct hm_pending {
    struct hm_pending *next;
    struct uffd_msg message;
};

struct hm_process {
    struct hm_core *core;
    struct hm_region *region; /* whose `process` this is; not counted */
    pid_t pid;
    int pidfd, maps, pagemap;
    int uffd;               /* -1: nothing of it can be migrated */
    int socket, stop, poke; /* socket -1: there is no library in it */
    struct hm_control *control;
    uint64_t own, own_bytes, scratch, least; /* as in the hello */
    pthread_t thread;
    _Atomic bool gone, detached;
    /* Held for every reading of the userfaultfd, and by whoever takes pages from the program or
     * gives it some, from the moment that it looks which events wait until that is done. The
     * kernel refuses both while there is an event that was not read; so what is moved is what is
     * meant. Taken before any stripe; waits for the program's helper thread, within a time. */
    pthread_mutex_t lock;
    struct hm_pending *pending, **pending_end; /* in the order in which they came */
    uint32_t slots;                            /* a bit for each that is in use */
    hm_side_table exclusive; /* pages that a device has for itself; with the stripe */
    uint32_t dropping;       /* REMOVE events to come of what the helper drops, which are our own */
    _Atomic uint64_t area[HM_AREAS];        /* 1 + the high bits of its addresses; 0: free */
    _Atomic uint32_t remote[HM_MAX_MOVERS]; /* threads of ours that access its memory */
};

/* vma.c: mappings of a program */
struct hm_vma {
    uint64_t start, end, offset, ino;
    uint32_t major, minor;
    bool read, write, shared, anonymous, special, hugetlb;
};
/* The mapping that has the address, or the next one. -ENOENT: there is none; -ESRCH. */
int hm_vma_find(const struct hm_process *process, uint64_t address, struct hm_vma *out);
/* Entries of /proc/PID/pagemap. */
#define HM_PM_PRESENT (1ULL << 63)
#define HM_PM_SWAPPED (1ULL << 62)
#define HM_PM_PROTECTED (1ULL << 57)
#define HM_PM_EXCLUSIVE (1ULL << 56)
#define HM_PM_FRAME ((1ULL << 55) - 1)
int hm_pagemap(const struct hm_process *process, uint64_t address, uint32_t pages, uint64_t *out);
/* Whether there is a page, wherever its bytes are; a marker is none. */
static inline bool hm_pm_there(uint64_t entry)
{
    return entry & HM_PM_PRESENT || (entry & HM_PM_SWAPPED && !(entry & HM_PM_PROTECTED));
}

/* process.c */
/* Pages leave the devices that have them, which had them for themselves no longer. */
void hm_process_revoke(struct hm_process *process, uint64_t block, const struct hm_mask *mask);
uint64_t hm_process_address(const struct hm_process *process, uint64_t block); /* of its start */
/* With the lock held: whether an event that is not dealt with concerns the range. */
bool hm_process_waits(const struct hm_process *process, uint64_t start, uint64_t end);
/* With the lock held: read what events there are, to be dealt with later. */
void hm_process_read(struct hm_process *process);
/* A transaction on the block has ended: who waits for it may try again. */
void hm_process_let_go(struct hm_region *region, uint64_t block);
int hm_process_wake(struct hm_process *process, uint64_t start, uint64_t length);

/* anonymous.c: as hm_bring and hm_operate, for pages of a program. */
int hm_process_bring(struct transaction *t, const struct hm_mask *mask, bool populate,
                     uint32_t limit);
int hm_process_remote(struct transaction *t);
/* Give device-owned pages of the mask back; the process's lock and the stripe are held, and with
 * `busy` the block. Which were given comes back in the mask. */
int hm_process_home(struct transaction *t, struct hm_mask *mask);
/* Whether a device may store to all pages of the mask. */
int hm_process_may_write(struct transaction *t, const struct hm_mask *mask);

#endif
