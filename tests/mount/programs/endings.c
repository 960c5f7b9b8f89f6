/* endings HOW: threads and processes that end while they hold what others wait for. Says where it
 * has memory that devices may want, waits for a line, and says what came of it. */
#include "check.h"

#include <pthread.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#define PAGES 16
#define BIG (PAGES * PAGE) /* the least that prefetching brings home; aligned to itself */
#define DEEP (64 * PAGE)

static int go[2], said[2];

static void hand_over(const void *at, size_t length)
{
    char line[9];
    say_where(at, length);
    CHECK(fgets(line, sizeof(line), stdin));
}

static void make(pthread_mutex_t *mutex, int shared, int protocol)
{
    pthread_mutexattr_t how;
    pthread_mutexattr_init(&how);
    pthread_mutexattr_setrobust(&how, PTHREAD_MUTEX_ROBUST);
    pthread_mutexattr_setpshared(&how, shared);
    CHECK(!pthread_mutexattr_setprotocol(&how, protocol));
    CHECK(!pthread_mutex_init(mutex, &how));
}

static void lock_dead(const char *what, pthread_mutex_t *mutex)
{
    int error = pthread_mutex_lock(mutex);
    printf("%s: %s\n", what, error == EOWNERDEAD ? "given up" : strerror(error));
}

static void *owner(void *memory)
{
    char *at = memory, c;
    for (int page = 0; page < PAGES; page += 2)
        CHECK(!pthread_mutex_lock((pthread_mutex_t *)(at + page * PAGE)));
    CHECK(write(said[1], "l", 1) == 1 && read(go[0], &c, 1) == 1);
    return NULL;
}

/* A thread ends, and holds mutexes on pages that a device wants; one of them came there before it
 * was locked. The pages are one big page: the first lock brings all of them home, so all of them
 * are there for the second offer. */
static void robust(int protocol)
{
    char *at = map_at(NULL, 2 * BIG, 0), c;
    pthread_t thread;
    at += -(uintptr_t)at % BIG;
    for (int page = 0; page < PAGES; page++)
        make((pthread_mutex_t *)(at + page * PAGE), PTHREAD_PROCESS_PRIVATE, protocol);
    hand_over(at, PAGES * PAGE);
    CHECK(!pthread_create(&thread, NULL, owner, at) && read(said[0], &c, 1) == 1);
    hand_over(at, PAGES * PAGE);
    CHECK(write(go[1], "g", 1) == 1 && !pthread_join(thread, NULL));
    for (int page = 0; page < PAGES; page += 2)
        lock_dead("mutex", (pthread_mutex_t *)(at + page * PAGE));
    CHECK(!pthread_mutex_trylock((pthread_mutex_t *)(at + PAGE)));
}

static void plain(void)
{
    robust(PTHREAD_PRIO_NONE);
}

static void inherit(void)
{
    robust(PTHREAD_PRIO_INHERIT);
}

/* A process is killed; between its thread's memory and the mutex that another process waits for is
 * one in its own memory. */
static void killed(void)
{
    pthread_mutex_t *shared = mmap(NULL, PAGE, RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    char *own = map_at(NULL, PAGE, 0), c;
    pid_t child;
    make(shared, PTHREAD_PROCESS_SHARED, PTHREAD_PRIO_NONE);
    make((pthread_mutex_t *)own, PTHREAD_PROCESS_PRIVATE, PTHREAD_PRIO_NONE);
    child = fork();
    if (!child) {
        CHECK(!pthread_mutex_lock(shared) && !pthread_mutex_lock((pthread_mutex_t *)own));
        hand_over((char *)pthread_self() - (size_t)pthread_self() % PAGE, PAGE);
        hand_over(own, PAGE);
        CHECK(write(said[1], "l", 1) == 1);
        for (;;)
            pause();
    }
    CHECK(read(said[0], &c, 1) == 1);
    kill(child, SIGKILL);
    wait(NULL);
    lock_dead("shared", shared);
}

/* Waits, and ends, without a touch of what the C library keeps of it. */
static void *deep(void *unused)
{
    volatile char frame[DEEP];
    frame[0] = 0;
#if defined(__x86_64__)
    __asm__ volatile(
        "mov %0, %%edi\n\tmov %1, %%rsi\n\tmov $1, %%edx\n\tmov $1, %%eax\n\tsyscall\n\t"
        "mov %2, %%edi\n\tmov %1, %%rsi\n\tmov $1, %%edx\n\txor %%eax, %%eax\n\tsyscall\n\t"
        "xor %%edi, %%edi\n\tmov $60, %%eax\n\tsyscall"
        :
        : "r"(said[1]), "r"(frame), "r"(go[0])
        : "rax", "rcx", "rdx", "rsi", "rdi", "r11", "memory");
#endif
    return unused;
}

static void join(void)
{
    pthread_t thread;
    char c;
    CHECK(!pthread_create(&thread, NULL, deep, NULL) && read(said[0], &c, 1) == 1);
    hand_over((char *)thread - (size_t)thread % PAGE, PAGE);
    CHECK(write(go[1], "g", 1) == 1 && !pthread_join(thread, NULL));
    printf("joined\n");
}

/* What PR_SET_MM_MAP takes. Its arguments are there from now on, and the rest is where it was. */
static bool set_arguments(char *at, size_t length)
{
    struct prctl_mm_map map = {.arg_start = (size_t)at, .arg_end = (size_t)at + length};
    unsigned long long field[52] = {0};
    char text[1024] = "", *rest;
    FILE *file = fopen("/proc/self/stat", "r");
    CHECK(file && fgets(text, sizeof(text), file) && !fclose(file));
    rest = strrchr(text, ')') + 4; /* of the name, field 2; then a letter */
    for (int i = 4; i < 52; i++)
        field[i] = strtoull(rest, &rest, 10);
    map.start_code = field[26], map.end_code = field[27], map.start_stack = field[28];
    map.start_data = field[45], map.end_data = field[46], map.start_brk = field[47];
    map.env_start = field[50], map.env_end = field[51], map.exe_fd = (uint32_t)-1;
    map.brk = (size_t)sbrk(0);
    return !prctl(PR_SET_MM, PR_SET_MM_MAP, &map, sizeof(map), 0);
}

/* Holds still, so that somebody can look at it. */
static void title(void)
{
    const char *first = program_invocation_name;
    char *other = map_at(NULL, PAGE, 0);
    hand_over(first - (size_t)first % PAGE, PAGE);
    strcpy(other, "another name");
    printf("%s\n", set_arguments(other, 13) ? "set" : strerror(errno));
    hand_over(other, PAGE);
    printf("%s\n", other);
}

int main(int count, char **argument)
{
    static const struct {
        const char *name;
        void (*run)(void);
    } all[] = {{"plain", plain},
               {"inherit", inherit},
               {"killed", killed},
               {"join", join},
               {"title", title}};
    CHECK(!pipe(go) && !pipe(said));
    alarm(20);
    for (size_t i = 0; count > 1 && i < sizeof(all) / sizeof(*all); i++)
        if (!strcmp(all[i].name, argument[1])) {
            all[i].run();
            return 0;
        }
    return 2;
}
