/* A core built with -DHM_PAUSES, whose threads a test holds at named points; and in place of the
 * kernel a socket that takes what the core says on /dev/fuse and never holds anything up. */
#ifndef PAUSES_H
#define PAUSES_H
#define PATIENCE_MS 3000
#ifndef HM_PAUSES
#define HM_PAUSES /* for all of the core, too: see test_interleavings.py */
#endif
#include "inside.h"

#include "base/fuse_wire.h"
#include <stdatomic.h>
#include <string.h>
#include <sys/socket.h>

/* ---- points -----------------------------------------------------------------------------------
 */

/* One thread is held: the first that comes to the point from now on. */
struct hold {
    const char *point;
    bool there, gone, left; /* a thread is held; it was let go; it has gone on */
    struct hold *next;
};

static pthread_mutex_t holds_lock = PTHREAD_MUTEX_INITIALIZER; /* guards all holds */
static pthread_cond_t holds_changed = PTHREAD_COND_INITIALIZER;
static struct hold *holds;

void hm_pause(const char *point)
{
    struct hold *at;
    pthread_mutex_lock(&holds_lock);
    for (at = holds; at && (at->there || strcmp(at->point, point)); at = at->next)
        ;
    if (at) {
        at->there = true;
        pthread_cond_broadcast(&holds_changed);
        while (!at->gone)
            pthread_cond_wait(&holds_changed, &holds_lock);
        at->left = true;
        pthread_cond_broadcast(&holds_changed);
    }
    pthread_mutex_unlock(&holds_lock);
}

static void hold(struct hold *this, const char *point)
{
    *this = (struct hold){.point = point};
    pthread_mutex_lock(&holds_lock);
    this->next = holds;
    holds = this;
    pthread_mutex_unlock(&holds_lock);
}

static bool is_held(struct hold *this)
{
    bool there;
    pthread_mutex_lock(&holds_lock);
    there = this->there;
    pthread_mutex_unlock(&holds_lock);
    return there;
}

static void await(struct hold *this)
{
    int patience = PATIENCE_MS;
    while (!is_held(this)) {
        CHECK(patience--, "nobody comes to %s", this->point);
        usleep(1000);
    }
}

/* When this returns the struct may go, too. */
static void let_go(struct hold *this)
{
    pthread_mutex_lock(&holds_lock);
    for (struct hold **at = &holds; *at; at = &(*at)->next)
        if (*at == this) {
            *at = this->next;
            break;
        }
    this->gone = true;
    pthread_cond_broadcast(&holds_changed);
    while (this->there && !this->left)
        pthread_cond_wait(&holds_changed, &holds_lock);
    pthread_mutex_unlock(&holds_lock);
}

/* ---- the kernel -------------------------------------------------------------------------------
 */

struct said {
    uint64_t unique; /* 0: an invalidation */
    int error;
    uint64_t offset, length; /* of an invalidation */
    uint8_t byte;            /* the first of an answer */
};

static uint64_t uniques; /* the last number given to a request or a job */
static pthread_mutex_t said_lock = PTHREAD_MUTEX_INITIALIZER; /* guards both */
static struct said said[4096];
static uint32_t says;

static void *kernel_main(void *arg)
{
    static uint8_t message[HM_REQUEST_BYTES];
    int fd = (int)(intptr_t)arg;
    ssize_t n;
    while ((n = read(fd, message, sizeof(message))) > 0) {
        struct fuse_out_header *header = (void *)message;
        struct fuse_notify_inval_inode_out *out = (void *)(header + 1);
        struct said one = {.unique = header->unique, .error = header->error};
        if (!header->unique)
            one = (struct said){.offset = (uint64_t)out->off, .length = (uint64_t)out->len};
        else if ((size_t)n > sizeof(*header))
            one.byte = message[sizeof(*header)];
        pthread_mutex_lock(&said_lock);
        CHECK(says < sizeof(said) / sizeof(*said), "too much said");
        said[says++] = one;
        pthread_mutex_unlock(&said_lock);
    }
    close(fd);
    return NULL;
}

static pthread_t kernel;

static void begin(struct hm_config config, uint64_t bytes)
{
    int pair[2];
    make_core(config, bytes);
    CHECK(!socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), "socketpair");
    CHECK(!pthread_create(&kernel, NULL, kernel_main, (void *)(intptr_t)pair[1]), "thread");
    core->fuse_fd = pair[0];
}

static void end(void)
{
    end_core();
    pthread_join(kernel, NULL);
}

/* The answer to a request, if there is one. */
static bool answered(uint64_t unique, struct said *ret)
{
    bool found = false;
    pthread_mutex_lock(&said_lock);
    for (uint32_t i = 0; i < says; i++)
        if (unique && said[i].unique == unique) {
            *ret = said[i];
            found = true;
        }
    pthread_mutex_unlock(&said_lock);
    return found;
}

/* Within what suffices for an answer that waits for nobody. */
static bool is_answered(uint64_t unique)
{
    struct said found;
    for (int ms = 0; ms < 500 && !answered(unique, &found); ms++)
        usleep(1000);
    return answered(unique, &found);
}

static struct said answer(uint64_t unique)
{
    struct said found;
    int patience = PATIENCE_MS;
    while (!answered(unique, &found)) {
        CHECK(patience--, "request %llu is not answered", (unsigned long long)unique);
        usleep(1000);
    }
    return found;
}

