/* native/gate/order.c by itself: which pages of a WRITE are left out, and what is forgotten when.
 */
#include "core.h"

#include <stdio.h>
#include <stdlib.h>

#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "order.c:%d: %s does not hold\n", __LINE__, #condition);               \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

static struct hm_core core;
static struct hm_stripe stripe;
static struct hm_gate_thread threads[2];

static void written(uint64_t block, uint32_t first, uint32_t count, uint64_t unique)
{
    struct hm_mask mask = hm_mask_range(first, count);
    hm_order_read(&core, unique);
    CHECK(!hm_order_remember(&core, &stripe, 1, block, &mask, unique));
}

static uint32_t left_out(uint64_t block, uint32_t first, uint32_t count, uint64_t unique)
{
    struct hm_mask mask = hm_mask_range(first, count);
    mask = hm_order_overtaken(&stripe, 1, block, &mask, unique);
    return hm_bits(mask.word);
}

static void goes_back(uint32_t thread)
{
    threads[thread].floor = core.written_up_to;
}

int main(void)
{
    core.config.threads = 2;
    core.gate = threads;

    /* Thread 0 has read WRITE 10 and dawdles; thread 1 applies newer ones of some of its pages. */
    goes_back(0);
    goes_back(1);
    hm_order_read(&core, 10);
    written(0, 4, 2, 12);
    goes_back(1);
    written(0, 63, 3, 14);
    CHECK(left_out(0, 0, 512, 10) == 5);
    CHECK(left_out(0, 5, 59, 10) == 2);
    CHECK(left_out(0, 0, 512, 12) == 3);
    CHECK(left_out(0, 0, 512, 14) == 0);
    CHECK(left_out(1, 0, 512, 10) == 0);

    /* However many WRITEs later, as long as it does not go back. */
    for (uint64_t unique = 16; unique < 5000; unique += 2) {
        goes_back(1);
        written(unique % 7, 100 + unique % 400, 1, unique);
    }
    CHECK(left_out(0, 4, 2, 10) == 2);
    written(0, 4, 1, 11); /* older than what page 4 has seen: the newer one stays remembered */
    CHECK(left_out(0, 4, 1, 11) == 1);

    /* Parked, it holds on to them even when its thread goes back. */
    core.parked_writes = 1;
    goes_back(0);
    goes_back(1);
    written(9, 0, 1, 6000);
    CHECK(left_out(0, 4, 2, 10) == 2);

    /* Carried out: the next WRITE of the stripe forgets all but what is newer than the floors. */
    core.parked_writes = 0;
    written(8, 0, 1, 6002);
    CHECK(left_out(0, 0, 512, 10) == 0);
    CHECK(left_out(9, 0, 1, 10) == 1);
    CHECK(left_out(8, 0, 1, 10) == 1);
    hm_order_free(&stripe);
    CHECK(!stripe.written);
    return 0;
}
