/* The core when memory fails: each allocation of a short scenario in turn, once or for a while.
 * Nothing may hang, and nothing be lost but what was answered with an error.
 *
 * Linked with --wrap for what allocates. There is no mount: this program asks as gate threads do,
 * and reads what the core writes to /dev/fuse. */
#include "inside.h"

#include <linux/fuse.h>
#include <sys/mman.h>
#include <sys/socket.h>

#define REPLIES 64

/* ---- failing -------------------------------------------------------------------------------- */

static _Atomic bool armed;
static _Atomic uint32_t calls, first_to_fail, fail_count;

static bool fails(void)
{
    uint32_t at;
    if (!armed)
        return false;
    at = atomic_fetch_add(&calls, 1);
    return at >= first_to_fail && at - first_to_fail < fail_count;
}

void *__real_malloc(size_t size);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *old, size_t size);
void *__real_mmap(void *at, size_t length, int protection, int flags, int fd, off_t offset);
int __real_memfd_create(const char *name, unsigned int flags);
int __real_pthread_create(pthread_t *thread, const pthread_attr_t *attr, void *(*run)(void *),
                          void *arg);

static void *no_memory(void)
{
    errno = ENOMEM;
    return NULL;
}

void *__wrap_malloc(size_t size)
{
    return fails() ? no_memory() : __real_malloc(size);
}

void *__wrap_calloc(size_t n, size_t size)
{
    return fails() ? no_memory() : __real_calloc(n, size);
}

void *__wrap_realloc(void *old, size_t size)
{
    return fails() ? no_memory() : __real_realloc(old, size);
}

void *__wrap_mmap(void *at, size_t length, int protection, int flags, int fd, off_t offset)
{
    if (!fails())
        return __real_mmap(at, length, protection, flags, fd, offset);
    errno = ENOMEM;
    return MAP_FAILED;
}

int __wrap_memfd_create(const char *name, unsigned int flags)
{
    if (!fails())
        return __real_memfd_create(name, flags);
    errno = ENOMEM;
    return -1;
}

int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attr, void *(*run)(void *),
                          void *arg)
{
    return fails() ? EAGAIN : __real_pthread_create(thread, attr, run, arg);
}

/* ---- the kernel's side ---------------------------------------------------------------------- */

static int kernel_fd;
static _Atomic int replies[REPLIES]; /* by number: 0: none; 1: done; or the errno, negative */
static _Atomic uint8_t byte_read[REPLIES];

static void *kernel_main(void *arg)
{
    static uint8_t bytes[HM_REQUEST_BYTES];
    struct fuse_out_header header;
    ssize_t n;
    while ((n = recv(kernel_fd, bytes, sizeof(bytes), 0)) > 0) {
        memcpy(&header, bytes, sizeof(header));
        if (!header.unique)
            continue; /* an invalidation: this kernel has nothing cached */
        CHECK(header.unique < REPLIES && !replies[header.unique], "answered twice");
        byte_read[header.unique] = bytes[sizeof(header)];
        replies[header.unique] = header.error ? header.error : 1;
    }
    return arg;
}

struct asked {
    pthread_t thread;
    struct hm_request request;
    uint8_t bytes[HM_PAGE_SIZE];
};

static void *ask_main(void *arg)
{
    struct asked *asked = arg;
    hm_access(core, &asked->request);
    return NULL;
}

/* As another gate thread would: the caller does not wait. */
static void ask(struct asked *asked, uint64_t unique, uint32_t opcode, uint32_t flags,
                uint32_t page, uint8_t byte)
{
    asked->request = (struct hm_request){.unique = unique,
                                         .ino = INO,
                                         .opcode = opcode,
                                         .flags = flags,
                                         .offset = page * HM_PAGE_SIZE,
                                         .size = HM_PAGE_SIZE};
    memset(asked->bytes, byte, sizeof(asked->bytes));
    if (opcode == FUSE_WRITE) {
        asked->request.data = asked->bytes;
        hm_order_read(core, unique);
    }
    CHECK(!__real_pthread_create(&asked->thread, NULL, ask_main, asked), "thread");
}

static int answer_to(uint64_t unique)
{
    UNTIL(replies[unique]);
    return replies[unique];
}

