/* The native core of hmmfs: everything Python may call.
 *
 * Read by the C sources and, with preprocessor lines removed, by cffi. Functions return 0 or a
 * count, or -errno. A core may be used from any thread; which lock guards what is said in core.h.
 * Bytes are counted in 4 KiB pages unless a name says otherwise; a block is 512 pages (2 MiB).
 */
#ifndef HMMFS_H
#define HMMFS_H
#include <stddef.h>
#include <stdint.h>

#define HM_PAGE_SIZE 4096
#define HM_BLOCK_PAGES 512
#define HM_WORDS 8
#define HM_MAX_NODES 16
#define HM_NAME_MAX 255
#define HM_SHARING_TURNS 3
#define HM_HOST 0
#define HM_READ_NONBLOCK 62
#define HM_IOCTL_BYTES 64

/* ---- what is where: the layout shared with numpy (version 1, no pointers) ---------------- */

/* What stride detection remembers of a block's faults. */
struct hm_stride {
    uint16_t last; /* 1 + the page last touched or fetched; 0: none */
    int16_t step;  /* from the one before */
};

/* One block of a region; an all-zero record is a block that nobody has touched.
 * present: the page has bytes, in the pool of its owner.  device: the owner is not the host.
 * cached: the CPU's page cache may hold a copy, with stores nobody announced.
 * recalling: was cached when the recall under way began; keeps its host reservation until proof.
 * dirty: written by its owner since the page came to it.
 * kept: the owner is a device and the host's copy is still there and equal.
 * Invariants: device implies present; kept implies device and not dirty;
 * cached or recalling implies not device. */
struct hm_block {
    uint32_t generation; /* bumped by truncate and punch; a migration checks it before the flip */
    uint8_t state;       /* HM_STABLE, HM_RECALL, HM_FROZEN */
    uint8_t busy;        /* a transaction (migration, recall, device operation) holds the block */
    uint8_t writing;     /* a WRITE is being copied into the host pool */
    uint8_t cpu_faults;  /* CPU faults since pages last moved to a device, saturating */
    uint16_t inflight;   /* READs and WRITEs carried out by gate threads outside the lock */
    uint16_t parked;     /* requests that wait for this block */
    uint32_t slot;       /* 1 + index in the core's list of touched blocks, 0: not listed */
    uint64_t last_cpu;   /* when the last READ or WRITE came, by the core's count of such events */
    uint64_t last_device;
    uint64_t last_migrated;
    uint64_t arrived;       /* when a device that had none of it got its first page */
    uint32_t uses;          /* faults and operations of devices since then */
    uint16_t device_faults; /* times a device's worker faulted since it has pages here */
    struct hm_stride stride, cpu_stride; /* of a worker's faults, of the CPU's */
    uint16_t reserved;
    uint16_t pages[16]; /* present pages by owner */
    uint64_t present[8];
    uint64_t device[8];
    uint64_t cached[8];
    uint64_t recalling[8];
    uint64_t dirty[8];
    uint64_t kept[8];
    uint8_t owner[512];
    uint64_t
        evicted; /* 1 + the pages that its device had evicted in all when some of it last were */
    uint32_t cpu_faulted, device_faulted; /* faults on it in all */
    uint32_t evictions;                   /* times that some of it was evicted */
    uint16_t turns; /* times running that a device's fault took back what programs had taken */
    uint8_t huge;   /* of a program: all of it is on one device, as one huge page */
    uint8_t unused[9];
};

enum hm_block_state { HM_STABLE, HM_RECALL, HM_FROZEN };

/* What a successor of this daemon needs to know of a region; times in ns since the epoch. */
struct hm_region_record {
    uint64_t ino; /* 0: the record is free */
    uint64_t size;
    uint32_t mode, uid, gid, nlink;
    int64_t atime, mtime, ctime, btime;
    uint64_t generation;
    uint64_t pages[16];  /* present pages by owner */
    uint64_t attributes; /* that programs gave it, in user. */
    uint64_t unused[8];
    char name[256];
};

struct hm_node_stats {
    uint64_t capacity, used, peak; /* pages */
    uint64_t pages_in, pages_out;  /* moved by migration */
    uint64_t copies_made, copies_saved;
    uint64_t evicted_blocks, evicted_pages;
    /* Pages that a fault brought to a block that had been evicted; of these, those that came back
     * before as much was evicted as the node holds: with twice the memory they would have stayed.
     */
    uint64_t refaulted_pages, thrashed_pages;
    /* Pages that its faults took back from programs, for the HM_SHARING_TURNS-th time running of
     * their block and later: both keep taking them. */
    uint64_t shared_pages;
    uint64_t populated_pages,
        dropped_pages; /* became the node's out of nothing, or went for good */
    uint64_t faults, fault_batches, operations; /* faults of the worker, reads that took them */
    uint64_t mapped_pages;                      /* remotely */
    uint64_t copies_begun, copies_ended;        /* of read-mostly pages */
    /* Pages that the processor was found to thrash; times that it was made to wait for one; pages
     * that its fault pinned to the host; how long it waited, simulated. */
    uint64_t thrashing_pages, throttles, thrash_pins, throttle_ns;
    /* Simulated time, ns: of the faults that brought pages to the node, of copies to it and from
     * it. On node 0 of the CPU's faults and of all copies. */
    uint64_t fault_ns, copy_in_ns, copy_out_ns;
};

