/* Programs, devices and the kernel on one block, in schedules that a seed decides.
 *
 *   schedules FIRST COUNT
 *
 * Each seed makes a few small programs of its own, and how they are interleaved: see coroutines.h.
 * The kernel's page cache is done by hand: its folios, their locks, what an invalidation writes
 * back. Each store sets a word of its own in its page. A load shows by them which stores it has
 * seen: all that had completed, and none that was overwritten or cut off before.
 *
 * In some schedules system calls fail, or do a part: see faults.h. What was answered with an error
 * may be lost then, and nothing else.
 *
 * A failure tells the seed; `schedules SEED 1` fails again. */
#include "faults.h"

#include "base/fuse_wire.h"

#define PAGE HM_PAGE_SIZE
#define PAGES 3
#define PROGRAMS 4
#define OPERATIONS 3

/* ---- what is true ---------------------------------------------------------------------------- */

/* Of a page, each store's bit. */
static uint64_t required[PAGES];  /* what every load must see */
static uint64_t forbidden[PAGES]; /* what none may */
static uint64_t voided[PAGES];    /* what is being overwritten */
static int voiding[PAGES];        /* by how many */
static uint32_t voids[PAGES];     /* how often it began */
static bool filled[PAGES];        /* by a write(2) that has not returned */
static bool torn[PAGES];          /* see "Not covered" in coherence.md */
static int bits_used;
static bool part_used;  /* there is one WRITE of part of a page */
static uint32_t beyond; /* from here on pages are past the end of the file */
static bool read_mostly;
static uint64_t seed;

static void see(uint32_t page, uint64_t value, const char *who, uint64_t must, uint64_t must_not)
{
    if (torn[page] || voiding[page])
        return;
    CHECK(!(must & ~value), "%s misses %llx in page %u, which had completed (it has %llx)", who,
          (unsigned long long)(must & ~value), page, (unsigned long long)value);
    CHECK(!(must_not & value), "%s has %llx in page %u, which was overwritten", who,
          (unsigned long long)(must_not & value), page);
}

static uint64_t value_of(const uint8_t *bytes)
{
    uint64_t value = 0, word;
    for (int i = 0; i < 64; i++) {
        memcpy(&word, bytes + 8 * i, sizeof(word));
        value |= (uint64_t)(word != 0) << i;
    }
    return value;
}

static void bytes_of(uint64_t value, uint8_t *bytes)
{
    memset(bytes, 0, PAGE);
    for (int i = 0; i < 64; i++)
        bytes[8 * i] = value >> i & 1;
}

static uint64_t new_bit(void)
{
    CHECK(bits_used < 64, "bits");
    return 1ULL << bits_used++;
}

static void begin_void(uint32_t page)
{
    voids[page]++;
    voiding[page]++;
    voided[page] |= required[page];
    required[page] = 0;
}

static void end_void(uint32_t page, uint64_t bit)
{
    forbidden[page] |= voided[page];
    voided[page] = 0;
    required[page] |= bit;
    voiding[page]--;
}

/* ---- requests -------------------------------------------------------------------------------- */

struct pending {
    struct pending *next;
    uint64_t unique;
    bool done;
    int error;
    uint32_t written;
    uint8_t bytes[PAGES * PAGE];
};

static struct pending *pendings;
static uint64_t uniques;

static struct pending *pending_of(uint64_t unique)
{
    struct pending *at = pendings;
    while (at && at->unique != unique)
        at = at->next;
    return at;
}

static void answer(uint64_t unique, int error, const struct iovec *iov, int count)
{
    struct pending *pending = pending_of(unique);
    size_t at = 0;
    CHECK(pending && !pending->done, "an answer to nobody");
    for (int i = 1; i < count; at += iov[i++].iov_len) {
        CHECK(at + iov[i].iov_len <= sizeof(pending->bytes), "too long an answer");
        memcpy(pending->bytes + at, iov[i].iov_base, iov[i].iov_len);
    }
    pending->error = error;
    pending->done = true;
    wake(pending);
}

void __wrap_hm_reply(struct hm_core *to, uint64_t unique, int error, struct iovec *iov, int count);
void __wrap_hm_reply(struct hm_core *to, uint64_t unique, int error, struct iovec *iov, int count)
{
    (void)to;
    answer(unique, error, iov, count);
}

