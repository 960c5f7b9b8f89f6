/* hmm ROW DEVICE OTHER: what a row of the kernel's HMM tests is about, tried on two devices of one
 * kind. Prints "ok", "skip: " and why, or what is wrong and where. */
#include "dmirror.h"

#include <linux/io_uring.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>

#define PAGES ((size_t)1024)
#define TIMES 10

static int numbers[2], dev, other; /* other is opened by tests that want it */
static bool coherent;

/* Snapshot bytes of pages on the device itself. */
static uint8_t here(uint8_t rights)
{
    return (coherent ? 0x40 : 0x20) | rights;
}

static _Noreturn void skip(const char *why)
{
    printf("skip: %s\n", why);
    exit(0);
}

static void *small(size_t bytes)
{
    void *memory = aligned(bytes, PROT_READ | PROT_WRITE);
    CHECK(!madvise(memory, bytes, MADV_NOHUGEPAGE));
    return memory;
}

static void fail_next_allocation(void)
{
    EQUAL(ask(dev, FLAGS, NULL, 1, NULL), 0);
}

static void to_device(void *memory, size_t pages, void *mirror)
{
    EQUAL(ask(dev, TO_DEV, memory, pages, mirror), 0);
    EQUAL(cpages, pages);
}

/* ---- reads and writes --------------------------------------------------------------------- */

static void open_close(void)
{
    int second = open_device(numbers[0]);
    CHECK(!close(second));
    CHECK(!close(dev));
    dev = open_device(numbers[0]);
}

static void anon_read(void)
{
    int *memory = anonymous(PAGES), *mirror = anonymous(PAGES);
    fill(memory + 2 * INTS, PAGES - 2, 2 * INTS);
    CHECK(*(volatile int *)memory == 0); /* maps the page of zeros */
    memset(mirror, 0xEE, PAGES * PAGE);
    EQUAL(ask(dev, READ, memory, PAGES, mirror), 0);
    EQUAL(cpages, PAGES);
    EQUAL(faults, 1);
    ALL(mirror, 2 * PAGE, 0);
    HOLDS(mirror + 2 * INTS, PAGES - 2, 2 * INTS);
}

static void anon_read_prot(void)
{
    int *memory = anonymous(PAGES), *mirror = anonymous(PAGES);
    fill(memory, PAGES, 0);
    fill(mirror, PAGES, 5);
    CHECK(!mprotect(memory, PAGES * PAGE, PROT_NONE));
    EQUAL(ask(dev, READ, memory, PAGES, mirror), -EFAULT);
    HOLDS(mirror, PAGES, 5);
    CHECK(!mprotect(memory, PAGES * PAGE, PROT_READ));
    HOLDS(memory, PAGES, 0);
}

static void write_to(int *memory, size_t pages)
{
    int *mirror = anonymous(pages);
    fill(mirror, pages, 0);
    EQUAL(ask(dev, WRITE, memory, pages, mirror), 0);
    EQUAL(cpages, pages);
    EQUAL(faults, 1);
    HOLDS(memory, pages, 0);
    munmap(mirror, pages * PAGE);
}

static void anon_write(void)
{
    write_to(anonymous(PAGES), PAGES);
}

static void anon_write_prot(void)
{
    int *memory = anonymous(PAGES), *mirror = anonymous(PAGES);
    CHECK(!mprotect(memory, PAGES * PAGE, PROT_READ));
    EQUAL(ask(dev, READ, memory, 1, mirror), 0);
    EQUAL(cpages, 1);
    EQUAL(faults, 1);
    fill(mirror, PAGES, 1);
    EQUAL(ask(dev, WRITE, memory, PAGES, mirror), -EPERM);
    ALL(memory, PAGES * PAGE, 0);
    CHECK(!mprotect(memory, PAGES * PAGE, PROT_READ | PROT_WRITE));
    write_to(memory, PAGES);
}

/* A child writes by a device that it opened itself; its parent's copy stays. */
static void write_in_child(bool migrate, bool thp)
{
    int *memory = thp ? huge(HUGE, PROT_READ | PROT_WRITE) : anonymous(PAGES);
    size_t pages = thp ? HUGE / PAGE : PAGES;
    int *mirror = anonymous(pages);
    pid_t child;
    snprintf(label, sizeof(label), "migrated %d, huge %d", migrate, thp);
    fill(memory, pages, 0);
    if (migrate)
        to_device(memory, pages, mirror);
    fill(mirror, pages, 9);
    child = begin_child();
    if (!child) {
        HOLDS(memory, pages, 0);
        dev = open_device(numbers[0]);
        EQUAL(ask(dev, WRITE, memory, pages, mirror), 0);
        EQUAL(cpages, pages);
        HOLDS(memory, pages, 9);
        close(dev);
        end_child();
    }
    child_was_well(child);
    HOLDS(memory, pages, 0);
}