struct hm_stats {
    uint64_t reads, writes, read_bytes, written_bytes; /* requests on region files */
    uint64_t cpu_faults;                               /* touches of device-owned pages */
    uint64_t cpu_read_faults, cpu_write_faults;        /* the same by access */
    uint64_t clock_ns;                                 /* simulated time: all that was charged */
    uint64_t trace_recorded;                           /* events */
    uint64_t express_faults;   /* of these, resolved without the trio service */
    uint64_t service_faults;   /* of these, reported to it */
    uint64_t parked, replayed; /* requests that waited for a block */
    uint64_t readahead_refused;
    uint64_t no_room; /* requests that found host memory full */
    uint64_t recalls, recall_retries, recalled_pages, recalls_failed;
    uint64_t migrations, migrations_discarded;
    uint64_t stale_writes_skipped;
    uint64_t relayed, relay_queued, interrupts;
    uint64_t movers, jobs;
    uint64_t pages_touched, directory_bytes, cached_pages, regions;
};

/* What regions are, all of a mount alike; and what devices are. PRIVATE regions serve devices of
 * private and of coherent memory; the others are passed through by the kernel. */
enum hm_kind {
    HM_KIND_PRIVATE,  /* a page is where its owner is, and others take a fault to have it */
    HM_KIND_COHERENT, /* one memory for all; a page's owner is a label that migration changes */
    HM_KIND_DAX       /* the same, a device's for good */
};

struct hm_config {
    uint64_t capacity[16]; /* pages, by node; node 0 is the host */
    uint64_t visible[16];  /* of a coherent device's pages, those that programs can reach */
    uint32_t device_kind[16];
    uint32_t kind;
    uint32_t nodes;      /* 1 + devices */
    uint32_t threads;    /* gate threads */
    uint32_t poll_us;    /* spin this long before blocking on /dev/fuse */
    uint32_t readahead;  /* bytes, offered in INIT */
    uint32_t express;    /* carry out faults that need no decision natively */
    uint32_t keep_clean; /* keep the host copy of a page that moves to a device */
    uint32_t realtime;   /* who waits for a fault or a copy waits as long as it is charged */
};

/* What comes with a page that was touched: to the device whose worker faulted, to the host for the
 * CPU's faults on node 0. */
enum hm_prefetch_kind {
    HM_PREFETCH_TABLE,      /* aligned groups: the pages at a block's 1st, 2nd, 3rd, later fault */
    HM_PREFETCH_NEXT,       /* the next argument[0] pages */
    HM_PREFETCH_SEQUENTIAL, /* argument[0] pages ahead, by the stride that was seen twice */
    HM_PREFETCH_DENSITY,    /* UVM's rule; argument[0] is the threshold in percent */
    HM_PREFETCH_ASK         /* the service asks a policy in Python each time */
};

/* Where a page comes to be that a device touches and no advice tells of. */
enum hm_placement_kind {
    HM_PLACE_FIRST_TOUCH, /* on the device */
    HM_PLACE_PREFERRED,   /* where it is, unless advice says that it prefers the device */
    HM_PLACE_NEVER,       /* on the host */
    HM_PLACE_COUNTER /* where it is, until the device's touches of its 64 KiB are `threshold` */
};

/* When processors that keep taking a page from each other are slowed down, and when it is pinned to
 * the host: by the simulated clock. */
struct hm_thrashing {
    uint32_t threshold;     /* moves within a lapse that make a page thrash; 0: nothing does */
    uint32_t pin_threshold; /* throttles, then it is pinned */
    uint32_t max_resets;    /* times that a block's state is dropped after an epoch of peace */
    uint64_t lapse_ns, nap_ns, epoch_ns, pin_ns; /* pin_ns 0: for ever */
};

struct hm_prefetch {
    uint32_t kind;
    uint32_t argument[4];
};

/* What leaves a full device first. */
enum hm_eviction_kind {
    HM_EVICT_LRU,
    HM_EVICT_LRM,
    HM_EVICT_FIFO,
    HM_EVICT_MRU,
    HM_EVICT_LFU,
    HM_EVICT_CLOCK,
    HM_EVICT_RANDOM,
    HM_EVICT_TREE,
    HM_EVICT_LRU_PAGE,
    HM_EVICT_OPTIMAL,
    HM_EVICT_ASK /* the service asks a policy in Python each time, and evicts */
};

struct hm_eviction {
    uint32_t kind;
    uint64_t seed;         /* RANDOM */
    const uint64_t *trace; /* OPTIMAL: block * 512 + page of each access in order; it is copied */
    uint64_t length;
};

