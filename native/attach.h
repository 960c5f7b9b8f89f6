/* In the library of hmmfs run: what preload.c does for its other files. */
#ifndef HMMFS_ATTACH_H
#define HMMFS_ATTACH_H
#include <stdbool.h>

#define EXPORTED __attribute__((visibility("default")))

/* One sentence on standard error. */
void hm_complain(const char *what, int error, const char *consequence);

/* Whether all threads but the caller's are the library's, of which there are some. */
bool hm_has_only_ours(void);
/* Have all pages brought home and the library's threads ended. False: they still run. */
bool hm_leave(void);
/* Be attached, or say why not. */
void hm_attach(void);

/* dump_pages.c: map the file that came with the welcome, and forget it. Below 0: none came. */
void hm_map_for_dumps(int file);
void hm_unmap_for_dumps(void);

/* tools.c: whether whatever runs the program lets it be attached; it was said if not. */
bool hm_can_attach(void);

#endif
