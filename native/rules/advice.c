/* What programs said of ranges of a region: read mostly, where best, remotely, pinned.
 *
 * A region's list is short and rarely changed, and looked at by every fault on the region once
 * there is one; without any, a fault pays for one load. How the words came to mean what they mean
 * is in hmmfs/policy/README.md.
 */
#include "rules/advice.h"

#include "directory/copies.h"

#include <errno.h>

#include <stdlib.h>
#include <string.h>

#define MAX_PAGE (HM_MAX_BYTES / HM_PAGE_SIZE)
#define MAX_RANGES 4096 /* each change looks at all of them */

/* Whether a fault has to know of it. */
static bool matters(const struct hm_advice *advice)
{
    return advice->read_mostly || advice->preferred || advice->granularity || advice->pinned ||
           advice->no_migrate || advice->accessed_by;
}

static bool says_the_same(const struct hm_advice *a, const struct hm_advice *b)
{
    return a->read_mostly == b->read_mostly && a->preferred == b->preferred &&
           a->granularity == b->granularity && a->pinned == b->pinned &&
           a->no_migrate == b->no_migrate && a->prefetched == b->prefetched &&
           a->accessed_by == b->accessed_by;
}

static int check(const struct hm_core *core, uint32_t field, uint32_t value)
{
    switch (field) {
    case HM_ADVICE_READ_MOSTLY:
    case HM_ADVICE_PINNED:
    case HM_ADVICE_NO_MIGRATE:
        return value <= 1 ? 0 : -EINVAL;
    case HM_ADVICE_GRANULARITY:
        return value <= 10 ? 0 : -EINVAL;
    case HM_ADVICE_PREFERRED:
    case HM_ADVICE_PREFETCHED:
        return value <= core->config.nodes ? 0 : -EINVAL;
    case HM_ADVICE_ACCESSED_BY:
    case HM_ADVICE_UNACCESSED_BY:
        return value < core->config.nodes ? 0 : -EINVAL;
    default:
        return -EINVAL;
    }
}

static void say(struct hm_advice *advice, uint32_t field, uint32_t value)
{
    switch (field) {
    case HM_ADVICE_READ_MOSTLY:
        advice->read_mostly = (uint8_t)value;
        break;
    case HM_ADVICE_PREFERRED:
        advice->preferred = (uint8_t)value;
        break;
    case HM_ADVICE_GRANULARITY:
        advice->granularity = (uint8_t)value;
        break;
    case HM_ADVICE_PINNED:
        advice->pinned = (uint8_t)value;
        break;
    case HM_ADVICE_NO_MIGRATE:
        advice->no_migrate = (uint8_t)value;
        break;
    case HM_ADVICE_PREFETCHED:
        advice->prefetched = (uint8_t)value;
        break;
    case HM_ADVICE_ACCESSED_BY:
        advice->accessed_by |= (uint16_t)(1u << value);
        break;
    case HM_ADVICE_UNACCESSED_BY:
        advice->accessed_by &= (uint16_t) ~(1u << value);
        break;
    }
}

/* Put a range behind the others, joined with the last if that says the same. */
static uint32_t append(struct hm_advice *list, uint32_t used, const struct hm_advice *advice)
{
    struct hm_advice *last = used ? &list[used - 1] : NULL;
    if (!advice->count || (!matters(advice) && !advice->prefetched))
        return used;
    if (last && last->first + last->count == advice->first && says_the_same(last, advice)) {
        last->count += advice->count;
        return used;
    }
    list[used] = *advice;
    return used + 1;
}

/* The old list with one thing said of [first, end), into a list that can hold three ranges more of
 * each; returns how many there are. */
static uint32_t rewrite(const struct hm_region *region, uint64_t first, uint64_t end,
                        uint32_t field, uint32_t value, struct hm_advice *list)
{
    uint64_t at = first; /* said up to here */
    uint32_t used = 0, old = region->advice_used;
    for (uint32_t i = 0; i <= old; i++) {
        /* After the last, what is left of the range. */
        struct hm_advice part = {.first = MAX_PAGE};
        uint64_t low, high, stop;
        if (i < old)
            part = region->advice[i];
        low = part.first;
        stop = low + part.count;
        if (at < end && at < low) { /* a gap that nothing was said of */
            struct hm_advice fresh = {.first = at, .count = (low < end ? low : end) - at};
            say(&fresh, field, value);
            used = append(list, used, &fresh);
            at = fresh.first + fresh.count;
        }
        if (i == old)
            break;
        high = stop < first ? stop : first;
        if (low < high) {
            part.count = high - low;
            used = append(list, used, &part);
        }
        low = low > first ? low : first;
        high = stop < end ? stop : end;
        if (low < high) {
            struct hm_advice told = region->advice[i];
            told.first = low;
            told.count = high - low;
            say(&told, field, value);
            used = append(list, used, &told);
            at = high;
        }
        low = region->advice[i].first > end ? region->advice[i].first : end;
        if (low < stop) {
            part = region->advice[i];
            part.first = low;
            part.count = stop - low;
            used = append(list, used, &part);
        }
    }
    return used;
}

