/* The core: what hangs off it, and of the folders above only that they have something. */
#ifndef HMMFS_BASE_CORE_H
#define HMMFS_BASE_CORE_H
#include "base/lock.h"
#include "base/mask.h"

#include <pthread.h>
#include <stdatomic.h>
#include <time.h>

#define HM_STRIPES 512
#define HM_REGION_BUCKETS 1024
#define HM_MAX_MOVERS 64
#define HM_ZERO_BYTES HM_BLOCK_BYTES

/* ---- counters ------------------------------------------------------------------------------- */

/* What people read is counted in the structs of hmmfs.h themselves, so each is declared once: plain
 * words, to which any thread adds atomically and in no order. */
static inline void hm_count(uint64_t *counter, uint64_t by)
{
    __atomic_fetch_add(counter, by, __ATOMIC_RELAXED);
}

static inline uint64_t hm_read(const uint64_t *counter)
{
    return __atomic_load_n(counter, __ATOMIC_RELAXED);
}

/* A counter by which the core decides. */
typedef _Atomic uint64_t hm_counter;

/* For readers that do without the stripe: stale numbers cost them time, never a page. */
#define HM_UNLOCKED __attribute__((no_sanitize("thread")))

struct hm_device;
struct hm_evictors;
struct hm_gate_thread;
struct hm_parked;
struct hm_published;
struct hm_queued_job;
struct hm_region;
struct hm_relay;
struct hm_resident;
struct hm_trace;
struct hm_written;

struct hm_stripe {
    pthread_mutex_t lock;
    pthread_cond_t changed; /* inflight or writing of a block went down, or it is frozen no more */
    struct hm_parked *parked, **parked_end;
    struct hm_queued_job *deferred, **deferred_end;
    struct hm_written *written; /* order.c */
    /* Pages of one contended block that are proven clean while the rest of its recall goes on:
     * READs of them wait already. A WRITE must not: the program may hold the lock of a folio
     * that is still to be invalidated. frozen_ino 0: none. */
    uint64_t frozen_ino, frozen_block;
    struct hm_mask frozen;
#ifdef HM_STEPS
    struct hm_shadow *shadows; /* of the test: its blocks as they were after their last step */
#endif
} __attribute__((aligned(64)));

struct hm_node {
    struct hm_node_stats counts;     /* but for capacity, used and peak: these are here */
    hm_counter used, peak, labelled; /* pages; `used` is what admits work */
    hm_counter watermark;            /* free pages below which the service is told; 0: it is not,
                                        or has been */
    uint64_t capacity;
    _Atomic bool excluded; /* nothing comes here that could be elsewhere */
    uint32_t fault_cost;   /* ns of one; written before there is anything to charge */
};

struct hm_listed {
    struct hm_region *region;
    uint64_t block;
    struct hm_resident *residents; /* of rules/evict.c: one for each device that had some of it */
};

struct hm_core {
    struct hm_config config;
    struct hm_node nodes[HM_MAX_NODES];
    /* By pair of nodes, [one][two] and [two][one] the same 513 numbers, owned by the core; NULL:
     * no link. Written before there is anything to charge, so read without a lock. */
    uint32_t *links[HM_MAX_NODES][HM_MAX_NODES];
    struct hm_device *device; /* by node; the host's is not used */
    struct hm_stats count;    /* what is counted as it happens; clock_ns is the simulated clock */
    struct hm_flows flows;
    struct hm_trace *trace;
    hm_counter ticks;  /* of hm_tick */
    hm_counter advice; /* times that something was said of pages */
    _Atomic(const struct hm_prefetch *) prefetch[HM_MAX_NODES];
    _Atomic(const struct hm_thrashing *) thrashing; /* NULL: nothing does */
    _Atomic uint32_t placement[HM_MAX_NODES];       /* the kind, and from bit 8 on the threshold */
    struct hm_published *_Atomic published;
    const uint8_t *zeros; /* HM_ZERO_BYTES that read as zeros */

    pthread_rwlock_t regions_lock;
    struct hm_region *buckets[HM_REGION_BUCKETS];
    int table_fd;
    struct hm_region_record *table;
    uint32_t table_used; /* records ever used; guarded by regions_lock */
    /* What is below calls what is above by these; they are set when the core is made. */
    bool (*answer)(struct hm_core *core, const struct hm_request *request, struct hm_parked *had,
                   int error);                                       /* gate/access.h */
    bool (*run)(struct hm_core *core, struct hm_queued_job *queued); /* transaction/jobs.h */
    int (*run_now)(struct hm_core *core, const struct hm_job *job, struct hm_event *event);
    void (*region_free)(struct hm_region *region); /* nobody has it any more */
    void (*unlisted)(struct hm_core *core, struct hm_resident *residents); /* rules/evict.h */
    hm_counter dying; /* regions that nobody finds any more and whose pages still go */

    struct hm_stripe stripes[HM_STRIPES];

    pthread_mutex_t list_lock; /* guards list, list_used, list_capacity, kept_at, each record's
                                  slot, and the evictors' orders */
    struct hm_listed *list;
    uint32_t list_used, list_capacity;
    uint32_t kept_at; /* where in the list kept copies are looked for next */
    struct hm_evictors *evictors;
    pthread_mutex_t evict_lock[HM_MAX_NODES]; /* one thread at a time evicts from a device */
    hm_counter evict_waiters;                 /* threads that wait for that, or do it */

    pthread_mutex_t jobs_lock; /* guards the queue and what counts it */
    pthread_cond_t jobs_ready;
    struct hm_queued_job *jobs, **jobs_end;
    pthread_t mover[HM_MAX_MOVERS];
    uint32_t movers, movers_idle, jobs_waiting;
    bool stopping;

    pthread_mutex_t events_lock; /* guards the ring and whether event_fd is signalled */
    struct hm_event *events;     /* HM_EVENTS, address space that is used from the start again */
    uint32_t events_head, events_used;
    int event_fd;

    int fuse_fd; /* -1 before hm_gate_start */
    int stop_fd; /* eventfd: ends threads that poll */
    struct hm_gate_thread *gate;
    uint32_t gate_threads;
    pthread_mutex_t spares_lock; /* guards both lists; taken last */
    struct hm_parked *spares;    /* for READs, whose program would get SIGBUS without memory */
    struct hm_parked *all_spares;
    struct hm_parked *retries; /* gate/retry.h */
    hm_counter written_up_to;  /* the newest WRITE read from /dev/fuse */
    hm_counter parked_writes;  /* parked, or taken from there and not carried out yet */
    _Atomic uint32_t gate_running;
    _Atomic uint32_t invalidating; /* threads that tell the kernel what to drop */
    _Atomic bool leaving;          /* hm_gate_leave: no more of these, then no more requests */
    _Atomic uint32_t spinner;      /* one gate thread spins at a time */
    struct hm_relay *relay;
};

/* The next of the numbers that order accesses and migrations. Not a clock: two runs with one order
 * of accesses evict the same blocks. */
static inline uint64_t hm_tick(struct hm_core *core)
{
    return 1 + atomic_fetch_add_explicit(&core->ticks, 1, memory_order_relaxed);
}

static inline uint64_t hm_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static inline struct hm_stripe *hm_stripe_of(struct hm_core *core, uint64_t ino, uint64_t block)
{
    uint64_t key = (ino * 0x9e3779b97f4a7c15ULL) ^ (block * 0xc2b2ae3d27d4eb4fULL);
    return &core->stripes[(key >> 40) % HM_STRIPES];
}

#endif
