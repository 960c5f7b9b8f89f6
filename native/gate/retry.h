/* Requests that found no free capacity, and are tried again. */
#ifndef HMMFS_GATE_RETRY_H
#define HMMFS_GATE_RETRY_H
#include "base/core.h"

struct hm_request;

/* Of hm_request.tries. A request that is tried again and then parked begins anew. */
enum hm_tries { HM_FIRST_TRY, HM_NEXT_TRY, HM_LAST_TRY };

/* Put a request aside that would be answered with ENOSPC, until hm_gate_retry; HM_EVENT_NO_CAPACITY
 * asks the service for that. False: it is to be answered now, since this was its last try or there
 * was not enough memory. */
bool hm_retry_later(struct hm_core *core, const struct hm_request *request);
/* Take the request of that number to try it; NULL: it does not wait. It is over afterwards, or has
 * been put aside once more. */
struct hm_parked *hm_retry_begin(struct hm_core *core, uint64_t unique, bool last);
/* Returns whether it has. */
bool hm_retry_end(struct hm_core *core, struct hm_parked *parked);
void hm_retry_deinit(struct hm_core *core);

#endif
