/* families MODE MILLISECONDS: forks of all kinds; each has its data as of then. */
#include "check.h"

#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#define BYTES (64 * PAGE)

extern char **environ;
static char *memory;
static char *self;

static void await(pid_t child)
{
    int status = -1;
    CHECK(child > 0);
    while (waitpid(child, &status, 0) < 0)
        CHECK(errno == EINTR);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static pid_t raw_fork(void)
{
    return (pid_t)syscall(SYS_clone, SIGCHLD, NULL, NULL, NULL, NULL);
}

/* The child, and its own child, see what was there, and their stores are their own. */
static void generations(uint64_t value, int depth, bool raw)
{
    pid_t child;
    stamp(memory, BYTES, value);
    usleep(300);
    child = raw ? raw_fork() : fork();
    if (!child) {
        CHECK(is_stamped(memory, BYTES, value));
        usleep(200);
        if (depth)
            generations(value * 5, depth - 1, raw);
        stamp(memory, BYTES, value + 99);
        usleep(200);
        CHECK(is_stamped(memory, BYTES, value + 99));
        _exit(0);
    }
    stamp(memory, BYTES / 2, value * 3);
    usleep(500);
    CHECK(is_stamped(memory, BYTES / 2, value * 3));
    CHECK(is_stamped(memory + BYTES / 2, BYTES / 2, value + BYTES / 16));
    await(child);
    CHECK(is_stamped(memory, BYTES / 2, value * 3));
    CHECK(is_stamped(memory + BYTES / 2, BYTES / 2, value + BYTES / 16));
}

/* A child that changes its mappings before anything else, and has children meanwhile. */
static void restless(uint64_t value)
{
    pid_t child;
    stamp(memory, BYTES, value);
    usleep(300);
    child = raw_fork();
    if (!child) {
        size_t quarter = BYTES / 4;
        char *moved = memory + 3 * quarter;
        pid_t grandchild;
        CHECK(!madvise(memory, quarter, MADV_DONTNEED));
        CHECK(!munmap(moved, quarter));
        CHECK(mremap(memory + quarter, quarter, quarter, MREMAP_MAYMOVE | MREMAP_FIXED, moved) ==
              moved);
        grandchild = raw_fork();
        CHECK(!madvise(memory + 2 * quarter, PAGE, MADV_DONTNEED));
        if (grandchild)
            CHECK(is_zero(memory, quarter));
        CHECK(is_stamped(moved, quarter, value + quarter / 8));
        CHECK(is_zero(memory + 2 * quarter, PAGE));
        CHECK(is_stamped(memory + 2 * quarter + PAGE, quarter - PAGE,
                         value + (2 * quarter + PAGE) / 8));
        if (!grandchild)
            _exit(0);
        await(grandchild);
        _exit(0);
    }
    await(child);
    CHECK(is_stamped(memory, BYTES, value));
}

static void spawned(uint64_t value)
{
    char *arguments[] = {self, "exec", "0", NULL};
    pid_t child;
    stamp(memory, BYTES, value);
    CHECK(!posix_spawn(&child, self, NULL, NULL, arguments, environ));
    await(child);
    child = vfork();
    if (!child) {
        execv(self, arguments);
        _exit(9);
    }
    await(child);
    CHECK(is_stamped(memory, BYTES, value));
}

int main(int count, char **argument)
{
    uint64_t until, value = 1;
    CHECK(count == 3);
    self = argument[0];
    memory = map_at(NULL, BYTES, 0);
    if (!strcmp(argument[1], "exec")) {
        stamp(memory, BYTES, 5);
        usleep(2000);
        CHECK(is_stamped(memory, BYTES, 5));
        return 0;
    }
    say_where(memory, BYTES);
    until = now_ms() + strtoull(argument[2], NULL, 10);
    while (now_ms() < until) {
        value = value * 6364136223846793005ULL + 1442695040888963407ULL;
        if (!strcmp(argument[1], "spawn"))
            spawned(value);
        else if (!strcmp(argument[1], "restless"))
            restless(value);
        else
            generations(value, 2, !strcmp(argument[1], "raw"));
    }
    printf("ok\n");
}