void __wrap_hm_reply_write(struct hm_core *to, uint64_t unique, uint32_t size);
void __wrap_hm_reply_write(struct hm_core *to, uint64_t unique, uint32_t size)
{
    (void)to;
    pending_of(unique)->written = size;
    answer(unique, 0, NULL, 0);
}

/* Send it and wait for the answer, in `ret` as well; the task is the gate's thread, too. */
static int request(struct hm_request request, struct pending *ret)
{
    *ret = (struct pending){.next = pendings, .unique = ++uniques};
    pendings = ret;
    request.unique = ret->unique;
    request.ino = INO;
    if (request.opcode == FUSE_WRITE)
        hm_order_read(core, request.unique);
    yield("a request that was read");
    hm_access(core, &request);
    while (!ret->done)
        block(ret, "a request that waits");
    for (struct pending **at = &pendings; *at; at = &(*at)->next)
        if (*at == ret) {
            *at = ret->next;
            break;
        }
    return ret->error;
}

/* Whether an operation may end with the error. */
static bool may_be(int error)
{
    return failed_once && (error == ENOSPC || error == ENOMEM || error == EMFILE || error == EIO);
}

static void send_write(uint32_t page, uint32_t size, const uint8_t *bytes, uint32_t flags)
{
    struct pending pending;
    int error = request((struct hm_request){.opcode = FUSE_WRITE,
                                            .offset = (uint64_t)page * PAGE,
                                            .size = size,
                                            .flags = flags,
                                            .data = bytes},
                        &pending);
    if (!error && pending.written < size)
        error = EIO;
    CHECK(!error || may_be(error), "a WRITE is refused with %d", error);
    for (uint32_t i = page; error && i < page + (size + PAGE - 1) / PAGE; i++)
        torn[i] = true;
}

/* ---- the kernel's page cache ----------------------------------------------------------------- */

enum kind { ABSENT, CLEAN, DIRTY, WRITEBACK, LOCKED };

static struct folio {
    enum kind kind;
    uint64_t value;
} folios[PAGES];

static void lock_folio(uint32_t page)
{
    while (folios[page].kind == LOCKED)
        block(&folios[page], "a folio's lock");
}

/* Neither locked nor being written back. */
static void settle_folio(uint32_t page)
{
    while (folios[page].kind == LOCKED || folios[page].kind == WRITEBACK)
        block(&folios[page], "a folio's lock, or its writeback");
}

static void set_folio(uint32_t page, enum kind kind, uint64_t value)
{
    folios[page] = (struct folio){kind, value};
    wake(&folios[page]);
}

static bool held_back; /* no writeback begins */
static int under_way;  /* of writebacks */

/* Have what was stored written back; `kind` says whether the folio is locked meanwhile. */
static void write_back(uint32_t page, enum kind kind)
{
    uint8_t bytes[PAGE];
    while (held_back)
        block(&held_back, "writeback that a truncate holds back");
    if (folios[page].kind != DIRTY)
        return;
    if (page >= beyond) {
        set_folio(page, CLEAN, folios[page].value);
        return;
    }
    bytes_of(folios[page].value, bytes);
    folios[page].kind = kind;
    under_way++;
    send_write(page, PAGE, bytes, FUSE_WRITE_CACHE);
    under_way--;
    wake(&under_way);
    set_folio(page, CLEAN, folios[page].value);
}

int __wrap_hm_invalidate(struct hm_core *of, uint64_t inode, uint64_t offset, uint64_t length);
int __wrap_hm_invalidate(struct hm_core *of, uint64_t inode, uint64_t offset, uint64_t length)
{
    (void)of;
    (void)inode;
    for (uint32_t page = (uint32_t)(offset / PAGE); page < (offset + length) / PAGE; page++) {
        if (page >= PAGES)
            continue;
        yield("an invalidation");
        for (settle_folio(page); folios[page].kind == DIRTY; settle_folio(page))
            write_back(page, LOCKED);
        torn[page] |= filled[page] && folios[page].kind != ABSENT;
        set_folio(page, ABSENT, 0);
    }
    return 0;
}

static void read_pages(uint32_t page, uint32_t count, uint32_t flags, struct pending *pending)
{
    request((struct hm_request){.opcode = FUSE_READ,
                                .offset = (uint64_t)page * PAGE,
                                .size = count * PAGE,
                                .flags = flags},
            pending);
}

