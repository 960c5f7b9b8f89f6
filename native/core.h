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
#include "include/hmmfs.h"
#include "pause.h"
#include "step.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>
#include <sys/uio.h>
#include <time.h>

#define HM_STRIPES 512
#define HM_INLINE_PAGES 16 /* a copy of 64 KiB takes some 25 us: the most a stripe is held for */
#define HM_MAX_BYTES (1ULL << 44)
#define HM_BLOCK_BYTES ((uint64_t)HM_BLOCK_PAGES * HM_PAGE_SIZE)
#define HM_MAX_BLOCKS (HM_MAX_BYTES / HM_BLOCK_BYTES)
#define HM_CHUNK_BYTES (1ULL << 30)
#define HM_CHUNKS (HM_MAX_BYTES / HM_CHUNK_BYTES)
#define HM_DIRECTORY_HEADER                                                                        \
    (1ULL << 21) /* version, then from 4096 on the bitmap of touched blocks */
#define HM_DIRECTORY_BYTES (HM_DIRECTORY_HEADER + HM_MAX_BLOCKS * sizeof(struct hm_block))
#define HM_DIRECTORY_MAGIC 0x31726964736d6d68ULL /* "hmmsdir1" */
#define HM_MAX_REGIONS 8192                      /* each takes 8 GiB of address space */
#define HM_REGION_BUCKETS 1024
#define HM_MAX_MOVERS 64
#define HM_EVENTS                                                                                  \
    (1u << 18)             /* 56 MiB of address space, and memory for the most that ever waited    \
                            */
#define HM_SPARES 1024     /* requests that can be parked without memory */
#define HM_RECALL_ROUNDS 4 /* over all pages at once, then one page at a time */
#define HM_RECALL_TRIES 256
#define HM_RECALL_TRIES_A_PAGE 8 /* on top, for each page that has to be recalled by itself */
#define HM_MAX_WRITE (1u << 20)
#define HM_REQUEST_BYTES (HM_MAX_WRITE + 4096)
#define HM_ZERO_BYTES HM_BLOCK_BYTES

_Static_assert(sizeof(struct hm_block) == 1024, "four records a page of the directory");
_Static_assert(sizeof(struct hm_region_record) == 528, "the layout a successor reads");

typedef _Atomic uint64_t hm_counter;

static inline void hm_count(hm_counter *counter, uint64_t by)
{
    atomic_fetch_add_explicit(counter, by, memory_order_relaxed);
}

/* ---- a set of the pages of one block ------------------------------------------------------ */

struct hm_mask {
    uint64_t word[HM_WORDS];
};

/* Of a block, a mask for each node; and the table of these by block, NULL until first used. */
struct hm_side {
    uint64_t on[HM_MAX_NODES][HM_WORDS];
};
typedef _Atomic(struct hm_side *) hm_side_table;

static inline struct hm_mask hm_mask_range(uint32_t first, uint32_t count)
{
    struct hm_mask mask = {{0}};
    for (uint32_t w = first / 64; count && w < HM_WORDS; w++) {
        uint32_t low = first % 64, n = count < 64 - low ? count : 64 - low;
        mask.word[w] = (n == 64 ? ~0ULL : ((1ULL << n) - 1)) << low;
        first += n;
        count -= n;
    }
    return mask;
}

/* The set bits of a word. Not the builtin: without -mpopcnt that is a call for each word. */
static inline uint32_t hm_popcount(uint64_t x)
{
    x -= x >> 1 & 0x5555555555555555u;
    x = (x & 0x3333333333333333u) + (x >> 2 & 0x3333333333333333u);
    x = (x + (x >> 4)) & 0x0f0f0f0f0f0f0f0fu;
    return (uint32_t)(x * 0x0101010101010101u >> 56);
}

static inline uint32_t hm_bits(const uint64_t *words)
{
    uint32_t n = 0;
    for (int w = 0; w < HM_WORDS; w++)
        n += words[w] ? hm_popcount(words[w]) : 0;
    return n;
}

static inline bool hm_any(const uint64_t *a, const uint64_t *b)
{
    uint64_t any = 0;
    for (int w = 0; w < HM_WORDS; w++)
        any |= a[w] & b[w];
    return any != 0;
}

