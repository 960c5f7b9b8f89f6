/* System calls and threads on 64-bit RISC-V. */
#ifndef HMMFS_ARCH_RISCV64_H
#define HMMFS_ARCH_RISCV64_H
#include "preload/arch/calls.h"

static long call6(long number, long a, long b, long c, long d, long e, long f)
{
    register long a7 __asm__("a7") = number;
    register long a0 __asm__("a0") = a;
    register long a1 __asm__("a1") = b;
    register long a2 __asm__("a2") = c;
    register long a3 __asm__("a3") = d;
    register long a4 __asm__("a4") = e;
    register long a5 __asm__("a5") = f;
    __asm__ volatile("ecall"
                     : "+r"(a0)
                     : "r"(a7), "r"(a1), "r"(a2), "r"(a3), "r"(a4), "r"(a5)
                     : "memory");
    return a0;
}

static NEVER_INLINED long start_thread(long flags, void *stack, void (*run)(void *), void *arg,
                                       int *number)
{
    register long a7 __asm__("a7") = SYS_clone;
    register long a0 __asm__("a0") = flags;
    register void *a1 __asm__("a1") = stack;
    register int *a2 __asm__("a2") = number;
    register long a3 __asm__("a3") = 0;
    register int *a4 __asm__("a4") = number;
    register void (*s2)(void *) __asm__("s2") = run;
    register void *s3 __asm__("s3") = arg;
    __asm__ volatile("ecall\n\t"
                     "bnez a0, 1f\n\t"
                     "mv a0, s3\n\t"
                     "jalr s2\n\t"
                     "ebreak\n"
                     "1:"
                     : "+r"(a0)
                     : "r"(a7), "r"(a1), "r"(a2), "r"(a3), "r"(a4), "r"(s2), "r"(s3)
                     : "memory");
    return a0;
}

#endif
