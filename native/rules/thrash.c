/* Pages that processors keep taking from each other: noticed, slowed down, pinned to the host.
 *
 * The rules and their order are those of NVIDIA's UVM driver (uvm_perf_thrashing.c), for a machine
 * whose processors share one place only, the host's memory. Its time is the simulated clock, so a
 * run repeats exactly: a throttled processor waits there until it may go on. A page pinned here is
 * reached remotely; what has been mapped so stays mapped until its launch ends, even if the pin
 * ends before.
 */
#include "rules/thrash.h"

#include "base/published.h"
#include "books/trace.h"
#include "rules/advice.h"
#include "rules/history.h"

#include <errno.h>

#include <stdlib.h>

struct hm_thrashing_page {
    uint64_t last;      /* when it last moved by a fault; 0: it has not */
    uint64_t end;       /* of the throttle period */
    uint64_t pin_end;   /* of the pin */
    uint32_t throttles; /* periods in which somebody was throttled, since the last pin */
    uint16_t processors, throttled;
    uint8_t events;
    uint8_t next;   /* 1 + the processor that is not throttled; 0: none */
    uint8_t pinned; /* 1 + the node it is pinned to; 0: it is not */
};

int hm_thrashing_set(struct hm_core *core, const struct hm_thrashing *policy)
{
    const struct hm_thrashing *published = NULL;
    if (policy->threshold) {
        published = hm_publish(core, policy, sizeof(*policy));
        if (!published)
            return -ENOMEM;
    }
    atomic_store(&core->thrashing, published);
    return 0;
}

static uint64_t now(struct hm_core *core)
{
    return 1 + hm_read(&core->count.clock_ns); /* 0 stands for never */
}

/* What was throttled and how often stays: who thrashes slower for being throttled is pinned, too.
 */
static void forget_page(struct hm_history *history, struct hm_thrashing_page *page)
{
    history->pins -= page->pinned != 0;
    page->pinned = page->events = 0;
    page->processors = page->throttled = 0;
    page->last = page->end = 0;
}

static void note_page(struct hm_region *region, struct hm_history *history,
                      const struct hm_thrashing *policy, uint32_t node,
                      struct hm_thrashing_page *page, uint64_t at)
{
    uint64_t since = at - page->last;
    bool first = !page->last;
    if (page->pinned) /* it moved because it was */
        return;
    page->processors |= (uint16_t)(1u << node);
    page->last = at;
    if (first)
        return;
    if (since <= policy->lapse_ns) {
        page->events += page->events < UINT8_MAX;
        if (page->events == policy->threshold)
            hm_count(&region->core->nodes[node].counts.thrashing_pages, 1);
        if (page->events >= policy->threshold)
            history->last_thrashing = at;
    } else if (page->events >= policy->threshold && !page->pinned) {
        forget_page(history, page);
    }
}

void hm_thrash_note(struct hm_region *region, uint64_t block, uint32_t node,
                    const struct hm_mask *moved, bool by_fault)
{
    const struct hm_thrashing *policy = atomic_load(&region->core->thrashing);
    struct hm_history *history = policy ? hm_history(region, block) : NULL;
    uint64_t at = now(region->core);
    if (!history || !hm_bits(moved->word))
        return;
    if (!by_fault) { /* somebody asked for it: whatever was, is over */
        if (history->pages)
            HM_EACH_PAGE (page, moved->word)
                forget_page(history, &history->pages[page]);
        return;
    }
    if (!history->pages && history->last && history->last_processor != node &&
        at - history->last <= policy->lapse_ns)
        history->pages = calloc(HM_BLOCK_PAGES, sizeof(*history->pages));
    history->last = at;
    history->last_processor = node;
    if (history->pages)
        HM_EACH_PAGE (page, moved->word)
            note_page(region, history, policy, node, &history->pages[page], at);
}

enum hint { GO_ON, THROTTLE, PIN };

/* Whose turn it is: a new period gives it to who asks first, but not to the same twice running. */
static void begin_period(const struct hm_thrashing *policy, struct hm_thrashing_page *page,
                         uint32_t node, uint64_t at)
{
    if (at > page->end) {
        page->end = at + policy->nap_ns;
        page->next = page->next == 1 + node ? 0 : (uint8_t)(1 + node);
    } else if (!page->next) {
        page->next = (uint8_t)(1 + node);
    }
}

/* UVM's get_hint_for_migration_thrashing where the host is the only place that others reach:
 * `preferred` is 1 + a node, or 0; `to` becomes the node to pin to. */
static enum hint mitigate(const struct hm_thrashing *policy, const struct hm_thrashing_page *page,
                          uint32_t node, uint32_t preferred, uint32_t *to)
{
    bool turn = page->next == 1 + node;
    *to = HM_HOST;
    if (preferred == 1 + HM_HOST)
        return PIN;
    if (preferred == 1 + node) {
        *to = node;
        if (page->pinned)
            return page->pinned == preferred || turn ? PIN : THROTTLE;
        if (!turn)
            return THROTTLE;
        return page->throttles >= policy->pin_threshold ? PIN : GO_ON;
    }
    if (page->pinned) /* elsewhere than the host it can't stay if another wants it */
        return turn || page->pinned == 1 + HM_HOST ? PIN : THROTTLE;
    if (!turn)
        return THROTTLE;
    *to = node;
    return page->throttles >= policy->pin_threshold ? PIN : GO_ON;
}

