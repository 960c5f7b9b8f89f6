/* Requests that found no free capacity, and are tried again: fallocate, write(2) where it may not
 * wait for the fault service, and whatever makes a coherent or DAX region longer.
 *
 * A region that nobody can reach any more has its pages for some time yet: the kernel tells of a
 * last close after close(2) has returned, and a thread destroys the region. On a tmpfs all of that
 * is over by then, so a program may count on the capacity. The service knows which regions are on
 * their way out, and has a request tried again whenever one of them has gone.
 *
 * Waiting for that is safe with folios locked, as those of a write(2) are: to destroy a region
 * takes stripes and pools, and nothing of any other region.
 */
#include "gate/retry.h"

#include "base/events.h"
#include "base/fuse_wire.h"
#include "transaction/parked.h"

/* The place in the list of the request of that number, or of its end; spares_lock is held. */
static struct hm_parked **find(struct hm_core *core, uint64_t unique)
{
    struct hm_parked **at = &core->retries;
    while (*at && (*at)->request.unique != unique)
        at = &(*at)->next;
    return at;
}

/* A WRITE that waits is older than others that are carried out meanwhile: see order.c. */
static void count_write(struct hm_core *core, const struct hm_parked *parked, uint64_t by)
{
    if (parked->request.opcode == FUSE_WRITE)
        atomic_fetch_add(&core->parked_writes, by);
}

bool hm_retry_later(struct hm_core *core, const struct hm_request *request)
{
    struct hm_event event = {
        .kind = HM_EVENT_NO_CAPACITY, .cookie = request->unique, .ino = request->ino};
    struct hm_parked *parked = request->tries == HM_LAST_TRY ? NULL : hm_aside(core, request);
    if (!parked)
        return false;
    parked->request = *request;
    parked->request.tries = HM_NEXT_TRY;
    if (request->data)
        parked->request.data = parked->data;
    count_write(core, parked, 1);
    hm_lock(HM_RANK_SPARES, &core->spares_lock);
    parked->next = core->retries;
    core->retries = parked;
    hm_unlock(HM_RANK_SPARES, &core->spares_lock);
    if (request->tries == HM_FIRST_TRY)
        hm_event_push(core, &event);
    return true;
}

struct hm_parked *hm_retry_begin(struct hm_core *core, uint64_t unique, bool last)
{
    struct hm_parked **at, *parked;
    HM_GUARD(HM_RANK_SPARES, &core->spares_lock);
    at = find(core, unique);
    parked = *at;
    if (!parked)
        return NULL;
    *at = parked->next;
    parked->request.tries = last ? HM_LAST_TRY : HM_NEXT_TRY;
    return parked;
}

bool hm_retry_end(struct hm_core *core, struct hm_parked *parked)
{
    uint64_t unique = parked->request.unique;
    count_write(core, parked, -1ULL);
    hm_unparked(core, parked);
    HM_GUARD(HM_RANK_SPARES, &core->spares_lock);
    return *find(core, unique) != NULL;
}

void hm_retry_deinit(struct hm_core *core)
{
    struct hm_parked *next;
    for (struct hm_parked *at = core->retries; at; at = next) {
        next = at->next;
        hm_unparked(core, at);
    }
}
