/* Transactions on one block: recall, copy, flip, punch.
 *
 * The order is always: recall until proven clean, freeze, drain, copy, check the generation, flip,
 * punch, thaw. docs/coherence.md says why each step is where it is.
 */
#include "transaction/migrate.h"

#include "base/capacity.h"
#include "base/pause.h"
#include "books/counters.h"
#include "directory/copies.h"
#include "directory/labels.h"
#include "directory/owner.h"
#include "directory/windows.h"
#include "rules/evict.h"
#include "rules/thrash.h"
#include "transaction/journal.h"
#include "transaction/recall.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

/* ---- migration ---------------------------------------------------------------------------- */

struct plan {
    struct hm_mask move;  /* present pages whose owner changes */
    struct hm_mask copy;  /* of these, the ones whose bytes have to be carried */
    struct hm_mask blank; /* of these, the ones that become pages of zeros instead */
    struct hm_mask fill;  /* holes that become pages of zeros */
    uint32_t moves, copies, fills;
    uint8_t from[HM_BLOCK_PAGES]; /* owners when planned: a truncate changes the record's */
};

static void make_plan(const struct transaction *t, const struct hm_mask *mask, bool populate,
                      uint32_t limit, const struct hm_mask *stay, struct plan *plan)
{
    const struct hm_block *record = t->record;
    struct hm_mask wanted, there = hm_copies_on(t->region, t->block, t->job->node);
    memset(plan, 0, sizeof(*plan));
    memcpy(plan->from, record->owner, sizeof(plan->from));
    wanted = hm_without(hm_both(mask->word, record->present).word, stay->word);
    HM_EACH_PAGE (page, wanted.word) {
        uint64_t bit = 1ULL << (page % 64);
        uint32_t w = page / 64;
        if (plan->moves == limit)
            break;
        if (record->owner[page] == t->job->node)
            continue;
        plan->move.word[w] |= bit;
        plan->moves++;
        if (there.word[w] & bit)
            continue; /* the device has the bytes, and a reservation for them */
        if (t->blank.word[w] & bit)
            plan->blank.word[w] |= bit;
        else if (t->job->node != HM_HOST || !(record->kept[w] & bit))
            plan->copy.word[w] |= bit;
    }
    if (populate) {
        struct hm_mask inside = hm_inside_file(t->region, t->block);
        plan->fill = hm_both(hm_without(mask->word, record->present).word, inside.word);
    }
    plan->copies = hm_bits(plan->copy.word);
    plan->fills = hm_bits(plan->fill.word);
}

static int copy_pages(struct transaction *t, const struct plan *plan, const struct hm_mask *copy)
{
    struct hm_pool *to = hm_region_pool(t->region, t->job->node);
    uint32_t first = 0, count;
    if (!to)
        return -errno;
    for (; hm_next_run(copy->word, &first, &count); first += count) {
        uint32_t from = plan->from[first], n = 1;
        int error;
        while (n < count && plan->from[first + n] == from)
            n++;
        count = n;
        error = hm_pool_copy(to, &t->region->pools[from], hm_page_offset(t->block, first),
                             (size_t)count * HM_PAGE_SIZE);
        if (error)
            return error;
    }
    return 0;
}

/* Let no worker store to what is about to be copied. */
static int protect(struct transaction *t, const struct plan *plan)
{
    struct hm_mask from[HM_MAX_NODES] = {0};
    int error = 0;
    HM_EACH_PAGE (page, plan->move.word)
        hm_set(from[plan->from[page]].word, page);
    for (uint32_t node = 1; node < t->core->config.nodes && !error; node++)
        error = hm_window_protect(t->region, node, t->block, &from[node]);
    return error;
}

/* A few pages for a worker that waits for them, through its userfaultfd: a fault takes 2 us less
 * then, on one CPU. Takes the pages that are done off `copy` and `zeros`. A load
 * from a page of zeros or from one that another copies meanwhile is as good as after the flip: what
 * comes is protected. */
