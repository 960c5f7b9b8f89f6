#include "rules/evict.h"

#include "base/ranking.h"
#include "directory/copies.h"
#include "directory/labels.h"
#include "directory/records.h"
#include "rules/advice.h"
#include "rules/future.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define GROUP_PAGES 16 /* of tree: UVM's big page, 64 KiB */

/* A block that has or had pages on a device. */
struct hm_resident {
    struct hm_ranked ranked;  /* in one of the evictor's rankings while it has pages there */
    struct hm_resident *next; /* of the block, on another device */
    struct hm_region *region;
    uint64_t block;
    uint32_t node;
    bool stuck; /* it is ranked among those */
    /* clock: its arrival and its uses when the hand last passed over it */
    uint64_t passed_arrival;
    uint32_t passed_uses;
    /* lru-page: by page when it was last accessed or fetched, from 1; NULL: none was */
    uint64_t *accessed;
    struct hm_mask fetched; /* optimal: by a fault, and not chosen since */
};

/* A device's policy, and its blocks in the order in which that lets them go. */
struct hm_evictor {
    uint32_t kind;                  /* written with list_lock, and read without */
    uint64_t seed, drawn;           /* random: the numbers drawn so far */
    uint64_t accesses;              /* lru-page: the number of the last */
    struct hm_future *future;       /* optimal */
    struct hm_resident **in_future; /* optimal: by block, those that its trace tells of */
    uint64_t future_blocks;
    struct hm_ranking able;
    struct hm_ranking stuck; /* no page may leave, by what was said when advice was `advice` */
    uint64_t advice;
};

struct hm_evictors {
    struct hm_evictor of[HM_MAX_NODES];
};

static struct hm_evictor *evictor(struct hm_core *core, uint32_t node)
{
    return &core->evictors->of[node];
}

static uint32_t kind_of(struct hm_core *core, uint32_t node)
{
    return __atomic_load_n(&evictor(core, node)->kind, __ATOMIC_RELAXED);
}

int hm_evictors_init(struct hm_core *core)
{
    core->evictors = calloc(1, sizeof(*core->evictors));
    if (!core->evictors)
        return -ENOMEM;
    for (uint32_t node = 0; node < HM_MAX_NODES; node++) {
        pthread_mutex_init(&core->evict_lock[node], NULL);
        evictor(core, node)->kind = HM_EVICT_ASK;
    }
    return 0;
}

static void forget_future(struct hm_evictor *at)
{
    hm_future_free(at->future);
    free(at->in_future);
    at->future = NULL;
    at->in_future = NULL;
    at->future_blocks = 0;
}

void hm_evictors_deinit(struct hm_core *core)
{
    for (uint32_t node = 0; core->evictors && node < HM_MAX_NODES; node++) {
        forget_future(evictor(core, node));
        pthread_mutex_destroy(&core->evict_lock[node]);
    }
    free(core->evictors);
}

/* ---- the orders ----------------------------------------------------------------------------- */

HM_UNLOCKED static bool has_pages(const struct hm_resident *at)
{
    const struct hm_page_sets *copies = atomic_load(&at->region->copies);
    const struct hm_page_sets *labels = atomic_load(&at->region->labels);
    uint64_t any = at->region->blocks[at->block].pages[at->node];
    for (int w = 0; w < HM_WORDS && !any; w++) {
        any |= copies ? copies[at->block].on[at->node][w] : 0;
        any |= labels ? labels[at->block].on[at->node][w] : 0;
    }
    return any != 0;
}

/* The pages that the device has of a block, as its policy sees them. Without the functions of
 * mask.h, in which ThreadSanitizer would look. */
HM_UNLOCKED static struct hm_mask resident(const struct hm_resident *at)
{
    const struct hm_block *record = &at->region->blocks[at->block];
    const struct hm_page_sets *copies = atomic_load(&at->region->copies);
    const struct hm_page_sets *labels = atomic_load(&at->region->labels);
    struct hm_mask pages = {{0}};
    HM_EACH_WORD (w) {
        uint64_t left = record->device[w];
        for (uint64_t bit; left; left &= ~bit) {
            bit = left & -left;
            if (record->owner[w * 64 + __builtin_ctzll(left)] == at->node)
                pages.word[w] |= bit;
        }
        pages.word[w] |= copies ? copies[at->block].on[at->node][w] : 0;
        pages.word[w] |= labels ? labels[at->block].on[at->node][w] : 0;
    }
    return pages;
}

