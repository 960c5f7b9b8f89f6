/* Namespaces that a program may enter only while it has one thread: the library's leave for that.
 */
#include "preload/attach.h"
#include "preload/exported.h"

#include <errno.h>
#include <sched.h>
#include <sys/ioctl.h>

#ifndef CLONE_NEWTIME
#define CLONE_NEWTIME 0x80
#endif
#define NS_GET_NSTYPE _IO(0xb7, 3) /* linux/nsfs.h */

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
