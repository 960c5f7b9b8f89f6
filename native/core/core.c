/* A core is made and ends. */
#include "base/events.h"
#include "base/published.h"
#include "books/cost.h"
#include "books/trace.h"
#include "core/regions.h"
#include "directory/windows.h"
#include "rules/evict.h"
#include "gate/access.h"
#include "gate/order.h"
#include "gate/relay.h"
#include "gate/retry.h"
#include "transaction/jobs.h"
#include "transaction/movers.h"
#include "transaction/parked.h"
#include "transaction/transaction.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

int hm_core_create(const struct hm_config *config, struct hm_core **ret)
{
    /* Few pages first, the whole block when they keep coming; 16 are what a gate thread copies. */
    static const struct hm_prefetch first_policy = {
        HM_PREFETCH_TABLE, {HM_INLINE_PAGES, 64, HM_BLOCK_PAGES, HM_BLOCK_PAGES}};
    struct hm_core *core;
    void *zeros;
    int error;
    if (config->nodes < 1 || config->nodes > HM_MAX_NODES || !config->threads)
        return -EINVAL;
    core = aligned_alloc(64, (sizeof(*core) + 63) / 64 * 64);
    if (!core)
        return -ENOMEM;
    memset(core, 0, sizeof(*core));
    core->config = *config;
    core->answer = hm_answer;
    core->region_free = hm_region_free;
    core->unlisted = hm_residents_free;
    core->run_now = hm_run_now;
    core->event_fd = core->stop_fd = core->fuse_fd = -1;
    for (uint32_t node = 0; node < config->nodes; node++)
        core->nodes[node].capacity = config->capacity[node];
    pthread_mutex_init(&core->list_lock, NULL);
    pthread_mutex_init(&core->jobs_lock, NULL);
    pthread_cond_init(&core->jobs_ready, NULL);
    pthread_mutex_init(&core->events_lock, NULL);
    pthread_mutex_init(&core->spares_lock, NULL);
    core->jobs_end = &core->jobs;
    for (uint32_t i = 0; i < HM_STRIPES; i++) {
        struct hm_stripe *stripe = &core->stripes[i];
        pthread_mutex_init(&stripe->lock, NULL);
        pthread_cond_init(&stripe->changed, NULL);
        stripe->parked_end = &stripe->parked;
        stripe->deferred_end = &stripe->deferred;
    }
    error = hm_regions_init(core);
    if (!error)
        error = hm_trace_init(core);
    if (!error)
        error = hm_devices_init(core);
    if (!error)
        error = hm_evictors_init(core);
    if (error)
        goto fail;
    error = -ENOMEM;
    zeros = mmap(NULL, HM_ZERO_BYTES, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (zeros == MAP_FAILED)
        goto fail;
    core->zeros = zeros;
    core->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    core->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (core->event_fd < 0 || core->stop_fd < 0) {
        error = -errno;
        goto fail;
    }
    error = hm_events_init(core);
    if (!error)
        error = hm_spares_init(core);
    for (uint32_t node = 0; node < config->nodes && !error; node++)
        error = hm_prefetch_set(core, node, &first_policy);
    if (!error)
        error = hm_movers_start(core, hm_run);
    if (error)
        goto fail;
    *ret = core;
    return 0;
fail:
    hm_core_destroy(core);
    return error;
}

static void close_if_open(int fd)
{
    if (fd >= 0)
        close(fd);
}

void hm_core_destroy(struct hm_core *core)
{
    if (core->relay)
        hm_relay_stop(core->relay);
    for (uint32_t node = 1; core->device && node < core->config.nodes; node++)
        hm_device_detach(core, node);
    for (uint32_t i = 0; i < HM_REGION_BUCKETS; i++)
        for (struct hm_region *region = core->buckets[i]; region; region = region->next)
            hm_process_detach(core, region->ino, 0);
    hm_movers_stop(core);
    for (uint32_t i = 0; i < HM_REGION_BUCKETS; i++)
        while (core->buckets[i])
            hm_region_destroy(core, core->buckets[i]->ino);
    for (uint32_t i = 0; i < HM_STRIPES; i++) {
        struct hm_stripe *stripe = &core->stripes[i];
        for (struct hm_parked *at = stripe->parked, *next; at; at = next) {
            next = at->next;
            hm_unparked(core, at);
        }
        for (struct hm_queued_job *at = stripe->deferred, *next; at; at = next) {
            next = at->next;
            free(at);
        }
        hm_order_free(stripe);
        pthread_mutex_destroy(&stripe->lock);
        pthread_cond_destroy(&stripe->changed);
    }
    hm_retry_deinit(core);
    hm_regions_deinit(core);
    if (core->zeros)
        munmap((void *)core->zeros, HM_ZERO_BYTES);
    close_if_open(core->event_fd);
    close_if_open(core->stop_fd);
    close_if_open(core->fuse_fd);
    pthread_mutex_destroy(&core->list_lock);
    pthread_mutex_destroy(&core->jobs_lock);
    pthread_cond_destroy(&core->jobs_ready);
    pthread_mutex_destroy(&core->events_lock);
    pthread_mutex_destroy(&core->spares_lock);
    hm_trace_deinit(core);
    hm_devices_deinit(core);
    hm_evictors_deinit(core);
    free(core->list);
    hm_events_deinit(core);
    hm_spares_deinit(core);
    free(core->gate);
    hm_published_free(core);
    hm_links_free(core);
    free(core);
}