/* ---- the scenario --------------------------------------------------------------------------- */

static void submit(struct hm_job job)
{
    int error;
    job.ino = INO;
    while ((error = hm_submit(core, &job)))
        CHECK(error == -ENOMEM, "%d", error); /* who asks is told */
}

/* Pages 0 to 3 of block 0 on their way home, their transaction held between plan and flip. */
static void hold(void)
{
    int result = -1;
    atomic_store(&region->window[1], HM_PAGE_SIZE);
    pthread_rwlock_wrlock(&core->device[1].lock);
    while (state_of(0) != HM_FROZEN) {
        struct hm_event event;
        if (result)
            submit((struct hm_job){.kind = HM_JOB_MIGRATE, .cookie = 1, .count = 4});
        result = 0;
        if (hm_events(core, &event, 1) && event.kind == HM_EVENT_JOB) {
            result = event.result;
            CHECK(result == -ENOMEM, "held job: %d", result);
        }
        usleep(100);
    }
}

static void let_go(void)
{
    pthread_rwlock_unlock(&core->device[1].lock);
}

static int results[8];

static void await_jobs(uint32_t wanted)
{
    struct pollfd ready = {.fd = hm_event_fd(core), .events = POLLIN};
    struct hm_event event;
    memset(results, 1, sizeof(results));
    while (wanted) {
        CHECK(poll(&ready, 1, PATIENCE_MS) == 1, "jobs %x do not end", wanted);
        while (hm_events(core, &event, 1))
            if (event.kind == HM_EVENT_JOB) {
                results[event.cookie] = event.result;
                wanted &= ~(1u << event.cookie);
            }
    }
}

static void expect(const uint8_t *bytes, uint32_t page, uint8_t byte)
{
    for (uint32_t at = 0; at < HM_PAGE_SIZE; at++)
        CHECK(bytes[page * HM_PAGE_SIZE + at] == byte, "page %u has %d, not %d", page,
              bytes[page * HM_PAGE_SIZE + at], byte);
}

static struct hm_job fill(uint64_t cookie, uint32_t page, uint8_t byte)
{
    return (struct hm_job){.kind = HM_JOB_FILL,
                           .cookie = cookie,
                           .node = 1,
                           .offset = page * HM_PAGE_SIZE,
                           .length = HM_PAGE_SIZE,
                           .byte = byte};
}

static void begin(pthread_t *kernel)
{
    int pair[2];
    make_core(
        (struct hm_config){
            .nodes = 2, .threads = 1, .express = 1, .keep_clean = 1, .capacity = {8192, 8192}},
        2 * HM_BLOCK_BYTES);
    CHECK(!socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair), "socketpair");
    core->fuse_fd = pair[0];
    kernel_fd = pair[1];
    core->gate = calloc(1, sizeof(*core->gate)); /* one that has not come back: its floor is 0 */
    memset((void *)replies, 0, sizeof(replies));
    CHECK(!pthread_create(kernel, NULL, kernel_main, NULL), "thread");
    CHECK(!run_job(
              (struct hm_job){.kind = HM_JOB_FILL, .node = 1, .length = HM_BLOCK_BYTES, .byte = 1}),
          "fill");
}

/* The first page that the region hands out on the host. */
static void hole(struct asked *asked)
{
    ask(asked, 22, FUSE_READ, 0, HM_BLOCK_PAGES + 5, 0);
    pthread_join(asked->thread, NULL);
    CHECK(answer_to(22) == 1 || replies[22] == -ENOMEM, "READ of a hole: %d", replies[22]);
}

/* What waits for a transaction: jobs, READs, WRITEs of both kinds. */
static void waiting(struct asked *asked)
{
    hold();
    submit(fill(2, 8, 7));
    submit(fill(3, 9, 7));
    ask(&asked[0], 10, FUSE_READ, 0, 0, 0);
    ask(&asked[1], 11, FUSE_WRITE, FUSE_WRITE_CACHE, 1, 5);
    ask(&asked[2], 12, FUSE_WRITE, 0, 2, 6);
    ask(&asked[3], 13, FUSE_READ, 0, 3, 0);
    for (int i = 0; i < 4; i++)
        if (i != 1) /* it may have to wait where it is */
            pthread_join(asked[i].thread, NULL);
    let_go();
    pthread_join(asked[1].thread, NULL);
    await_jobs(2 | 4 | 8);
    CHECK(answer_to(10) == 1 && byte_read[10] == 1, "READ: %d", replies[10]);
    CHECK(answer_to(13) == 1 && byte_read[13] == 1, "READ: %d", replies[13]);
    CHECK(answer_to(11) == 1, "writeback: %d", replies[11]);
    CHECK(answer_to(12) == 1 || replies[12] == -ENOMEM, "write(2): %d", replies[12]);
}

