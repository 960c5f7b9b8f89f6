#include "base/capacity.h"

#include "base/core.h"
#include "base/events.h"

#include <errno.h>

int hm_watermark(struct hm_core *core, uint32_t node, uint64_t pages)
{
    if (node >= core->config.nodes || pages > core->nodes[node].capacity)
        return -EINVAL;
    atomic_store(&core->nodes[node].watermark, pages);
    return 0;
}

static void tell_if_low(struct hm_core *core, uint32_t node, uint64_t used)
{
    struct hm_node *n = &core->nodes[node];
    uint64_t low = atomic_load_explicit(&n->watermark, memory_order_relaxed);
    if (low && used + low > n->capacity && atomic_compare_exchange_strong(&n->watermark, &low, 0))
        hm_event_push(core, &(struct hm_event){.kind = HM_EVENT_LOW, .node = node});
}

/* `used` pages of the node are in use now. */
static void note_use(struct hm_core *core, uint32_t node, uint64_t used)
{
    struct hm_node *n = &core->nodes[node];
    uint64_t peak = atomic_load_explicit(&n->peak, memory_order_relaxed);
    tell_if_low(core, node, used);
    while (peak < used && !atomic_compare_exchange_weak(&n->peak, &peak, used))
        ;
}

int hm_reserve(struct hm_core *core, uint32_t node, uint64_t pages, int staging)
{
    struct hm_node *n;
    uint64_t limit, used;
    if (node >= core->config.nodes)
        return -ENODEV;
    n = &core->nodes[node];
    limit = n->capacity + (staging && node == HM_HOST ? HM_BLOCK_PAGES : 0);
    used = atomic_load_explicit(&n->used, memory_order_relaxed);
    do {
        if (pages && (used + pages > limit || used + pages < used))
            return -ENOSPC;
    } while (!atomic_compare_exchange_weak(&n->used, &used, used + pages));
    note_use(core, node, used + pages);
    return 0;
}

void hm_reserve_always(struct hm_core *core, uint32_t node, uint64_t pages)
{
    if (pages)
        note_use(core, node, atomic_fetch_add(&core->nodes[node].used, pages) + pages);
}

void hm_release(struct hm_core *core, uint32_t node, uint64_t pages)
{
    if (pages)
        atomic_fetch_sub(&core->nodes[node].used, pages);
}