/* Pages of a block that are to leave a device. */
struct hm_victim {
    uint64_t ino, block;
    uint64_t window[8];
};

/* A candidate for eviction: one touched block with pages on the node asked for. */
struct hm_candidate {
    uint64_t ino, block;
    uint64_t last_cpu, last_device, last_migrated, arrived;
    uint32_t uses;     /* faults and operations of devices since it arrived */
    uint32_t pages;    /* present on the node */
    uint32_t reserved; /* host only: holes that the CPU's page cache may fill */
    uint32_t kept;     /* host only: copies kept of device-owned pages */
    uint32_t held;     /* busy, or with parked requests: eviction must not wait for it */
};

/* ---- work for the movers ------------------------------------------------------------------ */

enum hm_job_kind {
    HM_JOB_MIGRATE, /* move present pages of [first, first+count) to node, at most limit */
    HM_JOB_RECALL,  /* take [first, first+count) from the CPU, leave the owner */
    HM_JOB_READ,    /* device operations on [offset, offset+length) of the block, on node */
    HM_JOB_WRITE,
    HM_JOB_FILL,
    HM_JOB_CRC,
    HM_JOB_FAIL,        /* answer every parked request of the block with error */
    HM_JOB_DEVICE_FAULT /* a worker's faults: bring `pages` to node, let it store to `stores`,
                           and wake it */
};

enum hm_job_flags {
    HM_JOB_EVICT = 1,    /* counts as an eviction */
    HM_JOB_HERE = 32,    /* DEVICE_FAULT: nothing is mapped remotely, since the worker could not */
    HM_JOB_ASKED = 64,   /* MIGRATE: somebody asked for it, so -EBUSY if a page may not go */
    HM_JOB_PLACED = 128, /* MIGRATE: only what the device would have if it accessed it */
    HM_JOB_REMOTE = 256, /* READ, WRITE of a program's memory: nothing comes to the device */
    HM_JOB_AGAIN = 512,  /* DEVICE_FAULT: policies counted it before, when its device was full */
    HM_JOB_STAGING = 2,  /* may use the staging reserve of the host */
    HM_JOB_QUIET = 4,    /* no completion event: nobody waits */
    HM_JOB_FAULT = 16,   /* MIGRATE: a program waits for it */
    HM_JOB_CHOSEN = 8    /* MIGRATE, DEVICE_FAULT: `window` says what to bring, not first and
                            count or the node's policy */
};

struct hm_job {
    uint64_t cookie;     /* the caller's, returned in the event */
    uint64_t faulted_at; /* DEVICE_FAULT: when the faults were taken, ns; 0: they are in the books,
                            as MAPPED, but the worker could not map what they asked for */
    uint64_t ino, block;
    uint32_t kind, node, flags;
    uint32_t first, count, limit; /* pages */
    uint32_t source;              /* with EVICT: the device that pages leave */
    uint32_t reserved;            /* pages reserved on node for this job; the rest is released */
    uint32_t offset, length;      /* bytes in the block, for device operations */
    uint32_t byte;                /* FILL: the value. CRC: the running value */
    int32_t error;                /* FAIL: the errno, positive */
    void *buffer;                 /* READ, WRITE: length bytes that outlive the job */
    uint64_t pages[8], stores[8]; /* DEVICE_FAULT: pages of the block; stores are among pages */
    uint64_t window[8];
    uint64_t remote[8]; /* DEVICE_FAULT, CHOSEN: pages that a policy leaves where they are */
    uint32_t worker;    /* DEVICE_FAULT: whose, as hm_device_worker counts; 0: not known */
};

enum hm_event_kind {
    HM_EVENT_FAULT = 1, /* a CPU access that needs a decision; requests wait for it */
    HM_EVENT_JOB,       /* a job has ended */
    HM_EVENT_INTERRUPT, /* the program that waits in a relayed READ or WRITE on cookie (fh), or in
                           an ioctl, got a signal */
    HM_EVENT_CLOSED,    /* the kernel's side of the mount is gone */
    HM_EVENT_LOW,       /* `node` has fewer free pages than hm_watermark said */
    HM_EVENT_DEVICE_FAULT, /* a worker's faults that a quiet job could not serve: result, need;
                              -EAGAIN: its policy is to be asked */
    HM_EVENT_TRACE,        /* there is something for who asked by hm_trace_wake */
    HM_EVENT_GONE,         /* the program of region `ino` has ended, or has become another */
    HM_EVENT_IOCTL,        /* a program's ioctl on a control file; hm_reply_ioctl answers it */
    HM_EVENT_NO_CAPACITY   /* a program's request on region `ino` found none free; hm_gate_retry
                              answers it */
};

enum hm_fault_reason { HM_FAULT_OWNER = 1, HM_FAULT_HOST_FULL };

