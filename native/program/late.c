#include "program/late.h"

#include "program/program.h"

#include <string.h>

/* Of one block, whose stripe is held. */
static void punch_late(struct hm_process *process, uint64_t block)
{
    struct hm_page_sets *side = hm_page_sets_of(&process->late, block);
    for (uint32_t node = 1; side && node < process->core->config.nodes; node++) {
        hm_punch_runs(process->region, node, block, side->on[node]);
        memset(side->on[node], 0, sizeof(side->on[node]));
    }
}

void hm_process_flush(struct hm_process *process)
{
    uint32_t kept = 0, waiting = 0;
    for (uint32_t i = 0; i < process->late_blocks; i++) {
        uint64_t block = process->late_block[i];
        struct hm_stripe *stripe = hm_stripe_of(process->core, process->region->ino, block);
        hm_lock(HM_RANK_STRIPE, &stripe->lock);
        if (process->region->blocks[block].busy) {
            process->late_block[kept++] = block;
            for (uint32_t node = 1; node < process->core->config.nodes; node++)
                waiting += hm_bits(hm_page_sets_of(&process->late, block)->on[node]);
        } else {
            punch_late(process, block);
        }
        hm_unlock(HM_RANK_STRIPE, &stripe->lock);
    }
    process->late_blocks = kept;
    process->late_pages = waiting;
}

void hm_process_flush_block(struct hm_process *process, uint64_t block)
{
    struct hm_page_sets *side = hm_page_sets_of(&process->late, block), late;
    struct hm_stripe *stripe = hm_stripe_of(process->core, process->region->ino, block);
    if (!side)
        return;
    late = *side;
    memset(side, 0, sizeof(*side));
    hm_unlock(HM_RANK_STRIPE, &stripe->lock);
    for (uint32_t node = 1; node < process->core->config.nodes; node++)
        hm_punch_runs(process->region, node, block, late.on[node]);
    hm_lock(HM_RANK_STRIPE, &stripe->lock);
}

void hm_process_punch(struct hm_region *region)
{
    HM_GUARD(HM_RANK_PROCESS, &region->process->lock);
    hm_process_flush(region->process);
}
