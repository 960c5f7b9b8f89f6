/* words WORD: does what one word of madvise, mmap and their kin does, over memory that devices may
 * have. Says where that is, and waits for a line, before each step; then what came of it, which is
 * the same with devices and without. */
#include "check.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>

/* What headers of the oldest systems lack. */
enum {
    COLD = 20,
    PAGEOUT = 21,
    POPULATE_READ = 22,
    POPULATE_WRITE = 23,
    DONTNEED_LOCKED = 24,
    COLLAPSE = 25,
    GUARD_INSTALL = 102,
    GUARD_REMOVE = 103,
    MSEAL = 462,
    DROPPABLE = 8,
    NOREPLACE = 0x100000,
    PAGES = 64
};
#define BYTES (PAGES * PAGE)
#define BLOCK (2UL << 20)

static sigjmp_buf out;

static void on_fault(int signal)
{
    siglongjmp(out, signal);
}

static void hand_over(const void *at, size_t length)
{
    char line[9];
    say_where(at, length);
    CHECK(fgets(line, sizeof(line), stdin));
}

static char *fresh(size_t length, uint64_t value)
{
    char *at = map_at(NULL, length, 0);
    stamp(at, length, value);
    return at;
}

/* In blocks of their own, as the kernel's huge pages are. */
static char *aligned(size_t length)
{
    char *at = map_at(NULL, length + BLOCK, 0);
    return at + BLOCK - (size_t)at % BLOCK;
}

static void say(const char *what, long result)
{
    if (result < 0)
        printf("%s: %s\n", what, strerror(errno));
    else
        printf("%s: %ld\n", what, result);
}

/* Of each page a letter: what it was, zeros, something else; S or B for a signal. */
static void show(const char *what, const char *at, size_t length, uint64_t value)
{
    static char letters[PAGES * 2 + 1];
    volatile size_t n = 0;
    for (volatile size_t page = 0; page < length; page += PAGE) {
        int signal = sigsetjmp(out, 1);
        const uint64_t word = signal ? 0 : *(const volatile uint64_t *)(at + page);
        const uint64_t last = signal ? 0 : *(const volatile uint64_t *)(at + page + PAGE - 128);
        if (signal)
            letters[n++] = signal == SIGSEGV ? 'S' : 'B';
        else if (word == value + page / 8 && last == word + (PAGE - 128) / 8)
            letters[n++] = 'v';
        else
            letters[n++] = !word && !last ? '0' : '?';
    }
    letters[n] = 0;
    printf("%s: %s\n", what, letters);
    fflush(stdout);
}

static int by_library(void *at, size_t length, int advice)
{
    return madvise(at, length, advice);
}

static int past_library(void *at, size_t length, int advice)
{
    return (int)syscall(SYS_madvise, at, length, advice);
}

static void guards(int (*advise)(void *, size_t, int))
{
    char *at = fresh(BYTES, 9);
    hand_over(at, BYTES);
    say("install", advise(at + 2 * PAGE, 3 * PAGE, GUARD_INSTALL));
    show("installed", at, 8 * PAGE, 9);
    hand_over(at, BYTES);
    show("neighbours were away", at, 8 * PAGE, 9);
    say("again", advise(at + 4 * PAGE, 2 * PAGE, GUARD_INSTALL));
    say("discarded", advise(at, 4 * PAGE, MADV_DONTNEED));
    show("guards stay", at, 8 * PAGE, 9);
    stamp(at, 2 * PAGE, 9);
    hand_over(at, BYTES);
    say("remove", advise(at + 3 * PAGE, 2 * PAGE, GUARD_REMOVE));
    show("removed", at, 8 * PAGE, 9);
    stamp(at + 3 * PAGE, 2 * PAGE, 9 + 3 * PAGE / 8);
    hand_over(at, BYTES);
    say("and back", advise(at + 10 * PAGE, PAGE, GUARD_INSTALL));
    say("at once", advise(at + 10 * PAGE, PAGE, GUARD_REMOVE));
    CHECK(!munmap(at + 20 * PAGE, PAGE));
    say("across what is not mapped", advise(at + 18 * PAGE, 4 * PAGE, GUARD_INSTALL));
    hand_over(at, 20 * PAGE);
    hand_over(at + 21 * PAGE, 20 * PAGE);
    show("in the end", at, 24 * PAGE, 9);
}

static void guard(void)
{
    guards(by_library);
}

static void raw_guard(void)
{
    guards(past_library);
}

static void guard_readonly(void)
{
    char *at = fresh(BYTES, 4);
    say("protect", mprotect(at, BYTES, PROT_READ));
    hand_over(at, BYTES);
    say("install", madvise(at + PAGE, 2 * PAGE, GUARD_INSTALL));
    hand_over(at, BYTES);
    show("installed", at, 6 * PAGE, 4);
    say("remove", madvise(at + PAGE, PAGE, GUARD_REMOVE));
    show("removed", at, 6 * PAGE, 4);
}

