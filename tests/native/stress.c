/* The native core on a real mount, without Python, so that it can run under a sanitizer.
 *
 *   stress DIRECTORY SECONDS SEED EXPRESS     (root: it mounts)
 *
 * Only the namespace is simplified: a fixed root directory with the region files "sums", "clock"
 * and "scratch", served over the relay as pyfuse3 would. Programs are forked before any thread:
 *   adders  atomic adds through mmap on pages that devices keep taking away: the sum is exact
 *   watcher loads what a device writes: never older than the last write that had returned
 *   scribe  pwrite, pread (also O_DIRECT), mmap stores, truncate and punch against a shadow in its
 * memory A thread of this process calls meanwhile what control files and the service call.
 */
#include "include/hmmfs.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define FIRST_INO (1ULL << 32)
#define REGIONS 3
#define PAGES 1024 /* of each region at most: two blocks */
#define SUM_PAGES 6
#define CLOCK_PAGES 4

static const char *const names[REGIONS] = {"sums", "clock", "scratch"};

struct shared {
    _Atomic bool go, stop;
    _Atomic uint64_t completed[CLOCK_PAGES]; /* the last device write of the page that returned */
    _Atomic uint64_t adds, loads, scribbles;
};

static struct shared *shared;
static struct hm_core *core;
static struct hm_region_record *records[REGIONS];
static bool advising; /* dev1 is coherent then, and programs reach 300 of its pages */
static int relay_fd;
static const char *directory;

#define CHECK(condition, ...)                                                                      \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "stress: %s: ", #condition);                                           \
            fprintf(stderr, __VA_ARGS__);                                                          \
            fprintf(stderr, " (errno %d)\n", errno);                                               \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

static uint64_t draw(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

static int open_region(int index, int flags)
{
    char path[4096];
    int fd;
    snprintf(path, sizeof(path), "%s/%s", directory, names[index]);
    fd = open(path, O_RDWR | flags);
    CHECK(fd >= 0, "%s", path);
    return fd;
}

/* ---- programs ----------------------------------------------------------------------------- */

static _Atomic uint64_t *map_region(int index, size_t pages)
{
    void *map = mmap(NULL, pages * HM_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED,
                     open_region(index, 0), 0);
    CHECK(map != MAP_FAILED, "mmap");
    return map;
}

static void adder(uint64_t seed)
{
    _Atomic uint64_t *words = map_region(0, SUM_PAGES);
    uint64_t adds = 0;
    while (!shared->stop) {
        uint64_t random = draw(&seed);
        atomic_fetch_add(&words[random % SUM_PAGES * 512 + (random >> 32) % 512], 1);
        adds++;
    }
    atomic_fetch_add(&shared->adds, adds);
}

static void watcher(uint64_t seed)
{
    _Atomic uint64_t *words = map_region(1, CLOCK_PAGES);
    uint64_t loads = 0;
    while (!shared->stop) {
        uint64_t random = draw(&seed), page = random % CLOCK_PAGES;
        uint64_t floor = shared->completed[page];
        uint64_t seen = words[page * 512 + (random >> 32) % 512];
        CHECK(seen >= floor, "page %d: read %llu after %llu was written", (int)page,
              (unsigned long long)seen, (unsigned long long)floor);
        loads++;
    }
    atomic_fetch_add(&shared->loads, loads);
}

struct scribe {
    int fd, direct;
    uint8_t *map, *shadow;
    uint64_t size, seed;
};

static void scribe_resize(struct scribe *s)
{
    uint64_t size = draw(&s->seed) % (PAGES * HM_PAGE_SIZE) + 1;
    CHECK(!ftruncate(s->fd, (off_t)size), "ftruncate");
    if (size < s->size)
        memset(s->shadow + size, 0, s->size - size);
    s->size = size;
}

static void scribe_step(struct scribe *s)
{
    static uint8_t bytes[1 << 20];
    uint64_t at = draw(&s->seed) % s->size, left = s->size - at;
    uint64_t n = draw(&s->seed) % (1 + (draw(&s->seed) % 4 ? 8192 : sizeof(bytes) - 1)) + 1;
    uint32_t what = draw(&s->seed) % 16;
    int fd = draw(&s->seed) % 2 ? s->fd : s->direct;
    n = n < left ? n : left;
    memset(bytes, (int)draw(&s->seed), n);
    if (what < 4) {
        for (uint64_t done = 0; done < n;) {
            ssize_t m = pwrite(fd, bytes + done, n - done, (off_t)(at + done));
            CHECK(m > 0, "pwrite");
            done += (uint64_t)m;
        }
        memcpy(s->shadow + at, bytes, n);
    } else if (what < 8) {
        memcpy(s->map + at, bytes, n);
        memcpy(s->shadow + at, bytes, n);
    } else if (what < 10) {
        CHECK(pread(fd, bytes, n, (off_t)at) == (ssize_t)n, "pread");
        CHECK(!memcmp(bytes, s->shadow + at, n), "read(2) of %llu+%llu", (unsigned long long)at,
              (unsigned long long)n);
    } else if (what < 13) {
        CHECK(!memcmp(s->map + at, s->shadow + at, n), "load of %llu+%llu", (unsigned long long)at,
              (unsigned long long)n);
    } else if (what == 13) {
        CHECK(!fallocate(s->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)at, (off_t)n),
              "punch");
        memset(s->shadow + at, 0, n);
    } else if (what == 14) {
        scribe_resize(s);
    } else {
        CHECK(!msync(s->map, PAGES * HM_PAGE_SIZE, MS_SYNC), "msync");
    }
}

