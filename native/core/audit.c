/* The audit: whether what the core has agrees with itself, from each page to the sums. */
#include "base/region.h"
#include "books/counters.h"
#include "directory/copies.h"
#include "directory/labels.h"
#include "directory/records.h"
#include "program/late.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

struct audit {
    struct hm_core *core;
    char *text;
    size_t size;
    uint64_t used[HM_MAX_NODES];
    uint64_t resident[HM_MAX_NODES]; /* pages by the node that they are said to be on */
    bool bad;
};

#define AUDIT(a, condition, ...)                                                                   \
    do {                                                                                           \
        if (!(condition) && !(a)->bad) {                                                           \
            (a)->bad = true;                                                                       \
            snprintf((a)->text, (a)->size, __VA_ARGS__);                                           \
        }                                                                                          \
    } while (0)

static void audit_copies(struct audit *a, struct hm_region *region, uint64_t b, uint64_t *copied)
{
    const struct hm_block *block = &region->blocks[b];
    unsigned long long ino = region->ino, nr = b;
    for (uint32_t node = 1; node < a->core->config.nodes; node++) {
        struct hm_mask copies = hm_copies_on(region, b, node), labels;
        HM_EACH_WORD (w) {
            AUDIT(a, !(copies.word[w] & (block->device[w] | ~block->present[w])),
                  "region %llu block %llu: dev%u has a copy of a page that is not the host's", ino,
                  nr, node - 1);
            AUDIT(a, !(region->writers & HM_COPIES_ENDED && copies.word[w] & block->cached[w]),
                  "region %llu block %llu: the CPU may store to a page that dev%u has a copy of",
                  ino, nr, node - 1);
        }
        copied[node] += hm_bits(copies.word);
        a->used[node] += hm_bits(copies.word);
        labels = hm_labels_on(region, b, node);
        HM_EACH_WORD (w)
            AUDIT(a, !(labels.word[w] & (block->device[w] | ~block->present[w])),
                  "region %llu block %llu: dev%u labels a page that is not the host's", ino, nr,
                  node - 1);
        a->used[node] += hm_bits(labels.word);
        a->used[HM_HOST] -= hm_bits(labels.word);
        a->resident[node] += hm_bits(labels.word);
        a->resident[HM_HOST] -= hm_bits(labels.word);
    }
}

static void audit_block(struct audit *a, struct hm_region *region, uint64_t b, uint64_t *pages,
                        uint64_t *kept)
{
    const struct hm_block *block = &region->blocks[b];
    uint32_t count[HM_MAX_NODES] = {0};
    unsigned long long ino = region->ino, nr = b;
    HM_EACH_WORD (w) {
        uint64_t seen = block->cached[w] | block->recalling[w];
        AUDIT(a, !(block->device[w] & ~block->present[w]),
              "region %llu block %llu: a device owns a page that is not present", ino, nr);
        AUDIT(a, !(block->kept[w] & (~block->device[w] | block->dirty[w])),
              "region %llu block %llu: a kept copy of a host-owned or dirty page", ino, nr);
        AUDIT(a, !(seen & block->device[w]),
              "region %llu block %llu: a device-owned page is cached by the CPU", ino, nr);
    }
    for (uint32_t page = 0; page < HM_BLOCK_PAGES; page++) {
        uint32_t owner = block->owner[page];
        AUDIT(a,
              owner < a->core->config.nodes && (owner != HM_HOST) == hm_test(block->device, page),
              "region %llu block %llu page %u: owner %u disagrees with the device bit", ino, nr,
              page, owner);
        if (owner < HM_MAX_NODES)
            count[owner] += hm_test(block->present, page);
    }
    for (uint32_t node = 0; node < a->core->config.nodes; node++) {
        AUDIT(a, count[node] == block->pages[node],
              "region %llu block %llu: %u pages on node %u, its counter says %u", ino, nr,
              count[node], node, block->pages[node]);
        pages[node] += count[node];
        a->resident[node] += count[node];
        if (node != HM_HOST)
            a->used[node] += count[node];
    }
    *kept += hm_bits(block->kept);
    a->used[HM_HOST] += hm_block_charge(region, block);
}

/* A coherent or DAX region reserves all pages of its size, and its memfd holds no more than those.
 */
