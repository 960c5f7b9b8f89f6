/* A peer for the bench: one file in memory on libfuse's low-level API.
 *     lowlevel MOUNTPOINT s|m     single- or multi-threaded, in the foreground */
#define FUSE_USE_VERSION 31
#include <errno.h>
#include <fuse_lowlevel.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

static const size_t capacity = 1UL << 30;
static char *bytes;
static struct stat file = {.st_ino = 2, .st_mode = S_IFREG | 0644, .st_nlink = 1};
static struct stat top = {.st_ino = 1, .st_mode = S_IFDIR | 0755, .st_nlink = 2};

static void fs_init(void *data, struct fuse_conn_info *conn)
{
    (void)data;
    conn->max_write = 1 << 20;
}

static void fs_lookup(fuse_req_t request, fuse_ino_t parent, const char *name)
{
    struct fuse_entry_param entry = {
        .ino = 2, .attr = file, .attr_timeout = 1000, .entry_timeout = 1000};
    if (parent != 1 || strcmp(name, "a"))
        fuse_reply_err(request, ENOENT);
    else
        fuse_reply_entry(request, &entry);
}

static void fs_getattr(fuse_req_t request, fuse_ino_t ino, struct fuse_file_info *info)
{
    (void)info;
    fuse_reply_attr(request, ino == 1 ? &top : &file, 1000);
}

static void fs_setattr(fuse_req_t request, fuse_ino_t ino, struct stat *to, int set,
                       struct fuse_file_info *info)
{
    (void)ino;
    (void)info;
    if (set & FUSE_SET_ATTR_SIZE)
        file.st_size = to->st_size;
    fuse_reply_attr(request, &file, 1000);
}

static void fs_open(fuse_req_t request, fuse_ino_t ino, struct fuse_file_info *info)
{
    (void)ino;
    info->keep_cache = 1;
    fuse_reply_open(request, info);
}

static void fs_read(fuse_req_t request, fuse_ino_t ino, size_t size, off_t offset,
                    struct fuse_file_info *info)
{
    size_t left = offset < file.st_size ? (size_t)(file.st_size - offset) : 0;
    (void)ino;
    (void)info;
    fuse_reply_buf(request, bytes + offset, size < left ? size : left);
}

static void fs_write(fuse_req_t request, fuse_ino_t ino, const char *data, size_t size,
                     off_t offset, struct fuse_file_info *info)
{
    (void)ino;
    (void)info;
    if ((size_t)offset + size > capacity) {
        fuse_reply_err(request, ENOSPC);
        return;
    }
    memcpy(bytes + offset, data, size);
    if (offset + (off_t)size > file.st_size)
        file.st_size = offset + (off_t)size;
    fuse_reply_write(request, size);
}

static const struct fuse_lowlevel_ops operations = {.init = fs_init,
                                                    .lookup = fs_lookup,
                                                    .getattr = fs_getattr,
                                                    .setattr = fs_setattr,
                                                    .open = fs_open,
                                                    .read = fs_read,
                                                    .write = fs_write};

int main(int argc, char **argv)
{
    char *options[] = {argv[0], "-o", "allow_other,default_permissions", NULL};
    struct fuse_args args = FUSE_ARGS_INIT(3, options);
    struct fuse_session *session;
    int status;
    if (argc != 3)
        return 2;
    bytes = mmap(NULL, capacity, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    session = fuse_session_new(&args, &operations, sizeof(operations), NULL);
    if (bytes == MAP_FAILED || !session || fuse_set_signal_handlers(session) ||
        fuse_session_mount(session, argv[1]))
        return 1;
    status = argv[2][0] == 'm' ? fuse_session_loop_mt(session, 0) : fuse_session_loop(session);
    fuse_session_unmount(session);
    fuse_remove_signal_handlers(session);
    fuse_session_destroy(session);
    return status != 0;
}