static uint64_t first_access(const struct hm_resident *at)
{
    uint64_t first = UINT64_MAX;
    for (uint32_t page = 0; at->accessed && page < HM_BLOCK_PAGES; page++)
        if (at->accessed[page] && at->accessed[page] < first)
            first = at->accessed[page];
    return first;
}

static uint64_t last_use(const struct hm_evictor *by, const struct hm_resident *at)
{
    uint32_t page;
    uint64_t when;
    /* Farther is sooner, and what no fault brought is last. */
    return hm_future_farthest(by->future, at->block, &at->fetched, &page, &when) ? ~when
                                                                                 : UINT64_MAX;
}

/* What decides, and then what does among equals; at last the block's number does. */
HM_UNLOCKED static void key_of(const struct hm_evictor *by, const struct hm_resident *at,
                               uint64_t key[HM_RANK_KEYS])
{
    const struct hm_block *record = &at->region->blocks[at->block];
    uint64_t used =
        record->last_device > record->last_migrated ? record->last_device : record->last_migrated;
    key[0] = key[1] = 0;
    key[2] = at->region->ino;
    key[3] = at->block;
    switch (by->kind) {
    case HM_EVICT_LRU:
    case HM_EVICT_TREE:
        key[0] = used;
        break;
    case HM_EVICT_MRU:
        key[0] = ~used;
        break;
    case HM_EVICT_LRM:
        key[0] = record->last_migrated;
        break;
    case HM_EVICT_FIFO:
    case HM_EVICT_CLOCK:
        key[0] = record->arrived;
        break;
    case HM_EVICT_LFU:
        key[0] = record->uses;
        key[1] = record->last_device;
        break;
    case HM_EVICT_LRU_PAGE:
        key[0] = first_access(at);
        break;
    case HM_EVICT_OPTIMAL:
        key[0] = last_use(by, at);
        break;
    }
}

static void unrank(struct hm_evictor *by, struct hm_resident *at)
{
    if (at->ranked.size)
        hm_ranking_remove(at->stuck ? &by->stuck : &by->able, &at->ranked);
    at->stuck = false;
}

/* Put it where it belongs now. False: there it was. */
static bool rank(struct hm_evictor *by, struct hm_resident *at)
{
    uint64_t key[HM_RANK_KEYS];
    key_of(by, at, key);
    if (at->ranked.size && !at->stuck && !hm_ranking_compare(key, at->ranked.key))
        return false;
    unrank(by, at);
    memcpy(at->ranked.key, key, sizeof(key));
    hm_ranking_add(&by->able, &at->ranked);
    return true;
}

/* After a use. One that comes later than it did keeps its place until somebody chooses and looks
 * there (next_able): so a use costs a comparison, and no place in an order is too late. */
static void rank_if_sooner(struct hm_evictor *by, struct hm_resident *at)
{
    uint64_t key[HM_RANK_KEYS];
    key_of(by, at, key);
    if (!at->ranked.size || at->stuck || hm_ranking_compare(key, at->ranked.key) < 0)
        rank(by, at);
}

static struct hm_resident *resident_of(const struct hm_listed *listed, uint32_t node)
{
    struct hm_resident *at = listed->residents;
    while (at && at->node != node)
        at = at->next;
    return at;
}

static struct hm_resident *resident_make(struct hm_listed *listed, uint32_t node)
{
    struct hm_resident *at = calloc(1, sizeof(*at));
    if (!at)
        return NULL; /* it is not chosen, as a block that could not be listed */
    at->region = listed->region;
    at->block = listed->block;
    at->node = node;
    at->next = listed->residents;
    listed->residents = at;
    return at;
}

void hm_residents_free(struct hm_core *core, struct hm_resident *at)
{
    struct hm_resident *next;
    for (; at; at = next) {
        struct hm_evictor *by = evictor(core, at->node);
        next = at->next;
        unrank(by, at);
        if (at->block < by->future_blocks && by->in_future[at->block] == at)
            by->in_future[at->block] = NULL;
        free(at->accessed);
        free(at);
    }
}

/* The block's place in the order of one device. */
static void note(struct hm_core *core, struct hm_listed *listed, uint32_t node)
{
    struct hm_evictor *by = evictor(core, node);
    struct hm_resident *at = resident_of(listed, node);
    struct hm_resident seen = {.region = listed->region, .block = listed->block, .node = node};
    if (by->kind == HM_EVICT_ASK)
        return;
    if (!has_pages(&seen)) {
        if (at)
            unrank(by, at);
        return;
    }
    at = at ? at : resident_make(listed, node);
    if (!at)
        return;
    if (at->block < by->future_blocks)
        by->in_future[at->block] = at;
    rank_if_sooner(by, at);
}

