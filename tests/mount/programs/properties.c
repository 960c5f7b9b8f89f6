/* properties NAME DEVICE OTHER: what Linux's hmm.rst promises of devices that share a program's
 * memory, on two devices of one kind. Prints "ok", or what is wrong and where. */
#include "dmirror.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>

static int numbers[2], dev, other;
static bool coherent;
static atomic_bool stop;

static void to_device(int fd, void *memory, size_t pages)
{
    int *mirror = anonymous(pages);
    EQUAL(ask(fd, TO_DEV, memory, pages, mirror), 0);
    munmap(mirror, pages * PAGE);
}

/* A number in the mount's file NAME of the device. */
static long value_of(const char *name, const char *key)
{
    char path[512], word[64];
    long value = -1, found = -1;
    FILE *file;
    snprintf(path, sizeof(path), "%s/devices/dev%d/%s", getenv("HMMFS_DIR"), numbers[0], name);
    file = fopen(path, "r");
    CHECK(file);
    while (found < 0 && fscanf(file, "%63s %ld", word, &value) == 2)
        if (!strcmp(word, key))
            found = value;
    fclose(file);
    CHECK(found >= 0);
    return found;
}

static long used(void)
{
    return value_of("stats", "used");
}

/* The daemon hears of the end of a mapping when it has ended. */
static void becomes_used(long pages)
{
    for (int tries = 0; tries < 500 && used() != pages; tries++)
        usleep(10000);
    EQUAL(used(), pages);
}

/* What happens to memory that the device has mapped, and what it reads then. */
static void invalidated(void)
{
    int *memory = anonymous(8), *mirror = anonymous(8), *next = anonymous(8);
    fill(memory, 8, 0);
    EQUAL(ask(dev, READ, memory, 8, mirror), 0);
    CHECK(!madvise(memory, 2 * PAGE, MADV_DONTNEED));
    EQUAL(ask(dev, READ, memory, 8, mirror), 0);
    EQUAL(faults, 1);
    ALL(mirror, 2 * PAGE, 0);
    HOLDS(mirror + 2 * INTS, 6, 2 * INTS);
    fill(next, 8, 50);
    CHECK(mremap(next, 8 * PAGE, 8 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, memory) == memory);
    EQUAL(ask(dev, READ, memory, 8, mirror), 0);
    EQUAL(faults, 1);
    HOLDS(mirror, 8, 50);
    CHECK(!munmap(memory + 4 * INTS, PAGE));
    EQUAL(ask(dev, READ, memory, 8, mirror), -EFAULT);
    CHECK(!mprotect(memory, PAGE, PROT_READ));
    EQUAL(ask(dev, WRITE, memory, 1, mirror), -EPERM);
}

/* After a fork the first store by the parent makes a copy, which the device is to follow. */
static void copied_on_write(void)
{
    int *memory = anonymous(8), *mirror = anonymous(8), pipes[2];
    char byte;
    pid_t child;
    fill(memory, 8, 0);
    EQUAL(ask(dev, WRITE, memory, 8, memory), 0);
    CHECK(!pipe(pipes));
    child = begin_child();
    if (!child) {
        close(pipes[1]);
        if (read(pipes[0], &byte, 1) == 0)
            HOLDS(memory, 8, 0);
        end_child();
    }
    fill(mirror, 8, 9);
    EQUAL(ask(dev, WRITE, memory, 8, mirror), 0);
    EQUAL(faults, 1);
    HOLDS(memory, 8, 9);
    close(pipes[1]);
    child_was_well(child);
}

static void *replace_mapping(void *memory)
{
    for (int turn = 1; !stop; turn++) {
        int *fresh = anonymous(8);
        for (size_t i = 0; i < 8 * INTS; i++)
            fresh[i] = turn;
        if (mremap(fresh, 8 * PAGE, 8 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, memory) != memory)
            return "mremap";
    }
    return NULL;
}

/* Faults while the mapping is replaced: afterwards the device sees what is there. */
static void replaced_during_faults(void)
{
    int *memory = anonymous(8), *mirror = anonymous(8);
    void *complaint;
    pthread_t thread;
    CHECK(!pthread_create(&thread, NULL, replace_mapping, memory));
    for (int i = 0; i < 200; i++) {
        int result = ask(dev, READ, memory, 8, mirror);
        if (result && result != -EFAULT)
            EQUAL(result, 0);
    }
    stop = true;
    CHECK(!pthread_join(thread, &complaint));
    CHECK(!complaint);
    EQUAL(ask(dev, READ, memory, 8, mirror), 0);
    CHECK(!memcmp(memory, mirror, 8 * PAGE));
}

