/* Another process loads and stores what a scene tells it to. The scene and the process share
 * `order`. */
#ifndef ORDERS_H
#define ORDERS_H
#include "pauses.h"

#include <sys/mman.h>

/* MOVE and what follows are for programs. */
enum deed { LOAD, STORE, MOVE, LEAVE, DISCARD, DISCARD_UNSAID };

struct order {
    _Atomic bool ready, given, done;
    enum deed deed;
    uint64_t address;
    uint8_t byte; /* to be stored, or what was loaded */
};

static struct order *order;

/* fd -1: for a child that is forked. */
static void share_orders(int fd)
{
    order = mmap(NULL, HM_PAGE_SIZE, PROT_READ | PROT_WRITE,
                 MAP_SHARED | (fd < 0 ? MAP_ANONYMOUS : 0), fd, 0);
    CHECK(order != MAP_FAILED, "mmap");
}

/* ---- the process ------------------------------------------------------------------------------
 */

static void load_or_store(volatile uint8_t *byte)
{
    if (order->deed == STORE)
        *byte = order->byte;
    else
        order->byte = *byte;
}

static _Noreturn void obey(void (*carry_out)(void))
{
    atomic_store(&order->ready, true);
    for (;; usleep(100)) {
        if (!atomic_load(&order->given))
            continue;
        atomic_store(&order->given, false);
        carry_out();
        atomic_store(&order->done, true);
    }
}

/* ---- the scene --------------------------------------------------------------------------------
 */

static void begin_to(enum deed deed, uint64_t address, uint8_t byte)
{
    order->deed = deed;
    order->address = address;
    order->byte = byte;
    atomic_store(&order->done, false);
    atomic_store(&order->given, true);
}

/* Returns the byte that was loaded, or stored. */
static uint8_t now(enum deed deed, uint64_t address, uint8_t byte)
{
    begin_to(deed, address, byte);
    UNTIL(atomic_load(&order->done));
    return order->byte;
}

#endif
