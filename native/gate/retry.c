/* Requests that found no free capacity, and are tried once more: fallocate, and whatever makes a
 * coherent or DAX region longer.
 *
 * A region that nobody can reach any more has its pages for some time yet: the kernel tells of a
 * last close after close(2) has returned, and a thread destroys the region. On a tmpfs all of that
 * is over by then, so a program may count on the capacity. The service knows which regions are on
 * their way out, and when they are gone.
 */
#include "gate/retry.h"

#include "base/events.h"
#include "transaction/parked.h"

bool hm_retry_later(struct hm_core *core, const struct hm_request *request)
{
    struct hm_event event = {.kind = HM_EVENT_NO_CAPACITY, .ino = request->ino};
    struct hm_parked *parked = request->retried ? NULL : hm_aside(core, request);
    if (!parked)
        return false;
    parked->request = *request;
    parked->request.retried = 1;
    if (request->data)
        parked->request.data = parked->data;
    parked->next = NULL;
    hm_lock(HM_RANK_SPARES, &core->spares_lock);
    *core->retries_end = parked;
    core->retries_end = &parked->next;
    hm_unlock(HM_RANK_SPARES, &core->spares_lock);
    hm_event_push(core, &event);
    return true;
}

struct hm_parked *hm_retry_take(struct hm_core *core)
{
    struct hm_parked *parked;
    HM_GUARD(HM_RANK_SPARES, &core->spares_lock);
    parked = core->retries;
    if (parked)
        core->retries = parked->next;
    if (!core->retries)
        core->retries_end = &core->retries;
    return parked;
}

void hm_retry_deinit(struct hm_core *core)
{
    struct hm_parked *parked;
    while ((parked = hm_retry_take(core)))
        hm_unparked(core, parked);
}
