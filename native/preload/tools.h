#ifndef HMMFS_TOOLS_H
#define HMMFS_TOOLS_H
#include <stdbool.h>

/* Whether whatever runs the program lets it be attached; it was said if not. */
bool hm_can_attach(void);

#endif
