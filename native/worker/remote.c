/* In a device's worker: mapping files of the mount over parts of its windows.
 *
 * A window shows the device's own memory. Pages that the device is to reach on the host are mapped
 * there from the region's file in the mount, like any program maps it, so that the device and all
 * programs share the kernel's page cache. The core asks for that while a kernel's thread waits for
 * its fault; this thread maps, and wakes it. It takes no part in Python, whose lock the waiting
 * thread may hold.
 *
 * The daemon never waits for an answer: mmap waits for a thread of this process that is in a fault
 * on the mount, which may wait for the daemon. So a window changes at a moment that the daemon does
 * not know. It need not: what is mapped remotely is as right as any program's mapping, wherever
 * the page is; and what it says of protection to a part that was just replaced reaches nobody.
 *
 * What is mapped already is not mapped again. To replace a mapping of the mount, or to unmap it,
 * the kernel waits for all that is being written back to the file, with mmap_lock held. Such a
 * WRITE may wait for a block that is frozen, and the mover that froze it for mmap_lock, to protect
 * a part of a window. So what was mapped stays until the launch has ended and the core has
 * forgotten every window of this process. Then it goes: a file that stays open would keep the mount
 * busy. */
#include "worker/remote.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

struct file {
    uint64_t ino, address, bytes;
    char *path;
    uint8_t *mapped; /* by page: the file is mapped there */
    int fd;          /* -1: not open yet */
    bool writable, used;
};

struct hm_remote {
    int socket, uffd;
    pthread_mutex_t lock; /* guards files; held across open and mmap, which wait for the mount */
    struct file *files;
    int used;
};

static struct file *find(struct hm_remote *remote, uint64_t ino)
{
    for (int i = 0; i < remote->used; i++)
        if (remote->files[i].ino == ino)
            return &remote->files[i];
    return NULL;
}

/* The file of that name may be another by now. */
static int open_file(struct file *file)
{
    struct stat status;
    if (file->fd >= 0)
        return 0;
    file->fd = open(file->path, (file->writable ? O_RDWR : O_RDONLY) | O_CLOEXEC);
    if (file->fd < 0)
        return -errno;
    if (fstat(file->fd, &status) == 0 && status.st_ino == file->ino)
        return 0;
    close(file->fd);
    file->fd = -1;
    return -ESTALE;
}

static int map_pages(struct file *file, uint64_t first, uint64_t count)
{
    uint64_t offset = first * HM_PAGE_SIZE, length = count * HM_PAGE_SIZE;
    void *at = (void *)(uintptr_t)(file->address + offset);
    if (mmap(at, length, PROT_READ | (file->writable ? PROT_WRITE : 0), MAP_SHARED | MAP_FIXED,
             file->fd, (off_t)offset) == MAP_FAILED)
        return -errno;
    file->used = true;
    memset(file->mapped + first, 1, count);
    /* As the rest of the window: a child of a kernel does not see it. */
    madvise(at, length, MADV_DONTFORK);
    return 0;
}

static int map(struct file *file, const struct hm_remote_request *request)
{
    uint64_t page, end;
    int error;
    if (!file || request->offset > file->bytes || request->length > file->bytes - request->offset)
        return -ENOENT;
    error = open_file(file);
    if (error)
        return error;
    end = (request->offset + request->length) / HM_PAGE_SIZE;
    for (page = request->offset / HM_PAGE_SIZE; page < end && !error; page++) {
        uint64_t first = page;
        while (page < end && !file->mapped[page])
            page++;
        if (page > first)
            error = map_pages(file, first, page - first);
    }
    return error;
}

static void *serve(void *arg)
{
    struct hm_remote *remote = arg;
    struct hm_remote_request request;
    ssize_t n;
    while ((n = recv(remote->socket, &request, sizeof(request), 0)) != 0) {
        struct uffdio_range range;
        struct file *file;
        if (n < 0 && errno == EINTR)
            continue;
        if (n != sizeof(request))
            break;
        pthread_mutex_lock(&remote->lock);
        file = find(remote, request.ino);
        range.start = file ? file->address + request.offset : 0;
        range.len = request.length;
        request.error = map(file, &request);
        pthread_mutex_unlock(&remote->lock);
        /* When it failed the core has the pages brought, and wakes. */
        if (request.error)
            (void)!send(remote->socket, &request, sizeof(request), MSG_NOSIGNAL);
        else
            ioctl(remote->uffd, UFFDIO_WAKE, &range);
    }
    return NULL;
}

int hm_remote_start(int socket, int uffd, struct hm_remote **ret)
{
    struct hm_remote *remote = calloc(1, sizeof(*remote));
    pthread_t thread;
    int error;
    if (!remote)
        return -ENOMEM;
    remote->socket = socket;
    remote->uffd = uffd;
    pthread_mutex_init(&remote->lock, NULL);
    error = -pthread_create(&thread, NULL, serve, remote);
    if (error) {
        pthread_mutex_destroy(&remote->lock);
        free(remote);
        return error;
    }
    pthread_detach(thread); /* it ends with the process */
    *ret = remote;
    return 0;
}

int hm_remote_allow(struct hm_remote *remote, uint64_t ino, uint64_t address, uint64_t bytes,
                    const char *path, int writable)
{
    struct file file = {.ino = ino,
                        .address = address,
                        .bytes = bytes,
                        .path = strdup(path),
                        .mapped = calloc(bytes / HM_PAGE_SIZE + 1, 1),
                        .fd = -1,
                        .writable = writable};
    struct file *files;
    int error = file.path && file.mapped ? 0 : -ENOMEM;
    pthread_mutex_lock(&remote->lock);
    files = error ? NULL : realloc(remote->files, ((size_t)remote->used + 1) * sizeof(*files));
    if (files) {
        remote->files = files;
        files[remote->used++] = file;
    } else {
        free(file.path);
        free(file.mapped);
        error = -ENOMEM;
    }
    pthread_mutex_unlock(&remote->lock);
    return error;
}

int hm_remote_end(struct hm_remote *remote)
{
    int used = 0;
    pthread_mutex_lock(&remote->lock);
    for (int i = 0; i < remote->used; i++) {
        struct file *file = &remote->files[i];
        used |= file->used;
        if (file->fd >= 0)
            close(file->fd);
        free(file->path);
        free(file->mapped);
    }
    remote->used = 0;
    pthread_mutex_unlock(&remote->lock);
    return used;
}

void hm_remote_child(struct hm_remote *remote)
{
    /* The lock may be held by the thread that is not here. */
    for (int i = 0; i < remote->used; i++)
        if (remote->files[i].fd >= 0)
            close(remote->files[i].fd);
    close(remote->socket);
    close(remote->uffd);
}
