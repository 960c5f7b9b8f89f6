/* Regions that are coherent or device-DAX: one memfd for all nodes, which programs and devices use
 * at the same time, wherever a page is said to be.
 *
 * The kernel passes mappings of such a region through to the memfd (FUSE passthrough, Linux 6.9),
 * so a program's fault costs what it costs on tmpfs, and nothing can be taken from the CPU again. A
 * page's owner is a label: every page of the file has one from the moment the file is that long,
 * and is reserved then, since nobody tells when it is first touched. So only what comes here
 * may make the file longer, and writes do (shared_access.c). Migrating relabels and charges the
 * link; the bytes stay.
 *
 * So nothing here recalls, copies or protects. What has to be minded instead is the memfd's end,
 * which is the region's (a read past it must end there): what works on the bytes does it by
 * pread and pwrite, never through a mapping, which a truncate could pull away.
 */
#include "directory/shared_size.h"

#include "base/fuse_wire.h"
#include "base/times.h"
#include "directory/cut.h"
#include "directory/owner.h"
#include "directory/records.h"

#include <errno.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

int hm_shared_init(struct hm_region *region)
{
    int fd;
    pthread_mutex_init(&region->shared_lock, NULL);
    if (!hm_is_shared(region))
        return 0;
    fd = memfd_create("hmmfs-shared", MFD_CLOEXEC);
    if (fd < 0)
        return -errno;
    atomic_store(&region->pools[HM_HOST].fd, fd);
    return 0;
}

void hm_shared_deinit(struct hm_region *region)
{
    uint32_t id = (uint32_t)region->backing_id;
    if (region->backing_id > 0)
        ioctl(region->core->fuse_fd, HM_FUSE_BACKING_CLOSE, &id);
    pthread_mutex_destroy(&region->shared_lock);
}

int hm_shared_backing(struct hm_region *region)
{
    struct hm_fuse_backing_map map = {.fd = region->pools[HM_HOST].fd};
    int id;
    HM_GUARD(HM_RANK_SHARED, &region->shared_lock);
    if (region->backing_id <= 0) {
        id = ioctl(region->core->fuse_fd, HM_FUSE_BACKING_OPEN, &map);
        region->backing_id = id < 0 ? -errno : id;
    }
    id = region->backing_id;
    return id;
}

/* ---- size ----------------------------------------------------------------------------------- */

/* The device with the most free capacity; the host if there is no device. */
static uint32_t node_with_most_free(struct hm_core *core)
{
    uint64_t most = 0;
    uint32_t found = HM_HOST;
    for (uint32_t node = 1; node < core->config.nodes; node++) {
        uint64_t used = core->nodes[node].used, capacity = core->nodes[node].capacity;
        uint64_t unused = used < capacity ? capacity - used : 0;
        if (found == HM_HOST || unused > most) {
            most = unused;
            found = node;
        }
    }
    return found;
}

static bool may_have(const struct hm_region *region, uint32_t node)
{
    const struct hm_core *core = region->core;
    if (region->numa.mode == HM_NUMA_BIND)
        return region->numa.nodes >> node & 1;
    return !core->nodes[node].excluded;
}

/* The nodes of an interleaved file in order, one page each. Returns how many. */
static uint32_t interleaved(const struct hm_region *region, uint32_t nodes[HM_MAX_NODES])
{
    uint32_t n = 0;
    for (uint32_t node = 0; node < region->core->config.nodes; node++)
        if (region->numa.nodes >> node & 1)
            nodes[n++] = node;
    return n;
}

/* Reserve pages on one node after the other, on each as many as fit. */
static int spread(struct hm_region *region, uint64_t pages, uint64_t share[HM_MAX_NODES])
{
    struct hm_core *core = region->core;
    for (uint32_t node = 0; node < core->config.nodes && pages; node++) {
        uint64_t used = core->nodes[node].used, capacity = core->nodes[node].capacity;
        uint64_t some = used < capacity ? capacity - used : 0;
        some = some < pages ? some : pages;
        if (!some || !may_have(region, node) || hm_reserve(core, node, some, 0))
            continue;
        share[node] = some;
        pages -= some;
    }
    if (!pages)
        return 0;
    for (uint32_t node = 0; node < core->config.nodes; node++)
        hm_release(core, node, share[node]);
    memset(share, 0, HM_MAX_NODES * sizeof(*share));
    return -ENOSPC;
}

/* Where a file's new pages [first, end) are said to be, as many on each node; reserves them. A DAX
 * file is one device's, the one with the most free capacity when it got its first page; a coherent
 * one is the host's until that is full, then the next node's, or what its NUMA policy says; where
 * all fit on none, each node's that has free capacity. -ENOSPC: nothing is reserved. */
