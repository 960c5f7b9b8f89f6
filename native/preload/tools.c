/* What people put into programs, or run them in: sanitizers, Valgrind. */
#include "preload/tools.h"

#include "preload/complain.h"
#include "preload/exported.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

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
