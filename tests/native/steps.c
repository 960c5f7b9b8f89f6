/* Collects what native/base/step.h tells: of every step that a core takes, as each page of the
 * block saw it, whether it was seen before. A file that is mapped, $HMMFS_STEPS.PID, has them at
 * any moment, however the process ends; tests/model/conformance.py reads it, and says there what is
 * in it.
 *
 * What a page sees: its own bits, and what is true of its block. A page's owner and its copies are
 * seen relative to where the transaction brings pages. */
#ifndef HM_STEPS
#define HM_STEPS /* for all of the core, too */
#endif
#include "core.h"
#include "base/fuse_wire.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#define TABLE (1u << 17)
#define BEFORE 8 /* steps that are remembered with one, its block's last */
#define HEADER 4096

static const char *const STEPS[] = {
    "host.full",       "full.parked",   "begun",          "finished",       "replayed",
    "recall.replays",  "recall.round",  "recall.frozen",  "recall.failed",  "planned",
    "flipped",         "discarded",     "failed",         "thawed",         "written",
    "copy.planned",    "copy.made",     "open.ended",     "copies.evicted", "read.parked",
    "ahead.parked",    "read.admitted", "read.answered",  "ahead.admitted", "direct.parked",
    "direct.admitted", "write.parked",  "write.admitted", "write.applied",  "write.undone",
    "back.parked",     "back.admitted", "back.applied",   "gate.home",      "cut.truncate",
    "cut.punch",       "cut.part",      "allocated",      "remote.written", "kept.dropped",
    "copies.ended",
};
#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

/* Bits of a page, then those of its block. */
enum {
    PRESENT,
    DEVICE, /* some device owns it */
    TARGET, /* the one that the transaction brings pages to */
    CACHED,
    RECALLING,
    DIRTY,
    KEPT,
    FROZEN, /* by itself, in a contended recall */
    PARKED, /* a request waits that may have locked its folio */
    COPY_TARGET,
    COPY_OTHER,
    PAGE_BITS,
    STATE = PAGE_BITS, /* two bits: enum hm_state */
    BUSY = STATE + 2,
    HOME,      /* the transaction brings pages to the host; */
    AWAY,      /* to a device */
    IN_FLIGHT, /* requests, while the block is frozen */
    CUT,       /* the generation moved since the transaction's plan */
    BITS
};

static const char *const BIT_NAMES[BITS] = {
    "present", "device", "target", "cached",      "recalling",  "dirty",
    "kept",    "frozen", "parked", "copy_target", "copy_other", "RECALL",
    "FROZEN",  "busy",   "home",   "away",        "in_flight",  "cut",
};

struct entry {
    _Atomic uint64_t key; /* 0: free */
    hm_counter count;
    uint64_t number, ino;
    uint32_t block, page;
    uint8_t before[BEFORE]; /* the last first */
    uint8_t unused[16];
};
_Static_assert(sizeof(struct entry) == 64, "conformance.py reads it");

struct look {
    struct hm_block record;
    struct hm_mask frozen, parked;
    struct hm_mask copies[HM_MAX_NODES];
    bool cut;
};

struct hm_shadow {
    struct hm_shadow *next; /* of the stripe, whose lock guards it */
    uint64_t ino, block;
    struct look look; /* after its last step */
    uint32_t target;
    uint32_t generation; /* when it was planned */
    bool planned, host_full;
    uint8_t before[BEFORE];
};

static pthread_once_t once = PTHREAD_ONCE_INIT;
static struct entry *table;
static hm_counter numbers;

static void open_table(void)
{
    const char *base = getenv("HMMFS_STEPS");
    char path[4096], *names;
    int fd;
    if (!base)
        return;
    snprintf(path, sizeof(path), "%s.%d", base, getpid());
    fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0 || ftruncate(fd, HEADER + TABLE * sizeof(*table)))
        abort();
    names = mmap(NULL, HEADER + TABLE * sizeof(*table), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (names == MAP_FAILED)
        abort();
    close(fd);
    table = (struct entry *)(names + HEADER);
    for (size_t i = 0; i < COUNT(STEPS); i++)
        names += sprintf(names, "%s\n", STEPS[i]);
    for (size_t i = 0; i < COUNT(BIT_NAMES); i++)
        names += sprintf(names, "%s\n", BIT_NAMES[i]);
}

