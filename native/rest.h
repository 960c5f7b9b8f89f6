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
#include "directory/copies.h"
#include "directory/cut.h"
#include "directory/labels.h"
#include "directory/records.h"
#include "directory/shared_size.h"
#include "directory/windows.h"
#include "rules/advice.h"
#include "rules/history.h"
#include "rules/placement.h"
#include "rules/prefetch.h"
#include "rules/thrash.h"
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
#define HM_SPARES 1024     /* requests that can be parked without memory */
#define HM_RECALL_ROUNDS 4 /* over all pages at once, then one page at a time */
#define HM_RECALL_TRIES 256
#define HM_RECALL_TRIES_A_PAGE 8 /* on top, for each page that has to be recalled by itself */
#define HM_MAX_WRITE (1u << 20)
#define HM_REQUEST_BYTES (HM_MAX_WRITE + 4096)
#define HM_ZERO_BYTES HM_BLOCK_BYTES

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

/* spares.c: a place for a request, with its bytes in `data`; NULL: no memory. */
struct hm_parked *hm_aside(struct hm_core *core, const struct hm_request *request);
void hm_unparked(struct hm_core *core, struct hm_parked *parked); /* it is over: free it */
int hm_spares_init(struct hm_core *core);                         /* -ENOMEM */
void hm_spares_deinit(struct hm_core *core);

/* shared_access.c: what the kernel does not pass through; answers the request */
void hm_shared_access(struct hm_core *core, const struct hm_request *request, bool write);
void hm_shared_copy(struct hm_core *core, const struct hm_request *request);
/* order.c: called with the stripe held, but the first */
void hm_order_read(struct hm_core *core, uint64_t unique); /* a WRITE was read from /dev/fuse */
/* The pages of the mask that a newer WRITE than `unique` has written. */
struct hm_mask hm_order_overtaken(struct hm_stripe *stripe, uint64_t ino, uint64_t block,
                                  const struct hm_mask *mask, uint64_t unique);
/* This WRITE is admitted and covers the pages of `whole` from end to end. -ENOMEM. */
int hm_order_remember(struct hm_core *core, struct hm_stripe *stripe, uint64_t ino, uint64_t block,
                      const struct hm_mask *whole, uint64_t unique);
void hm_order_free(struct hm_stripe *stripe);

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
