/* The core as a whole: making and ending it, room on the nodes, the audit. */
#include "rest.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- a core ------------------------------------------------------------------------------- */

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
    core->region_free = hm_region_free;
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
        error = hm_movers_start(core);
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
    free(core->list);
    hm_events_deinit(core);
    hm_spares_deinit(core);
    free(core->gate);
    hm_published_free(core);
    hm_links_free(core);
    free(core);
}

/* Copies on the node and pages labelled as its, but for those of `pinned`; with HM_HOST the labels
 * of all devices. */
HM_UNLOCKED static uint32_t lent(const struct hm_listed *at, uint32_t node,
                                 const struct hm_mask *pinned)
{
    const struct hm_side *copies = atomic_load(&at->region->copies);
    const struct hm_side *labels = atomic_load(&at->region->labels);
    uint32_t pages = 0;
    for (uint32_t other = 1; other < at->region->core->config.nodes; other++) {
        if (node != HM_HOST && node != other)
            continue;
        HM_EACH_WORD (w) {
            uint64_t copied = copies && node ? copies[at->block].on[other][w] : 0;
            uint64_t labelled = labels ? labels[at->block].on[other][w] : 0;
            pages += hm_popcount(copied) + hm_popcount(labelled & ~pinned->word[w]);
        }
    }
    return pages;
}

/* Pages on the node that may leave it. */
HM_UNLOCKED static uint32_t movable(const struct hm_listed *at, uint32_t node)
{
    const struct hm_block *block = &at->region->blocks[at->block];
    struct hm_mask pinned = {{0}};
    uint32_t pages = block->pages[node], away;
    if (at->region->advised)
        pinned = hm_pinned(at->region, at->block);
    HM_EACH_PAGE (page, pinned.word)
        pages -= pages && hm_test(block->present, page) && block->owner[page] == node;
    away = lent(at, node, &pinned);
    if (node != HM_HOST)
        return pages + away;
    return pages - (pages < away ? pages : away); /* one may be older than the other */
}

HM_UNLOCKED static struct hm_candidate candidate_of(const struct hm_listed *at, uint32_t node)
{
    const struct hm_block *block = &at->region->blocks[at->block];
    struct hm_candidate found = {.ino = at->region->ino,
                                 .block = at->block,
                                 .last_cpu = block->last_cpu,
                                 .last_device = block->last_device,
                                 .last_migrated = block->last_migrated,
                                 .arrived = block->arrived,
                                 .uses = block->uses,
                                 .pages = movable(at, node),
                                 .held = block->busy || block->parked ||
                                         at->region->kind == HM_KIND_DAX};
    if (node == HM_HOST)
        HM_EACH_WORD (w) {
            uint64_t seen = block->cached[w] | block->recalling[w];
            found.reserved += hm_popcount(seen & ~block->present[w]);
            found.kept += hm_popcount(block->kept[w]);
        }
    return found;
}

int hm_candidates(struct hm_core *core, uint32_t node, struct hm_candidate *out, int max)
{
    int n = 0;
    if (node >= core->config.nodes)
        return -ENODEV;
    pthread_mutex_lock(&core->list_lock);
    for (uint32_t i = 0; i < core->list_used && n < max; i++) {
        struct hm_candidate found = candidate_of(&core->list[i], node);
        if (found.pages || found.reserved || found.kept)
            out[n++] = found;
    }
    pthread_mutex_unlock(&core->list_lock);
    return n;
}

/* Punch the kept copies of one block; a busy block is somebody's to decide about. */
static uint32_t drop_kept(struct hm_region *region, uint64_t block)
{
    struct hm_block *record = &region->blocks[block];
    struct hm_stripe *stripe = hm_stripe_of(region->core, region->ino, block);
    uint32_t dropped = 0, first = 0, count;
    pthread_mutex_lock(&stripe->lock);
    if (!record->busy) {
        for (; hm_next_run(record->kept, &first, &count); first += count)
            hm_pool_punch(&region->pools[HM_HOST],
                          block * HM_BLOCK_BYTES + (uint64_t)first * HM_PAGE_SIZE,
                          (uint64_t)count * HM_PAGE_SIZE);
        dropped = hm_bits(record->kept);
        memset(record->kept, 0, sizeof(record->kept));
        hm_step(region, block, "kept.dropped", HM_BY_GATE, NULL);
        hm_release(region->core, HM_HOST, dropped);
    }
    pthread_mutex_unlock(&stripe->lock);
    return dropped;
}

