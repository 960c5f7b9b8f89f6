/* The ring of events that people read. */
#ifndef HMMFS_BOOKS_TRACE_H
#define HMMFS_BOOKS_TRACE_H
#include "base/region.h"

#define HM_TRACE_NAMES 4096 /* inode numbers are given out one after the other */

struct hm_trace {
    pthread_mutex_t lock; /* guards the ring, its size, head, floor and whether somebody is to be
                             woken; the last lock that a thread takes but for events_lock */
    struct hm_trace_event *ring;
    uint32_t size;         /* a power of two, or 0 */
    uint64_t head, floor;  /* numbers of the next event, and of the oldest that may be read */
    bool wake;             /* HM_EVENT_TRACE is to be sent with the next event */
    _Atomic uint32_t mask; /* of kinds; 0 while there is no ring */
    uint32_t kinds;
    struct hm_trace_name *gone[HM_TRACE_NAMES]; /* of regions that went, by inode number */
};

/* Whether to make the effort of an event. */
static inline bool hm_traced(const struct hm_region *region, enum hm_trace_kind kind)
{
    return atomic_load_explicit(&region->core->trace->mask, memory_order_relaxed) >> kind & 1 &&
           !atomic_load_explicit(&region->untraced, memory_order_relaxed);
}
#define HM_NOWHERE 255 /* where an event names no node */
/* The pages of a mask, from the first to the last of them. Nothing for an empty mask. */
void hm_trace(struct hm_region *region, uint64_t block, const struct hm_mask *mask,
              struct hm_trace_event event);
/* A program's fault, which the host serves: that it began, or that it has ended. */
void hm_trace_cpu_fault(struct hm_region *region, uint64_t block, const struct hm_mask *mask,
                        bool write, uint64_t began, bool ended);
void hm_trace_gone(struct hm_region *region); /* remember what it was called */
int hm_trace_init(struct hm_core *core);      /* -ENOMEM */
void hm_trace_deinit(struct hm_core *core);

#endif
