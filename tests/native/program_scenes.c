/* Hazards of programs' own memory: a program under the preloaded library, which loads, stores,
 * moves and discards what it is told to, while devices take its pages. Otherwise as
 * interleavings.c.
 *
 *   program_scenes SCENE LIBRARY     (root: for userfaultfd's events) */
#include "orders.h"

#include "greeting.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#define PAGE HM_PAGE_SIZE
#define HERE 0x100000200000UL  /* the program's pages: a block */
#define THERE 0x100000600000UL /* where nothing is mapped until some of them go there */

/* ---- the program ------------------------------------------------------------------------------
 */

static pid_t program;

static void carry_out(void)
{
    void *at = (void *)order->address, *to = (void *)(order->address - HERE + THERE);
    if (order->deed == LOAD || order->deed == STORE)
        load_or_store(at);
    else if (order->deed == MOVE || order->deed == LEAVE) {
        int flags = MREMAP_MAYMOVE | MREMAP_FIXED;
        flags |= order->deed == LEAVE ? MREMAP_DONTUNMAP : 0;
        CHECK(mremap(at, PAGE, PAGE, flags, to) == to, "mremap");
    } else if (order->deed == DISCARD)
        CHECK(!madvise(at, PAGE, MADV_DONTNEED), "madvise");
    else
        CHECK(!syscall(SYS_madvise, at, PAGE, MADV_DONTNEED), "madvise");
}

static _Noreturn void be_the_program(void)
{
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    CHECK(mmap((void *)HERE, HM_BLOCK_BYTES, PROT_READ | PROT_WRITE, flags, -1, 0) == (void *)HERE,
          "mmap");
    obey(carry_out);
}

static const char *library;

/* A program whose page HERE has an 'A', attached as the region. */
static void begin_with_program(void)
{
    struct hm_config config = {.nodes = 3, .threads = 1, .capacity = {2048, 2048, 2048}};
    struct hm_welcome welcome = {.version = HM_PRELOAD_VERSION};
    struct hm_hello hello;
    int fds[2], listener, peer, memory = memfd_create("order", 0);
    char name[64], number[16];
    pid_t pid;
    CHECK(memory >= 0 && !ftruncate(memory, PAGE), "memory");
    share_orders(memory);
    listener = listen_at(name);
    snprintf(number, sizeof(number), "%d", memory);
    program = fork();
    if (!program) {
        setenv("HMMFS_SOCKET", name, 1);
        setenv("LD_PRELOAD", library, 1);
        execl("/proc/self/exe", "program", "obey", number, (char *)NULL);
        _exit(127);
    }
    CHECK(!hm_core_create(&config, &core), "core");
    peer = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    CHECK(peer >= 0 && receive_hello(peer, &hello, fds), "hello");
    CHECK(!attach_program(core, INO, peer, &hello, fds, &pid) && pid == program, "attach");
    CHECK(send(peer, &welcome, sizeof(welcome), 0) == sizeof(welcome), "welcome");
    region = hm_region_get(core, INO);
    UNTIL(atomic_load(&order->ready));
    now(STORE, HERE, 'A');
}

static void end_program(void)
{
    int status;
    kill(program, SIGKILL);
    waitpid(program, &status, 0);
    CHECK(!hm_process_detach(core, INO, false), "detach");
    hm_region_put(region);
    CHECK(!hm_region_destroy(core, INO), "destroy");
    audit();
    hm_core_destroy(core);
}

static struct hm_job of(struct hm_job job, uint64_t address)
{
    int64_t offset = hm_process_offset(core, INO, address, PAGE);
    CHECK(offset >= 0, "there is no such address");
    job.block = (uint64_t)offset / HM_BLOCK_BYTES;
    return job;
}

static struct hm_job take(void)
{
    return of(a_move(1, 0, 1), HERE);
}

/* Its page has left the program, and is nowhere yet. */
static struct hm_job begin_take(struct hold *moved)
{
    struct hm_job job = take();
    hold(moved, "take.moved");
    submit(job);
    await(moved);
    return job;
}

