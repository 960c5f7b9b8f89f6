/* What a program has mapped, as the kernel tells: /proc/PID/maps and pagemap. */
#include "program/vma.h"

#include "directory/records.h"
#include "program/program.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

/* linux/fs.h of 6.11 and later. Without it the text is read, which takes 60 us and more. */
struct procmap_query {
    uint64_t size, query_flags, query_addr;
    uint64_t vma_start, vma_end, vma_flags, vma_page_size, vma_offset, inode;
    uint32_t dev_major, dev_minor, vma_name_size, build_id_size;
    uint64_t vma_name_addr, build_id_addr;
};
#define PROCMAP_QUERY _IOWR('f', 17, struct procmap_query)
#define PROCMAP_READABLE 0x01
#define PROCMAP_WRITABLE 0x02
#define PROCMAP_SHARED 0x08
#define PROCMAP_OR_NEXT 0x10
#define NAME_BYTES 256

/* Names in brackets are the kernel's own words: of these the heap and stacks are ordinary. */
static void classify(struct hm_vma *vma, const char *name)
{
    bool bracket = name[0] == '[';
    bool plain = !bracket || !strcmp(name, "[heap]") || !strncmp(name, "[stack", 6) ||
                 !strncmp(name, "[anon:", 6);
    vma->special = !plain;
    vma->anonymous = plain && !vma->shared && !vma->ino && (bracket || !name[0]);
    vma->hugetlb |= !strncmp(name, "/anon_hugepage", 14);
    if (!strncmp(name, "/dev/", 5) && !vma->hugetlb)
        vma->special = strncmp(name, "/dev/zero", 9) && strncmp(name, "/dev/shm/", 9);
}

static int query(const struct hm_process *process, uint64_t address, struct hm_vma *out)
{
    char name[NAME_BYTES] = "";
    struct procmap_query query = {.size = sizeof(query),
                                  .query_flags = PROCMAP_OR_NEXT,
                                  .query_addr = address,
                                  .vma_name_size = sizeof(name),
                                  .vma_name_addr = (uintptr_t)name};
    if (ioctl(process->maps, PROCMAP_QUERY, &query) < 0) {
        if (errno != ENAMETOOLONG)
            return -errno;
        query.vma_name_size = 0; /* it is a file's */
        query.vma_name_addr = 0;
        if (ioctl(process->maps, PROCMAP_QUERY, &query) < 0)
            return -errno;
    }
    *out = (struct hm_vma){.start = query.vma_start,
                           .end = query.vma_end,
                           .ino = query.inode,
                           .read = query.vma_flags & PROCMAP_READABLE,
                           .write = query.vma_flags & PROCMAP_WRITABLE,
                           .shared = query.vma_flags & PROCMAP_SHARED,
                           .hugetlb = query.vma_page_size > HM_PAGE_SIZE};
    classify(out, name);
    return 0;
}

static int search(const struct hm_process *process, uint64_t address, struct hm_vma *out)
{
    char path[64], *line = NULL;
    size_t size = 0;
    int error = -ENOENT;
    FILE *file;
    snprintf(path, sizeof(path), "/proc/%d/maps", process->pid);
    file = fopen(path, "re");
    if (!file)
        return errno == ENOENT ? -ESRCH : -errno;
    while (error && getline(&line, &size, file) > 0) {
        unsigned long long start, end, ino;
        char rights[5], name[NAME_BYTES] = "";
        if (sscanf(line, "%llx-%llx %4s %*x %*x:%*x %llu %255[^\n]", &start, &end, rights, &ino,
                   name) < 4 ||
            end <= address || start >> 63) /* [vsyscall] is the kernel's */
            continue;
        *out = (struct hm_vma){.start = start,
                               .end = end,
                               .ino = ino,
                               .read = rights[0] == 'r',
                               .write = rights[1] == 'w',
                               .shared = rights[3] == 's'};
        classify(out, name);
        error = 0;
    }
    free(line);
    fclose(file);
    return error;
}

