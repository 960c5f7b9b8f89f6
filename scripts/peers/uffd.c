/* A peer for the bench: the shortest userfaultfd handler there can be.
 *     uffd PAGES       ns a fault: shuffled pages of a memfd, each filled by UFFDIO_COPY
 *     uffd PAGES own   the same of private memory, each stored to */
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096UL

static int uffd;
static char *source;

static void *serve(void *arg)
{
    struct uffd_msg message;
    (void)arg;
    while (read(uffd, &message, sizeof(message)) == sizeof(message)) {
        struct uffdio_copy copy = {.dst = message.arg.pagefault.address & ~(PAGE - 1),
                                   .src = (uintptr_t)source,
                                   .len = PAGE};
        if (ioctl(uffd, UFFDIO_COPY, &copy) < 0)
            exit(1);
    }
    return NULL;
}

int main(int argc, char **argv)
{
    int own = argc > 2;
    size_t pages = argc > 1 ? strtoul(argv[1], NULL, 0) : 0;
    struct uffdio_api api = {.api = UFFD_API};
    struct uffdio_register range = {.mode = UFFDIO_REGISTER_MODE_MISSING};
    struct timespec begin, end;
    uint64_t random = 88172645463325252ULL;
    uint32_t *order = malloc(pages * sizeof(*order));
    volatile char *map, sink;
    pthread_t thread;
    int fd = memfd_create("a", 0);
    uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
    if (!pages || fd < 0 || ftruncate(fd, (off_t)(pages * PAGE)) || uffd < 0)
        return 2;
    map = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE,
               own ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED, own ? -1 : fd, 0);
    madvise((void *)map, pages * PAGE, MADV_NOHUGEPAGE);
    source = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    source[0] = 1;
    range.range = (struct uffdio_range){(uintptr_t)map, pages * PAGE};
    if (ioctl(uffd, UFFDIO_API, &api) || ioctl(uffd, UFFDIO_REGISTER, &range))
        return 1;
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
    pthread_create(&thread, NULL, serve, NULL);
    clock_gettime(CLOCK_MONOTONIC, &begin);
    for (size_t i = 0; i < pages; i++)
        sink = own ? map[order[i] * PAGE]++ : map[order[i] * PAGE];
    clock_gettime(CLOCK_MONOTONIC, &end);
    (void)sink;
    printf("%f\n",
           ((double)(end.tv_sec - begin.tv_sec) * 1e9 + (double)(end.tv_nsec - begin.tv_nsec)) /
               (double)pages);
    return 0;
}
