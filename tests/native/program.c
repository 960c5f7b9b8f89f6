/* Programs' own memory, without Python: the core attaches program_child.c and what it forks, and
 * storms over all that they have mapped; with `moves` over what they move with mremap, and no more.
 *
 *   program SECONDS SEED LIBRARY CHILD [moves]     (root: for userfaultfd's events)
 *
 * One program ends by itself, one is killed, and one is left while it lives, with all its pages.
 * They check themselves; here the directory must be whole in the end, and no descriptor be left.
 */
#include "preload/preload.h"
#include "include/hmmfs.h"
#include "program.h"

#include <dirent.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#define FIRST_INO (1ULL << 32)
#define BLOCK_BYTES ((uint64_t)HM_BLOCK_PAGES * HM_PAGE_SIZE)
#define VRAM 1024 /* pages of each device */
#define PROGRAMS 64
#define STORMS 2
#define MAPPINGS 128

#define CHECK(condition, ...)                                                                      \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "program: %s: ", #condition);                                          \
            fprintf(stderr, __VA_ARGS__);                                                          \
            fprintf(stderr, " (errno %d)\n", errno);                                               \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

#include "greeting.h"

static struct hm_core *core;
static bool moves;
static _Atomic bool stop, closing;
static _Atomic uint64_t attached, done_jobs, refused, failed_jobs;

