/* The relay: what the gate does not answer goes to pyfuse3 over a SOCK_SEQPACKET pair, one message
 * a request, and the replies come back the same way.
 *
 * Three threads, since none may wait for another. `outbound` sends what did not fit into the socket
 * at once (a gate thread never blocks there). `inbound` receives: replies go straight to /dev/fuse,
 * notifications to `notify`, because an INVAL_ENTRY can block on a directory lock that is held by
 * a request whose reply is queued behind it.
 */
#include "gate/relay.h"

#include "base/events.h"
#include "base/fuse.h"
#include "base/fuse_wire.h"
#include "base/region.h"
#include "directory/shared_size.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define TRACKED 256 /* buckets */
#define EARLY 256
#define OPENS 1024 /* OPEN and CREATE under way, on mounts that pass files through */

#define MAX_BACKGROUND 4096 /* parked READs must not keep a recall's WRITEs from being sent */
#define REPLY_PAGES (HM_MAX_WRITE / HM_PAGE_SIZE)

struct message {
    struct message *next;
    size_t length;
    uint8_t bytes[];
};

struct queue {
    pthread_mutex_t lock; /* guards the list; taken alone */
    pthread_cond_t ready;
    struct message *first, **end;
    bool stopping;
};

/* A READ or WRITE that pyfuse3 has, or is to have: it may wait for long. */
struct tracked {
    struct tracked *next; /* in its bucket */
    uint64_t unique, fh;
};

struct hm_relay {
    struct hm_core *core;
    int fd;
    struct queue outbound, notify;
    pthread_t outbound_thread, notify_thread, inbound_thread;
    _Atomic uint64_t init_unique;
    bool offered;                 /* passthrough, by the kernel; set before any OPEN */
    bool killpriv;                /* the same of HANDLE_KILLPRIV_V2 */
    pthread_mutex_t tracked_lock; /* guards tracked and early; taken alone */
    struct tracked *tracked[TRACKED];
    uint64_t early[EARLY]; /* requests not tracked when they were interrupted, a ring; 0: free */
    uint32_t early_next;
    uint8_t *received;          /* HM_REQUEST_BYTES, of the inbound thread */
    _Atomic int passthrough;    /* -EAGAIN before INIT; whether files are passed through */
    pthread_mutex_t opens_lock; /* guards opens; taken alone */
    struct opening {
        uint64_t unique, ino; /* unique 0: free; ino 0: a CREATE, whose reply tells */
        bool writes;
    } opens[OPENS];
};

/* ---- queues ------------------------------------------------------------------------------- */

static void queue_init(struct queue *queue)
{
    pthread_mutex_init(&queue->lock, NULL);
    pthread_cond_init(&queue->ready, NULL);
    queue->first = NULL;
    queue->end = &queue->first;
    queue->stopping = false;
}

static void queue_deinit(struct queue *queue)
{
    while (queue->first) {
        struct message *message = queue->first;
        queue->first = message->next;
        free(message);
    }
    pthread_mutex_destroy(&queue->lock);
    pthread_cond_destroy(&queue->ready);
}

static bool queue_push(struct queue *queue, const uint8_t *bytes, size_t length)
{
    struct message *message = malloc(sizeof(*message) + length);
    if (!message)
        return false;
    message->next = NULL;
    message->length = length;
    memcpy(message->bytes, bytes, length);
    HM_GUARD(HM_RANK_RELAY_QUEUE, &queue->lock);
    *queue->end = message;
    queue->end = &message->next;
    pthread_cond_signal(&queue->ready);
    return true;
}

/* The same, waiting for memory. No lock is held, and the threads that take from queues free some.
 */
static bool queue_final(struct queue *queue, const uint8_t *bytes, size_t length)
{
    while (!queue_push(queue, bytes, length))
        usleep(1000);
    return true;
}

/* The oldest message, left in the queue so that later ones line up behind it; NULL: stopping. */
static struct message *queue_wait(struct queue *queue)
{
    struct message *message;
    HM_GUARD(HM_RANK_RELAY_QUEUE, &queue->lock);
    while (!queue->first && !queue->stopping)
        pthread_cond_wait(&queue->ready, &queue->lock);
    message = queue->stopping ? NULL : queue->first;
    return message;
}

