/* Events from the native threads to the fault service: a ring that grows, and an eventfd. */
#include "core.h"

#include <stdlib.h>
#include <unistd.h>

static bool events_grow(struct hm_core *core)
{
    uint32_t room = core->events_room ? core->events_room * 2 : 256;
    struct hm_event *events = malloc(room * sizeof(*events));
    if (!events)
        return false;
    for (uint32_t i = 0; i < core->events_used; i++)
        events[i] = core->events[(core->events_head + i) % core->events_room];
    free(core->events);
    core->events = events;
    core->events_room = room;
    core->events_head = 0;
    return true;
}

void hm_event_push(struct hm_core *core, const struct hm_event *event)
{
    uint64_t one = 1;
    bool signal;
    pthread_mutex_lock(&core->events_lock);
    /* Losing an event would leave a program waiting for ever: without memory, wait for some. */
    while (core->events_used == core->events_room && !events_grow(core))
        usleep(1000);
    core->events[(core->events_head + core->events_used++) % core->events_room] = *event;
    signal = core->events_used == 1;
    pthread_mutex_unlock(&core->events_lock);
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
    pthread_mutex_lock(&core->events_lock);
    while (n < max && core->events_used) {
        out[n++] = core->events[core->events_head];
        core->events_head = (core->events_head + 1) % core->events_room;
        core->events_used--;
    }
    /* Emptied under the lock, so that a push that finds the ring empty signals again. */
    if (!core->events_used && read(core->event_fd, &count, sizeof(count)) < 0)
        count = 0;
    pthread_mutex_unlock(&core->events_lock);
    return n;
}
