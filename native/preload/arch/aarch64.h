/* System calls and threads on 64-bit Arm. */
#ifndef HMMFS_ARCH_AARCH64_H
#define HMMFS_ARCH_AARCH64_H
#include "preload/arch/calls.h"

static long call6(long number, long a, long b, long c, long d, long e, long f)
{
    register long x8 __asm__("x8") = number;
    register long x0 __asm__("x0") = a;
    register long x1 __asm__("x1") = b;
    register long x2 __asm__("x2") = c;
    register long x3 __asm__("x3") = d;
    register long x4 __asm__("x4") = e;
    register long x5 __asm__("x5") = f;
    __asm__ volatile("svc #0"
                     : "+r"(x0)
                     : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5)
                     : "memory");
    return x0;
}

static NEVER_INLINED long start_thread(long flags, void *stack, void (*run)(void *), void *arg,
                                       int *number)
{
    register long x8 __asm__("x8") = SYS_clone;
    register long x0 __asm__("x0") = flags;
    register void *x1 __asm__("x1") = stack;
    register int *x2 __asm__("x2") = number;
    register long x3 __asm__("x3") = 0;
    register int *x4 __asm__("x4") = number;
    register void (*x10)(void *) __asm__("x10") = run;
    register void *x11 __asm__("x11") = arg;
    __asm__ volatile("svc #0\n\t"
                     "cbnz x0, 1f\n\t"
                     "mov x29, xzr\n\t"
                     "mov x0, x11\n\t"
                     "blr x10\n\t"
                     "brk #0\n"
                     "1:"
                     : "+r"(x0)
                     : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x10), "r"(x11)
                     : "memory");
    return x0;
}

#endif