static void queue_pop(struct queue *queue)
{
    struct message *message;
    hm_lock(HM_RANK_RELAY_QUEUE, &queue->lock);
    message = queue->first;
    queue->first = message->next;
    if (!queue->first)
        queue->end = &queue->first;
    hm_unlock(HM_RANK_RELAY_QUEUE, &queue->lock);
    free(message);
}

static void queue_stop(struct queue *queue)
{
    HM_GUARD(HM_RANK_RELAY_QUEUE, &queue->lock);
    queue->stopping = true;
    pthread_cond_broadcast(&queue->ready);
}

/* ---- INIT --------------------------------------------------------------------------------- */

static void init_request(struct hm_relay *relay, uint8_t *message, size_t length)
{
    struct fuse_in_header *header = (struct fuse_in_header *)message;
    struct hm_fuse_init_in *in = (struct hm_fuse_init_in *)(message + sizeof(*header));
    if (length < sizeof(*header) + offsetof(struct hm_fuse_init_in, flags2))
        return;
    relay->init_unique = header->unique;
    relay->offered = length >= sizeof(*header) + sizeof(*in) && in->flags & FUSE_INIT_EXT &&
                     in->flags2 & HM_FUSE_FLAGS2_PASSTHROUGH &&
                     relay->core->config.kind != HM_KIND_PRIVATE;
    relay->killpriv = in->flags & FUSE_HANDLE_KILLPRIV_V2;
    /* No splicing of a socket. O_TRUNC comes as SETATTR. What changes is told by recalls, never by
     * a changed mtime. The page cache never holds the only size, so there is no writeback cache. */
    in->flags &=
        ~(uint32_t)(FUSE_SPLICE_READ | FUSE_SPLICE_WRITE | FUSE_SPLICE_MOVE | FUSE_ATOMIC_O_TRUNC |
                    FUSE_AUTO_INVAL_DATA | FUSE_WRITEBACK_CACHE | FUSE_INIT_EXT);
}

static void init_reply(struct hm_relay *relay, uint8_t *message, size_t length)
{
    struct fuse_out_header *header = (struct fuse_out_header *)message;
    struct hm_fuse_init_out *out = (struct hm_fuse_init_out *)(message + sizeof(*header));
    if (header->error || length < sizeof(*header) + sizeof(*out))
        return;
    out->flags |= FUSE_ASYNC_READ | FUSE_BIG_WRITES | FUSE_MAX_PAGES | FUSE_EXPLICIT_INVAL_DATA;
    out->flags &= ~(uint32_t)(FUSE_AUTO_INVAL_DATA | FUSE_WRITEBACK_CACHE | FUSE_ATOMIC_O_TRUNC);
    out->max_readahead = relay->core->config.readahead;
    out->max_background = MAX_BACKGROUND;
    out->congestion_threshold = MAX_BACKGROUND / 4 * 3;
    out->max_write = HM_MAX_WRITE;
    out->max_pages = REPLY_PAGES;
    out->time_gran = 1;
    /* Without it the kernel asks for a security.capability before each write(2), since there are
     * extended attributes. With it we drop set-uid bits at writes. */
    if (relay->killpriv)
        out->flags |= FUSE_HANDLE_KILLPRIV_V2;
    if (relay->offered) {
        out->flags |= FUSE_INIT_EXT;
        out->flags2 = HM_FUSE_FLAGS2_PASSTHROUGH;
        out->max_stack_depth = 1;
    }
    relay->passthrough = relay->offered;
}

int hm_gate_passthrough(struct hm_core *core)
{
    return core->relay ? core->relay->passthrough : -EAGAIN;
}

/* ---- OPEN, on mounts that pass files through ------------------------------------------------- */

/* What open(2) was given; the bodies of OPEN and CREATE begin with it. */
static uint32_t open_flags(const uint8_t *message, size_t length)
{
    uint32_t flags = O_RDWR;
    if (length >= sizeof(struct fuse_in_header) + sizeof(flags))
        memcpy(&flags, message + sizeof(struct fuse_in_header), sizeof(flags));
    return flags;
}

static bool opening_begin(struct hm_relay *relay, const struct fuse_in_header *header,
                          uint32_t flags)
{
    bool found = false;
    HM_GUARD(HM_RANK_RELAY_OPENS, &relay->opens_lock);
    for (int i = 0; i < OPENS && !found; i++)
        if (!relay->opens[i].unique) {
            relay->opens[i].unique = header->unique;
            relay->opens[i].ino = header->opcode == FUSE_OPEN ? header->nodeid : 0;
            relay->opens[i].writes = (flags & O_ACCMODE) != O_RDONLY;
            found = true;
        }
    return found;
}

