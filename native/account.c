/* The books: what moved, why, over which links, and what became of faults. Every move of pages and
 * every fault is entered here, so that the sums agree: see hmmfs/inspect/accounts.py.
 */
#include "transaction.h"

#include <stdio.h>
#include <sys/stat.h>

void hm_count_moved(struct hm_core *core, uint32_t from, uint32_t to, uint32_t pages,
                    enum hm_trigger trigger)
{
    if (!pages)
        return;
    hm_count(&core->flows.moved[from][to], pages);
    hm_count(&core->flows.out[from][trigger], pages);
    hm_count(&core->flows.in[to][trigger], pages);
    hm_count(&core->nodes[from].pages_out, pages);
    hm_count(&core->nodes[to].pages_in, pages);
}

void hm_count_faults(struct hm_region *region, uint32_t node, enum hm_fault_count what,
                     uint32_t faults)
{
    if (!faults)
        return;
    hm_count(&region->core->flows.faults[node][what], faults);
    hm_count(&region->accounts.faults[node][what], faults);
}

int hm_faults_failed(struct hm_core *core, uint32_t node, uint64_t ino, uint64_t block,
                     const uint64_t pages[8], int stores, uint64_t faulted_at)
{
    struct hm_region *region;
    struct hm_mask mask;
    if (node == HM_HOST || node >= core->config.nodes)
        return -ENODEV;
    if (!faulted_at)
        return 0;
    memcpy(mask.word, pages, sizeof(mask.word));
    region = hm_region_get(core, ino);
    if (!region) {
        hm_count(&core->flows.faults[node][HM_FAULTS_FAILED], hm_bits(mask.word));
        return 0;
    }
    hm_count_faults(region, node, HM_FAULTS_FAILED, hm_bits(mask.word));
    if (hm_traced(region, HM_TRACE_PAGE_FAULT_END)) {
        uint64_t now = hm_now();
        hm_trace(region, block, &mask,
                 (struct hm_trace_event){.kind = HM_TRACE_PAGE_FAULT_END,
                                         .trigger = stores ? HM_BY_WRITE : HM_BY_READ,
                                         .node = (uint8_t)node,
                                         .from = HM_NOWHERE,
                                         .to = HM_NOWHERE,
                                         .at_ns = now,
                                         .took_ns = faulted_at ? now - faulted_at : 0});
    }
    hm_region_put(region);
    return 0;
}

/* ---- moves ---------------------------------------------------------------------------------- */

struct cause hm_cause(const struct hm_job *job)
{
    if (job->flags & HM_JOB_EVICT)
        return (struct cause){HM_BY_EVICTION, job->source};
    if (job->flags & HM_JOB_FAULT)
        return (struct cause){HM_BY_CPU_FAULT, HM_HOST};
    if (job->kind == HM_JOB_TOUCH)
        return (struct cause){HM_BY_DEVICE_FAULT, job->node};
    if (job->flags & HM_JOB_ASKED)
        return (struct cause){HM_BY_PREFETCH, job->node};
    if (job->kind == HM_JOB_RECALL)
        return (struct cause){HM_BY_EVICTION, HM_HOST};
    return (struct cause){HM_BY_OPERATION, job->node};
}

/* Take the pages of the first page's source out of the mask: they are returned. */
static struct hm_mask from_one(struct hm_mask *mask, const uint8_t from[HM_BLOCK_PAGES],
                               uint32_t *node)
{
    struct hm_mask some = {{0}};
    *node = from[hm_next_page(mask->word, 0)];
    HM_EACH_PAGE (page, mask->word)
        if (from[page] == *node)
            some.word[page / 64] |= 1ULL << (page % 64);
    *mask = hm_without(*mask, &some);
    return some;
}

static struct hm_trace_event event_of(const struct transaction *t, enum hm_trace_kind kind,
                                      uint32_t from, uint32_t to, uint64_t began, uint64_t now)
{
    return (struct hm_trace_event){.at_ns = now,
                                   .took_ns = began ? now - began : 0,
                                   .kind = (uint8_t)kind,
                                   .trigger = (uint8_t)t->cause.trigger,
                                   .node = (uint8_t)t->cause.node,
                                   .from = (uint8_t)from,
                                   .to = (uint8_t)to};
}

void hm_trace_job(struct transaction *t, enum hm_trace_kind kind, const struct hm_mask *mask,
                  uint32_t from, uint32_t to, uint64_t began)
{
    if (hm_traced(t->region, kind))
        hm_trace(t->region, t->block, mask, event_of(t, kind, from, to, began, hm_now()));
}

