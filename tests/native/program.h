/* Where program_child.c has memory that program.c knows of. */
#ifndef PROGRAM_H
#define PROGRAM_H
#include <stddef.h>
#include <stdint.h>

#define CLOCK 0x100000200000UL
#define CLOCK_PAGES 4
#define OPEN 0x1000004f0000UL /* goes on into the next 2 MiB */
#define OPEN_PAGES 400
#define FILLED 0x5a
/* What it changes all the while: two slots, one a thread's. The halves of the first, between which
 * it moves pages, are in two blocks. */
#define SLOT_PAGES 160
#define ARENA (0x100000a00000UL - SLOT_PAGES / 2 * 4096)
#define ARENA_PAGES (2 * SLOT_PAGES)

static inline uint8_t open_byte(size_t at)
{
    return (uint8_t)(at * 31 + at / 4096) | 1;
}
#endif
