/* What a program under `hmmfs run` and the daemon say to each other.
 *
 * The library (attach.c) connects to the mount's socket (SOCK_SEQPACKET, abstract), sends a hello
 * with its userfaultfd and the memory of `struct hm_control` as descriptors, and is answered with a
 * welcome. From then on the daemon sends the number of a slot whenever it has put a request there,
 * and nothing else ever comes. A slot's state is what both agree by; it is a shared futex:
 *
 *   FREE -> PENDING   by the daemon, which has filled in the slot
 *   PENDING -> TAKEN  by the helper, which from then on carries it out whatever happens
 *   PENDING -> FREE   by the daemon, which does not want to wait any longer: nothing was done
 *   TAKEN -> DONE     by the helper, which wakes the futex
 *   DONE -> FREE      by the daemon
 *
 * Neither side trusts the other: a program can only do harm to its own memory.
 *
 * Pages are taken with UFFDIO_MOVE (Linux 6.8), into a part of the library's own memory from where
 * the daemon reads them. It can't take what the daemon does not mean: it fails while there is any
 * change of the address space that the daemon was not told of, and the daemon hears of none while
 * it waits. Nothing can be moved from read-only mappings: their pages are write-protected, copied,
 * and dropped by MADV_DONTNEED. That lets go of the kernel's locks before it drops whatever is
 * mapped there by then. So the library holds up all that changes mappings (munmap, mremap, mmap
 * with MAP_FIXED) while the helper drops, and counts it: nothing is dropped if there was such a
 * change after the daemon looked. Before a page's userfaultfd is anything but the daemon's, a
 * marker of write protection is where it was, so that it can be told from one that never was.
 */
#ifndef HMMFS_PRELOAD_H
#define HMMFS_PRELOAD_H
#include <stdint.h>

#define HM_PRELOAD_MAGIC 0x68656c6c6f6d6d68ULL
#define HM_PRELOAD_VERSION 2
#define HM_PRELOAD_SLOTS 16
#define HM_PRELOAD_RUNS 32
#define HM_PRELOAD_DISCARDS 64

enum hm_hello_flags {
    HM_HELLO_MIGRATES = 1, /* the userfaultfd has all the features that migration takes */
    /* Without descriptors: all pages come home, the program is no longer attached, and then comes
     * the welcome. */
    HM_HELLO_LEAVES = 2
};

struct hm_hello {
    uint64_t magic;
    uint32_t version, flags;
    uint64_t least;          /* bytes of the smallest mapping that is the devices'; 0: all are */
    uint64_t own, own_bytes; /* the library's own memory, which nobody may take from it */
    uint64_t scratch;        /* within it: HM_PRELOAD_SLOTS blocks of 2 MiB, so aligned */
}; /* with SCM_RIGHTS: the control memory, and if it migrates the userfaultfd */

struct hm_welcome {
    int32_t error; /* 0, or -errno: the program runs on by itself */
    uint32_t version;
};

enum hm_slot_state { HM_SLOT_FREE, HM_SLOT_PENDING, HM_SLOT_TAKEN, HM_SLOT_DONE };

enum hm_slot_kind {
    /* Move the pages of each run to the same place of its 2 MiB in the slot's scratch; what is not
     * there is left out, what can't be moved stays. Then a marker wherever there is no page. */
    HM_SLOT_MOVE,
    /* MADV_DONTNEED of each run, which was copied away; then markers. -EBUSY: nothing was done,
     * since more changes than `changes` have begun. */
    HM_SLOT_DROP,
    /* Break the sharing of each run's pages with forks, which can't be moved else. This may be a
     * fault, which waits for the daemon. */
    HM_SLOT_PRIVATE,
    HM_SLOT_RELEASE /* the slot's scratch is empty again */
};

struct hm_slot {
    uint32_t state; /* enum hm_slot_state; a shared futex */
    uint32_t kind;
    int32_t result; /* 0, or -errno of the first run that failed in part; before all others
                     * -EAGAIN: while the address space changes, so that markers may be missing */
    uint32_t runs;
    uint32_t changes, unused;
    struct hm_run {
        uint64_t address, length; /* bytes; within one block of 2 MiB */
    } run[HM_PRELOAD_RUNS];
};

/* What a thread of the program is discarding (madvise) at this moment: nothing is taken from there
 * until it has. start 1: the entry is being filled in; 0: it is free. */
struct hm_discarding {
    uint64_t start, end; /* addresses, whole pages */
};

struct hm_control {
    struct hm_slot slot[HM_PRELOAD_SLOTS];
    struct hm_discarding discarding[HM_PRELOAD_DISCARDS];
    uint32_t leaving; /* set by the daemon: all pages are home, so that its end is no accident */
    uint32_t helper;  /* the helper's thread number, as the program has it */
    uint32_t changes_begun, changes_ended; /* of mappings */
    uint32_t guard;                        /* the other thread's number */
    uint32_t wipes; /* 1: some mapping may be one whose bytes no child has (MADV_WIPEONFORK) */
    /* Around the head of a thread's list of robust mutexes, bytes that the C library keeps of the
     * thread and that the kernel uses: before it, and from it on. */
    uint32_t thread_before, thread_after;
};

#endif
