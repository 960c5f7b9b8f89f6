/* The audit itself: each kind of damage, done to the core's records by hand, has its sentence, and
 * undone it has none. Prints the sentences. */
#include "inside.h"

#include <fcntl.h>
#include <string.h>

#define PAGE HM_PAGE_SIZE

static struct hm_block *block;

static void expect(const char *what)
{
    char text[256] = "";
    CHECK(hm_audit(core, text, sizeof(text)) == -EUCLEAN, "damaged: %s", what);
    CHECK(strstr(text, what), "\"%s\", not \"%s\"", text, what);
    puts(text);
}

/* Damage, the sentence, and the way back. */
#define DAMAGE(what, change, undo)                                                                 \
    do {                                                                                           \
        change;                                                                                    \
        expect(what);                                                                              \
        undo;                                                                                      \
        audit();                                                                                   \
    } while (0)

static void damage_block(const char *what, uint64_t *words, uint32_t page)
{
    uint64_t before = words[page / 64];
    DAMAGE(what, words[page / 64] ^= 1ULL << (page % 64), words[page / 64] = before);
}

static void fill(uint32_t node, uint32_t page)
{
    CHECK(!run_job((struct hm_job){
              .kind = HM_JOB_FILL, .node = node, .offset = page * PAGE, .length = PAGE, .byte = 7}),
          "fill");
}

static void migrate(uint32_t node, uint32_t page, uint32_t flags)
{
    CHECK(!run_job((struct hm_job){
              .kind = HM_JOB_MIGRATE, .flags = flags, .node = node, .first = page, .count = 1}),
          "migrate");
}

/* Page 0 is the host's, 1 dev0's with a copy kept, 2 dev1's, 3 the host's with a copy on dev0; 9 is
 * a hole. */
static void begin(void)
{
    make_core(
        (struct hm_config){
            .nodes = 3, .threads = 1, .keep_clean = 1, .capacity = {2048, 2048, 2048}},
        16 * PAGE);
    for (uint32_t page = 0; page < 4; page++) {
        fill(1, page);
        migrate(HM_HOST, page, 0);
    }
    migrate(1, 1, 0);
    fill(2, 2);
    CHECK(!hm_advise(core, INO, 3, 1, HM_ADVICE_READ_MOSTLY, 1), "advise");
    migrate(1, 3, HM_JOB_ASKED);
    block = &region->blocks[0];
    audit();
}

static void damage_blocks(void)
{
    struct hm_mask third = hm_mask_range(2, 1);
    struct hm_page_sets *labels;
    damage_block("a device owns a page that is not present", block->device, 9);
    damage_block("a device owns a page that is not present", block->present, 2);
    damage_block("a kept copy of a host-owned or dirty page", block->kept, 0);
    damage_block("a kept copy of a host-owned or dirty page", block->dirty, 1);
    damage_block("a device-owned page is cached by the CPU", block->cached, 1);
    damage_block("a device-owned page is cached by the CPU", block->recalling, 2);
    damage_block("disagrees with the device bit", block->device, 0);
    DAMAGE("owner 2 disagrees with the device bit", block->owner[0] = 2, block->owner[0] = 0);
    DAMAGE("owner 3 disagrees with the device bit", block->owner[1] = 3, block->owner[1] = 1);
    DAMAGE("owner 255 disagrees", block->owner[9] = 255, block->owner[9] = 0);
    DAMAGE("pages on node 2, its counter says 2", block->pages[2]++, block->pages[2]--);
    damage_block("pages on node 0, its counter says 2", block->present, 9);
    DAMAGE("dev1 has a copy of a page that is not the host's",
           hm_copies_set(region, 0, 2, &third, true), hm_copies_set(region, 0, 2, &third, false));
    DAMAGE("the CPU may store to a page that dev0 has a copy of",
           (block->cached[0] |= 8, region->writers = 1 | HM_COPIES_ENDED),
           (block->cached[0] &= ~8ULL, region->writers = 0));
    CHECK(!hm_page_sets_init(&region->labels), "memory");
    labels = hm_page_sets_of(&region->labels, 0);
    DAMAGE("dev0 labels a page that is not the host's", labels->on[1][0] = 4, labels->on[1][0] = 0);
}

