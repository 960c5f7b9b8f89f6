/* restless MILLISECONDS: holds memory; on a line it forks, past the C library, a child whose
 * threads never leave their address space alone. Says then whether both had the right bytes. */
#include "check.h"

#include <pthread.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#define BYTES (64UL << 20)
#define THREADS 32
#define MINE PAGE /* of a thread */

static char *memory;
static uint64_t until;

static void *discard(void *number)
{
    char *mine = memory + (size_t)number * MINE;
    while (now_ms() < until)
        for (int i = 0; i < 100; i++)
            syscall(SYS_madvise, mine, MINE, MADV_DONTNEED);
    return NULL;
}

static int child(void)
{
    pthread_t threads[THREADS];
    for (size_t i = 0; i < THREADS; i++)
        CHECK(!pthread_create(&threads[i], NULL, discard, (void *)i));
    for (size_t i = 0; i < THREADS; i++)
        CHECK(!pthread_join(threads[i], NULL));
    return is_zero(memory, THREADS * MINE) &&
                   is_stamped(memory + THREADS * MINE, BYTES - THREADS * MINE,
                              5 + THREADS * MINE / 8)
               ? 0
               : 3;
}

int main(int count, char **argument)
{
    char line[9];
    int status = -1;
    pid_t pid;
    CHECK(count == 2);
    memory = map_at(NULL, BYTES, 0);
    stamp(memory, BYTES, 5);
    say_where(memory, BYTES);
    CHECK(fgets(line, sizeof(line), stdin));
    until = now_ms() + strtoull(argument[1], NULL, 10);
    pid = (pid_t)syscall(SYS_clone, 17 /* SIGCHLD */, 0, 0, 0, 0);
    if (!pid)
        _exit(child());
    printf("forked\n");
    fflush(stdout);
    CHECK(waitpid(pid, &status, 0) == pid);
    printf("child %d, %s\n", status, is_stamped(memory, BYTES, 5) ? "right" : "wrong");
}