static uint64_t draw(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

/* ---- those that are attached ---------------------------------------------------------------- */

struct program {
    uint64_t ino; /* 0: there is none */
    pid_t pid;
};

static pthread_mutex_t programs_lock = PTHREAD_MUTEX_INITIALIZER;
static struct program programs[PROGRAMS];

static void add(uint64_t ino, pid_t pid)
{
    pthread_mutex_lock(&programs_lock);
    for (int i = 0; i < PROGRAMS; i++)
        if (!programs[i].ino) {
            programs[i] = (struct program){ino, pid};
            ino = 0;
            break;
        }
    pthread_mutex_unlock(&programs_lock);
    CHECK(!ino, "%d programs", PROGRAMS);
}

static bool pick(uint64_t random, struct program *ret)
{
    uint32_t n = 0;
    pthread_mutex_lock(&programs_lock);
    for (int i = 0; i < PROGRAMS; i++)
        if (programs[i].ino && random % ++n == 0)
            *ret = programs[i];
    pthread_mutex_unlock(&programs_lock);
    return n;
}

/* As the service does: nobody finds it any more, and what is under way ends with an error. */
static void drop(uint64_t ino, bool home)
{
    pthread_mutex_lock(&programs_lock);
    for (int i = 0; i < PROGRAMS; i++)
        if (programs[i].ino == ino)
            programs[i].ino = 0;
    pthread_mutex_unlock(&programs_lock);
    if (!hm_process_detach(core, ino, home))
        CHECK(!hm_region_destroy(core, ino), "destroy");
}

static uint64_t ino_of(pid_t pid)
{
    uint64_t ino = 0;
    pthread_mutex_lock(&programs_lock);
    for (int i = 0; i < PROGRAMS; i++)
        if (programs[i].ino && programs[i].pid == pid)
            ino = programs[i].ino;
    pthread_mutex_unlock(&programs_lock);
    return ino;
}

/* ---- who connects -----------------------------------------------------------------------------
 */

static int attach(int peer, const struct hm_hello *hello, const int fds[2])
{
    static uint64_t next_ino = FIRST_INO;
    uint64_t ino = next_ino++;
    pid_t pid;
    int error = attach_program(core, ino, peer, hello, fds, &pid);
    if (error)
        return error;
    attached++;
    add(ino, pid);
    return 0;
}

static void *door_main(void *arg)
{
    int listener = *(int *)arg;
    struct pollfd ready = {.fd = listener, .events = POLLIN};
    while (!closing) {
        struct hm_welcome welcome = {.version = HM_PRELOAD_VERSION};
        struct hm_hello hello;
        int fds[2], peer;
        if (poll(&ready, 1, 20) <= 0)
            continue;
        peer = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        CHECK(peer >= 0, "accept");
        if (receive_hello(peer, &hello, fds)) {
            welcome.error = attach(peer, &hello, fds);
            send(peer, &welcome, sizeof(welcome), MSG_NOSIGNAL);
        }
        close(peer);
    }
    return NULL;
}

/* ---- the service: the shortest that evicts -------------------------------------------------- */

static pthread_mutex_t done_lock = PTHREAD_MUTEX_INITIALIZER; /* guards done and results */
static pthread_cond_t done_changed = PTHREAD_COND_INITIALIZER;
static bool done[STORMS];
static struct hm_event results[STORMS];

static void *events_main(void *arg)
{
    struct hm_event events[64];
    struct pollfd ready = {.fd = hm_event_fd(core), .events = POLLIN};
    (void)arg;
    while (!closing) {
        int n;
        poll(&ready, 1, 20);
        n = hm_events(core, events, 64);
        for (int i = 0; i < n; i++) {
            if (events[i].kind == HM_EVENT_GONE)
                drop(events[i].ino, false);
            if (events[i].kind != HM_EVENT_JOB)
                continue;
            pthread_mutex_lock(&done_lock);
            done[events[i].cookie] = true;
            results[events[i].cookie] = events[i];
            pthread_cond_broadcast(&done_changed);
            pthread_mutex_unlock(&done_lock);
        }
    }
    return NULL;
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

/* Whether so many pages are reserved. */
static bool evict_for(const struct hm_job *job, uint32_t need, uint64_t cookie)
{
    struct hm_candidate found[VRAM];
    int n = hm_candidates(core, job->node, found, VRAM);
    CHECK(n >= 0, "candidates");
    for (int i = 0; i < n; i++) {
        struct hm_job out = {.kind = HM_JOB_MIGRATE,
                             .flags = HM_JOB_EVICT,
                             .ino = found[i].ino,
                             .block = found[i].block,
                             .count = HM_BLOCK_PAGES,
                             .source = job->node};
        if (!hm_reserve(core, job->node, need, 0))
            return true;
        if (!found[i].held && (found[i].ino != job->ino || found[i].block != job->block))
            await_job(out, cookie);
    }
    return !hm_reserve(core, job->node, need, 0);
}

static int run(struct hm_job job, uint64_t cookie)
{
    struct hm_event event = await_job(job, cookie);
    for (int tries = 0; event.result == -ENOSPC && tries < 3; tries++) {
        refused++;
        if (!evict_for(&job, event.need, cookie))
            break;
        job.reserved = event.need;
        event = await_job(job, cookie);
        job.reserved = 0;
    }
    done_jobs++;
    failed_jobs += event.result != 0;
    switch (event.result) {
    case 0:
    case -EBUSY: /* its helper does not come to it */
    case -ENOSPC:
    case -EFAULT: /* nothing is mapped, or nothing that may be taken */
    case -EPERM:  /* a read-only mapping */
    case -ESRCH:  /* it has ended */
    case -ENOENT:
    case -EOPNOTSUPP:
        return event.result;
    default:
        CHECK(false, "job %u: %d", job.kind, event.result);
    }
}

/* ---- the storm ------------------------------------------------------------------------------ */

struct mapping {
    uint64_t start, end;
};

struct storm {
    pthread_t thread;
    uint64_t seed, cookie, clock;
    struct program of;
    struct mapping mapping[MAPPINGS];
    uint32_t mappings;
    uint8_t *bytes; /* of a block */
};

/* Private ones of no file: the heap, stacks, the library's own, and what is set aside for us. */
static void read_maps(struct storm *s)
{
    char path[64], line[512];
    FILE *file;
    s->mappings = 0;
    snprintf(path, sizeof(path), "/proc/%d/maps", s->of.pid);
    file = fopen(path, "re");
    while (file && s->mappings < MAPPINGS && fgets(line, sizeof(line), file)) {
        unsigned long long start, end, ino;
        char rights[5], name[256] = "";
        CHECK(sscanf(line, "%llx-%llx %4s %*x %*x:%*x %llu %255s", &start, &end, rights, &ino,
                     name) >= 4,
              "%s", line);
        if (rights[3] == 'p' && !ino && strncmp(name, "[v", 2))
            s->mapping[s->mappings++] = (struct mapping){start, end};
    }
    if (file)
        fclose(file);
}

/* A range in one block; false: there is none now. */
static bool aim(struct storm *s, struct hm_job *job, uint64_t *address)
{
    static const struct mapping slot = {ARENA, ARENA + SLOT_PAGES * HM_PAGE_SIZE};
    const struct mapping *at = &slot;
    uint64_t random = draw(&s->seed), pages, first;
    int64_t offset;
    if (!moves) {
        if (!s->mappings)
            return false;
        at = &s->mapping[random % s->mappings];
    }
    pages = (at->end - at->start) / HM_PAGE_SIZE;
    first = (random >> 16) % pages;
    *address = at->start + first * HM_PAGE_SIZE;
    offset = hm_process_offset(core, s->of.ino, *address, HM_PAGE_SIZE);
    if (offset < 0)
        return false;
    job->ino = s->of.ino;
    job->block = (uint64_t)offset / BLOCK_BYTES;
    job->first = (uint32_t)((uint64_t)offset % BLOCK_BYTES / HM_PAGE_SIZE);
    pages = random >> 60 ? 1 + (random >> 40) % 16 : pages - first;
    job->count =
        pages < HM_BLOCK_PAGES - job->first ? (uint32_t)pages : HM_BLOCK_PAGES - job->first;
    return true;
}

static void migrate(struct storm *s, uint64_t random)
{
    struct hm_job job = {.kind = HM_JOB_MIGRATE, .node = random % 3};
    uint64_t address;
    if (!aim(s, &job, &address))
        return;
    if (random >> 8 & 1) {
        job.flags = HM_JOB_ASKED;
    } else {
        job.flags = HM_JOB_CHOSEN;
        for (uint32_t page = job.first; page < job.first + job.count; page++)
            job.window[page / 64] |= 1ULL << (page % 64);
        job.first = job.count = 0;
    }
    if (run(job, s->cookie) || job.node == HM_HOST)
        return;
    if (random >> 9 & 1) {
        hm_process_exclusive(core, job.ino, job.node, job.block, job.window, job.stores);
        hm_process_exclusive(core, job.ino, job.node, job.block, NULL, job.stores);
    }
    if (random >> 10 & 1)
        hm_process_set_huge(core, job.ino, job.node, job.block);
}

static void load(struct storm *s, uint64_t random)
{
    struct hm_job job = {.kind = random % 4 ? HM_JOB_READ : HM_JOB_CRC,
                         .node = 1 + (random >> 8) % 2,
                         .buffer = s->bytes};
    uint64_t address;
    if (!aim(s, &job, &address))
        return;
    if (job.kind == HM_JOB_READ && random >> 9 & 1)
        job.flags = HM_JOB_REMOTE;
    job.offset = job.first * HM_PAGE_SIZE + (random >> 20) % HM_PAGE_SIZE;
    job.length = job.count * HM_PAGE_SIZE - job.offset % HM_PAGE_SIZE;
    job.first = job.count = 0;
    run(job, s->cookie);
}

/* The bytes that the program expects, to a part of what is set aside. */
static void store(struct storm *s, uint64_t random)
{
    size_t at = (random >> 8) % (OPEN_PAGES * HM_PAGE_SIZE);
    size_t length = 1 + (random >> 40) % (random >> 32 & 3 ? 9000 : 500000);
    struct hm_job job = {.kind = random % 4 ? HM_JOB_WRITE : HM_JOB_FILL,
                         .ino = s->of.ino,
                         .node = 1 + (random >> 60) % 2,
                         .byte = FILLED,
                         .buffer = s->bytes};
    int64_t offset = hm_process_offset(core, s->of.ino, OPEN + at, 1);
    if (offset < 0)
        return;
    job.block = (uint64_t)offset / BLOCK_BYTES;
    job.offset = (uint32_t)((uint64_t)offset % BLOCK_BYTES);
    length = length < OPEN_PAGES * HM_PAGE_SIZE - at ? length : OPEN_PAGES * HM_PAGE_SIZE - at;
    job.length =
        length < BLOCK_BYTES - job.offset ? (uint32_t)length : (uint32_t)BLOCK_BYTES - job.offset;
    if (job.kind == HM_JOB_WRITE && random >> 61 & 1)
        job.flags = HM_JOB_REMOTE;
    for (uint32_t i = 0; i < job.length; i++)
        s->bytes[i] = open_byte(at + i);
    run(job, s->cookie);
}

/* One storm alone writes it. */
static void tick(struct storm *s, uint64_t random)
{
    struct hm_job job = {.kind = HM_JOB_WRITE,
                         .ino = s->of.ino,
                         .node = 1 + random % 2,
                         .flags = random >> 8 & 1 ? HM_JOB_REMOTE : 0,
                         .length = HM_PAGE_SIZE,
                         .buffer = s->bytes};
    int64_t offset = hm_process_offset(core, s->of.ino, CLOCK, CLOCK_PAGES * HM_PAGE_SIZE);
    uint64_t *words = (uint64_t *)s->bytes;
    if (offset < 0 || s->cookie)
        return;
    s->clock++;
    for (uint32_t i = 0; i < HM_PAGE_SIZE / 8; i++)
        words[i] = s->clock;
    job.block = (uint64_t)offset / BLOCK_BYTES;
    job.offset =
        (uint32_t)((uint64_t)offset % BLOCK_BYTES) + (random >> 16) % CLOCK_PAGES * HM_PAGE_SIZE;
    run(job, s->cookie);
}

static void look(struct storm *s, uint64_t random)
{
    uint16_t state[HM_BLOCK_PAGES];
    uint64_t frame[HM_BLOCK_PAGES], address;
    struct hm_block_counts found[4];
    struct hm_job job;
    char text[256];
    if (!aim(s, &job, &address))
        return;
    if (!hm_process_look(core, s->of.ino, address, job.count, state, frame))
        for (uint32_t i = 0; i < job.count; i++)
            CHECK(state[i] & HM_LOOK_PRESENT || !frame[i], "a page that is not there has a frame");
    hm_region_block_counts(core, s->of.ino, job.block, found, 4);
    hm_process_address_of(core, s->of.ino, job.block * BLOCK_BYTES);
    if (random % 8 == 0) /* for its locks: it is exact only when all is quiet */
        hm_audit(core, text, sizeof(text));
}

static void forget(struct storm *s, uint64_t random)
{
    uint64_t first = random % OPEN_PAGES, count = 1 + (random >> 16) % (OPEN_PAGES - first);
    int error =
        hm_process_forget(core, s->of.ino, OPEN + first * HM_PAGE_SIZE, count * HM_PAGE_SIZE);
    CHECK(!error || error == -EBUSY || error == -ESRCH, "forget: %d", error);
}

static void *storm_main(void *arg)
{
    static void (*const all[])(struct storm *, uint64_t) = {migrate, migrate, migrate, load,
                                                            store,   tick,    look,    forget};
    static void (*const few[])(struct storm *, uint64_t) = {migrate, load, load, load};
    struct storm *s = arg;
    for (uint64_t i = 0; !stop; i++) {
        uint64_t random = draw(&s->seed);
        if (i % 32 == 0) {
            if (!pick(random, &s->of)) {
                usleep(1000);
                i--;
                continue;
            }
            read_maps(s);
        }
        (moves ? few[random % 4] : all[random % 8])(s, random >> 3);
    }
    return NULL;
}

/* ------------------------------------------------------------------------------------------- */

static int descriptors(void)
{
    DIR *directory = opendir("/proc/self/fd");
    int n = 0;
    while (readdir(directory))
        n++;
    closedir(directory);
    return n;
}

static pid_t start(const char *child, double milliseconds)
{
    char time[32];
    pid_t pid = fork();
    CHECK(pid >= 0, "fork");
    if (pid)
        return pid;
    snprintf(time, sizeof(time), "%.0f", milliseconds);
    execl(child, child, time, moves ? "moves" : NULL, (char *)NULL);
    _exit(127);
}

static void end_well(pid_t pid, const char *what)
{
    int status;
    CHECK(waitpid(pid, &status, 0) == pid && !status, "the program that %s: %#x", what, status);
}

static void report(void)
{
    struct hm_node_stats node;
    struct program left;
    char text[256] = "";
    while (pick(0, &left))
        usleep(1000);
    hm_node_stats_get(core, 1, &node);
    printf(
        "programs %llu jobs %llu failed %llu refused %llu, pages in %llu out %llu evicted %llu\n",
        (unsigned long long)attached, (unsigned long long)done_jobs,
        (unsigned long long)failed_jobs, (unsigned long long)refused,
        (unsigned long long)node.pages_in, (unsigned long long)node.pages_out,
        (unsigned long long)node.evicted_pages);
    CHECK(!hm_audit(core, text, sizeof(text)), "audit: %s", text);
    CHECK(node.peak <= node.capacity, "VRAM");
}

int main(int argc, char **argv)
{
    struct hm_config config = {.nodes = HM_MAX_NODES, .threads = 1, .capacity = {8192, VRAM, VRAM}};
    struct storm *storms = calloc(STORMS, sizeof(*storms));
    pthread_t door, events;
    int listener, before = descriptors(), status;
    double ms;
    char name[64];
    pid_t ends, dies, stays;
    moves = argc == 6 && !strcmp(argv[5], "moves");
    CHECK((argc == 5 || moves) && storms, "usage: program SECONDS SEED LIBRARY CHILD [moves]");
    ms = atof(argv[1]) * 1e3;
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    listener = listen_at(name);
    setenv("HMMFS_SOCKET", name, 1);
    setenv("LD_PRELOAD", argv[3], 1);
    ends = start(argv[4], ms * 0.7);
    dies = start(argv[4], ms * 60);
    stays = start(argv[4], ms);
    unsetenv("LD_PRELOAD");
    CHECK(!hm_core_create(&config, &core), "core");
    CHECK(!hm_eviction_set(core, 1, &(struct hm_eviction){.kind = HM_EVICT_LRU}), "eviction");
    CHECK(!pthread_create(&events, NULL, events_main, NULL), "thread");
    CHECK(!pthread_create(&door, NULL, door_main, &listener), "thread");
    for (uint64_t i = 0; i < STORMS; i++) {
        storms[i].seed = (strtoull(argv[2], NULL, 0) + 7) * (i + 3) * 2654435761u;
        storms[i].cookie = i;
        storms[i].bytes = malloc(BLOCK_BYTES);
        CHECK(!pthread_create(&storms[i].thread, NULL, storm_main, &storms[i]), "thread");
    }
    usleep((useconds_t)(ms * 500));
    CHECK(!kill(dies, SIGKILL) && waitpid(dies, &status, 0) == dies, "kill");
    end_well(ends, "ends");
    stop = true;
    for (int i = 0; i < STORMS; i++) {
        pthread_join(storms[i].thread, NULL);
        free(storms[i].bytes);
    }
    CHECK(ino_of(stays), "it is gone");
    drop(ino_of(stays), true);
    end_well(stays, "stays");
    while (waitpid(-1, &status, 0) > 0)
        CHECK(!status, "an orphan: %#x", status);
    report();
    closing = true;
    pthread_join(door, NULL);
    pthread_join(events, NULL);
    close(listener);
    hm_core_destroy(core);
    free(storms);
    CHECK(descriptors() == before, "%d descriptors are left", descriptors() - before);
    return 0;
}
