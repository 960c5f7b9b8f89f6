/* How a program under the preloaded library comes to a core without a daemon. CHECK is the
 * includer's. */
#ifndef GREETING_H
#define GREETING_H
#include "include/hmmfs.h"
#include "preload/preload.h"

#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

/* Where programs that are started from now on connect to. */
static inline int listen_at(char name[64])
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    snprintf(name, 64, "hmmfs-test-%d", getpid());
    strcpy(address.sun_path + 1, name);
    CHECK(!bind(listener, (struct sockaddr *)&address,
                (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + strlen(name))) &&
              !listen(listener, 64),
          "listen");
    return listener;
}

/* False: it was killed. */
static inline bool receive_hello(int peer, struct hm_hello *hello, int fds[2])
{
    _Alignas(struct cmsghdr) char space[CMSG_SPACE(2 * sizeof(int))];
    struct iovec part = {hello, sizeof(*hello)};
    struct msghdr message = {
        .msg_iov = &part, .msg_iovlen = 1, .msg_control = space, .msg_controllen = sizeof(space)};
    struct cmsghdr *header;
    if (recvmsg(peer, &message, MSG_CMSG_CLOEXEC) != sizeof(*hello))
        return false;
    header = CMSG_FIRSTHDR(&message);
    CHECK(header && header->cmsg_len == CMSG_LEN(2 * sizeof(int)), "it can't migrate");
    memcpy(fds, CMSG_DATA(header), 2 * sizeof(int));
    CHECK(hello->magic == HM_PRELOAD_MAGIC && hello->flags == HM_HELLO_MIGRATES, "hello");
    return true;
}

/* As a region of this number. -ESRCH: it is gone by now, and nothing of it is left. */
static inline int attach_program(struct hm_core *core, uint64_t ino, int peer,
                                 const struct hm_hello *hello, const int fds[2], pid_t *pid)
{
    struct hm_process_config config = {.socket = dup(peer),
                                       .control = fds[0],
                                       .uffd = fds[1],
                                       .own = hello->own,
                                       .own_bytes = hello->own_bytes,
                                       .scratch = hello->scratch};
    struct hm_region_record *record;
    struct ucred who;
    socklen_t length = sizeof(who);
    int error;
    CHECK(!getsockopt(peer, SOL_SOCKET, SO_PEERCRED, &who, &length), "who");
    *pid = config.pid = who.pid;
    config.pidfd = (int)syscall(SYS_pidfd_open, who.pid, 0);
    CHECK(!hm_region_create(core, ino, 0, 0, 0, &record), "create");
    error = config.pidfd < 0 ? -errno : hm_process_attach(core, ino, &config);
    if (!error)
        return 0;
    CHECK(error == -ESRCH, "attach: %d", error);
    hm_region_destroy(core, ino);
    for (int i = 0; i < 2; i++)
        close(fds[i]);
    close(config.socket);
    if (config.pidfd >= 0)
        close(config.pidfd);
    return error;
}

#endif