/* Of a block, or NULL; list_lock is held. */
static struct hm_listed *listed_of(struct hm_region *region, uint64_t block)
{
    uint32_t slot = region->blocks[block].slot;
    return slot ? &region->core->list[slot - 1] : NULL;
}

void hm_evict_note(struct hm_region *region, uint64_t block)
{
    struct hm_core *core = region->core;
    struct hm_listed *listed;
    HM_GUARD(HM_RANK_LIST, &core->list_lock);
    listed = listed_of(region, block);
    for (uint32_t node = 1; listed && node < core->config.nodes; node++)
        note(core, listed, node);
}

/* ---- what policies by page are told --------------------------------------------------------- */

static void count_accesses(struct hm_evictor *by, struct hm_resident *at,
                           const struct hm_mask *coming)
{
    if (!at->accessed)
        at->accessed = calloc(HM_BLOCK_PAGES, sizeof(*at->accessed));
    if (!at->accessed)
        return;
    HM_EACH_PAGE (page, coming->word)
        at->accessed[page] = ++by->accesses;
}

static void rank_passed(void *context, uint64_t block)
{
    struct hm_evictor *by = context;
    struct hm_resident *at = block < by->future_blocks ? by->in_future[block] : NULL;
    if (at && at->ranked.size && !at->stuck)
        rank_if_sooner(by, at);
}

void hm_evict_used(struct hm_region *region, uint64_t block, uint32_t node,
                   const struct hm_mask *used, const struct hm_mask *coming)
{
    struct hm_core *core = region->core;
    struct hm_evictor *by = evictor(core, node);
    struct hm_listed *listed;
    struct hm_resident *at;
    if (!hm_evict_by_page(core, node))
        return;
    HM_GUARD(HM_RANK_LIST, &core->list_lock);
    listed = listed_of(region, block);
    at = listed ? resident_of(listed, node) : NULL;
    if (listed && !at)
        at = resident_make(listed, node);
    if (at && by->kind == HM_EVICT_LRU_PAGE)
        count_accesses(by, at, coming);
    if (at && by->kind == HM_EVICT_OPTIMAL) {
        hm_future_used(by->future, block, used, rank_passed, by);
        hm_add(at->fetched.word, coming->word);
    }
    if (at && at->ranked.size)
        rank_if_sooner(by, at);
}

/* ---- policies ------------------------------------------------------------------------------- */

static int make_future(struct hm_evictor *out, const struct hm_eviction *policy)
{
    for (uint64_t i = 0; i < policy->length; i++) {
        uint64_t block = policy->trace[i] / HM_BLOCK_PAGES;
        if (block >= HM_MAX_BLOCKS)
            return -EINVAL;
        if (block >= out->future_blocks)
            out->future_blocks = block + 1;
    }
    out->future = hm_future_make(policy->trace, policy->length);
    out->in_future = calloc(out->future_blocks + 1, sizeof(*out->in_future));
    return out->future && out->in_future ? 0 : -ENOMEM;
}

int hm_eviction_set(struct hm_core *core, uint32_t node, const struct hm_eviction *policy)
{
    struct hm_evictor made = {0}, *by;
    int error = 0;
    if (node == HM_HOST || node >= core->config.nodes || policy->kind > HM_EVICT_ASK)
        return -EINVAL;
    if (policy->kind == HM_EVICT_OPTIMAL)
        error = make_future(&made, policy);
    if (error) {
        forget_future(&made);
        return error;
    }
    by = evictor(core, node);
    HM_GUARD(HM_RANK_LIST, &core->list_lock);
    for (uint32_t i = 0; i < core->list_used; i++) {
        struct hm_resident *at = resident_of(&core->list[i], node);
        if (!at)
            continue;
        unrank(by, at);
        free(at->accessed);
        at->accessed = NULL;
        memset(&at->fetched, 0, sizeof(at->fetched));
        at->passed_arrival = at->passed_uses = 0;
    }
    forget_future(by);
    by->future = made.future;
    by->in_future = made.in_future;
    by->future_blocks = made.future_blocks;
    by->seed = policy->seed;
    by->drawn = by->accesses = 0;
    __atomic_store_n(&by->kind, policy->kind, __ATOMIC_RELAXED);
    for (uint32_t i = 0; i < core->list_used; i++)
        note(core, &core->list[i], node);
    return 0;
}

