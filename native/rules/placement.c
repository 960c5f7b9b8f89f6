/* Where an access of a device finds its pages: the one place that decides between bringing them to
 * the device, having it reach them on the host remotely, and refusing.
 *
 * The order of the rules is that of NVIDIA's UVM driver (block_select_processor_residency in
 * uvm_va_block.c), for a machine where devices reach the host's memory, the host reaches none of
 * theirs, and they reach each other's only by moving it. What advice leaves open the node's
 * placement policy decides.
 */
#include "rules/placement.h"

#include "directory/labels.h"
#include "directory/records.h"
#include "directory/windows.h"
#include "rules/advice.h"
#include "rules/history.h"
#include "rules/thrash.h"

#include <errno.h>

#define GROUP_PAGES 16 /* remote accesses are counted, and mapped, by 64 KiB */

int hm_placement_set(struct hm_core *core, uint32_t node, uint32_t kind, uint32_t threshold)
{
    if (node == HM_HOST || node >= core->config.nodes)
        return -ENODEV;
    if (kind > HM_PLACE_COUNTER || threshold > UINT16_MAX)
        return -EINVAL;
    atomic_store(&core->placement[node], kind | threshold << 8);
    return 0;
}

/* The pages of the mask in whose 64 KiB the device's accesses have reached the threshold. */
static struct hm_mask counted(struct hm_region *region, uint64_t block, uint32_t node,
                              const struct hm_mask *mask, uint32_t threshold, bool count)
{
    struct hm_history *history = hm_history(region, block);
    struct hm_mask ripe = {{0}};
    uint32_t last = UINT32_MAX;
    if (!history)
        return ripe;
    HM_EACH_PAGE (page, mask->word) {
        uint16_t *accesses = &history->accesses[node][page / GROUP_PAGES];
        if (count && page / GROUP_PAGES != last && *accesses < UINT16_MAX)
            ++*accesses;
        last = page / GROUP_PAGES;
        if (*accesses >= threshold)
            hm_set(ripe.word, page);
    }
    return ripe;
}

/* Of the pages that no advice says anything of, those that come to the device. */
static struct hm_mask by_policy(struct hm_region *region, uint64_t block, uint32_t node,
                                const struct hm_mask *mask, bool count, const uint64_t *left)
{
    static const struct hm_mask none;
    struct hm_mask chosen;
    uint32_t policy = atomic_load_explicit(&region->core->placement[node], memory_order_relaxed);
    if (left) {
        chosen = hm_without(mask->word, left);
        return chosen;
    }
    switch (policy & 0xff) {
    case HM_PLACE_FIRST_TOUCH:
        return *mask;
    case HM_PLACE_COUNTER:
        return counted(region, block, node, mask, policy >> 8, count);
    default: /* HM_PLACE_PREFERRED: only where that was said; HM_PLACE_NEVER */
        return none;
    }
}

/* Whether placement is plain: everything comes to who accesses it. */
static bool is_plain(struct hm_region *region, uint32_t node, const uint64_t *left)
{
    return !left && !hm_labels(region, node) &&
           !atomic_load_explicit(&region->core->device[node].reaches, memory_order_relaxed) &&
           !atomic_load_explicit(&region->core->thrashing, memory_order_relaxed) &&
           !atomic_load_explicit(&region->advised, memory_order_relaxed) &&
           !atomic_load_explicit(&region->core->placement[node], memory_order_relaxed);
}

struct hm_placement hm_place(struct hm_region *region, uint64_t block, uint32_t node,
                             const struct hm_mask *mask, bool count, const uint64_t *left)
{
    const struct hm_block *record = &region->blocks[block];
    struct hm_placement place = {.bring = *mask};
    struct hm_mask mine, open, chosen, fought, reached;
    struct hm_advised said;
    bool never = (atomic_load(&region->core->placement[node]) & 0xff) == HM_PLACE_NEVER;
    /* A worker can't map a program's own memory: what it accesses has to come. */
    if (region->process || is_plain(region, node, left))
        return place;
    mine = hm_owned(record, node);
    if (hm_labels(region, node)) {
        /* What a coherent device reaches it uses where it is; it has hidden pages of its own. What
         * another device has in private comes home for it, unless that is pinned there. */
        struct hm_mask pinned = hm_pinned(region, block);
        HM_EACH_WORD (w) {
            uint64_t others = mask->word[w] & ~mine.word[w];
            place.bring.word[w] = mask->word[w] & mine.word[w];
            place.refuse.word[w] = others & record->device[w] & pinned.word[w];
            place.remote.word[w] = others & ~place.refuse.word[w];
        }
        return place;
    }
    hm_advised(region, block, node, &said);
    fought = hm_thrash_is_pinned(region, block, mask);
    HM_EACH_WORD (w) {
        /* A hole that a program was given may be full of its stores. */
        uint64_t there = record->present[w] | record->cached[w] | record->recalling[w];
        uint64_t host = there & ~record->device[w];
        uint64_t pages = mask->word[w], fixed = said.pinned.word[w] & there & ~mine.word[w];
        uint64_t away = said.mapped.word[w] | said.no_migrate.word[w];
        place.bring.word[w] = 0;
        /* 1. What is pinned stays, and is reached only where that was said as well. */
        place.remote.word[w] = pages & fixed & host & away;
        place.refuse.word[w] = pages & fixed & ~(host & away);
        pages &= ~fixed;
        /* 2. What both sides use at once stays on the host. */
        place.remote.word[w] |= pages & said.no_migrate.word[w];
        pages &= ~said.no_migrate.word[w];
        /* 3. What is there, and what prefers to be. */
        place.bring.word[w] |= pages & (mine.word[w] | said.here.word[w]);
        /* Copies of read-mostly pages are made whatever else was said. */
        place.bring.word[w] |= pages & said.read_mostly.word[w];
        pages &= ~place.bring.word[w];
        /* 4. What thrashed; what is on the host and may be reached there, or prefers to be there.
         */
        place.remote.word[w] |= pages & (fought.word[w] | said.at_host.word[w]);
        place.remote.word[w] |= pages & host & said.mapped.word[w];
        pages &= ~place.remote.word[w];
        /* 5. What is nowhere yet comes to its first user, unless nothing ever does. */
        if (!never) {
            place.bring.word[w] |= pages & ~there;
            pages &= there;
        }
        open.word[w] = pages;
    }
    chosen = by_policy(region, block, node, &open, count, left);
    reached = hm_window_remote(region, node, block);
    HM_EACH_WORD (w) {
        uint64_t stays = (place.bring.word[w] | chosen.word[w]) & reached.word[w] & ~mine.word[w];
        place.bring.word[w] = (place.bring.word[w] | chosen.word[w]) & ~stays;
        place.remote.word[w] |= (open.word[w] & ~chosen.word[w]) | stays;
    }
    return place;
}

struct hm_mask hm_remote_window(struct hm_region *region, uint64_t block, uint32_t node,
                                const struct hm_mask *remote)
{
    struct hm_mask inside = hm_inside_file(region, block), window = {{0}};
    struct hm_mask mine = hm_owned(&region->blocks[block], node);
    struct hm_placement place;
    HM_EACH_PAGE (page, remote->word) {
        struct hm_mask group = hm_mask_range(page / GROUP_PAGES * GROUP_PAGES, GROUP_PAGES);
        hm_keep(group.word, inside.word);
        hm_add(window.word, group.word);
    }
    place = hm_place(region, block, node, &window, false, NULL);
    hm_drop(place.remote.word, mine.word); /* reached remotely, it would come home */
    window = hm_either(place.remote.word, remote->word);
    return window;
}