static void hand_over(struct transaction *t, const struct plan *plan, struct hm_mask *copy,
                      struct hm_mask *zeros)
{
    if (t->job->kind != HM_JOB_DEVICE_FAULT ||
        hm_bits(copy->word) + hm_bits(zeros->word) > HM_INLINE_PAGES)
        return;
    for (int pass = 0; pass < 2; pass++) {
        struct hm_mask *mask = pass ? zeros : copy;
        HM_EACH_PAGE (page, mask->word) {
            const uint8_t *from = t->core->zeros;
            if (!pass)
                from = hm_pool_map(&t->region->pools[plan->from[page]],
                                   hm_page_offset(t->block, page));
            if (!from || hm_window_copy(t->region, t->job->node, t->block, page, 1, from))
                return;
            mask->word[page / 64] &= ~(1ULL << (page % 64));
        }
    }
}

/* Put what the plan brings where it goes, out of every worker's reach or protected. Holes that a
 * worker accessed, and what it does without, become pages of zeros; a store of ours makes its own.
 */
static int carry(struct transaction *t, const struct plan *plan)
{
    struct hm_pool *pool = hm_region_pool(t->region, t->job->node);
    struct hm_mask copy = plan->copy, zeros, arriving;
    uint32_t first = 0, count;
    int error = pool ? protect(t, plan) : -errno;
    if (error)
        return error;
    zeros = hm_either(plan->fill.word, plan->blank.word);
    hand_over(t, plan, &copy, &zeros);
    arriving = hm_either(copy.word, zeros.word);
    error = hm_window_protect(t->region, t->job->node, t->block, &arriving);
    if (!error)
        error = copy_pages(t, plan, &copy);
    hm_pause("carry.copied");
    if (t->job->kind == HM_JOB_DEVICE_FAULT)
        for (; !error && hm_next_run(zeros.word, &first, &count); first += count)
            error =
                hm_pool_zero(pool, hm_page_offset(t->block, first), (uint64_t)count * HM_PAGE_SIZE);
    return error;
}

static bool lives(const struct hm_block *record, uint32_t page, uint32_t node)
{
    if (node == HM_HOST && hm_test(record->kept, page))
        return true;
    return hm_test(record->present, page) && record->owner[page] == node;
}

/* Punch what a copy left behind without touching pages that live there: in the destination, and in
 * the source as well, since reading a page that a truncate has just punched through the mapping
 * allocates it again. The block is still frozen, so no WRITE is under way. */
static void discard(struct transaction *t, const struct plan *plan)
{
    struct hm_mask gone[HM_MAX_NODES] = {0};
    for (uint32_t page = 0; page < HM_BLOCK_PAGES; page++) {
        uint64_t bit = 1ULL << (page % 64);
        bool copied = hm_test(plan->copy.word, page);
        bool zeroed = hm_test(plan->fill.word, page) || hm_test(plan->blank.word, page);
        if ((copied || zeroed) && !lives(t->record, page, t->job->node))
            gone[t->job->node].word[page / 64] |= bit;
        if (copied && !lives(t->record, page, plan->from[page]))
            gone[plan->from[page]].word[page / 64] |= bit;
    }
    for (uint32_t node = 0; node < t->core->config.nodes; node++)
        hm_punch_runs(t->region, node, t->block, gone[node].word);
    hm_count(&t->core->count.migrations_discarded, 1);
}

/* Copies of read-mostly pages that end because a device becomes the owner, or begin because it was:
 * the old owner keeps its page as a copy if nobody may store to the host's unannounced. */
