/* mappings MODE MILLISECONDS: changes its address space all the time, and checks what it reads. */
#include "check.h"

#include <pthread.h>
#include <setjmp.h>
#include <signal.h>

#define THREADS 3
#define SLOT (96 * PAGE) /* of a thread: neighbours share blocks of 2 MiB */

static char *arena;
static uint64_t until;

struct mode {
    const char *name;
    void (*round)(char *slot, uint32_t *seed);
};

static void linger(uint32_t *seed)
{
    if (next(seed) % 4 == 0)
        usleep(next(seed) % 400);
}

static uint64_t stamp_of(uint32_t *seed)
{
    return (uint64_t)next(seed) << 32 | 1;
}

static void again(char *slot, uint32_t *seed)
{
    size_t length = (1 + next(seed) % 96) * PAGE;
    uint64_t value = stamp_of(seed);
    char *got = map_at(slot, length, MAP_FIXED);
    if (next(seed) % 2)
        linger(seed);
    CHECK(is_zero(got, length));
    stamp(got, length, value);
    linger(seed);
    CHECK(is_stamped(got, length, value));
    if (next(seed) % 2)
        CHECK(!munmap(got, length));
    /* Nobody else may come to be there: it is mapped over at once, or by the next round. */
}

/* Where a program discards nothing is taken for a while: all rest together, for devices to have
 * some of it when they discard again. */
static void rest(char *slot, uint64_t value)
{
    stamp(slot, SLOT, value);
    while (now_ms() % 100 > 50)
        usleep(1000);
    while (now_ms() % 100 < 60)
        usleep(1000);
    CHECK(is_stamped(slot, SLOT, value));
    stamp(slot, SLOT, value);
    while (now_ms() % 100 > 50)
        usleep(1000);
}

static void dontneed(char *slot, uint32_t *seed)
{
    size_t first = next(seed) % 48 * PAGE, length = (1 + next(seed) % 48) * PAGE;
    uint64_t value = stamp_of(seed);
    if (next(seed) % 4)
        rest(slot, value);
    else
        stamp(slot, SLOT, value);
    CHECK(!madvise(slot + first, length, MADV_DONTNEED));
    if (next(seed) % 2)
        linger(seed);
    CHECK(is_zero(slot + first, length));
    CHECK(is_stamped(slot, first, value));
    value += (first + length) / 8;
    CHECK(is_stamped(slot + first + length, SLOT - first - length, value));
}

static void lazily(char *slot, uint32_t *seed)
{
    uint64_t value = stamp_of(seed);
    if (next(seed) % 4)
        rest(slot, value);
    else
        stamp(slot, SLOT, value);
    CHECK(!madvise(slot, SLOT, MADV_FREE));
    linger(seed);
    for (size_t page = 0; page < SLOT; page += PAGE) {
        uint64_t word = *(volatile uint64_t *)(slot + page);
        CHECK(word == 0 || word == value + page / 8);
    }
    stamp(slot, SLOT, value * 3);
    linger(seed);
    CHECK(is_stamped(slot, SLOT, value * 3));
}

static void move(char *slot, uint32_t *seed)
{
    size_t half = SLOT / 2, length = half / 2;
    char *low = map_at(slot, half, MAP_FIXED), *high = map_at(slot + half, half, MAP_FIXED);
    uint64_t value = stamp_of(seed);
    stamp(low, length, value);
    linger(seed);
    switch (next(seed) % 3) {
    case 0: /* to another place, over what is there */
        stamp(high, half, 7);
        linger(seed);
        CHECK(mremap(low, length, length, MREMAP_MAYMOVE | MREMAP_FIXED, high) == high);
        map_at(low, length, MAP_FIXED);
        CHECK(is_stamped(high, length, value));
        CHECK(is_zero(low, length));
        CHECK(is_stamped(high + length, half - length, 7 + length / 8));
        break;
    case 1: /* the old place stays, and is empty */
        CHECK(mremap(low, length, length, MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP, high) ==
              high);
        CHECK(is_zero(low, length));
        linger(seed);
        CHECK(is_stamped(high, length, value));
        break;
    default: /* grow into what is free, or to where it fits, and shrink again */
        CHECK(!munmap(low + length, half - length));
        char *grown = mremap(low, length, half, MREMAP_MAYMOVE);
        CHECK(grown != MAP_FAILED);
        CHECK(is_stamped(grown, length, value));
        CHECK(is_zero(grown + length, half - length));
        linger(seed);
        CHECK(mremap(grown, half, length, 0) == grown);
        CHECK(is_stamped(grown, length, value));
        if (grown != low)
            CHECK(!munmap(grown, length));
    }
}

