/* What a program under `hmmfs run` and the daemon say to each other.
 *
 * The library (preload.c) connects to the mount's socket (SOCK_SEQPACKET, abstract), sends a hello
 * with its userfaultfd and the memory of `struct hm_control` as descriptors, and is answered with a
 * welcome. From then on the daemon sends the number of a slot whenever it has put a request there,
 * and nothing else ever comes. A slot's state is what both agree by; it is a shared futex:
 *
 *   FREE -> PENDING   by the daemon, which has filled in the slot
 *   PENDING -> TAKEN  by the helper, which from then on carries it out whatever happens
 *   PENDING -> FREE   by the daemon, which does not want to wait any longer: nothing was done
 *   TAKEN -> DONE     by the helper, which has filled in `result`, and wakes the futex
 *   DONE -> FREE      by the daemon, which has marked the pages as away
 *
 * The mark of a page that is away is write-protection without a page: a daemon that is killed
 * leaves the userfaultfd to the program, which must tell such a page from one that never was. What
 * is in a slot that is TAKEN or DONE counts as away too. If `leaving` is set when the socket ends,
 * or if the program has no userfaultfd, nothing is away.
 *
 * The control memory is sealed against another size. It, and the memory that the library works
 * with, are shared mappings: all that is private is the program's. A fork attaches itself anew,
 * while its memory may still be registered with the descriptor that the daemon got with the event.
 *
 * Neither side trusts the other: a program can only do harm to its own memory.
 */
#ifndef HMMFS_PRELOAD_H
#define HMMFS_PRELOAD_H
#include <stdint.h>

#define HM_PRELOAD_MAGIC 0x68656c6c6f6d6d68ULL
#define HM_PRELOAD_VERSION 1
#define HM_PRELOAD_SLOTS 64
#define HM_PRELOAD_RUNS 32

enum hm_hello_flags {
    HM_HELLO_MIGRATES = 1 /* the userfaultfd has all the features that migration takes */
};

/* With SCM_RIGHTS: the control memory, and if it migrates the userfaultfd. */
struct hm_hello {
    uint64_t magic;
    uint32_t version, flags;
    uint64_t least; /* bytes of the smallest mapping that is the devices'; 0: all are */
};

struct hm_welcome {
    int32_t error; /* 0, or -errno: the program runs on by itself */
    uint32_t version;
};

enum hm_slot_state { HM_SLOT_FREE, HM_SLOT_PENDING, HM_SLOT_TAKEN, HM_SLOT_DONE };

/* Drop pages: madvise(MADV_DONTNEED) of each run, all of which have been copied away. */
struct hm_slot {
    uint32_t state; /* enum hm_slot_state; a shared futex */
    int32_t result; /* 0, or -errno of the first run that could not be dropped */
    uint32_t runs;
    uint32_t done; /* runs that were dropped, from the first on; after a failure none is tried */
    struct hm_run {
        uint64_t address, length; /* bytes */
    } run[HM_PRELOAD_RUNS];
};

struct hm_control {
    struct hm_slot slot[HM_PRELOAD_SLOTS];
    uint32_t leaving; /* set by the daemon: all pages are home, so that its end is no accident */
};

#endif