int hm_vma_find(const struct hm_process *process, uint64_t address, struct hm_vma *out)
{
    int error = query(process, address, out);
    if (error == -ENOTTY || error == -EINVAL)
        error = search(process, address, out);
    return error;
}

static int add_range(struct hm_range **all, int used, struct hm_range range)
{
    struct hm_range *more = realloc(*all, ((size_t)used + 1) * sizeof(*more));
    if (!more)
        return -ENOMEM;
    more[used] = range;
    *all = more;
    return used + 1;
}

int hm_vma_wiped(const struct hm_process *process, struct hm_range **out)
{
    char path[64], *line = NULL;
    struct hm_range now = {0};
    size_t size = 0;
    int used = 0;
    FILE *file;
    *out = NULL;
    snprintf(path, sizeof(path), "/proc/%d/smaps", process->pid);
    file = fopen(path, "re");
    if (!file)
        return -errno;
    while (used >= 0 && getline(&line, &size, file) > 0) {
        unsigned long long start, end;
        if (sscanf(line, "%llx-%llx ", &start, &end) == 2)
            now = (struct hm_range){start, end};
        else if (!strncmp(line, "VmFlags:", 8) && strstr(line, " wf"))
            used = add_range(out, used, now);
    }
    free(line);
    fclose(file);
    return used;
}

int hm_pagemap(const struct hm_process *process, uint64_t address, uint32_t pages, uint64_t *out)
{
    size_t bytes = pages * sizeof(*out);
    ssize_t n = pread(process->pagemap, out, bytes, (off_t)(address / HM_PAGE_SIZE * sizeof(*out)));
    if (n < 0)
        return -errno;
    memset((uint8_t *)out + n, 0, bytes - (size_t)n); /* past the end of user addresses */
    return 0;
}

/* ---- a look at a program -------------------------------------------------------------------- */

/* linux/fs.h of 6.7 and later: pages by category, as ranges. */
struct scan_region {
    uint64_t start, end, categories;
};
struct scan {
    uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
    uint64_t inverted, mask, anyof, returned;
};
#define PAGEMAP_SCAN _IOWR('f', 16, struct scan)
#define SCAN_ZERO (1 << 5)
#define SCAN_HUGE (1 << 6)
#define SCAN_RANGES 64

static void look_at_kinds(const struct hm_process *process, uint64_t address, uint32_t pages,
                          uint16_t *state)
{
    struct scan_region found[SCAN_RANGES];
    uint64_t end = address + (uint64_t)pages * HM_PAGE_SIZE, at = address;
    while (at < end) {
        struct scan scan = {.size = sizeof(scan),
                            .start = at,
                            .end = end,
                            .vec = (uintptr_t)found,
                            .vec_len = SCAN_RANGES,
                            .anyof = SCAN_ZERO | SCAN_HUGE,
                            .returned = SCAN_ZERO | SCAN_HUGE};
        int n = ioctl(process->pagemap, PAGEMAP_SCAN, &scan);
        if (n < 0)
            return; /* an older kernel doesn't tell */
        for (int i = 0; i < n; i++)
            for (uint64_t one = found[i].start; one < found[i].end; one += HM_PAGE_SIZE)
                state[(one - address) / HM_PAGE_SIZE] |=
                    (found[i].categories & SCAN_ZERO ? HM_LOOK_ZERO : 0) |
                    (found[i].categories & SCAN_HUGE ? HM_LOOK_HUGE : 0);
        if (scan.walk_end <= at)
            return;
        at = scan.walk_end;
    }
}

