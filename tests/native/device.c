/* A worker with true page faults, without a mount: threads of another process count up in a region
 * through its window while this one migrates the pages back and forth and reads them on the host.
 *
 *   device SECONDS SEED POLICY     0..3; VRAM is half of the region
 *
 * No count may be lost, no page may be seen older than it was seen before, and the directory must
 * be whole at the end.
 */
#include "include/hmmfs.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

#define INO (1ULL << 32)
#define PAGES 1024 /* two blocks */
#define BYTES ((size_t)PAGES * HM_PAGE_SIZE)
#define WORDS (BYTES / 8)
#define THREADS 3

struct shared {
    _Atomic bool stop;
    _Atomic uint64_t adds, loads;
};

static struct shared *shared;
static _Atomic uint64_t *window;
static struct hm_core *core;

#define CHECK(condition, ...)                                                                      \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "device: %s: ", #condition);                                           \
            fprintf(stderr, __VA_ARGS__);                                                          \
            fprintf(stderr, " (errno %d)\n", errno);                                               \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

#include "descriptors.h"

static uint64_t draw(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

/* ---- the worker --------------------------------------------------------------------------- */

static void *count_up(void *arg)
{
    uint64_t seed = (uint64_t)(uintptr_t)arg * 2654435761u + 1, adds = 0, loads = 0;
    uint64_t *seen = calloc(WORDS, sizeof(*seen));
    while (!shared->stop) {
        uint64_t random = draw(&seed), at = (random >> 20) % 16 * 64 * 512 + (random >> 40) % 512;
        uint64_t now = random % 4 ? atomic_load(&window[at]) : atomic_fetch_add(&window[at], 1);
        CHECK(now >= seen[at], "word %llu: %llu after %llu", (unsigned long long)at,
              (unsigned long long)now, (unsigned long long)seen[at]);
        seen[at] = now;
        random % 4 ? loads++ : adds++;
    }
    atomic_fetch_add(&shared->adds, adds);
    atomic_fetch_add(&shared->loads, loads);
    free(seen);
    return NULL;
}

static void worker(int channel, uint64_t seed)
{
    struct uffdio_api api = {UFFD_API, UFFD_FEATURE_PAGEFAULT_FLAG_WP, 0};
    struct uffdio_register range = {.mode = UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP};
    pthread_t threads[THREADS];
    int pool, uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    CHECK(uffd >= 0 && !ioctl(uffd, UFFDIO_API, &api), "userfaultfd");
    receive_fd(channel, &pool);
    window = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, pool, 0);
    CHECK(window != MAP_FAILED, "mmap");
    range.range = (struct uffdio_range){(uintptr_t)window, BYTES};
    CHECK(!ioctl(uffd, UFFDIO_REGISTER, &range), "register");
    send_fd(channel, (uintptr_t)window, uffd);
    receive_fd(channel, &pool);
    for (uintptr_t i = 0; i < THREADS; i++)
        CHECK(!pthread_create(&threads[i], NULL, count_up, (void *)(seed + i)), "thread");
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    _exit(0);
}

/* ---- the service: the shortest that evicts -------------------------------------------------- */

static _Atomic uint64_t refused, finished;
static _Atomic bool closing;

static void evict_for(const struct hm_event *event)
{
    struct hm_job out = {.kind = HM_JOB_MIGRATE,
                         .flags = HM_JOB_QUIET | HM_JOB_EVICT,
                         .ino = INO,
                         .block = !event->block,
                         .count = HM_BLOCK_PAGES};
    struct hm_job again = {.kind = HM_JOB_DEVICE_FAULT,
                           .flags = HM_JOB_QUIET,
                           .ino = INO,
                           .block = event->block,
                           .node = event->node,
                           .faulted_at = event->faulted_at};
    CHECK(event->result == -ENOSPC || event->result == -EBUSY, "device fault: %d", event->result);
    atomic_fetch_add(&refused, 1);
    memcpy(again.pages, event->pages, sizeof(again.pages));
    memcpy(again.stores, event->stores, sizeof(again.stores));
    if (event->result == -ENOSPC)
        CHECK(!hm_submit(core, &out), "submit");
    usleep(200);
    CHECK(!hm_submit(core, &again), "submit");
}

static void *events_main(void *arg)
{
    struct hm_event events[64];
    struct pollfd ready = {.fd = hm_event_fd(core), .events = POLLIN};
    (void)arg;
    while (!closing) {
        int n;
        poll(&ready, 1, 100);
        n = hm_events(core, events, 64);
        for (int i = 0; i < n; i++)
            if (events[i].kind == HM_EVENT_DEVICE_FAULT)
                evict_for(&events[i]);
            else
                atomic_fetch_add(&finished, 1);
    }
    return NULL;
}

static void run_job(struct hm_job job)
{
    uint64_t before = finished;
    CHECK(!hm_submit(core, &job), "submit");
    while (finished == before)
        usleep(20);
}

static uint64_t sum_at_home(void)
{
    static uint64_t words[512];
    uint64_t total = 0;
    int fd;
    for (uint64_t block = 0; block < 2; block++)
        run_job((struct hm_job){
            .kind = HM_JOB_MIGRATE, .ino = INO, .block = block, .count = HM_BLOCK_PAGES});
    fd = hm_pool_descriptor(core, INO, HM_HOST);
    for (int page = 0; page < PAGES; page++) {
        CHECK(pread(fd, words, sizeof(words), (off_t)page * HM_PAGE_SIZE) == sizeof(words),
              "pread");
        for (int i = 0; i < 512; i++)
            total += words[i];
    }
    close(fd);
    return total;
}

