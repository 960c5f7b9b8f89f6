/* What the library says to the people who run the program. */
#include "preload/complain.h"

#include <string.h>
#include <unistd.h>

void hm_complain(const char *what, int error, const char *consequence)
{
    char line[512];
    const char *why = strerrordesc_np(error);
    const char *parts[] = {"hmmfs run: ", what,        " (", why ? why : "unknown error",
                           "): ",         consequence, ".\n"};
    size_t used = 0;
    for (size_t i = 0; i < sizeof(parts) / sizeof(*parts); i++)
        for (const char *c = parts[i]; *c && used < sizeof(line); c++)
            line[used++] = *c;
    (void)!write(STDERR_FILENO, line, used);
}