bool hm_evict_is_native(struct hm_core *core, uint32_t node)
{
    return kind_of(core, node) != HM_EVICT_ASK;
}

bool hm_evict_by_page(struct hm_core *core, uint32_t node)
{
    uint32_t kind = kind_of(core, node);
    return kind == HM_EVICT_LRU_PAGE || kind == HM_EVICT_OPTIMAL;
}

/* ---- choosing ------------------------------------------------------------------------------- */

/* The pages that may be chosen of a block: not those that its own job wants. */
static struct hm_mask choice(const struct hm_resident *at, const struct hm_spared *spared)
{
    struct hm_mask pages = resident(at);
    if (&at->region->blocks[at->block] == spared->own)
        hm_drop(pages.word, spared->wanted->word);
    return pages;
}

/* Who waits for a block that is in use waits for somebody. */
HM_UNLOCKED static bool is_spared(const struct hm_resident *at, const struct hm_spared *spared)
{
    const struct hm_block *record = &at->region->blocks[at->block];
    for (uint32_t i = 0; i < spared->count; i++)
        if (spared->keys[2 * i] == at->region->ino && spared->keys[2 * i + 1] == at->block)
            return true;
    if (at->region->kind == HM_KIND_DAX)
        return true;
    if (record == spared->own)
        return !hm_bits(choice(at, spared).word);
    return record->busy || record->parked;
}

static bool is_pinned(const struct hm_resident *at)
{
    struct hm_mask pages, pinned;
    if (!at->region->advised)
        return false;
    pages = resident(at);
    pinned = hm_pinned(at->region, at->block);
    hm_drop(pages.word, pinned.word);
    return !hm_bits(pages.word);
}

static void put_aside(struct hm_evictor *by, struct hm_resident *at)
{
    unrank(by, at);
    at->stuck = true;
    hm_ranking_add(&by->stuck, &at->ranked);
}

/* The first from here on, as the block is now, that may be chosen. What is found to be out of place
 * is put there; those that nothing may leave of are put aside until something else is said. */
static struct hm_resident *next_able(struct hm_evictor *by, struct hm_ranked *ranked,
                                     const struct hm_spared *spared)
{
    while (ranked) {
        struct hm_resident *at = (struct hm_resident *)ranked;
        uint64_t was[HM_RANK_KEYS];
        memcpy(was, ranked->key, sizeof(was));
        if (!has_pages(at)) {
            unrank(by, at);
        } else if (rank(by, at)) {
            if (hm_ranking_compare(ranked->key, was) < 0)
                continue; /* it comes before those that are left */
        } else if (!is_spared(at, spared)) {
            if (!is_pinned(at))
                return at;
            put_aside(by, at);
        }
        ranked = hm_ranking_after(&by->able, was);
    }
    return NULL;
}

static struct hm_resident *first_able(struct hm_evictor *by, const struct hm_spared *spared)
{
    return next_able(by, hm_ranking_nth(&by->able, 0), spared);
}

static struct hm_resident *able_after(struct hm_evictor *by, const struct hm_resident *at,
                                      const struct hm_spared *spared)
{
    return next_able(by, hm_ranking_after(&by->able, at->ranked.key), spared);
}

/* Something else was said since blocks were put aside. */
static void free_stuck(struct hm_evictor *by, uint64_t advice)
{
    struct hm_ranked *at;
    while (by->advice != advice && (at = hm_ranking_nth(&by->stuck, 0)))
        rank(by, (struct hm_resident *)at);
    by->advice = advice;
}

/* The first that was not used since the hand last passed over it. */
HM_UNLOCKED static struct hm_resident *by_clock(struct hm_evictor *by,
                                                const struct hm_spared *spared)
{
    struct hm_resident *at = first_able(by, spared), *first = at;
    for (; at; at = able_after(by, at, spared)) {
        const struct hm_block *record = &at->region->blocks[at->block];
        uint32_t passed = at->passed_arrival == record->arrived ? at->passed_uses : 1;
        if (record->uses <= passed)
            return at;
        at->passed_arrival = record->arrived;
        at->passed_uses = record->uses;
    }
    return first;
}

