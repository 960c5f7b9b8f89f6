/* Its main thread ends, and another goes on with the memory: it says where, and checks it when
 * told. */
#include "check.h"

#include <pthread.h>

#define PAGES 600

static void *rest(void *memory)
{
    char line[8];
    usleep(20000); /* main ends */
    say_where(memory, PAGES * PAGE);
    CHECK(fgets(line, sizeof(line), stdin));
    CHECK(is_stamped(memory, PAGES * PAGE, 5));
    printf("ok\n");
    fflush(stdout);
    _exit(0);
}

int main(void)
{
    char *memory = map_at(NULL, PAGES * PAGE, 0);
    pthread_t thread;
    stamp(memory, PAGES * PAGE, 5);
    CHECK(!pthread_create(&thread, NULL, rest, memory));
    pthread_exit(NULL);
}
