/* writers uring|stores FILE BYTES: writes pages to FILE until memory is full, or BYTES are there.
 * Page n holds the byte n % 251. Prints how many bytes were written, and the errno of what ended it
 * (0: nothing did; for a SIGBUS ENOSPC). */
#include <errno.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PAGE 4096u
#define UNIT (16 * PAGE)

static sigjmp_buf out;
static volatile size_t done;
static char unit[UNIT];

static void end(size_t bytes, int error)
{
    printf("%zu %d\n", bytes, error);
    exit(0);
}

static void on_bus(int signal)
{
    (void)signal;
    siglongjmp(out, 1);
}

static void fill(size_t at)
{
    for (size_t i = 0; i < UNIT; i += PAGE)
        memset(unit + i, (int)((at + i) / PAGE % 251), PAGE);
}

static void stores(int fd, size_t bytes)
{
    struct sigaction action = {.sa_handler = on_bus};
    char *map = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (map == MAP_FAILED)
        end(0, errno);
    sigaction(SIGBUS, &action, NULL);
    if (sigsetjmp(out, 1))
        end(done, ENOSPC);
    for (; done < bytes; done += PAGE) {
        map[done] = (char)(done / PAGE % 251);
        memset(map + done, (int)(done / PAGE % 251), PAGE);
    }
    end(done, 0);
}

static void uring(int fd, size_t bytes)
{
    struct io_uring_params how = {0};
    int ring = (int)syscall(SYS_io_uring_setup, 4, &how);
    char *sq, *cq;
    struct io_uring_sqe *entries;
    unsigned *tail, *head;
    if (ring < 0)
        end(0, errno);
    sq = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQ_RING);
    cq = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_CQ_RING);
    entries = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQES);
    if (sq == MAP_FAILED || cq == MAP_FAILED || entries == MAP_FAILED)
        end(0, errno);
    tail = (unsigned *)(sq + how.sq_off.tail);
    head = (unsigned *)(cq + how.cq_off.head);
    while (done < bytes) {
        unsigned slot = *tail & *(unsigned *)(sq + how.sq_off.ring_mask);
        struct io_uring_cqe *answer;
        fill(done);
        entries[slot] = (struct io_uring_sqe){.opcode = IORING_OP_WRITE,
                                              .fd = fd,
                                              .off = done,
                                              .addr = (unsigned long)unit,
                                              .len = UNIT};
        ((unsigned *)(sq + how.sq_off.array))[slot] = slot;
        __atomic_store_n(tail, *tail + 1, __ATOMIC_RELEASE);
        if (syscall(SYS_io_uring_enter, ring, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0) < 0)
            end(done, errno);
        answer = (struct io_uring_cqe *)(cq + how.cq_off.cqes) +
                 (*head & *(unsigned *)(cq + how.cq_off.ring_mask));
        if (answer->res <= 0)
            end(done, -answer->res);
        done += (size_t)answer->res;
        __atomic_store_n(head, *head + 1, __ATOMIC_RELEASE);
    }
    end(done, 0);
}

int main(int argc, char **argv)
{
    int fd = argc == 4 ? open(argv[2], O_RDWR | O_CREAT, 0644) : -1;
    if (fd < 0)
        return 2;
    if (!strcmp(argv[1], "stores"))
        stores(fd, strtoull(argv[3], NULL, 0));
    uring(fd, strtoull(argv[3], NULL, 0));
}