/* Have the page in the page cache, not locked. False: the program gets a signal instead. */
static bool fault_in(uint32_t page)
{
    struct pending pending;
    for (;;) {
        while (page >= beyond)
            block(&beyond, "the file to be longer");
        lock_folio(page);
        if (folios[page].kind != ABSENT)
            return true;
        set_folio(page, LOCKED, 0);
        read_pages(page, 1, 0, &pending);
        if (pending.error) {
            CHECK(may_be(pending.error), "a READ is refused with %d", pending.error);
            set_folio(page, ABSENT, 0);
            return false;
        }
        set_folio(page, CLEAN, value_of(pending.bytes));
        yield("a page that was read");
    }
}

/* All of the file by one READ, if nothing of it is there. */
static void read_ahead(void)
{
    struct pending pending;
    for (uint32_t page = 0; page < PAGES; page++)
        if (folios[page].kind != ABSENT || beyond < PAGES)
            return;
    for (uint32_t page = 0; page < PAGES; page++)
        set_folio(page, LOCKED, 0);
    read_pages(0, PAGES, 0, &pending);
    CHECK(!pending.error || pending.error == EAGAIN || may_be(pending.error),
          "readahead is refused with %d", pending.error);
    for (uint32_t page = 0; page < PAGES; page++)
        set_folio(page, pending.error ? ABSENT : CLEAN,
                  pending.error ? 0 : value_of(pending.bytes + page * PAGE));
}

/* ---- devices --------------------------------------------------------------------------------- */

struct ended {
    bool done;
    int result;
};

static struct ended jobs[TASKS];
static uint32_t jobs_used;

static void run_queued(void *argument)
{
    if (hm_run(core, argument))
        free(argument);
}

void __wrap_hm_queue(struct hm_core *of, struct hm_queued_job *queued);
void __wrap_hm_queue(struct hm_core *of, struct hm_queued_job *queued)
{
    (void)of;
    queued->next = NULL;
    spawn("mover", run_queued, queued);
}

int __wrap_hm_submit(struct hm_core *of, const struct hm_job *job);
int __wrap_hm_submit(struct hm_core *of, const struct hm_job *job)
{
    struct hm_queued_job *queued = __real_malloc(sizeof(*queued));
    CHECK(queued, "memory");
    queued->job = *job;
    __wrap_hm_queue(of, queued);
    return 0;
}

void __wrap_hm_event_push(struct hm_core *of, const struct hm_event *event);
void __wrap_hm_event_push(struct hm_core *of, const struct hm_event *event)
{
    if (event->kind == HM_EVENT_JOB && event->cookie) {
        struct ended *job = &jobs[event->cookie - 1];
        job->result = event->result;
        job->done = true;
        wake(job);
    } else if (event->kind == HM_EVENT_FAULT) { /* as the service does: the pages come home */
        struct hm_job job = {.kind = HM_JOB_MIGRATE,
                             .ino = event->ino,
                             .block = event->block,
                             .flags = HM_JOB_QUIET | HM_JOB_FAULT,
                             .first = event->first,
                             .count = event->count};
        __wrap_hm_submit(of, &job);
    } else if (event->kind == HM_EVENT_NO_CAPACITY) { /* no region is on its way out */
        CHECK(!hm_gate_retry(of, event->cookie, 1), "answered all the same");
    }
}

static int run_job_here(struct hm_job job)
{
    struct ended *end = &jobs[jobs_used++];
    CHECK(jobs_used < TASKS, "jobs");
    *end = (struct ended){0};
    job.cookie = jobs_used;
    job.ino = INO;
    __wrap_hm_submit(core, &job);
    while (!end->done)
        block(end, "a job");
    return end->result;
}

/* ---- programs -------------------------------------------------------------------------------- */

enum operation {
    LOAD,
    LOAD_AHEAD,
    LOAD_DIRECT,
    STORE,
    SYNC,
    WRITE,
    WRITE_TWO,
    WRITE_PART,
    PUNCH,
    ZERO,
    TRUNCATE,
    DEVICE_READ,
    DEVICE_WRITE,
    WORKER_LOAD,
    WORKER_STORE,
    MIGRATE,
    HOME,
    RECALL,
    COPY,
    OPERATIONS_KNOWN
};

