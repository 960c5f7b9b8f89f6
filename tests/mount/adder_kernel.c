/* A shared library for kernels: what numpy can't do in one step. */
#include <stdatomic.h>
#include <stdint.h>

/* Adds 1 to random words of the first n, so many times. */
void add(_Atomic uint64_t *words, uint64_t n, uint64_t times, uint64_t seed)
{
    uint64_t random = seed * 2654435761u + 1;
    for (uint64_t i = 0; i < times; i++) {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        atomic_fetch_add(&words[random % n], 1);
    }
}

/* Message passing: for each round a word of data, then the round's number in a flag, which the
 * other side answers in another flag. Returns how many data words did not fit their flag. */
uint64_t pass(_Atomic uint64_t *words, uint64_t rounds, int first)
{
    _Atomic uint64_t *data = words, *ping = words + 512, *pong = words + 1024;
    uint64_t wrong = 0;
    for (uint64_t round = 1; round <= rounds; round++) {
        if (first) {
            atomic_store_explicit(data, round * 7, memory_order_relaxed);
            atomic_store_explicit(ping, round, memory_order_release);
            while (atomic_load_explicit(pong, memory_order_acquire) != round)
                ;
            wrong += atomic_load_explicit(data + 1, memory_order_relaxed) != round * 5;
        } else {
            while (atomic_load_explicit(ping, memory_order_acquire) != round)
                ;
            wrong += atomic_load_explicit(data, memory_order_relaxed) != round * 7;
            atomic_store_explicit(data + 1, round * 5, memory_order_relaxed);
            atomic_store_explicit(pong, round, memory_order_release);
        }
    }
    return wrong;
}