static void flip_copies(struct transaction *t, const struct plan *plan,
                        struct hm_mask freed[HM_MAX_NODES])
{
    struct hm_advised said;
    uint32_t to = t->job->node;
    if (!atomic_load(&t->region->copies))
        return;
    if (to != HM_HOST)
        for (uint32_t node = 1; node < t->core->config.nodes; node++) {
            struct hm_mask copies = hm_copies_on(t->region, t->block, node);
            hm_keep(copies.word, plan->move.word);
            if (node != to) {
                HM_EACH_WORD (w)
                    freed[node].word[w] |= copies.word[w];
                hm_count(&t->core->nodes[node].counts.copies_ended, hm_bits(copies.word));
            }
            hm_copies_set(t->region, t->block, node, &copies, false);
        }
    if (to != HM_HOST || t->job->flags & HM_JOB_EVICT || atomic_load(&t->region->writers) ||
        !hm_advised(t->region, t->block, HM_HOST, &said))
        return;
    for (uint32_t node = 1; node < t->core->config.nodes; node++) {
        struct hm_mask stays;
        HM_EACH_WORD (w) {
            stays.word[w] = freed[node].word[w] & said.read_mostly.word[w];
            freed[node].word[w] &= ~stays.word[w];
        }
        hm_copies_set(t->region, t->block, node, &stays, true);
        hm_count(&t->core->nodes[node].counts.copies_begun, hm_bits(stays.word));
    }
}

/* Of pages that leave the host for good, those with a label count on another device. The ones whose
 * copy the host may keep in spite of that; they are reserved there now: all or none. */
static struct hm_mask keep_labelled(struct transaction *t, const struct plan *plan,
                                    const struct hm_mask *labelled)
{
    static const struct hm_mask none;
    struct hm_mask pages = hm_both(plan->move.word, labelled->word);
    uint32_t count;
    if (!t->core->config.keep_clean)
        return none;
    hm_drop(pages.word, plan->blank.word);
    count = hm_bits(pages.word);
    return count && !hm_reserve(t->core, HM_HOST, count, 0) ? pages : none;
}

/* What a change of owners leaves to be given back, once the stripe is free. */
struct leaving {
    struct hm_mask freed[HM_MAX_NODES]; /* pages that each node loses for good */
    uint32_t labels[HM_MAX_NODES];      /* of labels that ended */
    uint32_t uncharged;                 /* freed by the host, but counted on other devices */
};

/* Change the owner of plan->move and give plan->fill its first. The stripe is held, the copies are
 * made, the generation was checked. */
static void flip(struct transaction *t, const struct plan *plan, struct leaving *leaving)
{
    struct hm_block *record = t->record;
    uint32_t to = t->job->node, *of = leaving->labels;
    struct hm_mask changing, *freed = leaving->freed, labelled = {{0}}, unkept = {{0}};
    bool keep = t->core->config.keep_clean;
    memset(leaving, 0, sizeof(*leaving));
    if (to != HM_HOST && atomic_load(&t->region->labels)) {
        labelled = hm_all_labels(t->region, t->block);
        hm_keep(labelled.word, plan->move.word);
        unkept = keep_labelled(t, plan, &labelled);
        unkept = hm_without(labelled.word, unkept.word);
        leaving->uncharged = hm_bits(unkept.word);
    }
    changing = hm_either(plan->move.word, plan->fill.word);
    HM_EACH_PAGE (page, changing.word) {
        uint32_t w = page / 64, from = record->owner[page];
        uint64_t bit = 1ULL << (page % 64);
        bool move = plan->move.word[w] & bit;
        if (to != HM_HOST && plan->blank.word[w] & bit) {
            freed[HM_HOST].word[w] |= record->kept[w] & bit;
            record->kept[w] &= ~bit;
        } else if (to != HM_HOST && move && from == HM_HOST && keep && !(unkept.word[w] & bit)) {
            record->kept[w] |= bit;
        }
        if (move && (!(record->kept[w] & bit) || from != HM_HOST))
            freed[from].word[w] |= bit;
    }
    flip_copies(t, plan, freed);
    if (to != HM_HOST) {
        hm_unlabel(t->region, t->block, &plan->move, of);
        for (uint32_t node = 1; node < t->core->config.nodes; node++)
            hm_count_moved(t->core, node, HM_HOST, of[node], t->cause.trigger);
    }
    hm_own(t->region, record, &changing, to, t->cause.trigger, NULL);
}

