/* Requests that wait for a block. */
#ifndef HMMFS_TRANSACTION_PARKED_H
#define HMMFS_TRANSACTION_PARKED_H
#include "base/fuse_wire.h"
#include "base/region.h"

#include <fcntl.h>

#define HM_SPARES 1024 /* requests that can be parked without memory */

enum hm_wait { HM_WAIT_BUSY, HM_WAIT_SERVICE }; /* for a transaction's end; for a decision */

struct hm_parked {
    struct hm_parked *next;
    struct hm_request request;
    uint64_t block;
    enum hm_wait wait;
    uint8_t data[];
};

/* A place for a request, with its bytes in `data`; NULL: no memory. */
struct hm_parked *hm_aside(struct hm_core *core, const struct hm_request *request);
void hm_unparked(struct hm_core *core, struct hm_parked *parked); /* it is over: free it */
int hm_spares_init(struct hm_core *core);                         /* -ENOMEM */
void hm_spares_deinit(struct hm_core *core);

/* Its READs hold no lock, and leave nothing in the page cache. */
static inline bool hm_is_direct_read(const struct hm_request *request)
{
    return request->opcode == FUSE_READ && request->flags & O_DIRECT;
}

/* What is parked on a block is carried out. */
void hm_replay(struct hm_region *region, uint64_t block);
/* What is parked on pages that are about to be recalled: it would hold up the kernel. Called with
 * the stripe held; true: there was something, and the stripe was dropped meanwhile. */
bool hm_replay_pages(struct hm_region *region, uint64_t block, const struct hm_mask *mask);
/* Answer what is parked on a block with an error: for HM_JOB_FAIL, and at the end of the core. */
void hm_fail_parked(struct hm_region *region, uint64_t block, int error);

#endif
