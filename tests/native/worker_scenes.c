/* Hazards that take a device's worker: a process with true page faults, which loads and stores what
 * it is told to. Otherwise as interleavings.c.
 *
 *   worker_scenes SCENE */
#include "orders.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "descriptors.h"

#define PAGE HM_PAGE_SIZE
#define BYTES HM_BLOCK_BYTES

/* ---- the worker -------------------------------------------------------------------------------
 */

static pid_t worker;
static volatile uint8_t *window; /* the worker's */

static void wake_up(int number)
{
    (void)number;
}

static void carry_out(void)
{
    load_or_store(&window[order->address]);
}

static _Noreturn void work(int channel)
{
    struct uffdio_api api = {UFFD_API, UFFD_FEATURE_PAGEFAULT_FLAG_WP, 0};
    struct uffdio_register range = {.mode = UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP};
    /* Nobody but itself uses its memory, and an ordinary user gets no other. */
    int pool, uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    signal(SIGUSR1, wake_up);
    CHECK(uffd >= 0 && !ioctl(uffd, UFFDIO_API, &api), "userfaultfd");
    receive_fd(channel, &pool);
    window = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, pool, 0);
    CHECK(window != MAP_FAILED, "mmap");
    range.range = (struct uffdio_range){(uintptr_t)window, BYTES};
    CHECK(!ioctl(uffd, UFFDIO_REGISTER, &range), "register");
    send_fd(channel, (uintptr_t)window, uffd);
    obey(carry_out);
}

static void worker_stores(uint32_t page, uint8_t byte)
{
    now(STORE, (uint64_t)page * PAGE, byte);
}

static uint8_t worker_loads(uint32_t page)
{
    return now(LOAD, (uint64_t)page * PAGE, 0);
}

/* With a worker on device 1, which is forked before there are threads. */
static void begin_with_worker(void)
{
    static const struct hm_prefetch alone = {HM_PREFETCH_TABLE, {1, 1, 1, 1}};
    uint64_t address;
    int channel[2], uffd, pool;
    share_orders(-1);
    CHECK(!socketpair(AF_UNIX, SOCK_SEQPACKET, 0, channel), "socketpair");
    worker = fork();
    if (!worker)
        work(channel[1]);
    close(channel[1]); /* so that its end is noticed */
    begin((struct hm_config){.nodes = 3,
                             .threads = 1,
                             .express = 1,
                             .keep_clean = 1,
                             .capacity = {2048, 2048, 2048}},
          BYTES);
    CHECK(!hm_prefetch_set(core, 1, &alone), "policy");
    pool = hm_pool_descriptor(core, INO, 1);
    CHECK(pool >= 0, "pool");
    send_fd(channel[0], 0, pool);
    address = receive_fd(channel[0], &uffd);
    CHECK(!hm_device_attach(core, 1, uffd, -1), "attach");
    CHECK(!hm_device_map(core, 1, INO, address, BYTES), "map");
    close(pool);
}

/* ---- scenes -----------------------------------------------------------------------------------
 */

/* A page is copied home while the worker stores to it: the store has to wait, and comes after. */
static void store_while_it_is_copied(void)
{
    struct hm_job move = a_move(HM_HOST, 0, 1);
    struct hold copied;
    begin_with_worker();
    worker_stores(0, 'A');
    hold(&copied, "carry.copied");
    submit(move);
    await(&copied);
    begin_to(STORE, 0, 'B');
    CHECK(!happens(&order->done), "it stores to a page that has been copied");
    let_go(&copied);
    CHECK(!await_job(move.cookie), "migrate");
    UNTIL(atomic_load(&order->done));
    CHECK(load(0) == 'B', "a store is lost");
}

/* What has come to the device is as the host's copy until the worker stores: the first store has to
 * be seen. */