static bool opening_end(struct hm_relay *relay, uint64_t unique, uint64_t *ino, bool *writes)
{
    bool found = false;
    HM_GUARD(HM_RANK_RELAY_OPENS, &relay->opens_lock);
    for (int i = 0; i < OPENS && !found; i++)
        if (relay->opens[i].unique == unique) {
            *ino = relay->opens[i].ino;
            *writes = relay->opens[i].writes;
            relay->opens[i].unique = 0;
            found = true;
        }
    return found;
}

/* Have the kernel pass the region that was opened through to its memfd. An error becomes the
 * OPEN's: without passthrough the file would have two contents. Of a file that is open for writing
 * only mappings are passed through: see shared_access.c. */
static void pass_through(struct hm_relay *relay, uint8_t *message, size_t *length, uint64_t ino,
                         bool writes)
{
    struct fuse_out_header *header = (struct fuse_out_header *)message;
    struct hm_fuse_open_out *out =
        (struct hm_fuse_open_out *)(message + *length - sizeof(struct hm_fuse_open_out));
    int id;
    if (header->error)
        return;
    if (!ino)
        memcpy(&ino, message + sizeof(*header), sizeof(ino)); /* of the fuse_entry_out */
    HM_AUTO_PUT struct hm_region *region = hm_region_get(relay->core, ino);
    if (!region)
        return; /* a control file */
    id = hm_shared_backing(region);
    if (id < 0) {
        header->error = id;
        *length = header->len = sizeof(*header);
        return;
    }
    out->open_flags = HM_FUSE_OPEN_PASSTHROUGH | (writes ? FOPEN_DIRECT_IO : 0);
    out->backing_id = id;
}

/* ---- interrupts --------------------------------------------------------------------------- */

/* Kernels number requests by 2 or by 4. */
static struct tracked **bucket_of(struct hm_relay *relay, uint64_t unique)
{
    return &relay->tracked[(unique >> 1 ^ unique >> 9) % TRACKED];
}

static void interrupted(struct hm_relay *relay, uint64_t fh)
{
    struct hm_event event = {.kind = HM_EVENT_INTERRUPT, .cookie = fh};
    hm_count(&relay->core->count.interrupts, 1);
    hm_event_push(relay->core, &event);
}

/* False: there is no memory, and the request is not to be sent. */
static bool track(struct hm_relay *relay, const uint8_t *message)
{
    const struct fuse_in_header *header = (const struct fuse_in_header *)message;
    struct tracked *tracked = malloc(sizeof(*tracked)), **bucket;
    bool early = false;
    uint64_t fh;
    if (!tracked)
        return false;
    memcpy(&fh, message + sizeof(*header), sizeof(fh)); /* READ and WRITE begin with it */
    bucket = bucket_of(relay, header->unique);
    hm_lock(HM_RANK_RELAY_TRACKED, &relay->tracked_lock);
    *tracked = (struct tracked){*bucket, header->unique, fh};
    *bucket = tracked;
    for (int i = 0; i < EARLY; i++)
        if (relay->early[i] == header->unique) {
            relay->early[i] = 0;
            early = true;
        }
    hm_unlock(HM_RANK_RELAY_TRACKED, &relay->tracked_lock);
    if (early)
        interrupted(relay, fh);
    return true;
}

static void untrack(struct hm_relay *relay, uint64_t unique)
{
    struct tracked **at = bucket_of(relay, unique), *found;
    hm_lock(HM_RANK_RELAY_TRACKED, &relay->tracked_lock);
    while ((found = *at) && found->unique != unique)
        at = &found->next;
    if (found)
        *at = found->next;
    hm_unlock(HM_RANK_RELAY_TRACKED, &relay->tracked_lock);
    free(found);
}

/* A request that pyfuse3 does not get is not under way any more. */
static void drop(struct hm_relay *relay, uint64_t unique, int error)
{
    untrack(relay, unique);
    hm_lock(HM_RANK_RELAY_OPENS, &relay->opens_lock);
    for (int i = 0; i < OPENS; i++)
        if (relay->opens[i].unique == unique)
            relay->opens[i].unique = 0;
    hm_unlock(HM_RANK_RELAY_OPENS, &relay->opens_lock);
    hm_reply(relay->core, unique, error, NULL, 0);
}

