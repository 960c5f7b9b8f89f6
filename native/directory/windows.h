/* The windows through which devices' workers see regions. */
#ifndef HMMFS_DIRECTORY_WINDOWS_H
#define HMMFS_DIRECTORY_WINDOWS_H
#include "base/region.h"

struct hm_window {
    uint64_t ino, address, bytes;
    /* Pages below `discard` that the worker has not had since that was said need not be copied to
     * it; `had` has a bit for each (a page written, evicted and touched again holds the kernel's
     * own bytes). The words of a block change with the block busy; NULL: nothing is discarded. */
    uint64_t discard;
    uint64_t *had;
    /* Pages that the worker was asked to map remotely, a bit for each; atomic. They don't come to
     * the device by its faults while they are: it would go on to use them on the host. */
    uint64_t *remote;
};

/* The worker of a device, while there is one. */
struct hm_device {
    struct hm_core *core;
    pthread_rwlock_t lock;   /* guards uffd and windows; held across ioctls that wait for nobody */
    int uffd;                /* -1: no worker */
    int remote;              /* the socket to its helper; -1: it has none */
    _Atomic uint32_t worker; /* workers attached so far; written with the lock, before a thread of
                                the new one is there */
    _Atomic bool reaches;    /* whether any window has pages mapped remotely */
    int stop_fd;
    pthread_t thread;
    struct hm_window *windows;
    uint32_t windows_used;
};

int hm_devices_init(struct hm_core *core); /* -ENOMEM */
void hm_devices_deinit(struct hm_core *core);

/* The window on a region, or NULL. The device's lock is held. */
struct hm_window *hm_window_of(const struct hm_device *device, uint64_t ino);
/* Note what is mapped remotely, or no more; the device's lock is held. */
void hm_window_note_remote(struct hm_device *device, uint64_t ino, uint64_t block,
                           const struct hm_mask *mask, bool on);
/* What a worker has mapped remotely ends with its window. */
void hm_window_free(struct hm_window *window);

/* What the node's worker may do with pages of a block, which it maps or not. Called with
 * the stripe held or the block busy; 0, or -errno if the kernel refused. */
int hm_window_protect(struct hm_region *region, uint32_t node, uint64_t block,
                      const struct hm_mask *mask); /* a store is a fault */
int hm_window_let_store(struct hm_region *region, uint32_t node, uint64_t block,
                        const struct hm_mask *mask);
int hm_window_wake(struct hm_region *region, uint32_t node, uint64_t block,
                   const struct hm_mask *mask);
/* Give the worker pages that its pool has not, write-protected: one call instead of a protection
 * and a copy into the pool. -ESRCH: there is no window, or no worker any more; any other error
 * leaves part of it done, as a copy does. */
int hm_window_copy(struct hm_region *region, uint32_t node, uint64_t block, uint32_t first,
                   uint32_t count, const void *from);
/* Have the worker map pages remotely and wake who waits for them. -EBUSY: later. -ENOTCONN: it
 * can't. -ESRCH: it is not the worker of that number any more. Waits for nobody; called without a
 * stripe and with no block busy. */
int hm_window_map_remote(struct hm_region *region, uint32_t node, uint64_t block,
                         const struct hm_mask *mask, uint32_t worker);
/* The pages of the block that the worker has been asked to map. */
struct hm_mask hm_window_remote(struct hm_region *region, uint32_t node, uint64_t block);
/* The pages of the block that may come as zeros; and that these are there now. */
struct hm_mask hm_window_discards(struct hm_region *region, uint32_t node, uint64_t block);
void hm_window_had(struct hm_region *region, uint32_t node, uint64_t block,
                   const struct hm_mask *mask);

#endif
