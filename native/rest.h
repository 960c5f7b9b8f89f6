/* Inside the native core: structures, locks and the calls between its files.
 *
 * Locks, in the order in which they are taken; a thread holds at most one stripe:
 *   process->lock        what a program did to its memory, and what is done to it (process.h)
 *   region->shared_lock  the size of a coherent or DAX region
 *   core->regions_lock   the table ino -> region; held for look-ups, never across a wait
 *   stripe->lock         the block records that hash to the stripe, its parked requests, deferred
 *                        jobs and recent WRITEs; never held across an INVAL, a wait for another
 *                        party, or a copy of more than HM_INLINE_PAGES pages
 *   device->lock         the windows of one device's worker
 *   region->advice_lock  what was said of its pages; read for a moment, after any of the others
 *   core->list_lock      the list of touched blocks
 *   core->jobs_lock      the movers' queue
 *   core->events_lock    the events for the service
 *   trace->lock          the ring of trace events
 * Counters are relaxed atomics; a node's `used` is the one that admits work.
 */
#ifndef HMMFS_CORE_H
#define HMMFS_CORE_H
#include "base/capacity.h"
#include "base/core.h"
#include "base/events.h"
#include "base/fuse.h"
#include "base/page_sets.h"
#include "base/pool.h"
#include "base/published.h"
#include "base/region.h"
#include "base/times.h"
#include "books/cost.h"
#include "books/counters.h"
#include "books/trace.h"
#include "include/hmmfs.h"
#include "base/pause.h"
#include "base/step.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>
#include <sys/uio.h>
#include <time.h>

#define HM_INLINE_PAGES 16 /* a copy of 64 KiB takes some 25 us: the most a stripe is held for */
#define HM_DIRECTORY_HEADER                                                                        \
    (1ULL << 21) /* version, then from 4096 on the bitmap of touched blocks */
#define HM_DIRECTORY_BYTES (HM_DIRECTORY_HEADER + HM_MAX_BLOCKS * sizeof(struct hm_block))
#define HM_SPARES 1024     /* requests that can be parked without memory */
#define HM_RECALL_ROUNDS 4 /* over all pages at once, then one page at a time */
#define HM_RECALL_TRIES 256
#define HM_RECALL_TRIES_A_PAGE 8 /* on top, for each page that has to be recalled by itself */
#define HM_MAX_WRITE (1u << 20)
#define HM_REQUEST_BYTES (HM_MAX_WRITE + 4096)
#define HM_ZERO_BYTES HM_BLOCK_BYTES

_Static_assert(sizeof(struct hm_block) == 1024, "four records a page of the directory");

/* ---- stripes ------------------------------------------------------------------------------ */

enum hm_wait { HM_WAIT_BUSY, HM_WAIT_SERVICE }; /* for a transaction's end; for a decision */

struct hm_parked {
    struct hm_parked *next;
    struct hm_request request;
    uint64_t block;
    enum hm_wait wait;
    uint8_t data[];
};

struct hm_queued_job {
    struct hm_queued_job *next;
    struct hm_job job;
};

struct hm_window {
    uint64_t ino, address, bytes;
    /* Pages below `discard` that the worker has not had since that was said need not be copied to
     * it; `had` has a bit for each (a page written, evicted and touched again holds the kernel's
     * own bytes). The words of a block change with the block busy; NULL: nothing is discarded. */
    uint64_t discard;
    uint64_t *had;
    /* Pages that the worker was asked to map from afar, a bit for each; atomic. They don't come to
     * the device by its faults while they are: it would go on to use them on the host. */
    uint64_t *afar;
};

/* The worker of a device, while there is one. */
struct hm_device {
    struct hm_core *core;
    pthread_rwlock_t lock;   /* guards uffd and windows; held across ioctls that wait for nobody */
    int uffd;                /* -1: no worker */
    int afar;                /* the socket to its helper; -1: it has none */
    _Atomic uint32_t worker; /* workers attached so far; written with the lock, before a thread of
                                the new one is there */
    _Atomic bool reaches;    /* whether any window has pages mapped from afar */
    int stop_fd;
    pthread_t thread;
    struct hm_window *windows;
    uint32_t windows_used;
};

struct hm_gate_thread {
    struct hm_core *core;
    pthread_t thread;
    uint8_t *pages;   /* for a request, with a page before it */
    hm_counter floor; /* what it reads next was queued after all WRITEs up to this one */
};

