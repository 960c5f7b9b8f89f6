/* Blocks in the order of a key, each found by its place: a treap with sizes (Seidel and Aragon,
 * Randomized Search Trees, 1996). Adding, removing and finding take the logarithm of how many there
 * are. The owner of a ranking guards it. */
#ifndef HMMFS_BASE_RANKING_H
#define HMMFS_BASE_RANKING_H
#include <stdint.h>

#define HM_RANK_KEYS 4

struct hm_ranked {
    struct hm_ranked *left, *right;
    uint64_t key[HM_RANK_KEYS]; /* compared as one long number; of no two the same */
    uint64_t weight;            /* that of a parent is not less */
    uint32_t size;              /* of what hangs here, itself included; 0: it is in no ranking */
};

struct hm_ranking {
    struct hm_ranked *root;
};

/* Below 0: the first comes first; 0: they are the same. */
int hm_ranking_compare(const uint64_t one[HM_RANK_KEYS], const uint64_t two[HM_RANK_KEYS]);

static inline uint32_t hm_ranking_size(const struct hm_ranking *ranking)
{
    return ranking->root ? ranking->root->size : 0;
}

/* It is in none. Its key must not change while it is in one. */
void hm_ranking_add(struct hm_ranking *ranking, struct hm_ranked *at);
void hm_ranking_remove(struct hm_ranking *ranking, struct hm_ranked *at);
/* The one with so many before it; NULL: there are not so many. */
struct hm_ranked *hm_ranking_nth(const struct hm_ranking *ranking, uint32_t before);
/* The next after a key, which need be nobody's; NULL: there is none. */
struct hm_ranked *hm_ranking_after(const struct hm_ranking *ranking,
                                   const uint64_t key[HM_RANK_KEYS]);
/* A number that tells nothing of the one that it is made from, the same on each machine: the
 * finalizer of SplitMix64 (Steele, Lea and Flood, 2014). */
uint64_t hm_mixed(uint64_t number);

#endif
