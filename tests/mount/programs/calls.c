/* calls MODE MILLISECONDS: the kernel reads and writes memory that devices have. */
#include "check.h"

#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>

#define BYTES (64 * PAGE)

static char *memory;
static uint64_t until;
static uint32_t seed = 5;

static void files_with(int flags)
{
    const char *path = getenv("SCRATCH_FILE");
    int file = open(path, O_RDWR | O_CREAT | O_TRUNC | flags, 0600);
    CHECK(file >= 0);
    while (now_ms() < until) {
        uint64_t value = next(&seed);
        stamp(memory, BYTES, value);
        usleep(300);
        CHECK(pwrite(file, memory, BYTES, 0) == BYTES);
        stamp(memory, BYTES, 0);
        usleep(300);
        CHECK(pread(file, memory, BYTES, 0) == BYTES);
        usleep(300);
        CHECK(is_stamped(memory, BYTES, value));
    }
    close(file);
}

static void files(void)
{
    files_with(0);
}

static void direct(void)
{
    files_with(O_DIRECT);
}

static void *echo(void *ends)
{
    int *fd = ends;
    char *buffer = map_at(NULL, PAGE, 0);
    ssize_t n;
    while ((n = read(fd[0], buffer, PAGE)) > 0)
        CHECK(write(fd[1], buffer, (size_t)n) == n);
    close(fd[1]);
    return NULL;
}

static void pipes(void)
{
    int there[2], back[2], ends[2];
    pthread_t thread;
    CHECK(!pipe(there) && !pipe(back));
    ends[0] = there[0];
    ends[1] = back[1];
    CHECK(!pthread_create(&thread, NULL, echo, ends));
    while (now_ms() < until) {
        uint64_t value = next(&seed);
        size_t at = next(&seed) % 63 * PAGE;
        stamp(memory + at, PAGE, value);
        usleep(200);
        CHECK(write(there[1], memory + at, PAGE) == PAGE);
        for (size_t got = 0; got < PAGE;) {
            ssize_t n = read(back[0], memory + at + PAGE + got, PAGE - got);
            CHECK(n > 0);
            got += (size_t)n;
        }
        CHECK(is_stamped(memory + at + PAGE, PAGE, value));
    }
    close(there[1]);
    pthread_join(thread, NULL);
}

static void *player(void *arg)
{
    uint32_t *ball = (uint32_t *)memory, me = (uint32_t)(uintptr_t)arg;
    for (;;) {
        uint32_t is = __atomic_load_n(ball, __ATOMIC_ACQUIRE);
        if (is == 2)
            return NULL;
        if (is != me) {
            syscall(SYS_futex, ball, FUTEX_WAIT_PRIVATE, is, NULL, NULL, 0);
            continue;
        }
        ((uint64_t *)memory)[1]++;
        if (now_ms() >= until)
            is = 2;
        else
            is = 1 - me;
        __atomic_store_n(ball, is, __ATOMIC_RELEASE);
        syscall(SYS_futex, ball, FUTEX_WAKE_PRIVATE, 2, NULL, NULL, 0);
    }
}

static void futexes(void)
{
    pthread_t threads[2];
    for (uintptr_t i = 0; i < 2; i++)
        CHECK(!pthread_create(&threads[i], NULL, player, (void *)i));
    for (int i = 0; i < 2; i++)
        pthread_join(threads[i], NULL);
    CHECK(((uint64_t *)memory)[1] > 20);
}

static volatile uint64_t rung, sum;

static void ring(int signal)
{
    volatile char local[3 * PAGE];
    (void)signal;
    for (size_t i = 0; i < sizeof(local); i += 64)
        local[i] = (char)i;
    for (size_t i = 0; i < sizeof(local); i += 64)
        sum += (unsigned char)local[i];
    rung++;
}

static void signals(void)
{
    stack_t stack = {.ss_sp = memory, .ss_size = BYTES};
    struct sigaction action = {.sa_handler = ring, .sa_flags = SA_ONSTACK};
    CHECK(!sigaltstack(&stack, NULL));
    CHECK(!sigaction(SIGUSR1, &action, NULL));
    while (now_ms() < until) {
        uint64_t before = rung;
        usleep(300);
        kill(getpid(), SIGUSR1);
        CHECK(rung == before + 1);
    }
    CHECK(sum == rung * (3 * PAGE / 64) * 96);
}

static __attribute__((noinline)) uint64_t deep(uint64_t level)
{
    volatile uint64_t local[700];
    uint64_t below;
    for (int i = 0; i < 700; i++)
        local[i] = level * 700 + (uint64_t)i;
    below = level ? deep(level - 1) : 0;
    for (int i = 0; i < 700; i++)
        CHECK(local[i] == level * 700 + (uint64_t)i);
    return below + local[5];
}

/* In 5 MiB of stack that the driver is told nothing of: it looks at the maps. */
static void stack(void)
{
    while (now_ms() < until)
        deep(900);
}

static void brks(void)
{
    char *start = sbrk(0);
    start += -(uintptr_t)start % PAGE;
    while (now_ms() < until) {
        size_t length = (1 + next(&seed) % 64) * PAGE;
        uint64_t value = next(&seed);
        CHECK(!brk(start + length));
        CHECK(is_zero(start, length));
        stamp(start, length, value);
        usleep(300);
        CHECK(is_stamped(start, length, value));
        CHECK(!brk(start + length / 2 / PAGE * PAGE));
        CHECK(is_stamped(start, length / 2 / PAGE * PAGE, value));
        CHECK(!brk(start));
    }
}

/* Another process reads and writes this one's memory. /proc/PID/mem does not wait for pages that
 * are away, so it may fail, but lies neither. */
static void others(void)
{
    pid_t parent = getpid(), child;
    char path[64];
    int status;
    stamp(memory, BYTES, 11);
    child = fork();
    if (!child) {
        char *copy = malloc(BYTES);
        int file;
        snprintf(path, sizeof(path), "/proc/%d/mem", parent);
        file = open(path, O_RDWR);
        CHECK(file >= 0);
        for (uint64_t value = 11; now_ms() < until; value++) {
            struct iovec local = {copy, BYTES}, remote = {memory, BYTES};
            ssize_t n;
            CHECK(process_vm_readv(parent, &local, 1, &remote, 1, 0) == BYTES);
            CHECK(is_stamped(copy, BYTES, value));
            stamp(copy, BYTES, value + 1);
            usleep(300);
            CHECK(process_vm_writev(parent, &local, 1, &remote, 1, 0) == BYTES);
            usleep(300);
            n = pread(file, copy, BYTES, (off_t)memory);
            CHECK(n > 0 ? is_stamped(copy, (size_t)n, value + 1) : errno == EIO);
        }
        _exit(0);
    }
    CHECK(waitpid(child, &status, 0) == child && status == 0);
}

static const struct {
    const char *name;
    void (*run)(void);
} modes[] = {{"files", files},     {"direct", direct}, {"pipes", pipes}, {"futexes", futexes},
             {"signals", signals}, {"stack", stack},   {"brk", brks},    {"others", others}};

int main(int count, char **argument)
{
    CHECK(count == 3);
    memory = map_at(NULL, BYTES, 0);
    say_where(memory, BYTES);
    until = now_ms() + strtoull(argument[2], NULL, 10);
    for (size_t i = 0; i < sizeof(modes) / sizeof(*modes); i++)
        if (!strcmp(modes[i].name, argument[1])) {
            modes[i].run();
            printf("ok\n");
            return 0;
        }
    return 2;
}
