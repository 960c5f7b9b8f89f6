/* Which pages of a block come with those that were touched: the built-in prefetch policies.
 *
 * hmmfs/policy/prefetch.py says the same in numpy, for everybody to read; a test holds the two
 * against each other. Here they take some 100 ns, so a fault under any of them is served without a
 * trip to Python.
 */
#include "rules/prefetch.h"

#include "base/core.h"
#include "base/published.h"

#include <errno.h>
#include <string.h>

#include <stdlib.h>

#define BIG_PAGES 16 /* UVM's big page: 64 KiB, the least that density brings */

/* The mask, and around each of its pages the aligned group of `size` that it lies in. */
static struct hm_mask around(const struct hm_mask *mask, uint32_t size)
{
    struct hm_mask wide = {{0}};
    size = size ? size : 1;
    for (uint32_t first = 0, count; hm_next_run(mask->word, &first, &count); first += count) {
        uint32_t low = first / size * size, high = (first + count + size - 1) / size * size;
        struct hm_mask group;
        high = high < HM_BLOCK_PAGES ? high : HM_BLOCK_PAGES;
        group = hm_mask_range(low, high - low);
        hm_add(wide.word, group.word);
    }
    return wide;
}

static void add_range(struct hm_mask *mask, uint32_t first, uint32_t count)
{
    struct hm_mask more = hm_mask_range(first, count); /* nothing past the block's end */
    hm_add(mask->word, more.word);
}

/* Of an aligned range of a power of two; what is past the end of the file is not set. */
static uint32_t bits_in(const uint64_t *words, uint32_t first, uint32_t size)
{
    uint32_t n = 0;
    if (size < 64)
        return hm_popcount(words[first / 64] >> (first % 64) & ((1ULL << size) - 1));
    for (uint32_t w = first / 64; w < (first + size) / 64; w++)
        n += words[w] ? hm_popcount(words[w]) : 0;
    return n;
}

/* The density prefetcher of NVIDIA's UVM driver (open-gpu-kernel-modules, uvm_perf_prefetch.c): of
 * the aligned ranges of 4 KiB, 8 KiB … 2 MiB around a touched page, the largest where more than
 * threshold percent is there already or touched; touched pages count as the whole 64 KiB around
 * them. Ranges are cut at the end of the file. */
static struct hm_mask density(const struct hm_mask *resident, const struct hm_mask *touched,
                              const struct hm_mask *inside, uint32_t threshold)
{
    struct hm_mask tree = around(touched, BIG_PAGES), window = *touched;
    uint32_t end = hm_bits(inside->word);
    hm_add(tree.word, resident->word);
    hm_keep(tree.word, inside->word);
    HM_EACH_PAGE (page, touched->word)
        for (uint32_t size = HM_BLOCK_PAGES; page < end && size; size /= 2) {
            uint32_t first = page / size * size, count = size < end - first ? size : end - first;
            if (bits_in(tree.word, first, size) * 100 <= count * threshold)
                continue;
            add_range(&window, first, count);
            break;
        }
    return window;
}

/* The next `count` pages of a stride that was seen twice. */
static struct hm_mask sequential(const struct hm_mask *touched, uint32_t count,
                                 struct hm_stride *stride)
{
    struct hm_mask window = *touched;
    uint32_t page = hm_next_page(touched->word, 0);
    int32_t step;
    if (page == HM_BLOCK_PAGES)
        return window;
    step = stride->last ? (int32_t)page - (stride->last - 1) : 0;
    stride->last = (uint16_t)(page + 1);
    if (step && step == stride->step)
        for (uint32_t i = 0; i < count; i++) {
            int32_t next = (int32_t)stride->last - 1 + step;
            if (next < 0 || next >= HM_BLOCK_PAGES)
                break;
            add_range(&window, (uint32_t)next, 1);
            stride->last = (uint16_t)(next + 1);
        }
    stride->step = (int16_t)step;
    return window;
}

struct hm_mask hm_prefetch_window(const struct hm_prefetch *policy, const struct hm_mask *resident,
                                  const struct hm_mask *touched, const struct hm_mask *inside,
                                  uint32_t faults, struct hm_stride *stride)
{
    struct hm_mask window = *touched;
    switch (policy->kind) {
    case HM_PREFETCH_TABLE:
        window = around(touched, policy->argument[faults < 3 ? faults : 3]);
        break;
    case HM_PREFETCH_NEXT:
        for (uint32_t first = 0, count; hm_next_run(touched->word, &first, &count); first += count)
            add_range(&window, first + count, policy->argument[0]);
        break;
    case HM_PREFETCH_SEQUENTIAL:
        window = sequential(touched, policy->argument[0], stride);
        break;
    case HM_PREFETCH_DENSITY:
        window = density(resident, touched, inside, policy->argument[0]);
        break;
    }
    hm_keep(window.word, inside->word);
    return window;
}

int hm_prefetch_hint(const struct hm_prefetch *policy, const uint64_t resident[8],
                     const uint64_t touched[8], const uint64_t inside[8], uint32_t faults,
                     struct hm_stride *stride, uint64_t out[8])
{
    struct hm_mask masks[3], window;
    memcpy(masks[0].word, resident, sizeof(masks[0]));
    memcpy(masks[1].word, touched, sizeof(masks[1]));
    memcpy(masks[2].word, inside, sizeof(masks[2]));
    if (policy->kind >= HM_PREFETCH_ASK)
        return -EINVAL;
    window = hm_prefetch_window(policy, &masks[0], &masks[1], &masks[2], faults, stride);
    memcpy(out, window.word, sizeof(window));
    return 0;
}

/* ---- which policy a node has ---------------------------------------------------------------- */

int hm_prefetch_set(struct hm_core *core, uint32_t node, const struct hm_prefetch *policy)
{
    const struct hm_prefetch *published;
    if (node >= core->config.nodes)
        return -ENODEV;
    if (policy->kind > HM_PREFETCH_ASK)
        return -EINVAL;
    published = hm_publish(core, policy, sizeof(*policy));
    if (!published)
        return -ENOMEM;
    atomic_store(&core->prefetch[node], published);
    return 0;
}