static int place(struct hm_region *region, uint64_t first, uint64_t end,
                 uint64_t share[HM_MAX_NODES])
{
    struct hm_core *core = region->core;
    uint32_t nodes[HM_MAX_NODES], n, node;
    uint64_t pages = end - first;
    memset(share, 0, HM_MAX_NODES * sizeof(*share));
    if (region->kind == HM_KIND_DAX) {
        node = first ? region->dax_node : node_with_most_free(core);
        region->dax_node = node;
        share[node] = pages;
        return hm_reserve(core, node, pages, 0);
    }
    if (region->numa.mode == HM_NUMA_INTERLEAVE) {
        n = interleaved(region, nodes);
        for (uint32_t i = 0; i < n; i++) /* pages below x that are the i-th node's: (x+n-1-i)/n */
            share[nodes[i]] = (end + n - 1 - i) / n - (first + n - 1 - i) / n;
        for (uint32_t i = 0; i < n; i++)
            if (hm_reserve(core, nodes[i], share[nodes[i]], 0)) {
                while (i--)
                    hm_release(core, nodes[i], share[nodes[i]]);
                return -ENOSPC;
            }
        return 0;
    }
    if (region->numa.mode == HM_NUMA_PREFERRED) {
        node = (uint32_t)__builtin_ctz(region->numa.nodes);
        if (!hm_reserve(core, node, pages, 0)) {
            share[node] = pages;
            return 0;
        }
    }
    for (node = 0; node < core->config.nodes; node++)
        if (may_have(region, node) && !hm_reserve(core, node, pages, 0)) {
            share[node] = pages;
            return 0;
        }
    return spread(region, pages, share);
}

/* The node of the next page, each getting its share before the one after it. */
static uint32_t next_node(const uint64_t share[HM_MAX_NODES], uint32_t *at, uint64_t *left)
{
    while (!*left)
        *left = share[++*at];
    --*left;
    return *at;
}

/* Label pages [first, end) of the file, which are reserved. */
static void label(struct hm_region *region, uint64_t first, uint64_t end,
                  const uint64_t share[HM_MAX_NODES])
{
    uint32_t nodes[HM_MAX_NODES], n = 0, at = 0; /* n 0: in order, as many as each has */
    uint64_t left = share[0];
    if (region->numa.mode == HM_NUMA_INTERLEAVE && region->kind != HM_KIND_DAX)
        n = interleaved(region, nodes);
    for (uint64_t page = first; page < end;) {
        uint64_t block = page / HM_BLOCK_PAGES;
        uint32_t low = (uint32_t)(page % HM_BLOCK_PAGES), count = HM_BLOCK_PAGES - low;
        struct hm_stripe *stripe = hm_stripe_of(region->core, region->ino, block);
        struct hm_block *record = &region->blocks[block];
        struct hm_mask on[HM_MAX_NODES] = {{{0}}};
        count = count < end - page ? count : (uint32_t)(end - page);
        hm_lock(HM_RANK_STRIPE, &stripe->lock);
        hm_block_touch(region, block);
        for (uint32_t i = low; i < low + count; i++, page++)
            hm_set(on[n ? nodes[page % n] : next_node(share, &at, &left)].word, i);
        for (uint32_t node = 0; node < region->core->config.nodes; node++)
            hm_populate(region, record, &on[node], node);
        hm_unlock(HM_RANK_STRIPE, &stripe->lock);
    }
}

int hm_region_numa(struct hm_core *core, uint64_t ino, uint32_t mode, uint32_t nodes)
{
    int error = 0;
    if (mode > HM_NUMA_INTERLEAVE || nodes >> core->config.nodes ||
        (mode == HM_NUMA_DEFAULT) != !nodes)
        return -EINVAL;
    HM_AUTO_PUT struct hm_region *region = hm_region_get(core, ino);
    if (!region)
        return -ENOENT;
    HM_GUARD(HM_RANK_SHARED, &region->shared_lock);
    if (region->kind != HM_KIND_COHERENT && mode != HM_NUMA_DEFAULT)
        error = -EOPNOTSUPP;
    else
        region->numa = (struct hm_numa){mode, nodes};
    return error;
}

int hm_node_exclude(struct hm_core *core, uint32_t node, int on)
{
    if (node >= core->config.nodes)
        return -ENODEV;
    core->nodes[node].excluded = on != 0;
    return 0;
}

static uint64_t pages_of(uint64_t size)
{
    return (size + HM_PAGE_SIZE - 1) / HM_PAGE_SIZE;
}

int hm_shared_resize_locked(struct hm_region *region, uint64_t size)
{
    uint64_t old = hm_region_size(region);
    uint64_t had = pages_of(old), has = pages_of(size), share[HM_MAX_NODES] = {0};
    int error = has > had ? place(region, had, has, share) : 0;
    if (!error && ftruncate(region->pools[HM_HOST].fd, (off_t)size) < 0) {
        error = -errno;
        for (uint32_t node = 0; node < region->core->config.nodes; node++)
            hm_release(region->core, node, share[node]);
    }
    if (error)
        return error;
    __atomic_store_n(&region->record->size, size, __ATOMIC_RELEASE);
    if (has > had)
        label(region, had, has, share);
    else if (has < had)
        error = hm_cut_range(region, has * HM_PAGE_SIZE, HM_MAX_BYTES, true);
    return error;
}

int hm_shared_resize(struct hm_region *region, uint64_t size)
{
    HM_GUARD(HM_RANK_SHARED, &region->shared_lock);
    return hm_shared_resize_locked(region, size);
}

int hm_region_sync(struct hm_core *core, uint64_t ino)
{
    HM_AUTO_PUT struct hm_region *region = hm_region_get(core, ino);
    struct stat status;
    int error = 0;
    if (!region)
        return -ENOENT;
    if (hm_is_shared(region)) {
        hm_lock(HM_RANK_SHARED, &region->shared_lock);
        if (fstat(region->pools[HM_HOST].fd, &status) < 0)
            error = -errno;
        if (!error)
            hm_times_copy(region, &status);
        hm_unlock(HM_RANK_SHARED, &region->shared_lock);
    }
    return error;
}
