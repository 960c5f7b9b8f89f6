/* crowd MILLISECONDS: threads that allocate, count with atomics, and hand blocks to each other. */
#include "check.h"

#include <pthread.h>
#include <stdatomic.h>

#define THREADS 4
#define CELLS 4096 /* 8 pages of counters */

static _Atomic uint64_t *counters;
static _Atomic(uint64_t *) boxes[64];
static _Atomic uint64_t made;
static pthread_mutex_t *lock; /* in a page that migrates */
static uint64_t guarded, until;

static void *thread(void *number)
{
    uint32_t seed = 99 + (uint32_t)(uintptr_t)number;
    uint64_t rounds = 0;
    for (; now_ms() < until; rounds++) {
        size_t words = 8 + next(&seed) % 3000;
        uint64_t *block = malloc(words * 8), *old;
        block[0] = words;
        for (size_t i = 1; i < words; i++)
            block[i] = words * 1000003 + i;
        old = atomic_exchange(&boxes[next(&seed) % 64], block);
        for (size_t i = 1; old && i < old[0]; i++)
            CHECK(old[i] == old[0] * 1000003 + i);
        free(old);
        for (int i = 0; i < 64; i++)
            atomic_fetch_add(&counters[next(&seed) % CELLS], 1);
        pthread_mutex_lock(lock);
        guarded++;
        pthread_mutex_unlock(lock);
    }
    atomic_fetch_add(&made, rounds);
    return NULL;
}

int main(int count, char **argument)
{
    pthread_t threads[THREADS];
    uint64_t sum = 0;
    CHECK(count == 2);
    counters = (void *)map_at(NULL, CELLS * 8, 0);
    lock = malloc(sizeof(*lock));
    pthread_mutex_init(lock, NULL);
    until = now_ms() + strtoull(argument[1], NULL, 10);
    for (uintptr_t i = 0; i < THREADS; i++)
        CHECK(!pthread_create(&threads[i], NULL, thread, (void *)i));
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    for (int i = 0; i < CELLS; i++)
        sum += counters[i];
    CHECK(sum == made * 64);
    CHECK(guarded == made);
    printf("ok\n");
}
