/* What a program has mapped is the same by PROCMAP_QUERY and by the text that older kernels have:
 * of each kind of mapping, at its beginning, within it, and before it. Linked with --wrap=ioctl.
 *
 *   mappings DIRECTORY     for files */
#include "inside.h"

#include <fcntl.h>
#include <stdarg.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#define PAGE HM_PAGE_SIZE
#define PAGES 3

static bool fails; /* as where there is no such request */

int __real_ioctl(int fd, unsigned long request, ...);
int __wrap_ioctl(int fd, unsigned long request, ...);

int __wrap_ioctl(int fd, unsigned long request, ...)
{
    va_list list;
    void *argument;
    va_start(list, request);
    argument = va_arg(list, void *);
    va_end(list);
    if (fails) {
        errno = ENOTTY;
        return -1;
    }
    return __real_ioctl(fd, request, argument);
}

static int find(const struct hm_process *process, uint64_t address, bool by_text,
                struct hm_vma *out)
{
    int error;
    fails = by_text;
    memset(out, 0, sizeof(*out));
    error = hm_vma_find(process, address, out);
    fails = false;
    return error;
}

static bool is_same(const struct hm_vma *one, const struct hm_vma *other)
{
    return one->start == other->start && one->end == other->end && one->ino == other->ino &&
           one->read == other->read && one->write == other->write && one->shared == other->shared &&
           one->anonymous == other->anonymous && one->special == other->special &&
           one->hugetlb == other->hugetlb;
}

/* Reading the text allocates memory, and a sanitizer's allocator may map more of it next to what it
 * has: an answer of the text counts where the request says the same before it and after it. */
static void same(const struct hm_process *process, uint64_t address)
{
    struct hm_vma before, text, after;
    int error, by_text, again, tries = 0;
    do {
        CHECK(tries++ < 100, "at %#llx: mappings do not come to rest", (unsigned long long)address);
        error = find(process, address, false, &before);
        by_text = find(process, address, true, &text);
        again = find(process, address, false, &after);
    } while (error != again || (!error && !is_same(&before, &after)));
    CHECK(error == by_text, "at %#llx: %d by the request, %d by the text",
          (unsigned long long)address, error, by_text);
    CHECK(error || is_same(&before, &text),
          "at %#llx: %#llx-%#llx by the request, %#llx-%#llx by the text, or another kind",
          (unsigned long long)address, (unsigned long long)before.start,
          (unsigned long long)before.end, (unsigned long long)text.start,
          (unsigned long long)text.end);
}

static int a_file(const char *name)
{
    int fd = open(name, O_RDWR | O_CREAT, 0600);
    CHECK(fd >= 0 && !ftruncate(fd, PAGES * PAGE), "%s", name);
    return fd;
}

static void *a_mapping(int protection, int flags, int fd)
{
    void *at = mmap(NULL, PAGES * PAGE, protection, flags, fd, 0);
    CHECK(at != MAP_FAILED, "mmap");
    return at;
}

static void is(const struct hm_process *process, void *at, struct hm_vma right)
{
    struct hm_vma found;
    for (int by_text = 0; by_text < 2; by_text++) {
        CHECK(!find(process, (uintptr_t)at, by_text, &found), "find");
        CHECK(found.read == right.read && found.write == right.write &&
                  found.shared == right.shared && found.anonymous == right.anonymous &&
                  found.special == right.special && found.hugetlb == right.hugetlb,
              "the mapping at %p is another kind", at);
        CHECK(found.start <= (uintptr_t)at && found.end >= (uintptr_t)at + PAGES * PAGE, "extent");
    }
}

static void kinds(const struct hm_process *process)
{
    static char long_name[240];
    const int both = PROT_READ | PROT_WRITE;
    struct hm_vma own = {.read = true, .write = true, .anonymous = true};
    struct hm_vma file = {.read = true, .write = true, .shared = true};
    void *named = a_mapping(both, MAP_PRIVATE | MAP_ANONYMOUS, -1);
    int zero = open("/dev/zero", O_RDWR), null = open("/dev/null", O_RDWR);
    prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, named, PAGES * PAGE, "a name"); /* if it may be */
    is(process, named, own);
    is(process, a_mapping(both, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1), own);
    own.write = false;
    is(process, a_mapping(PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1), own);
    own.read = false;
    is(process, a_mapping(PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1), own);
    memset(long_name, 'n', sizeof(long_name) - 1);
    is(process, a_mapping(both, MAP_SHARED, a_file("a file")), file);
    is(process, a_mapping(both, MAP_SHARED, a_file("a\nline")), file);
    is(process, a_mapping(both, MAP_SHARED, a_file(long_name)), file);
    CHECK(!unlink(long_name), "unlink");
    is(process, a_mapping(both, MAP_SHARED, a_file("[stack]")), file);
    is(process, a_mapping(both, MAP_SHARED, memfd_create("memory", 0)), file);
    is(process, a_mapping(both, MAP_SHARED | MAP_ANONYMOUS, -1), file);
    file.shared = false;
    is(process, a_mapping(both, MAP_PRIVATE, a_file("a file")), file);
    CHECK(zero >= 0 && null >= 0, "devices");
    is(process, a_mapping(both, MAP_PRIVATE, zero), (struct hm_vma){.read = true, .write = true});
}

/* Each mapping of this process, as its own text has them. */
static uint32_t all(const struct hm_process *process)
{
    struct hm_vma vma;
    uint64_t at = 0;
    uint32_t n = 0;
    int error;
    while (!(error = find(process, at, true, &vma))) {
        same(process, at);
        same(process, vma.start);
        same(process, vma.end - 1);
        CHECK(vma.end > at, "it stands still");
        at = vma.end;
        n++;
    }
    CHECK(error == -ENOENT, "the last mapping: %d", error);
    same(process, at);
    same(process, UINT64_MAX - PAGE + 1);
    return n;
}

static void of_one_that_is_gone(void)
{
    struct hm_process process = {.maps = -1};
    struct hm_vma vma;
    char path[64];
    int status;
    pid_t child = fork();
    if (!child)
        pause();
    snprintf(path, sizeof(path), "/proc/%d/maps", child);
    process.pid = child;
    process.maps = open(path, O_RDONLY);
    CHECK(process.maps >= 0, "maps");
    same(&process, 0);
    CHECK(!kill(child, SIGKILL) && waitpid(child, &status, 0) == child, "kill");
    same(&process, 0);
    CHECK(find(&process, 0, true, &vma) == -ESRCH, "it is there");
    close(process.maps);
}

int main(int argc, char **argv)
{
    struct hm_process process = {.pid = getpid(), .maps = open("/proc/self/maps", O_RDONLY)};
    CHECK(argc == 2 && !chdir(argv[1]), "usage: mappings DIRECTORY");
    CHECK(process.maps >= 0, "maps");
    kinds(&process);
    printf("mappings %u\n", all(&process));
    of_one_that_is_gone();
    close(process.maps);
    return 0;
}