static void first_store(void)
{
    begin_with_worker();
    store(0, 1, 'A');
    CHECK(worker_loads(0) == 'A', "load");
    worker_stores(0, 'B');
    CHECK(!run_job(a_move(HM_HOST, 0, 1)), "home");
    CHECK(load(0) == 'B', "nobody saw the store");
}

/* The same of more pages than are put into the window one by one. */
static void first_store_of_many(void)
{
    static const struct hm_prefetch many = {HM_PREFETCH_TABLE, {64, 64, 64, 64}};
    begin_with_worker();
    CHECK(!hm_prefetch_set(core, 1, &many), "policy");
    store(0, 64, 'A');
    CHECK(worker_loads(0) == 'A' && worker_loads(63) == 'A', "load");
    worker_stores(63, 'B');
    CHECK(!run_job(a_move(HM_HOST, 0, 64)), "home");
    CHECK(load(63) == 'B', "nobody saw the store");
    CHECK(load(62) == 'A', "load");
}

/* The page that a fault is about is cut before the worker is woken: it has to fault anew. */
static void cut_before_the_wake(void)
{
    struct hold flipped;
    begin_with_worker();
    store(0, 1, 'A');
    hold(&flipped, "bring.flipped");
    begin_to(LOAD, 0, 1);
    await(&flipped);
    CHECK(!hm_region_punch(core, INO, 0, PAGE), "punch");
    let_go(&flipped);
    UNTIL(atomic_load(&order->done));
    CHECK(order->byte == 0, "bytes that were cut are back");
}

/* A migration to the device that is given up reads its source through a mapping, for a worker that
 * waits: what was cut there would be made again. */
static void cut_before_it_is_handed_over(void)
{
    struct hold planned;
    begin_with_worker();
    store(0, 1, 'A');
    hold(&planned, "bring.planned");
    begin_to(LOAD, 0, 1);
    await(&planned);
    CHECK(!hm_region_punch(core, INO, 0, PAGE), "punch");
    let_go(&planned);
    UNTIL(atomic_load(&order->done));
    CHECK(order->byte == 0, "bytes that were cut are back");
    audit();
}

/* A page may be stored to from the moment that it is unprotected, and not only by who is woken. It
 * is marked by then, or it would come home without that store. */
static void store_before_the_wake(void)
{
    struct hold freed, early;
    begin_with_worker();
    store(0, 1, 'A');
    CHECK(worker_loads(0) == 'A', "load");
    hold(&early, "fault.unmarked"); /* where the mistake is made */
    hold(&freed, "job.freed");
    begin_to(STORE, 0, 'B');
    UNTIL(is_held(&freed) || is_held(&early));
    CHECK(!kill(worker, SIGUSR1), "kill"); /* it tries again */
    UNTIL(atomic_load(&order->done));
    CHECK(load(0) == 'B', "nobody saw the store");
    let_go(&early);
    let_go(&freed);
}

/* The worker goes on when the block is free, and not before: its next fault would find it busy. */
static void woken_when_it_is_free(void)
{
    struct hold freed;
    begin_with_worker();
    hold(&freed, "job.freed");
    begin_to(LOAD, 0, 1);
    await(&freed);
    CHECK(!happens(&order->done), "it goes on before its turn");
    let_go(&freed);
    UNTIL(atomic_load(&order->done));
}

/* -----------------------------------------------------------------------------------------------
 */

static const struct scene scenes[] = {
    SCENE(store_while_it_is_copied),     SCENE(first_store),
    SCENE(first_store_of_many),          SCENE(cut_before_the_wake),
    SCENE(cut_before_it_is_handed_over), SCENE(store_before_the_wake),
    SCENE(woken_when_it_is_free),
};

int main(int argc, char **argv)
{
    play(scenes, sizeof(scenes) / sizeof(*scenes), argc > 1 ? argv[1] : "");
    kill(worker, SIGKILL);
    waitpid(worker, NULL, 0);
    CHECK(!hm_device_detach(core, 1), "detach");
    end();
    return 0;
}
