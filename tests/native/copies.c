/* native/directory/copies.c by itself: opens for writing while copies of read-mostly pages still
 * end. What must happen in between is held up by locks that this test takes. */
#include "inside.h"

#define BLOCKS 8
#define BYTE 0x5a
#define NODES HM_MAX_NODES /* where the end of a table is the end of its memory, too */

static void begin(void)
{
    struct hm_config config = {.nodes = NODES, .threads = 1, .keep_clean = 1};
    for (uint32_t node = 0; node < NODES; node++)
        config.capacity[node] = 8192;
    make_core(config, BLOCKS * HM_BLOCK_BYTES);
    for (uint64_t block = 0; block < BLOCKS; block++) {
        CHECK(!run_job((struct hm_job){.kind = HM_JOB_FILL,
                                       .block = block,
                                       .node = 1,
                                       .length = HM_BLOCK_BYTES,
                                       .byte = BYTE}),
              "fill");
        CHECK(!run_job(
                  (struct hm_job){.kind = HM_JOB_MIGRATE, .block = block, .count = HM_BLOCK_PAGES}),
              "home");
    }
    CHECK(!hm_advise(core, INO, 0, BLOCKS * HM_BLOCK_PAGES, HM_ADVICE_READ_MOSTLY, 1), "advise");
}

static void copy(uint32_t node, uint32_t first, uint32_t count)
{
    for (uint64_t block = 0; block < BLOCKS; block++)
        CHECK(!run_job((struct hm_job){.kind = HM_JOB_MIGRATE,
                                       .flags = HM_JOB_ASKED,
                                       .block = block,
                                       .node = node,
                                       .first = first,
                                       .count = count}),
              "copy");
}

/* Pages that have copies, as it is at this moment. */
static HM_UNLOCKED uint32_t copies(void)
{
    uint32_t n = 0;
    for (uint64_t block = 0; block < BLOCKS; block++)
        for (uint32_t node = 1; node < NODES; node++) {
            struct hm_mask mask = hm_copies_on(region, block, node);
            n += hm_bits(mask.word);
        }
    return n;
}

static uint32_t writers(void)
{
    return atomic_load(&region->writers) & ~HM_COPIES_ENDED;
}

struct opener {
    pthread_t thread;
    uint32_t left; /* copies when the open had returned */
    _Atomic bool done;
};

static void *opener_main(void *arg)
{
    struct opener *opener = arg;
    CHECK(!hm_region_writers(core, INO, 1), "open");
    opener->left = copies();
    opener->done = true;
    return NULL;
}

static void open_by(struct opener *opener)
{
    uint32_t before = writers();
    *opener = (struct opener){0};
    CHECK(!pthread_create(&opener->thread, NULL, opener_main, opener), "thread");
    UNTIL(writers() > before);
}

static void close_all(void)
{
    while (writers())
        CHECK(!hm_region_writers(core, INO, -1), "close");
    CHECK(!atomic_load(&region->writers), "what was said of the last opens is still said");
    CHECK(hm_region_writers(core, INO, -1) == -EINVAL, "one too many");
}

/* An open is held at the last block. Others come meanwhile, and one after it: each returns when no
 * copy is left. */
static void opens_at_once(void)
{
    struct hm_stripe *last = hm_stripe_of(core, INO, BLOCKS - 1);
    struct opener openers[4];
    for (uint64_t block = 0; block < BLOCKS - 1; block++)
        CHECK(hm_stripe_of(core, INO, block) != last, "the last block has no stripe of its own");
    copy(1, 0, HM_BLOCK_PAGES);
    copy(2, 3, 100);
    CHECK(copies() == BLOCKS * (HM_BLOCK_PAGES + 100), "%u copies", copies());
    pthread_mutex_lock(&last->lock);
    open_by(&openers[0]);
    UNTIL(copies() == HM_BLOCK_PAGES + 100);
    open_by(&openers[1]);
    open_by(&openers[2]);
    for (int ms = 0; ms < 100 && !(openers[1].done && openers[2].done); ms++)
        usleep(1000); /* enough for one that waits for nobody */
    CHECK(!hm_region_writers(core, INO, -1), "close");
    pthread_mutex_unlock(&last->lock);
    open_by(&openers[3]);
    for (int i = 0; i < 4; i++) {
        pthread_join(openers[i].thread, NULL);
        CHECK(!openers[i].left, "open %d returned with %u copies left", i, openers[i].left);
    }
    CHECK(atomic_load(&region->writers) == (3 | HM_COPIES_ENDED), "%x", region->writers);
    audit();
    close_all();
    copy(1, 0,
         1); /* from now on copies may be made without a recall again: the next open ends them */
    CHECK(copies() == BLOCKS, "%u copies", copies());
    open_by(&openers[0]);
    pthread_join(openers[0].thread, NULL);
    CHECK(!openers[0].left, "an open after the last close left %u copies", openers[0].left);
    close_all();
}

