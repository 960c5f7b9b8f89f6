/* What moved, why, over which links, and what became of faults. Every move of pages and every fault
 * is entered here, so that the sums agree: see hmmfs/inspect/accounts.py. */
#include "books/counters.h"

#include <errno.h>
#include <stdio.h>

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
