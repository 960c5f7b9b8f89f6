/* A core without a mount, for tests that look inside it: one region, one thread that asks. */
#ifndef INSIDE_H
#define INSIDE_H
#include "core.h"

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#define INO (1ULL << 32)
#ifndef PATIENCE_MS
#define PATIENCE_MS 20000
#endif

static void (*on_failure)(void); /* tells more */

#define CHECK(condition, ...)                                                                      \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%s:%d: %s: ", __FILE__, __LINE__, #condition);                        \
            fprintf(stderr, __VA_ARGS__);                                                          \
            fprintf(stderr, " (errno %d)\n", errno);                                               \
            if (on_failure)                                                                        \
                on_failure();                                                                      \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

/* Wait for what another thread brings about. */
#define UNTIL(condition)                                                                           \
    do {                                                                                           \
        int patience = PATIENCE_MS;                                                                \
        while (!(condition)) {                                                                     \
            CHECK(patience--, "this does not come about");                                         \
            usleep(1000);                                                                          \
        }                                                                                          \
    } while (0)

static struct hm_core *core;
static struct hm_region *region;

static inline void make_core(struct hm_config config, uint64_t bytes)
{
    struct hm_region_record *record;
    CHECK(!hm_core_create(&config, &core), "core");
    CHECK(!hm_region_create(core, INO, S_IFREG | 0600, 0, 0, &record), "region");
    CHECK(!hm_region_truncate(core, INO, bytes), "size");
    region = hm_region_get(core, INO);
}

static inline void audit(void)
{
    char text[256] = "";
    CHECK(!hm_audit(core, text, sizeof(text)), "audit: %s", text);
}

static inline void end_core(void)
{
    audit();
    hm_region_put(region);
    hm_core_destroy(core);
}

static inline uint32_t state_of(uint64_t block)
{
    struct hm_stripe *stripe = hm_stripe_of(core, INO, block);
    uint32_t state;
    pthread_mutex_lock(&stripe->lock);
    state = region->blocks[block].state;
    pthread_mutex_unlock(&stripe->lock);
    return state;
}

/* The result of the job, which a mover carries out meanwhile. Other events are dropped. */
static inline int await_job(uint64_t cookie)
{
    struct pollfd ready = {.fd = hm_event_fd(core), .events = POLLIN};
    struct hm_event event;
    for (;;) {
        CHECK(poll(&ready, 1, PATIENCE_MS) == 1, "job %llu does not end",
              (unsigned long long)cookie);
        while (hm_events(core, &event, 1))
            if (event.kind == HM_EVENT_JOB && event.cookie == cookie)
                return event.result;
    }
}

static inline int run_job(struct hm_job job)
{
    job.ino = INO;
    CHECK(!hm_submit(core, &job), "submit");
    return await_job(job.cookie);
}

#endif
