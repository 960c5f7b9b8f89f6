/* adder FILE PAGES THREADS SECONDS SEED: atomic adds on random words of the file's first pages
 * through mmap; prints how many. */
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

static _Atomic uint64_t *words;
static uint64_t pages;
static _Atomic int stop;
static _Atomic uint64_t total;

static void *add(void *arg)
{
    uint64_t random = (uint64_t)(uintptr_t)arg * 2654435761u + 1, adds = 0;
    for (; !stop; adds++) {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        atomic_fetch_add(&words[random % (pages * 512)], 1);
    }
    atomic_fetch_add(&total, adds);
    return NULL;
}

int main(int argc, char **argv)
{
    pthread_t thread[16];
    uintptr_t threads, seed;
    int fd;
    if (argc != 6)
        return 2;
    fd = open(argv[1], O_RDWR);
    pages = strtoull(argv[2], NULL, 0);
    threads = strtoul(argv[3], NULL, 0);
    seed = strtoul(argv[5], NULL, 0);
    words = mmap(NULL, pages * 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (fd < 0 || words == MAP_FAILED || threads > 16)
        return 1;
    for (uintptr_t i = 0; i < threads; i++)
        pthread_create(&thread[i], NULL, add, (void *)(seed * 16 + i + 1));
    usleep((useconds_t)(atof(argv[4]) * 1e6));
    stop = 1;
    for (uintptr_t i = 0; i < threads; i++)
        pthread_join(thread[i], NULL);
    printf("%llu\n", (unsigned long long)total);
    return 0;
}
