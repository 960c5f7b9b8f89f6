/* Events from the native threads to the fault service: a ring, and an eventfd.
 *
 * Losing an event would leave a program waiting for ever, and many are pushed where a stripe is
 * held that the service may need: so a push asks for no memory, and waits for nobody but other
 * pushes. The ring holds more than there are programs, workers and jobs to tell of. */
#include "base/events.h"

#include "base/core.h"
#include "base/pool.h"

#include <errno.h>

#include <unistd.h>

#define HM_EVENTS                                                                                  \
    (1u << 18) /* 56 MiB of address space, and memory for the most that ever waited                \
                */

int hm_events_init(struct hm_core *core)
{
    core->events = hm_reserve_memory(HM_EVENTS * sizeof(*core->events));
    return core->events ? 0 : -ENOMEM;
}

void hm_events_deinit(struct hm_core *core)
{
    hm_free_memory(core->events, HM_EVENTS * sizeof(*core->events));
}

void hm_event_push(struct hm_core *core, const struct hm_event *event)
{
    uint64_t one = 1;
    bool signal;
    hm_lock(HM_RANK_EVENTS, &core->events_lock);
    while (core->events_used == HM_EVENTS) { /* the service has died */
        hm_unlock(HM_RANK_EVENTS, &core->events_lock);
        usleep(1000);
        hm_lock(HM_RANK_EVENTS, &core->events_lock);
    }
    if (!core->events_used)
        core->events_head = 0; /* memory that was used already */
    core->events[(core->events_head + core->events_used++) % HM_EVENTS] = *event;
    signal = core->events_used == 1;
    hm_unlock(HM_RANK_EVENTS, &core->events_lock);
    if (signal && write(core->event_fd, &one, sizeof(one)) < 0)
        return; /* the counter is full, so it is readable */
}

int hm_event_fd(struct hm_core *core)
{
    return core->event_fd;
}

int hm_events(struct hm_core *core, struct hm_event *out, int max)
{
    uint64_t count;
    int n = 0;
    HM_GUARD(HM_RANK_EVENTS, &core->events_lock);
    while (n < max && core->events_used) {
        out[n++] = core->events[core->events_head];
        core->events_head = (core->events_head + 1) % HM_EVENTS;
        core->events_used--;
    }
    /* Emptied under the lock, so that a push that finds the ring empty signals again. */
    if (!core->events_used && read(core->event_fd, &count, sizeof(count)) < 0)
        count = 0;
    return n;
}
