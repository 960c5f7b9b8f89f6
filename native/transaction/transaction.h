/* A job on one block while it runs, and what kinds of regions do their own way meanwhile. */
#ifndef HMMFS_TRANSACTION_H
#define HMMFS_TRANSACTION_H
#include "base/core.h"
#include "base/region.h"
#include "base/step.h"
#include "rules/advice.h"

/* Why a job moves pages, and for whom: HM_HOST stands for programs. */
struct cause {
    enum hm_trigger trigger;
    uint32_t node;
};

struct transaction {
    struct hm_core *core;
    struct hm_region *region;
    struct hm_stripe *stripe;
    struct hm_block *record;
    uint64_t block;
    const struct hm_job *job;
    struct cause cause;
    uint32_t reserved;     /* pages reserved on job->node and not used yet */
    bool at_once;          /* the thread waits for nobody: a full node ends the job */
    struct hm_mask blank;  /* DEVICE_FAULT: pages whose old bytes the worker's kernel ignores */
    struct hm_mask wake;   /* DEVICE_FAULT: pages whose waiters are woken once the block is free */
    struct hm_mask remote; /* DEVICE_FAULT: pages that the worker maps remotely then */
    struct hm_mask moved;  /* DEVICE_FAULT: pages that came from another node */
    uint64_t charged;      /* ns, by the simulated clock */
    struct hm_served {
        uint32_t migrated, populated, mapped, copied, upgraded;
    } served; /* DEVICE_FAULT: what became of the pages */
    struct hm_event event;
};

/* How far a reservation may go beyond the node's capacity. */
enum hm_overcommit { HM_OVERCOMMIT_NONE, HM_OVERCOMMIT_STAGING, HM_OVERCOMMIT_ALWAYS };

/* A step of the job with its block: see step.h. */
#define hm_step_of(t, step, pages)                                                                 \
    hm_step((t)->region, (t)->block, (step),                                                       \
            (t)->job->kind == HM_JOB_RECALL ? HM_NOWHERE : (t)->job->node, (pages))
static inline enum hm_overcommit hm_overcommit_of(const struct hm_job *job)
{
    return job->flags & HM_JOB_STAGING ? HM_OVERCOMMIT_STAGING : HM_OVERCOMMIT_NONE;
}

/* Pages that may not go to the job's node. */
static inline struct hm_mask hm_stay(const struct transaction *t)
{
    return hm_stays(t->region, t->block, t->job->node);
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

/* ---- kinds of regions ----------------------------------------------------------------------- */

/* One table for each kind: private memory, coherent and DAX regions, programs' own memory. */
struct hm_kind_ops {
    /* Programs change it without telling us first: what is there the directory may not know. */
    bool changes_unseen;
    /* Before a job begins, and where nobody may wait, with the stripe. False: the directory is
     * about the past. NULL: it never is. */
    bool (*settle)(struct hm_region *region, uint64_t block);
    bool (*is_settled)(struct hm_region *region, uint64_t block);
    /* A job on the block has ended. NULL: nobody waits but the gate's requests. */
    void (*freed)(struct hm_region *region, uint64_t block);
    /* Bring the pages of mask to job->node, with populate also give its holes a place there, at
     * most `limit` pages. The stripe is held and the block busy, on return too; the lock is dropped
     * for the recall, the copy and the punch. */
    int (*bring)(struct transaction *t, const struct hm_mask *mask, bool populate, uint32_t limit);
    /* Whether a device may store to all pages of the mask: 0 or -errno. NULL: it may. */
    int (*may_write)(struct transaction *t, const struct hm_mask *mask);
    /* A device's read, write, fill or checksum. */
    int (*operate)(struct transaction *t, const struct hm_mask *mask);
};

static inline int hm_bring(struct transaction *t, const struct hm_mask *mask, bool populate,
                           uint32_t limit)
{
    return atomic_load(&t->region->ops)->bring(t, mask, populate, limit);
}

static inline int hm_may_write(struct transaction *t, const struct hm_mask *mask)
{
    const struct hm_kind_ops *ops = atomic_load(&t->region->ops);
    return ops->may_write ? ops->may_write(t, mask) : 0;
}

static inline bool hm_changes_unseen(struct hm_region *region)
{
    return atomic_load(&region->ops)->changes_unseen;
}

#endif
