/* A number and a descriptor through a socket. CHECK is the includer's. */
#ifndef DESCRIPTORS_H
#define DESCRIPTORS_H
#include <string.h>
#include <sys/socket.h>

static void send_fd(int channel, uint64_t value, int fd)
{
    char control[CMSG_SPACE(sizeof(int))] = {0};
    struct iovec iov = {&value, sizeof(value)};
    struct msghdr message = {.msg_iov = &iov,
                             .msg_iovlen = 1,
                             .msg_control = control,
                             .msg_controllen = sizeof(control)};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(header), &fd, sizeof(fd));
    CHECK(sendmsg(channel, &message, 0) == sizeof(value), "sendmsg");
}

static uint64_t receive_fd(int channel, int *fd)
{
    char control[CMSG_SPACE(sizeof(int))];
    uint64_t value;
    struct iovec iov = {&value, sizeof(value)};
    struct msghdr message = {.msg_iov = &iov,
                             .msg_iovlen = 1,
                             .msg_control = control,
                             .msg_controllen = sizeof(control)};
    CHECK(recvmsg(channel, &message, MSG_CMSG_CLOEXEC) == sizeof(value), "recvmsg");
    memcpy(fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof(*fd));
    return value;
}

#endif
