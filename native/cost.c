/* The simulated clock: what faults and copies would take on the machine that is emulated.
 *
 * It is a sum, not a schedule: each fault and each run of pages that lie side by side is charged
 * what the cost model says, as if one came after the other. So it does not depend on how fast this
 * machine is, or on what else runs.
 */
#include "core.h"

int hm_cost_set(struct hm_core *core, uint32_t node, const struct hm_cost *cost)
{
    if (node >= core->config.nodes)
        return -ENODEV;
    core->nodes[node].cost = *cost;
    return 0;
}

uint64_t hm_charge_faults(struct hm_core *core, uint32_t node, uint32_t faults)
{
    uint64_t ns = (uint64_t)faults * core->nodes[node].cost.fault_ns;
    hm_count(&core->nodes[node].fault_ns, ns);
    hm_count(&core->clock, ns);
    return ns;
}

/* A copy between devices goes over their own link, or through the host: over the one's link, then
 * over the other's. */
static uint64_t charge_run(struct hm_core *core, uint32_t from, uint32_t to, uint32_t pages)
{
    struct hm_node *host = &core->nodes[HM_HOST];
    uint64_t peer = core->nodes[from].cost.peer_ns[pages], all = 0;
    if (from != HM_HOST && to != HM_HOST && peer) {
        hm_count(&core->nodes[from].copy_out_ns, peer);
        hm_count(&core->nodes[to].copy_in_ns, peer);
        return peer;
    }
    if (from != HM_HOST) {
        uint64_t ns = core->nodes[from].cost.run_ns[pages];
        all += ns;
        hm_count(&core->nodes[from].copy_out_ns, ns);
        hm_count(&host->copy_in_ns, ns);
    }
    if (to != HM_HOST) {
        uint64_t ns = core->nodes[to].cost.run_ns[pages];
        all += ns;
        hm_count(&core->nodes[to].copy_in_ns, ns);
        hm_count(&host->copy_out_ns, ns);
    }
    return all;
}

uint64_t hm_charge_copies(struct hm_core *core, uint32_t to, const struct hm_mask *copied,
                          const uint8_t from[HM_BLOCK_PAGES])
{
    uint64_t all = 0;
    uint32_t first = 0, count;
    for (; hm_next_run(copied->word, &first, &count); first += count) {
        uint32_t n = 1;
        while (n < count && from[first + n] == from[first])
            n++;
        count = n;
        all += charge_run(core, from[first], to, count);
    }
    hm_count(&core->clock, all);
    return all;
}
