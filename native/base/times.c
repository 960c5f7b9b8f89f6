/* A region's mtime and ctime: the one place that moves them.
 *
 * Those of a private region are in its record. Those of a coherent or DAX region are its memfd's
 * own: the kernel moves them there, at a write(2) and at a store's first fault on a page, and tells
 * nobody. So they are set and moved there, too, and the record has a copy, which hm_region_sync
 * makes. */
#include "base/times.h"

#include "base/region.h"

#include <errno.h>
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
    HM_AUTO_PUT struct hm_region *region = hm_region_get(core, ino);
    if (!region)
        return -ENOENT;
    hm_region_changed(region, bytes != 0);
    return 0;
}

void hm_times_copy(struct hm_region *region, const struct stat *status)
{
    put_time(&region->record->mtime, ns_of(status->st_mtim));
    put_time(&region->record->ctime, ns_of(status->st_ctim));
}

void hm_times_set(struct hm_region *region, int64_t atime, int64_t mtime)
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
