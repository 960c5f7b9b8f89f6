#include "base/lock.h"

#include "base/mask.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || defined(HM_PAUSES)
#include <stdio.h>
#include <stdlib.h>

_Thread_local unsigned hm_ranks_held;
_Thread_local size_t hm_rank_copied;

void hm_rank_taken(enum hm_rank rank, bool in_order)
{
    if (hm_ranks_held >> rank & 1 || (in_order && hm_ranks_held >> rank)) {
        fprintf(stderr, "lock.c: rank %d is taken by a thread that holds ranks %#x\n", rank,
                hm_ranks_held);
        abort();
    }
    hm_ranks_held |= 1u << rank;
    hm_rank_copied = rank == HM_RANK_STRIPE ? 0 : hm_rank_copied;
}

void hm_rank_left(enum hm_rank rank)
{
    if (!(hm_ranks_held >> rank & 1)) {
        fprintf(stderr, "lock.c: rank %d is left by a thread that does not hold it\n", rank);
        abort();
    }
    hm_ranks_held &= ~(1u << rank);
}

void hm_rank_copies(size_t bytes)
{
    hm_rank_copied += bytes;
    if (hm_ranks_held >> HM_RANK_STRIPE & 1 && hm_rank_copied > HM_INLINE_PAGES * HM_PAGE_SIZE) {
        fprintf(stderr, "lock.c: %zu bytes are copied under a stripe\n", hm_rank_copied);
        abort();
    }
}
#endif
