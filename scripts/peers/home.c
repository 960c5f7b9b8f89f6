/* A program for the bench, to be run under hmmfs run or by itself.
 *     home PAGES      prints PID@ADDRESS+LENGTH of PAGES pages that it has filled, waits for a
 * line, prints ns a touch of them, shuffled; and so on until its input ends home PAGES new  the
 * same without waiting, of pages that nobody had before */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096UL

static uint64_t random_next(void)
{
    static uint64_t x = 88172645463325252ULL;
    x ^= x << 13;
    x ^= x >> 7;
    return x ^= x << 17;
}

static double touch(volatile char *map, const uint32_t *order, size_t pages)
{
    struct timespec begin, end;
    clock_gettime(CLOCK_MONOTONIC, &begin);
    for (size_t i = 0; i < pages; i++)
        map[order[i] * PAGE]++;
    clock_gettime(CLOCK_MONOTONIC, &end);
    return ((double)(end.tv_sec - begin.tv_sec) * 1e9 + (double)(end.tv_nsec - begin.tv_nsec)) /
           (double)pages;
}

int main(int argc, char **argv)
{
    size_t pages = argc > 1 ? strtoul(argv[1], NULL, 0) : 0;
    uint32_t *order = malloc(pages * sizeof(*order));
    char *map =
        mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (!pages || !order || map == MAP_FAILED || madvise(map, pages * PAGE, MADV_NOHUGEPAGE))
        return 2;
    for (size_t i = 0; i < pages; i++)
        order[i] = (uint32_t)i;
    for (size_t i = pages - 1; i; i--) {
        uint32_t other = (uint32_t)(random_next() % (i + 1)), mine = order[i];
        order[i] = order[other];
        order[other] = mine;
    }
    if (argc > 2) {
        printf("%f\n", touch(map, order, pages));
        return 0;
    }
    memset(map, 1, pages * PAGE);
    printf("%d@%p+%zu\n", getpid(), (void *)map, pages * PAGE);
    fflush(stdout);
    while (getchar() == '\n') {
        printf("%f\n", touch(map, order, pages));
        fflush(stdout);
    }
    return 0;
}
