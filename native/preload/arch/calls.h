/* What the library's threads have of each machine: a system call of six arguments, and a thread
 * that runs a function on a stack of its own. Neither calls anything of the C library. */
#ifndef HMMFS_ARCH_CALLS_H
#define HMMFS_ARCH_CALLS_H
#include <sys/syscall.h>

#define NEVER_INLINED __attribute__((noinline))

#endif