static inline bool hm_test(const uint64_t *words, uint32_t page)
{
    return words[page / 64] >> (page % 64) & 1;
}

/* The next run of set bits at or after *first: false when there is none. */
bool hm_next_run(const uint64_t *words, uint32_t *first, uint32_t *count);

#define HM_EACH_WORD(w) for (int w = 0; w < HM_WORDS; w++)

/* The pages of a mask, ascending. Most masks of a fault have one page of 512. */
#define HM_EACH_PAGE(page, words)                                                                  \
    for (uint32_t page = hm_next_page((words), 0); page < HM_BLOCK_PAGES;                          \
         page = hm_next_page((words), page + 1))

static inline uint32_t hm_next_page(const uint64_t *words, uint32_t page)
{
    for (uint32_t w = page / 64; w < HM_WORDS; w++, page = w * 64) {
        uint64_t left = words[w] >> (page % 64);
        if (left)
            return page + (uint32_t)__builtin_ctzll(left);
    }
    return HM_BLOCK_PAGES;
}

/* ---- pools -------------------------------------------------------------------------------- */

/* A region's bytes on one node: a memfd with the region's own offsets, as long as the largest
 * region and never shortened (punched only), mapped 1 GiB at a time when first touched. */
struct hm_pool {
    _Atomic int fd; /* -1 until first use */
    _Atomic(uint8_t *) *chunks;
    _Atomic uint64_t chunks_end; /* no chunk is mapped from here on */
    _Atomic uint64_t unpunched;  /* punches that the kernel refused */
};

int hm_pool_open(struct hm_pool *pool, const char *name);
void hm_pool_close(struct hm_pool *pool);
/* The mapping of [offset, offset+length), which lies in one block. NULL: no address space. */
uint8_t *hm_pool_map(struct hm_pool *pool, uint64_t offset);
/* A memfd refuses no punch, so an error is not undone anywhere: it goes to whoever asked for the
 * hole, and the audit tells that the pool holds what nobody owns. */
int hm_pool_punch(struct hm_pool *pool, uint64_t offset, uint64_t length);
int hm_pool_write(struct hm_pool *pool, uint64_t offset, const void *bytes, size_t length);
/* Read bytes of one page where they can't be mapped, and say in iov where they are now. */
int hm_pool_read(struct hm_pool *pool, uint64_t offset, void *bytes, size_t length,
                 struct iovec *iov);
/* hm_pool_write for pages that are there, in one block; it also works if they are punched
 * meanwhile. */
int hm_pool_store(struct hm_pool *pool, uint64_t offset, const void *bytes, size_t length);
/* Give holes pages of zeros. */
int hm_pool_zero(struct hm_pool *pool, uint64_t offset, uint64_t length);
int hm_pool_copy(struct hm_pool *to, struct hm_pool *from, uint64_t offset, size_t length);
uint64_t hm_pool_allocated(struct hm_pool *pool); /* pages */
bool hm_pool_is_hole(const struct hm_pool *pool, uint64_t offset);
uint64_t hm_pool_length(struct hm_pool *pool); /* bytes */
/* Address space that reads as zeros and takes memory where it is written; NULL: there is none. */
void *hm_reserve_memory(size_t bytes);
void hm_free_memory(void *memory, size_t bytes);

/* ---- regions ------------------------------------------------------------------------------ */