/* A WRITE that a newer one has overtaken, and one to what was a hole. */
static void overtaken(struct asked *asked)
{
    ask(&asked[0], 21, FUSE_WRITE, FUSE_WRITE_CACHE, 300, 9);
    pthread_join(asked[0].thread, NULL);
    ask(&asked[1], 20, FUSE_WRITE, 0, 300, 8);
    pthread_join(asked[1].thread, NULL);
    CHECK(answer_to(21) == 1, "writeback: %d", replies[21]);
    CHECK(answer_to(20) == 1 || replies[20] == -ENOMEM, "write(2): %d", replies[20]);
    ask(&asked[2], 23, FUSE_WRITE, FUSE_WRITE_CACHE, HM_BLOCK_PAGES + 5, 4);
    pthread_join(asked[2].thread, NULL);
    CHECK(answer_to(23) == 1, "writeback: %d", replies[23]);
}

static void look(void)
{
    static uint8_t bytes[HM_BLOCK_BYTES];
    struct hm_job read = {
        .kind = HM_JOB_READ, .node = 1, .length = HM_BLOCK_BYTES, .buffer = bytes};
    CHECK(!run_job(read), "read");
    expect(bytes, 0, 1);
    expect(bytes, 1, 5);
    expect(bytes, 2, replies[12] == 1 ? 6 : 1);
    for (uint32_t cookie = 2; cookie < 4; cookie++) {
        CHECK(!results[cookie] || results[cookie] == -ENOMEM, "job: %d", results[cookie]);
        if (!results[cookie])
            expect(bytes, 6 + cookie, 7);
    }
    expect(bytes, 300, 9);
    read.block = 1;
    CHECK(!run_job(read), "read");
    expect(bytes, 5, 4);
}

/* False: it has not come to that allocation. */
static bool scenario(uint32_t first, uint32_t count)
{
    static struct asked asked[8];
    pthread_t kernel;
    begin(&kernel);
    calls = 0;
    first_to_fail = first;
    fail_count = count;
    armed = true;
    hole(asked);
    waiting(asked);
    overtaken(asked + 4);
    armed = false;
    look();
    shutdown(kernel_fd, SHUT_RDWR);
    pthread_join(kernel, NULL);
    end_core();
    close(kernel_fd);
    return calls > first;
}

/* ---- events --------------------------------------------------------------------------------- */

static void *push_main(void *arg)
{
    for (uint64_t i = 0; i < 5000; i++)
        hm_event_push(core, &(struct hm_event){.kind = HM_EVENT_INTERRUPT, .block = i});
    return arg;
}

/* With no memory at all, and a service that is slow. */
static void events(void)
{
    pthread_t pusher;
    struct hm_event event;
    make_core((struct hm_config){.nodes = 2, .threads = 1, .capacity = {64, 64}}, HM_BLOCK_BYTES);
    CHECK(!__real_pthread_create(&pusher, NULL, push_main, NULL), "thread");
    calls = first_to_fail = 0;
    fail_count = UINT32_MAX;
    armed = true;
    usleep(10000);
    for (uint64_t next = 0; next < 5000; next++) {
        UNTIL(hm_events(core, &event, 1));
        CHECK(event.block == next, "event %llu, not %llu", (unsigned long long)event.block,
              (unsigned long long)next);
    }
    armed = false;
    pthread_join(pusher, NULL);
    end_core();
}

int main(void)
{
    uint32_t n = 0, most = 0;
    for (uint32_t count = 1; count <= 16; count *= 16) {
        for (n = 0; scenario(n, count); n++)
            ;
        most = n > most ? n : most;
    }
    events();
    printf("allocations %u\n", most);
    return 0;
}