static struct program {
    struct {
        enum operation what;
        uint32_t page, node;
        uint64_t bits[2];
    } does[OPERATIONS];
    int count;
    bool has_it_open; /* for writing */
} programs[PROGRAMS];

static bool writing; /* the inode's lock: one write(2) or fallocate(2) at a time */

static void take_inode(void)
{
    while (writing)
        block(&writing, "the inode's lock");
    writing = true;
}

static void give_inode(void)
{
    writing = false;
    wake(&writing);
}

static void load(uint32_t page)
{
    if (!fault_in(page))
        return;
    see(page, folios[page].value, "a program's load", required[page], forbidden[page]);
}

static void store(uint32_t page, uint64_t bit)
{
    do {
        settle_folio(page);
        if (!fault_in(page))
            return;
    } while (folios[page].kind == WRITEBACK);
    set_folio(page, DIRTY, folios[page].value | bit);
    if (!voiding[page])
        required[page] |= bit;
    else
        torn[page] = true;
}

/* `count` pages, with `part` and the first word of the one that follows: if it is not there its
 * folio is locked until the answer. */
static void write_file(uint32_t page, uint32_t count, const uint64_t *bits, bool part)
{
    uint8_t bytes[3 * PAGE] = {0};
    uint32_t last = page + count;
    bool locked = false;
    take_inode();
    for (uint32_t i = 0; i < count; i++) {
        settle_folio(page + i);
        begin_void(page + i);
        bytes_of(bits[i], bytes + i * PAGE);
        filled[page + i] = true;
        set_folio(page + i, folios[page + i].kind == DIRTY ? DIRTY : CLEAN, bits[i]);
    }
    if (part) {
        settle_folio(last);
        locked = folios[last].kind == ABSENT;
        filled[last] = true;
        set_folio(last, locked ? LOCKED : folios[last].kind, folios[last].value | 1);
        bytes[count * PAGE] = 1;
    }
    for (uint32_t i = 0; i < count + (part && !locked); i++)
        settle_folio(page + i);
    send_write(page, count * PAGE + 8 * part, bytes, 0);
    if (locked)
        set_folio(last, ABSENT, 0);
    memset(filled, 0, sizeof(filled));
    for (uint32_t i = 0; i < count; i++)
        end_void(page + i, bits[i]);
    if (part && !voiding[last])
        required[last] |= 1;
    give_inode();
}

static void load_direct(uint32_t page)
{
    struct pending pending;
    uint64_t must = required[page], must_not = forbidden[page];
    uint32_t before = voids[page];
    for (settle_folio(page); folios[page].kind == DIRTY; settle_folio(page))
        write_back(page, WRITEBACK);
    if (page >= beyond)
        return;
    read_pages(page, 1, O_DIRECT, &pending);
    CHECK(!pending.error || may_be(pending.error), "direct I/O fails with %d", pending.error);
    if (pending.error)
        return;
    see(page, value_of(pending.bytes), "direct I/O", voids[page] == before ? must : 0, must_not);
}

/* To the page and back. The kernel lets no writeback begin from before the request until that is
 * answered, and sends nothing past the new end. Then it drops what was cut, which waits for locks
 * of folios (Linux 6.18, fuse_do_setattr). */
static void truncate_file(uint32_t page)
{
    take_inode();
    held_back = true;
    while (under_way)
        block(&under_way, "the end of writeback");
    for (uint32_t i = page; i < PAGES; i++)
        begin_void(i);
    beyond = page;
    CHECK(!hm_region_truncate(core, INO, (uint64_t)page * PAGE), "truncate");
    held_back = false;
    wake(&held_back);
    yield("a truncate that was answered");
    for (uint32_t i = page; i < PAGES; i++) {
        settle_folio(i);
        set_folio(i, ABSENT, 0);
    }
    yield("a file that was cut");
    CHECK(!hm_region_truncate(core, INO, PAGES * PAGE), "truncate");
    beyond = PAGES;
    wake(&beyond);
    for (uint32_t i = page; i < PAGES; i++)
        end_void(i, 0);
    give_inode();
}