int64_t hm_drop_kept(struct hm_core *core, uint64_t pages)
{
    int64_t dropped = 0;
    int max, found;
    struct hm_candidate *all;
    pthread_mutex_lock(&core->list_lock);
    max = (int)core->list_used;
    pthread_mutex_unlock(&core->list_lock);
    all = malloc(((size_t)max + 1) * sizeof(*all));
    if (!all)
        return -ENOMEM;
    found = hm_candidates(core, HM_HOST, all, max);
    for (int i = 0; i < found && (uint64_t)dropped < pages; i++) {
        struct hm_region *region = all[i].kept ? hm_region_get(core, all[i].ino) : NULL;
        if (region) {
            dropped += drop_kept(region, all[i].block);
            hm_region_put(region);
        }
    }
    free(all);
    return dropped;
}

/* ---- the audit ---------------------------------------------------------------------------- */

struct audit {
    struct hm_core *core;
    char *text;
    size_t size;
    uint64_t used[HM_MAX_NODES];
    uint64_t resident[HM_MAX_NODES]; /* pages by the node that they are said to be on */
    bool bad;
};

#define AUDIT(a, condition, ...)                                                                   \
    do {                                                                                           \
        if (!(condition) && !(a)->bad) {                                                           \
            (a)->bad = true;                                                                       \
            snprintf((a)->text, (a)->size, __VA_ARGS__);                                           \
        }                                                                                          \
    } while (0)

static void audit_copies(struct audit *a, struct hm_region *region, uint64_t b, uint64_t *copied)
{
    const struct hm_block *block = &region->blocks[b];
    unsigned long long ino = region->ino, nr = b;
    for (uint32_t node = 1; node < a->core->config.nodes; node++) {
        struct hm_mask copies = hm_copies_on(region, b, node), labels;
        HM_EACH_WORD (w) {
            AUDIT(a, !(copies.word[w] & (block->device[w] | ~block->present[w])),
                  "region %llu block %llu: dev%u has a copy of a page that is not the host's", ino,
                  nr, node - 1);
            AUDIT(a, !(region->writers & HM_COPIES_ENDED && copies.word[w] & block->cached[w]),
                  "region %llu block %llu: the CPU may store to a page that dev%u has a copy of",
                  ino, nr, node - 1);
        }
        copied[node] += hm_bits(copies.word);
        a->used[node] += hm_bits(copies.word);
        labels = hm_labels_on(region, b, node);
        HM_EACH_WORD (w)
            AUDIT(a, !(labels.word[w] & (block->device[w] | ~block->present[w])),
                  "region %llu block %llu: dev%u labels a page that is not the host's", ino, nr,
                  node - 1);
        a->used[node] += hm_bits(labels.word);
        a->used[HM_HOST] -= hm_bits(labels.word);
        a->resident[node] += hm_bits(labels.word);
        a->resident[HM_HOST] -= hm_bits(labels.word);
    }
}

static void audit_block(struct audit *a, struct hm_region *region, uint64_t b, uint64_t *pages,
                        uint64_t *kept)
{
    const struct hm_block *block = &region->blocks[b];
    uint32_t count[HM_MAX_NODES] = {0};
    unsigned long long ino = region->ino, nr = b;
    HM_EACH_WORD (w) {
        uint64_t seen = block->cached[w] | block->recalling[w];
        AUDIT(a, !(block->device[w] & ~block->present[w]),
              "region %llu block %llu: a device owns a page that is not present", ino, nr);
        AUDIT(a, !(block->kept[w] & (~block->device[w] | block->dirty[w])),
              "region %llu block %llu: a kept copy of a host-owned or dirty page", ino, nr);
        AUDIT(a, !(seen & block->device[w]),
              "region %llu block %llu: a device-owned page is cached by the CPU", ino, nr);
    }
    for (uint32_t page = 0; page < HM_BLOCK_PAGES; page++) {
        uint32_t owner = block->owner[page];
        AUDIT(a,
              owner < a->core->config.nodes && (owner != HM_HOST) == hm_test(block->device, page),
              "region %llu block %llu page %u: owner %u disagrees with the device bit", ino, nr,
              page, owner);
        if (owner < HM_MAX_NODES)
            count[owner] += hm_test(block->present, page);
    }
    for (uint32_t node = 0; node < a->core->config.nodes; node++) {
        AUDIT(a, count[node] == block->pages[node],
              "region %llu block %llu: %u pages on node %u, its counter says %u", ino, nr,
              count[node], node, block->pages[node]);
        pages[node] += count[node];
        a->resident[node] += count[node];
        if (node != HM_HOST)
            a->used[node] += count[node];
    }
    *kept += hm_bits(block->kept);
    a->used[HM_HOST] += hm_block_charge(region, block);
}

