/* The threads that hmmfs run's library adds to a program: see helper.c. */
#ifndef HMMFS_HELPER_H
#define HMMFS_HELPER_H
#include "preload/preload.h"

#include <poll.h>
#include <stdint.h>

#ifndef UFFDIO_POISON /* headers before Linux 6.6 */
#define UFFDIO_POISON _IOWR(0xaa, 8, struct hm_uffdio_poison)
#endif
struct hm_uffdio_poison {
    uint64_t start, length, mode;
    int64_t updated;
};

/* Linux 6.8 */
#define HM_UFFDIO_MOVE _IOWR(0xaa, 5, struct hm_uffdio_move)
#define HM_MOVE_DONTWAKE 1
#define HM_MOVE_ALLOW_SRC_HOLES 2
struct hm_uffdio_move {
    uint64_t to, from, length, mode;
    int64_t moved;
};

#define HM_SCRATCH (2u << 20) /* bytes of a slot's */
#define HM_SERVED 256         /* address spaces that are served once the daemon is gone */
#define HM_PART 65536         /* bytes; a multiple of any page */

/* What the threads work with. It and their stacks are shared memory, which devices leave alone:
 * they could not wait for a page of their own. */
struct hm_link {
    struct hm_control *control;
    int socket, uffd;  /* in the threads' table of descriptors, not the program's; uffd -1: none */
    uint64_t page;     /* bytes */
    uint64_t scratch;  /* HM_PRELOAD_SLOTS times HM_SCRATCH, private memory, so aligned */
    int32_t ready;     /* a futex: 1 once they have a table of their own; or -errno */
    uint32_t gone;     /* the daemon is: nothing is asked for any more */
    uint32_t dropping; /* 1: the helper drops pages, and mappings may not change; a futex */
    int helper, guard; /* thread numbers of the two; 0 when one has ended */
    uint32_t served;
    struct pollfd poll[HM_SERVED]; /* first the program's, then those of its forks */
};

/* A page that nobody maps below each stack. */
struct hm_threads {
    char guard0[HM_PART], stack0[HM_PART], guard1[HM_PART], stack1[HM_PART];
    struct hm_link link;
};

/* Start them, and return when they hold all that they need. The socket and the descriptor of page
 * faults may be closed then. -errno: none of them runs any more, and their memory may go. */
int hm_helper_start(struct hm_threads *threads);

#endif
