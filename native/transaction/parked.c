/* Requests that wait: for a transaction's end, or for a decision of the service.
 *
 * Without memory to put one aside, a READ takes one of the places that are kept for that: an error
 * would be a SIGBUS for the program that accessed a page. */
#include "transaction/parked.h"

#include "base/step.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

int hm_spares_init(struct hm_core *core)
{
    core->all_spares = calloc(HM_SPARES, sizeof(*core->all_spares));
    if (!core->all_spares)
        return -ENOMEM;
    for (uint32_t i = 0; i < HM_SPARES; i++)
        hm_unparked(core, &core->all_spares[i]);
    return 0;
}

void hm_spares_deinit(struct hm_core *core)
{
    free(core->all_spares);
}

void hm_unparked(struct hm_core *core, struct hm_parked *parked)
{
    if ((uintptr_t)parked - (uintptr_t)core->all_spares >= HM_SPARES * sizeof(*parked)) {
        free(parked);
        return;
    }
    HM_GUARD(HM_RANK_SPARES, &core->spares_lock);
    parked->next = core->spares;
    core->spares = parked;
}

static struct hm_parked *spare(struct hm_core *core)
{
    struct hm_parked *parked;
    HM_GUARD(HM_RANK_SPARES, &core->spares_lock);
    parked = core->spares;
    if (parked)
        core->spares = parked->next;
    return parked;
}

struct hm_parked *hm_aside(struct hm_core *core, const struct hm_request *request)
{
    struct hm_parked *parked = malloc(sizeof(*parked) + (request->data ? request->size : 0));
    if (!parked && !request->data)
        return spare(core);
    if (parked && request->data)
        memcpy(parked->data, request->data, request->size);
    return parked;
}

/* ---- carrying them out ---------------------------------------------------------------------- */

/* Of the block that it begins in. */
static struct hm_mask pages_of(const struct hm_request *request)
{
    uint64_t at = request->offset, end = at + request->size;
    uint64_t limit = (at / HM_BLOCK_BYTES + 1) * HM_BLOCK_BYTES;
    uint32_t first = (uint32_t)(at % HM_BLOCK_BYTES / HM_PAGE_SIZE);
    uint32_t last = (uint32_t)(((end < limit ? end : limit) - 1) % HM_BLOCK_BYTES / HM_PAGE_SIZE);
    return hm_mask_range(first, last + 1 - first);
}

/* Whether a folio of the mask may be locked until the request is answered. */
static bool locks(const struct hm_parked *parked, const struct hm_mask *mask)
{
    const struct hm_request *request = &parked->request;
    struct hm_mask pages;
    if (hm_is_direct_read(request))
        return false;
    pages = pages_of(request);
    return hm_any(pages.word, mask->word);
}

/* Take parked requests of the block off their stripe, in order: the ones that wait for the service
 * alone, or that may lock pages of a mask, or all. The stripe is held. */
static struct hm_parked *unpark(struct hm_region *region, uint64_t block, bool service,
                                const struct hm_mask *mask)
{
    struct hm_stripe *stripe = hm_stripe_of(region->core, region->ino, block);
    struct hm_parked *taken = NULL, **end = &taken, **at;
    if (!region->blocks[block].parked)
        return NULL;
    for (at = &stripe->parked; *at;) {
        struct hm_parked *parked = *at;
        if (parked->request.ino != region->ino || parked->block != block ||
            (service && parked->wait != HM_WAIT_SERVICE) || (mask && !locks(parked, mask))) {
            at = &parked->next;
            continue;
        }
        *at = parked->next;
        parked->next = NULL;
        *end = parked;
        end = &parked->next;
        region->blocks[block].parked--;
    }
    stripe->parked_end = at;
    return taken;
}

/* Carry out what was unparked, or with an error answer it. The stripe is not held. */
static void replay(struct hm_region *region, struct hm_parked *parked, int error)
{
    struct hm_core *core = region->core;
    struct hm_parked *next;
    for (struct hm_parked *at = parked; at; at = next) {
        struct hm_request request = at->request; /* parked again, `at` may be gone at once */
        bool waits;
        next = at->next;
        waits = core->answer(core, &request, at, error);
        if (request.opcode == FUSE_WRITE)
            atomic_fetch_sub(&core->parked_writes, 1);
        if (!waits)
            hm_unparked(core, at);
    }
}

static void replay_all(struct hm_region *region, uint64_t block, bool service, int error)
{
    struct hm_stripe *stripe = hm_stripe_of(region->core, region->ino, block);
    struct hm_parked *taken;
    hm_lock(HM_RANK_STRIPE, &stripe->lock);
    taken = unpark(region, block, service, NULL);
    hm_step(region, block, "replayed", HM_BY_GATE, NULL);
    hm_unlock(HM_RANK_STRIPE, &stripe->lock);
    replay(region, taken, error);
}

void hm_replay(struct hm_region *region, uint64_t block)
{
    replay_all(region, block, false, 0);
}

void hm_fail_parked(struct hm_region *region, uint64_t block, int error)
{
    replay_all(region, block, true, error);
}

bool hm_replay_pages(struct hm_region *region, uint64_t block, const struct hm_mask *mask)
{
    struct hm_stripe *stripe = hm_stripe_of(region->core, region->ino, block);
    struct hm_parked *taken = unpark(region, block, false, mask);
    if (!taken)
        return false;
    hm_step(region, block, "recall.replays", HM_BY_GATE, NULL);
    hm_unlock(HM_RANK_STRIPE, &stripe->lock);
    replay(region, taken, 0);
    hm_lock(HM_RANK_STRIPE, &stripe->lock);
    return true;
}