/* Whether pages of the mask are frozen: a READ of them waits for the transaction's end. */
static inline bool hm_frozen(const struct hm_stripe *stripe, uint64_t ino, uint64_t block,
                             const struct hm_block *record, const struct hm_mask *mask)
{
    if (record->state == HM_FROZEN)
        return true;
    return stripe->frozen_ino == ino && stripe->frozen_block == block &&
           hm_any(stripe->frozen.word, mask->word);
}

bool hm_region_is_touched(struct hm_region *region, uint64_t block); /* directory.c */
/* The first touched block at or after from; HM_MAX_BLOCKS when there is none. */
uint64_t hm_next_touched(struct hm_region *region, uint64_t from);
/* directory.c: called with the block's stripe held */
struct hm_mask hm_owned(const struct hm_block *block,
                        uint32_t node);                        /* pages that are the node's */
void hm_block_touch(struct hm_region *region, uint64_t block); /* mark and list it */
/* Host pages that it holds. A program's own memory is not charged, nor what is taken from it. */
uint32_t hm_block_charge(const struct hm_region *region, const struct hm_block *block);
void hm_unlist(struct hm_region *region); /* needs no stripe */
bool hm_block_empty(const struct hm_block *block);
/* Forget the pages of the mask, punch them everywhere, give their room back; bumps generation. */
int hm_block_cut(struct hm_region *region, uint64_t block, const struct hm_mask *mask,
                 bool forget_cached);
void hm_block_pages(struct hm_region *region, struct hm_block *record, uint32_t node, int64_t by);
/* The same for pages that come out of nothing. */
void hm_block_populate(struct hm_region *region, struct hm_block *record, uint32_t node,
                       uint32_t pages);

/* access.c: a READ or WRITE, from the gate or replayed; answers it, parks it or refuses it */
void hm_access(struct hm_core *core, const struct hm_request *request);
/* A user without privileges changes a file's bytes: its set-user-ID bits go, as on any file system.
 * The kernel flags a WRITE for that (CAP_FSETID); for fallocate and copy_file_range it tells only
 * who the user is. */
void hm_drop_privileges(struct hm_region_record *record);
void hm_replay(struct hm_region *region, uint64_t block);
/* What is parked on pages that are about to be recalled: it would hold up the kernel. Called with
 * the stripe held; true: there was something, and the stripe was dropped meanwhile. */
bool hm_replay_pages(struct hm_region *region, uint64_t block, const struct hm_mask *mask);
/* Answer what is parked on a block with an error: for HM_JOB_FAIL, and at the end of the core. */
void hm_fail_parked(struct hm_region *region, uint64_t block, int error);

/* process.c: what a region has of a program; anonymous.c's are in process.h */
void hm_process_deinit(struct hm_region *region);
/* What is to be punched late goes now: a worker is about to have a window on it, say. */
void hm_process_punch(struct hm_region *region);

/* advice.c: what was said of the pages of a block, as `node` has to see it */
struct hm_advised {
    struct hm_mask read_mostly, pinned, no_migrate;
    struct hm_mask here;      /* preferred location: the node */
    struct hm_mask at_host;   /* preferred location: the host */
    struct hm_mask elsewhere; /* preferred location: another device */
    struct hm_mask mapped;    /* accessed by the node */
};
/* False: nothing was said of the block, and `out` is empty. */
bool hm_advised(struct hm_region *region, uint64_t block, uint32_t node, struct hm_advised *out);
/* The window of a fault where a granularity was said for the pages touched; else as it is. */
void hm_advised_window(struct hm_region *region, uint64_t block, const struct hm_mask *touched,
                       struct hm_mask *window);
/* Pages that stay where they are. */
struct hm_mask hm_pinned(struct hm_region *region, uint64_t block);
void hm_advice_free(struct hm_region *region);

/* placement.c: where a device's access to pages finds them */
struct hm_placement {
    struct hm_mask bring;  /* on the device */
    struct hm_mask afar;   /* on the host, where the device reaches them */
    struct hm_mask refuse; /* nowhere: they are pinned to another node */
};
/* With the stripe held. count: these are touches, which a policy may count. left: what a policy in
 * Python leaves where it is; NULL: it was not asked. */
struct hm_placement hm_place(struct hm_region *region, uint64_t block, uint32_t node,
                             const struct hm_mask *mask, bool count, const uint64_t *left);
/* Of the 64 KiB around pages that are reached from afar, what is mapped with them. */
struct hm_mask hm_afar_window(struct hm_region *region, uint64_t block, uint32_t node,
                              const struct hm_mask *afar);