/* A migration to a device that has copies of half of the pages is held between its plan and its
 * flip, by the lock of the windows, until these copies have ended. */
static void ends_while_it_migrates(bool by_open)
{
    static uint8_t bytes[HM_BLOCK_BYTES];
    struct hm_device *device = &core->device[1];
    struct hm_job job = {
        .kind = HM_JOB_MIGRATE, .cookie = 7, .ino = INO, .node = 1, .count = HM_BLOCK_PAGES};
    copy(1, 0, HM_BLOCK_PAGES / 2);
    atomic_store(&region->window[1], HM_PAGE_SIZE); /* so that the lock is taken: nobody is there */
    pthread_rwlock_wrlock(&device->lock);
    CHECK(!hm_submit(core, &job), "submit");
    UNTIL(state_of(0) == HM_FROZEN);
    if (by_open)
        CHECK(!hm_region_writers(core, INO, 1), "open");
    else
        CHECK(!hm_advise(core, INO, 0, HM_BLOCK_PAGES, HM_ADVICE_READ_MOSTLY, 0), "advise");
    pthread_rwlock_unlock(&device->lock);
    CHECK(!await_job(7), "migrate");
    atomic_store(&region->window[1], 0);
    audit();
    CHECK(!run_job((struct hm_job){
              .kind = HM_JOB_READ, .node = 1, .length = HM_BLOCK_BYTES, .buffer = bytes}),
          "read");
    for (uint64_t at = 0; at < HM_BLOCK_BYTES; at++)
        CHECK(bytes[at] == BYTE, "byte %llu is %d", (unsigned long long)at, bytes[at]);
    CHECK(!run_job((struct hm_job){.kind = HM_JOB_MIGRATE, .count = HM_BLOCK_PAGES}), "home");
    close_all();
}

/* Whether a device's copy of a page that the page cache has is made without a recall, or after
 * one, is decided anew when an open comes while it is copied. */
static void open_while_it_is_copied(void)
{
    struct hm_device *device = &core->device[1];
    struct hm_stripe *stripe = hm_stripe_of(core, INO, 0);
    struct hm_job job = {.kind = HM_JOB_MIGRATE,
                         .flags = HM_JOB_ASKED,
                         .cookie = 8,
                         .ino = INO,
                         .node = 1,
                         .count = 4};
    uint64_t recalls = hm_read(&core->count.recalls);
    pthread_mutex_lock(&stripe->lock);
    region->blocks[0].cached[0] |= 1; /* as a READ that was answered leaves it */
    pthread_mutex_unlock(&stripe->lock);
    atomic_store(&region->window[1], HM_PAGE_SIZE);
    pthread_rwlock_wrlock(&device->lock);
    CHECK(!hm_submit(core, &job), "submit");
    UNTIL(state_of(0) == HM_FROZEN);
    CHECK(!hm_region_writers(core, INO, 1), "open");
    pthread_rwlock_unlock(&device->lock);
    CHECK(!await_job(8), "copy");
    atomic_store(&region->window[1], 0);
    CHECK(hm_read(&core->count.recalls) > recalls, "the CPU kept a page that was copied");
    audit();
    close_all();
}

int main(void)
{
    begin();
    opens_at_once();
    open_while_it_is_copied();
    ends_while_it_migrates(true);
    ends_while_it_migrates(false);
    end_core();
    return 0;
}
