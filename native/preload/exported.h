/* In the library of hmmfs run: what stands before a function of the C library. */
#ifndef HMMFS_EXPORTED_H
#define HMMFS_EXPORTED_H
#include <dlfcn.h>

#define EXPORTED __attribute__((visibility("default")))

/* Looked up in the constructor, and by what runs even before that. */
static inline void *hm_real(void **found, const char *name)
{
    void *function = __atomic_load_n(found, __ATOMIC_RELAXED);
    if (!function) {
        function = dlsym(RTLD_NEXT, name);
        __atomic_store_n(found, function, __ATOMIC_RELAXED);
    }
    return function;
}

#endif
