/* What is said of pages that devices have: that one has them for itself, that they are one huge
 * page; and of a device, that it gets none. */
#include "program/marks.h"

#include "directory/records.h"
#include "program/memory.h"
#include "program/program.h"
#include "program/vma.h"

#include <errno.h>
#include <string.h>

void hm_process_revoke(struct hm_process *process, uint64_t block, const struct hm_mask *mask)
{
    struct hm_page_sets *side = hm_page_sets_of(&process->exclusive, block);
    if (hm_bits(mask->word))
        process->region->blocks[block].huge = 0;
    for (uint32_t node = 1; side && node < process->core->config.nodes; node++)
        hm_page_set_take(side, node, mask);
}

int hm_process_exclusive(struct hm_core *core, uint64_t ino, uint32_t node, uint64_t block,
                         const uint64_t *set, uint64_t *out)
{
    struct hm_region *region = hm_region_get(core, ino);
    struct hm_process *process = region ? region->process : NULL;
    int error = process ? 0 : -ESRCH;
    if (!error && (!node || node >= core->config.nodes || block >= HM_MAX_BLOCKS))
        error = -EINVAL;
    if (!error && set)
        error = hm_page_sets_init(&process->exclusive);
    if (out)
        memset(out, 0, HM_WORDS * sizeof(*out));
    if (!error && hm_page_sets_of(&process->exclusive, block) &&
        hm_region_is_touched(region, block)) {
        struct hm_page_sets *side = hm_page_sets_of(&process->exclusive, block);
        struct hm_stripe *stripe = hm_stripe_of(core, ino, block);
        struct hm_mask mine;
        hm_lock(HM_RANK_STRIPE, &stripe->lock);
        mine = hm_owned(&region->blocks[block], node);
        if (set)
            region->blocks[block].huge = 0; /* what is held is single pages */
        for (int w = 0; w < HM_WORDS; w++) {
            side->on[node][w] |= set ? set[w] & mine.word[w] : 0;
            if (out)
                out[w] = side->on[node][w];
        }
        hm_unlock(HM_RANK_STRIPE, &stripe->lock);
    }
    if (region)
        hm_region_put(region);
    return error;
}

static bool in_one_mapping(const struct hm_process *process, uint64_t block)
{
    uint64_t start = hm_process_address(process, block);
    struct hm_vma vma;
    return !hm_vma_find(process, start, &vma) && vma.start <= start &&
           vma.end >= start + HM_BLOCK_BYTES;
}

int hm_process_set_huge(struct hm_core *core, uint64_t ino, uint32_t node, uint64_t block)
{
    struct hm_region *region = hm_region_get(core, ino);
    int error = region && region->process ? 0 : -ESRCH;
    if (!error && (!node || node >= core->config.nodes || block >= HM_MAX_BLOCKS))
        error = -EINVAL;
    if (!error && hm_region_is_touched(region, block) && in_one_mapping(region->process, block)) {
        struct hm_stripe *stripe = hm_stripe_of(core, ino, block);
        struct hm_mask mine;
        hm_lock(HM_RANK_STRIPE, &stripe->lock);
        mine = hm_owned(&region->blocks[block], node);
        region->blocks[block].huge = hm_bits(mine.word) == HM_BLOCK_PAGES;
        hm_unlock(HM_RANK_STRIPE, &stripe->lock);
    }
    if (region)
        hm_region_put(region);
    return error;
}

int hm_process_close(struct hm_core *core, uint64_t ino, uint32_t node, int closed)
{
    struct hm_region *region = hm_region_get(core, ino);
    int error = region && region->process ? 0 : -ESRCH;
    if (!error && (!node || node >= core->config.nodes))
        error = -EINVAL;
    if (!error && closed)
        atomic_fetch_or(&region->process->closed, 1u << node);
    else if (!error)
        atomic_fetch_and(&region->process->closed, ~(1u << node));
    if (region)
        hm_region_put(region);
    return error;
}