static void guard_fork(void)
{
    char *at = fresh(BYTES, 4);
    int status;
    hand_over(at, BYTES);
    say("install", madvise(at + PAGE, 2 * PAGE, GUARD_INSTALL));
    hand_over(at, BYTES);
    fflush(stdout);
    if (!fork()) {
        show("child", at, 6 * PAGE, 4);
        say("remove", madvise(at + PAGE, PAGE, GUARD_REMOVE));
        show("child", at, 6 * PAGE, 4);
        fflush(stdout);
        _exit(0);
    }
    wait(&status);
    show("parent", at, 6 * PAGE, 4);
}

static void populate(void)
{
    char *at = fresh(BYTES, 5);
    say("discard", madvise(at + 8 * PAGE, 8 * PAGE, MADV_DONTNEED));
    hand_over(at, BYTES);
    say("read", madvise(at, BYTES / 2, POPULATE_READ));
    say("write", madvise(at + BYTES / 2, BYTES / 2, POPULATE_WRITE));
    show("populated", at, BYTES, 5);
    say("protect", mprotect(at, BYTES, PROT_READ));
    hand_over(at, BYTES);
    say("write", madvise(at, BYTES, POPULATE_WRITE));
    say("protect", mprotect(at, BYTES, PROT_NONE));
    say("read", madvise(at, BYTES, POPULATE_READ));
    say("protect", mprotect(at, BYTES, RW));
    show("populated", at, BYTES, 5);
}

static void collapse(void)
{
    char *at = aligned(BLOCK);
    long result;
    madvise(at, BLOCK, MADV_NOHUGEPAGE);
    stamp(at, BLOCK, 6);
    madvise(at, BLOCK, MADV_HUGEPAGE);
    hand_over(at, BYTES);
    result = madvise(at, BLOCK, COLLAPSE);
    printf("collapse: %s\n", result && errno != EINVAL && errno != EAGAIN ? strerror(errno) : "");
    show("collapsed", at, 2 * BYTES, 6);
    CHECK(is_stamped(at, BLOCK, 6));
    hand_over(at, BLOCK);
    CHECK(is_stamped(at, BLOCK, 6));
    say("collapse at home", madvise(at, BLOCK, COLLAPSE));
    CHECK(is_stamped(at, BLOCK, 6));
}

static void locked(void)
{
    char *at = fresh(BYTES, 7);
    hand_over(at, BYTES);
    say("lock on fault", mlock2(at, BYTES / 2, MLOCK_ONFAULT));
    hand_over(at, BYTES);
    show("locked", at, BYTES / 4, 7);
    say("discard", madvise(at, 4 * PAGE, MADV_DONTNEED));
    say("discard locked", madvise(at, 4 * PAGE, DONTNEED_LOCKED));
    say("discard locked", madvise(at + BYTES / 2 - 4 * PAGE, 8 * PAGE, DONTNEED_LOCKED));
    show("discarded", at, BYTES, 7);
    say("unlock", munlock(at, BYTES));
    stamp(at, BYTES, 7);
    hand_over(at, BYTES);
    say("lock", mlock(at, BYTES / 2));
    hand_over(at, BYTES);
    show("locked", at, BYTES, 7);
    say("guard", madvise(at, 4 * PAGE, GUARD_INSTALL));
    show("guarded", at, 8 * PAGE, 7);
}

static void lazily(void)
{
    char *at = fresh(BYTES, 8);
    hand_over(at, BYTES);
    say("free", madvise(at, BYTES, MADV_FREE));
    for (size_t page = 0; page < BYTES; page += PAGE) {
        uint64_t word = *(volatile uint64_t *)(at + page);
        CHECK(word == 0 || word == 8 + page / 8);
    }
    stamp(at, BYTES, 80);
    hand_over(at, BYTES);
    show("stored", at, BYTES, 80);
}

static void hints(void)
{
    static const int advice[] = {MADV_NORMAL,   MADV_RANDOM,     MADV_SEQUENTIAL, MADV_WILLNEED,
                                 COLD,          PAGEOUT,         MADV_MERGEABLE,  MADV_UNMERGEABLE,
                                 MADV_HUGEPAGE, MADV_NOHUGEPAGE, MADV_DONTDUMP,   MADV_DODUMP,
                                 MADV_DONTFORK, MADV_DOFORK,     MADV_REMOVE,     99};
    char *at = fresh(BYTES, 9);
    for (size_t i = 0; i < sizeof(advice) / sizeof(*advice); i++) {
        hand_over(at, BYTES);
        printf("%d ", advice[i]);
        say("advice", madvise(at, BYTES / 2, advice[i]));
        show("after", at + 8 * PAGE, BYTES / 2, 9 + PAGE);
    }
}