struct hm_event {
    uint64_t cookie; /* JOB: of the job. INTERRUPT: the file handle, or 0. IOCTL: of the request */
    uint64_t ino, block; /* IOCTL: the control file, and the file handle. INTERRUPT: without a file
                            handle the request, which may be an ioctl's or a fault's */
    uint32_t kind, reason; /* IOCTL: reason is the caller's thread */
    /* FAULT: the pages accessed. IOCTL: the command, the bytes that came with it, and the most that
     * may be answered. */
    uint32_t first, count, write;
    int32_t result; /* JOB: 0 or -errno; -ENOSPC: `need` free pages are missing */
    uint32_t need, moved, saved, crc;
    uint32_t node;                /* DEVICE_FAULT: whose worker. IOCTL: the caller's user */
    uint64_t faulted_at;          /* DEVICE_FAULT: as in the job */
    uint64_t pages[8], stores[8]; /* DEVICE_FAULT: as in the job. FAULT: pages that the policy of
                                     the host brings home. IOCTL: pages has the bytes that came
                                     with it */
    uint32_t worker;              /* DEVICE_FAULT: as in the job */
};

struct hm_core;

/* What a fault that brings pages to the node costs on the machine that is emulated, ns; 0, as in
 * the beginning: nothing. Not while any fault is under way. */
int hm_fault_cost_set(struct hm_core *core, uint32_t node, uint32_t ns);
/* The link of two nodes, the same both ways: run_ns[n] is what copying n pages that lie side by
 * side takes over it, n to 512; it is copied. In the beginning there are none: copies between
 * devices then go through the host, those between a device and the host are free of charge.
 * No lock: not while any copy is under way. ENODEV: no such node; EINVAL: one and the same. */
int hm_link_set(struct hm_core *core, uint32_t one, uint32_t two, const uint32_t run_ns[513]);

/* EINVAL: no such kind. From the next fault on; may be called at any time. */
int hm_prefetch_set(struct hm_core *core, uint32_t node, const struct hm_prefetch *policy);
/* What a built-in policy brings to a node that has `resident`, for pages touched in a block that is
 * `inside` the file, at its fault number `faults`, from 0. stride is changed. */
int hm_prefetch_hint(const struct hm_prefetch *policy, const uint64_t resident[8],
                     const uint64_t touched[8], const uint64_t inside[8], uint32_t faults,
                     struct hm_stride *stride, uint64_t out[8]);

/* EINVAL: no such kind, or node 0. From the next victim on; may be called at any time. In the
 * beginning it is ASK. */
int hm_eviction_set(struct hm_core *core, uint32_t node, const struct hm_eviction *policy);

/* EINVAL: no such kind. From the next fault on; may be called at any time. */
int hm_placement_set(struct hm_core *core, uint32_t node, uint32_t kind, uint32_t threshold);

int hm_thrashing_set(struct hm_core *core, const struct hm_thrashing *policy);

int hm_core_create(const struct hm_config *config, struct hm_core **ret);
/* Ends all threads, closes all descriptors. No other call may be under way. */
void hm_core_destroy(struct hm_core *core);

/* ---- regions ------------------------------------------------------------------------------ */

/* The record stays valid until hm_region_destroy. EFBIG: size; ENOSPC: no region left. */
int hm_region_create(struct hm_core *core, uint64_t ino, uint32_t mode, uint32_t uid, uint32_t gid,
                     struct hm_region_record **ret);
/* Frees every page. Called when the last link, open file and mapping are gone. */
int hm_region_destroy(struct hm_core *core, uint64_t ino);
/* Never waits for a transaction. EFBIG past the largest region. */
int hm_region_truncate(struct hm_core *core, uint64_t ino, uint64_t size);
/* Punch [offset, offset+length) bytes; partial pages are zeroed. Never waits. */
int hm_region_punch(struct hm_core *core, uint64_t ino, uint64_t offset, uint64_t length);
/* Give every hole of the range a page of zeros. ENOSPC: nothing is kept of a partial success. */
int hm_region_allocate(struct hm_core *core, uint64_t ino, uint64_t offset, uint64_t length);
/* Notice what programs did to a coherent or DAX region through mappings: its times. */
int hm_region_sync(struct hm_core *core, uint64_t ino);
/* Set times, in ns since the epoch, INT64_MIN: not this one; ctime is now. With `settle` stores
 * that came before move mtime no more, and those that come after do: it may wait for the kernel. */
int hm_region_set_times(struct hm_core *core, uint64_t ino, int64_t atime, int64_t mtime,
                        int settle);
/* It was changed now: its bytes, or only what is known of it. */
int hm_region_modified(struct hm_core *core, uint64_t ino, int bytes);
/* Offset of the next data (hole = 0) or hole (1) at or after offset; -ENXIO past the end. */
int64_t hm_region_seek(struct hm_core *core, uint64_t ino, uint64_t offset, int hole);
/* The records of all blocks; untouched ones read as zeros, but reading allocates: see touched. */
struct hm_block *hm_region_blocks(struct hm_core *core, uint64_t ino);
/* Numbers of touched blocks >= from, ascending; returns how many were written. */
int hm_region_touched(struct hm_core *core, uint64_t ino, uint64_t from, uint64_t *out, int max);
/* present by owner -> pages[16], then dirty on the host, dirty on devices, cached, kept, reserved,
 * copies of read-mostly pages on devices */
