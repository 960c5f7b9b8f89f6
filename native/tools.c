/* What people put into programs, or run them in: sanitizers, Valgrind, namespaces. */
#include "attach.h"

#include <dlfcn.h>
#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#ifndef CLONE_NEWTIME
#define CLONE_NEWTIME 0x80
#endif
#define NS_GET_NSTYPE _IO(0xb7, 3) /* linux/nsfs.h */

/* ---- sanitizers --------------------------------------------------------------------------------
 */

/* AddressSanitizer's own library ends the program unless it comes first in the list of libraries.
 * This one may come before it: what it stands before it passes on to the next in that list. A
 * program that has this function itself is asked in its place; for those `hmmfs run` sets
 * ASAN_OPTIONS. */
EXPORTED const char *__asan_default_options(void);
const char *__asan_default_options(void)
{
    return "verify_asan_link_order=0";
}

/* ---- Valgrind ----------------------------------------------------------------------------------
 */

/* It carries out the system calls that it knows, and ends a program that makes other threads than
 * the C library's. Its own libraries are preloaded as this one is. */
bool hm_can_attach(void)
{
    const char *preloaded = getenv("LD_PRELOAD");
    if (!preloaded || !strstr(preloaded, "/vgpreload_"))
        return true;
    hm_complain("Valgrind, which runs it, has no userfaultfd", ENOSYS,
                "the program runs on without devices");
    return false;
}

/* ---- namespaces --------------------------------------------------------------------------------
 */

/* What a program may do only while it has one thread. */
#define ALONE (CLONE_NEWUSER | CLONE_THREAD | CLONE_SIGHAND | CLONE_VM)
#define ALONE_IN (CLONE_NEWUSER | CLONE_NEWTIME)

/* The kernel counts the library's threads as the program's. Whether a call that failed for that may
 * be tried again, without them. errno stays. */
static bool step_aside(void)
{
    int error = errno;
    bool may = (error == EINVAL || error == EUSERS) && hm_has_only_ours() && hm_leave();
    errno = error;
    return may;
}

static void come_back(void)
{
    int error = errno;
    hm_attach();
    errno = error;
}

EXPORTED int unshare(int flags)
{
    int (*next)(int) = dlsym(RTLD_NEXT, "unshare");
    int result = next(flags);
    if (result < 0 && flags & ALONE && step_aside()) {
        result = next(flags);
        come_back();
    }
    return result;
}

static bool takes_one_thread(int fd, int kind)
{
    int error = errno, of = kind ? kind : ioctl(fd, NS_GET_NSTYPE);
    errno = error;
    return of > 0 && of & ALONE_IN;
}

EXPORTED int setns(int fd, int kind)
{
    int (*next)(int, int) = dlsym(RTLD_NEXT, "setns");
    int result = next(fd, kind);
    if (result < 0 && takes_one_thread(fd, kind) && step_aside()) {
        result = next(fd, kind);
        come_back();
    }
    return result;
}
