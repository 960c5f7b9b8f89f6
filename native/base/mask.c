#include "base/mask.h"

bool hm_next_run(const uint64_t *words, uint32_t *first, uint32_t *count)
{
    uint32_t page = *first, end;
    while (page < HM_BLOCK_PAGES) {
        uint64_t rest = words[page / 64] >> (page % 64);
        if (rest) {
            page += (uint32_t)__builtin_ctzll(rest);
            break;
        }
        page = (page / 64 + 1) * 64;
    }
    if (page >= HM_BLOCK_PAGES)
        return false;
    for (end = page; end < HM_BLOCK_PAGES;) {
        uint64_t rest = ~words[end / 64] >> (end % 64);
        if (rest) {
            end += (uint32_t)__builtin_ctzll(rest);
            break;
        }
        end = (end / 64 + 1) * 64;
    }
    if (end > HM_BLOCK_PAGES)
        end = HM_BLOCK_PAGES;
    *first = page;
    *count = end - page;
    return true;
}
