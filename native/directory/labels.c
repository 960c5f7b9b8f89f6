/* Coherent devices without FUSE passthrough: their pages are the host's, with a label.
 *
 * Programs and coherent devices use such a page at the same time through the kernel's page cache,
 * which the worker maps remotely; so it stays in the host's pool wherever it is said to be. Saying
 * so is the label: the page counts on that device and not on the host, and a migration
 * relabels and charges the link. Of a device whose memory programs reach in part only (`visible`,
 * a PCIe BAR) so many pages have labels, and further ones are truly moved, as to private memory.
 *
 * A label ends where the page leaves the host's pool: cut, or moved to a device for good.
 */
#include "directory/labels.h"

#include "base/capacity.h"
#include "directory/copies.h"
#include "directory/records.h"

#include <errno.h>
#include <string.h>

bool hm_labels(const struct hm_region *region, uint32_t node)
{
    return node != HM_HOST && !hm_is_shared(region) && !region->process &&
           region->core->config.device_kind[node] == HM_KIND_COHERENT;
}

struct hm_mask hm_labels_on(const struct hm_region *region, uint64_t block, uint32_t node)
{
    return hm_page_set(&region->labels, block, node);
}

struct hm_mask hm_said_on(struct hm_region *region, uint64_t block, uint32_t node)
{
    struct hm_mask pages = hm_owned(&region->blocks[block], node), labels;
    for (uint32_t other = 1; other < region->core->config.nodes; other++) {
        labels = hm_labels_on(region, block, other);
        if (node == HM_HOST)
            hm_drop(pages.word, labels.word);
        else if (node == other)
            hm_add(pages.word, labels.word);
    }
    return pages;
}

struct hm_mask hm_all_labels(const struct hm_region *region, uint64_t block)
{
    const struct hm_page_sets *labels = hm_page_sets_of(&region->labels, block);
    struct hm_mask all = {{0}};
    for (uint32_t node = 1; labels && node < region->core->config.nodes; node++)
        hm_add(all.word, labels->on[node]);
    return all;
}

uint32_t hm_labelled(const struct hm_region *region, uint64_t block)
{
    const struct hm_page_sets *labels = hm_page_sets_of(&region->labels, block);
    uint32_t pages = 0;
    for (uint32_t node = 1; labels && node < region->core->config.nodes; node++)
        pages += hm_bits(labels->on[node]);
    return pages;
}

uint32_t hm_unlabel(struct hm_region *region, uint64_t block, const struct hm_mask *mask,
                    uint32_t of[HM_MAX_NODES])
{
    struct hm_page_sets *labels = hm_page_sets_of(&region->labels, block);
    uint32_t all = 0;
    memset(of, 0, HM_MAX_NODES * sizeof(*of));
    for (uint32_t node = 1; labels && node < region->core->config.nodes; node++) {
        struct hm_mask gone = hm_page_set_take(labels, node, mask);
        of[node] = hm_bits(gone.word);
        atomic_fetch_sub(&region->core->nodes[node].labelled, of[node]);
        all += of[node];
    }
    return all;
}

void hm_release_labels(struct hm_core *core, const uint32_t of[HM_MAX_NODES])
{
    for (uint32_t node = 1; node < core->config.nodes; node++)
        hm_release(core, node, of[node]);
}

int hm_labelled_or_duplicate(struct hm_core *core, uint64_t ino, uint64_t block, uint32_t node,
                             uint64_t out[8])
{
    struct hm_stripe *stripe;
    struct hm_mask mask, labels;
    if (node >= core->config.nodes)
        return -ENODEV;
    HM_AUTO_PUT struct hm_region *region = hm_region_get(core, ino);
    if (!region)
        return -ENOENT;
    if (block >= HM_MAX_BLOCKS)
        return -EINVAL;
    stripe = hm_stripe_of(core, ino, block);
    hm_lock(HM_RANK_STRIPE, &stripe->lock);
    mask = hm_copies_on(region, block, node);
    labels = node ? hm_labels_on(region, block, node) : hm_all_labels(region, block);
    hm_unlock(HM_RANK_STRIPE, &stripe->lock);
    HM_EACH_WORD (w)
        out[w] = mask.word[w] | labels.word[w];
    return 0;
}