static void scribe(uint64_t seed)
{
    struct scribe s = {.fd = open_region(2, 0), .size = HM_PAGE_SIZE, .seed = seed};
    uint64_t steps = 0;
    s.map = mmap(NULL, PAGES * HM_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, s.fd, 0);
    s.shadow = calloc(PAGES, HM_PAGE_SIZE);
    CHECK(s.map != MAP_FAILED && s.shadow, "memory");
    s.direct = open_region(2, O_DIRECT);
    CHECK(!ftruncate(s.fd, HM_PAGE_SIZE), "ftruncate");
    for (; !shared->stop; steps++)
        scribe_step(&s);
    atomic_fetch_add(&shared->scribbles, steps);
}

static pid_t start(void (*program)(uint64_t), uint64_t seed)
{
    pid_t pid = fork();
    CHECK(pid >= 0, "fork");
    if (pid)
        return pid;
    alarm(600);
    while (!shared->go)
        usleep(1000);
    program(seed * 2654435761u + 1);
    fflush(NULL);
    _exit(0);
}

/* ---- the namespace ------------------------------------------------------------------------ */

static void answer(uint64_t unique, int error, const void *body, size_t length)
{
    struct fuse_out_header header = {.unique = unique, .error = -error};
    struct iovec iov[2] = {{&header, sizeof(header)}, {(void *)body, error ? 0 : length}};
    header.len = (uint32_t)(sizeof(header) + iov[1].iov_len);
    CHECK(writev(relay_fd, iov, 2) > 0 || errno == EPIPE, "relay");
}

static struct fuse_attr attributes(uint64_t ino)
{
    struct fuse_attr attr = {.ino = ino, .nlink = 1, .mode = S_IFDIR | 0755, .blksize = 4096};
    if (ino >= FIRST_INO) {
        attr.mode = S_IFREG | 0666;
        attr.size = records[ino - FIRST_INO]->size;
    }
    return attr;
}

static void answer_entry(uint64_t unique, const char *name)
{
    for (uint64_t i = 0; i < REGIONS; i++)
        if (!strcmp(name, names[i])) {
            struct fuse_entry_out out = {.nodeid = FIRST_INO + i, .entry_valid = 1000};
            out.attr = attributes(FIRST_INO + i);
            answer(unique, 0, &out, sizeof(out));
            return;
        }
    answer(unique, ENOENT, NULL, 0);
}