static void audit_shared(struct audit *a, struct hm_region *region, uint64_t pages)
{
    unsigned long long ino = region->ino;
    uint64_t there = hm_pool_allocated(&region->pools[HM_HOST]);
    uint64_t size = hm_region_size(region), length = hm_pool_length(&region->pools[HM_HOST]);
    AUDIT(a, pages == (size + HM_PAGE_SIZE - 1) / HM_PAGE_SIZE,
          "region %llu: %llu pages have a place, of %llu bytes", ino, (unsigned long long)pages,
          (unsigned long long)size);
    AUDIT(a, there <= pages, "region %llu: its memory holds %llu pages, and %llu are reserved", ino,
          (unsigned long long)there, (unsigned long long)pages);
    AUDIT(a, length == size, "region %llu: its memory is %llu bytes long, not %llu", ino,
          (unsigned long long)length, (unsigned long long)size);
}

static void audit_region(struct audit *a, struct hm_region *region)
{
    uint64_t pages[HM_MAX_NODES] = {0}, copied[HM_MAX_NODES] = {0}, kept = 0, all = 0;
    unsigned long long ino = region->ino;
    for (uint64_t b = 0; (b = hm_next_touched(region, b)) < HM_MAX_BLOCKS; b++) {
        struct hm_stripe *stripe = hm_stripe_of(a->core, region->ino, b);
        hm_lock(HM_RANK_STRIPE, &stripe->lock);
        audit_block(a, region, b, pages, &kept);
        audit_copies(a, region, b, copied);
        hm_unlock(HM_RANK_STRIPE, &stripe->lock);
    }
    for (uint32_t node = 0; node < a->core->config.nodes; node++) {
        uint64_t held = pages[node] + copied[node] + (node == HM_HOST ? kept : 0);
        uint64_t there = hm_pool_allocated(&region->pools[node]);
        AUDIT(a, !region->pools[node].unpunched,
              "region %llu: the kernel refused %llu punches of the pool of node %u", ino,
              (unsigned long long)region->pools[node].unpunched, node);
        AUDIT(a, pages[node] == hm_region_pages(region, node),
              "region %llu: %llu pages on node %u, its record says %llu", ino,
              (unsigned long long)pages[node], node,
              (unsigned long long)hm_region_pages(region, node));
        AUDIT(a, held == there || hm_is_shared(region),
              "region %llu: the pool of node %u holds %llu pages, not %llu", ino, node,
              (unsigned long long)there, (unsigned long long)held);
        all += pages[node];
    }
    if (hm_is_shared(region))
        audit_shared(a, region, all);
}

int hm_audit(struct hm_core *core, char *text, size_t size)
{
    struct audit a = {.core = core, .text = text, .size = size};
    uint64_t *inos;
    uint32_t n = 0;
    /* A region on its way out still has pages accounted for; 64 GiB take some seconds. */
    for (int ms = 0; core->dying && ms < 2000; ms++)
        usleep(1000);
    hm_lock_to_read(HM_RANK_REGIONS, &core->regions_lock);
    inos = malloc(sizeof(*inos) * (core->table_used + 1));
    for (uint32_t i = 0; inos && i < HM_REGION_BUCKETS; i++)
        for (struct hm_region *region = core->buckets[i]; region; region = region->next)
            inos[n++] = region->ino;
    hm_unlock_either(HM_RANK_REGIONS, &core->regions_lock);
    if (!inos)
        return -ENOMEM;
    for (uint32_t i = 0; i < n; i++) {
        HM_AUTO_PUT struct hm_region *region = hm_region_get(core, inos[i]);
        if (region) {
            if (region->process)
                hm_process_punch(region); /* what is late would look like too much */
            audit_region(&a, region);
        }
    }
    free(inos);
    for (uint32_t node = 0; node < core->config.nodes; node++) {
        uint64_t most = core->nodes[node].capacity + (node == HM_HOST ? HM_BLOCK_PAGES : 0);
        AUDIT(&a, core->nodes[node].used == a.used[node],
              "node %u: %llu pages are accounted for, %llu are used", node,
              (unsigned long long)a.used[node], (unsigned long long)core->nodes[node].used);
        AUDIT(&a, core->nodes[node].peak <= most, "node %u: its peak passed its capacity", node);
        if (!a.bad)
            a.bad = !hm_books_agree(core, node, a.resident[node], text, size);
    }
    return a.bad ? -EUCLEAN : 0;
}
