#include "base/ranking.h"

#include <stddef.h>

static uint32_t size_of(const struct hm_ranked *at)
{
    return at ? at->size : 0;
}

static void measure(struct hm_ranked *at)
{
    at->size = size_of(at->left) + 1 + size_of(at->right);
}

int hm_ranking_compare(const uint64_t one[HM_RANK_KEYS], const uint64_t two[HM_RANK_KEYS])
{
    for (int i = 0; i < HM_RANK_KEYS; i++)
        if (one[i] != two[i])
            return one[i] < two[i] ? -1 : 1;
    return 0;
}

uint64_t hm_mixed(uint64_t number)
{
    number += 0x9e3779b97f4a7c15ULL;
    number = (number ^ number >> 30) * 0xbf58476d1ce4e5b9ULL;
    number = (number ^ number >> 27) * 0x94d049bb133111ebULL;
    return number ^ number >> 31;
}

/* Take a tree apart: what comes before a key, and what comes after. */
static void split(struct hm_ranked *at, const uint64_t key[HM_RANK_KEYS], struct hm_ranked **before,
                  struct hm_ranked **after)
{
    if (!at) {
        *before = *after = NULL;
        return;
    }
    if (hm_ranking_compare(at->key, key) < 0) {
        split(at->right, key, &at->right, after);
        *before = at;
    } else {
        split(at->left, key, before, &at->left);
        *after = at;
    }
    measure(at);
}

/* All of `before` comes before all of `after`. */
static struct hm_ranked *join(struct hm_ranked *before, struct hm_ranked *after)
{
    struct hm_ranked *top;
    if (!before || !after)
        return before ? before : after;
    if (before->weight > after->weight) {
        top = before;
        top->right = join(before->right, after);
    } else {
        top = after;
        top->left = join(before, after->left);
    }
    measure(top);
    return top;
}

void hm_ranking_add(struct hm_ranking *ranking, struct hm_ranked *at)
{
    struct hm_ranked **link = &ranking->root;
    at->weight = hm_mixed(at->key[HM_RANK_KEYS - 2] ^ hm_mixed(at->key[HM_RANK_KEYS - 1]));
    while (*link && (*link)->weight >= at->weight) {
        (*link)->size++;
        link = hm_ranking_compare((*link)->key, at->key) < 0 ? &(*link)->right : &(*link)->left;
    }
    split(*link, at->key, &at->left, &at->right);
    measure(at);
    *link = at;
}

void hm_ranking_remove(struct hm_ranking *ranking, struct hm_ranked *at)
{
    struct hm_ranked **link = &ranking->root;
    while (*link != at) {
        (*link)->size--;
        link = hm_ranking_compare((*link)->key, at->key) < 0 ? &(*link)->right : &(*link)->left;
    }
    *link = join(at->left, at->right);
    at->left = at->right = NULL;
    at->size = 0;
}

struct hm_ranked *hm_ranking_nth(const struct hm_ranking *ranking, uint32_t before)
{
    struct hm_ranked *at = ranking->root;
    while (at && size_of(at->left) != before) {
        if (before < size_of(at->left)) {
            at = at->left;
        } else {
            before -= size_of(at->left) + 1;
            at = at->right;
        }
    }
    return at;
}

struct hm_ranked *hm_ranking_after(const struct hm_ranking *ranking,
                                   const uint64_t key[HM_RANK_KEYS])
{
    struct hm_ranked *at = ranking->root, *found = NULL;
    while (at)
        if (hm_ranking_compare(at->key, key) > 0) {
            found = at;
            at = at->left;
        } else {
            at = at->right;
        }
    return found;
}