int hm_region_residency(struct hm_core *core, uint64_t ino, uint64_t out[22]);
uint64_t hm_region_max_bytes(void);

/* ---- advice ------------------------------------------------------------------------------- */

/* What a program said of pages [first, first+count) of a region: what cudaMemAdvise and the
 * attributes of KFD's SVM can say. */
struct hm_advice {
    uint64_t first, count;
    uint8_t read_mostly;  /* devices that load get copies; a store ends them */
    uint8_t preferred;    /* 1 + the node; 0: none */
    uint8_t granularity;  /* 1 + log2 of the pages that come with a fault; 0: the policy says */
    uint8_t pinned;       /* stays on its node */
    uint8_t no_migrate;   /* stays on the host, which devices reach remotely */
    uint8_t prefetched;   /* 1 + the node that somebody last asked to have it; 0: nobody did */
    uint16_t accessed_by; /* by node: maps it remotely rather than moving it */
};

enum hm_advice_field {
    HM_ADVICE_READ_MOSTLY,
    HM_ADVICE_PREFERRED,
    HM_ADVICE_GRANULARITY,
    HM_ADVICE_PINNED,
    HM_ADVICE_NO_MIGRATE,
    HM_ADVICE_PREFETCHED,
    HM_ADVICE_ACCESSED_BY,   /* value: a node to add */
    HM_ADVICE_UNACCESSED_BY, /* value: a node to take away */
};

/* Say one thing of pages [first, first+count), from the next fault on; moves nothing, but the end
 * of read-mostly ends the copies. EINVAL: no such field, value or page. */
int hm_advise(struct hm_core *core, uint64_t ino, uint64_t first, uint64_t count, uint32_t field,
              uint32_t value);
/* A file of the region was opened for writing (by 1), or closed (by -1). When an opening returns,
 * no copy of a read-mostly page is left that could come to differ. EINVAL: none is open to close.
 */
int hm_region_writers(struct hm_core *core, uint64_t ino, int by);
/* The host's pages of a block that count on a device: they have its label, or it has duplicates of
 * them. With node 0 those that do not count on the host: they have a label of any device. */
int hm_labelled_or_duplicate(struct hm_core *core, uint64_t ino, uint64_t block, uint32_t node,
                             uint64_t out[8]);
/* What was said, from page `from` on, in order, ranges that differ; returns how many. */
int hm_advice_get(struct hm_core *core, uint64_t ino, uint64_t from, struct hm_advice *out,
                  int max);

/* Where the pages are that a coherent region which is passed through gets when it grows, in the
 * terms of mbind(2). `nodes` by bit; none with DEFAULT. -EOPNOTSUPP: the region is of another kind.
 */
enum hm_numa_mode { HM_NUMA_DEFAULT, HM_NUMA_BIND, HM_NUMA_PREFERRED, HM_NUMA_INTERLEAVE };
int hm_region_numa(struct hm_core *core, uint64_t ino, uint32_t mode, uint32_t nodes);
/* Let nothing come to a node by default: new pages of coherent regions, what is pushed out of the
 * host. */
int hm_node_exclude(struct hm_core *core, uint32_t node, int on);

/* ---- devices' workers --------------------------------------------------------------------- */

/* A worker's userfaultfd, registered by it for missing pages and write-protection, and our end of
 * the SOCK_SEQPACKET pair whose other end it gave to hm_remote_start; -1: it maps nothing remotely.
 * Both belong to the core from now on if this succeeds. EBUSY: the device has one. EINVAL: uffd is
 * something else. */
int hm_device_attach(struct hm_core *core, uint32_t node, int uffd, int remote);
/* The number of the worker that was attached last, from 1; 0: none was. */
uint32_t hm_device_worker(struct hm_core *core, uint32_t node);
/* The worker is gone: forget its windows. Pages stay where they are. */
int hm_device_detach(struct hm_core *core, uint32_t node);
/* The worker maps the region's pool of its node at address, whole blocks, and has not touched it
 * yet. EEXIST: it does so already. */
int hm_device_map(struct hm_core *core, uint32_t node, uint64_t ino, uint64_t address,
                  uint64_t bytes);
/* Forget the window: afterwards nothing waits for the worker's mmap_lock for its sake. -ENOENT:
 * there is none. */
int hm_device_unmap(struct hm_core *core, uint32_t node, uint64_t ino);
/* The worker's next kernel writes the first `bytes` of the region and needs nothing of what is
 * there: the whole pages below come as zeros when it first stores to them. 0 ends that. -ENOENT:
 * it does not map the region. */
int hm_device_discard(struct hm_core *core, uint32_t node, uint64_t ino, uint64_t bytes);
/* A new descriptor of the region's pool on the node, or -errno. */
int hm_pool_descriptor(struct hm_core *core, uint64_t ino, uint32_t node);