static void give_back(struct transaction *t, const struct leaving *leaving)
{
    for (uint32_t node = 0; node < t->core->config.nodes; node++) {
        const struct hm_mask *freed = &leaving->freed[node];
        hm_punch_runs(t->region, node, t->block, freed->word);
        hm_release(t->core, node,
                   hm_bits(freed->word) - (node == HM_HOST ? leaving->uncharged : 0));
    }
    hm_release_labels(t->core, leaving->labels);
}

static void count_migration(struct transaction *t, const struct plan *plan,
                            const struct hm_mask freed[HM_MAX_NODES], uint64_t began)
{
    struct hm_core *core = t->core;
    uint32_t from = HM_HOST;
    for (uint32_t node = 1; node < core->config.nodes; node++)
        if (hm_bits(freed[node].word))
            from = node;
    hm_count(&core->nodes[from].counts.copies_made, plan->copies);
    hm_count(&core->nodes[from].counts.copies_saved, plan->moves - plan->copies);
    if (t->job->flags & HM_JOB_EVICT) {
        hm_count(&core->nodes[from].counts.evicted_blocks, 1);
        hm_count(&core->nodes[from].counts.evicted_pages, plan->moves);
        hm_count(&t->region->flows.evicted[from], plan->moves);
        t->record->evictions++;
        t->record->turns = 0;
        t->record->evicted = 1 + hm_read(&core->nodes[from].counts.evicted_pages);
    }
    hm_count(&core->count.migrations, 1);
    hm_carried(t, HM_TRACE_MIGRATE_END, &plan->move, &plan->copy, plan->from, began);
    if (t->job->kind == HM_JOB_DEVICE_FAULT)
        t->moved = plan->move; /* it is not over yet */
    else if (!(t->job->flags & HM_JOB_EVICT))
        hm_thrash_note(t->region, t->block, t->job->node, &plan->move,
                       t->job->kind != HM_JOB_MIGRATE || t->job->flags & HM_JOB_FAULT);
    t->event.moved += plan->moves;
    t->event.saved += plan->moves - plan->copies;
    t->record->last_migrated = hm_tick(t->core);
    if (t->job->node != HM_HOST) {
        t->record->cpu_faults = 0;
        t->record->cpu_stride = (struct hm_stride){0};
    } else {
        t->record->device_faults = 0;
        t->record->stride = (struct hm_stride){0};
    }
}

int hm_reserve_for_job(struct transaction *t, uint32_t pages, enum hm_overcommit overcommit)
{
    uint32_t missing = pages > t->reserved ? pages - t->reserved : 0;
    int error = hm_reserve(t->core, t->job->node, missing, overcommit != HM_OVERCOMMIT_NONE);
    if (error && overcommit == HM_OVERCOMMIT_ALWAYS) {
        hm_reserve_always(t->core, t->job->node, missing);
        error = 0;
    }
    if (error) {
        t->event.need = pages;
        return error;
    }
    t->reserved = t->reserved + missing - pages;
    return 0;
}