/* A coherent or DAX region has room for all pages of its size, and its memfd no more than those. */
static void audit_shared(struct audit *a, struct hm_region *region, uint64_t pages)
{
    unsigned long long ino = region->ino;
    uint64_t there = hm_pool_allocated(&region->pools[HM_HOST]);
    uint64_t size = hm_region_size(region), length = hm_pool_length(&region->pools[HM_HOST]);
    AUDIT(a, pages == (size + HM_PAGE_SIZE - 1) / HM_PAGE_SIZE,
          "region %llu: %llu pages have a place, of %llu bytes", ino, (unsigned long long)pages,
          (unsigned long long)size);
    AUDIT(a, there <= pages,
          "region %llu: its memory holds %llu pages, and room was taken for %llu", ino,
          (unsigned long long)there, (unsigned long long)pages);
    AUDIT(a, length == size, "region %llu: its memory is %llu bytes long, not %llu", ino,
          (unsigned long long)length, (unsigned long long)size);
}

static void audit_region(struct audit *a, struct hm_region *region)
{
    uint64_t pages[HM_MAX_NODES] = {0}, copied[HM_MAX_NODES] = {0}, kept = 0, from = 0, b, all = 0;
    unsigned long long ino = region->ino;
    while (hm_region_touched(a->core, region->ino, from, &b, 1) == 1) {
        struct hm_stripe *stripe = hm_stripe_of(a->core, region->ino, b);
        pthread_mutex_lock(&stripe->lock);
        audit_block(a, region, b, pages, &kept);
        audit_copies(a, region, b, copied);
        pthread_mutex_unlock(&stripe->lock);
        from = b + 1;
    }
    for (uint32_t node = 0; node < a->core->config.nodes; node++) {
        uint64_t held = pages[node] + copied[node] + (node == HM_HOST ? kept : 0);
        uint64_t there = hm_pool_allocated(&region->pools[node]);
        AUDIT(a, !region->pools[node].unpunched,
              "region %llu: the kernel refused %llu punches of the pool of node %u", ino,
              (unsigned long long)region->pools[node].unpunched, node);
        AUDIT(a, pages[node] == hm_region_pages(region, node),
              "region %llu: %llu pages on node %u, its record says %llu", ino,
              (unsigned long long)pages[node], node,
              (unsigned long long)hm_region_pages(region, node));
        AUDIT(a, held == there || hm_is_shared(region),
              "region %llu: the pool of node %u holds %llu pages, not %llu", ino, node,
              (unsigned long long)there, (unsigned long long)held);
        all += pages[node];
    }
    if (hm_is_shared(region))
        audit_shared(a, region, all);
}

int hm_audit(struct hm_core *core, char *text, size_t size)
{
    struct audit a = {.core = core, .text = text, .size = size};
    uint64_t *inos;
    uint32_t n = 0;
    /* A region on its way out still has pages accounted for; 64 GiB take some seconds. */
    for (int ms = 0; core->dying && ms < 2000; ms++)
        usleep(1000);
    pthread_rwlock_rdlock(&core->regions_lock);
    inos = malloc(sizeof(*inos) * (core->table_used + 1));
    for (uint32_t i = 0; inos && i < HM_REGION_BUCKETS; i++)
        for (struct hm_region *region = core->buckets[i]; region; region = region->next)
            inos[n++] = region->ino;
    pthread_rwlock_unlock(&core->regions_lock);
    if (!inos)
        return -ENOMEM;
    for (uint32_t i = 0; i < n; i++) {
        struct hm_region *region = hm_region_get(core, inos[i]);
        if (region) {
            if (region->process)
                hm_process_punch(region); /* what is late would look like too much */
            audit_region(&a, region);
            hm_region_put(region);
        }
    }
    free(inos);
    for (uint32_t node = 0; node < core->config.nodes; node++) {
        uint64_t most = core->nodes[node].capacity + (node == HM_HOST ? HM_BLOCK_PAGES : 0);
        AUDIT(&a, core->nodes[node].used == a.used[node],
              "node %u: %llu pages are accounted for, %llu are used", node,
              (unsigned long long)a.used[node], (unsigned long long)core->nodes[node].used);
        AUDIT(&a, core->nodes[node].peak <= most, "node %u: its peak passed its capacity", node);
        if (!a.bad)
            a.bad = !hm_books_agree(core, node, a.resident[node], text, size);
    }
    return a.bad ? -EUCLEAN : 0;
}
