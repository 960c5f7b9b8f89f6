#include "base/published.h"

#include "base/core.h"

#include <stdlib.h>
#include <string.h>

struct hm_published {
    struct hm_published *next;
    uint64_t bytes[];
};

const void *hm_publish(struct hm_core *core, const void *bytes, size_t size)
{
    struct hm_published *made = malloc(sizeof(*made) + size);
    if (!made)
        return NULL;
    memcpy(made->bytes, bytes, size);
    made->next = atomic_load(&core->published);
    while (!atomic_compare_exchange_weak(&core->published, &made->next, made))
        ;
    return made->bytes;
}

void hm_published_free(struct hm_core *core)
{
    struct hm_published *next;
    for (struct hm_published *at = atomic_load(&core->published); at; at = next) {
        next = at->next;
        free(at);
    }
}