/* In a worker: a thread of its own, which maps files of the mount where the core says so, while the
 * kernel's own threads wait for that. It keeps both descriptors. */
struct hm_remote;
int hm_remote_start(int socket, int uffd, struct hm_remote **ret);
/* A launch begins that uses the region mapped at address: where its file is. */
int hm_remote_allow(struct hm_remote *remote, uint64_t ino, uint64_t address, uint64_t bytes,
                    const char *path, int writable);
/* The launch has ended: no more is mapped, all files are closed. Returns whether something was
 * mapped remotely. */
int hm_remote_end(struct hm_remote *remote);
/* In a child that a kernel forked, which has no such thread: let go of the files. */
void hm_remote_child(struct hm_remote *remote);

/* ---- capacity ----------------------------------------------------------------------------- */

/* Have HM_EVENT_LOW sent, once, when fewer than `pages` of the node are free; 0: never. */
int hm_watermark(struct hm_core *core, uint32_t node, uint64_t pages);
/* Reserve pages on a node; with staging, up to one block beyond the host's capacity. -ENOSPC. */
int hm_reserve(struct hm_core *core, uint32_t node, uint64_t pages, int staging);
void hm_release(struct hm_core *core, uint32_t node, uint64_t pages);
int hm_candidates(struct hm_core *core, uint32_t node, struct hm_candidate *out, int max);
/* What leaves a device next to free `need` pages, by its built-in policy, which goes on as if
 * they had left. `spared` has the inode and the block number of `count` blocks that don't. Returns
 * 1, or 0: there is nothing, or the policy is ASK. */
int hm_victim_next(struct hm_core *core, uint32_t node, uint32_t need, const uint64_t *spared,
                   uint32_t count, struct hm_victim *out);
/* Punch kept copies (their owners are devices) until `pages` are free; returns how many went. */
int64_t hm_drop_kept(struct hm_core *core, uint64_t pages);

/* ---- jobs and events ---------------------------------------------------------------------- */

int hm_submit(struct hm_core *core, const struct hm_job *job);
/* Readable while events wait. Belongs to the core. */
int hm_event_fd(struct hm_core *core);
int hm_events(struct hm_core *core, struct hm_event *out, int max);
int hm_stats_get(struct hm_core *core, struct hm_stats *out);
int hm_node_stats_get(struct hm_core *core, uint32_t node, struct hm_node_stats *out);
/* Check every invariant of the directory against the pools and the counters; 0, or -EUCLEAN with
 * one sentence in text. Exact only while nothing else runs. */
int hm_audit(struct hm_core *core, char *text, size_t size);

/* ---- programs' own memory ----------------------------------------------------------------- */

/* Give the region, which is made for that and has no file, the memory of a program: its offsets are
 * addresses modulo hm_region_max_bytes(). uffd, socket and control are what the program's library
 * sent (preload/preload.h), or -1: then devices can reach the memory, but nothing of it moves. All
 * of them and pidfd belong to the core if this succeeds. EBUSY: the region is somebody's. */
struct hm_process_config {
    int32_t pid, pidfd, uffd, socket, control;
    uint32_t foreign; /* 1: of a user with fewer rights; only the memory that it has now is had */
    uint64_t least, own, own_bytes, scratch;
};
int hm_process_attach(struct hm_core *core, uint64_t ino, const struct hm_process_config *config);
/* The program is gone, or is to be left alone: with `home`, and while it can be, all its pages are
 * given back before. Waits. */
int hm_process_detach(struct hm_core *core, uint64_t ino, int home);
/* The offset of an address. EADDRINUSE: its TiB can't be told from another that is in use; EFAULT:
 * no program has such addresses. */
int64_t hm_process_offset(struct hm_core *core, uint64_t ino, uint64_t address, uint64_t length);
/* The address that an offset is of; 0: none. */
uint64_t hm_process_address_of(struct hm_core *core, uint64_t ino, uint64_t offset);

/* Of the block's pages that the node has: `set`, which may be NULL, become its alone; `out`, which
 * may be NULL, gets those that are. A page is until it leaves the node. */
int hm_process_exclusive(struct hm_core *core, uint64_t ino, uint32_t node, uint64_t block,
                         const uint64_t *set, uint64_t *out);
/* The block is one huge page of the node, if that has all of it and it lies in one mapping, until
 * some of it leaves: it comes home in one piece, too, and is a huge page there if it can be. */
int hm_process_set_huge(struct hm_core *core, uint64_t ino, uint32_t node, uint64_t block);

/* Whether the node gets none of the program's pages: what can't do without is EACCES. What it has,
 * or is on its way there, is not touched. */
int hm_process_close(struct hm_core *core, uint64_t ino, uint32_t node, int closed);
/* Drop what devices have of whole pages: the program finds zeros. EBUSY: some of it is moving. */
int hm_process_forget(struct hm_core *core, uint64_t ino, uint64_t address, uint64_t length);

