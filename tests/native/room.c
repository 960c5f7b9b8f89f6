/* native/room.c by itself: reservations, and what the audit says of a node that had too much. */
#include "../../native/core.h"

#include <stdio.h>
#include <stdlib.h>

#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "room.c:%d: %s does not hold\n", __LINE__, #condition);                \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

static struct hm_core *made(void)
{
    struct hm_config config = {
        .nodes = 2, .threads = 1, .capacity = {HM_BLOCK_PAGES, HM_BLOCK_PAGES}};
    struct hm_core *core;
    CHECK(!hm_core_create(&config, &core));
    return core;
}

/* What could not be refused is seen by the audit when it is over, too. */
static void always(uint32_t node, uint64_t allowed)
{
    char text[512] = "";
    struct hm_core *core = made();
    hm_reserve_always(core, node, allowed);
    hm_release(core, node, allowed);
    CHECK(!hm_audit(core, text, sizeof(text)));
    hm_reserve_always(core, node, allowed + 1);
    hm_release(core, node, allowed + 1);
    CHECK(hm_audit(core, text, sizeof(text)) == -EUCLEAN);
    CHECK(strstr(text, "its peak passed its capacity"));
    hm_core_destroy(core);
}

int main(void)
{
    struct hm_core *core = made();
    CHECK(hm_reserve(core, HM_MAX_NODES + 7, 1, 0) == -ENODEV); /* and it looks at no such node */
    CHECK(hm_reserve(core, 1, HM_BLOCK_PAGES, 1) == 0);
    CHECK(hm_reserve(core, 1, 1, 1) == -ENOSPC); /* only the host has a staging reserve */
    CHECK(hm_reserve(core, 1, UINT64_MAX, 0) == -ENOSPC);
    CHECK(hm_reserve(core, HM_HOST, 2ul * HM_BLOCK_PAGES, 1) == 0);
    CHECK(hm_reserve(core, HM_HOST, 1, 1) == -ENOSPC);
    hm_core_destroy(core);
    always(1, HM_BLOCK_PAGES);
    always(HM_HOST, 2ul * HM_BLOCK_PAGES);
    return 0;
}