static void show_in_child(const char *what, char *at, uint64_t value)
{
    int status;
    fflush(stdout);
    if (!fork()) {
        show(what, at, BYTES, value);
        _exit(0);
    }
    CHECK(wait(&status) > 0 && status == 0);
    show("parent", at, BYTES, value);
}

static void wipe(void)
{
    char *at = fresh(BYTES, 10);
    hand_over(at, BYTES);
    say("wipe", madvise(at + 4 * PAGE, 8 * PAGE, MADV_WIPEONFORK));
    say("leave out", madvise(at + 16 * PAGE, 8 * PAGE, MADV_DONTFORK));
    show_in_child("child", at, 10);
    hand_over(at, BYTES);
    show_in_child("child", at, 10);
    say("keep", madvise(at + 6 * PAGE, 2 * PAGE, MADV_KEEPONFORK));
    say("leave in", madvise(at + 18 * PAGE, 2 * PAGE, MADV_DOFORK));
    hand_over(at, BYTES);
    show_in_child("child", at, 10);
}

static void seal(void)
{
    char *at = fresh(BYTES, 11);
    hand_over(at, BYTES);
    say("protect", mprotect(at, BYTES / 4, PROT_READ));
    if (syscall(MSEAL, at, BYTES / 2, 0UL)) {
        say("seal", -1);
        return;
    }
    hand_over(at, BYTES);
    say("unmap", munmap(at, BYTES));
    say("protect", mprotect(at, BYTES, PROT_NONE));
    say("map over",
        mmap(at, PAGE, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == at ? 0 : -1);
    say("move",
        mremap(at, BYTES / 4, BYTES / 4, MREMAP_MAYMOVE | MREMAP_FIXED, at + BYTES) != MAP_FAILED
            ? 0
            : -1);
    say("discard", madvise(at, PAGE, MADV_DONTNEED));
    say("discard", madvise(at + BYTES / 4, PAGE, MADV_DONTNEED));
    say("guard", madvise(at + PAGE, PAGE, GUARD_INSTALL));
    show("sealed", at, BYTES, 11);
    hand_over(at, BYTES);
    show("sealed", at, BYTES, 11);
}

static void others(void)
{
    static const int advice[] = {COLD,     PAGEOUT,       MADV_WILLNEED,
                                 COLLAPSE, MADV_DONTNEED, GUARD_INSTALL};
    char *at = fresh(BYTES, 12), other[2 * PAGE];
    struct iovec here = {other, sizeof(other)}, there = {at + 30 * PAGE, sizeof(other)};
    pid_t parent = getpid();
    int status;
    say("guard", madvise(at + 31 * PAGE, PAGE, GUARD_INSTALL));
    fflush(stdout);
    for (size_t i = 0; i < sizeof(advice) / sizeof(*advice); i++) {
        hand_over(at, BYTES);
        if (!fork()) {
            int pidfd = (int)syscall(SYS_pidfd_open, parent, 0);
            struct iovec part = {at, 8 * PAGE};
            ssize_t n = syscall(SYS_process_madvise, pidfd, &part, 1, advice[i], 0);
            printf("%d ", advice[i]);
            if (advice[i] == COLLAPSE)
                printf("collapse\n"); /* whether it can be done is the kernel's to say */
            else
                say("of another", n);
            say("read", process_vm_readv(parent, &here, 1, &there, 1, 0));
            say("is", (long)*(uint64_t *)other);
            memset(other, 'x', 8);
            here.iov_len = there.iov_len = 8;
            there.iov_base = at + (40 + i) * PAGE + PAGE / 2;
            say("write", process_vm_writev(parent, &here, 1, &there, 1, 0));
            fflush(stdout);
            _exit(0);
        }
        CHECK(wait(&status) > 0 && status == 0);
        printf("stored: %.8s\n", at + (40 + i) * PAGE + PAGE / 2);
        show("after", at, BYTES, 12);
    }
}

static void protect(void)
{
    char *at = fresh(BYTES, 13);
    int key;
    hand_over(at, BYTES);
    say("none", mprotect(at, BYTES / 2, PROT_NONE));
    show("none", at, BYTES, 13);
    hand_over(at, BYTES);
    say("read", mprotect(at, BYTES / 4, PROT_READ));
    show("read", at, BYTES, 13);
    hand_over(at, BYTES);
    say("back", mprotect(at, BYTES, RW));
    show("back", at, BYTES, 13);
    key = (int)syscall(SYS_pkey_alloc, 0UL, 1UL /* PKEY_DISABLE_ACCESS */);
    printf("key: %s\n", key < 0 ? strerror(errno) : "yes");
    hand_over(at, BYTES);
    say("key", key < 0 ? 0 : syscall(SYS_pkey_mprotect, at, BYTES / 2, RW, key));
    show("with key", at, BYTES, 13);
    hand_over(at, BYTES);
    say("no key", syscall(SYS_pkey_mprotect, at, BYTES, RW, -1L));
    show("back", at, BYTES, 13);
}

static void move(void)
{
    char *at = fresh(BYTES, 14), *to = map_at(NULL, BYTES, 0);
    hand_over(at, BYTES);
    say("leave",
        mremap(at, BYTES, BYTES, MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP, to) == to);
    show("new", to, BYTES, 14);
    show("old", at, BYTES, 14);
    stamp(at, BYTES, 15);
    hand_over(at, BYTES);
    hand_over(to, BYTES);
    say("guard", madvise(to, 2 * PAGE, GUARD_INSTALL));
    say("shrink", mremap(to, BYTES, BYTES / 2, 0) == to);
    say("move", mremap(to, BYTES / 2, BYTES / 2, MREMAP_MAYMOVE | MREMAP_FIXED, at) == at);
    show("moved", at, BYTES / 2, 14);
    show("beside", at + BYTES / 2, BYTES / 2, 15 + BYTES / 16);
    show("old", to, BYTES / 2, 14);
}

static void map_over(void)
{
    char *at = fresh(BYTES, 16), *drop;
    hand_over(at, BYTES);
    say("no replace",
        mmap(at, PAGE, RW, MAP_PRIVATE | MAP_ANONYMOUS | NOREPLACE, -1, 0) == MAP_FAILED ? -1 : 0);
    show("kept", at, BYTES, 16);
    hand_over(at, BYTES);
    say("replace", mmap(at, 4 * PAGE, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == at);
    show("replaced", at, BYTES, 16);
    hand_over(at, BYTES);
    say("shared", mmap(at, 4 * PAGE, RW, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == at);
    show("shared", at, BYTES, 16);
    drop = mmap(NULL, BYTES, RW, DROPPABLE | MAP_ANONYMOUS, -1, 0);
    printf("droppable: %s\n", drop == MAP_FAILED ? strerror(errno) : "yes");
    if (drop != MAP_FAILED) {
        stamp(drop, BYTES, 17);
        hand_over(drop, BYTES);
        show("droppable", drop, BYTES, 17);
        show_in_child("child", drop, 17);
    }
}

static void own_faults(void)
{
    char *at = fresh(BYTES, 18);
    struct uffdio_api api = {.api = UFFD_API};
    struct uffdio_register request = {{(size_t)at, BYTES / 2}, UFFDIO_REGISTER_MODE_MISSING, 0};
    struct uffdio_zeropage zero = {{(size_t)at, PAGE}, 0, 0};
    struct uffdio_copy copy = {(size_t)at + PAGE, (size_t)at + 8 * PAGE, PAGE, 0, 0};
    int uffd = (int)syscall(SYS_userfaultfd, O_NONBLOCK | O_CLOEXEC);
    say("api", ioctl(uffd, UFFDIO_API, &api));
    say("register", ioctl(uffd, UFFDIO_REGISTER, &request));
    hand_over(at, BYTES);
    say("discard", madvise(at, 2 * PAGE, MADV_DONTNEED));
    say("zero", ioctl(uffd, UFFDIO_ZEROPAGE, &zero));
    say("copy", ioctl(uffd, UFFDIO_COPY, &copy));
    printf("%d\n", is_zero(at, PAGE) && is_stamped(at + PAGE, PAGE, 18 + PAGE));
    show("rest", at + 2 * PAGE, BYTES - 2 * PAGE, 18 + PAGE / 4);
    close(uffd);
    hand_over(at, BYTES);
    show("closed", at + 2 * PAGE, BYTES - 2 * PAGE, 18 + PAGE / 4);
}

static const struct {
    const char *name;
    void (*run)(void);
} words[] = {{"guard", guard},
             {"raw_guard", raw_guard},
             {"guard_readonly", guard_readonly},
             {"guard_fork", guard_fork},
             {"populate", populate},
             {"collapse", collapse},
             {"locked", locked},
             {"free", lazily},
             {"hints", hints},
             {"wipe", wipe},
             {"seal", seal},
             {"others", others},
             {"protect", protect},
             {"move", move},
             {"map_over", map_over},
             {"own_faults", own_faults}};

int main(int count, char **argument)
{
    struct sigaction action = {.sa_handler = on_fault};
    sigaction(SIGSEGV, &action, NULL);
    sigaction(SIGBUS, &action, NULL);
    for (size_t i = 0; count == 2 && i < sizeof(words) / sizeof(*words); i++)
        if (!strcmp(words[i].name, argument[1])) {
            words[i].run();
            return 0;
        }
    return 2;
}
