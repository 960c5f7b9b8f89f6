/* Before open: the device files of the kernel's HMM tests are the mount's. */
#include "preload/opens.h"

#include "preload/attach.h"
#include "preload/exported.h"

#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* Where a path leads here: the mount's file for a device file of the kernel's HMM tests, which is
 * /dev/hmm_dmirror and a number. */
static const char *redirected(const char *path, char buffer[PATH_MAX])
{
    static const char prefix[] = "/dev/hmm_dmirror";
    const char *number;
    size_t digits;
    __asm__("" : "+r"(path)); /* headers say that nobody gives NULL */
    if (!path || !hm_mount_directory()[0] || strncmp(path, prefix, sizeof(prefix) - 1) != 0)
        return path;
    number = path + sizeof(prefix) - 1;
    digits = strspn(number, "0123456789");
    if (!digits || number[digits] || (number[0] == '0' && digits > 1))
        return path;
    if (snprintf(buffer, PATH_MAX, "%s/devices/dev%s/dmirror", hm_mount_directory(), number) >=
        PATH_MAX)
        return path;
    return buffer;
}

#define MODE_OF(flags, mode)                                                                       \
    do {                                                                                           \
        if ((flags)&O_CREAT || ((flags)&O_TMPFILE) == O_TMPFILE) {                                 \
            va_list rest;                                                                          \
            va_start(rest, flags);                                                                 \
            mode = va_arg(rest, mode_t);                                                           \
            va_end(rest);                                                                          \
        }                                                                                          \
    } while (0)

#define STAND_BEFORE_OPEN(name)                                                                    \
    static void *real_##name;                                                                      \
    EXPORTED int name(const char *path, int flags, ...)                                            \
    {                                                                                              \
        char buffer[PATH_MAX];                                                                     \
        int (*next)(const char *, int, ...) = hm_real(&real_##name, #name);                        \
        mode_t mode = 0;                                                                           \
        MODE_OF(flags, mode);                                                                      \
        return next(redirected(path, buffer), flags, mode);                                        \
    }

#define STAND_BEFORE_OPENAT(name)                                                                  \
    static void *real_##name;                                                                      \
    EXPORTED int name(int directory, const char *path, int flags, ...)                             \
    {                                                                                              \
        char buffer[PATH_MAX];                                                                     \
        int (*next)(int, const char *, int, ...) = hm_real(&real_##name, #name);                   \
        mode_t mode = 0;                                                                           \
        MODE_OF(flags, mode);                                                                      \
        return next(directory, redirected(path, buffer), flags, mode);                             \
    }

/* What open is with _FORTIFY_SOURCE. */
#define STAND_BEFORE_OPEN_2(name)                                                                  \
    static void *real_##name;                                                                      \
    EXPORTED int name(const char *path, int flags);                                                \
    int name(const char *path, int flags)                                                          \
    {                                                                                              \
        char buffer[PATH_MAX];                                                                     \
        int (*next)(const char *, int) = hm_real(&real_##name, #name);                             \
        return next(redirected(path, buffer), flags);                                              \
    }

#define STAND_BEFORE_OPENAT_2(name)                                                                \
    static void *real_##name;                                                                      \
    EXPORTED int name(int directory, const char *path, int flags);                                 \
    int name(int directory, const char *path, int flags)                                           \
    {                                                                                              \
        char buffer[PATH_MAX];                                                                     \
        int (*next)(int, const char *, int) = hm_real(&real_##name, #name);                        \
        return next(directory, redirected(path, buffer), flags);                                   \
    }

STAND_BEFORE_OPEN(open)
STAND_BEFORE_OPEN(open64)
STAND_BEFORE_OPENAT(openat)
STAND_BEFORE_OPENAT(openat64)
STAND_BEFORE_OPEN_2(__open_2)
STAND_BEFORE_OPEN_2(__open64_2)
STAND_BEFORE_OPENAT_2(__openat_2)
STAND_BEFORE_OPENAT_2(__openat64_2)

void hm_opens_find(void)
{
    hm_real(&real_open, "open");
    hm_real(&real_open64, "open64");
    hm_real(&real_openat, "openat");
    hm_real(&real_openat64, "openat64");
    hm_real(&real___open_2, "__open_2");
    hm_real(&real___open64_2, "__open64_2");
    hm_real(&real___openat_2, "__openat_2");
    hm_real(&real___openat64_2, "__openat64_2");
}
