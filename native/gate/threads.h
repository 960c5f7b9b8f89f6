/* The threads on /dev/fuse. */
#ifndef HMMFS_GATE_THREADS_H
#define HMMFS_GATE_THREADS_H
#include "base/core.h"

struct hm_gate_thread {
    struct hm_core *core;
    pthread_t thread;
    uint8_t *pages;   /* for a request, with a page before it */
    hm_counter floor; /* what it reads next was queued after all WRITEs up to this one */
};

#endif