static void answer_attr(uint64_t unique, uint64_t ino)
{
    struct fuse_attr_out out = {.attr = attributes(ino)};
    answer(unique, 0, &out, sizeof(out));
}

static void serve(const struct fuse_in_header *in, const void *body)
{
    const struct fuse_setattr_in *set = body;
    struct fuse_init_out init = {.major = 7, .minor = 31, .max_write = 1 << 20};
    struct fuse_open_out opened = {.open_flags = FOPEN_KEEP_CACHE};
    switch (in->opcode) {
    case FUSE_INIT:
        answer(in->unique, 0, &init, sizeof(init));
        break;
    case FUSE_LOOKUP:
        answer_entry(in->unique, body);
        break;
    case FUSE_SETATTR:
        if (set->valid & FATTR_SIZE)
            CHECK(!hm_region_truncate(core, in->nodeid, set->size), "truncate");
        answer_attr(in->unique, in->nodeid);
        break;
    case FUSE_GETATTR:
        answer_attr(in->unique, in->nodeid);
        break;
    case FUSE_OPEN:
    case FUSE_OPENDIR:
        answer(in->unique, 0, &opened, sizeof(opened));
        break;
    case FUSE_FORGET:
    case FUSE_BATCH_FORGET:
        break;
    case FUSE_RELEASE:
    case FUSE_RELEASEDIR:
    case FUSE_DESTROY:
        answer(in->unique, 0, NULL, 0);
        break;
    default:
        answer(in->unique, ENOSYS, NULL, 0);
    }
}

static void *namespace_main(void *arg)
{
    uint8_t *message = malloc(1 << 21);
    (void)arg;
    for (;;) {
        ssize_t n = recv(relay_fd, message, 1 << 21, 0);
        if (n <= 0)
            break;
        serve((struct fuse_in_header *)message, message + sizeof(struct fuse_in_header));
    }
    free(message);
    return NULL;
}

/* ---- the service: the shortest that decides ---------------------------------------------------
 */

static pthread_mutex_t done_lock = PTHREAD_MUTEX_INITIALIZER; /* guards done and results */
static pthread_cond_t done_changed = PTHREAD_COND_INITIALIZER;
static bool done[8];
static struct hm_event results[8];

static bool handle(const struct hm_event *event)
{
    struct hm_job home = {.kind = HM_JOB_MIGRATE,
                          .flags = HM_JOB_QUIET,
                          .ino = event->ino,
                          .block = event->block,
                          .first = event->first,
                          .count = event->count};
    if (event->kind == HM_EVENT_FAULT)
        CHECK(!hm_submit(core, &home), "submit");
    if (event->kind == HM_EVENT_NO_CAPACITY)
        CHECK(!hm_gate_retry(core, event->cookie, 1), "answered all the same");
    if (event->kind == HM_EVENT_JOB) {
        pthread_mutex_lock(&done_lock);
        done[event->cookie] = true;
        results[event->cookie] = *event;
        pthread_cond_broadcast(&done_changed);
        pthread_mutex_unlock(&done_lock);
    }
    return event->kind != HM_EVENT_CLOSED;
}

static void *events_main(void *arg)
{
    struct hm_event events[64];
    struct pollfd ready = {.fd = hm_event_fd(core), .events = POLLIN};
    (void)arg;
    for (;;) {
        int n;
        poll(&ready, 1, -1);
        n = hm_events(core, events, 64);
        for (int i = 0; i < n; i++)
            if (!handle(&events[i]))
                return NULL;
    }
}

static struct hm_event await_job(struct hm_job job, uint64_t cookie)
{
    struct hm_event event;
    job.cookie = cookie;
    pthread_mutex_lock(&done_lock);
    done[cookie] = false;
    pthread_mutex_unlock(&done_lock);
    CHECK(!hm_submit(core, &job), "submit");
    pthread_mutex_lock(&done_lock);
    while (!done[cookie])
        pthread_cond_wait(&done_changed, &done_lock);
    event = results[cookie];
    pthread_mutex_unlock(&done_lock);
    return event;
}

