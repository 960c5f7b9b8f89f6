/* Events from the native threads to the fault service. */
#ifndef HMMFS_BASE_EVENTS_H
#define HMMFS_BASE_EVENTS_H
struct hm_core;
struct hm_event;

/* Loses nothing and needs no memory; -ENOMEM at the start. */
int hm_events_init(struct hm_core *core);
void hm_events_deinit(struct hm_core *core);
void hm_event_push(struct hm_core *core, const struct hm_event *event);

#endif
