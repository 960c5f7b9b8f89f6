/* A program for program.c, run with the library of hmmfs run: its threads change their memory and
 * check it, while devices take all of it.
 *
 *   program_child MILLISECONDS [moves]     (moves: most of that is mremap, and there is one thread)
 *
 * It says what is wrong, and ends with 0 if nothing is.
 */
#include "../mount/programs/check.h"
#include "program.h"

#include <pthread.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#define SLOT (SLOT_PAGES * PAGE)
#define COUNTED 300 /* pages */

static char *arena;
static uint64_t *counted;
static uint32_t *sums; /* the same where no device takes it */
static uint64_t until;

static void linger(uint32_t *seed)
{
    if (next(seed) % 2)
        usleep(next(seed) % 2000);
}

static uint64_t stamp_of(uint32_t *seed)
{
    return (uint64_t)next(seed) << 32 | 1;
}

/* ---- changes of the address space ----------------------------------------------------------- */

static void map_anew(char *slot, uint32_t *seed)
{
    size_t length = (1 + next(seed) % 160) * PAGE;
    uint64_t value = stamp_of(seed);
    CHECK(!munmap(slot, length));
    CHECK(map_at(slot, length, MAP_FIXED_NOREPLACE) == slot);
    CHECK(is_zero(slot, length));
    stamp(slot, length, value);
    linger(seed);
    CHECK(is_stamped(slot, length, value));
}

static void discard(char *slot, uint32_t *seed)
{
    size_t first = next(seed) % 80 * PAGE, length = (1 + next(seed) % 80) * PAGE;
    uint64_t value = stamp_of(seed);
    stamp(slot, SLOT, value);
    linger(seed);
    CHECK(!madvise(slot + first, length, MADV_DONTNEED));
    CHECK(is_zero(slot + first, length));
    CHECK(is_stamped(slot, first, value));
    value += (first + length) / 8;
    CHECK(is_stamped(slot + first + length, SLOT - first - length, value));
}

/* All of it, or none. */
static void move(char *slot, uint32_t *seed)
{
    size_t half = SLOT / 2;
    uint64_t value = stamp_of(seed);
    int flags = MREMAP_MAYMOVE | MREMAP_FIXED | (next(seed) % 2 ? MREMAP_DONTUNMAP : 0);
    map_at(slot, half, MAP_FIXED);
    stamp(slot, half, value);
    linger(seed);
    if (mremap(slot, half, half, flags, slot + half) == MAP_FAILED) {
        /* Devices asked for part of it before it had pages: it is two mappings for good. */
        CHECK(errno == EFAULT);
        CHECK(is_stamped(slot, half, value));
        return;
    }
    if (!(flags & MREMAP_DONTUNMAP))
        CHECK(map_at(slot, half, MAP_FIXED_NOREPLACE) == slot);
    CHECK(is_zero(slot, half));
    CHECK(is_stamped(slot + half, half, value));
}

static void protect(char *slot, uint32_t *seed)
{
    size_t part = (1 + next(seed) % 160) * PAGE;
    uint64_t value = stamp_of(seed);
    stamp(slot, SLOT, value);
    CHECK(!mprotect(slot, part, PROT_READ));
    linger(seed);
    CHECK(is_stamped(slot, SLOT, value));
    CHECK(!mprotect(slot, part, RW));
    stamp(slot, SLOT, value * 3);
    linger(seed);
    CHECK(is_stamped(slot, SLOT, value * 3));
}

static void allocate(char *slot, uint32_t *seed)
{
    static const size_t most[] = {200, 9000, 400000};
    size_t length = (16 + next(seed) % most[next(seed) % 3]) / 8 * 8;
    uint64_t *bytes = malloc(length), value = stamp_of(seed);
    (void)slot;
    CHECK(bytes);
    stamp(bytes, length, value);
    linger(seed);
    CHECK(is_stamped(bytes, length, value));
    free(bytes);
}

