/* A job on one block while it runs: shared by the files that carry jobs out, and nobody else. */
#ifndef HMMFS_TRANSACTION_H
#define HMMFS_TRANSACTION_H
#include "rest.h"

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
    uint32_t reserved;    /* pages reserved on job->node and not used yet */
    struct hm_mask blank; /* TOUCH: pages whose old bytes the worker's kernel does without */
    struct hm_mask wake;  /* TOUCH: pages whose waiters are woken once the block is free */
    struct hm_mask afar;  /* TOUCH: pages that the worker maps from afar then */
    struct hm_mask moved; /* TOUCH: pages that came from another node */
    uint64_t charged;     /* ns, by the simulated clock */
    struct hm_served {
        uint32_t migrated, populated, mapped, copied, upgraded;
    } served; /* TOUCH: what became of the pages touched */
    struct hm_event event;
};

/* transaction.c. Bring the pages of mask to job->node, with populate also give its holes a place
 * there, at most `limit` pages. The stripe is held and the block busy, on return too; the lock is
 * dropped for the recall, the copy and the punch. */
int hm_bring(struct transaction *t, const struct hm_mask *mask, bool populate, uint32_t limit);
/* A step of the job with its block: see step.h. */
#define hm_step_of(t, step, pages)                                                                 \
    hm_step((t)->region, (t)->block, (step),                                                       \
            (t)->job->kind == HM_JOB_RECALL ? HM_NOWHERE : (t)->job->node, (pages))
/* Which room a job may use. */
static inline enum hm_room hm_room_for(const struct hm_job *job)
{
    return job->flags & HM_JOB_STAGING ? HM_ROOM_STAGING : HM_ROOM;
}
/* Reserve pages on the job's node beyond what the job brought along. -ENOSPC: event.need is set. */
int hm_take_room(struct transaction *t, uint32_t pages, enum hm_room room);
/* labels.c: have pages labelled as job->node's, and leave in the mask those that it takes truly;
 * take labels off for the host. -ENOSPC, or -ENOBUFS where it is the host that is full. */
int hm_label(struct transaction *t, struct hm_mask *mask);
int hm_label_home(struct transaction *t, const struct hm_mask *mask);
/* copies.c: bring devices' pages home within another job. -ENOBUFS: the host is full. */
int hm_fetch_home(struct transaction *t, const struct hm_mask *mask);
/* copies.c: give job->node copies of the pages that have bytes, and leave in the mask those that
 * get none: holes, and other devices' if the host has no room for them. As hm_bring. */
int hm_duplicate(struct transaction *t, struct hm_mask *mask);
/* Mark before the first byte changes: from here on no kept copy may pass for the page. */
void hm_mark_written(struct transaction *t, const struct hm_mask *mask);

/* Pages that may not go to the job's node. */
struct hm_mask hm_stay(const struct transaction *t);

/* operation.c: a device's read, write, fill or checksum */
int hm_operate(struct transaction *t, const struct hm_mask *mask);
int hm_operate_untouched(struct transaction *t); /* of a block that nobody has touched */

/* shared.c: the same for coherent and DAX regions, and their migration. */
int hm_shared_relabel(struct transaction *t, const struct hm_mask *mask, uint32_t limit);
int hm_shared_operate(struct transaction *t);

/* recall.c. Take the pages of the mask from the CPU. Called and returns with the stripe held and
 * the block busy; 0: proven clean, the block is FROZEN. -EBUSY: the CPU keeps taking them back. */
int hm_recall(struct transaction *t, const struct hm_mask *mask);

/* journal.c */
struct cause hm_cause(const struct hm_job *job);
/* Pages begin to move to job->node, by owners; returns when. Or, with when they began, they failed
 * to. */
uint64_t hm_trace_move(struct transaction *t, const struct hm_mask *moving,
                       const uint8_t from[HM_BLOCK_PAGES], uint64_t failed);
/* The end of those that began to move and have not. */
void hm_trace_stayed(struct transaction *t, const struct hm_mask *moving,
                     const struct hm_mask *moved, const uint8_t from[HM_BLOCK_PAGES],
                     uint64_t began);
/* Of pages concerned, by owners before, these had their bytes copied to job->node, or used from
 * afar: charge for them, enter them, and trace it. began: when, or 0 for an instant. */
void hm_carried(struct transaction *t, enum hm_trace_kind kind, const struct hm_mask *concerned,
                const struct hm_mask *copied, const uint8_t from[HM_BLOCK_PAGES], uint64_t began);
void hm_trace_job(struct transaction *t, enum hm_trace_kind kind, const struct hm_mask *mask,
                  uint32_t from, uint32_t to, uint64_t began);
/* A TOUCH has done what it was to do. */
void hm_faults_served(struct transaction *t);
/* Pages that a device's fault brought and that it had before: evicted since, or taken by
 * programs. */
void hm_count_thrashing(struct transaction *t, bool sharing, const struct hm_mask *pages);

/* touch.c: a worker's faults; and whether serving them waits for nobody and copies little */
int hm_touch(struct transaction *t);
bool hm_touch_is_easy(const struct transaction *t);

#endif