static void punch(uint32_t page, bool allocates)
{
    take_inode();
    for (settle_folio(page); folios[page].kind == DIRTY; settle_folio(page))
        write_back(page, WRITEBACK);
    begin_void(page);
    CHECK(!hm_region_punch(core, INO, (uint64_t)page * PAGE, PAGE), "punch");
    if (allocates) {
        int error = hm_region_allocate(core, INO, (uint64_t)page * PAGE, PAGE);
        CHECK(!error || may_be(-error), "allocate: %d", error);
    }
    settle_folio(page);
    set_folio(page, ABSENT, 0);
    end_void(page, 0);
    give_inode();
}

static void device_read(uint32_t page, uint32_t node)
{
    uint8_t bytes[PAGE] = {0};
    uint64_t must = required[page], must_not = forbidden[page];
    uint32_t before = voids[page];
    int error = run_job_here((struct hm_job){
        .kind = HM_JOB_READ, .node = node, .offset = page * PAGE, .length = PAGE, .buffer = bytes});
    CHECK(!error || error == -EBUSY || error == -ERANGE || may_be(-error),
          "a device's read fails with %d", error);
    if (!error)
        see(page, value_of(bytes), "a device's read", voids[page] == before ? must : 0, must_not);
}

static void device_write(uint32_t page, uint32_t node, uint64_t bit)
{
    uint64_t one = 1;
    uint32_t before = voids[page], at = (uint32_t)__builtin_ctzll(bit);
    bool lost = voiding[page]; /* perhaps: neither comes before the other */
    int error = run_job_here((struct hm_job){.kind = HM_JOB_WRITE,
                                             .node = node,
                                             .offset = page * PAGE + at * 8,
                                             .length = sizeof(one),
                                             .buffer = &one});
    CHECK(!error || error == -EBUSY || error == -ERANGE || may_be(-error),
          "a device's write fails with %d", error);
    if (!error && !lost && voids[page] == before)
        required[page] |= bit;
}

/* A worker's load or store, at one moment. False: it faults. The worker reaches every page that its
 * device's pool has, and may store to those that the device owns and that are dirty. */
static bool reaches(struct hm_region *region, uint32_t page, uint32_t node, uint64_t bit)
{
    const struct hm_block *record = &region->blocks[0];
    struct hm_pool *pool = &region->pools[node];
    uint8_t *bytes;
    bool mine;
    if (hm_pool_is_hole(pool, page * PAGE) || !(bytes = hm_pool_map(pool, page * PAGE)))
        return false;
    mine = record->owner[page] == node && hm_test(record->device, page);
    if (!bit) {
        struct hm_mask copies = hm_copies_on(region, 0, node);
        /* Of what is being copied a cut may be missed: see "Not covered" in coherence.md. */
        bool settled = mine || hm_test(copies.word, page);
        see(page, value_of(bytes), "a worker's load", required[page],
            settled ? forbidden[page] : 0);
        return true;
    }
    if (record->busy || !mine || !hm_test(record->dirty, page))
        return false;
    bytes[8 * __builtin_ctzll(bit)] = 1;
    if (!voiding[page])
        required[page] |= bit;
    return true;
}

/* Of a worker without a process: its faults become jobs, but nothing has to be mapped. */
static void work(uint32_t page, uint32_t node, uint64_t bit)
{
    struct hm_region *region = hm_region_get(core, INO);
    struct hm_job fault = {.kind = HM_JOB_DEVICE_FAULT, .node = node};
    int tries = 3, error = 0;
    fault.pages[0] = bit ? 0 : 1ULL << page;
    fault.stores[0] = bit ? 1ULL << page : 0;
    while (!error && page < beyond && !reaches(region, page, node, bit) && tries--)
        error = run_job_here(fault);
    CHECK(!error || error == -EBUSY || error == -ERANGE || may_be(-error),
          "a worker's fault fails with %d", error);
    hm_region_put(region);
}

/* A program opens the file for writing before it first does what takes that. */
static void open_file(struct program *program, enum operation what)
{
    bool takes_it = what == STORE || what == WRITE || what == WRITE_TWO || what == WRITE_PART ||
                    what == PUNCH || what == ZERO;
    if (!takes_it || program->has_it_open)
        return;
    program->has_it_open = true;
    yield("an open for writing");
    CHECK(!hm_region_writers(core, INO, 1), "open");
}

/* What was stored is written back before the last mapping is gone, and that is before the release.
 */