/* A fault that another's job had resolved may still be lined up for VRAM, with nobody waiting: it
 * takes pages to the device again, maybe while they are summed up. */
static uint64_t sum(void)
{
    struct hm_node_stats before, after;
    uint64_t total = 0;
    for (int tries = 0; tries < 200; tries++) {
        hm_node_stats_get(core, 1, &before);
        total = sum_at_home();
        hm_node_stats_get(core, 1, &after);
        if (before.pages_in == after.pages_in && !after.used)
            break;
        usleep(10000);
    }
    return total;
}

static void report(void)
{
    struct hm_node_stats node;
    char text[256] = "";
    uint64_t total;
    hm_node_stats_get(core, 1, &node);
    total = sum();
    printf(
        "adds %llu loads %llu faults %llu in %llu batches, refused %llu, pages in %llu out %llu, "
        "evicted %llu\n",
        (unsigned long long)shared->adds, (unsigned long long)shared->loads,
        (unsigned long long)node.faults, (unsigned long long)node.fault_batches,
        (unsigned long long)refused, (unsigned long long)node.pages_in,
        (unsigned long long)node.pages_out, (unsigned long long)node.evicted_pages);
    CHECK(total == shared->adds, "%llu adds, sum %llu", (unsigned long long)shared->adds,
          (unsigned long long)total);
    /* A fault that another's job had resolved may still be lined up for VRAM, with nobody waiting.
     */
    for (int tries = 0; hm_audit(core, text, sizeof(text)) && tries < 200; tries++)
        usleep(10000);
    text[0] = 0;
    CHECK(!hm_audit(core, text, sizeof(text)), "audit: %s", text);
    CHECK(node.peak <= node.capacity, "VRAM");
}

int main(int argc, char **argv)
{
    struct hm_config config = {.nodes =
                                   HM_MAX_NODES, /* most have nothing, but tables end with them */
                               .threads = 1,
                               .keep_clean = 1,
                               .capacity = {8192, HM_BLOCK_PAGES, HM_BLOCK_PAGES}};
    static const struct hm_prefetch policies[] = {{HM_PREFETCH_TABLE, {1, 1, 1, 1}},
                                                  {HM_PREFETCH_TABLE, {16, 64, 512, 512}},
                                                  {HM_PREFETCH_DENSITY, {51}},
                                                  {HM_PREFETCH_SEQUENTIAL, {64}}};
    static const uint64_t trace[] = {3, 700, 3, 12, 513};
    struct hm_eviction evicting = {.seed = 5, .trace = trace, .length = 5};
    struct hm_region_record *record;
    unsigned long policy;
    int channel[2], uffd, pool, status;
    pthread_t events_thread;
    uint64_t seed, address, end;
    pid_t pid;
    CHECK((argc == 4 || argc == 5) && (policy = strtoul(argv[3], NULL, 0)) < 4,
          "usage: device SECONDS SEED 0..3 [EVICTION]");
    evicting.kind = argc == 5 ? (uint32_t)strtoul(argv[4], NULL, 0) : HM_EVICT_ASK;
    seed = strtoull(argv[2], NULL, 0) + 1;
    shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(shared != MAP_FAILED && !socketpair(AF_UNIX, SOCK_SEQPACKET, 0, channel), "shared");
    pid = fork();
    if (!pid)
        worker(channel[1], seed * 31);
    CHECK(!hm_core_create(&config, &core), "core");
    for (uint32_t node = 0; node < config.nodes; node++)
        CHECK(!hm_prefetch_set(core, node, &policies[node ? policy : 0]), "policy");
    for (uint32_t node = 1; node < config.nodes; node++)
        CHECK(!hm_eviction_set(core, node, &evicting), "eviction");
    CHECK(!hm_region_create(core, INO, S_IFREG | 0600, 0, 0, &record), "create");
    CHECK(!hm_region_truncate(core, INO, BYTES), "size");
    CHECK(!pthread_create(&events_thread, NULL, events_main, NULL), "thread");
    pool = hm_pool_descriptor(core, INO, 1);
    CHECK(pool >= 0, "pool");
    send_fd(channel[0], 0, pool);
    address = receive_fd(channel[0], &uffd);
    CHECK(!hm_device_attach(core, 1, uffd, -1), "attach");
    CHECK(!hm_device_map(core, 1, INO, address, BYTES), "map");
    send_fd(channel[0], 0, pool);
    close(pool);
    end = now_ns() + (uint64_t)(atof(argv[1]) * 1e9);
    while (now_ns() < end) {
        uint64_t random = draw(&seed);
        struct hm_job job = {.kind = HM_JOB_MIGRATE,
                             .ino = INO,
                             .block = random & 1,
                             .node = (random >> 8) % 3,
                             .first = (random >> 16) % 500,
                             .count = 1 + (random >> 32) % 12};
        usleep(300);
        if (random >> 56 < 8)
            job.first = 0, job.count = HM_BLOCK_PAGES;
        run_job(job);
        if (waitpid(pid, &status, WNOHANG) == pid)
            CHECK(false, "the worker ended: %d", status);
    }
    shared->stop = true;
    CHECK(waitpid(pid, &status, 0) == pid && !status, "worker: %d", status);
    report();
    closing = true;
    pthread_join(events_thread, NULL);
    CHECK(!hm_device_detach(core, 1), "detach");
    hm_core_destroy(core);
    return 0;
}