struct hm_region {
    struct hm_core *core;                  /* its windows: see uffd.c */
    _Atomic uint64_t window[HM_MAX_NODES]; /* where the node's worker maps it; 0: it does not */
    struct hm_region *next;                /* in its bucket */
    _Atomic uint32_t refs;
    uint64_t ino;
    uint32_t index; /* of its record */
    struct hm_region_record *record;
    int directory_fd;
    uint8_t *directory;
    uint64_t *touched; /* bitmap of blocks with a record */
    struct hm_block *blocks;
    enum hm_kind kind;
    uint32_t dax_node; /* DAX: the device that its pages are on; 0: it has had none */
    struct hm_numa {
        uint32_t mode, nodes;    /* enum hm_numa_mode; by node */
    } numa;                      /* coherent: where new pages are said to be; with shared_lock */
    int backing_id;              /* shared: what the kernel calls its memfd; 0: nothing yet */
    pthread_mutex_t shared_lock; /* shared: its size, and writes to it from here; then a stripe */
    _Atomic uint32_t writers;    /* files open for writing, and HM_COPIES_ENDED */
    hm_side_table copies;        /* NULL: nothing was ever read-mostly */
    hm_side_table labels;        /* NULL: no page was ever labelled */
    _Atomic(struct hm_process *) process; /* whose own memory this is; NULL: it is a file's */
    pthread_mutex_t pools_lock;           /* guards the making of a pool; reading one needs none */
    _Atomic uint32_t advised; /* ranges in `advice` that say more than what was prefetched */
    pthread_rwlock_t advice_lock;
    _Atomic(struct hm_history **) history; /* by block; NULL: nothing is remembered */
    struct hm_history *histories;          /* all there are; guarded by pools_lock */
    struct hm_advice *advice;              /* sorted by first, disjoint, none that says nothing */
    uint32_t advice_used;
    struct hm_pool pools[HM_MAX_NODES];
    _Atomic bool untraced; /* a filter leaves its events out */
    struct hm_region_accounts {
        hm_counter faults[HM_MAX_NODES][10];
        hm_counter evicted[HM_MAX_NODES], refaulted[HM_MAX_NODES], thrashed[HM_MAX_NODES];
        hm_counter shared[HM_MAX_NODES], refaulted_at[HM_MAX_NODES], shared_at[HM_MAX_NODES];
    } accounts; /* struct hm_region_flows */
};

/* Bit of `writers`: no page that the page cache may have has copies. Set and cleared in copies.c.
 */
#define HM_COPIES_ENDED (1u << 31)

/* Coherent and DAX regions: see shared.c. */
static inline bool hm_is_shared(const struct hm_region *region)
{
    return region->kind != HM_KIND_PRIVATE;
}

struct hm_region *hm_region_get(struct hm_core *core, uint64_t ino);
void hm_region_put(struct hm_region *region);
bool hm_region_is_touched(struct hm_region *region, uint64_t block);
/* times.c. Its bytes changed now (or, without `bytes`, only what is known of it): mtime and ctime.
 */
void hm_region_changed(struct hm_region *region, bool bytes);
void hm_times_begin(struct hm_region_record *record);
struct stat;
void hm_times_copy(struct hm_region *region,
                   const struct stat *status);                        /* of a shared one's memfd */
static inline uint64_t hm_region_size(const struct hm_region *region) /* bytes */
{
    return __atomic_load_n(&region->record->size, __ATOMIC_ACQUIRE);
}

static inline uint64_t hm_region_pages(const struct hm_region *region, uint32_t node)
{
    return __atomic_load_n(&region->record->pages[node], __ATOMIC_RELAXED);
}

/* The pool of a node, made at first use; NULL with errno when it can't be. */
struct hm_pool *hm_region_pool(struct hm_region *region, uint32_t node);

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
    hm_counter used, peak, pages_in, pages_out, copies_made, copies_saved;
    hm_counter populated_pages, dropped_pages, shared_pages;
    hm_counter evicted_blocks, evicted_pages, faults, fault_batches, operations, mapped_pages;
    hm_counter refaulted_pages, thrashed_pages;
    hm_counter fault_ns, copy_in_ns, copy_out_ns;
    hm_counter copies_begun, copies_ended, labelled;
    hm_counter thrashing_pages, throttles, thrash_pins, throttle_ns;
    uint64_t capacity;
    _Atomic bool excluded; /* nothing comes here that could be elsewhere */
    hm_counter
        watermark;       /* free pages below which the service is told; 0: it is not, or has been */
    uint32_t fault_cost; /* ns of one; written before there is anything to charge */
};

