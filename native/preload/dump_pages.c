/* Pages by which the daemon learns of a core dump before it is written: hmmfs/filesystem/dumps.py.
 */
#include "preload/dump_pages.h"

#include <stddef.h>
#include <sys/mman.h>
#include <unistd.h>

#define LOWEST 0x10000 /* the lowest address that there may be something at, by default */

static void *dump_page, *dump_lowest; /* NULL: none */

/* The kernel writes mappings into a dump by their addresses, this one first. It writes it like all
 * private memory since one page, the last, is private. To the program it is as if nothing was here.
 */
static void map_lowest(int file, size_t page)
{
    char *lowest = mmap((void *)LOWEST, 2 * page, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_FIXED_NOREPLACE, file, (off_t)page);
    if (lowest == MAP_FAILED)
        return;
    *(volatile char *)(lowest + page) = 1;
    if (mprotect(lowest, 2 * page, PROT_NONE) < 0 || madvise(lowest, 2 * page, MADV_DONTFORK) < 0)
        munmap(lowest, 2 * page);
    else
        dump_lowest = lowest;
}

/* Pages of a file of the daemon's that nobody touches but the kernel, for a core dump: who
 * reads them waits until all pages are home. The first it reads before it writes any, to see if it
 * is a library; where its coredump_filter leaves headers out, it reads the second in its turn. */
void hm_map_for_dumps(int file)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    if (file < 0)
        return;
    dump_page = mmap(NULL, page, PROT_READ, MAP_PRIVATE, file, 0);
    if (dump_page == MAP_FAILED)
        dump_page = NULL;
    else
        madvise(dump_page, page, MADV_DONTFORK);
    map_lowest(file, page);
}

void hm_unmap_for_dumps(void)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    if (dump_page)
        munmap(dump_page, page);
    if (dump_lowest)
        munmap(dump_lowest, 2 * page);
    dump_page = dump_lowest = NULL;
}