/* Before the first step, for who counts system calls. */
void hm_steps_begin(void);
void hm_steps_begin(void)
{
    pthread_once(&once, open_table);
}

#ifdef HM_PAUSES
/* Where no test holds threads. */
__attribute__((weak)) void hm_pause(const char *point)
{
    (void)point;
}
#endif

static uint8_t number_of(const char *step)
{
    for (size_t i = 0; i < COUNT(STEPS); i++)
        if (!strcmp(STEPS[i], step))
            return (uint8_t)i;
    fprintf(stderr, "%s is not a step. Add it to STEPS in steps.c.\n", step);
    abort();
}

static bool is_parking(const char *step)
{
    size_t length = strlen(step);
    return length > 7 && !strcmp(step + length - 7, ".parked");
}

static struct hm_shadow *shadow_of(struct hm_stripe *stripe, uint64_t ino, uint64_t block)
{
    struct hm_shadow *shadow;
    for (shadow = stripe->shadows; shadow; shadow = shadow->next)
        if (shadow->ino == ino && shadow->block == block)
            return shadow;
    /* Never freed: the core may end, and the test with it, at any moment. */
    shadow = aligned_alloc(64, (sizeof(*shadow) + 63) / 64 * 64); /* faults.h has malloc fail */
    if (!shadow)
        abort();
    memset(shadow, 0, sizeof(*shadow));
    shadow->ino = ino;
    shadow->block = block;
    shadow->next = stripe->shadows;
    stripe->shadows = shadow;
    return shadow;
}

static void look_at(const struct hm_region *region, const struct hm_stripe *stripe,
                    const struct hm_shadow *shadow, struct look *look)
{
    memset(look, 0, sizeof(*look));
    look->record = region->blocks[shadow->block];
    if (stripe->frozen_ino == region->ino && stripe->frozen_block == shadow->block)
        look->frozen = stripe->frozen;
    for (const struct hm_parked *at = stripe->parked; at; at = at->next) {
        uint64_t first = at->request.offset / HM_PAGE_SIZE, base = shadow->block * HM_BLOCK_PAGES;
        uint64_t end = (at->request.offset + at->request.size - 1) / HM_PAGE_SIZE + 1;
        if (at->request.ino != region->ino || at->block != shadow->block ||
            (at->request.opcode == FUSE_READ && at->request.flags & O_DIRECT))
            continue; /* direct I/O holds no folio */
        end = end < base + HM_BLOCK_PAGES ? end : base + HM_BLOCK_PAGES;
        for (uint64_t page = first; page < end; page++)
            hm_set(look->parked.word, (uint32_t)(page - base));
    }
    for (uint32_t node = 1; node < region->core->config.nodes; node++)
        look->copies[node] = hm_copies_on(region, shadow->block, node);
    look->cut = shadow->planned && look->record.generation != shadow->generation;
}

/* The bits of pages as planes of masks, and those of the block. */
static uint32_t planes_of(const struct look *look, uint32_t target, uint32_t nodes,
                          struct hm_mask planes[PAGE_BITS])
{
    const struct hm_block *record = &look->record;
    uint32_t bits = (uint32_t)record->state << STATE;
    if (!record->busy)
        target = HM_NOWHERE;
    HM_EACH_WORD (w) {
        planes[PRESENT].word[w] = record->present[w];
        planes[DEVICE].word[w] = record->device[w];
        planes[CACHED].word[w] = record->cached[w];
        planes[RECALLING].word[w] = record->recalling[w];
        planes[DIRTY].word[w] = record->dirty[w];
        planes[KEPT].word[w] = record->kept[w];
        planes[TARGET].word[w] = planes[COPY_TARGET].word[w] = planes[COPY_OTHER].word[w] = 0;
    }
    planes[FROZEN] = look->frozen;
    planes[PARKED] = look->parked;
    if (target != HM_NOWHERE && target != HM_HOST)
        planes[TARGET] = hm_owned(record, target);
    for (uint32_t node = 1; node < nodes; node++)
        HM_EACH_WORD (w)
            planes[node == target ? COPY_TARGET : COPY_OTHER].word[w] |= look->copies[node].word[w];
    bits |= (uint32_t)(record->busy != 0) << BUSY;
    bits |= (uint32_t)(target == HM_HOST) << HOME;
    bits |= (uint32_t)(target != HM_HOST && target != HM_NOWHERE) << AWAY;
    bits |= (uint32_t)(record->state == HM_FROZEN && record->inflight) << IN_FLIGHT;
    bits |= (uint32_t)look->cut << CUT;
    return bits;
}

