#include "base/region.h"

#include <errno.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

#define MAX_REGIONS 8192 /* each takes 8 GiB of address space */
#define TABLE_BYTES (HM_PAGE_SIZE + MAX_REGIONS * sizeof(struct hm_region_record))

_Static_assert(sizeof(struct hm_region_record) == 528, "the layout a successor reads");

int hm_regions_init(struct hm_core *core)
{
    uint8_t *map;
    pthread_rwlock_init(&core->regions_lock, NULL);
    core->table_fd = memfd_create("hmmfs-table", MFD_CLOEXEC);
    if (core->table_fd < 0 || ftruncate(core->table_fd, TABLE_BYTES) < 0)
        return -errno;
    map = mmap(NULL, TABLE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, core->table_fd, 0);
    if (map == MAP_FAILED)
        return -errno;
    *(uint64_t *)map = HM_DIRECTORY_MAGIC;
    core->table = (struct hm_region_record *)(map + HM_PAGE_SIZE);
    return 0;
}

void hm_regions_deinit(struct hm_core *core)
{
    if (core->table)
        munmap((uint8_t *)core->table - HM_PAGE_SIZE, TABLE_BYTES);
    if (core->table_fd >= 0)
        close(core->table_fd);
    pthread_rwlock_destroy(&core->regions_lock);
}

static struct hm_region **bucket_of(struct hm_core *core, uint64_t ino)
{
    return &core->buckets[ino % HM_REGION_BUCKETS];
}

struct hm_region *hm_region_get(struct hm_core *core, uint64_t ino)
{
    struct hm_region *region;
    hm_lock_to_read(HM_RANK_REGIONS, &core->regions_lock);
    for (region = *bucket_of(core, ino); region && region->ino != ino; region = region->next)
        ;
    if (region)
        atomic_fetch_add(&region->refs, 1);
    hm_unlock_either(HM_RANK_REGIONS, &core->regions_lock);
    return region;
}

void hm_region_put(struct hm_region *region)
{
    if (atomic_fetch_sub(&region->refs, 1) == 1)
        region->core->region_free(region);
}

/* A free record of the table; regions_lock is held for writing. */
static struct hm_region_record *record_find(struct hm_core *core)
{
    for (uint32_t i = 0; i < core->table_used; i++)
        if (!__atomic_load_n(&core->table[i].ino, __ATOMIC_ACQUIRE))
            return &core->table[i];
    return core->table_used < MAX_REGIONS ? &core->table[core->table_used++] : NULL;
}

int hm_region_enter(struct hm_region *region, const struct hm_region_record *record)
{
    struct hm_core *core = region->core;
    hm_lock_to_write(HM_RANK_REGIONS, &core->regions_lock);
    region->record = record_find(core);
    if (region->record) {
        *region->record = *record;
        region->next = *bucket_of(core, region->ino);
        *bucket_of(core, region->ino) = region;
    }
    hm_unlock_either(HM_RANK_REGIONS, &core->regions_lock);
    return region->record ? 0 : -ENOSPC;
}

int hm_region_leave(struct hm_core *core, uint64_t ino)
{
    struct hm_region **at, *found;
    hm_lock_to_write(HM_RANK_REGIONS, &core->regions_lock);
    for (at = bucket_of(core, ino); *at && (*at)->ino != ino; at = &(*at)->next)
        ;
    found = *at;
    if (found)
        *at = found->next;
    hm_unlock_either(HM_RANK_REGIONS, &core->regions_lock);
    return found ? 0 : -ENOENT;
}

struct hm_pool *hm_region_pool(struct hm_region *region, uint32_t node)
{
    struct hm_pool *pool = &region->pools[hm_is_shared(region) ? HM_HOST : node];
    if (atomic_load_explicit(&pool->fd, memory_order_acquire) < 0) {
        char name[64];
        int error = 0;
        snprintf(name, sizeof(name), "hmmfs-pool-%u", node);
        hm_lock(HM_RANK_POOLS, &region->pools_lock);
        if (pool->fd < 0)
            error = hm_pool_open(pool, name);
        hm_unlock(HM_RANK_POOLS, &region->pools_lock);
        if (error) {
            errno = -error;
            return NULL;
        }
    }
    return pool;
}

void hm_punch_runs(struct hm_region *region, uint32_t node, uint64_t block, const uint64_t *words)
{
    for (uint32_t first = 0, count; hm_next_run(words, &first, &count); first += count)
        hm_pool_punch(&region->pools[node], hm_page_offset(block, first),
                      (uint64_t)count * HM_PAGE_SIZE);
}

struct hm_mask hm_inside_file(struct hm_region *region, uint64_t block)
{
    uint64_t size = hm_region_size(region);
    uint64_t base = block * HM_BLOCK_BYTES;
    uint64_t pages = size > base ? (size - base + HM_PAGE_SIZE - 1) / HM_PAGE_SIZE : 0;
    return hm_mask_range(0, pages < HM_BLOCK_PAGES ? (uint32_t)pages : HM_BLOCK_PAGES);
}