static void anon_write_child(void)
{
    for (int kind = 0; kind < 4; kind++)
        write_in_child(kind & 1, kind & 2);
}

static void anon_write_child_shared(void)
{
    int *memory = map(PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1);
    int *mirror = anonymous(PAGES);
    pid_t child;
    fill(memory, PAGES, 0);
    fill(mirror, PAGES, 9);
    child = begin_child();
    if (!child) {
        HOLDS(memory, PAGES, 0);
        dev = open_device(numbers[0]);
        EQUAL(ask(dev, WRITE, memory, PAGES, mirror), 0);
        EQUAL(cpages, PAGES);
        end_child();
    }
    child_was_well(child);
    HOLDS(memory, PAGES, 9);
}

static void anon_write_huge(void)
{
    write_to(huge(HUGE, PROT_READ | PROT_WRITE), HUGE / PAGE);
}

static int *of_hugetlbfs(void)
{
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB;
    int *memory = mmap(NULL, HUGE, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (memory == MAP_FAILED)
        skip("this machine has no huge pages set aside (vm.nr_hugepages)");
    return memory;
}

static void anon_write_hugetlbfs(void)
{
    int *memory = of_hugetlbfs(), *mirror = anonymous(HUGE / PAGE);
    write_to(memory, HUGE / PAGE);
    EQUAL(ask(dev, TO_DEV, memory, HUGE / PAGE, mirror), -EINVAL);
    EQUAL(ask(dev, EXCLUSIVE, memory, HUGE / PAGE, mirror), -EOPNOTSUPP);
    HOLDS(memory, HUGE / PAGE, 0);
}

/* ---- files -------------------------------------------------------------------------------- */

static int file_of(size_t pages)
{
    char path[] = "/tmp/hmmfs-test-XXXXXX";
    int fd = mkstemp(path);
    CHECK(fd >= 0);
    CHECK(!unlink(path));
    CHECK(!ftruncate(fd, (off_t)(pages * PAGE)));
    return fd;
}

static void file_read(void)
{
    int fd = file_of(PAGES), *mirror = anonymous(PAGES);
    int *memory = map(PAGES * PAGE, PROT_READ, MAP_SHARED, fd);
    fill(mirror, PAGES, 0);
    CHECK(pwrite(fd, mirror, PAGES * PAGE, 0) == (ssize_t)(PAGES * PAGE));
    memset(mirror, 0xEE, PAGES * PAGE);
    EQUAL(ask(dev, READ, memory, PAGES, mirror), 0);
    EQUAL(cpages, PAGES);
    EQUAL(faults, 1);
    HOLDS(mirror, PAGES, 0);
}

static void file_write(void)
{
    int fd = file_of(PAGES), *back = anonymous(PAGES);
    write_to(map(PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd), PAGES);
    CHECK(pread(fd, back, PAGES * PAGE, 0) == (ssize_t)(PAGES * PAGE));
    HOLDS(back, PAGES, 0);
}

/* ---- migration ---------------------------------------------------------------------------- */

static void migrate(void)
{
    int *memory = anonymous(PAGES), *mirror = anonymous(PAGES);
    fill(memory, PAGES, 0);
    to_device(memory, PAGES, mirror);
    HOLDS(mirror, PAGES, 0);
    SEEN(dev, memory + INTS * 4, PAGES - 512, here(2));
}

/* In Linux these migrate. */
static void migrate_file_private(void)
{
    int *memory = map(PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, file_of(PAGES));
    int *mirror = anonymous(PAGES);
    fill(memory, PAGES, 0);
    EQUAL(ask(dev, TO_DEV, memory, PAGES, mirror), -ENOENT);
    HOLDS(memory, PAGES, 0);
    EQUAL(ask(dev, READ, memory, PAGES, mirror), 0);
    HOLDS(mirror, PAGES, 0);
}

static void migrate_fault(void)
{
    int *memory = anonymous(PAGES), *mirror = anonymous(PAGES);
    fill(memory, PAGES, 0);
    to_device(memory, PAGES, mirror);
    HOLDS(memory, PAGES / 2, 0);
    if (!coherent)
        SEEN(dev, memory, PAGES / 2, 0x02);
    memset(mirror, 0xEE, PAGES * PAGE);
    to_device(memory, PAGES, mirror);
    HOLDS(mirror, PAGES, 0);
    HOLDS(memory, PAGES, 0);
}

static void migrate_release(void)
{
    int *memory = anonymous(PAGES), *mirror = anonymous(PAGES);
    fill(memory, PAGES, 0);
    to_device(memory, PAGES, mirror);
    EQUAL(ask(dev, RELEASE, NULL, 1, NULL), 0);
    SEEN(dev, memory, PAGES, 0x02);
    HOLDS(memory, PAGES / 2, 0);
    to_device(memory, PAGES, mirror); /* the device has memory again */
    HOLDS(mirror, PAGES, 0);
}

static void migrate_shared(void)
{
    void *memory = map(PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1);
    int *mirror = anonymous(PAGES);
    EQUAL(ask(dev, TO_DEV, memory, PAGES, mirror), -ENOENT);
    ALL(mirror, PAGES * PAGE, 0);
}

static void migrate_mixed(void)
{
    char *memory = (char *)anonymous(6);
    int *mirror = anonymous(6);
    other = open_device(numbers[1]);
    CHECK(!mprotect(memory, PAGE, PROT_NONE));
    EQUAL(ask(other, TO_DEV, memory, 6, mirror), -EINVAL);
    CHECK(!munmap(memory + PAGE, PAGE));
    EQUAL(ask(other, TO_DEV, memory + PAGE, 1, mirror), -EINVAL);
    CHECK(((volatile char *)memory)[2 * PAGE] == 0);
    memory[3 * PAGE] = 3;
    CHECK(!mprotect(memory + 3 * PAGE, PAGE, PROT_READ));
    memory[4 * PAGE] = 4;
    memory[5 * PAGE] = 5;
    EQUAL(ask(other, TO_DEV, memory + 2 * PAGE, 4, mirror), 0);
    EQUAL(cpages, 4);
    EQUAL(mirror[0], 0);
    for (int page = 1; page < 4; page++)
        EQUAL(mirror[page * INTS], page + 2);
    EQUAL(ask(dev, TO_DEV, memory + 5 * PAGE, 1, mirror), -ENOENT);
    EQUAL(ask(dev, TO_DEV, memory + 4 * PAGE, 2, mirror), -ENOENT);
    for (int page = 2; page < 6; page++)
        EQUAL(memory[page * PAGE], page == 2 ? 0 : page);
}

static void migrate_multiple(void)
{
    for (int i = 0; i < TIMES; i++) {
        int *memory = anonymous(PAGES), *mirror = anonymous(PAGES);
        snprintf(label, sizeof(label), "time %d", i);
        fill(memory, PAGES, i);
        to_device(memory, PAGES, mirror);
        HOLDS(mirror, PAGES, i);
        if (coherent) {
            EQUAL(ask(dev, TO_SYS, memory, PAGES, NULL), 0);
            EQUAL(cpages, PAGES);
        }
        HOLDS(memory, PAGES, i);
        munmap(memory, PAGES * PAGE);
        munmap(mirror, PAGES * PAGE);
    }
}

static void anon_read_multiple(void)
{
    for (int i = 0; i < TIMES; i++) {
        int *memory = anonymous(PAGES), *mirror = anonymous(PAGES);
        fill(memory, PAGES, i);
        EQUAL(ask(dev, READ, memory, PAGES, mirror), 0);
        EQUAL(cpages, PAGES);
        EQUAL(faults, 1);
        HOLDS(mirror, PAGES, i);
        munmap(memory, PAGES * PAGE);
        munmap(mirror, PAGES * PAGE);
    }
}

static void *unmap_soon(void *half)
{
    usleep((useconds_t)(rand() % 2000));
    munmap(half, PAGES / 2 * PAGE);
    return NULL;
}

static void anon_teardown(void)
{
    for (int i = 0; i < TIMES; i++) {
        int *memory = anonymous(PAGES), *mirror = anonymous(PAGES);
        pthread_t thread;
        fill(memory, PAGES, i);
        CHECK(!pthread_create(&thread, NULL, unmap_soon, memory + PAGES / 2 * INTS));
        if (!ask(dev, READ, memory, PAGES, mirror))
            HOLDS(mirror, PAGES, i);
        CHECK(!pthread_join(thread, NULL));
        HOLDS(memory, PAGES / 2, i);
        munmap(memory, PAGES / 2 * PAGE);
        munmap(mirror, PAGES * PAGE);
    }
}

/* ---- what a device sees ------------------------------------------------------------------- */

static void mixedmap(void)
{
    void *memory = map(PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, dev);
    SEEN(dev, memory, 1, 0x01);
}

static void snapshot(void)
{
    char *memory = (char *)anonymous(7);
    int *mirror = anonymous(7);
    uint8_t seen[7];
    const uint8_t far = coherent ? 0x52 : 0x00;
    const uint8_t wanted[] = {0xFF, 0xFF, 0x11, 0x01, 0x02, here(2), far};
    other = open_device(numbers[1]);
    CHECK(!mprotect(memory, PAGE, PROT_NONE));
    CHECK(!munmap(memory + PAGE, PAGE));
    CHECK(((volatile char *)memory)[2 * PAGE] == 0);
    for (int page = 3; page < 7; page++)
        memory[page * PAGE] = (char)page;
    CHECK(!mprotect(memory + 3 * PAGE, PAGE, PROT_READ));
    to_device(memory + 5 * PAGE, 1, mirror);
    EQUAL(ask(other, TO_DEV, memory + 6 * PAGE, 1, mirror), 0);
    EQUAL(ask(dev, SNAPSHOT, memory, 7, seen), 0);
    EQUAL(cpages, 7);
    for (size_t page = 0; page < 7; page++)
        EQUAL(seen[page], wanted[page]);
}

static void seen_as_huge(int *memory)
{
    size_t pages = HUGE / PAGE;
    fill(memory, pages, 0);
    SEEN(dev, memory, pages, 0x06);
    CHECK(!mprotect(memory, HUGE, PROT_READ));
    SEEN(dev, memory, pages, 0x05);
}

static void compound(void)
{
    seen_as_huge(of_hugetlbfs());
}

static void compound_transparent(void)
{
    seen_as_huge(huge(HUGE, PROT_READ | PROT_WRITE));
}

static void double_map(void)
{
    int *memory = anonymous(6), *mirror = anonymous(6);
    other = open_device(numbers[1]);
    fill(memory, 6, 0);
    CHECK(!mprotect(memory, 6 * PAGE, PROT_READ));
    for (int i = 0; i < 2; i++) {
        EQUAL(ask(i ? other : dev, READ, memory, 6, mirror), 0);
        EQUAL(cpages, 6);
        EQUAL(faults, 1);
        HOLDS(mirror, 6, 0);
        memset(mirror, 0xEE, 6 * PAGE);
    }
    EQUAL(ask(other, TO_DEV, memory, 6, mirror), 0);
    EQUAL(cpages, 6);
    HOLDS(mirror, 6, 0);
    memset(mirror, 0xEE, 6 * PAGE);
    EQUAL(ask(dev, READ, memory, 6, mirror), 0);
    EQUAL(cpages, 6);
    EQUAL(faults, 1);
    HOLDS(mirror, 6, 0);
}

/* ---- exclusive access --------------------------------------------------------------------- */

static int *taken(void)
{
    int *memory = anonymous(PAGES), *mirror = anonymous(PAGES);
    fill(memory, PAGES, 0);
    EQUAL(ask(dev, EXCLUSIVE, memory, PAGES, mirror), 0);
    EQUAL(cpages, PAGES);
    HOLDS(mirror, PAGES, 0);
    munmap(mirror, PAGES * PAGE);
    return memory;
}

static void increment(int *memory)
{
    for (size_t i = 0; i < PAGES * INTS; i++)
        memory[i]++;
}

static void exclusive(void)
{
    int *memory = taken();
    EQUAL(ask(dev, CHECK_EXCLUSIVE, memory, PAGES, NULL), -EPERM);
    SEEN(dev, memory, PAGES, 0x00);
    increment(memory);
    HOLDS(memory, PAGES, 1);
    EQUAL(ask(dev, CHECK_EXCLUSIVE, memory, PAGES, NULL), 0);
}

static void exclusive_mprotect(void)
{
    int *memory = taken(), *mirror = anonymous(PAGES);
    CHECK(!mprotect(memory, PAGES * PAGE, PROT_READ));
    EQUAL(ask(dev, WRITE, memory, PAGES, mirror), -EPERM);
    HOLDS(memory, PAGES, 0);
}

static void exclusive_cow(void)
{
    int *memory = taken();
    pid_t child = begin_child();
    increment(memory);
    HOLDS(memory, PAGES, 1);
    if (!child)
        end_child();
    child_was_well(child);
    HOLDS(memory, PAGES, 1);
}

/* ---- pages that the kernel uses on somebody's behalf ---------------------------------------- */

struct ring {
    int fd;
    bool fixed;
};

/* Pins pages for as long as the ring is open. */
static int pin(void *memory, size_t bytes)
{
    struct io_uring_params params = {0};
    struct iovec buffer = {memory, bytes};
    int ring = (int)syscall(SYS_io_uring_setup, 1, &params);
    if (ring >= 0 && syscall(SYS_io_uring_register, ring, IORING_REGISTER_BUFFERS, &buffer, 1) < 0)
        WRONG("a ring's buffer: %s", strerror(errno));
    return ring;
}

/* Four pages on the device: one is read directly to from a file, one by a system call, one by
 * another process, and one is pinned, where there is io_uring. */
static void hmm_gup_test(void)
{
    char *memory = (char *)anonymous(4), *block = (char *)anonymous(1), byte = 9;
    int *mirror = anonymous(4), fd = file_of(4), ring, pipes[2];
    struct iovec local = {block, PAGE}, remote = {memory + PAGE, PAGE};
    bool direct = !fcntl(fd, F_SETFL, O_DIRECT);
    fill((int *)memory, 4, 0);
    to_device(memory, 4, mirror);
    CHECK(pwrite(fd, memory, PAGE, 0) == (ssize_t)PAGE);
    CHECK(pread(fd, block, PAGE, 0) == (ssize_t)PAGE);
    CHECK(direct);
    CHECK(!memcmp(block, mirror, PAGE));
    CHECK(process_vm_readv(getpid(), &local, 1, &remote, 1, 0) == (ssize_t)PAGE);
    CHECK(!memcmp(block, (char *)mirror + PAGE, PAGE));
    CHECK(!pipe(pipes));
    CHECK(write(pipes[1], &byte, 1) == 1);
    CHECK(read(pipes[0], memory + 2 * PAGE, 1) == 1);
    CHECK(memory[2 * PAGE] == 9);
    memory[2 * PAGE] = *((char *)mirror + 2 * PAGE);
    ring = pin(memory + 3 * PAGE, PAGE);
    CHECK(!memcmp(memory, mirror, 4 * PAGE));
    if (!coherent)
        SEEN(dev, memory, 4, 0x02);
    if (ring < 0)
        return;
    SEEN(dev, memory + 3 * PAGE, 1, 0x02);
    EQUAL(ask(dev, TO_DEV, memory + 3 * PAGE, 1, mirror), -ENOENT);
    EQUAL(ask(dev, TO_DEV, memory, 4, mirror), -ENOENT);
    SEEN(dev, memory, 3, here(2));
    CHECK(!close(ring));
    HOLDS((int *)memory, 4, 0);
}

static void hmm_cow_in_device(void)
{
    int *memory = anonymous(4), *mirror = anonymous(4);
    int pipes[2];
    char byte;
    pid_t child;
    fill(memory, 4, 0);
    to_device(memory, 4, mirror);
    CHECK(!pipe(pipes));
    child = begin_child();
    if (!child) {
        close(pipes[1]);
        if (read(pipes[0], &byte, 1) == 0)
            HOLDS(memory, 4, 0);
        end_child();
    }
    for (int page = 0; page < 4; page++)
        memory[page * INTS] = -1;
    close(pipes[1]);
    child_was_well(child);
    SEEN(dev, memory, 4, 0x02);
    for (int page = 0; page < 4; page++) {
        EQUAL(memory[page * INTS], -1);
        EQUAL(memory[page * INTS + 1], page * INTS + 1);
    }
}

/* ---- huge pages --------------------------------------------------------------------------- */

/* The kernel makes one when it is asked to, and may. */
static void collapse(void *memory, size_t bytes)
{
    if (madvise(memory, bytes, MADV_COLLAPSE))
        skip("this kernel makes no huge page on demand (MADV_COLLAPSE)");
}

static void migrate_anon_huge_empty(void)
{
    void *memory = huge(HUGE, PROT_READ);
    int *mirror = anonymous(HUGE / PAGE);
    memset(mirror, 0xEE, HUGE);
    to_device(memory, HUGE / PAGE, mirror);
    ALL(mirror, HUGE, 0);
    SEEN(dev, memory, HUGE / PAGE, here(5));
    ALL(memory, HUGE, 0);
}

static void migrate_anon_huge_zero(void)
{
    void *memory = huge(HUGE, PROT_READ);
    int *mirror = anonymous(HUGE / PAGE);
    CHECK(*(volatile int *)memory == 0);
    SEEN(dev, memory, HUGE / PAGE, 0x15);
    memset(mirror, 0xEE, HUGE);
    to_device(memory, HUGE / PAGE, mirror);
    ALL(mirror, HUGE, 0);
    SEEN(dev, memory, HUGE / PAGE, here(5));
    ALL(memory, HUGE, 0);
}

static void migrate_anon_huge_free(void)
{
    int *memory = huge(HUGE, PROT_READ | PROT_WRITE), *mirror = anonymous(HUGE / PAGE);
    fill(memory, HUGE / PAGE, 0);
    to_device(memory, HUGE / PAGE, mirror);
    HOLDS(mirror, HUGE / PAGE, 0);
    CHECK(!madvise(memory, HUGE, MADV_FREE));
    for (size_t i = 0; i < HUGE / sizeof(int); i++)
        if (memory[i] != (int)i && memory[i])
            WRONG("int %zu is %d", i, memory[i]);
    fill(memory, HUGE / PAGE, 3);
    to_device(memory, HUGE / PAGE, mirror);
    HOLDS(mirror, HUGE / PAGE, 3);
}

/* The bits of /proc/self/pagemap that say present (63) and swapped (62). */
static void looks_swapped_out(void *memory, size_t pages)
{
    int fd = open("/proc/self/pagemap", O_RDONLY);
    uint64_t *entry = calloc(pages, sizeof(*entry));
    ssize_t bytes = (ssize_t)(pages * sizeof(*entry));
    CHECK(pread(fd, entry, (size_t)bytes, (off_t)((uintptr_t)memory / PAGE * 8)) == bytes);
    for (size_t page = 0; page < pages; page++)
        if (entry[page] >> 62 != 1)
            WRONG("the entry of page %zu is %#lx", page, (unsigned long)entry[page]);
    free(entry);
    close(fd);
}

static void migrate_anon_huge_fault(void)
{
    size_t pages = HUGE / PAGE;
    int *memory = huge(HUGE, PROT_READ | PROT_WRITE), *mirror = anonymous(pages);
    fill(memory, pages, 0);
    collapse(memory, HUGE);
    SEEN(dev, memory, pages, 0x06);
    to_device(memory, pages, mirror);
    HOLDS(mirror, pages, 0);
    SEEN(dev, memory, pages, here(6));
    if (!coherent)
        looks_swapped_out(memory, pages);
    HOLDS(memory, pages, 0);
    if (!coherent)
        SEEN(dev, memory, pages, 0x06);
    EQUAL(ask(dev, TO_DEV, memory, pages, mirror), 0);
    EQUAL(ask(dev, TO_SYS, memory, pages, NULL), 0);
    HOLDS(memory, pages, 0);
}

static void migrate_anon_huge_counts(void)
{
    size_t pages = HUGE / PAGE;
    int *memory = huge(HUGE, PROT_READ | PROT_WRITE), *mirror = anonymous(pages);
    fill(memory, pages, 0);
    to_device(memory, pages, mirror);
    EQUAL(ask(dev, TO_SYS, memory, pages, NULL), 0);
    EQUAL(cpages, 1);
    HOLDS(memory, pages, 0);
    to_device(memory, pages, mirror);
    EQUAL(ask(dev, TO_SYS, memory, 1, NULL), 0); /* in pieces from now on */
    EQUAL(cpages, 1);
    SEEN(dev, memory, 1, 0x02);
    SEEN(dev, memory + INTS, pages - 1, here(2));
    EQUAL(ask(dev, TO_SYS, memory, pages, NULL), 0);
    EQUAL(cpages, pages - 1);
    HOLDS(memory, pages, 0);
}

static void unmapped_in_part(bool thp, size_t offset)
{
    size_t pages = HUGE / PAGE, half = pages / 2;
    int *memory = thp ? huge(HUGE, PROT_READ | PROT_WRITE) : small(HUGE);
    int *mirror = anonymous(pages), *hole = memory + offset * INTS;
    snprintf(label, sizeof(label), "huge %d, from page %zu", thp, offset);
    fill(memory, pages, 0);
    to_device(memory, pages, mirror);
    HOLDS(mirror, pages, 0);
    CHECK(!munmap(hole, half * PAGE));
    if (offset)
        SEEN(dev, memory, offset, here(2));
    SEEN(dev, hole, half, 0xFF);
    HOLDS(memory, offset, 0);
    HOLDS(hole + half * INTS, half - offset, (int)((offset + half) * INTS));
    CHECK(!munmap(memory, HUGE));
    CHECK(!munmap(mirror, HUGE));
}

static void migrate_partial_unmap_fault(void)
{
    static const size_t offsets[] = {0, 128, 256};
    for (int thp = 0; thp < 2; thp++)
        for (size_t i = 0; i < LENGTH(offsets); i++)
            unmapped_in_part(thp, offsets[i]);
}

static void move(char *from, char *to, size_t bytes, bool dontunmap)
{
    int flags = MREMAP_MAYMOVE | MREMAP_FIXED | (dontunmap ? MREMAP_DONTUNMAP : 0);
    if (mremap(from, bytes, bytes, flags, to) != to)
        WRONG("mremap: %s", strerror(errno));
}

/* What comes of the device's pages after a move: those that stay where they were, those that went,
 * and where they came from. */
static void moved_in_part(bool before, bool dontunmap, bool thp, size_t offset)
{
    size_t pages = HUGE / PAGE, rest = pages - offset;
    int *memory = thp ? huge(HUGE, PROT_READ | PROT_WRITE) : small(HUGE);
    int *mirror = anonymous(pages), *from = memory + offset * INTS;
    int *to = aligned(HUGE, PROT_READ | PROT_WRITE), *there = to + offset * INTS;
    int first = (int)(offset * INTS);
    snprintf(label, sizeof(label), "%s, %sunmapped, huge %d, from page %zu",
             before ? "before" : "after", dontunmap ? "not " : "", thp, offset);
    fill(memory, pages, 0);
    if (before) {
        move((char *)from, (char *)there, rest * PAGE, dontunmap);
        to_device(there, rest, mirror);
        HOLDS(mirror, rest, first);
        if (offset)
            to_device(memory, offset, mirror);
    } else {
        to_device(memory, pages, mirror);
        move((char *)from, (char *)there, rest * PAGE, dontunmap);
        HOLDS(mirror, pages, 0);
    }
    HOLDS(there, rest, first);
    HOLDS(memory, offset, 0);
    if (dontunmap)
        ALL(from, rest * PAGE, 0);
    EQUAL(ask(dev, TO_DEV, there, rest, mirror), 0);
    HOLDS(mirror, rest, first);
    HOLDS(there, rest, first);
    munmap(memory, HUGE);
    munmap(to, HUGE);
    munmap(mirror, HUGE);
}

static void migrate_remap_fault(void)
{
    static const size_t offsets[] = {0, 128, 256};
    for (int kind = 0; kind < 8; kind++)
        for (size_t i = 0; i < LENGTH(offsets); i++)
            moved_in_part(kind & 1, kind & 2, kind & 4, offsets[i]);
}

/* A page of memory that came to the device in small ones comes back by itself. */
static void one_page_home(int *memory, int value, uint8_t rights)
{
    int *page = memory + 5 * INTS;
    EQUAL(*page, value);
    if (!coherent)
        SEEN(dev, page, 1, rights);
}

static void migrate_anon_huge_err(void)
{
    size_t pages = HUGE / PAGE;
    int *memory = huge(HUGE, PROT_READ | PROT_WRITE), *mirror = anonymous(pages), *to;
    fill(memory, pages, 0);
    fail_next_allocation();
    to_device(memory, pages, mirror);
    HOLDS(mirror, pages, 0);
    SEEN(dev, memory, pages, here(2));
    one_page_home(memory, 5 * INTS, 2);
    HOLDS(memory, pages, 0);
    to = aligned(HUGE, PROT_READ | PROT_WRITE);
    move((char *)memory, (char *)to, HUGE, false);
    HOLDS(to, pages, 0);
    to = huge(HUGE, PROT_READ | PROT_WRITE);
    fill(to, pages, 7);
    to_device(to, pages, mirror);
    HOLDS(mirror, pages, 7);
    fail_next_allocation();
    EQUAL(ask(dev, TO_SYS, to, pages, NULL), 0);
    SEEN(dev, to, pages, 0x02);
    HOLDS(to, pages, 7);
}

static void migrate_anon_huge_zero_err(void)
{
    size_t pages = HUGE / PAGE;
    int *memory = huge(HUGE, PROT_READ), *mirror = anonymous(pages);
    CHECK(*(volatile int *)memory == 0);
    fail_next_allocation();
    memset(mirror, 0xEE, HUGE);
    to_device(memory, pages, mirror);
    ALL(mirror, HUGE, 0);
    SEEN(dev, memory, pages, here(1));
    one_page_home(memory, 0, 1);
    ALL(memory, HUGE, 0);
    memory = huge(HUGE, PROT_READ);
    CHECK(*(volatile int *)memory == 0);
    to_device(memory, pages, mirror);
    fail_next_allocation();
    EQUAL(ask(dev, TO_SYS, memory, pages, NULL), 0);
    ALL(memory, HUGE, 0);
}

/* Of small pages one is left where it is, and once. */
static void fail_small(void)
{
    int *memory = anonymous(8), *mirror = anonymous(8);
    fill(memory, 8, 0);
    fail_next_allocation();
    EQUAL(ask(dev, TO_DEV, memory, 8, mirror), -ENOENT);
    SEEN(dev, memory, 1, 0x02);
    SEEN(dev, memory + INTS, 7, here(2));
    to_device(memory, 8, mirror);
    HOLDS(mirror, 8, 0);
    fail_next_allocation();
    EQUAL(ask(dev, TO_SYS, memory, 8, NULL), 0);
    EQUAL(cpages, 7);
    HOLDS(memory, 8, 0);
}

static double seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static void measure(size_t bytes, bool thp, int rounds)
{
    double there = 0, back = 0;
    for (int i = 0; i < rounds; i++) {
        int *memory = thp ? huge(bytes, PROT_READ | PROT_WRITE) : small(bytes);
        int *mirror = anonymous(bytes / PAGE);
        double began;
        fill(memory, bytes / PAGE, i);
        began = seconds();
        to_device(memory, bytes / PAGE, mirror);
        there += seconds() - began;
        began = seconds();
        EQUAL(ask(dev, TO_SYS, memory, bytes / PAGE, NULL), 0);
        back += seconds() - began;
        HOLDS(memory, bytes / PAGE, i);
        munmap((char *)memory, bytes);
        munmap(mirror, bytes);
    }
    printf("%4.1f MiB %s: %7.3f ms there, %7.3f ms back, %5.2f and %5.2f GB/s\n",
           (double)bytes / (1 << 20), thp ? "huge " : "small", there * 1e3 / rounds,
           back * 1e3 / rounds, rounds * (double)bytes / there / 1e9,
           rounds * (double)bytes / back / 1e9);
}

static void benchmark_thp_migration(void)
{
    for (size_t bytes = HUGE / 4; bytes <= 4 * HUGE; bytes *= 2)
        for (int thp = 0; thp < 2; thp++)
            measure(bytes, thp, 3);
    measure(128 * HUGE, true, 1); /* as much as Linux's own test has in one ioctl */
}

/* ---- userfaultfd ---------------------------------------------------------------------------- */

static void *copy_in(void *argument)
{
    int uffd = *(int *)argument;
    void *source = map(PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
    memset(source, 0xAB, PAGE);
    for (int page = 0; page < 4; page++) {
        struct uffd_msg message;
        struct uffdio_copy copy = {.src = (uintptr_t)source, .len = PAGE};
        if (read(uffd, &message, sizeof(message)) != sizeof(message))
            return "no fault came";
        copy.dst = message.arg.pagefault.address & ~(PAGE - 1);
        usleep(2000);
        if (ioctl(uffd, UFFDIO_COPY, &copy))
            return strerror(errno);
    }
    return NULL;
}

static void userfaultfd_read(void)
{
    char *memory = (char *)anonymous(4), *mirror = (char *)anonymous(4);
    struct uffdio_api api = {.api = UFFD_API};
    struct uffdio_register range = {.range = {(uintptr_t)memory, 4 * PAGE},
                                    .mode = UFFDIO_REGISTER_MODE_MISSING};
    int uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
    pthread_t thread;
    void *complaint;
    CHECK(uffd >= 0);
    CHECK(!ioctl(uffd, UFFDIO_API, &api));
    CHECK(!ioctl(uffd, UFFDIO_REGISTER, &range));
    CHECK(!pthread_create(&thread, NULL, copy_in, &uffd));
    EQUAL(ask(dev, READ_UNLOCKED, memory, 4, mirror), 0);
    EQUAL(cpages, 4);
    EQUAL(faults, 1);
    CHECK(!pthread_join(thread, &complaint));
    if (complaint)
        WRONG("the program's handler: %s", (char *)complaint);
    ALL(mirror, 4 * PAGE, 0xAB);
    ALL(memory, 4 * PAGE, 0xAB);
    close(uffd);
}

#define ROW(name)                                                                                  \
    {                                                                                              \
#name, name                                                                                \
    }

static const struct {
    const char *name;
    void (*run)(void);
} rows[] = {
    ROW(open_close),
    ROW(anon_read),
    ROW(anon_read_prot),
    ROW(anon_write),
    ROW(anon_write_prot),
    ROW(anon_write_child),
    ROW(anon_write_child_shared),
    ROW(anon_write_huge),
    ROW(anon_write_hugetlbfs),
    ROW(file_read),
    ROW(file_write),
    ROW(migrate),
    ROW(migrate_file_private),
    ROW(migrate_fault),
    ROW(migrate_release),
    ROW(migrate_shared),
    ROW(migrate_mixed),
    ROW(migrate_multiple),
    ROW(anon_read_multiple),
    ROW(anon_teardown),
    ROW(mixedmap),
    ROW(snapshot),
    ROW(compound),
    ROW(compound_transparent),
    ROW(double_map),
    ROW(exclusive),
    ROW(exclusive_mprotect),
    ROW(exclusive_cow),
    ROW(hmm_gup_test),
    ROW(hmm_cow_in_device),
    ROW(migrate_anon_huge_empty),
    ROW(migrate_anon_huge_zero),
    ROW(migrate_anon_huge_free),
    ROW(migrate_anon_huge_fault),
    ROW(migrate_anon_huge_counts),
    ROW(migrate_partial_unmap_fault),
    ROW(migrate_remap_fault),
    ROW(migrate_anon_huge_err),
    ROW(migrate_anon_huge_zero_err),
    ROW(fail_small),
    ROW(benchmark_thp_migration),
    ROW(userfaultfd_read),
};

int main(int argc, char **argv)
{
    if (argc != 4) {
        for (size_t i = 0; i < LENGTH(rows); i++)
            printf("%s\n", rows[i].name);
        return 2;
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    numbers[0] = atoi(argv[2]);
    numbers[1] = atoi(argv[3]);
    coherent = numbers[0] > 1;
    dev = open_device(numbers[0]);
    for (size_t i = 0; i < LENGTH(rows); i++)
        if (!strcmp(rows[i].name, argv[1])) {
            rows[i].run();
            printf("ok\n");
            return 0;
        }
    WRONG("there is no test %s", argv[1]);
}
