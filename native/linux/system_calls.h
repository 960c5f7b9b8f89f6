/* System calls that Python has no call for: the only part that processes without a core use. Read
 * by cffi as it stands, without what is a directive. Functions return 0 or what they say, or
 * -errno. */
#ifndef HMMFS_LINUX_SYSTEM_CALLS_H
#define HMMFS_LINUX_SYSTEM_CALLS_H
#include <stddef.h>
#include <stdint.h>

int hm_mount(const char *source, const char *target, const char *kind, unsigned long flags,
             const char *data);
/* Never follows a symlink. */
int hm_umount(const char *target, int flags);
/* Have a signal sent to this process when the thread that forked it ends. */
int hm_signal_on_parent_death(int number);
/* What ps shows for this thread, cut at 15 bytes. */
int hm_name_process(const char *name);
/* A descriptor of the top directory of a file system that is mounted nowhere (root), with `count`
 * options by name and value. */
int hm_detached_mount(const char *kind, const char *const *names, const char *const *values,
                      size_t count);

/* A userfaultfd that says of stores to protected pages: with faults of the kernel's own accesses
 * where that is allowed, else of user code only. */
int hm_userfaultfd(void);
/* Map a pool, shared, where it fits; its pages do not come to a forked child, nor as huge pages.
 * With uffd, unless that is negative, its missing pages and stores to protected ones are faults. */
int hm_window_map(int pool, uint64_t size, int uffd, uint64_t *address);
int hm_window_unmap(uint64_t address, uint64_t size);

/* Copy to or from the memory of a process; returns the bytes done: at least one. */
int64_t hm_copy_memory(int pid, uint64_t address, void *buffer, size_t length, int store);

#endif