void hm_relay_interrupt(struct hm_relay *relay, uint64_t target)
{
    struct hm_event event = {.kind = HM_EVENT_INTERRUPT, .block = target};
    const struct tracked *at;
    uint64_t fh = 0;
    bool found;
    hm_lock(HM_RANK_RELAY_TRACKED, &relay->tracked_lock);
    for (at = *bucket_of(relay, target); at && at->unique != target; at = at->next)
        ;
    found = at;
    if (found)
        fh = at->fh;
    else /* another gate thread may have read the request and not tracked it yet */
        relay->early[relay->early_next++ % EARLY] = target;
    hm_unlock(HM_RANK_RELAY_TRACKED, &relay->tracked_lock);
    /* Faults are finished normally, whatever signal came; of ioctls the service knows. */
    if (found)
        interrupted(relay, fh);
    else
        hm_event_push(relay->core, &event);
}

int hm_waits(struct hm_core *core, uint64_t fh)
{
    struct hm_relay *relay = core->relay;
    int waits = 0;
    if (!relay)
        return 0;
    HM_GUARD(HM_RANK_RELAY_TRACKED, &relay->tracked_lock);
    for (int i = 0; i < TRACKED; i++)
        for (const struct tracked *at = relay->tracked[i]; at; at = at->next)
            waits |= at->fh == fh;
    return waits;
}

/* ---- to pyfuse3 --------------------------------------------------------------------------- */

/* Nobody reads an answer to these, so one that is lost is never made good: a file stays open, a
 * name known. */
static bool is_final(uint32_t opcode)
{
    return opcode == FUSE_FORGET || opcode == FUSE_BATCH_FORGET || opcode == FUSE_RELEASE ||
           opcode == FUSE_RELEASEDIR;
}