enum hm_look {
    HM_LOOK_VMA = 1, /* there is a mapping; its rights */
    HM_LOOK_READ = 2,
    HM_LOOK_WRITE = 4,
    HM_LOOK_ANON = 8, /* private, of no file */
    HM_LOOK_SHARED = 16,
    HM_LOOK_SPECIAL = 32, /* the kernel's or a device's */
    HM_LOOK_PRESENT = 64,
    HM_LOOK_SWAPPED = 128,
    HM_LOOK_ZERO = 256,       /* the page of zeros */
    HM_LOOK_HUGE = 512,       /* part of a huge page */
    HM_LOOK_EXCLUSIVE = 1024, /* nobody else maps it */
    HM_LOOK_HUGETLB = 2048    /* of hugetlbfs, from where nothing migrates */
};
/* From this bit on: the node that has the page; 0: the program. */
#define HM_LOOK_OWNER 12
/* What is at each page from an address on, without touching any; frame 0: none or unknown. */
int hm_process_look(struct hm_core *core, uint64_t ino, uint64_t address, uint32_t pages,
                    uint16_t *state, uint64_t *frame);

/* ---- accounts ----------------------------------------------------------------------------- */

/* What pages move for. Those up to HM_BY_OPERATION count moves; a trace has the others, too. */
enum hm_trigger {
    HM_BY_NOTHING,
    HM_BY_CPU_FAULT,
    HM_BY_DEVICE_FAULT,
    HM_BY_PREFETCH, /* somebody asked for it */
    HM_BY_EVICTION,
    HM_BY_OPERATION, /* a submitted one */
    HM_BY_READ,
    HM_BY_WRITE,
    HM_BY_CAPACITY,
    HM_BY_SHARING
};

/* A device's faults, by access, and again by what became of them: all of the latter, and what waits
 * still, are READ and WRITE together. Of the CPU's only READ and WRITE are counted. */
enum hm_fault_count {
    HM_FAULTS_READ,
    HM_FAULTS_WRITE,
    HM_FAULTS_MIGRATED,  /* the page came from another node */
    HM_FAULTS_POPULATED, /* it was a hole and has bytes now */
    HM_FAULTS_MAPPED,    /* it is used remotely */
    HM_FAULTS_COPIED,    /* a copy of a read-mostly page was made */
    HM_FAULTS_UPGRADED,  /* it was there, and may be stored to now */
    HM_FAULTS_DUPLICATE, /* another thread's fault on the page was in the same batch */
    HM_FAULTS_STALE,     /* by the time it was served nothing was left to do */
    HM_FAULTS_FAILED     /* its kernel was ended */
};

/* Sums since the mount: [from][to] where two nodes are meant. */
struct hm_flows {
    uint64_t moved[16][16];   /* pages whose owner changed */
    uint64_t carried[16][16]; /* pages whose bytes were copied, or used remotely (once a launch) */
    uint64_t linked[16][16];  /* the same by the links they took: through the host twice */
    uint64_t copies[16][16];  /* runs of pages that took a link */
    uint64_t link_ns[16][16]; /* simulated time of them */
    uint64_t in[16][6], out[16][6]; /* pages moved, by node and enum hm_trigger */
    uint64_t faults[16][10];        /* by node and enum hm_fault_count */
};
int hm_flows_get(struct hm_core *core, struct hm_flows *out);

/* The same of one region, by node. */
struct hm_region_flows {
    uint64_t faults[16][10];
    /* Pages, as in struct hm_node_stats. */
    uint64_t evicted[16], refaulted[16], thrashed[16], shared[16];
    uint64_t refaulted_at[16], shared_at[16]; /* when last, CLOCK_MONOTONIC in ns; 0: never */
};
int hm_region_flows_get(struct hm_core *core, uint64_t ino, struct hm_region_flows *out);
/* A worker's faults on these pages of a block, with stores among them or not, end for good without
 * having been served. */
int hm_faults_failed(struct hm_core *core, uint32_t node, uint64_t ino, uint64_t block,
                     const uint64_t pages[8], int stores, uint64_t faulted_at);

/* What is counted of one touched block; pages by the node that they are said to be on. */
struct hm_block_counts {
    uint64_t block;
    uint64_t on[16][8];
    uint64_t dirty_on[8];
    uint32_t pages[16];
    uint32_t dirty, cached, kept;
    uint32_t cpu_faults, device_faults, evictions;
};
/* Of touched blocks >= from, ascending; returns how many were written. */
int hm_region_block_counts(struct hm_core *core, uint64_t ino, uint64_t from,
                           struct hm_block_counts *out, int max);

/* ---- the trace ---------------------------------------------------------------------------- */

enum hm_trace_kind {
    HM_TRACE_PAGE_FAULT_START,
    HM_TRACE_PAGE_FAULT_END,
    HM_TRACE_MIGRATE_START,
    HM_TRACE_MIGRATE_END, /* to == from: it failed, and the pages stayed */
    HM_TRACE_QUEUE_EVICTION,
    HM_TRACE_QUEUE_RESTORE,
    HM_TRACE_UNMAP,
    HM_TRACE_READ_DUPLICATE,
    HM_TRACE_READ_DUPLICATE_INVALIDATE,
    HM_TRACE_MAP_REMOTE,
    HM_TRACE_THRASHING,
    HM_TRACE_THROTTLE,
    HM_TRACE_PIN
};