static void snapshot_has_no_effect(void)
{
    int *memory = anonymous(64);
    unsigned char in_core[64];
    memory[3 * INTS] = 1;
    SEEN(dev, memory, 3, 0x00);
    CHECK(!mincore(memory, 64 * PAGE, in_core));
    for (int page = 0; page < 64; page++)
        EQUAL(in_core[page] & 1, page == 3);
    to_device(dev, memory, 2);
    SEEN(other, memory, 2, coherent ? 0x52 : 0x00);
    SEEN(dev, memory, 2, coherent ? 0x42 : 0x22);
}

static void write_only_mapping(void)
{
    int *memory = map(PAGE, PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1), *mirror = anonymous(1);
    EQUAL(ask(dev, READ, memory, 1, mirror), -EFAULT);
    EQUAL(ask(dev, WRITE, memory, 1, mirror), -EFAULT);
    SEEN(dev, memory, 1, 0xFF);
}

/* What the device had mapped before the hole is stored to, and stays. */
static void stored_before_an_error(void)
{
    int *memory = anonymous(8), *mirror = anonymous(8);
    EQUAL(ask(dev, WRITE, memory, 4, mirror), 0);
    CHECK(!munmap(memory + 6 * INTS, PAGE));
    fill(mirror, 8, 3);
    EQUAL(ask(dev, WRITE, memory, 8, mirror), -EFAULT);
    HOLDS(memory, 4, 3);
    ALL(memory + 4 * INTS, 2 * PAGE, 0);
    fill(mirror, 8, 70);
    EQUAL(ask(dev, READ, memory, 8, mirror), -EFAULT);
    HOLDS(mirror, 8, 70);
}

static void last_data_of_the_device(void)
{
    int *memory = anonymous(16), *mirror = anonymous(16);
    to_device(dev, memory, 16);
    fill(mirror, 16, 5);
    EQUAL(ask(dev, WRITE, memory, 16, mirror), 0);
    SEEN(dev, memory, 16, coherent ? 0x42 : 0x22);
    HOLDS(memory, 16, 5);
}

/* In Linux programs have coherent pages mapped, and they stay. Here nothing but the device's own
 * memory can be where its pages are, so that these come home as private ones do. */
static void touched_by_the_program(void)
{
    int *memory = anonymous(1);
    memory[0] = 1;
    to_device(dev, memory, 1);
    CHECK(memory[0] == 1);
    SEEN(dev, memory, 1, 0x02);
}

static void freed_with_the_last_mapping(void)
{
    int *memory = anonymous(64);
    pid_t child;
    becomes_used(0); /* of the program before */
    to_device(dev, memory, 64);
    becomes_used(64);
    CHECK(!munmap(memory, 16 * PAGE));
    becomes_used(48);
    CHECK(!madvise(memory + 16 * INTS, 16 * PAGE, MADV_DONTNEED));
    becomes_used(32);
    child = begin_child();
    if (!child)
        end_child();
    child_was_well(child);
    CHECK(!munmap(memory + 16 * INTS, 48 * PAGE));
    becomes_used(0);
}

static atomic_long *counters; /* one a page */
static size_t apart;          /* pages from one to the next */

static atomic_long *counter(size_t which)
{
    return counters + which * apart * PAGE / sizeof(long);
}

static void *count(void *where)
{
    long n = 0;
    for (; !stop; n++)
        atomic_fetch_add_explicit(counter((size_t)where), 1, memory_order_relaxed);
    return (void *)n;
}

static void *migrate_to(void *fd)
{
    void *mirror = anonymous(4 * apart);
    while (!stop) {
        ask((int)(intptr_t)fd, TO_DEV, counters, 4 * apart, mirror);
        ask((int)(intptr_t)fd, TO_SYS, counters, 4 * apart, NULL);
    }
    return NULL;
}

/* Threads that count in pages which migrate all the time, by one device or by two. */
static void count_while(int devices, void *memory, size_t pages)
{
    pthread_t threads[4], movers[2];
    void *n, *mirror = anonymous(pages);
    counters = memory;
    apart = pages / 4;
    for (size_t i = 0; i < 4; i++)
        CHECK(!pthread_create(&threads[i], NULL, count, (void *)i));
    for (int i = 0; i < devices; i++)
        CHECK(!pthread_create(&movers[i], NULL, migrate_to, (void *)(intptr_t)(i ? other : dev)));
    usleep(700000);
    stop = true;
    for (int i = 0; i < devices; i++)
        CHECK(!pthread_join(movers[i], NULL));
    for (size_t i = 0; i < 4; i++) {
        CHECK(!pthread_join(threads[i], &n));
        EQUAL(*counter(i), (long)n);
        CHECK((long)n > 0);
    }
    EQUAL(ask(dev, READ, counters, pages, mirror), 0);
    CHECK(!memcmp(mirror, counters, pages * PAGE));
}

