/* What moved, why, over which links, and what became of faults. Every move of pages and every fault
 * is entered here, so that the sums agree: see hmmfs/inspect/mount/accounts.py. */
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
    hm_count(&core->nodes[from].counts.pages_out, pages);
    hm_count(&core->nodes[to].counts.pages_in, pages);
}

void hm_count_faults(struct hm_region *region, uint32_t node, enum hm_fault_count what,
                     uint32_t faults)
{
    if (!faults)
        return;
    hm_count(&region->core->flows.faults[node][what], faults);
    hm_count(&region->flows.faults[node][what], faults);
}

/* ---- reading the books ---------------------------------------------------------------------- */

/* Structs of counters, which are words: each as it is then. */
static void read_all(void *to, const void *from, size_t bytes)
{
    for (size_t i = 0; i < bytes / sizeof(uint64_t); i++)
        ((uint64_t *)to)[i] = hm_read((const uint64_t *)from + i);
}

int hm_flows_get(struct hm_core *core, struct hm_flows *out)
{
    read_all(out, &core->flows, sizeof(*out));
    return 0;
}

int hm_region_flows_get(struct hm_core *core, uint64_t ino, struct hm_region_flows *out)
{
    HM_AUTO_PUT struct hm_region *region = hm_region_get(core, ino);
    if (!region)
        return -ENOENT;
    read_all(out, &region->flows, sizeof(*out));
    return 0;
}

int hm_node_stats_get(struct hm_core *core, uint32_t node, struct hm_node_stats *out)
{
    struct hm_node *n = &core->nodes[node];
    if (node >= core->config.nodes)
        return -ENODEV;
    read_all(out, &n->counts, sizeof(*out));
    out->capacity = n->capacity;
    out->used = n->used;
    out->peak = n->peak;
    return 0;
}

void hm_counted(struct hm_core *core, struct hm_stats *out)
{
    read_all(out, &core->count, sizeof(*out));
    out->cpu_read_faults = hm_read(&core->flows.faults[HM_HOST][HM_FAULTS_READ]);
    out->cpu_write_faults = hm_read(&core->flows.faults[HM_HOST][HM_FAULTS_WRITE]);
    out->cpu_faults = out->cpu_read_faults + out->cpu_write_faults;
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
    struct hm_node_stats stats, *n = &stats;
    struct hm_flows *flows = &core->flows;
    uint64_t in = 0, out = 0, by_in = 0, by_out = 0, became = 0, faults;
    hm_node_stats_get(core, node, n);
    faults = n->faults;
    for (uint32_t other = 0; other < HM_MAX_NODES; other++) {
        in += hm_read(&flows->moved[other][node]);
        out += hm_read(&flows->moved[node][other]);
    }
    for (int trigger = 0; trigger <= HM_BY_OPERATION; trigger++) {
        by_in += hm_read(&flows->in[node][trigger]);
        by_out += hm_read(&flows->out[node][trigger]);
    }
    for (int what = HM_FAULTS_MIGRATED; what <= HM_FAULTS_FAILED; what++)
        became += hm_read(&flows->faults[node][what]);
    AGREE(n->pages_in + n->populated_pages == n->pages_out + n->dropped_pages + resident,
          "node %u: %llu pages in and %llu populated are not %llu out, %llu dropped and %llu there",
          node, (number)n->pages_in, (number)n->populated_pages, (number)n->pages_out,
          (number)n->dropped_pages, (number)resident);
    AGREE(in == n->pages_in && out == n->pages_out && by_in == in && by_out == out,
          "node %u: pages by pair or trigger are not all that moved", node);
    AGREE(node == HM_HOST || (faults == hm_read(&flows->faults[node][HM_FAULTS_READ]) +
                                            hm_read(&flows->faults[node][HM_FAULTS_WRITE]) &&
                              faults == became),
          "node %u: of %llu faults %llu are accounted for", node, (number)faults, (number)became);
    return true;
}
