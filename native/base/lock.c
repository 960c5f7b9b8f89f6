#include "base/lock.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || defined(HM_PAUSES)
#include <stdio.h>
#include <stdlib.h>

static _Thread_local unsigned held; /* a bit for each rank */

void hm_rank_taken(enum hm_rank rank, bool in_order)
{
    if (held >> rank & 1 || (in_order && held >> rank)) {
        fprintf(stderr, "lock.c: rank %d is taken by a thread that holds ranks %#x\n", rank, held);
        abort();
    }
    held |= 1u << rank;
}

void hm_rank_left(enum hm_rank rank)
{
    if (!(held >> rank & 1)) {
        fprintf(stderr, "lock.c: rank %d is left by a thread that does not hold it\n", rank);
        abort();
    }
    held &= ~(1u << rank);
}
#endif
