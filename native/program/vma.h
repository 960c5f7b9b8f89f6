/* What a program has mapped, as /proc tells. */
#ifndef HMMFS_PROGRAM_VMA_H
#define HMMFS_PROGRAM_VMA_H
#include "program/program.h"

struct hm_vma {
    uint64_t start, end, ino;
    bool read, write, shared, anonymous, special, hugetlb;
};
/* The mapping that has the address, or the next one. -ENOENT: there is none; -ESRCH. */
int hm_vma_find(const struct hm_process *process, uint64_t address, struct hm_vma *out);
/* The ranges of addresses that a child has zeros in, from /proc/PID/smaps; how many, or -errno. To
 * be freed. */
struct hm_range {
    uint64_t start, end;
};
int hm_vma_wiped(const struct hm_process *process, struct hm_range **out);
/* Entries of /proc/PID/pagemap. */
#define HM_PM_PRESENT (1ULL << 63)
#define HM_PM_SWAPPED (1ULL << 62)
#define HM_PM_PROTECTED (1ULL << 57)
#define HM_PM_EXCLUSIVE (1ULL << 56)
#define HM_PM_FRAME ((1ULL << 55) - 1)
#define HM_PM_GUARD (1ULL << 58) /* 6.15 */
int hm_pagemap(const struct hm_process *process, uint64_t address, uint32_t pages, uint64_t *out);
/* What /proc says of a thread behind its name: " STATE PPID ...", where STATE is field 3. NULL: it
 * has ended. */
#define HM_STAT_BYTES 1024
const char *hm_thread_stat(const struct hm_process *process, pid_t thread,
                           char text[HM_STAT_BYTES]);
/* A page that any access to is an error: a guard (MADV_GUARD_INSTALL, 6.13), or poison. Where the
 * kernel has no bit for it yet the marker says so, as a swap entry of type 31 that has more in its
 * offset than write protection. */
static inline bool hm_pm_guard(uint64_t entry)
{
    return entry & HM_PM_GUARD || (!(entry & HM_PM_PRESENT) && entry & HM_PM_SWAPPED &&
                                   entry % 32 == 31 && (entry & HM_PM_FRAME) / 32 > 1);
}

/* Whether there is a page, wherever its bytes are; a marker is none. */
static inline bool hm_pm_there(uint64_t entry)
{
    return entry & HM_PM_PRESENT ||
           (entry & HM_PM_SWAPPED && !(entry & HM_PM_PROTECTED) && !hm_pm_guard(entry));
}

#endif
