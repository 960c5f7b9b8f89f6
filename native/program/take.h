/* Taking pages of a block from a program. */
#ifndef HMMFS_PROGRAM_TAKE_H
#define HMMFS_PROGRAM_TAKE_H
#include "program/program.h"

/* Of a block's pages from an address on, those of the mask that there are; and guards, where there
 * is none and nobody may have one. */
int hm_pages_there(const struct hm_process *process, uint64_t address, const struct hm_mask *mask,
                   struct hm_mask *there, struct hm_mask *guards);
struct hm_taking {
    struct hm_mask movable; /* of writable mappings: by moving */
    struct hm_mask fixed;   /* of read-only ones: by copying, and dropping */
    struct hm_mask firsts;  /* pages that a mapping begins with */
    struct hm_mask there;   /* of both, those that have a page */
    struct hm_mask taken;   /* bytes of these are on the device */
    struct hm_mask holes;   /* there is nothing of these: they are zeros */
};
/* Sort pages by their mappings into the first four, and have the kernel tell us of them from now
 * on. */
int hm_take_sort(const struct transaction *t, const struct hm_mask *mask, struct hm_taking *out);
/* Take movable and fixed. Some may stay; neither the stripe nor the lock is held. Whatever
 * is returned, what is in `taken` is nowhere else. -EBUSY: the program does not answer, or changes
 * its mappings. */
int hm_take(const struct transaction *t, struct hm_taking *taking);
/* Whether we may go on as if we knew all of a block's mappings; the lock is held. */
int hm_take_no_news(const struct transaction *t);
/* With the lock held: of a block's pages that devices have, those that the program has discarded
 * without an event: it has made them guards, and perhaps removed these again. */
struct hm_mask hm_take_discarded(const struct transaction *t, const struct hm_mask *mask);

#endif
