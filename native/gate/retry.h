/* Requests that found no free capacity, and are tried once more. */
#ifndef HMMFS_GATE_RETRY_H
#define HMMFS_GATE_RETRY_H
#include "base/core.h"

struct hm_request;

/* Put a request aside that would be answered with ENOSPC, until hm_gate_retry; HM_EVENT_NO_CAPACITY
 * asks the service for that. False: it is answered now, since it was put aside before or there is
 * no memory for it. */
bool hm_retry_later(struct hm_core *core, const struct hm_request *request);
/* The one that was put aside first, or NULL. */
struct hm_parked *hm_retry_take(struct hm_core *core);
void hm_retry_deinit(struct hm_core *core);

#endif