int hm_advise(struct hm_core *core, uint64_t ino, uint64_t first, uint64_t count, uint32_t field,
              uint32_t value)
{
    struct hm_advice *list;
    int error = check(core, field, value);
    if (error)
        return error;
    if (!count || first >= MAX_PAGE || count > MAX_PAGE - first)
        return -EINVAL;
    HM_AUTO_PUT struct hm_region *region = hm_region_get(core, ino);
    if (!region)
        return -ENOENT;
    error = field == HM_ADVICE_READ_MOSTLY && value ? hm_page_sets_init(&region->copies) : 0;
    if (error)
        return error;
    hm_lock_to_write(HM_RANK_ADVICE, &region->advice_lock);
    list = calloc(3 * (size_t)region->advice_used + 3, sizeof(*list));
    error = list ? 0 : -ENOMEM;
    if (!error) {
        uint32_t used = rewrite(region, first, first + count, field, value, list);
        if (used > MAX_RANGES) {
            error = -ENOSPC;
        } else {
            struct hm_advice *old = region->advice;
            uint32_t matter = 0;
            for (uint32_t i = 0; i < used; i++)
                matter += matters(&list[i]);
            region->advice = list;
            region->advice_used = used;
            atomic_store(&region->advised, matter);
            atomic_fetch_add(&core->advice, 1);
            list = old;
        }
    }
    hm_unlock_either(HM_RANK_ADVICE, &region->advice_lock);
    free(list);
    if (!error && field == HM_ADVICE_READ_MOSTLY && !value)
        hm_collapse_all(region);
    return error;
}

/* The first range that ends after the page; the lock is held. */
static uint32_t find(const struct hm_region *region, uint64_t page)
{
    uint32_t low = 0, high = region->advice_used;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (region->advice[middle].first + region->advice[middle].count <= page)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

int hm_advice_get(struct hm_core *core, uint64_t ino, uint64_t from, struct hm_advice *out, int max)
{
    HM_AUTO_PUT struct hm_region *region = hm_region_get(core, ino);
    int n = 0;
    if (!region)
        return -ENOENT;
    hm_lock_to_read(HM_RANK_ADVICE, &region->advice_lock);
    for (uint32_t i = find(region, from); i < region->advice_used && n < max; i++)
        out[n++] = region->advice[i];
    hm_unlock_either(HM_RANK_ADVICE, &region->advice_lock);
    return n;
}

static void add(struct hm_mask *mask, const struct hm_mask *pages, bool said)
{
    if (said)
        hm_add(mask->word, pages->word);
}

/* The part of a range that lies in the block. */
static struct hm_mask within(const struct hm_advice *advice, uint64_t base)
{
    uint64_t first = advice->first > base ? advice->first - base : 0;
    uint64_t end = advice->first + advice->count - base;
    end = end < HM_BLOCK_PAGES ? end : HM_BLOCK_PAGES;
    return hm_mask_range((uint32_t)first, (uint32_t)(end - first));
}

/* Its ranges, in order; the lock is held. NULL: there are no more. */
static const struct hm_advice *next_range(const struct hm_region *region, uint64_t base,
                                          uint32_t *at)
{
    if (*at >= region->advice_used || region->advice[*at].first >= base + HM_BLOCK_PAGES)
        return NULL;
    return &region->advice[(*at)++];
}

bool hm_advised(struct hm_region *region, uint64_t block, uint32_t node, struct hm_advised *out)
{
    uint64_t base = block * HM_BLOCK_PAGES;
    const struct hm_advice *range;
    uint32_t at;
    bool any = false;
    memset(out, 0, sizeof(*out));
    if (!atomic_load_explicit(&region->advised, memory_order_relaxed))
        return false;
    hm_lock_to_read(HM_RANK_ADVICE, &region->advice_lock);
    at = find(region, base);
    while ((range = next_range(region, base, &at))) {
        struct hm_mask pages = within(range, base);
        any = true;
        add(&out->read_mostly, &pages, range->read_mostly);
        add(&out->pinned, &pages, range->pinned);
        add(&out->no_migrate, &pages, range->no_migrate);
        add(&out->here, &pages, range->preferred == 1 + node);
        add(&out->at_host, &pages, range->preferred == 1 + HM_HOST);
        add(&out->elsewhere, &pages,
            range->preferred > 1 + HM_HOST && range->preferred != 1 + node);
        add(&out->mapped, &pages, range->accessed_by >> node & 1);
    }
    hm_unlock_either(HM_RANK_ADVICE, &region->advice_lock);
    return any;
}

struct hm_mask hm_pinned(struct hm_region *region, uint64_t block)
{
    struct hm_advised advised;
    hm_advised(region, block, HM_HOST, &advised);
    return advised.pinned;
}

struct hm_mask hm_stays(struct hm_region *region, uint64_t block, uint32_t node)
{
    struct hm_advised said;
    hm_advised(region, block, node, &said);
    if (node != HM_HOST)
        hm_add(said.pinned.word, said.no_migrate.word);
    return said.pinned;
}

void hm_advised_window(struct hm_region *region, uint64_t block, const struct hm_mask *touched,
                       struct hm_mask *window)
{
    uint64_t base = block * HM_BLOCK_PAGES;
    const struct hm_advice *range;
    uint32_t at;
    if (!atomic_load_explicit(&region->advised, memory_order_relaxed))
        return;
    hm_lock_to_read(HM_RANK_ADVICE, &region->advice_lock);
    at = find(region, base);
    while ((range = next_range(region, base, &at))) {
        struct hm_mask pages = within(range, base), group;
        uint32_t size;
        if (!range->granularity)
            continue;
        size = 1u << (range->granularity - 1);
        hm_drop(window->word, pages.word);
        HM_EACH_PAGE (page, touched->word) {
            if (!hm_test(pages.word, page))
                continue;
            group = hm_mask_range(page / size * size, size);
            hm_keep(group.word, pages.word);
            hm_add(window->word, group.word);
        }
    }
    hm_unlock_either(HM_RANK_ADVICE, &region->advice_lock);
}

void hm_advice_free(struct hm_region *region)
{
    pthread_rwlock_destroy(&region->advice_lock);
    free(region->advice);
}
