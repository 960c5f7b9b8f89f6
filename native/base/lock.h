/* The locks of the core, and their ranks: the one place that says what each guards, and in which
 * order they are taken. A thread takes only locks of a higher rank than all that it holds, so of
 * one rank it holds at most one. Where tests build the core, with a sanitizer or with points to
 * hold threads at, hm_lock aborts otherwise, and so does a long copy under a stripe. */
#ifndef HMMFS_BASE_LOCK_H
#define HMMFS_BASE_LOCK_H
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>

#define HM_INLINE_PAGES 16 /* a copy of 64 KiB takes some 25 us: the most a stripe is held for */

enum hm_rank {
    HM_RANK_RELAY_OPENS,   /* relay->opens_lock: what files are being opened */
    HM_RANK_RELAY_TRACKED, /* relay->tracked_lock: requests that may be interrupted */
    HM_RANK_RELAY_QUEUE,   /* queue->lock: messages to and from pyfuse3 */
    HM_RANK_EVICT,   /* core->evict_lock: one mover at a time evicts from a device; held while the
                        victims leave, and others wait */
    HM_RANK_PROCESS, /* process->lock: what a program did to its memory, and what is done to it */
    HM_RANK_SHARED,  /* region->shared_lock: the size of a coherent or DAX region, and writes to
                        it from here */
    HM_RANK_REGIONS, /* core->regions_lock: the table of regions; held for look-ups, never across
                        a wait */
    HM_RANK_STRIPE,  /* stripe->lock: the block records that hash to the stripe, its parked
                        requests, deferred jobs and recent WRITEs; never held across an INVAL, a
                        wait for another party, or a copy of more than HM_INLINE_PAGES pages */
    HM_RANK_DEVICE,  /* device->lock: the windows of one device's worker */
    HM_RANK_POOLS,   /* region->pools_lock: the making of a pool and of histories */
    HM_RANK_LIST,    /* core->list_lock: the list of touched blocks, and the orders in which they
                        leave devices */
    HM_RANK_ADVICE,  /* region->advice_lock: what was said of its pages; read for a moment */
    HM_RANK_JOBS,    /* core->jobs_lock: the movers' queue */
    HM_RANK_SPARES,  /* core->spares_lock: places for requests that wait, and those that wait for
                        capacity */
    HM_RANK_TRACE,   /* trace->lock: the ring of trace events */
    HM_RANK_EVENTS,  /* core->events_lock: the events for the service */
};

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || defined(HM_PAUSES)
/* Who switches stacks switches both. */
extern _Thread_local unsigned hm_ranks_held; /* a bit for each */
extern _Thread_local size_t hm_rank_copied;  /* bytes, since this thread took its last stripe */
void hm_rank_taken(enum hm_rank rank, bool in_order);
void hm_rank_left(enum hm_rank rank);
void hm_rank_copies(size_t bytes); /* what this thread is about to copy, or to fill with zeros */
#else
#define hm_rank_taken(rank, in_order) ((void)0)
#define hm_rank_left(rank) ((void)0)
#define hm_rank_copies(bytes) ((void)0)
#endif

static inline void hm_lock(enum hm_rank rank, pthread_mutex_t *lock)
{
    hm_rank_taken(rank, true);
    pthread_mutex_lock(lock);
}

/* In any order, since it waits for nobody. False: somebody has it. */
static inline bool hm_try_lock(enum hm_rank rank, pthread_mutex_t *lock)
{
    if (pthread_mutex_trylock(lock))
        return false;
    hm_rank_taken(rank, false);
    return true;
}

static inline void hm_unlock(enum hm_rank rank, pthread_mutex_t *lock)
{
    hm_rank_left(rank);
    pthread_mutex_unlock(lock);
}

struct hm_guard {
    enum hm_rank rank;
    pthread_mutex_t *lock;
};

static inline struct hm_guard hm_guard_begin(enum hm_rank rank, pthread_mutex_t *lock)
{
    hm_lock(rank, lock);
    return (struct hm_guard){rank, lock};
}

static inline void hm_guard_end(struct hm_guard *guard)
{
    hm_unlock(guard->rank, guard->lock);
}

/* Holds a lock from here to the end of the scope, however that is left. One for each scope. */
#define HM_GUARD(rank, lock)                                                                       \
    __attribute__((cleanup(hm_guard_end), unused)) struct hm_guard guard =                         \
        hm_guard_begin((rank), (lock))

static inline void hm_lock_to_read(enum hm_rank rank, pthread_rwlock_t *lock)
{
    hm_rank_taken(rank, true);
    pthread_rwlock_rdlock(lock);
}

static inline void hm_lock_to_write(enum hm_rank rank, pthread_rwlock_t *lock)
{
    hm_rank_taken(rank, true);
    pthread_rwlock_wrlock(lock);
}

static inline void hm_unlock_either(enum hm_rank rank, pthread_rwlock_t *lock)
{
    hm_rank_left(rank);
    pthread_rwlock_unlock(lock);
}

#endif