struct hm_trace_event {
    uint64_t at_ns;               /* CLOCK_MONOTONIC; 0 when recorded: now */
    uint64_t ino, page;           /* of the region */
    uint64_t took_ns, charged_ns; /* here, and by the simulated clock */
    uint32_t count;               /* pages from `page` on; not every one need be concerned */
    uint32_t copied;              /* pages */
    uint8_t kind, trigger;
    uint8_t node;     /* who caused it; 0: the CPU */
    uint8_t from, to; /* nodes; 255: none */
    uint8_t unused[3];
};

/* A ring of so many events, a power of two; 0: nothing is recorded. What was recorded goes.
 * Otherwise the kinds whose bits are in the mask are. EINVAL: no such size. */
int hm_trace_resize(struct hm_core *core, uint32_t events);
int hm_trace_kinds(struct hm_core *core, uint32_t mask);
/* Whether events of the region are recorded, as in the beginning. */
int hm_trace_region(struct hm_core *core, uint64_t ino, int on);
uint64_t hm_trace_now(void);
int hm_trace_record(struct hm_core *core, const struct hm_trace_event *event);
/* What a kind is called; NULL: there is none of that number. */
const char *hm_trace_kind_name(int kind);
#define HM_TRACE_LINE 1400
/* Events from number *cursor on, but for `until` and later ones, as whole lines; the cursor moves
 * behind them. Those that are gone are counted in a line of their own. `size` is HM_TRACE_LINE at
 * least; returns the bytes written, 0 when there is nothing. */
int64_t hm_trace_text(struct hm_core *core, uint64_t *cursor, uint64_t until, char *out,
                      size_t size);
/* The number of the next event. If it is `from`, HM_EVENT_TRACE is sent with that, once. */
uint64_t hm_trace_wake(struct hm_core *core, uint64_t from);
/* The number of the oldest event that there is still. */
uint64_t hm_trace_oldest(struct hm_core *core);
void hm_trace_clear(struct hm_core *core);

/* ---- the gate ----------------------------------------------------------------------------- */

/* Serve a mount: fuse_fd is /dev/fuse, relay_fd one end of a SOCK_SEQPACKET pair whose other end
 * pyfuse3 reads. Both belong to the core from now on. */
int hm_gate_start(struct hm_core *core, int fuse_fd, int relay_fd);
/* After INIT: whether the kernel passes files through, as coherent and DAX regions need; -EAGAIN
 * before. */
int hm_gate_passthrough(struct hm_core *core);
/* End the connection by closing /dev/fuse, for who may not abort it: programs that wait for an
 * answer get ECONNABORTED. -ETIMEDOUT: a thread is still at it. */
int hm_gate_leave(struct hm_core *core);
/* Returns when every gate thread has ended; the kernel's side must be gone (unmounted, aborted). */
int hm_gate_join(struct hm_core *core);
/* Answer an ioctl that an event told of: with error, an errno, or with size bytes at out, which
 * the kernel copies to the program; with an error it copies nothing. */
int hm_reply_ioctl(struct hm_core *core, uint64_t unique, int error, const void *out,
                   uint32_t size);
/* Try a request again that found no capacity and waits, by an event's cookie. Returns 0: it does
 * not wait any more, since it is answered or waits for the fault service; 1: there is none yet, and
 * it waits for the next call. With last it is answered all the same. */
int hm_gate_retry(struct hm_core *core, uint64_t unique, int last);
/* Whether a relayed READ or WRITE on the open file is not answered yet. */
int hm_waits(struct hm_core *core, uint64_t fh);

struct hm_request {
    uint64_t unique, ino, fh, offset;
    uint32_t opcode, size, pid, uid; /* pid: of the thread */
    uint32_t
        flags; /* READ: of the open file; WRITE: FUSE_WRITE_CACHE and the like; IOCTL: its own */
    uint32_t mode;       /* fallocate mode, lseek whence, ioctl command; READ: FUSE_READ_* */
    uint64_t length;     /* IOCTL: the most bytes of an answer */
    uint32_t done;       /* WRITE: bytes before offset that were applied before it had to wait */
    uint32_t charged;    /* WRITE: its fault was, and some of the pages are home */
    uint32_t tries;      /* as retry.h has it: whether it may wait for capacity yet */
    uint64_t faulted_at; /* when it was found to want a device's page; 0: it was not */
    const uint8_t *data;
};
/* Take a message from /dev/fuse apart. EINVAL: shorter or longer than it says or than its opcode
 * wants, or an offset that would wrap. Only what the gate itself answers is looked into. */
int hm_gate_parse(const uint8_t *message, size_t length, struct hm_request *ret);

#endif