uint64_t hm_trace_move(struct transaction *t, const struct hm_mask *moving,
                       const uint8_t from[HM_BLOCK_PAGES], uint64_t failed)
{
    struct hm_mask rest = *moving;
    uint64_t began = hm_now();
    uint32_t node;
    if (!hm_traced(t->region, failed ? HM_TRACE_MIGRATE_END : HM_TRACE_MIGRATE_START))
        return began;
    while (hm_bits(rest.word)) {
        struct hm_mask some = from_one(&rest, from, &node);
        struct hm_trace_event event =
            event_of(t, failed ? HM_TRACE_MIGRATE_END : HM_TRACE_MIGRATE_START, node,
                     failed ? node : t->job->node, failed, began);
        hm_trace(t->region, t->block, &some, event);
    }
    return began;
}

void hm_trace_stayed(struct transaction *t, const struct hm_mask *moving,
                     const struct hm_mask *moved, const uint8_t from[HM_BLOCK_PAGES],
                     uint64_t began)
{
    struct hm_mask rest = hm_without(*moving, moved);
    if (hm_bits(rest.word))
        hm_trace_move(t, &rest, from, began);
}

void hm_carried(struct transaction *t, enum hm_trace_kind kind, const struct hm_mask *concerned,
                const struct hm_mask *copied, const uint8_t from[HM_BLOCK_PAGES], uint64_t began)
{
    struct hm_mask rest = *concerned;
    uint32_t node, to = t->job->node;
    while (hm_bits(rest.word)) {
        struct hm_mask some = from_one(&rest, from, &node), bytes;
        uint32_t pages;
        uint64_t charged;
        HM_EACH_WORD (w)
            bytes.word[w] = some.word[w] & copied->word[w];
        pages = hm_bits(bytes.word);
        charged = hm_charge_copies(t->core, node, to, &bytes);
        t->charged += charged;
        hm_count(&t->core->flows.carried[node][to], pages);
        if (hm_traced(t->region, kind)) {
            struct hm_trace_event event = event_of(t, kind, node, to, began, hm_now());
            event.copied = pages;
            event.charged_ns = charged;
            hm_trace(t->region, t->block, &some, event);
        }
    }
}

/* ---- a worker's faults ---------------------------------------------------------------------- */

static void end_faults(struct transaction *t, const struct hm_mask *touched, bool stores)
{
    struct hm_trace_event event;
    if (!hm_traced(t->region, HM_TRACE_PAGE_FAULT_END))
        return;
    event =
        event_of(t, HM_TRACE_PAGE_FAULT_END, HM_NOWHERE, HM_NOWHERE, t->job->faulted_at, hm_now());
    event.trigger = stores ? HM_BY_WRITE : HM_BY_READ;
    event.charged_ns = t->charged;
    hm_trace(t->region, t->block, touched, event);
}

void hm_faults_served(struct transaction *t)
{
    const struct hm_served *served = &t->served;
    uint32_t node = t->job->node, all, stale;
    struct hm_mask touched;
    if (!t->job->faulted_at)
        return;
    HM_EACH_WORD (w)
        touched.word[w] = t->job->pages[w] | t->job->stores[w];
    all = hm_bits(touched.word);
    stale = all - served->migrated - served->populated - served->mapped - served->copied -
            served->upgraded;
    hm_count_faults(t->region, node, HM_FAULTS_MIGRATED, served->migrated);
    hm_count_faults(t->region, node, HM_FAULTS_POPULATED, served->populated);
    hm_count_faults(t->region, node, HM_FAULTS_MAPPED, served->mapped);
    hm_count_faults(t->region, node, HM_FAULTS_COPIED, served->copied);
    hm_count_faults(t->region, node, HM_FAULTS_UPGRADED, served->upgraded);
    hm_count_faults(t->region, node, HM_FAULTS_STALE, stale);
    end_faults(t, &touched, hm_bits(t->job->stores) != 0);
}

void hm_count_thrashing(struct transaction *t, bool sharing, const struct hm_mask *pages)
{
    struct hm_region_accounts *of = &t->region->accounts;
    uint32_t node = t->job->node, count = hm_bits(pages->word);
    if (!count)
        return;
    hm_count(sharing ? &t->core->nodes[node].shared_pages : &t->core->nodes[node].refaulted_pages,
             count);
    hm_count(sharing ? &of->shared[node] : &of->refaulted[node], count);
    atomic_store(sharing ? &of->shared_at[node] : &of->refaulted_at[node], hm_now());
    if (hm_traced(t->region, HM_TRACE_THRASHING)) {
        struct hm_trace_event event = event_of(t, HM_TRACE_THRASHING, HM_HOST, node, 0, hm_now());
        event.trigger = sharing ? HM_BY_SHARING : HM_BY_CAPACITY;
        hm_trace(t->region, t->block, pages, event);
    }
}

/* ---- reading the books ---------------------------------------------------------------------- */