/* On and on, without a look at it in between: the news of one move comes when it has moved on. */
static void chain(char *slot, uint32_t *seed)
{
    size_t length = SLOT / 4;
    uint64_t value = stamp_of(seed);
    int last = 0;
    map_at(slot, SLOT, MAP_FIXED);
    stamp(slot, length, value);
    linger(seed);
    for (int hops = (int)(1 + next(seed) % 6), i = 0; i < hops; i++) {
        int to = (last + 1 + (int)(next(seed) % 3)) % 4;
        CHECK(mremap(slot + (size_t)last * length, length, length, MREMAP_MAYMOVE | MREMAP_FIXED,
                     slot + (size_t)to * length) == slot + (size_t)to * length);
        map_at(slot + (size_t)last * length, length, MAP_FIXED);
        last = to;
    }
    for (int i = 0; i < 4; i++)
        if (i == last)
            CHECK(is_stamped(slot + (size_t)i * length, length, value));
        else
            CHECK(is_zero(slot + (size_t)i * length, length));
}

static _Thread_local sigjmp_buf out;
static _Thread_local volatile int faults;

static void on_fault(int signal)
{
    (void)signal;
    faults++;
    siglongjmp(out, 1);
}

static void protect(char *slot, uint32_t *seed)
{
    uint64_t value = stamp_of(seed);
    int rights = next(seed) % 2 ? PROT_READ : PROT_NONE, before = faults;
    stamp(slot, SLOT, value);
    linger(seed);
    CHECK(!mprotect(slot, SLOT, rights));
    linger(seed);
    if (!sigsetjmp(out, 1)) {
        *(volatile char *)(slot + next(seed) % SLOT) = 1;
        CHECK(!"a store to what is protected");
    }
    CHECK(faults == before + 1);
    if (rights == PROT_READ)
        CHECK(is_stamped(slot, SLOT, value));
    CHECK(!mprotect(slot, SLOT, RW));
    linger(seed);
    CHECK(is_stamped(slot, SLOT, value));
}

static const struct mode modes[] = {{"again", again}, {"dontneed", dontneed}, {"free", lazily},
                                    {"mremap", move}, {"chain", chain},       {"mprotect", protect},
                                    {NULL, NULL}};
static const struct mode *mode;

static void *thread(void *number)
{
    uint32_t seed = 77 + (uint32_t)(uintptr_t)number;
    char *slot = arena + (uintptr_t)number * SLOT;
    struct sigaction action = {.sa_handler = on_fault};
    sigaction(SIGSEGV, &action, NULL);
    while (now_ms() < until)
        mode->round(slot, &seed);
    return NULL;
}

int main(int count, char **argument)
{
    pthread_t threads[THREADS];
    CHECK(count == 3);
    for (mode = modes; mode->name && strcmp(mode->name, argument[1]);)
        mode++;
    CHECK(mode->name);
    arena = map_at(NULL, THREADS * SLOT, 0);
    say_where(arena, THREADS * SLOT);
    until = now_ms() + strtoull(argument[2], NULL, 10);
    for (uintptr_t i = 0; i < THREADS; i++)
        CHECK(!pthread_create(&threads[i], NULL, thread, (void *)i));
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    printf("ok\n");
}