static void counting_while_they_migrate(void)
{
    count_while(1, anonymous(4), 4);
}

static void two_devices_take_turns(void)
{
    count_while(2, anonymous(4), 4);
}

static void counting_in_huge_pages(void)
{
    count_while(2, huge(HUGE, PROT_READ | PROT_WRITE), HUGE / PAGE);
}

/* Pages of a device that somebody else's data were in. */
static void nothing_of_others(void)
{
    for (int i = 0; i < 4; i++) {
        char *memory = (char *)anonymous(256);
        memset(memory, 0xDD, 256 * PAGE);
        to_device(dev, memory, 256);
        munmap(memory, 256 * PAGE);
        memory = (char *)anonymous(300);
        to_device(dev, memory, 300);
        ALL(memory, 300 * PAGE, 0);
        munmap(memory, 300 * PAGE);
    }
}

static void *touch_first(void *memory)
{
    for (size_t page = 0; page < 256; page++)
        ((int *)memory)[page * INTS + 1] = (int)page + 1;
    return NULL;
}

/* A page that nobody has yet: the program's first store and the device get the same one. */
static void first_touch(void)
{
    for (int i = 0; i < 20; i++) {
        int *memory = anonymous(256), *mirror = anonymous(256);
        pthread_t thread;
        CHECK(!pthread_create(&thread, NULL, touch_first, memory));
        ask(dev, TO_DEV, memory, 256, mirror);
        CHECK(!pthread_join(thread, NULL));
        for (int page = 0; page < 256; page++) {
            EQUAL(memory[(size_t)page * INTS], 0);
            EQUAL(memory[(size_t)page * INTS + 1], page + 1);
        }
        munmap(memory, 256 * PAGE);
        munmap(mirror, 256 * PAGE);
    }
}

static void read_only_stays_so(void)
{
    int *memory = anonymous(8), *mirror = anonymous(8);
    fill(memory, 8, 0);
    CHECK(!mprotect(memory, 8 * PAGE, PROT_READ));
    to_device(dev, memory, 8);
    SEEN(dev, memory, 8, coherent ? 0x41 : 0x21);
    EQUAL(ask(dev, WRITE, memory, 8, mirror), -EPERM);
    EQUAL(ask(dev, TO_SYS, memory, 8, NULL), 0);
    EQUAL(cpages, 8);
    SEEN(dev, memory, 8, 0x01);
    EQUAL(ask(dev, WRITE, memory, 8, mirror), -EPERM);
    CHECK(!mprotect(memory, 8 * PAGE, PROT_READ | PROT_WRITE));
    HOLDS(memory, 8, 0);
    fill(memory, 8, 1);
    to_device(dev, memory, 8);
    CHECK(!mprotect(memory, 8 * PAGE, PROT_READ));
    SEEN(dev, memory, 8, coherent ? 0x41 : 0x21);
    EQUAL(ask(dev, READ, memory, 8, mirror), 0); /* test_hmm itself fails here, badly */
    HOLDS(mirror, 8, 1);
}

/* All pages of a device go home with any of its files; the other device's stay. */
static void any_file_that_closes(void)
{
    int *memory = anonymous(16), second = open_device(numbers[0]);
    fill(memory, 16, 0);
    to_device(dev, memory, 8);
    to_device(other, memory + 8 * INTS, 8);
    CHECK(!close(second));
    becomes_used(0);
    SEEN(dev, memory, 8, 0x02);
    SEEN(other, memory + 8 * INTS, 8, coherent ? 0x42 : 0x22);
    HOLDS(memory, 16, 0);
}