/* ---- devices ------------------------------------------------------------------------------ */

struct device {
    pthread_t thread;
    uint64_t seed, cookie, operations, busy;
};

static void tick(struct device *d, uint64_t page, uint64_t *clock, uint64_t *bytes)
{
    struct hm_job job = {.kind = HM_JOB_WRITE,
                         .ino = FIRST_INO + 1,
                         .buffer = bytes,
                         .node = 1 + draw(&d->seed) % 2,
                         .offset = (uint32_t)page * HM_PAGE_SIZE,
                         .length = HM_PAGE_SIZE};
    uint64_t next = clock[page] + 1;
    struct hm_event event;
    for (int i = 0; i < 512; i++)
        bytes[i] = next;
    event = await_job(job, d->cookie);
    CHECK(!event.result || event.result == -EBUSY || (advising && event.result == -ENOBUFS),
          "device write: %d", event.result);
    if (event.result)
        return;
    clock[page] = next;
    shared->completed[page] = next;
}

/* What is done to advised pages: asked for, which copies and labels, and looked at remotely. */
static void vary(struct hm_job *job, uint64_t random)
{
    job->kind = random >> 57 & 1 ? HM_JOB_MIGRATE : HM_JOB_CRC;
    if (job->kind == HM_JOB_MIGRATE) {
        job->flags = random >> 56 & 1 ? HM_JOB_ASKED : HM_JOB_EVICT;
        job->source = job->flags == HM_JOB_EVICT ? 1 + (random >> 55 & 1) : 0;
        job->node = job->source ? HM_HOST : job->node;
        return;
    }
    job->node = 1 + (random >> 55 & 1);
    job->offset = job->first * HM_PAGE_SIZE;
    job->length = 1 + (random >> 20) % (100 * HM_PAGE_SIZE);
    job->first = job->count = 0;
}

static void *device_main(void *arg)
{
    struct device *d = arg;
    uint64_t clock[CLOCK_PAGES] = {0}, bytes[512];
    for (; !shared->stop; d->operations++) {
        uint64_t random = draw(&d->seed);
        struct hm_job job = {.kind = random >> 60 ? HM_JOB_MIGRATE : HM_JOB_RECALL,
                             .ino = FIRST_INO + (random % 2 ? 0 : 2),
                             .block = random >> 8 & 1,
                             .node = (random >> 16) % 3,
                             .first = (random >> 24) % 8,
                             .count = 1 + (random >> 32) % 500};
        struct hm_event event;
        if (advising && random >> 59 & 1)
            vary(&job, random);
        if (d->cookie == 0 && random % 3 == 0) {
            tick(d, random >> 40 & (CLOCK_PAGES - 1), clock, bytes);
            continue;
        }
        event = await_job(job, d->cookie);
        d->busy += event.result == -EBUSY;
        CHECK(!event.result || event.result == -EBUSY || event.result == -ENOSPC ||
                  (advising &&
                   (event.result == -EPERM || event.result == -ENOBUFS || event.result == -ERANGE)),
              "job: %d", event.result);
    }
    return NULL;
}

