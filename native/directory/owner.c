#include "directory/owner.h"

#include "books/counters.h"

#include <string.h>

static void count_pages(struct hm_region *region, struct hm_block *record, uint32_t node,
                        int64_t by)
{
    if (!by)
        return;
    record->pages[node] = (uint16_t)(record->pages[node] + by);
    __atomic_fetch_add(&region->record->pages[node], (uint64_t)by, __ATOMIC_RELAXED);
}

/* The pages that there are, by owner. */
static uint32_t count_owners(const struct hm_block *record, const struct hm_mask *pages,
                             uint32_t of[HM_MAX_NODES])
{
    uint32_t all = 0;
    memset(of, 0, HM_MAX_NODES * sizeof(*of));
    HM_EACH_PAGE (page, pages->word)
        if (hm_test(record->present, page)) {
            of[record->owner[page]]++;
            all++;
        }
    return all;
}

void hm_own(struct hm_region *region, struct hm_block *record, const struct hm_mask *pages,
            uint32_t node, enum hm_trigger trigger, uint32_t moved[HM_MAX_NODES])
{
    struct hm_core *core = region->core;
    uint32_t from[HM_MAX_NODES], moves = count_owners(record, pages, from);
    uint32_t made = hm_bits(pages->word) - moves;
    HM_EACH_PAGE (page, pages->word)
        record->owner[page] = (uint8_t)node;
    hm_add(record->present, pages->word);
    hm_drop(record->dirty, pages->word);
    if (node == HM_HOST) {
        hm_drop(record->device, pages->word);
        hm_drop(record->kept, pages->word); /* it is the page again */
    } else {
        hm_add(record->device, pages->word);
    }
    for (uint32_t other = 0; other < core->config.nodes; other++) {
        count_pages(region, record, other, -(int64_t)from[other]);
        hm_count_moved(core, other, node, from[other], trigger);
    }
    if (node != HM_HOST && !record->pages[node] && (moves || made)) {
        record->arrived = hm_tick(core);
        record->uses = 0;
    }
    count_pages(region, record, node, moves + made);
    hm_count(&core->nodes[node].counts.populated_pages, made);
    if (moved)
        memcpy(moved, from, sizeof(from));
}

void hm_populate(struct hm_region *region, struct hm_block *record, const struct hm_mask *pages,
                 uint32_t node)
{
    hm_own(region, record, pages, node, HM_BY_NOTHING, NULL);
}

void hm_disown(struct hm_region *region, struct hm_block *record, const struct hm_mask *pages,
               uint32_t gone[HM_MAX_NODES])
{
    struct hm_core *core = region->core;
    count_owners(record, pages, gone);
    HM_EACH_PAGE (page, pages->word)
        record->owner[page] = HM_HOST;
    hm_drop(record->present, pages->word);
    hm_drop(record->device, pages->word);
    hm_drop(record->dirty, pages->word);
    hm_drop(record->kept, pages->word);
    for (uint32_t node = 0; node < core->config.nodes; node++) {
        count_pages(region, record, node, -(int64_t)gone[node]);
        if (gone[node])
            hm_count(&core->nodes[node].counts.dropped_pages, gone[node]);
    }
}
