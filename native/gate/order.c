/* In which order WRITEs of one page take effect.
 *
 * A write(2) in flight and the page cache's writeback of the same page may be with two gate
 * threads, and either may be parked. The kernel numbers requests as it queues them and hands them
 * out in that order, so `unique` tells which is newer, and a WRITE leaves out the pages that a
 * newer one has written from end to end already.
 *
 * What a block remembers is dropped only when no older WRITE can still be on its way: when every
 * gate thread has gone back to /dev/fuse since the newest WRITE remembered was read (what it reads
 * then is newer), and none is parked. An idle thread may hold that up, at 8 bytes a page written.
 */
#include "gate/order.h"

#include "gate/threads.h"

#include <errno.h>
#include <stdlib.h>

struct hm_written {
    struct hm_written *next;
    uint64_t ino, block, newest;
    uint64_t unique[HM_BLOCK_PAGES]; /* of the last WRITE that covered the page; 0: none */
};

void hm_order_read(struct hm_core *core, uint64_t unique)
{
    uint64_t seen = atomic_load(&core->written_up_to);
    while (seen < unique && !atomic_compare_exchange_weak(&core->written_up_to, &seen, unique))
        ;
}

/* Every WRITE up to this number is over and done with, unless it is parked. */
static uint64_t settled_up_to(struct hm_core *core)
{
    uint64_t settled = UINT64_MAX;
    for (uint32_t i = 0; core->gate && i < core->config.threads; i++) {
        uint64_t floor = atomic_load(&core->gate[i].floor);
        settled = floor < settled ? floor : settled;
    }
    /* After the floors: a thread that parks a WRITE counts it before it raises its own. */
    return atomic_load(&core->parked_writes) ? 0 : settled;
}

static struct hm_written *find(struct hm_stripe *stripe, uint64_t ino, uint64_t block)
{
    struct hm_written *at = stripe->written;
    while (at && (at->ino != ino || at->block != block))
        at = at->next;
    return at;
}

struct hm_mask hm_order_overtaken(struct hm_stripe *stripe, uint64_t ino, uint64_t block,
                                  const struct hm_mask *mask, uint64_t unique)
{
    const struct hm_written *written = find(stripe, ino, block);
    struct hm_mask overtaken = {{0}};
    if (!written || written->newest < unique)
        return overtaken;
    for (uint32_t first = 0, count; hm_next_run(mask->word, &first, &count); first += count)
        for (uint32_t page = first; page < first + count; page++)
            if (written->unique[page] > unique)
                hm_set(overtaken.word, page);
    return overtaken;
}

static void forget(struct hm_core *core, struct hm_stripe *stripe)
{
    uint64_t settled = stripe->written ? settled_up_to(core) : 0;
    for (struct hm_written **at = &stripe->written, *written; (written = *at);) {
        if (written->newest > settled) {
            at = &written->next;
            continue;
        }
        *at = written->next;
        free(written);
    }
}

int hm_order_remember(struct hm_core *core, struct hm_stripe *stripe, uint64_t ino, uint64_t block,
                      const struct hm_mask *whole, uint64_t unique)
{
    struct hm_written *written;
    forget(core, stripe);
    written = find(stripe, ino, block);
    if (!written) {
        written = calloc(1, sizeof(*written));
        if (!written)
            return -ENOMEM;
        written->ino = ino;
        written->block = block;
        written->next = stripe->written;
        stripe->written = written;
    }
    for (uint32_t first = 0, count; hm_next_run(whole->word, &first, &count); first += count)
        for (uint32_t page = first; page < first + count; page++)
            if (written->unique[page] < unique)
                written->unique[page] = unique;
    if (written->newest < unique)
        written->newest = unique;
    return 0;
}

void hm_order_free(struct hm_stripe *stripe)
{
    struct hm_written *next;
    for (struct hm_written *at = stripe->written; at; at = next) {
        next = at->next;
        free(at);
    }
    stripe->written = NULL;
}