/* Anything but pinned, which a program may meet. */
static void advise(uint64_t random)
{
    static const uint32_t values[][2] = {
        {HM_ADVICE_READ_MOSTLY, 1},   {HM_ADVICE_READ_MOSTLY, 1},   {HM_ADVICE_READ_MOSTLY, 0},
        {HM_ADVICE_PREFERRED, 1},     {HM_ADVICE_PREFERRED, 2},     {HM_ADVICE_PREFERRED, 0},
        {HM_ADVICE_GRANULARITY, 3},   {HM_ADVICE_NO_MIGRATE, 1},    {HM_ADVICE_NO_MIGRATE, 0},
        {HM_ADVICE_NO_MIGRATE, 0},    {HM_ADVICE_ACCESSED_BY, 1},   {HM_ADVICE_ACCESSED_BY, 2},
        {HM_ADVICE_UNACCESSED_BY, 1}, {HM_ADVICE_UNACCESSED_BY, 2},
    };
    const uint32_t *what = values[random % (sizeof(values) / sizeof(*values))];
    struct hm_advice found[64];
    uint64_t first = (random >> 10) % PAGES, count = 1 + (random >> 30) % (PAGES - first);
    CHECK(!hm_advise(core, FIRST_INO + (random >> 8 & 3) % REGIONS, first, count, what[0], what[1]),
          "advise");
    CHECK(hm_advice_get(core, FIRST_INO, first, found, 64) >= 0, "advice");
    CHECK(!hm_placement_set(core, 1, (uint32_t)(random >> 40) % 4, 2), "placement");
}

/* Every line is whole, whatever becomes of the ring meanwhile; a small ring loses events. */
static void read_trace(uint64_t random)
{
    static char text[16384];
    static uint64_t cursor;
    int64_t n = hm_trace_text(core, &cursor, UINT64_MAX, text, sizeof(text));
    int blanks = 0;
    CHECK(n >= 0 && n <= (int64_t)sizeof(text), "%lld bytes of trace", (long long)n);
    for (int64_t i = 0; i < n; i++) {
        blanks += text[i] == ' ';
        if (text[i] == '\n') {
            CHECK(blanks == 10 || blanks == 3, "a trace line of %d blanks", blanks);
            blanks = 0;
        }
    }
    CHECK(!blanks, "half a line of trace");
    hm_trace_wake(core, cursor);
    CHECK(hm_trace_oldest(core) <= hm_trace_wake(core, UINT64_MAX), "oldest event");
    if (random % 64 == 0)
        hm_trace_clear(core);
    if (random % 16 == 1)
        CHECK(!hm_trace_resize(core, 1u << (random >> 8) % 12), "resize");
    if (random % 16 == 2)
        CHECK(!hm_trace_kinds(core, (uint32_t)(random >> 8) | 15), "kinds");
    if (random % 16 == 3)
        hm_trace_region(core, FIRST_INO + (random >> 8) % REGIONS, random >> 20 & 1);
}

static void read_books(uint64_t ino)
{
    static struct hm_block_counts found[8];
    static struct hm_flows flows;
    static struct hm_region_flows of;
    int n = hm_region_block_counts(core, ino, 0, found, 8);
    CHECK(n >= 0, "block counts");
    for (int i = 0; i < n; i++)
        CHECK(found[i].pages[0] + found[i].pages[1] + found[i].pages[2] <= HM_BLOCK_PAGES,
              "more pages than a block has");
    hm_flows_get(core, &flows);
    CHECK(!hm_region_flows_get(core, ino, &of), "region flows");
}

/* A policy is chosen while pages come and go, or asked, and does not get what it chose. */
static void change_eviction(uint64_t random)
{
    static const uint64_t trace[] = {3, 700, 3, 12, 513, 3, 900};
    struct hm_eviction policy = {
        .kind = random % (HM_EVICT_ASK + 1), .seed = random, .trace = trace, .length = 7};
    struct hm_victim victim;
    uint32_t node = 1 + (random >> 8 & 1);
    uint64_t spared[2] = {FIRST_INO, random >> 32 & 1};
    if (!(random >> 16 & 63))
        CHECK(!hm_eviction_set(core, node, &policy), "eviction");
    CHECK(hm_victim_next(core, node, 1 + (random >> 24 & 31), spared, 1, &victim) >= 0, "victim");
}

