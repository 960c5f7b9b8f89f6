/* In the library of hmmfs run: the program is attached to its mount's daemon, and leaves it. */
#ifndef HMMFS_ATTACH_H
#define HMMFS_ATTACH_H
#include "preload/helper.h"

#include <stdbool.h>

/* Read the environment. False: the program is not under hmmfs run. */
bool hm_read_settings(void);
/* Be attached, or say why not. */
void hm_attach(void);
/* The library's threads in this process. NULL: it is not attached. */
struct hm_threads *hm_own_threads(void);
/* The directory of the mount; empty: nothing was said of it. */
const char *hm_mount_directory(void);

/* Whether all threads but the caller's are the library's. There are some. */
bool hm_has_only_ours(void);
/* Have all pages brought home and the library's threads ended. False: they still run. */
bool hm_leave(void);

/* For pthread_atfork. */
void hm_before_fork(void);
void hm_attach_child(void);
/* The daemon gives each child what devices have, but for mappings that are wiped at a fork; it
 * looks for them only if there may be any, which takes long. */
void hm_tell_of_wiping(void);

#endif