void hm_relay_send(struct hm_relay *relay, uint8_t *message, size_t length)
{
    struct fuse_in_header *header = (struct fuse_in_header *)message;
    uint64_t unique = header->unique;
    bool empty;
    int error = 0;
    if (header->opcode == FUSE_INIT)
        init_request(relay, message, length);
    if ((header->opcode == FUSE_WRITE || header->opcode == FUSE_READ) && !track(relay, message)) {
        hm_reply(relay->core, unique, ENOMEM, NULL, 0);
        return;
    }
    if (relay->offered && (header->opcode == FUSE_OPEN || header->opcode == FUSE_CREATE) &&
        !opening_begin(relay, header, open_flags(message, length))) {
        hm_reply(relay->core, unique, ENFILE, NULL, 0);
        return;
    }
    hm_count(&relay->core->count.relayed, 1);
    hm_lock(HM_RANK_RELAY_QUEUE, &relay->outbound.lock);
    empty = !relay->outbound.first;
    hm_unlock(HM_RANK_RELAY_QUEUE, &relay->outbound.lock);
    if (empty && send(relay->fd, message, length, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0)
        return;
    if (empty && errno != EAGAIN && errno != ENOBUFS)
        error = errno == EMSGSIZE ? E2BIG : ENOTCONN;
    else if (!(is_final(header->opcode) ? queue_final(&relay->outbound, message, length)
                                        : queue_push(&relay->outbound, message, length)))
        error = ENOMEM;
    else
        hm_count(&relay->core->count.relay_queued, 1);
    if (error)
        drop(relay, unique, error);
}

static void *outbound_main(void *arg)
{
    struct hm_relay *relay = arg;
    struct message *message;
    while ((message = queue_wait(&relay->outbound))) {
        struct fuse_in_header *header = (struct fuse_in_header *)message->bytes;
        ssize_t n;
        do
            n = send(relay->fd, message->bytes, message->length, MSG_NOSIGNAL);
        while (n < 0 && errno == EINTR);
        if (n < 0)
            drop(relay, header->unique, errno == EMSGSIZE ? E2BIG : ENOTCONN);
        queue_pop(&relay->outbound);
    }
    return NULL;
}

/* ---- from pyfuse3 ------------------------------------------------------------------------- */

static void to_kernel(struct hm_relay *relay, const uint8_t *bytes, size_t length)
{
    /* A refused reply: the request is gone. A refused notification: nothing to do about it. */
    while (write(relay->core->fuse_fd, bytes, length) < 0 && (errno == EINTR || errno == EAGAIN))
        ;
}

static void *notify_main(void *arg)
{
    struct hm_relay *relay = arg;
    struct message *message;
    while ((message = queue_wait(&relay->notify))) {
        to_kernel(relay, message->bytes, message->length);
        queue_pop(&relay->notify);
    }
    return NULL;
}

static void *inbound_main(void *arg)
{
    struct hm_relay *relay = arg;
    uint8_t *bytes = relay->received;
    struct pollfd ready[2] = {{.fd = relay->fd, .events = POLLIN},
                              {.fd = relay->core->stop_fd, .events = POLLIN}};
    for (;;) {
        struct fuse_out_header *header = (struct fuse_out_header *)bytes;
        uint64_t ino;
        bool writes;
        size_t length;
        ssize_t n;
        if (poll(ready, 2, -1) < 0 && errno != EINTR)
            break;
        if (ready[1].revents)
            break;
        n = recv(relay->fd, bytes, HM_REQUEST_BYTES, MSG_DONTWAIT);
        if (n < 0 && (errno == EAGAIN || errno == EINTR))
            continue;
        if (n < (ssize_t)sizeof(*header))
            break; /* pyfuse3 closed its end */
        if (!header->unique) {
            queue_final(&relay->notify, bytes, (size_t)n);
            continue;
        }
        if (header->unique == relay->init_unique)
            init_reply(relay, bytes, (size_t)n);
        untrack(relay, header->unique);
        length = (size_t)n;
        if (relay->offered && opening_end(relay, header->unique, &ino, &writes))
            pass_through(relay, bytes, &length, ino, writes);
        to_kernel(relay, bytes, length);
    }
    return NULL;
}

/* ------------------------------------------------------------------------------------------- */

static void relay_free(struct hm_relay *relay)
{
    for (int i = 0; i < TRACKED; i++)
        for (struct tracked *at = relay->tracked[i], *next; at; at = next) {
            next = at->next;
            free(at);
        }
    queue_deinit(&relay->outbound);
    queue_deinit(&relay->notify);
    pthread_mutex_destroy(&relay->tracked_lock);
    pthread_mutex_destroy(&relay->opens_lock);
    free(relay->received);
    free(relay);
}

int hm_relay_start(struct hm_core *core, int fd, struct hm_relay **ret)
{
    struct hm_relay *relay = calloc(1, sizeof(*relay));
    int error;
    if (!relay || !(relay->received = malloc(HM_REQUEST_BYTES))) {
        free(relay);
        return -ENOMEM;
    }
    relay->core = core;
    relay->fd = fd;
    relay->passthrough = -EAGAIN;
    pthread_mutex_init(&relay->opens_lock, NULL);
    queue_init(&relay->outbound);
    queue_init(&relay->notify);
    pthread_mutex_init(&relay->tracked_lock, NULL);
    error = pthread_create(&relay->outbound_thread, NULL, outbound_main, relay);
    if (error)
        goto no_outbound;
    error = pthread_create(&relay->notify_thread, NULL, notify_main, relay);
    if (error)
        goto no_notify;
    error = pthread_create(&relay->inbound_thread, NULL, inbound_main, relay);
    if (error)
        goto no_inbound;
    *ret = relay;
    return 0;
no_inbound:
    queue_stop(&relay->notify);
    pthread_join(relay->notify_thread, NULL);
no_notify:
    queue_stop(&relay->outbound);
    pthread_join(relay->outbound_thread, NULL);
no_outbound:
    relay_free(relay);
    return -error;
}

void hm_relay_stop(struct hm_relay *relay)
{
    uint64_t one = 1;
    /* Shutting the socket down ends a send that blocks; the eventfd ends the poll. */
    shutdown(relay->fd, SHUT_RDWR);
    if (write(relay->core->stop_fd, &one, sizeof(one)) < 0)
        one = 0; /* already signalled */
    queue_stop(&relay->outbound);
    queue_stop(&relay->notify);
    pthread_join(relay->inbound_thread, NULL);
    pthread_join(relay->outbound_thread, NULL);
    pthread_join(relay->notify_thread, NULL);
    close(relay->fd);
    relay_free(relay);
}