static struct hm_resident *by_chance(struct hm_evictor *by, const struct hm_spared *spared)
{
    uint32_t all = hm_ranking_size(&by->able);
    struct hm_resident *at;
    if (!all)
        return NULL;
    at = next_able(
        by, hm_ranking_nth(&by->able, (uint32_t)(hm_mixed(by->seed ^ hm_mixed(by->drawn++)) % all)),
        spared);
    return at ? at : first_able(by, spared);
}

static struct hm_resident *choose(struct hm_evictor *by, const struct hm_spared *spared)
{
    if (by->kind == HM_EVICT_ASK)
        return NULL;
    if (by->kind == HM_EVICT_CLOCK)
        return by_clock(by, spared);
    return by->kind == HM_EVICT_RANDOM ? by_chance(by, spared) : first_able(by, spared);
}

/* ---- which pages of the block --------------------------------------------------------------- */

/* The lowest 64 KiB, and each aligned range around them that would be less than half full then. */
static struct hm_mask by_tree(const struct hm_mask *pages)
{
    uint32_t first = hm_next_page(pages->word, 0) / GROUP_PAGES * GROUP_PAGES;
    struct hm_mask leaves = hm_mask_range(first, GROUP_PAGES);
    for (uint32_t size = 2 * GROUP_PAGES; size <= HM_BLOCK_PAGES; size *= 2) {
        struct hm_mask range = hm_mask_range(first / size * size, size);
        struct hm_mask left = hm_both(hm_without(pages->word, leaves.word).word, range.word);
        if (hm_bits(left.word) * 2 < size)
            hm_add(leaves.word, range.word);
    }
    return hm_both(leaves.word, pages->word);
}

/* Pages in the order of their last access, until one of another block would be next. All that are
 * there, where no fault has brought any. */
static struct hm_mask by_access(struct hm_evictor *by, struct hm_resident *at,
                                const struct hm_mask *pages, uint32_t need, uint64_t limit)
{
    struct hm_mask chosen = {{0}};
    uint64_t first;
    while (hm_bits(chosen.word) < need && (first = first_access(at)) != UINT64_MAX) {
        uint32_t page = 0;
        if (hm_bits(chosen.word) && first > limit)
            break;
        while (at->accessed[page] != first)
            page++;
        at->accessed[page] = 0;
        if (hm_test(pages->word, page))
            hm_set(chosen.word, page);
    }
    rank(by, at);
    return hm_bits(chosen.word) ? chosen : *pages;
}

static struct hm_mask by_future(struct hm_evictor *by, struct hm_resident *at,
                                const struct hm_mask *pages)
{
    struct hm_mask known = hm_both(pages->word, at->fetched.word), chosen;
    uint32_t page;
    uint64_t when;
    if (!hm_future_farthest(by->future, at->block, &known, &page, &when))
        return *pages; /* came without a fault, by a migration */
    chosen = hm_mask_range(page, 1);
    hm_drop(at->fetched.word, chosen.word);
    rank(by, at);
    return chosen;
}

bool hm_evict_choose(struct hm_core *core, uint32_t node, uint32_t need,
                     const struct hm_spared *spared, struct hm_victim *out)
{
    struct hm_evictor *by = evictor(core, node);
    struct hm_resident *at, *next;
    struct hm_mask pages;
    HM_GUARD(HM_RANK_LIST, &core->list_lock);
    free_stuck(by, atomic_load(&core->advice));
    at = choose(by, spared);
    if (at) {
        pages = choice(at, spared);
        out->ino = at->region->ino;
        out->block = at->block;
        if (by->kind == HM_EVICT_TREE) {
            pages = by_tree(&pages);
        } else if (by->kind == HM_EVICT_LRU_PAGE) {
            next = able_after(by, at, spared);
            pages = by_access(by, at, &pages, need, next ? next->ranked.key[0] : UINT64_MAX);
        } else if (by->kind == HM_EVICT_OPTIMAL) {
            pages = by_future(by, at, &pages);
        }
        memcpy(out->window, pages.word, sizeof(out->window));
    }
    return at != NULL;
}

int hm_victim_next(struct hm_core *core, uint32_t node, uint32_t need, const uint64_t *spared,
                   uint32_t count, struct hm_victim *out)
{
    struct hm_spared blocks = {.keys = spared, .count = count};
    if (node == HM_HOST || node >= core->config.nodes)
        return -ENODEV;
    return hm_evict_choose(core, node, need, &blocks, out);
}
