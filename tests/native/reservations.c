/* Capacity, the audit and candidates by themselves: reservations, what the audit says of a node
 * that had too much, and what a block offers to eviction. */
#include "core.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "reservations.c:%d: %s does not hold\n", __LINE__, #condition);        \
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

#define INO (1ULL << 32)

static void run(struct hm_core *core, struct hm_job job)
{
    struct hm_queued_job queued = {.job = job};
    queued.job.ino = INO;
    queued.job.flags |= HM_JOB_QUIET;
    CHECK(hm_run(core, &queued));
}

/* What the one block there is offers of a node, or nothing. */
static struct hm_candidate offered(struct hm_core *core, uint32_t node, int count)
{
    struct hm_candidate found = {0};
    CHECK(hm_candidates(core, node, &found, 1) == count);
    CHECK(!count || (found.ino == INO && found.block == 0 && !found.held));
    return found;
}

/* A block with two of the host's pages, three of a device's with the host's kept, one of them
 * pinned, and one page of the other device. */
static void candidates(void)
{
    struct hm_config config = {
        .nodes = 4, .threads = 1, .keep_clean = 1, .capacity = {512, 512, 512, 512}};
    struct hm_region_record *record;
    struct hm_core *core;
    CHECK(!hm_core_create(&config, &core));
    CHECK(!hm_region_create(core, INO, S_IFREG | 0600, 0, 0, &record));
    CHECK(!hm_region_truncate(core, INO, HM_BLOCK_BYTES));
    offered(core, HM_HOST, 0);
    run(core, (struct hm_job){.kind = HM_JOB_FILL, .node = 1, .length = 5 * HM_PAGE_SIZE});
    run(core,
        (struct hm_job){.kind = HM_JOB_FILL, .node = 2, .offset = 9 * HM_PAGE_SIZE, .length = 1});
    run(core, (struct hm_job){.kind = HM_JOB_MIGRATE, .node = HM_HOST, .count = 5});
    run(core, (struct hm_job){.kind = HM_JOB_MIGRATE, .node = 1, .first = 2, .count = 3});
    CHECK(offered(core, HM_HOST, 1).pages == 2);
    CHECK(offered(core, HM_HOST, 1).kept == 3);
    CHECK(offered(core, HM_HOST, 1).reserved == 0);
    CHECK(offered(core, 1, 1).pages == 3);
    CHECK(offered(core, 1, 1).kept == 0);
    CHECK(offered(core, 2, 1).pages == 1);
    offered(core, 3, 0);
    CHECK(!hm_advise(core, INO, 2, 1, HM_ADVICE_PINNED, 1));
    CHECK(offered(core, 1, 1).pages == 2);
    CHECK(offered(core, HM_HOST, 1).pages == 2);
    CHECK(!hm_advise(core, INO, 9, 1, HM_ADVICE_PINNED, 1));
    offered(core, 2, 0);
    CHECK(!hm_advise(core, INO, 0, 10, HM_ADVICE_PINNED, 0));
    /* Two copies of a read-mostly page count on the devices, not on the host. */
    CHECK(!hm_advise(core, INO, 0, 1, HM_ADVICE_READ_MOSTLY, 1));
    for (uint32_t node = 1; node < 4; node += 2)
        run(core, (struct hm_job){
                      .kind = HM_JOB_MIGRATE, .node = node, .count = 1, .flags = HM_JOB_ASKED});
    CHECK(offered(core, HM_HOST, 1).pages == 2);
    CHECK(offered(core, 1, 1).pages == 4);
    CHECK(offered(core, 2, 1).pages == 1);
    CHECK(offered(core, 3, 1).pages == 1);
    CHECK(hm_drop_kept(core, 513) == 3); /* all, for there is never that much */
    CHECK(offered(core, HM_HOST, 1).kept == 0);
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
    candidates();
    return 0;
}