/* Matrices of relaxed counters, which lie side by side, into plain numbers. */
static void copy_counters(uint64_t *to, const hm_counter *from, size_t count)
{
    for (size_t i = 0; i < count; i++)
        to[i] = atomic_load_explicit(&from[i], memory_order_relaxed);
}
#define COPY(to, from)                                                                             \
    copy_counters((uint64_t *)(to), (const hm_counter *)(from), sizeof(to) / sizeof(uint64_t))

int hm_flows_get(struct hm_core *core, struct hm_flows *out)
{
    const struct hm_core_flows *flows = &core->flows;
    COPY(out->moved, flows->moved);
    COPY(out->carried, flows->carried);
    COPY(out->linked, flows->linked);
    COPY(out->copies, flows->copies);
    COPY(out->link_ns, flows->link_ns);
    COPY(out->in, flows->in);
    COPY(out->out, flows->out);
    COPY(out->faults, flows->faults);
    return 0;
}

int hm_region_flows_get(struct hm_core *core, uint64_t ino, struct hm_region_flows *out)
{
    struct hm_region *region = hm_region_get(core, ino);
    const struct hm_region_accounts *from;
    if (!region)
        return -ENOENT;
    from = &region->accounts;
    COPY(out->faults, from->faults);
    COPY(out->evicted, from->evicted);
    COPY(out->refaulted, from->refaulted);
    COPY(out->thrashed, from->thrashed);
    COPY(out->shared, from->shared);
    COPY(out->refaulted_at, from->refaulted_at);
    COPY(out->shared_at, from->shared_at);
    hm_region_put(region);
    return 0;
}

int hm_node_stats_get(struct hm_core *core, uint32_t node, struct hm_node_stats *out)
{
    struct hm_node *n = &core->nodes[node];
    if (node >= core->config.nodes)
        return -ENODEV;
    *out = (struct hm_node_stats){.capacity = n->capacity,
                                  .used = n->used,
                                  .peak = n->peak,
                                  .pages_in = n->pages_in,
                                  .pages_out = n->pages_out,
                                  .copies_made = n->copies_made,
                                  .copies_saved = n->copies_saved,
                                  .evicted_blocks = n->evicted_blocks,
                                  .evicted_pages = n->evicted_pages,
                                  .refaulted_pages = n->refaulted_pages,
                                  .thrashed_pages = n->thrashed_pages,
                                  .shared_pages = n->shared_pages,
                                  .populated_pages = n->populated_pages,
                                  .dropped_pages = n->dropped_pages,
                                  .faults = n->faults,
                                  .mapped_pages = n->mapped_pages,
                                  .copies_begun = n->copies_begun,
                                  .copies_ended = n->copies_ended,
                                  .thrashing_pages = n->thrashing_pages,
                                  .throttles = n->throttles,
                                  .thrash_pins = n->thrash_pins,
                                  .throttle_ns = n->throttle_ns,
                                  .fault_batches = n->fault_batches,
                                  .operations = n->operations,
                                  .fault_ns = n->fault_ns,
                                  .copy_in_ns = n->copy_in_ns,
                                  .copy_out_ns = n->copy_out_ns};
    return 0;
}

static uint64_t allocated(int fd)
{
    struct stat status;
    return fd >= 0 && fstat(fd, &status) == 0 ? (uint64_t)status.st_blocks * 512 : 0;
}

HM_UNLOCKED static uint64_t cached_of(const struct hm_listed *at)
{
    const struct hm_block *block = &at->region->blocks[at->block];
    uint64_t n = 0;
    HM_EACH_WORD (w)
        n += hm_popcount(block->cached[w] | block->recalling[w]);
    return n;
}