static void close_file(struct program *program)
{
    if (!program->has_it_open)
        return;
    for (uint32_t page = 0; page < PAGES; page++)
        for (settle_folio(page); folios[page].kind == DIRTY; settle_folio(page))
            write_back(page, WRITEBACK);
    yield("a release");
    CHECK(!hm_region_writers(core, INO, -1), "release");
}

static void program_main(void *argument)
{
    struct program *program = argument;
    for (int i = 0; i < program->count; i++) {
        uint32_t page = program->does[i].page, node = program->does[i].node;
        struct hm_job move = {.kind = HM_JOB_MIGRATE, .node = node, .first = page, .count = 1};
        open_file(program, program->does[i].what);
        switch (program->does[i].what) {
        case LOAD_AHEAD:
            read_ahead(); /* fall through */
        case LOAD:
            load(page);
            break;
        case LOAD_DIRECT:
            load_direct(page);
            break;
        case STORE:
            store(page, program->does[i].bits[0]);
            break;
        case SYNC:
            lock_folio(page);
            if (folios[page].kind == DIRTY)
                write_back(page, WRITEBACK);
            break;
        case WRITE:
        case WRITE_TWO:
        case WRITE_PART:
            write_file(page, program->does[i].what == WRITE_TWO ? 2 : 1, program->does[i].bits,
                       program->does[i].what == WRITE_PART);
            break;
        case PUNCH:
        case ZERO:
            punch(page, program->does[i].what == ZERO);
            break;
        case TRUNCATE:
            truncate_file(page);
            break;
        case DEVICE_READ:
            device_read(page, node);
            break;
        case DEVICE_WRITE:
            device_write(page, node, program->does[i].bits[0]);
            break;
        case WORKER_LOAD:
        case WORKER_STORE:
            work(page, node, program->does[i].what == WORKER_STORE ? program->does[i].bits[0] : 0);
            break;
        case RECALL:
            move.kind = HM_JOB_RECALL; /* fall through */
        case HOME:
            move.node = HM_HOST; /* fall through */
        case COPY:
        case MIGRATE:
            if (program->does[i].what == COPY)
                move.flags = HM_JOB_ASKED; /* of read-mostly pages a copy */
            move.count = PAGES - page;     /* it may be all pages */
            run_job_here(move);
            break;
        default:
            CHECK(false, "no such operation");
        }
    }
    close_file(program);
}

/* ---- schedules ------------------------------------------------------------------------------- */

static const char *const names[PROGRAMS] = {"first", "second", "third", "fourth"};
static const char *const words[] = {"load",
                                    "load ahead",
                                    "load direct",
                                    "store",
                                    "sync",
                                    "write",
                                    "write two",
                                    "write part",
                                    "punch",
                                    "zero",
                                    "truncate",
                                    "read by device",
                                    "write by device",
                                    "load by worker",
                                    "store by worker",
                                    "migrate",
                                    "home",
                                    "recall",
                                    "copy"};

static void make_programs(void)
{
    int count = 2 + (int)(draw() % (PROGRAMS - 1));
    for (int p = 0; p < PROGRAMS; p++) {
        struct program *program = &programs[p];
        program->count = p < count ? 1 + (int)(draw() % OPERATIONS) : 0;
        program->has_it_open = false;
        for (int i = 0; i < program->count; i++) {
            /* Of read-mostly pages most of all what copies are about. */
            static const enum operation about_copies[] = {LOAD, STORE, WORKER_LOAD, COPY};
            enum operation what = read_mostly && draw() % 4
                                      ? about_copies[draw() % 4]
                                      : (enum operation)(draw() % OPERATIONS_KNOWN);
            bool two = what == WRITE_TWO || what == WRITE_PART;
            if (what == WRITE_PART && part_used)
                what = WRITE;
            part_used |= what == WRITE_PART;
            program->does[i].what = what;
            /* few pages: operations are to meet */
            program->does[i].page = (uint32_t)(draw() % 4 % (two ? PAGES - 1 : PAGES));
            program->does[i].node = 1 + (uint32_t)(draw() % 2);
            program->does[i].bits[0] = new_bit();
            program->does[i].bits[1] = new_bit();
        }
    }
}

