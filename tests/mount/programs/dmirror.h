/* What programs that talk to /dev/hmm_dmirrorN share: its ioctls, memory to try them on, and checks
 * that end the program with a sentence. */
#ifndef DMIRROR_H
#define DMIRROR_H
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE ((size_t)4096)
#define HUGE ((size_t)2 << 20)
#define INTS (PAGE / sizeof(int))
#define LENGTH(array) (sizeof(array) / sizeof(*(array)))

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif
#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif

enum number {
    READ,
    WRITE,
    TO_DEV,
    TO_SYS,
    SNAPSHOT,
    EXCLUSIVE,
    CHECK_EXCLUSIVE,
    RELEASE,
    FLAGS,
    READ_UNLOCKED
};

struct command {
    uint64_t address, pointer, npages, cpages, faults;
};

static uint64_t cpages, faults; /* of the last ioctl that did not fail */
static char label[128];         /* which of several combinations is tried */

__attribute__((format(printf, 3, 4))) static _Noreturn void wrong(const char *function, int line,
                                                                  const char *format, ...)
{
    va_list rest;
    printf("%s, line %d", function, line);
    if (*label)
        printf(" (%s)", label);
    printf(": ");
    va_start(rest, format);
    vprintf(format, rest);
    va_end(rest);
    printf("\n");
    exit(1);
}

#define WRONG(...) wrong(__func__, __LINE__, __VA_ARGS__)

#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition))                                                                          \
            WRONG("%s is false (errno %d)", #condition, errno);                                    \
    } while (0)

#define EQUAL(expression, wanted)                                                                  \
    do {                                                                                           \
        long found_ = (long)(expression), wanted_ = (long)(wanted);                                \
        if (found_ != wanted_)                                                                     \
            WRONG("%s is %ld (%#lx), not %ld", #expression, found_, (unsigned long)found_,         \
                  wanted_);                                                                        \
    } while (0)

static int open_device(int number)
{
    char path[32];
    int fd;
    snprintf(path, sizeof(path), "/dev/hmm_dmirror%d", number);
    fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0)
        WRONG("%s: %s", path, strerror(errno));
    return fd;
}

/* 0, or -errno: then the struct must be as it was. */
static int ask(int fd, enum number number, void *memory, size_t pages, void *mirror)
{
    struct command command = {(uintptr_t)memory, (uintptr_t)mirror, pages, 77, 78};
    if (ioctl(fd, _IOWR('H', number, struct command), &command) < 0) {
        int error = errno;
        EQUAL(command.cpages, 77);
        EQUAL(command.faults, 78);
        return -error;
    }
    cpages = command.cpages;
    faults = command.faults;
    return 0;
}

/* ---- memory ------------------------------------------------------------------------------- */

static void *map(size_t bytes, int rights, int flags, int fd)
{
    void *memory = mmap(NULL, bytes, rights, flags, fd, 0);
    if (memory == MAP_FAILED)
        WRONG("mmap: %s", strerror(errno));
    return memory;
}

static int *anonymous(size_t pages)
{
    return map(pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
}

/* Memory, from a multiple of 2 MiB on, for huge pages, with as much again on both sides. */
static void *aligned(size_t bytes, int rights)
{
    char *start = map(bytes + 4 * HUGE, rights, MAP_PRIVATE | MAP_ANONYMOUS, -1);
    return start + HUGE + (HUGE - (uintptr_t)start % HUGE) % HUGE;
}

static void *huge(size_t bytes, int rights)
{
    void *memory = aligned(bytes, rights);
    CHECK(!madvise(memory, bytes, MADV_HUGEPAGE));
    return memory;
}

static void fill(int *memory, size_t pages, int from)
{
    for (size_t i = 0; i < pages * INTS; i++)
        memory[i] = (int)i + from;
}

#define HOLDS(memory, pages, from) holds(__func__, __LINE__, #memory, memory, pages, from)

static void holds(const char *function, int line, const char *name, const int *memory, size_t pages,
                  int from)
{
    for (size_t i = 0; i < pages * INTS; i++)
        if (memory[i] != (int)i + from)
            wrong(function, line, "%s[%zu] is %d, not %d", name, i, memory[i], (int)i + from);
}

#define ALL(memory, bytes, value) all(__func__, __LINE__, #memory, memory, bytes, value)

static void all(const char *function, int line, const char *name, const void *memory, size_t bytes,
                uint8_t value)
{
    const uint8_t *byte = memory;
    for (size_t i = 0; i < bytes; i++)
        if (byte[i] != value)
            wrong(function, line, "byte %zu of %s is %02x, not %02x", i, name, byte[i], value);
}

/* What a snapshot of pages has, one byte each. */
#define SEEN(fd, memory, pages, value)                                                             \
    do {                                                                                           \
        uint8_t *seen = calloc(1, pages);                                                          \
        EQUAL(ask(fd, SNAPSHOT, memory, pages, seen), 0);                                          \
        EQUAL(cpages, pages);                                                                      \
        ALL(seen, pages, value);                                                                   \
        free(seen);                                                                                \
    } while (0)

static pid_t begin_child(void)
{
    pid_t child;
    fflush(stdout);
    child = fork();
    CHECK(child >= 0);
    return child;
}

static _Noreturn void end_child(void)
{
    fflush(stdout);
    _exit(0);
}

static void child_was_well(pid_t child)
{
    int status;
    CHECK(waitpid(child, &status, 0) == child);
    if (!WIFEXITED(status) || WEXITSTATUS(status))
        WRONG("the child ended with status %#x", (unsigned)status);
}

#endif