/* What control files and the service look at and give back while all this goes on. */
static void *observer_main(void *arg)
{
    static struct hm_candidate found[64];
    uint64_t *seed = arg, counts[22], blocks[8], words[8];
    char text[256];
    while (!shared->stop) {
        uint64_t random = draw(seed), ino = FIRST_INO + random % REGIONS;
        struct hm_node_stats node;
        struct hm_stats stats;
        hm_stats_get(core, &stats);
        hm_node_stats_get(core, random >> 8 & 1, &node);
        CHECK(node.used <= node.capacity + HM_BLOCK_PAGES, "used %llu",
              (unsigned long long)node.used);
        CHECK(hm_candidates(core, (random >> 16) % 3, found, 64) >= 0, "candidates");
        CHECK(!hm_region_residency(core, ino, counts), "residency");
        read_books(ino);
        read_trace(draw(seed));
        CHECK(hm_region_touched(core, ino, 0, blocks, 8) >= 0, "touched");
        CHECK(!hm_labelled_or_duplicate(core, ino, random >> 9 & 1, 1 + (random >> 10 & 1), words),
              "labelled or duplicate");
        hm_region_seek(core, ino, (random >> 24) % PAGES * HM_PAGE_SIZE, random >> 40 & 1);
        hm_audit(core, text, sizeof(text)); /* for its locks: it is exact only when all is quiet */
        change_eviction(draw(seed));
        if (random >> 50 & 1)
            CHECK(hm_drop_kept(core, random >> 51 & 63) >= 0, "drop kept");
        else
            CHECK(!hm_region_allocate(core, FIRST_INO, (random >> 51) % SUM_PAGES * HM_PAGE_SIZE,
                                      HM_PAGE_SIZE),
                  "allocate");
        if (advising)
            advise(draw(seed));
        usleep(500);
    }
    return NULL;
}

/* ------------------------------------------------------------------------------------------- */

static void mount_core(uint32_t express)
{
    struct hm_config config = {.nodes =
                                   HM_MAX_NODES, /* most have nothing, but tables end with them */
                               .threads = 2,
                               .readahead = 131072,
                               .express = express,
                               .keep_clean = 1,
                               .device_kind = {0, 0, advising ? HM_KIND_COHERENT : 0},
                               .visible = {0, 0, 300},
                               .capacity = {8192, 1024, 1024}};
    int pair[2], fuse_fd = open("/dev/fuse", O_RDWR | O_CLOEXEC);
    char options[128];
    CHECK(fuse_fd >= 0, "/dev/fuse");
    snprintf(options, sizeof(options), "fd=%d,rootmode=40000,user_id=0,group_id=0", fuse_fd);
    CHECK(!mount("stress", directory, "fuse.hmmfs", MS_NOSUID | MS_NODEV, options), "mount");
    CHECK(!socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair), "socketpair");
    relay_fd = pair[1];
    CHECK(!hm_core_create(&config, &core), "core");
    CHECK(
        !hm_prefetch_set(core, HM_HOST, &(struct hm_prefetch){HM_PREFETCH_TABLE, {1, 16, 64, 512}}),
        "policy");
    for (uint64_t i = 0; i < REGIONS; i++) {
        CHECK(!hm_region_create(core, FIRST_INO + i, S_IFREG | 0666, 0, 0, &records[i]), "create");
        CHECK(!hm_region_truncate(core, FIRST_INO + i, PAGES * HM_PAGE_SIZE), "size");
        CHECK(!hm_region_writers(core, FIRST_INO + i, 1), "writers"); /* opens don't come here */
    }
    if (advising)
        CHECK(!hm_thrashing_set(core, &(struct hm_thrashing){3, 4, 4, 500000, 500000, 9000000, 0}),
              "thrashing");
    CHECK(!hm_gate_start(core, fuse_fd, pair[0]), "gate");
}

static uint64_t sum_of(int index)
{
    static uint64_t words[512];
    uint64_t sum = 0;
    int fd = open_region(index, 0);
    for (int page = 0; page < SUM_PAGES; page++) {
        CHECK(pread(fd, words, sizeof(words), page * HM_PAGE_SIZE) == sizeof(words), "pread");
        for (int i = 0; i < 512; i++)
            sum += words[i];
    }
    close(fd);
    return sum;
}