/* A child has what its parent had, and its stores are its own. */
static void inherit(char *slot, uint32_t *seed)
{
    uint64_t value = stamp_of(seed);
    int status = -1;
    pid_t child;
    stamp(slot, SLOT, value);
    linger(seed);
    child = fork();
    if (!child) {
        CHECK(is_stamped(slot, SLOT, value));
        stamp(slot, SLOT / 2, value * 5);
        linger(seed);
        CHECK(is_stamped(slot, SLOT / 2, value * 5));
        _exit(0);
    }
    CHECK(child > 0);
    stamp(slot, SLOT / 4, value * 3);
    linger(seed);
    while (waitpid(child, &status, 0) < 0)
        CHECK(errno == EINTR);
    CHECK(!status);
    CHECK(is_stamped(slot, SLOT / 4, value * 3));
    CHECK(is_stamped(slot + SLOT / 4, SLOT - SLOT / 4, value + SLOT / 32));
}

static void *changes(void *number)
{
    static void (*const all[])(char *, uint32_t *) = {map_anew, discard, move, protect, allocate};
    uint32_t seed = 77 + (uint32_t)(uintptr_t)number;
    char *slot = arena + (uintptr_t)number * SLOT;
    while (now_ms() < until)
        all[next(&seed) % 5](slot, &seed);
    return NULL;
}

static void *moves(void *number)
{
    static void (*const all[])(char *, uint32_t *) = {move, move, move, protect, discard};
    uint32_t seed = 77 + (uint32_t)(uintptr_t)number;
    while (now_ms() < until)
        all[next(&seed) % 5](arena + (uintptr_t)number * SLOT, &seed);
    return NULL;
}

static void *forks(void *number)
{
    uint32_t seed = 177 + (uint32_t)(uintptr_t)number;
    while (now_ms() < until) {
        inherit(arena + (uintptr_t)number * SLOT, &seed);
        usleep(20000);
    }
    return NULL;
}

/* ---- what stays where it is ----------------------------------------------------------------- */

/* No count is lost. */
static void *counts(void *number)
{
    uint32_t seed = 277 + (uint32_t)(uintptr_t)number;
    for (uint32_t i = 0; now_ms() < until; i++) {
        uint32_t page = next(&seed) % COUNTED;
        CHECK(counted[page * (PAGE / 8)]++ == sums[page]++);
        if (i % 256 == 0)
            usleep(500);
    }
    for (uint32_t page = 0; page < COUNTED; page++)
        CHECK(counted[page * (PAGE / 8)] == sums[page]);
    return NULL;
}

/* What devices write: a clock that never goes back, and bytes that are one of three. */
static void *watches(void *number)
{
    uint32_t seed = 377 + (uint32_t)(uintptr_t)number;
    const volatile uint64_t *clock = (const volatile uint64_t *)CLOCK;
    const volatile uint8_t *open = (const volatile uint8_t *)OPEN;
    uint64_t seen[CLOCK_PAGES] = {0};
    while (now_ms() < until) {
        uint32_t page = next(&seed) % CLOCK_PAGES;
        uint64_t now = clock[page * (PAGE / 8) + next(&seed) % (PAGE / 8)];
        CHECK(now >= seen[page]);
        seen[page] = now;
        for (int i = 0; i < 16; i++) {
            size_t at = next(&seed) % (OPEN_PAGES * PAGE);
            uint8_t byte = open[at];
            CHECK(!byte || byte == FILLED || byte == open_byte(at));
        }
        usleep(next(&seed) % 200);
    }
    return NULL;
}

int main(int count, char **argument)
{
    /* The first leaves gaps, where no other may map anything; so it starts last. */
    static void *(*const all[])(void *) = {changes, forks, counts, watches};
    pthread_t threads[4];
    CHECK(count == 2 || (count == 3 && !strcmp(argument[2], "moves")));
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    CHECK(map_at((void *)CLOCK, CLOCK_PAGES * PAGE, MAP_FIXED_NOREPLACE) == (void *)CLOCK);
    CHECK(map_at((void *)OPEN, OPEN_PAGES * PAGE, MAP_FIXED_NOREPLACE) == (void *)OPEN);
    arena = map_at((void *)ARENA, ARENA_PAGES * PAGE, MAP_FIXED_NOREPLACE);
    CHECK(arena == (char *)ARENA);
    counted = (uint64_t *)map_at(NULL, COUNTED * PAGE, 0);
    sums = mmap(NULL, COUNTED * sizeof(*sums), RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(sums != MAP_FAILED);
    until = now_ms() + strtoull(argument[1], NULL, 10);
    if (count == 3) {
        moves(NULL);
        return 0;
    }
    for (int i = 3; i >= 0; i--)
        CHECK(!pthread_create(&threads[i], NULL, all[i], (void *)(uintptr_t)i));
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    return 0;
}
