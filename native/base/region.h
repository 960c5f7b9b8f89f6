/* Regions: sparse address spaces by inode number, and the table of them. */
#ifndef HMMFS_BASE_REGION_H
#define HMMFS_BASE_REGION_H
#include "base/core.h"
#include "base/page_sets.h"
#include "base/pool.h"

#define HM_DIRECTORY_MAGIC 0x31726964736d6d68ULL /* "hmmsdir1" */

struct hm_advice;
struct hm_history;
struct hm_kind_ops;
struct hm_process;

struct hm_region {
    struct hm_core *core;                  /* its windows: see directory/windows.c */
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
    hm_page_sets_table copies;   /* NULL: nothing was ever read-mostly */
    hm_page_sets_table labels;   /* NULL: no page was ever labelled */
    _Atomic(const struct hm_kind_ops *) ops; /* what its kind does its own way */
    _Atomic(struct hm_process *) process;    /* whose own memory this is; NULL: it is a file's */
    pthread_mutex_t pools_lock; /* guards the making of a pool; reading one needs none */
    _Atomic uint32_t advised;   /* ranges in `advice` that say more than what was prefetched */
    pthread_rwlock_t advice_lock;
    _Atomic(struct hm_history **) history; /* by block; NULL: nothing is remembered */
    struct hm_history *histories;          /* all there are; guarded by pools_lock */
    struct hm_advice *advice;              /* sorted by first, disjoint, none that says nothing */
    uint32_t advice_used;
    struct hm_pool pools[HM_MAX_NODES];
    _Atomic bool untraced; /* a filter leaves its events out */
    struct hm_region_flows flows;
};

/* Bit of `writers`: no page that the page cache may have has copies. Set and cleared in
 * directory/copies.c. */
#define HM_COPIES_ENDED (1u << 31)

/* Coherent and DAX regions: see directory/shared_size.c. */
static inline bool hm_is_shared(const struct hm_region *region)
{
    return region->kind != HM_KIND_PRIVATE;
}

/* The table of regions, in a memfd that a successor reads. -errno. */
int hm_regions_init(struct hm_core *core);
void hm_regions_deinit(struct hm_core *core);
/* Enter a region that is ready, with a reference that is the table's: -ENOSPC. Take one out, and
 * have that reference: -ENOENT. */
int hm_region_enter(struct hm_region *region, const struct hm_region_record *record);
int hm_region_leave(struct hm_core *core, uint64_t ino);

struct hm_region *hm_region_get(struct hm_core *core, uint64_t ino);
void hm_region_put(struct hm_region *region);
/* Of a local `struct hm_region *`: its reference, if it has one, is given back at the end of its
 * scope. What is declared after it ends before. */
#define HM_AUTO_PUT __attribute__((cleanup(hm_region_put_at)))
static inline void hm_region_put_at(struct hm_region **region)
{
    if (*region)
        hm_region_put(*region);
}

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
/* The offset of a page, in a region and in its pools. */
static inline uint64_t hm_page_offset(uint64_t block, uint32_t page)
{
    return block * HM_BLOCK_BYTES + (uint64_t)page * HM_PAGE_SIZE;
}

void hm_punch_runs(struct hm_region *region, uint32_t node, uint64_t block, const uint64_t *words);
/* The pages of the block before the end of the file. An operation that began before a truncate
 * makes none past it. */
struct hm_mask hm_inside_file(struct hm_region *region, uint64_t block);

#endif