/* What is remembered of a block, made at first use; with the stripe held. NULL: no memory. */
struct hm_history {
    struct hm_history *next;                              /* of the region's */
    uint16_t accesses[HM_MAX_NODES][HM_BLOCK_PAGES / 16]; /* from afar, by 64 KiB */
    /* thrash.c: who last moved pages here by a fault, when; since when it thrashes, or 0 */
    uint64_t last, last_thrashing;
    uint32_t last_processor, resets, pins;
    struct hm_thrashing_page *pages; /* NULL: only one processor did, or seldom */
};
struct hm_history *hm_history(struct hm_region *region, uint64_t block);
void hm_history_free(struct hm_region *region);

/* thrash.c, with the stripe held. Pages moved to the node, by its fault or because somebody asked.
 */
void hm_thrash_note(struct hm_region *region, uint64_t block, uint32_t node,
                    const struct hm_mask *moved, bool by_fault);
/* The node has a fault on the pages. It may have to wait, which takes simulated time, and pages may
 * be pinned. */
void hm_thrash_fault(struct hm_region *region, uint64_t block, uint32_t node,
                     const struct hm_mask *touched);
/* The pages of the mask that are pinned to the host. */
struct hm_mask hm_thrash_is_pinned(struct hm_region *region, uint64_t block,
                                   const struct hm_mask *mask);
void hm_thrash_free(struct hm_history *history);

/* copies.c, with the stripe held: the pages of a block of which a node has a copy */
struct hm_mask hm_copies_on(const struct hm_region *region, uint64_t block, uint32_t node);
void hm_copies_set(struct hm_region *region, uint64_t block, uint32_t node,
                   const struct hm_mask *mask, bool there);
/* End the copies of the pages: on one device, or with HM_HOST on all. Returns how many. */
uint32_t hm_collapse(struct hm_region *region, uint64_t block, const struct hm_mask *mask,
                     uint32_t only);
void hm_collapse_all(struct hm_region *region); /* takes the stripes itself */

/* labels.c, with the stripe held. Whether the region's pages on the node are the host's, with a
 * label. */
bool hm_labels(const struct hm_region *region, uint32_t node);
struct hm_mask hm_labels_on(const struct hm_region *region, uint64_t block, uint32_t node);
struct hm_mask hm_said_on(struct hm_region *region, uint64_t block, uint32_t node); /* or owned */
uint32_t hm_labelled(const struct hm_region *region, uint64_t block); /* pages, on any device */
/* The pages that have a label, of any device. */
struct hm_mask hm_all_labels(const struct hm_region *region, uint64_t block);
/* Take all labels off. Returns how many; `of` gets them by device, whose room for them stays taken
 * until hm_release_labels: the host's pool holds the pages, and the host may have no room left. */
uint32_t hm_unlabel(struct hm_region *region, uint64_t block, const struct hm_mask *mask,
                    uint32_t of[HM_MAX_NODES]);
void hm_release_labels(struct hm_core *core, const uint32_t of[HM_MAX_NODES]);

/* spares.c: a place for a request, with its bytes in `data`; NULL: no memory. */
struct hm_parked *hm_aside(struct hm_core *core, const struct hm_request *request);
void hm_unparked(struct hm_core *core, struct hm_parked *parked); /* it is over: free it */
int hm_spares_init(struct hm_core *core);                         /* -ENOMEM */
void hm_spares_deinit(struct hm_core *core);

/* prefetch.c */
struct hm_mask hm_prefetch_window(const struct hm_prefetch *policy, const struct hm_mask *resident,
                                  const struct hm_mask *touched, const struct hm_mask *inside,
                                  uint32_t faults, struct hm_stride *stride);
/* shared.c */
int hm_shared_init(struct hm_region *region);
void hm_shared_deinit(struct hm_region *region);
int hm_shared_resize(struct hm_region *region, uint64_t size);
int hm_shared_resize_locked(struct hm_region *region, uint64_t size); /* with shared_lock */
int hm_shared_backing(struct hm_region *region); /* the kernel's number for its memfd, or -errno */
/* shared_access.c: what the kernel does not pass through; answers the request */
void hm_shared_access(struct hm_core *core, const struct hm_request *request, bool write);
void hm_shared_copy(struct hm_core *core, const struct hm_request *request);
/* extent.c: cut [start, end) bytes out of the directory, all of it, also where a block can't be
 * cut: the first error */
int hm_cut_range(struct hm_region *region, uint64_t start, uint64_t end, bool forget_cached);

