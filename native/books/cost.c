/* The simulated clock: what faults and copies would take on the machine that is emulated.
 *
 * It is a sum, not a schedule: each fault and each run of pages that lie side by side is charged
 * what the cost model says, as if one came after the other. So it does not depend on how fast this
 * machine is, or on what else runs.
 */
#include "books/cost.h"

#include <errno.h>

#include <stdlib.h>
#include <string.h>

int hm_fault_cost_set(struct hm_core *core, uint32_t node, uint32_t ns)
{
    if (node >= core->config.nodes)
        return -ENODEV;
    core->nodes[node].fault_cost = ns;
    return 0;
}

int hm_link_set(struct hm_core *core, uint32_t one, uint32_t two, const uint32_t run_ns[513])
{
    uint32_t *copy;
    if (one >= core->config.nodes || two >= core->config.nodes)
        return -ENODEV;
    if (one == two)
        return -EINVAL;
    copy = malloc((HM_BLOCK_PAGES + 1) * sizeof(*copy));
    if (!copy)
        return -ENOMEM;
    memcpy(copy, run_ns, (HM_BLOCK_PAGES + 1) * sizeof(*copy));
    free(core->links[one][two]);
    core->links[one][two] = core->links[two][one] = copy;
    return 0;
}

void hm_links_free(struct hm_core *core)
{
    for (uint32_t two = 0; two < HM_MAX_NODES; two++)
        for (uint32_t one = 0; one < two; one++)
            free(core->links[one][two]); /* the same as [two][one] */
}

uint64_t hm_charge_faults(struct hm_core *core, uint32_t node, uint32_t faults)
{
    uint64_t ns = (uint64_t)faults * core->nodes[node].fault_cost;
    hm_count(&core->nodes[node].counts.fault_ns, ns);
    hm_count(&core->count.clock_ns, ns);
    return ns;
}

/* Over the link of two nodes; free of charge where there is none. */
static uint64_t charge_link(struct hm_core *core, uint32_t from, uint32_t to, uint32_t pages)
{
    const uint32_t *run_ns = core->links[from][to];
    uint64_t ns = run_ns ? run_ns[pages] : 0;
    hm_count(&core->flows.linked[from][to], pages);
    hm_count(&core->flows.copies[from][to], 1);
    hm_count(&core->flows.link_ns[from][to], ns);
    hm_count(&core->nodes[from].counts.copy_out_ns, ns);
    hm_count(&core->nodes[to].counts.copy_in_ns, ns);
    return ns;
}

/* A copy between devices goes over their own link, or through the host: over the one's link, then
 * over the other's. */
static uint64_t charge_run(struct hm_core *core, uint32_t from, uint32_t to, uint32_t pages)
{
    if (from == HM_HOST || to == HM_HOST || core->links[from][to])
        return charge_link(core, from, to, pages);
    return charge_link(core, from, HM_HOST, pages) + charge_link(core, HM_HOST, to, pages);
}

uint64_t hm_charge_copies(struct hm_core *core, uint32_t from, uint32_t to,
                          const struct hm_mask *copied)
{
    uint64_t all = 0;
    uint32_t first = 0, count;
    for (; hm_next_run(copied->word, &first, &count); first += count)
        all += charge_run(core, from, to, count);
    hm_count(&core->count.clock_ns, all);
    return all;
}
