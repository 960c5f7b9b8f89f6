/* Memory for requests that are put aside. Without any, a READ takes one of the places that are kept
 * for that: an error would be a SIGBUS for the program that touched a page. */
#include "rest.h"

#include <stdlib.h>

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
    pthread_mutex_lock(&core->spares_lock);
    parked->next = core->spares;
    core->spares = parked;
    pthread_mutex_unlock(&core->spares_lock);
}

static struct hm_parked *spare(struct hm_core *core)
{
    struct hm_parked *parked;
    pthread_mutex_lock(&core->spares_lock);
    parked = core->spares;
    if (parked)
        core->spares = parked->next;
    pthread_mutex_unlock(&core->spares_lock);
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