/* order.c: called with the stripe held, but the first */
void hm_order_read(struct hm_core *core, uint64_t unique); /* a WRITE was read from /dev/fuse */
/* The pages of the mask that a newer WRITE than `unique` has written. */
struct hm_mask hm_order_overtaken(struct hm_stripe *stripe, uint64_t ino, uint64_t block,
                                  const struct hm_mask *mask, uint64_t unique);
/* This WRITE is admitted and covers the pages of `whole` from end to end. -ENOMEM. */
int hm_order_remember(struct hm_core *core, struct hm_stripe *stripe, uint64_t ino, uint64_t block,
                      const struct hm_mask *whole, uint64_t unique);
void hm_order_free(struct hm_stripe *stripe);

/* extent.c: zero [from, to) of one page in every copy of it; the stripe is held */
int hm_zero_part(struct hm_region *region, uint64_t from, uint64_t to);

int hm_movers_start(struct hm_core *core); /* movers.c, with the next two */
void hm_movers_stop(struct hm_core *core);
/* hm_submit without memory to ask for: a job that was deferred is not lost. */
void hm_queue(struct hm_core *core, struct hm_queued_job *queued);
enum hm_room { HM_ROOM, HM_ROOM_STAGING, HM_ROOM_ALWAYS };

/* Bring device-owned pages home at once: the block is stable and not busy, or in a recall, whose
 * transaction plans only after it. The stripe is held throughout. With their bytes, also where a
 * WRITE is about to replace them: until it has, they are read, and it may fail yet. -ENOSPC:
 * nothing changed. */
int hm_bring_home(struct hm_region *region, uint64_t block, const struct hm_mask *mask,
                  enum hm_room room);
/* Nothing has to wait for the block's transaction any more, FALLOCATE included. */
void hm_thaw(struct hm_block *record, struct hm_stripe *stripe);

/* uffd.c: what the node's worker may do with pages of a block, which it maps or not. Called with
 * the stripe held or the block busy; 0, or -errno if the kernel refused. */
int hm_devices_init(struct hm_core *core); /* -ENOMEM */
void hm_devices_deinit(struct hm_core *core);
int hm_window_protect(struct hm_region *region, uint32_t node, uint64_t block,
                      const struct hm_mask *mask); /* a store is a fault */
int hm_window_let_store(struct hm_region *region, uint32_t node, uint64_t block,
                        const struct hm_mask *mask);
int hm_window_wake(struct hm_region *region, uint32_t node, uint64_t block,
                   const struct hm_mask *mask);
/* Give the worker pages that its pool has not, write-protected: one call instead of a protection
 * and a copy into the pool. -ESRCH: there is no window, or no worker any more; any other error
 * leaves part of it done, as a copy does. */
int hm_window_copy(struct hm_region *region, uint32_t node, uint64_t block, uint32_t first,
                   uint32_t count, const void *from);
/* Have the worker map pages from afar and wake who waits for them. -EBUSY: later. -ENOTCONN: it
 * can't. -ESRCH: it is not the worker of that number any more. Waits for nobody; called without a
 * stripe and with no block busy. */
int hm_window_map_afar(struct hm_region *region, uint32_t node, uint64_t block,
                       const struct hm_mask *mask, uint32_t worker);
/* The pages of the block that the worker has been asked to map. */
struct hm_mask hm_window_afar(struct hm_region *region, uint32_t node, uint64_t block);
/* The pages of the block that may come as zeros; and that these are there now. */
struct hm_mask hm_window_discards(struct hm_region *region, uint32_t node, uint64_t block);
void hm_window_had(struct hm_region *region, uint32_t node, uint64_t block,
                   const struct hm_mask *mask);

/* jobs.c: run a job; whether it has ended. One that waits for its block runs when that is
 * free. */
bool hm_run(struct hm_core *core, struct hm_queued_job *queued);
/* Carry out a TOUCH on the calling thread if that waits for nobody and copies
 * little. False: it is for a mover. */
bool hm_touch_now(struct hm_core *core, const struct hm_job *job);
/* Have the service deal with a worker's faults: see HM_EVENT_TOUCH. */
void hm_touch_report(struct hm_core *core, const struct hm_job *job, int result, uint32_t need);

/* relay.c */
int hm_relay_start(struct hm_core *core, int fd, struct hm_relay **ret);
void hm_relay_stop(struct hm_relay *relay);
void hm_relay_send(struct hm_relay *relay, uint8_t *message, size_t length);
void hm_relay_interrupt(struct hm_relay *relay, uint64_t target);

#endif
