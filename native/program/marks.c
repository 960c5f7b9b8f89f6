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
    HM_AUTO_PUT struct hm_region *region = hm_region_get(core, ino);
    struct hm_process *process = region ? region->process : NULL;
    struct hm_stripe *stripe = hm_stripe_of(core, ino, block);
    struct hm_page_sets *side;
    struct hm_mask mine;
    int error;
    if (out)
        memset(out, 0, HM_WORDS * sizeof(*out));
    if (!process)
        return -ESRCH;
    if (!node || node >= core->config.nodes || block >= HM_MAX_BLOCKS)
        return -EINVAL;
    error = set ? hm_page_sets_init(&process->exclusive) : 0;
    if (error)
        return error;
    side = hm_page_sets_of(&process->exclusive, block);
    if (!side || !hm_region_is_touched(region, block))
        return 0;
    HM_GUARD(HM_RANK_STRIPE, &stripe->lock);
    mine = hm_owned(&region->blocks[block], node);
    if (set)
        region->blocks[block].huge = 0; /* what is held is single pages */
    HM_EACH_WORD (w) {
        side->on[node][w] |= set ? set[w] & mine.word[w] : 0;
        if (out)
            out[w] = side->on[node][w];
    }
    return 0;
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
    HM_AUTO_PUT struct hm_region *region = hm_region_get(core, ino);
    struct hm_stripe *stripe = hm_stripe_of(core, ino, block);
    struct hm_mask mine;
    if (!region || !region->process)
        return -ESRCH;
    if (!node || node >= core->config.nodes || block >= HM_MAX_BLOCKS)
        return -EINVAL;
    if (!hm_region_is_touched(region, block) || !in_one_mapping(region->process, block))
        return 0;
    HM_GUARD(HM_RANK_STRIPE, &stripe->lock);
    mine = hm_owned(&region->blocks[block], node);
    region->blocks[block].huge = hm_bits(mine.word) == HM_BLOCK_PAGES;
    return 0;
}

int hm_process_close(struct hm_core *core, uint64_t ino, uint32_t node, int closed)
{
    HM_AUTO_PUT struct hm_region *region = hm_region_get(core, ino);
    if (!region || !region->process)
        return -ESRCH;
    if (!node || node >= core->config.nodes)
        return -EINVAL;
    if (closed)
        atomic_fetch_or(&region->process->closed, 1u << node);
    else
        atomic_fetch_and(&region->process->closed, ~(1u << node));
    return 0;
}