static bool is_taken(void)
{
    return hm_region_is_touched(region, take().block) && region->blocks[take().block].device[0] & 1;
}

/* The kernel has something to say of the program. */
static bool is_told(void)
{
    struct pollfd ready = {.fd = region->process->uffd, .events = POLLIN};
    return poll(&ready, 1, 0) == 1;
}

/* A mover waits for a page of the program. */
static bool a_mover_faults(void)
{
    for (int slot = 0; slot < HM_MAX_MOVERS; slot++) {
        uint32_t thread = atomic_load(&region->process->remote[slot]);
        char path[64], where[32] = "";
        int fd;
        snprintf(path, sizeof(path), "/proc/self/task/%u/wchan", thread);
        fd = thread ? open(path, O_RDONLY | O_CLOEXEC) : -1;
        if (fd < 0)
            continue;
        if (read(fd, where, sizeof(where) - 1) < 0)
            where[0] = 0;
        close(fd);
        if (!strcmp(where, "handle_userfault"))
            return true;
    }
    return false;
}

/* ---- scenes -----------------------------------------------------------------------------------
 */

/* A page moves while it is taken: it is where it went. */
static void moved_while_it_is_taken(void)
{
    struct hm_job job;
    struct hold moved;
    begin_with_program();
    job = begin_take(&moved);
    now(MOVE, HERE, 0);
    let_go(&moved);
    CHECK(!await_job(job.cookie), "take");
    CHECK(now(LOAD, THERE, 0) == 'A', "its bytes have not moved");
}

/* A page is discarded while it is taken: it is not to come back. */
static void discarded_while_it_is_taken(void)
{
    uint8_t byte = 1;
    struct hm_job job,
        load = {.kind = HM_JOB_READ, .cookie = ++uniques, .node = 1, .length = 1, .buffer = &byte};
    struct hold moved;
    begin_with_program();
    job = begin_take(&moved);
    now(DISCARD, HERE, 0);
    let_go(&moved);
    CHECK(!await_job(job.cookie), "take");
    load.block = job.block;
    CHECK(!run_job(load) && byte == 0, "the device has what was discarded");
    CHECK(now(LOAD, HERE, 1) == 0, "bytes that were discarded are back");
}

/* The kernel drops a page some time after it has said so. Until the library says that it has,
 * nothing is taken from there. */
static void about_to_be_discarded(void)
{
    struct hm_discarding *entry;
    begin_with_program();
    entry = &region->process->control->discarding[HM_PRELOAD_DISCARDS - 1];
    entry->end = HERE + PAGE;
    __atomic_store_n(&entry->start, HERE, __ATOMIC_SEQ_CST);
    (void)run_job(take());
    CHECK(!is_taken(), "it is taken");
    __atomic_store_n(&entry->start, 0, __ATOMIC_SEQ_CST);
    CHECK(!run_job(take()) && is_taken(), "it is not taken");
}

/* Where the library does not know of it, the event is the only news: it is noted for some time. */
static void discarded_unsaid(void)
{
    struct hm_mask noted;
    bool found = false;
    begin_with_program();
    CHECK(!run_job(take()), "take"); /* from now on the kernel tells of it */
    now(DISCARD_UNSAID, HERE, 0);
    for (int i = 0; i < HM_DISCARDS; i++) {
        const struct hm_discard *one = &region->process->discard[i];
        found |= one->until_ns && one->start == HERE && one->end == HERE + PAGE;
    }
    CHECK(found, "nobody has noted it");
    region->process->discard[0].until_ns = UINT64_MAX;
    noted = hm_process_discards(region->process, take().block);
    CHECK(noted.word[0] == 1 && hm_bits(noted.word) == 1, "it is not left where it is");
    CHECK(now(LOAD, HERE, 1) == 0, "bytes that were discarded are back");
}

/* The kernel hands out faults before events that are older. A thread of ours waits for a page that
 * has just moved there from a device: what it is given has to wait for the news of that. */
