/* The threads that run jobs, and their queue. */
#ifndef HMMFS_TRANSACTION_MOVERS_H
#define HMMFS_TRANSACTION_MOVERS_H
#include "base/core.h"

struct hm_queued_job {
    struct hm_queued_job *next;
    struct hm_job job;
};

/* run: carry a job out; whether it has ended, or waits for its block. */
int hm_movers_start(struct hm_core *core,
                    bool (*run)(struct hm_core *core, struct hm_queued_job *queued));
void hm_movers_stop(struct hm_core *core);
/* hm_submit without memory to ask for: a job that was deferred is not lost. */
void hm_queue(struct hm_core *core, struct hm_queued_job *queued);

#endif
