/* A region's mtime and ctime: the one place that moves and sets them.
 *
 * Those of a private region are in its record. Those of a coherent or DAX region are its memfd's
 * own: the kernel moves them there, at a write(2) and at a store's first fault on a page, and tells
 * nobody. So they are set and moved there, too, and the record has a copy, which hm_region_sync
 * makes.
 *
 * A time that was set stays until the next store. The stores that nobody has announced until then
 * are found first: what programs stored through the page cache is written back, and devices take a
 * fault at their next store to any page.
 */
#include "core.h"

#include <sys/stat.h>

static int64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static int64_t ns_of(struct timespec time)
{
    return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

static struct timespec timespec_of(int64_t ns)
{
    int64_t part = ns % 1000000000;
    part += part < 0 ? 1000000000 : 0;
    return (struct timespec){.tv_sec = (ns - part) / 1000000000, .tv_nsec = part};
}

static void put_time(int64_t *time, int64_t ns)
{
    __atomic_store_n(time, ns, __ATOMIC_RELAXED);
}

void hm_times_begin(struct hm_region_record *record)
{
    record->atime = record->mtime = record->ctime = record->btime = now_ns();
}

void hm_region_changed(struct hm_region *region, bool bytes)
{
    struct hm_region_record *record = region->record;
    int fd = region->pools[HM_HOST].fd;
    if (hm_is_shared(region)) {
        struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, {.tv_nsec = UTIME_NOW}};
        struct stat status;
        if (bytes)
            futimens(fd, times);
        else if (!fstat(fd, &status)) /* its mode means nothing; this moves ctime alone */
            fchmod(fd, status.st_mode & 07777);
        return;
    }
    int64_t now = now_ns();
    if (bytes)
        put_time(&record->mtime, now);
    put_time(&record->ctime, now);
}

int hm_region_modified(struct hm_core *core, uint64_t ino, int bytes)
{
    struct hm_region *region = hm_region_get(core, ino);
    if (!region)
        return -ENOENT;
    hm_region_changed(region, bytes != 0);
    hm_region_put(region);
    return 0;
}

void hm_times_copy(struct hm_region *region, const struct stat *status)
{
    put_time(&region->record->mtime, ns_of(status->st_mtim));
    put_time(&region->record->ctime, ns_of(status->st_ctim));
}

/* ---- setting them --------------------------------------------------------------------------- */

/* Have the kernel write back what it has of the region that may be dirty. Waits for the answers to
 * what is parked on these pages. */
static void write_back(struct hm_region *region)
{
    uint64_t block, from = 0;
    while (hm_region_touched(region->core, region->ino, from, &block, 1) == 1) {
        struct hm_stripe *stripe = hm_stripe_of(region->core, region->ino, block);
        const struct hm_block *record = &region->blocks[block];
        struct hm_mask seen;
        pthread_mutex_lock(&stripe->lock);
        HM_EACH_WORD (w)
            seen.word[w] = record->cached[w] | record->recalling[w];
        pthread_mutex_unlock(&stripe->lock);
        for (uint32_t first = 0, count; hm_next_run(seen.word, &first, &count); first += count)
            hm_invalidate(region->core, region->ino,
                          block * HM_BLOCK_BYTES + (uint64_t)first * HM_PAGE_SIZE,
                          (uint64_t)count * HM_PAGE_SIZE);
        from = block + 1;
    }
}

/* Have the next store of a device to any page be a fault. */
static void protect_windows(struct hm_region *region)
{
    struct hm_core *core = region->core;
    uint64_t block, from = 0;
    bool any = false;
    for (uint32_t node = 1; node < core->config.nodes; node++)
        any |= atomic_load(&region->window[node]) != 0;
    while (any && hm_region_touched(core, region->ino, from, &block, 1) == 1) {
        struct hm_stripe *stripe = hm_stripe_of(core, region->ino, block);
        const struct hm_block *record = &region->blocks[block];
        pthread_mutex_lock(&stripe->lock);
        for (uint32_t node = 1; node < core->config.nodes; node++) {
            struct hm_mask mine = {{0}};
            if (record->pages[node])
                mine = hm_owned(record, node);
            HM_EACH_WORD (w)
                mine.word[w] &= record->dirty[w];
            hm_window_protect(region, node, block, &mine);
        }
        pthread_mutex_unlock(&stripe->lock);
        from = block + 1;
    }
}

static void set(struct hm_region *region, int64_t atime, int64_t mtime)
{
    struct hm_region_record *record = region->record;
    if (atime != INT64_MIN)
        put_time(&record->atime, atime);
    if (mtime == INT64_MIN)
        return;
    if (hm_is_shared(region)) {
        struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, timespec_of(mtime)};
        futimens(region->pools[HM_HOST].fd, times);
    } else {
        put_time(&record->mtime, mtime);
    }
}

int hm_region_set_times(struct hm_core *core, uint64_t ino, int64_t atime, int64_t mtime,
                        int settle)
{
    struct hm_region *region = hm_region_get(core, ino);
    if (!region)
        return -ENOENT;
    settle = settle && mtime != INT64_MIN && !hm_is_shared(region);
    /* The last mapping is gone, and its stores are written back, before the last such file is. */
    if (settle && atomic_load(&region->writers))
        write_back(region);
    set(region, atime, mtime);
    if (settle)
        protect_windows(region);
    hm_region_changed(region, false);
    hm_region_put(region);
    return 0;
}
