/* native/device/faults.c against a worker that writes to its socket what it likes: SECONDS, SEED.
 */
#include "inside.h"

#include "worker/remote.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#define BLOCKS 3

static uint64_t seed;

static uint64_t draw(void)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return seed;
}

/* Numbers around everything that a size or a place is compared with. */
static uint64_t number(void)
{
    static const uint64_t edges[] = {0,
                                     HM_PAGE_SIZE,
                                     HM_BLOCK_BYTES,
                                     BLOCKS * HM_BLOCK_BYTES,
                                     HM_MAX_BYTES,
                                     1ULL << 32,
                                     1ULL << 63,
                                     (uint64_t)HM_PAGE_SIZE << 32};
    uint64_t random = draw(), edge = edges[draw() % (sizeof(edges) / sizeof(*edges))];
    switch (random % 5) {
    case 0:
        return edge + (random >> 8) % 3 - 1;
    case 1:
        return edge + HM_PAGE_SIZE * ((random >> 8) % 5 - 2);
    case 2:
        return edge - HM_BLOCK_BYTES * ((random >> 8) % 3);
    case 3:
        return (random >> 8) % (2 * BLOCKS * HM_BLOCK_PAGES) * HM_PAGE_SIZE;
    default:
        return random;
    }
}

static int attach(void)
{
    struct uffdio_api api = {UFFD_API, UFFD_FEATURE_PAGEFAULT_FLAG_WP, 0};
    int pair[2], uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
    CHECK(uffd >= 0 && !ioctl(uffd, UFFDIO_API, &api), "userfaultfd");
    CHECK(!socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), "socketpair");
    CHECK(!hm_device_attach(core, 1, uffd, pair[0]), "attach");
    CHECK(!hm_device_map(core, 1, INO, 1ULL << 40, BLOCKS * HM_BLOCK_BYTES), "map");
    return pair[1];
}

/* The next event, which each message leads to. */
static struct hm_event heard(void)
{
    struct pollfd ready = {.fd = hm_event_fd(core), .events = POLLIN};
    struct hm_event event;
    CHECK(poll(&ready, 1, PATIENCE_MS) == 1, "nothing is said of a message");
    CHECK(hm_events(core, &event, 1) == 1 && event.kind == HM_EVENT_DEVICE_FAULT, "event");
    return event;
}

static bool is_sound(const struct hm_remote_request *request, size_t length)
{
    uint64_t at = request->offset % HM_BLOCK_BYTES;
    return length == sizeof(*request) && request->ino == INO &&
           request->offset < BLOCKS * HM_BLOCK_BYTES && request->length &&
           request->length <= HM_BLOCK_BYTES && at + request->length <= HM_BLOCK_BYTES &&
           at % HM_PAGE_SIZE == 0 && request->length % HM_PAGE_SIZE == 0;
}

static void refuse_descriptors(void)
{
    int pipes[2];
    CHECK(!pipe(pipes), "pipe");
    CHECK(hm_device_attach(core, 1, pipes[0], -1) == -EINVAL, "a pipe is not a userfaultfd");
    CHECK(hm_device_attach(core, 1, -1, -1) == -EINVAL, "nor is nothing");
    CHECK(hm_device_map(core, 1, INO, (uint64_t)INT64_MAX - 4095, HM_BLOCK_BYTES) == -EINVAL,
          "a window beyond all addresses");
    close(pipes[0]);
    close(pipes[1]);
}

int main(int argc, char **argv)
{
    uint64_t end, sound = 0, refused = 0;
    int worker;
    CHECK(argc == 3, "usage: hostile SECONDS SEED");
    seed = strtoull(argv[2], NULL, 0) + 1;
    make_core((struct hm_config){.nodes = 2, .threads = 1, .capacity = {8192, 8192}},
              BLOCKS * HM_BLOCK_BYTES);
    refuse_descriptors();
    worker = attach();
    for (end = hm_now() + strtoull(argv[1], NULL, 0) * 1000000000; hm_now() < end;) {
        struct {
            struct hm_remote_request request;
            uint8_t more[64];
        } message = {{draw() % 4 ? INO : number(), number(), number(), (int64_t)draw()}, {0}};
        size_t length = draw() % 4 ? sizeof(message.request) : 1 + draw() % sizeof(message);
        bool right = is_sound(&message.request, length);
        struct hm_event event;
        CHECK(send(worker, &message, length, 0) == (ssize_t)length, "send");
        event = heard();
        CHECK(event.result == (right ? -ENOTCONN : -EBADMSG), "%d for %llx+%llx of %llx",
              event.result, (unsigned long long)message.request.offset,
              (unsigned long long)message.request.length, (unsigned long long)message.request.ino);
        if (right) {
            CHECK(hm_bits(event.pages) == message.request.length / HM_PAGE_SIZE, "pages");
            sound++;
            continue;
        }
        refused++;
        CHECK(!hm_device_detach(core, 1), "detach");
        close(worker);
        worker = attach();
    }
    close(worker); /* it lives on without */
    CHECK(!hm_device_detach(core, 1), "detach");
    printf("sound %llu refused %llu\n", (unsigned long long)sound, (unsigned long long)refused);
    end_core();
    return 0;
}
