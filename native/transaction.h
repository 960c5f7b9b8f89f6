/* A job on one block while it runs: shared by the files that carry jobs out, and nobody else. */
#ifndef HMMFS_TRANSACTION_H
#define HMMFS_TRANSACTION_H
#include "core.h"

struct transaction {
    struct hm_core *core;
    struct hm_region *region;
    struct hm_stripe *stripe;
    struct hm_block *record;
    uint64_t block;
    const struct hm_job *job;
    uint32_t reserved;    /* pages reserved on job->node and not used yet */
    struct hm_mask blank; /* TOUCH: pages whose old bytes the worker's kernel does without */
    struct hm_mask wake;  /* TOUCH: pages whose waiters are woken once the block is free */
    struct hm_mask afar;  /* TOUCH: pages that the worker maps from afar then */
    struct hm_mask moved; /* TOUCH: pages that came from another node */
    uint64_t charged;     /* ns, by the simulated clock */
    struct hm_event event;
};

/* transaction.c. Bring the pages of mask to job->node, with populate also give its holes a place
 * there, at most `limit` pages. The stripe is held and the block busy, on return too; the lock is
 * dropped for the recall, the copy and the punch. */
int hm_bring(struct transaction *t, const struct hm_mask *mask, bool populate, uint32_t limit);
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
/* copies.c: give job->node copies of the pages that have bytes. As hm_bring. */
int hm_duplicate(struct transaction *t, const struct hm_mask *mask);
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

/* touch.c: a worker's faults; and whether serving them waits for nobody and copies little */
int hm_touch(struct transaction *t);
bool hm_touch_is_easy(const struct transaction *t);

#endif