struct hm_counters {
    hm_counter reads, writes, read_bytes, written_bytes, express_faults, service_faults;
    hm_counter parked, replayed, readahead_refused, no_room, recalls, recall_retries;
    hm_counter recalled_pages, recalls_failed, migrations, migrations_discarded;
    hm_counter stale_writes_skipped, relayed, relay_queued, interrupts, jobs;
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

#define HM_TRACE_NAMES 4096 /* inode numbers are given out one after the other */

/* trace.c */
struct hm_trace {
    pthread_mutex_t lock; /* guards the ring, its size, head, floor and whether somebody is to be
                             woken; the last lock that a thread takes but for events_lock */
    struct hm_trace_event *ring;
    uint32_t size;         /* a power of two, or 0 */
    uint64_t head, floor;  /* numbers of the next event, and of the oldest that may be read */
    bool wake;             /* HM_EVENT_TRACE is to be sent with the next event */
    _Atomic uint32_t mask; /* of kinds; 0 while there is no ring */
    uint32_t kinds;
    struct hm_trace_name *gone[HM_TRACE_NAMES]; /* of regions that went, by inode number */
};

struct hm_listed {
    struct hm_region *region;
    uint64_t block;
};

struct hm_relay;

struct hm_gate_thread {
    struct hm_core *core;
    pthread_t thread;
    uint8_t *pages;   /* for a request, with a page before it */
    hm_counter floor; /* what it reads next was queued after all WRITEs up to this one */
};

struct hm_core {
    struct hm_config config;
    struct hm_node nodes[HM_MAX_NODES];
    /* By pair of nodes, [one][two] and [two][one] the same 513 numbers, owned by the core; NULL:
     * no link. Written before there is anything to charge, so read without a lock. */
    uint32_t *links[HM_MAX_NODES][HM_MAX_NODES];
    struct hm_device *device; /* by node; the host's is not used */
    struct hm_counters count;
    struct hm_core_flows {
        hm_counter moved[HM_MAX_NODES][HM_MAX_NODES], carried[HM_MAX_NODES][HM_MAX_NODES];
        hm_counter linked[HM_MAX_NODES][HM_MAX_NODES], copies[HM_MAX_NODES][HM_MAX_NODES];
        hm_counter link_ns[HM_MAX_NODES][HM_MAX_NODES];
        hm_counter in[HM_MAX_NODES][6], out[HM_MAX_NODES][6], faults[HM_MAX_NODES][10];
    } flows; /* struct hm_flows */
    struct hm_trace *trace;
    hm_counter ticks; /* of hm_tick */
    _Atomic(const struct hm_prefetch *) prefetch[HM_MAX_NODES];
    _Atomic(const struct hm_thrashing *) thrashing; /* NULL: nothing does */
    hm_counter clock;                               /* ns of simulated time, all that was charged */
    _Atomic uint32_t placement[HM_MAX_NODES];       /* the kind, and from bit 8 on the threshold */
    struct hm_published *_Atomic published;
    const uint8_t *zeros; /* HM_ZERO_BYTES that read as zeros */

    pthread_rwlock_t regions_lock;
    struct hm_region *buckets[HM_REGION_BUCKETS];
    int table_fd;
    struct hm_region_record *table;
    uint32_t table_used; /* records ever used; guarded by regions_lock */
    hm_counter regions;
    hm_counter dying; /* regions that nobody finds any more and whose pages still go */

    struct hm_stripe stripes[HM_STRIPES];