static void exclusive_for_another(void)
{
    int *memory = anonymous(8), *mirror = anonymous(8);
    fill(memory, 8, 0);
    EQUAL(ask(dev, EXCLUSIVE, memory, 8, mirror), 0);
    EQUAL(ask(other, EXCLUSIVE, memory + 4 * INTS, 4, mirror), 0);
    HOLDS(mirror, 4, 4 * INTS);
    EQUAL(ask(dev, CHECK_EXCLUSIVE, memory, 4, NULL), -EPERM);
    EQUAL(ask(dev, CHECK_EXCLUSIVE, memory + 4 * INTS, 4, NULL), 0);
    EQUAL(ask(other, CHECK_EXCLUSIVE, memory + 4 * INTS, 4, NULL), -EPERM);
    HOLDS(memory, 8, 0);
    EQUAL(ask(other, CHECK_EXCLUSIVE, memory, 8, NULL), 0);
    CHECK(!mprotect(memory, PAGE, PROT_READ));
    EQUAL(ask(dev, EXCLUSIVE, memory, 1, mirror), -EFAULT);
}

static void exclusive_of_a_huge_page(void)
{
    int *memory = huge(HUGE, PROT_READ | PROT_WRITE), *mirror = anonymous(HUGE / PAGE);
    fill(memory, HUGE / PAGE, 0);
    EQUAL(ask(dev, EXCLUSIVE, memory, HUGE / PAGE, mirror), 0);
    EQUAL(cpages, HUGE / PAGE);
    memory[0]++;
    EQUAL(memory[0], 1);
    EQUAL(ask(dev, CHECK_EXCLUSIVE, memory, 1, NULL), 0);
    EQUAL(ask(dev, CHECK_EXCLUSIVE, memory + (HUGE / PAGE - 1) * INTS, 1, NULL), -EPERM);
    memory[0]--;
    HOLDS(memory, HUGE / PAGE, 0);
}

static void *read_one(void *memory)
{
    long n = 0;
    for (; !stop; n++)
        if (*(volatile int *)memory != 7)
            return (void *)-1;
    return (void *)n;
}

static void many_readers_of_one_page(void)
{
    int *memory = anonymous(1), *mirror = anonymous(1), moved = 0;
    pthread_t threads[8];
    void *n;
    memory[0] = 7;
    for (int i = 0; i < 8; i++)
        CHECK(!pthread_create(&threads[i], NULL, read_one, memory));
    /* A page in a reader's hands stays; so may one whose program gets no processor in time. */
    for (int i = 0; i < 50 || (!moved && i < 300); i++)
        moved += !ask(dev, TO_DEV, memory, 1, mirror);
    stop = true;
    for (int i = 0; i < 8; i++) {
        CHECK(!pthread_join(threads[i], &n));
        CHECK((long)n > 0);
    }
    CHECK(moved);
}

/* Takes pages along when it is killed: see the test. */
static void killed(void)
{
    int *memory = huge(2 * HUGE, PROT_READ | PROT_WRITE);
    fill(memory, 2 * HUGE / PAGE, 0);
    to_device(dev, memory, 2 * HUGE / PAGE);
    CHECK(used() >= (long)(2 * HUGE / PAGE));
    printf("ok\n");
    fflush(stdout);
    raise(SIGKILL);
}

#define PROPERTY(name)                                                                             \
    {                                                                                              \
#name, name                                                                                \
    }

static const struct {
    const char *name;
    void (*run)(void);
} properties[] = {
    PROPERTY(invalidated),
    PROPERTY(copied_on_write),
    PROPERTY(replaced_during_faults),
    PROPERTY(snapshot_has_no_effect),
    PROPERTY(write_only_mapping),
    PROPERTY(stored_before_an_error),
    PROPERTY(last_data_of_the_device),
    PROPERTY(touched_by_the_program),
    PROPERTY(freed_with_the_last_mapping),
    PROPERTY(counting_while_they_migrate),
    PROPERTY(two_devices_take_turns),
    PROPERTY(counting_in_huge_pages),
    PROPERTY(nothing_of_others),
    PROPERTY(first_touch),
    PROPERTY(read_only_stays_so),
    PROPERTY(any_file_that_closes),
    PROPERTY(exclusive_for_another),
    PROPERTY(exclusive_of_a_huge_page),
    PROPERTY(many_readers_of_one_page),
    PROPERTY(killed),
};

int main(int argc, char **argv)
{
    if (argc != 4) {
        for (size_t i = 0; i < LENGTH(properties); i++)
            printf("%s\n", properties[i].name);
        return 2;
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    numbers[0] = atoi(argv[2]);
    numbers[1] = atoi(argv[3]);
    coherent = numbers[0] > 1;
    dev = open_device(numbers[0]);
    other = open_device(numbers[1]);
    for (size_t i = 0; i < LENGTH(properties); i++)
        if (!strcmp(properties[i].name, argv[1])) {
            properties[i].run();
            printf("ok\n");
            return 0;
        }
    WRONG("there is no test %s", argv[1]);
}