static void tell_programs(void)
{
    fprintf(stderr, "seed %llu\n", (unsigned long long)seed);
    for (int p = 0; p < PROGRAMS; p++)
        for (int i = 0; i < programs[p].count; i++)
            fprintf(stderr, "      %s: %s page %u, device %u, bits %llx and %llx\n", names[p],
                    words[programs[p].does[i].what], programs[p].does[i].page,
                    programs[p].does[i].node, (unsigned long long)programs[p].does[i].bits[0],
                    (unsigned long long)programs[p].does[i].bits[1]);
}

static void failed(void)
{
    current = NULL;
    tell_programs();
    tell_schedule();
    _exit(1); /* not by what other tasks have on their stacks */
}

static void forget(void)
{
    memset(required, 0, sizeof(required));
    memset(forbidden, 0, sizeof(forbidden));
    memset(voided, 0, sizeof(voided));
    memset(voids, 0, sizeof(voids));
    memset(filled, 0, sizeof(filled));
    memset(torn, 0, sizeof(torn));
    memset(folios, 0, sizeof(folios));
    bits_used = 1; /* the first word of a page is what is written of it in part */
    jobs_used = 0;
    uniques = 0;
    part_used = failed_once = false;
    beyond = PAGES;
}

/* In a part of the schedules the pages have bytes at first. */
static void first_bytes(void)
{
    uint64_t bit = new_bit(), at = (uint64_t)__builtin_ctzll(bit) * 8;
    if (draw() % 3 == 0)
        return;
    for (uint32_t page = 0; page < PAGES; page++) {
        struct hm_job fill = {
            .kind = HM_JOB_WRITE, .node = 1, .offset = page * PAGE + (uint32_t)at, .length = 8};
        uint64_t one = 1;
        struct hm_queued_job *queued = calloc(1, sizeof(*queued));
        CHECK(queued, "memory");
        fill.ino = INO;
        fill.buffer = &one;
        fill.flags = HM_JOB_QUIET;
        queued->job = fill;
        CHECK(hm_run(core, queued), "the first bytes");
        free(queued);
        required[page] = bit;
    }
}

static void check_end(void)
{
    for (uint32_t page = 0; page < PAGES; page++) {
        spawn("the last load", (void (*)(void *))(void *)load, (void *)(uintptr_t)page);
    }
    run_tasks(seed, 0, 1);
}

/* With a core of its own: a schedule that is had again finds all as it was. */
static void play(void)
{
    struct hm_config config = {.nodes = 3, .threads = 1, .capacity = {2048, 2048, 2048}};
    struct hm_region_record *record;
    char text[256] = "";
    uint64_t kind;
    forget();
    steps = 0;
    chance = seed * 0x2545f4914f6cdd1dULL | 1;
    for (int i = 0; i < 8; i++)
        draw();
    config.keep_clean = draw() & 1;
    config.express = draw() % 4 != 0;
    CHECK(!hm_core_create(&config, &core), "core");
    CHECK(!hm_region_create(core, INO, S_IFREG | 0600, 0, 0, &record), "region");
    CHECK(!hm_region_truncate(core, INO, PAGES * PAGE), "size");
    read_mostly = draw() % 4 == 0;
    if (read_mostly)
        CHECK(!hm_advise(core, INO, 0, PAGES, HM_ADVICE_READ_MOSTLY, 1), "advice");
    if (draw() % 2) /* another program has it open to the end */
        CHECK(!hm_region_writers(core, INO, 1), "open");
    first_bytes();
    make_programs();
    for (int p = 0; p < PROGRAMS; p++)
        if (programs[p].count)
            spawn(names[p], program_main, &programs[p]);
    kind = draw() % 8;
    faults = kind == 0 ? MADE_GOOD : kind == 1 ? ERRORS : NO_FAULTS;
    faults_chance = seed;
    run_tasks(seed, (int)(seed % 4), 150);
    faults = NO_FAULTS;
    check_end();
    CHECK(!hm_audit(core, text, sizeof(text)), "audit: %s", text);
    hm_core_destroy(core);
}

void hm_steps_begin(void); /* steps.c */

int main(int argc, char **argv)
{
    uint64_t first, count;
    CHECK(argc == 3, "usage: schedules FIRST COUNT");
    first = strtoull(argv[1], NULL, 0);
    count = strtoull(argv[2], NULL, 0);
    make_stacks();
    hm_steps_begin();
    on_failure = failed;
    for (seed = first; seed < first + count; seed++)
        play();
    printf("schedules %llu\n", (unsigned long long)count);
    return 0;
}