static void enter(uint64_t key, const struct hm_shadow *shadow, uint32_t page)
{
    uint64_t at = (key * 0x9e3779b97f4a7c15ULL) >> 40;
    for (uint32_t tries = 0; tries < TABLE; tries++, at++) {
        struct entry *entry = &table[at % TABLE];
        uint64_t found = 0;
        if (atomic_load(&entry->key) == key || /* else it is taken now, unless another takes it */
            (!atomic_compare_exchange_strong(&entry->key, &found, key) && found == key)) {
            atomic_fetch_add(&entry->count, 1);
            return;
        }
        if (found)
            continue;
        entry->number = 1 + atomic_fetch_add(&numbers, 1);
        entry->ino = shadow->ino;
        entry->block = (uint32_t)shadow->block;
        entry->page = page;
        memcpy(entry->before, shadow->before, BEFORE);
        atomic_fetch_add(&entry->count, 1);
        return;
    }
    abort();
}

/* Pages that agree in all planes from `plane` on are entered together. */
static void split(const struct hm_mask *group, const struct hm_mask planes[], int plane,
                  uint64_t key, const struct hm_shadow *shadow)
{
    struct hm_mask with;
    if (plane == 2 * PAGE_BITS + 1) {
        enter(key, shadow, hm_next_page(group->word, 0));
        return;
    }
    with = hm_both(group->word, planes[plane].word);
    if (hm_bits(with.word)) {
        int bit = plane < PAGE_BITS ? plane : plane - PAGE_BITS + BITS;
        split(&with, planes, plane + 1, key | 1ULL << (plane == 2 * PAGE_BITS ? 2 * BITS : bit),
              shadow);
    }
    with = hm_without(group->word, planes[plane].word);
    if (hm_bits(with.word))
        split(&with, planes, plane + 1, key, shadow);
}

static void follow(struct hm_shadow *shadow, const char *step, uint32_t node,
                   const struct hm_block *record)
{
    if (node != HM_BY_GATE)
        shadow->target = node;
    if (!strcmp(step, "planned") || !strcmp(step, "copy.planned")) {
        shadow->planned = true;
        shadow->generation = record->generation;
    } else if (node != HM_BY_GATE) {
        shadow->planned = false;
    }
}

void hm_step(const struct hm_region *region, uint64_t block, const char *step, uint32_t node,
             const struct hm_mask *pages)
{
    struct hm_stripe *stripe = hm_stripe_of(region->core, region->ino, block);
    static const struct hm_mask none;
    const struct hm_mask all = hm_mask_range(0, HM_BLOCK_PAGES);
    struct hm_mask planes[2 * PAGE_BITS + 1], about = pages ? *pages : none;
    struct hm_shadow *shadow;
    struct look after;
    uint64_t key = 1ULL << 63;
    uint32_t nodes = region->core->config.nodes;
    uint8_t number;
    hm_steps_begin();
    if (!table || hm_is_shared(region) || region->process)
        return;
    shadow = shadow_of(stripe, region->ino, block);
    if (!strcmp(step, "host.full")) {
        shadow->host_full = true; /* told by the request that parks for it */
        return;
    }
    follow(shadow, step, node, &region->blocks[block]);
    if (!strcmp(step, "recall.next"))
        return;
    look_at(region, stripe, shadow, &after);
    if (is_parking(step)) { /* several pages may wait for one */
        struct hm_mask cause = after.frozen;
        HM_EACH_WORD (w)
            cause.word[w] |= after.record.state == HM_FROZEN ? ~0ULL : after.record.device[w];
        if (hm_any(cause.word, about.word))
            hm_keep(about.word, cause.word);
        step = shadow->host_full ? "full.parked" : step;
        shadow->host_full = false;
    }
    number = number_of(step);
    key |= (uint64_t)planes_of(&shadow->look, shadow->target, nodes, planes);
    key |= (uint64_t)planes_of(&after, shadow->target, nodes, planes + PAGE_BITS) << BITS;
    key |= (uint64_t)number << (2 * BITS + 1);
    planes[2 * PAGE_BITS] = about;
    split(&all, planes, 0, key, shadow);
    memmove(shadow->before + 1, shadow->before, BEFORE - 1);
    shadow->before[0] = number;
    shadow->look = after;
}
