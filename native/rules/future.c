#include "rules/future.h"

#include <stdlib.h>
#include <string.h>

struct use {
    uint64_t page, place;
};

struct hm_future {
    uint64_t *trace;  /* the page, by place */
    struct use *uses; /* by page, and then by place */
    uint64_t length;
    uint64_t passed; /* places that lie behind */
};

static int compare(const void *one, const void *two)
{
    const struct use *a = one, *b = two;
    if (a->page != b->page)
        return a->page < b->page ? -1 : 1;
    return a->place < b->place ? -1 : a->place > b->place;
}

struct hm_future *hm_future_make(const uint64_t *trace, uint64_t length)
{
    struct hm_future *future = calloc(1, sizeof(*future));
    if (!future)
        return NULL;
    future->length = length;
    future->trace = malloc((length + 1) * sizeof(*future->trace));
    future->uses = malloc((length + 1) * sizeof(*future->uses));
    if (!future->trace || !future->uses) {
        hm_future_free(future);
        return NULL;
    }
    for (uint64_t place = 0; place < length; place++) {
        future->trace[place] = trace[place];
        future->uses[place] = (struct use){trace[place], place};
    }
    qsort(future->uses, length, sizeof(*future->uses), compare);
    return future;
}

void hm_future_free(struct hm_future *future)
{
    if (!future)
        return;
    free(future->trace);
    free(future->uses);
    free(future);
}

static uint64_t next_use(const struct hm_future *future, uint64_t page)
{
    struct use wanted = {page, future->passed};
    uint64_t low = 0, high = future->length;
    while (low < high) {
        uint64_t middle = low + (high - low) / 2;
        if (compare(&future->uses[middle], &wanted) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return low < future->length && future->uses[low].page == page ? future->uses[low].place
                                                                  : HM_NEVER;
}

bool hm_future_farthest(const struct hm_future *future, uint64_t block, const struct hm_mask *pages,
                        uint32_t *page, uint64_t *when)
{
    bool found = false;
    HM_EACH_PAGE (at, pages->word) {
        uint64_t next = next_use(future, block * HM_BLOCK_PAGES + at);
        if (found && next < *when)
            continue;
        *page = at;
        *when = next;
        found = true;
    }
    return found;
}

void hm_future_used(struct hm_future *future, uint64_t block, const struct hm_mask *pages,
                    void (*passed)(void *context, uint64_t block), void *context)
{
    uint64_t before = future->passed, after = before;
    HM_EACH_PAGE (page, pages->word) {
        uint64_t next = next_use(future, block * HM_BLOCK_PAGES + page);
        if (next != HM_NEVER && next + 1 > after)
            after = next + 1;
    }
    future->passed = after;
    for (uint64_t place = before; place < future->passed; place++)
        passed(context, future->trace[place] / HM_BLOCK_PAGES);
}
