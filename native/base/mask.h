/* Sets of the pages of one block. */
#ifndef HMMFS_BASE_MASK_H
#define HMMFS_BASE_MASK_H
#include "include/hmmfs.h"

#include <stdbool.h>

#define HM_BLOCK_BYTES ((uint64_t)HM_BLOCK_PAGES * HM_PAGE_SIZE)

struct hm_mask {
    uint64_t word[HM_WORDS];
};

static inline struct hm_mask hm_mask_range(uint32_t first, uint32_t count)
{
    struct hm_mask mask = {{0}};
    for (uint32_t w = first / 64; count && w < HM_WORDS; w++) {
        uint32_t low = first % 64, n = count < 64 - low ? count : 64 - low;
        mask.word[w] = (n == 64 ? ~0ULL : ((1ULL << n) - 1)) << low;
        first += n;
        count -= n;
    }
    return mask;
}

/* The set bits of a word. Not the builtin: without -mpopcnt that is a call for each word. */
static inline uint32_t hm_popcount(uint64_t x)
{
    x -= x >> 1 & 0x5555555555555555u;
    x = (x & 0x3333333333333333u) + (x >> 2 & 0x3333333333333333u);
    x = (x + (x >> 4)) & 0x0f0f0f0f0f0f0f0fu;
    return (uint32_t)(x * 0x0101010101010101u >> 56);
}

static inline uint32_t hm_bits(const uint64_t *words)
{
    uint32_t n = 0;
    for (int w = 0; w < HM_WORDS; w++)
        n += words[w] ? hm_popcount(words[w]) : 0;
    return n;
}

static inline bool hm_any(const uint64_t *a, const uint64_t *b)
{
    uint64_t any = 0;
    for (int w = 0; w < HM_WORDS; w++)
        any |= a[w] & b[w];
    return any != 0;
}

static inline bool hm_test(const uint64_t *words, uint32_t page)
{
    return words[page / 64] >> (page % 64) & 1;
}

static inline void hm_set(uint64_t *words, uint32_t page)
{
    words[page / 64] |= 1ULL << (page % 64);
}

/* The next run of set bits at or after *first: false when there is none. */
bool hm_next_run(const uint64_t *words, uint32_t *first, uint32_t *count);

#define HM_EACH_WORD(w) for (int w = 0; w < HM_WORDS; w++)

/* The pages of a mask, ascending. Most masks of a fault have one page of 512. */
#define HM_EACH_PAGE(page, words)                                                                  \
    for (uint32_t page = hm_next_page((words), 0); page < HM_BLOCK_PAGES;                          \
         page = hm_next_page((words), page + 1))

static inline uint32_t hm_next_page(const uint64_t *words, uint32_t page)
{
    for (uint32_t w = page / 64; w < HM_WORDS; w++, page = w * 64) {
        uint64_t left = words[w] >> (page % 64);
        if (left)
            return page + (uint32_t)__builtin_ctzll(left);
    }
    return HM_BLOCK_PAGES;
}

/* Leave the first `most` pages to a mask. */
static inline void hm_limit(struct hm_mask *mask, uint32_t most)
{
    HM_EACH_PAGE (page, mask->word) {
        if (!most)
            mask->word[page / 64] &= ~(1ULL << (page % 64));
        most -= most != 0;
    }
}

/* ---- sets from sets ------------------------------------------------------------------------- */

/* Words are a mask's, or a record's. */
static inline void hm_add(uint64_t *to, const uint64_t *words)
{
    HM_EACH_WORD (w)
        to[w] |= words[w];
}

static inline void hm_keep(uint64_t *in, const uint64_t *words)
{
    HM_EACH_WORD (w)
        in[w] &= words[w];
}

static inline void hm_drop(uint64_t *from, const uint64_t *words)
{
    HM_EACH_WORD (w)
        from[w] &= ~words[w];
}

static inline struct hm_mask hm_both(const uint64_t *one, const uint64_t *other)
{
    struct hm_mask mask;
    HM_EACH_WORD (w)
        mask.word[w] = one[w] & other[w];
    return mask;
}

static inline struct hm_mask hm_either(const uint64_t *one, const uint64_t *other)
{
    struct hm_mask mask;
    HM_EACH_WORD (w)
        mask.word[w] = one[w] | other[w];
    return mask;
}

static inline struct hm_mask hm_without(const uint64_t *one, const uint64_t *other)
{
    struct hm_mask mask;
    HM_EACH_WORD (w)
        mask.word[w] = one[w] & ~other[w];
    return mask;
}

#endif