/* How often the kernel was asked to drop a page. */
static uint32_t invalidations(uint32_t page)
{
    uint64_t at = (uint64_t)page * HM_PAGE_SIZE;
    uint32_t n = 0;
    hm_reply(core, ++uniques, 0, NULL, 0); /* once this is read, so is all before it */
    answer(uniques);
    pthread_mutex_lock(&said_lock);
    for (uint32_t i = 0; i < says; i++)
        n += !said[i].unique && said[i].offset <= at && at < said[i].offset + said[i].length;
    pthread_mutex_unlock(&said_lock);
    return n;
}

/* ---- requests ---------------------------------------------------------------------------------
 */

static struct hm_request a_read(uint32_t page, uint32_t flags)
{
    return (struct hm_request){.unique = ++uniques,
                               .ino = INO,
                               .offset = (uint64_t)page * HM_PAGE_SIZE,
                               .opcode = FUSE_READ,
                               .size = HM_PAGE_SIZE,
                               .flags = flags};
}

/* flags: FUSE_WRITE_CACHE: it is the page cache's. */
static struct hm_request a_write(uint32_t page, uint32_t count, uint8_t byte, uint32_t flags)
{
    uint8_t *bytes = malloc((size_t)count * HM_PAGE_SIZE); /* for the process's life */
    CHECK(bytes, "memory");
    memset(bytes, byte, (size_t)count * HM_PAGE_SIZE);
    return (struct hm_request){.unique = ++uniques,
                               .ino = INO,
                               .offset = (uint64_t)page * HM_PAGE_SIZE,
                               .opcode = FUSE_WRITE,
                               .size = count * HM_PAGE_SIZE,
                               .flags = flags,
                               .data = bytes};
}

static void send_request(const struct hm_request *request)
{
    if (request->opcode == FUSE_WRITE)
        hm_order_read(core, request->unique);
    hm_access(core, request);
}

/* The first byte of a page, as a program sees it. */
static uint8_t load(uint32_t page)
{
    struct hm_request request = a_read(page, 0);
    struct said found;
    send_request(&request);
    found = answer(request.unique);
    CHECK(!found.error, "load: %d", found.error);
    return found.byte;
}

static void store(uint32_t page, uint32_t count, uint8_t byte)
{
    struct hm_request request = a_write(page, count, byte, 0);
    send_request(&request);
    CHECK(!answer(request.unique).error, "store");
}

/* ---- what runs meanwhile ----------------------------------------------------------------------
 */

struct aside {
    pthread_t thread;
    void (*call)(void *);
    void *argument;
    _Atomic bool done;
};

static void *aside_main(void *arg)
{
    struct aside *this = arg;
    this->call(this->argument);
    atomic_store(&this->done, true);
    return NULL;
}

static void run_aside(struct aside *this, void (*call)(void *), void *argument)
{
    this->call = call;
    this->argument = argument;
    atomic_store(&this->done, false);
    CHECK(!pthread_create(&this->thread, NULL, aside_main, this), "thread");
}

static void join(struct aside *this)
{
    UNTIL(atomic_load(&this->done));
    pthread_join(this->thread, NULL);
}

static void request_aside(void *request)
{
    send_request(request);
}

/* Whether it does soon: enough for what waits for nobody. */
static bool happens(_Atomic bool *done)
{
    for (int ms = 0; ms < 100 && !atomic_load(done); ms++)
        usleep(1000);
    return atomic_load(done);
}

/* Whether the only job under way ends soon, with its result. */
static bool job_ends(uint64_t cookie, int *result)
{
    struct hm_event event;
    for (int ms = 0; ms < 100; ms++, usleep(1000))
        while (hm_events(core, &event, 1))
            if (event.kind == HM_EVENT_JOB && event.cookie == cookie) {
                *result = event.result;
                return true;
            }
    return false;
}

static void submit(struct hm_job job)
{
    job.ino = INO;
    CHECK(!hm_submit(core, &job), "submit");
}

static struct hm_job a_move(uint32_t node, uint32_t first, uint32_t count)
{
    return (struct hm_job){
        .kind = HM_JOB_MIGRATE, .cookie = ++uniques, .node = node, .first = first, .count = count};
}

static struct hm_job a_fill(uint32_t node, uint32_t offset, uint32_t length, uint8_t byte)
{
    return (struct hm_job){.kind = HM_JOB_FILL,
                           .cookie = ++uniques,
                           .node = node,
                           .offset = offset,
                           .length = length,
                           .byte = byte};
}

/* ---- scenes -----------------------------------------------------------------------------------
 */

struct scene {
    const char *name;
    void (*play)(void);
};
#define SCENE(name)                                                                                \
    {                                                                                              \
#name, name                                                                                \
    }

static void play(const struct scene *scenes, size_t count, const char *name)
{
    while (count--)
        if (!strcmp(scenes[count].name, name)) {
            scenes[count].play();
            return;
        }
    CHECK(false, "there is no scene \"%s\"", name);
}

/* A byte as the device sees it. */
static uint8_t device_load(uint32_t node, uint32_t offset)
{
    uint8_t byte = 0;
    struct hm_job job = {.kind = HM_JOB_READ,
                         .cookie = ++uniques,
                         .node = node,
                         .offset = offset,
                         .length = 1,
                         .buffer = &byte};
    CHECK(!run_job(job), "read");
    return byte;
}

#endif