static int look_at_mappings(const struct hm_process *process, uint64_t address, uint32_t pages,
                            uint16_t *state)
{
    uint64_t end = address + (uint64_t)pages * HM_PAGE_SIZE;
    struct hm_vma vma;
    int error = 0;
    for (uint64_t at = address; at < end; at = vma.end) {
        uint16_t bits;
        error = hm_vma_find(process, at, &vma);
        if (error || vma.start >= end)
            break;
        bits = HM_LOOK_VMA | (vma.read ? HM_LOOK_READ : 0) | (vma.write ? HM_LOOK_WRITE : 0) |
               (vma.anonymous ? HM_LOOK_ANON : 0) | (vma.special ? HM_LOOK_SPECIAL : 0) |
               (vma.shared ? HM_LOOK_SHARED : 0) | (vma.hugetlb ? HM_LOOK_HUGETLB : 0);
        at = vma.start > at ? vma.start : at;
        for (; at < vma.end && at < end; at += HM_PAGE_SIZE)
            state[(at - address) / HM_PAGE_SIZE] = bits;
    }
    return error == -ENOENT ? 0 : error;
}

static void look_at_owners(struct hm_process *process, uint64_t address, uint32_t pages,
                           uint16_t *state)
{
    struct hm_region *region = process->region;
    for (uint32_t i = 0; i < pages; i++) {
        uint64_t offset = (address + (uint64_t)i * HM_PAGE_SIZE) % HM_MAX_BYTES;
        uint64_t block = offset / HM_BLOCK_BYTES;
        uint32_t page = (uint32_t)(offset % HM_BLOCK_BYTES / HM_PAGE_SIZE);
        struct hm_stripe *stripe;
        if (!hm_region_is_touched(region, block)) {
            i += HM_BLOCK_PAGES - 1 - page;
            continue;
        }
        stripe = hm_stripe_of(process->core, region->ino, block);
        /* What the program has is its own, also if the transaction that gave it has not ended. */
        if (state[i] & HM_LOOK_PRESENT)
            continue;
        hm_lock(HM_RANK_STRIPE, &stripe->lock);
        if (hm_test(region->blocks[block].device, page))
            state[i] |= (uint16_t)(region->blocks[block].owner[page] << HM_LOOK_OWNER |
                                   (region->blocks[block].huge ? HM_LOOK_HUGE : 0));
        hm_unlock(HM_RANK_STRIPE, &stripe->lock);
    }
}

int hm_process_look(struct hm_core *core, uint64_t ino, uint64_t address, uint32_t pages,
                    uint16_t *state, uint64_t *frame)
{
    HM_AUTO_PUT struct hm_region *region = hm_region_get(core, ino);
    struct hm_process *process = region ? region->process : NULL;
    int error;
    memset(state, 0, pages * sizeof(*state));
    if (!process)
        return -ESRCH;
    if (address % HM_PAGE_SIZE)
        return -EINVAL;
    error = look_at_mappings(process, address, pages, state);
    if (!error)
        error = hm_pagemap(process, address, pages, frame);
    if (error)
        return error;
    for (uint32_t i = 0; i < pages; i++) {
        uint64_t entry = frame[i];
        if (entry & HM_PM_PRESENT)
            state[i] |= HM_LOOK_PRESENT | (entry & HM_PM_EXCLUSIVE ? HM_LOOK_EXCLUSIVE : 0);
        else if (hm_pm_there(entry))
            state[i] |= HM_LOOK_SWAPPED;
        frame[i] = entry & HM_PM_PRESENT ? entry & HM_PM_FRAME : 0;
    }
    look_at_kinds(process, address, pages, state);
    look_at_owners(process, address, pages, state);
    return 0;
}

const char *hm_thread_stat(const struct hm_process *process, pid_t thread, char text[HM_STAT_BYTES])
{
    char path[64], *end;
    ssize_t n;
    int fd;
    snprintf(path, sizeof(path), "/proc/%d/task/%d/stat", process->pid, thread);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return NULL;
    n = read(fd, text, HM_STAT_BYTES - 1);
    close(fd);
    text[n > 0 ? n : 0] = 0;
    end = strrchr(text, ')');
    return end ? end + 1 : NULL;
}