static void damage_region(void)
{
    struct hm_pool *host = &region->pools[HM_HOST];
    uint8_t bytes[PAGE];
    struct iovec iov;
    CHECK(!hm_pool_read(host, 0, bytes, PAGE, &iov), "read");
    DAMAGE("its record says 2", region->record->pages[2]++, region->record->pages[2]--);
    DAMAGE("the kernel refused 3 punches of the pool of node 0", host->unpunched = 3,
           host->unpunched = 0);
    DAMAGE("the pool of node 0 holds 2 pages, not 3", hm_pool_punch(host, 0, PAGE),
           hm_pool_write(host, 0, bytes, PAGE));
    DAMAGE("the pool of node 1 holds 3 pages, not 2",
           hm_pool_write(&region->pools[1], 9 * PAGE, bytes, PAGE),
           hm_pool_punch(&region->pools[1], 9 * PAGE, PAGE));
}

static void damage_books(void)
{
    struct hm_node *host = &core->nodes[HM_HOST], *device = &core->nodes[1];
    struct hm_flows *flows = &core->flows;
    uint64_t peak = device->peak;
    DAMAGE("node 0: 3 pages are accounted for, 4 are used", host->used++, host->used--);
    DAMAGE("node 1: 2 pages are accounted for, 1 are used", device->used--, device->used++);
    DAMAGE("node 1: its peak passed its capacity", device->peak = 2049, device->peak = peak);
    peak = host->peak;
    DAMAGE("node 0: its peak passed its capacity", host->peak = 2048 + HM_BLOCK_PAGES + 1,
           host->peak = peak);
    DAMAGE("node 0: 4 pages in and 0 populated are not 2 out, 1 dropped and 2 there",
           host->counts.dropped_pages++, host->counts.dropped_pages--);
    DAMAGE("node 1: 1 pages in and 4 populated are not 4 out, 1 dropped and 1 there",
           device->counts.dropped_pages++, device->counts.dropped_pages--);
    DAMAGE("node 0: pages by pair or trigger are not all that moved", flows->moved[0][1]++,
           flows->moved[0][1]--);
    DAMAGE("node 1: pages by pair or trigger are not all that moved", flows->in[1][0]++,
           flows->in[1][0]--);
    DAMAGE("node 2: pages by pair or trigger are not all that moved", flows->out[2][1]++,
           flows->out[2][1]--);
    DAMAGE("node 1: of 1 faults 0 are accounted for", device->counts.faults++,
           device->counts.faults--);
    DAMAGE("node 2: of 0 faults 1 are accounted for", flows->faults[2][HM_FAULTS_MIGRATED]++,
           flows->faults[2][HM_FAULTS_MIGRATED]--);
}

static void damage_shared(void)
{
    struct hm_pool *pool;
    make_core(
        (struct hm_config){
            .nodes = 2, .threads = 1, .kind = HM_KIND_COHERENT, .capacity = {2048, 2048}},
        4 * PAGE);
    audit();
    pool = &region->pools[HM_HOST];
    DAMAGE("4 pages have a place, of 20480 bytes", region->record->size += PAGE,
           region->record->size -= PAGE);
    DAMAGE("its memory holds 5 pages, and 4 are reserved",
           CHECK(!fallocate(pool->fd, 0, 0, 5 * PAGE), "memory"),
           CHECK(!ftruncate(pool->fd, 4 * PAGE), "memory"));
    DAMAGE("its memory is 16385 bytes long, not 16384",
           CHECK(!ftruncate(pool->fd, 4 * PAGE + 1), "memory"),
           CHECK(!ftruncate(pool->fd, 4 * PAGE), "memory"));
    end_core();
}

int main(void)
{
    begin();
    damage_blocks();
    damage_region();
    damage_books();
    end_core();
    damage_shared();
    return 0;
}
