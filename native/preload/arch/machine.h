/* The machine that the library is compiled for. */
#ifndef HMMFS_ARCH_MACHINE_H
#define HMMFS_ARCH_MACHINE_H

#if defined(__x86_64__)
#include "preload/arch/x86_64.h"
#elif defined(__aarch64__)
#include "preload/arch/aarch64.h"
#elif defined(__riscv) && __riscv_xlen == 64
#include "preload/arch/riscv64.h"
#else
#error "hmmfs run knows x86_64, aarch64 and riscv64: add this machine's system calls here."
#endif

#endif
