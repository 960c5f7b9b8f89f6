/* Regions are made and end. */
#include "core/regions.h"

#include "base/region.h"
#include "base/times.h"
#include "books/trace.h"
#include "directory/cut.h"
#include "directory/records.h"
#include "directory/shared_size.h"
#include "program/process.h"
#include "rules/advice.h"
#include "rules/history.h"
#include "transaction/kinds.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

uint64_t hm_region_max_bytes(void)
{
    return HM_MAX_BYTES;
}

void hm_region_free(struct hm_region *region)
{
    hm_unlist(region);
    hm_process_deinit(region);
    hm_history_free(region);
    hm_page_sets_deinit(&region->copies);
    hm_page_sets_deinit(&region->labels);
    hm_advice_free(region);
    hm_shared_deinit(region);
    for (uint32_t node = 0; node < HM_MAX_NODES; node++)
        hm_pool_close(&region->pools[node]);
    if (region->directory)
        munmap(region->directory, HM_DIRECTORY_BYTES);
    if (region->directory_fd >= 0)
        close(region->directory_fd);
    pthread_mutex_destroy(&region->pools_lock);
    if (region->record) { /* free again with its number, the first member, and not before */
        uint8_t *rest = (uint8_t *)region->record + sizeof(region->record->ino);
        memset(rest, 0, sizeof(*region->record) - sizeof(region->record->ino));
        __atomic_store_n(&region->record->ino, 0, __ATOMIC_RELEASE);
    }
    free(region);
}

static int directory_open(struct hm_region *region)
{
    uint64_t *header;
    region->directory_fd = memfd_create("hmmfs-directory", MFD_CLOEXEC);
    if (region->directory_fd < 0)
        return -errno;
    if (ftruncate(region->directory_fd, (off_t)HM_DIRECTORY_BYTES) < 0)
        return -errno;
    void *map = mmap(NULL, HM_DIRECTORY_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE,
                     region->directory_fd, 0);
    if (map == MAP_FAILED)
        return -errno;
    region->directory = map;
    header = map;
    header[0] = HM_DIRECTORY_MAGIC;
    header[1] = region->ino;
    region->touched = (uint64_t *)(region->directory + HM_PAGE_SIZE);
    region->blocks = (struct hm_block *)(region->directory + HM_DIRECTORY_HEADER);
    return 0;
}

int hm_region_create(struct hm_core *core, uint64_t ino, uint32_t mode, uint32_t uid, uint32_t gid,
                     struct hm_region_record **ret)
{
    struct hm_region_record record = {.ino = ino, .mode = mode, .uid = uid, .gid = gid, .nlink = 1};
    int error = -ENOMEM;
    struct hm_region *region = calloc(1, sizeof(*region));
    if (!region)
        return error;
    region->core = core;
    region->ino = ino;
    region->refs = 1;
    region->directory_fd = -1;
    pthread_mutex_init(&region->pools_lock, NULL);
    pthread_rwlock_init(&region->advice_lock, NULL);
    for (uint32_t node = 0; node < HM_MAX_NODES; node++)
        region->pools[node].fd = -1;
    region->kind = mode ? core->config.kind : HM_KIND_PRIVATE; /* no file: a program's memory */
    region->ops = hm_is_shared(region) ? &hm_shared_ops : &hm_private_ops;
    error = hm_shared_init(region);
    if (!error)
        error = directory_open(region);
    if (error)
        goto fail;
    hm_times_begin(&record);
    error = hm_region_enter(region, &record);
    if (error)
        goto fail;
    *ret = region->record;
    hm_count(&core->count.regions, 1);
    return 0;
fail:
    hm_region_free(region);
    return error;
}

struct hm_block *hm_region_blocks(struct hm_core *core, uint64_t ino)
{
    HM_AUTO_PUT struct hm_region *region = hm_region_get(core, ino);
    struct hm_block *blocks = region ? region->blocks : NULL;
    return blocks;
}

int hm_region_destroy(struct hm_core *core, uint64_t ino)
{
    struct hm_region *region = hm_region_get(core, ino);
    int error;
    if (!region)
        return -ENOENT;
    hm_trace_gone(region);
    atomic_fetch_add(&core->dying, 1);
    error = hm_region_leave(core, ino);
    if (!error) {
        /* Nobody finds it any more; a mover that still has it sees the generation and gives up. */
        hm_cut_range(region, 0, HM_MAX_BYTES, true);
        hm_count(&core->count.regions, -1ULL);
        hm_region_put(region); /* it was the table's */
    }
    hm_region_put(region);
    atomic_fetch_sub(&core->dying, 1);
    return error;
}