int hm_migrate(struct transaction *t, const struct hm_mask *mask, bool populate, uint32_t limit)
{
    struct hm_block *record = t->record;
    static const struct hm_mask nothing;
    /* What comes home is owned by devices, so the CPU has none of it. */
    const struct hm_mask *from_cpu = t->job->node == HM_HOST ? &nothing : mask;
    struct hm_mask stay;
    struct leaving leaving;
    struct plan plan;
    uint64_t began;
    stay = hm_stay(t);
    if (t->job->flags & HM_JOB_EVICT && t->job->source) {
        t->event.moved += hm_collapse(t->region, t->block, mask, t->job->source);
        hm_step_of(t, "copies.evicted", NULL);
    }
    for (;;) {
        uint32_t generation, need;
        int error = hm_recall(t, from_cpu);
        if (error)
            return error;
        while (record->inflight)
            pthread_cond_wait(&t->stripe->changed, &t->stripe->lock);
        generation = record->generation;
        make_plan(t, mask, populate, limit, &stay, &plan);
        need = plan.copies + plan.fills + hm_bits(plan.blank.word);
        error = hm_reserve_for_job(t, need, hm_overcommit_of(t->job));
        if (error || !(plan.moves + plan.fills)) {
            hm_thaw(record, t->stripe);
            hm_step_of(t, "thawed", NULL);
            return error;
        }
        began = hm_trace_move(t, &plan.move, plan.from, 0);
        hm_step_of(t, "planned", NULL);
        hm_unlock(HM_RANK_STRIPE, &t->stripe->lock);
        hm_pause("bring.planned");
        error = carry(t, &plan);
        hm_pause("bring.copied");
        hm_lock(HM_RANK_STRIPE, &t->stripe->lock);
        if (!error && record->generation == generation)
            break;
        discard(t, &plan);
        t->reserved += need;
        hm_thaw(record, t->stripe);
        hm_step_of(t, error ? "failed" : "discarded", NULL);
        hm_trace_move(t, &plan.move, plan.from, began); /* the next plan may have other pages */
        if (error)
            return error;
    }
    flip(t, &plan, &leaving);
    hm_step_of(t, "flipped", NULL);
    count_migration(t, &plan, leaving.freed, began);
    /* Still frozen: nobody gives one of these pages to its old owner again before the punch. */
    hm_unlock(HM_RANK_STRIPE, &t->stripe->lock);
    hm_pause("bring.flipped");
    give_back(t, &leaving);
    hm_lock(HM_RANK_STRIPE, &t->stripe->lock);
    hm_thaw(record, t->stripe);
    hm_step_of(t, "thawed", NULL);
    return 0;
}

int hm_bring_home(struct hm_region *region, uint64_t block, const struct hm_mask *mask,
                  enum hm_overcommit overcommit)
{
    struct hm_job job = {.node = HM_HOST, .flags = HM_JOB_FAULT};
    struct transaction t = {.core = region->core,
                            .region = region,
                            .stripe = hm_stripe_of(region->core, region->ino, block),
                            .record = &region->blocks[block],
                            .block = block,
                            .job = &job,
                            .cause = hm_cause(&job)};
    static const struct hm_mask none; /* a pinned page is asked for only if a store would be lost */
    struct leaving leaving;
    struct plan plan;
    uint64_t began;
    int error;
    make_plan(&t, mask, false, HM_BLOCK_PAGES, &none, &plan);
    error = hm_reserve_for_job(&t, plan.copies, overcommit);
    if (error)
        return error;
    began = hm_trace_move(&t, &plan.move, plan.from, 0);
    error = protect(&t, &plan);
    if (!error)
        error = copy_pages(&t, &plan, &plan.copy);
    if (error) {
        hm_trace_move(&t, &plan.move, plan.from, began);
        discard(&t, &plan);
        hm_release(region->core, HM_HOST, plan.copies);
        return error;
    }
    flip(&t, &plan, &leaving);
    hm_step(region, block, "gate.home", HM_BY_GATE, &plan.move);
    count_migration(&t, &plan, leaving.freed, began);
    hm_evict_note(region, block);
    give_back(&t, &leaving);
    return 0;
}

void hm_mark_written(struct transaction *t, const struct hm_mask *mask)
{
    struct hm_mask stale;
    HM_EACH_WORD (w) {
        stale.word[w] = t->record->kept[w] & mask->word[w];
        t->record->kept[w] &= ~mask->word[w];
        t->record->dirty[w] |= t->record->present[w] & mask->word[w];
    }
    hm_step_of(t, "written", mask);
    hm_punch_runs(t->region, HM_HOST, t->block, stale.word);
    hm_release(t->core, HM_HOST, hm_bits(stale.word));
}
