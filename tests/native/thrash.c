/* native/rules/thrash.c at its exact bounds. Time is the simulated clock, which is set here. */
#include "inside.h"

#include <string.h>

#define PAGE_AT 70 /* some page */
#define OTHER 1    /* two devices that take it from each other */
#define ANOTHER 2

static const struct hm_thrashing policy = {.threshold = 3,
                                           .pin_threshold = 2,
                                           .max_resets = 1,
                                           .lapse_ns = 100,
                                           .nap_ns = 50,
                                           .epoch_ns = 1000,
                                           .pin_ns = 5000};

static struct hm_stripe *stripe;

static void begin(void)
{
    make_core((struct hm_config){.nodes = 3, .threads = 1, .capacity = {2048, 2048, 2048}},
              HM_BLOCK_BYTES);
    CHECK(!hm_thrashing_set(core, &policy), "policy");
    stripe = hm_stripe_of(core, INO, 0);
}

static uint64_t count(uint32_t node, const char *what)
{
    struct hm_node_stats stats;
    CHECK(!hm_node_stats_get(core, node, &stats), "stats");
    return !strcmp(what, "thrashing") ? stats.thrashing_pages
           : !strcmp(what, "pins")    ? stats.thrash_pins
                                      : stats.throttles;
}

/* A fault by which the page comes to the node, at that time. Returns how long it waits. */
static uint64_t moves(uint32_t node, uint64_t at)
{
    const struct hm_mask one = hm_mask_range(PAGE_AT, 1);
    core->count.clock_ns = at;
    pthread_mutex_lock(&stripe->lock);
    hm_thrash_fault(region, 0, node, &one);
    hm_thrash_note(region, 0, node, &one, true);
    pthread_mutex_unlock(&stripe->lock);
    return core->count.clock_ns - at;
}

static bool is_pinned(void)
{
    const struct hm_mask all = hm_mask_range(0, HM_BLOCK_PAGES);
    struct hm_mask pinned;
    pthread_mutex_lock(&stripe->lock);
    pinned = hm_thrash_is_pinned(region, 0, &all);
    pthread_mutex_unlock(&stripe->lock);
    CHECK(hm_bits(pinned.word) == hm_test(pinned.word, PAGE_AT), "another page is pinned");
    return hm_bits(pinned.word);
}

/* Three moves within a lapse, after the first two that tell that there are two who want it. */
static uint64_t thrash(uint64_t at)
{
    moves(OTHER, at);
    moves(ANOTHER, at + 100); /* from here on pages are looked at */
    CHECK(!moves(OTHER, at + 200) && !moves(ANOTHER, at + 300), "it waits already");
    CHECK(!count(OTHER, "thrashing") && !count(ANOTHER, "thrashing"), "too early");
    CHECK(!moves(OTHER, at + 400), "it waits already");
    CHECK(count(OTHER, "thrashing") == 1 && !count(ANOTHER, "thrashing"), "it does not thrash");
    return at + 400;
}

static void a_lapse(void)
{
    begin();
    for (uint64_t at = 1000, turn = 0; turn < 20; at += 101, turn++)
        CHECK(!moves(turn % 2 ? OTHER : ANOTHER, at), "slower than a lapse, it waits");
    CHECK(!count(OTHER, "thrashing") && !count(ANOTHER, "thrashing"), "slower than a lapse");
    end_core();
    begin();
    thrash(1000);
    end_core();
}

/* Who alone takes it thrashes with nobody. */
static void one_alone(void)
{
    begin();
    for (uint64_t at = 1000; at < 1200; at += 10)
        CHECK(!moves(OTHER, at), "it waits");
    CHECK(!count(OTHER, "thrashing"), "it thrashes");
    end_core();
}

/* The first to ask has the turn, and the other waits until the period is over; then they change. */
static void throttles(void)
{
    uint64_t at, waited;
    begin();
    at = thrash(1000);
    CHECK(!moves(ANOTHER, at + 10), "the first has to wait");
    waited = moves(OTHER, at + 20);
    CHECK(waited == 40, "the other waits %llu", (unsigned long long)waited);
    CHECK(count(OTHER, "throttles") == 1 && !count(ANOTHER, "throttles"), "who waited");
    CHECK(!is_pinned(), "one throttle pins");
    at += 20 + waited;
    waited = moves(ANOTHER, at + 5);
    CHECK(waited, "the turn has not changed");
    CHECK(count(ANOTHER, "throttles") == 1, "who waited");
    end_core();
}

static uint64_t both(const char *what)
{
    return count(OTHER, what) + count(ANOTHER, what);
}

/* After as many throttles as `pin_threshold` who has it keeps it, until the other wants it, too:
 * then it is the host's. All of that for exactly `pin_ns`. */
static void pins(void)
{
    uint64_t at, pinned_at;
    uint32_t node = ANOTHER;
    begin();
    at = thrash(1000) + 10;
    for (int turns = 0; turns < 20 && !both("pins"); turns++) {
        at += moves(node, at) + 10;
        CHECK(both("pins") == (both("throttles") >= 2), "pinned after another number of throttles");
        node = node == OTHER ? ANOTHER : OTHER;
    }
    CHECK(both("pins") == 1 && both("throttles") == 2 && !is_pinned(), "it is not a device's");
    pinned_at = at - 10;
    moves(node, at);
    CHECK(both("pins") == 1 && is_pinned(), "it is not the host's");
    CHECK(!moves(OTHER, at + 1) && !moves(ANOTHER, at + 2), "a node that uses it remotely waits");
    CHECK(!moves(node, pinned_at + 5000) && is_pinned(), "the pin ends early");
    CHECK(!moves(node, pinned_at + 5001) && !is_pinned(), "the pin goes on");
    end_core();
}

/* A block that had peace for longer than an epoch begins anew, once. */
static void peace(void)
{
    uint64_t at;
    begin();
    at = thrash(1000);
    CHECK(!moves(OTHER, at + 1000), "a fault");
    CHECK(region->history && hm_history(region, 0)->pages, "an epoch to the day is none");
    CHECK(!moves(OTHER, at + 2002) && !hm_history(region, 0)->pages, "its state is kept");
    at += 2002;
    moves(ANOTHER, at + 100);
    for (int turn = 1; turn < 5; turn++)
        moves(turn % 2 ? OTHER : ANOTHER, at + 100 + 100 * (uint64_t)turn);
    CHECK(count(OTHER, "thrashing") + count(ANOTHER, "thrashing") == 2, "it thrashes again");
    CHECK(!moves(OTHER, at + 9000) && hm_history(region, 0)->pages, "it has begun anew once");
    end_core();
}

/* Who asks for pages ends whatever was. */
static void asked_for(void)
{
    const struct hm_mask one = hm_mask_range(PAGE_AT, 1);
    uint64_t at;
    begin();
    at = thrash(1000);
    pthread_mutex_lock(&stripe->lock);
    hm_thrash_note(region, 0, ANOTHER, &one, false);
    pthread_mutex_unlock(&stripe->lock);
    CHECK(!moves(ANOTHER, at + 10) && !moves(OTHER, at + 20) && !moves(ANOTHER, at + 30),
          "it thrashes still");
    CHECK(!count(OTHER, "throttles") && !count(ANOTHER, "throttles"), "it is throttled");
    end_core();
}

int main(void)
{
    a_lapse();
    one_alone();
    throttles();
    pins();
    peace();
    asked_for();
    return 0;
}