static void faults_come_first(void)
{
    uint8_t byte = 0;
    struct hm_job load = {.kind = HM_JOB_READ,
                          .flags = HM_JOB_REMOTE,
                          .cookie = ++uniques,
                          .node = 2,
                          .length = 1,
                          .buffer = &byte};
    struct hold begun, turn;
    begin_with_program();
    CHECK(!run_job(take()) && is_taken(), "take");
    hold(&begun, "remote.begun");
    submit(of(load, THERE));
    await(&begun);
    hold(&turn, "process.turn");
    begin_to(LEAVE, HERE, 0); /* one event: with two there is news until the second is read */
    UNTIL(is_told());
    let_go(&begun);
    UNTIL(a_mover_faults());
    let_go(&turn);
    UNTIL(atomic_load(&order->done));
    CHECK(!await_job(load.cookie), "load");
    CHECK(byte == 'A', "a device finds %#x where the page has gone", byte);
    CHECK(now(LOAD, THERE, 0) == 'A', "its bytes have not moved");
}

/* Who faults at a block that is held is woken when it is free, and not before: it would wait for
 * ever. */
static void fault_at_a_held_block(void)
{
    struct hm_job job;
    struct hold moved, freed;
    begin_with_program();
    job = begin_take(&moved);
    begin_to(LOAD, HERE, 0);
    UNTIL(region->blocks[job.block].parked);
    hold(&freed, "job.freed");
    let_go(&moved);
    await(&freed);
    CHECK(!happens(&order->done), "it is served before its turn");
    let_go(&freed);
    UNTIL(atomic_load(&order->done));
    CHECK(order->byte == 'A', "its bytes are lost");
    CHECK(!await_job(job.cookie), "take");
}

static void stop_program(void)
{
    int status;
    CHECK(!kill(program, SIGSTOP) && waitpid(program, &status, WUNTRACED) == program, "stop");
}

/* What was asked for in vain is not done later. */
static void goes_on_with_all(void)
{
    CHECK(!is_taken(), "it is taken");
    CHECK(!kill(program, SIGCONT), "go on");
    CHECK(now(LOAD, HERE, 0) == 'A', "its bytes are lost");
    usleep(50000); /* enough for the helper to do what it still finds */
    CHECK(now(LOAD, HERE, 0) == 'A', "its bytes are lost");
    CHECK(!run_job(take()) && is_taken(), "it is not taken");
    CHECK(now(LOAD, HERE, 0) == 'A', "its bytes are lost");
}

/* A stopped program's helper does not answer in time: nothing is taken. */
static void stopped_while_it_is_asked(void)
{
    begin_with_program();
    stop_program();
    CHECK(run_job(take()) == -EBUSY, "it can't be taken");
    goes_on_with_all();
}

/* And so if it has so much to read that it can't be asked, though what it reads leads it there. */
static void asked_too_much(void)
{
    uint32_t number = 0;
    begin_with_program();
    stop_program();
    while (send(region->process->socket, &number, sizeof(number), MSG_DONTWAIT | MSG_NOSIGNAL) > 0)
        ;
    CHECK(errno == EAGAIN, "send");
    CHECK(run_job(take()) == -EBUSY, "it can't be taken");
    goes_on_with_all();
}

/* -----------------------------------------------------------------------------------------------
 */

static const struct scene scenes[] = {
    SCENE(moved_while_it_is_taken),   SCENE(discarded_while_it_is_taken),
    SCENE(about_to_be_discarded),     SCENE(discarded_unsaid),
    SCENE(faults_come_first),         SCENE(fault_at_a_held_block),
    SCENE(stopped_while_it_is_asked), SCENE(asked_too_much),
};

int main(int argc, char **argv)
{
    CHECK(argc == 3, "usage: program_scenes SCENE LIBRARY");
    if (!strcmp(argv[1], "obey")) {
        share_orders(atoi(argv[2]));
        be_the_program();
    }
    library = argv[2];
    play(scenes, sizeof(scenes) / sizeof(*scenes), argv[1]);
    end_program();
    return 0;
}
