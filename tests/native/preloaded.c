/* A program to run under hmmfs run's library: it does what the lines on its standard input say,
 * with 16 pages of its own (the first 8 are filled), and answers each with a line. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/single_threaded.h>
#include <sys/wait.h>
#include <unistd.h>

#define BLOCK (2u << 20) /* what begins there is within one slot's scratch */
#define PAGES 16
#define FILLED 8
#define MANY 2048 /* pages that hold a 1 */
#define THREADS 3
#define FORKS 20

static size_t page;
static volatile unsigned char *memory, *many;
static _Thread_local sigjmp_buf failed;

static unsigned char *map(size_t length)
{
    unsigned char *all =
        mmap(NULL, length + BLOCK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    size_t before = BLOCK - (size_t)all % BLOCK;
    munmap(all, before);
    munmap(all + before + length, BLOCK - before);
    return all + before;
}

static void on_bus_error(int signal)
{
    siglongjmp(failed, signal);
}

static void touch(long number)
{
    if (sigsetjmp(failed, 1))
        printf("SIGBUS\n");
    else
        printf("%d\n", memory[(size_t)number * page]);
}

static void store(long number, int value)
{
    if (sigsetjmp(failed, 1)) {
        printf("SIGBUS\n");
    } else {
        memory[(size_t)number * page] = (unsigned char)value;
        printf("%d\n", memory[(size_t)number * page]);
    }
}

static void grow(void)
{
    void *to = mremap((void *)memory, PAGES * page, 2 * PAGES * page, MREMAP_MAYMOVE);
    if (to == MAP_FAILED) {
        printf("%s\n", strerror(errno));
        return;
    }
    memory = to;
    printf("%zu\n", (size_t)to);
}

/* The child goes on with the same standard input; the parent answers when it has ended. */
static void become_child(void)
{
    int status;
    pid_t child;
    fflush(stdout);
    child = fork();
    if (child == 0) {
        printf("child\n");
        return;
    }
    waitpid(child, &status, 0);
    printf("ended %d\n", status);
}

/* How many of so many children, one after the other, found one of their pages as it should be. */
static long fork_often(long times)
{
    long right = 0;
    int status;
    for (long i = 0; i < times; i++) {
        pid_t child = fork();
        if (child == 0)
            _exit(memory[page] == 2 && memory[9 * page] == 0 ? 7 : 0);
        waitpid(child, &status, 0);
        right += WIFEXITED(status) && WEXITSTATUS(status) == 7;
    }
    return right;
}

static void make_many(void)
{
    many = map(MANY * page);
    for (size_t i = 0; i < MANY; i++)
        many[i * page] = 1;
    printf("%zu\n", (size_t)many);
}

/* A huge page, if the kernel has one. */
static void make_huge(void)
{
    unsigned char *huge = map(BLOCK);
    madvise(huge, BLOCK, MADV_HUGEPAGE);
    memset(huge, 5, BLOCK);
    printf("%zu\n", (size_t)huge);
}

/* How many of the pages were neither right nor a SIGBUS. */
static size_t count_wrong(size_t from, size_t step)
{
    volatile size_t wrong = 0;
    for (volatile size_t i = 0; i < MANY; i++)
        if (!sigsetjmp(failed, 1))
            wrong += many[(from + i * step) % MANY * page] != 1;
    return wrong;
}

static void *toucher(void *arg)
{
    return (void *)count_wrong((size_t)arg * 1000, 2 * (size_t)arg + 1);
}

/* Everybody touches the many pages while forks change the address space. */
static void storm(void)
{
    pthread_t thread[THREADS];
    size_t wrong = 0;
    for (size_t i = 0; i < THREADS; i++)
        pthread_create(&thread[i], NULL, toucher, (void *)i);
    for (size_t i = 0; i < FORKS; i++) {
        int status;
        pid_t child = fork();
        if (child == 0)
            _exit(count_wrong(i * 100, 7) != 0);
        waitpid(child, &status, 0);
        wrong += status != 0;
    }
    for (size_t i = 0; i < THREADS; i++) {
        void *result;
        pthread_join(thread[i], &result);
        wrong += (size_t)result;
    }
    printf("wrong %zu\n", wrong);
}

static void try_open(const char *path)
{
    int fd = open(path, O_RDONLY);
    char line[64] = "";
    if (fd < 0) {
        printf("%s\n", strerror(errno));
        return;
    }
    if (read(fd, line, sizeof(line) - 1) < 0)
        strcpy(line, strerror(errno));
    printf("%d %s\n", fd, line);
    close(fd);
}

static void show_state(void)
{
    sigset_t set;
    int blocked = 0;
    pthread_sigmask(SIG_BLOCK, NULL, &set);
    for (int i = 1; i < 32; i++)
        blocked += sigismember(&set, i) == 1;
    printf("single %d blocked %d\n", __libc_single_threaded, blocked);
}

int main(int argc, char **argv)
{
    char line[256], word[256];
    long number, value;
    int early = errno;
    page = (size_t)sysconf(_SC_PAGESIZE);
    memory = map(PAGES * page);
    signal(SIGBUS, on_bus_error);
    for (size_t i = 0; i < FILLED; i++)
        memory[i * page] = (unsigned char)(i + 1);
    if (argc > 1)
        printf("%s ", argv[1]);
    printf("%zu %d\n", (size_t)memory, early);
    fflush(stdout);
    while (fgets(line, sizeof(line), stdin)) {
        if (sscanf(line, "touch %ld", &number) == 1)
            touch(number);
        else if (sscanf(line, "store %ld %ld", &number, &value) == 2)
            store(number, (int)value);
        else if (sscanf(line, "open %255s", word) == 1)
            try_open(word);
        else if (sscanf(line, "forks %ld", &number) == 1)
            printf("%ld\n", fork_often(number));
        else if (sscanf(line, "discard %ld", &number) == 1)
            printf("%d\n", madvise((void *)(memory + (size_t)number * page), page, MADV_DONTNEED));
        else if (sscanf(line, "unmap %ld", &number) == 1)
            printf("%d\n", munmap((void *)(memory + (size_t)number * page), page));
        else if (strcmp(line, "readonly\n") == 0)
            printf("%d\n", mprotect((void *)memory, PAGES * page, PROT_READ));
        else if (strcmp(line, "huge\n") == 0)
            make_huge();
        else if (strcmp(line, "many\n") == 0)
            make_many();
        else if (strcmp(line, "storm\n") == 0)
            storm();
        else if (strcmp(line, "grow\n") == 0)
            grow();
        else if (strcmp(line, "fork\n") == 0)
            become_child();
        else if (strcmp(line, "state\n") == 0)
            show_state();
        else if (strcmp(line, "exec\n") == 0)
            execl("/proc/self/exe", argv[0], "again", NULL);
        else if (strcmp(line, "leave\n") == 0)
            pthread_exit(NULL);
        fflush(stdout);
    }
    return 0;
}