int hm_stats_get(struct hm_core *core, struct hm_stats *out)
{
    struct hm_counters *c = &core->count;
    *out = (struct hm_stats){.reads = c->reads,
                             .writes = c->writes,
                             .read_bytes = c->read_bytes,
                             .written_bytes = c->written_bytes,
                             .cpu_read_faults = core->flows.faults[HM_HOST][HM_FAULTS_READ],
                             .cpu_write_faults = core->flows.faults[HM_HOST][HM_FAULTS_WRITE],
                             .clock_ns = core->clock,
                             .express_faults = c->express_faults,
                             .service_faults = c->service_faults,
                             .parked = c->parked,
                             .replayed = c->replayed,
                             .readahead_refused = c->readahead_refused,
                             .no_room = c->no_room,
                             .recalls = c->recalls,
                             .recall_retries = c->recall_retries,
                             .recalled_pages = c->recalled_pages,
                             .recalls_failed = c->recalls_failed,
                             .migrations = c->migrations,
                             .migrations_discarded = c->migrations_discarded,
                             .stale_writes_skipped = c->stale_writes_skipped,
                             .relayed = c->relayed,
                             .relay_queued = c->relay_queued,
                             .interrupts = c->interrupts,
                             .jobs = c->jobs,
                             .regions = core->regions};
    out->cpu_faults = out->cpu_read_faults + out->cpu_write_faults;
    pthread_mutex_lock(&core->trace->lock);
    out->trace_recorded = core->trace->head;
    pthread_mutex_unlock(&core->trace->lock);
    pthread_mutex_lock(&core->jobs_lock);
    out->movers = core->movers;
    pthread_mutex_unlock(&core->jobs_lock);
    pthread_rwlock_rdlock(&core->regions_lock);
    for (uint32_t i = 0; i < HM_REGION_BUCKETS; i++)
        for (struct hm_region *region = core->buckets[i]; region; region = region->next) {
            out->directory_bytes += allocated(region->directory_fd);
            for (uint32_t node = 0; node < HM_MAX_NODES; node++)
                out->pages_touched += hm_region_pages(region, node);
        }
    pthread_rwlock_unlock(&core->regions_lock);
    pthread_mutex_lock(&core->list_lock);
    for (uint32_t i = 0; i < core->list_used; i++)
        out->cached_pages += cached_of(&core->list[i]);
    pthread_mutex_unlock(&core->list_lock);
    return 0;
}

/* ---- whether they agree --------------------------------------------------------------------- */

#define AGREE(condition, ...)                                                                      \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            snprintf(text, size, __VA_ARGS__);                                                     \
            return false;                                                                          \
        }                                                                                          \
    } while (0)

bool hm_books_agree(struct hm_core *core, uint32_t node, uint64_t resident, char *text, size_t size)
{
    typedef unsigned long long number;
    const struct hm_node *n = &core->nodes[node];
    const struct hm_core_flows *flows = &core->flows;
    uint64_t in = 0, out = 0, by_in = 0, by_out = 0, became = 0, faults = n->faults;
    for (uint32_t other = 0; other < HM_MAX_NODES; other++) {
        in += flows->moved[other][node];
        out += flows->moved[node][other];
    }
    for (int trigger = 0; trigger <= HM_BY_OPERATION; trigger++) {
        by_in += flows->in[node][trigger];
        by_out += flows->out[node][trigger];
    }
    for (int what = HM_FAULTS_MIGRATED; what <= HM_FAULTS_FAILED; what++)
        became += flows->faults[node][what];
    AGREE(n->pages_in + n->populated_pages == n->pages_out + n->dropped_pages + resident,
          "node %u: %llu pages in and %llu populated are not %llu out, %llu dropped and %llu there",
          node, (number)n->pages_in, (number)n->populated_pages, (number)n->pages_out,
          (number)n->dropped_pages, (number)resident);
    AGREE(in == n->pages_in && out == n->pages_out && by_in == in && by_out == out,
          "node %u: pages by pair or trigger are not all that moved", node);
    AGREE(node == HM_HOST || (faults == flows->faults[node][HM_FAULTS_READ] +
                                            flows->faults[node][HM_FAULTS_WRITE] &&
                              faults == became),
          "node %u: of %llu faults %llu are accounted for", node, (number)faults, (number)became);
    return true;
}

/* ---- block by block ------------------------------------------------------------------------- */

static void count_block(struct hm_region *region, uint64_t b, struct hm_census *out)
{
    const struct hm_block *block = &region->blocks[b];
    struct hm_stripe *stripe = hm_stripe_of(region->core, region->ino, b);
    memset(out, 0, sizeof(*out));
    out->block = b;
    pthread_mutex_lock(&stripe->lock);
    for (uint32_t node = 0; node < region->core->config.nodes; node++) {
        struct hm_mask pages = hm_said_on(region, b, node);
        memcpy(out->on[node], pages.word, sizeof(pages.word));
        out->pages[node] = hm_bits(pages.word);
    }
    HM_EACH_WORD (w)
        out->cached += hm_popcount(block->cached[w] | block->recalling[w]);
    memcpy(out->dirty_on, block->dirty, sizeof(out->dirty_on));
    out->dirty = hm_bits(block->dirty);
    out->kept = hm_bits(block->kept);
    out->cpu_faults = block->cpu_faulted;
    out->device_faults = block->device_faulted;
    out->evictions = block->evictions;
    pthread_mutex_unlock(&stripe->lock);
}

int hm_region_census(struct hm_core *core, uint64_t ino, uint64_t from, struct hm_census *out,
                     int max)
{
    struct hm_region *region = hm_region_get(core, ino);
    uint64_t block;
    int n = 0;
    if (!region)
        return -ENOENT;
    for (; n < max && hm_region_touched(core, ino, from, &block, 1) == 1; from = block + 1)
        count_block(region, block, &out[n++]);
    hm_region_put(region);
    return n;
}