/* What stat(2) says of a region at rest, which the gate answers. */
static void check_attributes(int index)
{
    struct statx found;
    uint64_t pages = 0;
    int fd = open_region(index, 0);
    CHECK(!statx(fd, "", AT_EMPTY_PATH | AT_STATX_FORCE_SYNC, STATX_BASIC_STATS, &found), "statx");
    for (uint32_t node = 0; node < HM_MAX_NODES; node++)
        pages += records[index]->pages[node];
    CHECK(found.stx_blocks * 512 == pages * HM_PAGE_SIZE, "%llu blocks, %llu pages",
          (unsigned long long)found.stx_blocks, (unsigned long long)pages);
    CHECK(found.stx_size == records[index]->size, "size");
    close(fd);
}

static void report(const struct device *devices)
{
    struct hm_stats stats;
    char text[256] = "";
    uint64_t sum = sum_of(0);
    CHECK(sum == shared->adds, "%llu adds, sum %llu", (unsigned long long)shared->adds,
          (unsigned long long)sum);
    for (int i = 0; i < REGIONS; i++)
        check_attributes(i);
    hm_stats_get(core, &stats);
    printf("adds %llu loads %llu scribbles %llu jobs %llu busy %llu migrations %llu "
           "recalls %llu retries %llu discarded %llu skipped %llu\n",
           (unsigned long long)shared->adds, (unsigned long long)shared->loads,
           (unsigned long long)shared->scribbles, (unsigned long long)stats.jobs,
           (unsigned long long)(devices[0].busy + devices[1].busy),
           (unsigned long long)stats.migrations, (unsigned long long)stats.recalls,
           (unsigned long long)stats.recall_retries, (unsigned long long)stats.migrations_discarded,
           (unsigned long long)stats.stale_writes_skipped);
    CHECK(!hm_audit(core, text, sizeof(text)), "audit: %s", text);
}

int main(int argc, char **argv)
{
    struct device devices[2];
    pthread_t namespace_thread, events_thread, observer;
    pid_t programs[4];
    int failed = 0, status;
    double seconds;
    uint64_t seed;
    CHECK(argc == 6, "usage: stress DIRECTORY SECONDS SEED EXPRESS ADVISE");
    directory = argv[1];
    seconds = atof(argv[2]);
    seed = strtoull(argv[3], NULL, 0) + 1;
    shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(shared != MAP_FAILED, "shared");
    programs[0] = start(adder, seed);
    programs[1] = start(adder, seed + 1);
    programs[2] = start(watcher, seed + 2);
    programs[3] = start(scribe, seed + 3);
    advising = atoi(argv[5]);
    mount_core((uint32_t)atoi(argv[4]));
    CHECK(!pthread_create(&namespace_thread, NULL, namespace_main, NULL), "thread");
    CHECK(!pthread_create(&events_thread, NULL, events_main, NULL), "thread");
    shared->go = true;
    for (uint64_t i = 0; i < 2; i++) {
        devices[i] = (struct device){.seed = (seed + 7) * (i + 3), .cookie = i};
        CHECK(!pthread_create(&devices[i].thread, NULL, device_main, &devices[i]), "thread");
    }
    CHECK(!pthread_create(&observer, NULL, observer_main, &seed), "thread");
    usleep((useconds_t)(seconds * 1e6));
    shared->stop = true;
    pthread_join(observer, NULL);
    for (int i = 0; i < 2; i++)
        pthread_join(devices[i].thread, NULL);
    for (int i = 0; i < 4; i++) {
        CHECK(waitpid(programs[i], &status, 0) == programs[i], "waitpid");
        failed |= status;
    }
    if (!failed)
        report(devices);
    CHECK(!umount2(directory, 0), "umount");
    hm_gate_join(core);
    pthread_join(events_thread, NULL);
    shutdown(relay_fd, SHUT_RDWR);
    pthread_join(namespace_thread, NULL);
    close(relay_fd);
    hm_core_destroy(core);
    return failed ? 1 : 0;
}
