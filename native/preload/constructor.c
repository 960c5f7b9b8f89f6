/* What `hmmfs run` preloads into a program, so that its memory is the devices' too: the
 * constructor.
 *
 * The library attaches the program to the mount's daemon (attach.c). Two threads then do what only
 * the program itself can (helper.c). The library also stands before functions of the C library
 * (opens.c, mappings.c, namespaces.c, tools.c).
 */
#include "preload/attach.h"
#include "preload/mappings.h"
#include "preload/opens.h"
#include "preload/tools.h"

#include <errno.h>
#include <pthread.h>

__attribute__((constructor)) static void begin(void)
{
    int kept = errno;
    hm_opens_find();
    hm_mappings_find();
    if (hm_read_settings() && hm_can_attach()) {
        hm_attach();
        pthread_atfork(hm_before_fork, NULL, hm_attach_child);
    }
    errno = kept;
}