static enum hint hint(const struct hm_thrashing *policy, struct hm_history *history,
                      struct hm_thrashing_page *page, uint32_t node, uint32_t preferred,
                      uint64_t at, uint32_t *to)
{
    uint16_t bit = (uint16_t)(1u << node);
    if (page->pinned && at > page->pin_end)
        forget_page(history, page); /* the pin is over */
    if (page->events < policy->threshold)
        return GO_ON;
    if (page->throttled & bit) {
        if (at < page->end && page->next != 1 + node)
            return THROTTLE;
        page->throttled &= (uint16_t)~bit;
        if (!page->throttled)
            page->end = 0;
    }
    if (at - page->last > policy->lapse_ns && !page->pinned)
        return GO_ON;
    begin_period(policy, page, node, at);
    return mitigate(policy, page, node, preferred, to);
}

/* The state of a block that has not thrashed for long is dropped, some times. */
static bool expired(const struct hm_thrashing *policy, struct hm_history *history, uint64_t at)
{
    if (!history->pages || history->pins || history->resets >= policy->max_resets ||
        !history->last_thrashing || at - history->last_thrashing <= policy->epoch_ns)
        return false;
    free(history->pages);
    history->pages = NULL;
    history->last_thrashing = 0;
    history->resets++;
    return true;
}

/* The processor sleeps until the period ends, or its own turn. */
static uint64_t throttle(struct hm_core *core, struct hm_thrashing_page *page, uint32_t node)
{
    uint64_t at = now(core), rest = page->end > at ? page->end - at : 1;
    uint16_t bit = (uint16_t)(1u << node);
    if (!(page->throttled & bit) && !page->pinned)
        page->throttles++;
    page->throttled |= bit;
    hm_count(&core->nodes[node].counts.throttles, 1);
    hm_count(&core->nodes[node].counts.throttle_ns, rest);
    hm_count(&core->count.clock_ns, rest);
    return rest;
}

static bool pin(struct hm_core *core, const struct hm_thrashing *policy, struct hm_history *history,
                struct hm_thrashing_page *page, uint32_t node, uint32_t to)
{
    bool new = !page->pinned;
    if (new) {
        history->pins++;
        page->throttles = 0;
        page->throttled = 0;
        page->pin_end = policy->pin_ns ? now(core) + policy->pin_ns : UINT64_MAX;
        hm_count(&core->nodes[node].counts.thrash_pins, 1);
    }
    page->pinned = (uint8_t)(1 + to);
    return new;
}

static void trace(struct hm_region *region, uint64_t block, uint32_t page,
                  struct hm_trace_event event)
{
    struct hm_mask one = hm_mask_range(page, 1);
    event.trigger = HM_BY_SHARING;
    hm_trace(region, block, &one, event);
}

void hm_thrash_fault(struct hm_region *region, uint64_t block, uint32_t node,
                     const struct hm_mask *touched)
{
    struct hm_core *core = region->core;
    const struct hm_thrashing *policy = atomic_load(&core->thrashing);
    struct hm_history *history = policy ? hm_history(region, block) : NULL;
    struct hm_advised said;
    if (!history || expired(policy, history, now(core)) || !history->pages)
        return;
    hm_advised(region, block, node, &said);
    HM_EACH_PAGE (at, touched->word) {
        struct hm_thrashing_page *page = &history->pages[at];
        uint32_t preferred = hm_test(said.at_host.word, at)     ? 1 + HM_HOST
                             : hm_test(said.here.word, at)      ? 1 + node
                             : hm_test(said.elsewhere.word, at) ? HM_MAX_NODES + 1
                                                                : 0;
        enum hint found;
        uint32_t to;
        while ((found = hint(policy, history, page, node, preferred, now(core), &to)) == THROTTLE)
            trace(region, block, at,
                  (struct hm_trace_event){.kind = HM_TRACE_THROTTLE,
                                          .node = (uint8_t)node,
                                          .from = HM_NOWHERE,
                                          .to = HM_NOWHERE,
                                          .charged_ns = throttle(core, page, node)});
        if (found == PIN && pin(core, policy, history, page, node, to))
            trace(region, block, at,
                  (struct hm_trace_event){.kind = HM_TRACE_PIN,
                                          .node = (uint8_t)node,
                                          .from = HM_NOWHERE,
                                          .to = (uint8_t)to});
    }
}

struct hm_mask hm_thrash_is_pinned(struct hm_region *region, uint64_t block,
                                   const struct hm_mask *mask)
{
    struct hm_history **table = atomic_load(&region->history);
    struct hm_history *history = table ? table[block] : NULL;
    struct hm_mask pinned = {{0}};
    if (history && history->pages && history->pins)
        HM_EACH_PAGE (page, mask->word)
            if (history->pages[page].pinned == 1 + HM_HOST)
                hm_set(pinned.word, page);
    return pinned;
}
