/* The bench's client. Prints one number.
 *   fault FILE PAGES THREADS COLD   ns a fault: every page touched once, shuffled (MADV_RANDOM)
 *   resident FILE PAGES             ns a page: loads of pages that are mapped already
 *   seqmmap FILE PAGES              MB/s: a cold file read in order through mmap
 *   read | write FILE PAGES         MB/s: by 1 MiB read(2) of a cold file, write(2)
 *   stream BLOCKS                   MB/s: y += 2 * x over blocks of two memfds, by copying each
 * into a third, computing there, copying y back, and punching bare BLOCKS                     MB/s:
 * copy 2 MiB blocks between two memfds and punch, both ways
 */
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096UL
#define BLOCK (2UL << 20)
#define MIB (1UL << 20)

static volatile char *map;
static uint32_t *order;
static size_t pages, threads;
static volatile char sink;

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void need(int condition, const char *what)
{
    if (condition)
        return;
    perror(what);
    exit(1);
}

static void *touch(void *arg)
{
    size_t share = pages / threads, first = (size_t)arg * share;
    for (size_t i = first; i < first + share; i++)
        sink = map[order[i] * PAGE];
    return NULL;
}

static double faults(int fd)
{
    pthread_t thread[64];
    uint64_t random = 88172645463325252ULL;
    double begin;
    map = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    order = malloc(pages * sizeof(*order));
    need(map != MAP_FAILED && order && threads <= 64, "mmap");
    madvise((void *)map, pages * PAGE, MADV_RANDOM);
    for (size_t i = 0; i < pages; i++)
        order[i] = (uint32_t)i;
    for (size_t i = pages - 1; i; i--) {
        uint32_t other, mine = order[i];
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        other = (uint32_t)(random % (i + 1));
        order[i] = order[other];
        order[other] = mine;
    }
    begin = now();
    for (size_t i = 1; i < threads; i++)
        need(!pthread_create(&thread[i], NULL, touch, (void *)i), "thread");
    touch(NULL);
    for (size_t i = 1; i < threads; i++)
        pthread_join(thread[i], NULL);
    return (now() - begin) / (double)pages * 1e9;
}

static double resident(int fd)
{
    double begin;
    uint64_t sum = 0;
    map = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    need(map != MAP_FAILED, "mmap");
    for (int round = 0; round < 9; round++) {
        if (round == 1)
            begin = now();
        for (size_t i = 0; i < pages * PAGE / 8; i++)
            sum += ((volatile uint64_t *)map)[i];
    }
    sink = (char)sum;
    return (now() - begin) / 8 / (double)pages * 1e9;
}

static double stream(int fd, const char *how)
{
    char *buffer = malloc(MIB);
    double begin;
    need(buffer != NULL, "memory");
    memset(buffer, 1, MIB);
    if (how[0] == 's') {
        map = mmap(NULL, pages * PAGE, PROT_READ, MAP_SHARED, fd, 0);
        need(map != MAP_FAILED, "mmap");
    }
    begin = now();
    for (size_t at = 0; at < pages * PAGE; at += MIB) {
        if (how[0] == 's')
            memcpy(buffer, (char *)map + at, MIB);
        else if (how[0] == 'r')
            need(pread(fd, buffer, MIB, (off_t)at) == (ssize_t)MIB, "read");
        else
            need(pwrite(fd, buffer, MIB, (off_t)at) == (ssize_t)MIB, "write");
    }
    return (double)(pages * PAGE) / 1e6 / (now() - begin);
}

static double bare(size_t blocks)
{
    int fd[2] = {memfd_create("a", 0), memfd_create("b", 0)};
    char *at[2];
    double begin;
    for (int i = 0; i < 2; i++) {
        need(!ftruncate(fd[i], (off_t)(blocks * BLOCK)), "memfd");
        at[i] = mmap(NULL, blocks * BLOCK, PROT_READ | PROT_WRITE, MAP_SHARED, fd[i], 0);
        need(at[i] != MAP_FAILED, "mmap");
    }
    memset(at[0], 1, blocks * BLOCK);
    begin = now();
    for (int from = 0; from < 2; from++)
        for (size_t b = 0; b < blocks; b++) {
            off_t offset = (off_t)(b * BLOCK);
            need(pwrite(fd[!from], at[from] + offset, BLOCK, offset) == (ssize_t)BLOCK, "copy");
            need(!fallocate(fd[from], FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, BLOCK),
                 "punch");
        }
    return 2.0 * (double)(blocks * BLOCK) / 1e6 / (now() - begin);
}

static double stream_axpy(size_t blocks)
{
    int fd[3] = {memfd_create("x", 0), memfd_create("y", 0), memfd_create("device", 0)};
    char *buffer = malloc(BLOCK);
    float *device;
    double begin;
    memset(buffer, 0, BLOCK);
    for (int i = 0; i < 3; i++)
        need(!ftruncate(fd[i], (off_t)(blocks * BLOCK)), "memfd");
    for (size_t b = 0; b < blocks; b++)
        for (int i = 0; i < 2; i++)
            need(pwrite(fd[i], buffer, BLOCK, (off_t)(b * BLOCK)) == (ssize_t)BLOCK, "write");
    device = mmap(NULL, 2 * BLOCK, PROT_READ | PROT_WRITE, MAP_SHARED, fd[2], 0);
    need(device != MAP_FAILED, "mmap");
    begin = now();
    for (size_t b = 0; b < blocks; b++) {
        for (int i = 0; i < 2; i++) {
            off_t in = (off_t)(b * BLOCK), out = (off_t)((size_t)i * BLOCK);
            for (size_t left = BLOCK; left;) {
                ssize_t n = copy_file_range(fd[i], &in, fd[2], &out, left, 0);
                need(n > 0, "copy");
                left -= (size_t)n;
            }
            need(!fallocate(fd[i], FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)(b * BLOCK),
                            BLOCK),
                 "punch");
        }
        for (size_t i = 0; i < BLOCK / sizeof(float); i++)
            device[BLOCK / sizeof(float) + i] += 2 * device[i];
        for (int i = 0; i < 2; i++)
            need(pwrite(fd[i], (char *)device + (size_t)i * BLOCK, BLOCK, (off_t)(b * BLOCK)) ==
                     (ssize_t)BLOCK,
                 "copy back");
        need(!fallocate(fd[2], FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 2 * BLOCK), "punch");
    }
    return 2.0 * (double)(blocks * BLOCK) / 1e6 / (now() - begin);
}

int main(int argc, char **argv)
{
    double result;
    int fd;
    if (argc == 3 && !strcmp(argv[1], "stream")) {
        printf("%f\n", stream_axpy(strtoul(argv[2], NULL, 0)));
        return 0;
    }
    if (argc == 3 && !strcmp(argv[1], "bare")) {
        printf("%f\n", bare(strtoul(argv[2], NULL, 0)));
        return 0;
    }
    if (argc < 4)
        return 2;
    fd = open(argv[2], O_RDWR);
    need(fd >= 0, argv[2]);
    pages = strtoul(argv[3], NULL, 0);
    threads = argc > 4 ? strtoul(argv[4], NULL, 0) : 1;
    if ((argc > 5 && argv[5][0] == '1') || argv[1][0] == 's' || !strcmp(argv[1], "read"))
        posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    if (!strcmp(argv[1], "fault"))
        result = faults(fd);
    else if (!strcmp(argv[1], "resident"))
        result = resident(fd);
    else
        result = stream(fd, argv[1]);
    printf("%f\n", result);
    return 0;
}
