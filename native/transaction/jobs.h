/* Running a job. */
#ifndef HMMFS_TRANSACTION_JOBS_H
#define HMMFS_TRANSACTION_JOBS_H
#include "transaction/movers.h"

/* Run a job; whether it has ended. One that waits for its block runs when that is
 * free. */
bool hm_run(struct hm_core *core, struct hm_queued_job *queued);
/* Run a quiet job on the calling thread, if nobody has its block or waits for it; its event has
 * what came of it. -EBUSY: somebody does, or a page could not go. */
int hm_run_now(struct hm_core *core, const struct hm_job *job, struct hm_event *event);
/* Serve a device fault on the calling thread if that waits for nobody and copies little. False: it
 * is for a mover. */
bool hm_device_fault_now(struct hm_core *core, const struct hm_job *job);
/* Have the service deal with a worker's faults: see HM_EVENT_DEVICE_FAULT. */
void hm_device_fault_report(struct hm_core *core, const struct hm_job *job, int result,
                            uint32_t need);

#endif