    pthread_mutex_t list_lock; /* guards list, list_used, list_room and each record's slot */
    struct hm_listed *list;
    uint32_t list_used, list_room;

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
    pthread_mutex_t spares_lock; /* guards the list; taken last */
    struct hm_parked *spares;    /* for READs, whose program would get SIGBUS without memory */
    struct hm_parked *all_spares;
    hm_counter written_up_to; /* the newest WRITE read from /dev/fuse */
    hm_counter parked_writes; /* parked, or taken from there and not carried out yet */
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

/* trace.c. Whether to make the effort of an event. */
static inline bool hm_traced(const struct hm_region *region, enum hm_trace_kind kind)
{
    return atomic_load_explicit(&region->core->trace->mask, memory_order_relaxed) >> kind & 1 &&
           !atomic_load_explicit(&region->untraced, memory_order_relaxed);
}
#define HM_NOWHERE 255 /* where an event names no node */
/* The pages of a mask, from the first to the last of them. Nothing for an empty mask. */
void hm_trace(struct hm_region *region, uint64_t block, const struct hm_mask *mask,
              struct hm_trace_event event);
/* A program's fault, which the host serves: that it began, or that it has ended. */
void hm_trace_cpu_fault(struct hm_region *region, uint64_t block, const struct hm_mask *mask,
                        bool write, uint64_t began, bool ended);
void hm_trace_gone(struct hm_region *region); /* remember what it was called */
int hm_trace_init(struct hm_core *core);      /* -ENOMEM */
void hm_trace_deinit(struct hm_core *core);

/* account.c */
void hm_count_moved(struct hm_core *core, uint32_t from, uint32_t to, uint32_t pages,
                    enum hm_trigger trigger);
void hm_count_faults(struct hm_region *region, uint32_t node, enum hm_fault_count what,
                     uint32_t faults);

static inline struct hm_stripe *hm_stripe_of(struct hm_core *core, uint64_t ino, uint64_t block)
{
    uint64_t key = (ino * 0x9e3779b97f4a7c15ULL) ^ (block * 0xc2b2ae3d27d4eb4fULL);
    return &core->stripes[(key >> 40) % HM_STRIPES];
}

/* Whether pages of the mask are frozen: a READ of them waits for the transaction's end. */
static inline bool hm_frozen(const struct hm_stripe *stripe, uint64_t ino, uint64_t block,
                             const struct hm_block *record, const struct hm_mask *mask)
{
    if (record->state == HM_FROZEN)
        return true;
    return stripe->frozen_ino == ino && stripe->frozen_block == block &&
           hm_any(stripe->frozen.word, mask->word);
}

/* directory.c: called with the block's stripe held */
struct hm_mask hm_owned(const struct hm_block *block,
                        uint32_t node); /* pages that are the node's */
static inline struct hm_mask hm_both(const struct hm_mask *one, const struct hm_mask *two)
{
    struct hm_mask mask;
    HM_EACH_WORD (w)
        mask.word[w] = one->word[w] & two->word[w];
    return mask;
}

static inline void hm_set(struct hm_mask *mask, uint32_t page)
{
    mask->word[page / 64] |= 1ULL << (page % 64);
}

/* One mask without the pages of another. */
static inline struct hm_mask hm_without(struct hm_mask mask, const struct hm_mask *other)
{
    HM_EACH_WORD (w)
        mask.word[w] &= ~other->word[w];
    return mask;
}
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

/* cost.c: each returns the ns charged. Charge the simulated clock, and the links, for copies to
 * `to` by owners before it (hm_carried of account.c is who calls it), and for faults that brought
 * pages to a node. */
uint64_t hm_charge_copies(struct hm_core *core, uint32_t from, uint32_t to,
                          const struct hm_mask *copied);
uint64_t hm_charge_faults(struct hm_core *core, uint32_t node, uint32_t faults);
void hm_links_free(struct hm_core *core);

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

/* side.c: made at first use (-ENOMEM), and freed with the region; the rest with the stripe held */
int hm_side_init(struct hm_region *region, hm_side_table *table);
void hm_side_deinit(hm_side_table *table);
struct hm_side *hm_side(const hm_side_table *table, uint64_t block); /* NULL: it was never used */
struct hm_mask hm_side_on(const hm_side_table *table, uint64_t block, uint32_t node);
/* Take pages out of the node's mask; returns those that were in it. */
struct hm_mask hm_side_take(struct hm_side *side, uint32_t node, const struct hm_mask *mask);

/* copies.c, with the stripe held: the pages of a block of which a node has a copy */
struct hm_mask hm_copies_on(const struct hm_region *region, uint64_t block, uint32_t node);
void hm_copies_set(struct hm_region *region, uint64_t block, uint32_t node,
                   const struct hm_mask *mask, bool there);
/* End the copies of the pages: on one device, or with HM_HOST on all. Returns how many. */
uint32_t hm_collapse(struct hm_region *region, uint64_t block, const struct hm_mask *mask,
                     uint32_t only);
void hm_collapse_all(struct hm_region *region); /* takes the stripes itself */
void hm_punch_runs(struct hm_region *region, uint32_t node, uint64_t block, const uint64_t *words);

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
/* A copy of bytes that stays as it is until the core ends: for settings that anybody may be reading
 * while they are replaced. NULL: no memory. */
const void *hm_publish(struct hm_core *core, const void *bytes, size_t size);
void hm_published_free(struct hm_core *core);

/* shared.c */
int hm_shared_init(struct hm_region *region);
void hm_shared_deinit(struct hm_region *region);
int hm_shared_resize(struct hm_region *region, uint64_t size);
int hm_shared_resize_locked(struct hm_region *region, uint64_t size); /* with shared_lock */
int hm_shared_backing(struct hm_region *region); /* the kernel's number for its memfd, or -errno */
/* shared_access.c: what the kernel does not pass through; answers the request */
void hm_shared_access(struct hm_core *core, const struct hm_request *request, bool write);
void hm_shared_copy(struct hm_core *core, const struct hm_request *request);
/* region.c: cut [start, end) bytes, whole pages, out of the directory */
int hm_region_cut(struct hm_region *region, uint64_t start, uint64_t end);

/* order.c: called with the stripe held, but the first */
void hm_order_read(struct hm_core *core, uint64_t unique); /* a WRITE was read from /dev/fuse */
/* The pages of the mask that a newer WRITE than `unique` has written. */
struct hm_mask hm_order_overtaken(struct hm_stripe *stripe, uint64_t ino, uint64_t block,
                                  const struct hm_mask *mask, uint64_t unique);
/* This WRITE is admitted and covers the pages of `whole` from end to end. -ENOMEM. */
int hm_order_remember(struct hm_core *core, struct hm_stripe *stripe, uint64_t ino, uint64_t block,
                      const struct hm_mask *whole, uint64_t unique);
void hm_order_free(struct hm_stripe *stripe);

/* region.c: zero [from, to) of one page in every copy of it; the stripe is held */
int hm_zero_part(struct hm_region *region, uint64_t from, uint64_t to);

/* For readers that do without the stripe: stale numbers cost them time, never a page. */
#define HM_UNLOCKED __attribute__((no_sanitize("thread")))

/* room.c: add to a node's use without asking; for bytes that must not be refused: what the page
 * cache writes back, whose room was taken when it was read */
void hm_reserve_always(struct hm_core *core, uint32_t node, uint64_t pages);

/* transaction.c: the pages of the block before the end of the file. An operation that began before
 * a truncate makes none past it. */
struct hm_mask hm_inside_file(struct hm_region *region, uint64_t block);

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

/* account.c: whether what came, went and is there agrees for a node; `resident` pages are. A
 * sentence in text if not. */
bool hm_books_agree(struct hm_core *core, uint32_t node, uint64_t resident, char *text,
                    size_t size);

/* jobs.c: run a job; whether it has ended. One that waits for its block runs when that is
 * free. */
bool hm_run(struct hm_core *core, struct hm_queued_job *queued);
/* Carry out a TOUCH on the calling thread if that waits for nobody and copies
 * little. False: it is for a mover. */
bool hm_touch_now(struct hm_core *core, const struct hm_job *job);
/* Have the service deal with a worker's faults: see HM_EVENT_TOUCH. */
void hm_touch_report(struct hm_core *core, const struct hm_job *job, int result, uint32_t need);

/* events.c. Loses nothing and needs no memory; -ENOMEM at the start. */
int hm_events_init(struct hm_core *core);
void hm_events_deinit(struct hm_core *core);
void hm_event_push(struct hm_core *core, const struct hm_event *event);

/* gate.c */
void hm_reply(struct hm_core *core, uint64_t unique, int error, struct iovec *iov, int count);
void hm_reply_write(struct hm_core *core, uint64_t unique, uint32_t size);
int hm_invalidate(struct hm_core *core, uint64_t ino, uint64_t offset, uint64_t length);

/* relay.c */
int hm_relay_start(struct hm_core *core, int fd, struct hm_relay **ret);
void hm_relay_stop(struct hm_relay *relay);
void hm_relay_send(struct hm_relay *relay, uint8_t *message, size_t length);
void hm_relay_interrupt(struct hm_relay *relay, uint64_t target);

#endif
