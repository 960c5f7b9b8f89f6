/* hold [BYTES]: holds memory, and says and does with it what it is told, a line each. */
#include "check.h"

#include <fcntl.h>
#include <linux/io_uring.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>

static char *memory;
static size_t bytes = 1 << 20;
static sigjmp_buf out;

static void on_bus(int signal)
{
    (void)signal;
    siglongjmp(out, 1);
}

/* Of each page, whether it can be read and is what it was. */
static void probe(uint64_t value)
{
    volatile int right = 0, bus = 0, wrong = 0;
    struct sigaction action = {.sa_handler = on_bus};
    sigaction(SIGBUS, &action, NULL);
    for (volatile size_t at = 0; at < bytes; at += PAGE) {
        if (sigsetjmp(out, 1))
            bus++;
        else if (is_stamped(memory + at, PAGE, value + at / 8))
            right++;
        else
            wrong++;
    }
    printf("right %d bus %d wrong %d\n", right, bus, wrong);
}

static void tell_of_child(uint64_t value)
{
    int status = -1;
    pid_t child = fork();
    if (!child)
        _exit(is_stamped(memory, bytes, value) ? 0 : 3);
    waitpid(child, &status, 0);
    printf("child %d\n", status);
}

/* Have the kernel hold pages where they are; false: it does not do that here. */
static bool pin(size_t first, size_t pages)
{
    struct io_uring_params how = {0};
    struct iovec part = {memory + first * PAGE, pages * PAGE};
    int ring = (int)syscall(SYS_io_uring_setup, 4, &how);
    return ring >= 0 && !syscall(SYS_io_uring_register, ring, IORING_REGISTER_BUFFERS, &part, 1);
}

static bool lock(size_t first, size_t pages)
{
    return !mprotect(memory + first * PAGE, pages * PAGE, PROT_READ) &&
           !mlock(memory + first * PAGE, pages * PAGE);
}

/* Change what is mapped, again and again. */
static void *change_mappings(void *nothing)
{
    for (;;)
        munmap(map_at(NULL, PAGE, 0), PAGE);
    return nothing;
}

static bool begin_to_change(void)
{
    pthread_t thread;
    return !pthread_create(&thread, NULL, change_mappings, NULL);
}

/* Go into a namespace that a child has made; 0 or errno. */
static int join(void)
{
    int ready[2], fd, error = 0;
    char path[64], one;
    pid_t child;
    if (pipe(ready))
        return errno;
    child = fork();
    if (!child) {
        one = (char)(unshare(CLONE_NEWUSER) ? errno : 0);
        if (write(ready[1], &one, 1) == 1)
            pause();
        _exit(1);
    }
    if (read(ready[0], &one, 1) != 1 || one)
        error = one ? one : EIO;
    snprintf(path, sizeof(path), "/proc/%d/ns/user", child);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (!error && (fd < 0 || setns(fd, 0)))
        error = errno;
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    return error;
}

int main(int count, char **argument)
{
    char line[256], word[32];
    if (count > 1)
        bytes = strtoull(argument[1], NULL, 10);
    memory = map_at(NULL, bytes, 0);
    stamp(memory, bytes, 1);
    say_where(memory, bytes);
    while (fgets(line, sizeof(line), stdin)) {
        unsigned long long a = 0, b = 0;
        if (sscanf(line, "%31s %llu %llu", word, &a, &b) < 1)
            continue;
        if (!strcmp(word, "quit"))
            return 0;
        else if (!strcmp(word, "check"))
            printf("%s\n", is_stamped(memory, bytes, a) ? "right" : "wrong");
        else if (!strcmp(word, "stamp"))
            stamp(memory, bytes, a), printf("stamped\n");
        else if (!strcmp(word, "probe"))
            probe(a);
        else if (!strcmp(word, "fork"))
            tell_of_child(a);
        else if (!strcmp(word, "pin"))
            printf("%s\n", pin(a, b) ? "done" : "not here");
        else if (!strcmp(word, "lock"))
            printf("%s\n", lock(a, b) ? "done" : "not here");
        else if (!strcmp(word, "change"))
            printf("%s\n", begin_to_change() ? "changes" : "no thread");
        else if (!strcmp(word, "unshare"))
            printf("%d\n", unshare(CLONE_NEWUSER) ? errno : 0);
        else if (!strcmp(word, "join"))
            printf("%d\n", join());
        else if (!strcmp(word, "mlockall"))
            printf("%d\n", mlockall(MCL_CURRENT) ? errno : 0);
        else if (!strcmp(word, "byte"))
            printf("%d\n", memory[a]);
        fflush(stdout);
    }
}
