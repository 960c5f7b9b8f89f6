/* What the programs of test_programs.py share. They check themselves: each says where its memory
 * is, "PID@ADDRESS+LENGTH", and in the end "ok", or what was wrong. */
#ifndef CHECK_H
#define CHECK_H
#define _GNU_SOURCE
#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096UL
#define RW (PROT_READ | PROT_WRITE)
#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            printf("%s:%d: %s (errno %d)\n", __FILE__, __LINE__, #condition, errno);               \
            fflush(stdout);                                                                        \
            _exit(1);                                                                              \
        }                                                                                          \
    } while (0)

static inline uint64_t now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

static inline uint32_t next(uint32_t *seed)
{
    *seed ^= *seed << 13;
    *seed ^= *seed >> 17;
    *seed ^= *seed << 5;
    return *seed;
}

static inline char *map_at(void *at, size_t length, int flags)
{
    char *got = mmap(at, length, RW, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);
    CHECK(got != MAP_FAILED);
    return got;
}

static inline void say_where(const void *at, size_t length)
{
    printf("%d@%#lx+%zu\n", getpid(), (unsigned long)at, length);
    fflush(stdout);
}

/* Every eighth byte of a page, or rather word, tells what it is. */
static inline void stamp(void *at, size_t length, uint64_t value)
{
    uint64_t *word = at;
    for (size_t i = 0; i < length / 8; i += 16)
        word[i] = value + i;
}

static inline bool is_stamped(const void *at, size_t length, uint64_t value)
{
    const uint64_t *word = at;
    for (size_t i = 0; i < length / 8; i += 16)
        if (word[i] != value + i) {
            fprintf(stderr, "word %zu is %#lx instead of %#lx\n", i, word[i], value + i);
            return false;
        }
    return true;
}

static inline bool is_zero(const void *at, size_t length)
{
    const uint64_t *word = at;
    for (size_t i = 0; i < length / 8; i += 16)
        if (word[i]) {
            fprintf(stderr, "word %zu is %#lx instead of 0\n", i, word[i]);
            return false;
        }
    return true;
}
#endif
