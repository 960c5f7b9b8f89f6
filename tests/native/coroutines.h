/* Threads of the core as coroutines of one thread: which goes on is decided by a seed wherever a
 * thread takes or gives back a lock, and at each point of native/base/pause.h. So a schedule can be
 * had again, and some hundred thousand be tried in minutes.
 *
 * The choice is that of PCT (Burckhardt et al., ASPLOS 2010): each has a priority by chance, the
 * highest goes on. At `changes` steps, chosen before, the one that goes on falls to the lowest. A
 * bug that takes a few preemptions is found with a chance that does not depend on how long a run
 * is.
 *
 * To be linked with --wrap for each function below that begins with __wrap_. */
#ifndef COROUTINES_H
#define COROUTINES_H
#ifndef HM_PAUSES
#define HM_PAUSES /* for all of the core, too */
#endif
#include "inside.h"

#include <string.h>
#include <ucontext.h>

#define TASKS 64
#define STACK (256u << 10)
#define HISTORY 4096 /* switches that a failure tells */
#define STEPS_AT_MOST 50000

struct task {
    ucontext_t context;
    const char *name, *point; /* who it is, and where it is held */
    void (*call)(void *);
    void *argument;
    int priority, locks;
    unsigned ranks;      /* of its locks */
    size_t copied;       /* under its stripe */
    const void *blocked; /* what it waits for; NULL: it can go on */
    bool lives;
};

static struct task tasks[TASKS];
static _Thread_local struct task *current; /* NULL: none of them runs, or this is a true thread */
static char *stacks;
static ucontext_t scheduler;
static uint64_t chance;
static int lowest, changes_left;
static uint32_t steps, change_at[8];
static struct {
    const char *name, *point;
} history[HISTORY];

static uint64_t draw(void)
{
    chance ^= chance << 13;
    chance ^= chance >> 7;
    chance ^= chance << 17;
    return chance;
}

static void tell_schedule(void)
{
    uint32_t first = steps > HISTORY ? steps - HISTORY : 0;
    for (uint32_t i = first; i < steps; i++)
        fprintf(stderr, "%5u %s: %s\n", i, history[i % HISTORY].name, history[i % HISTORY].point);
    for (struct task *task = tasks; task < tasks + TASKS; task++)
        if (task->lives)
            fprintf(stderr, "      %s is at %s%s\n", task->name, task->point,
                    task->blocked ? ", and waits" : "");
}

static void switch_away(const char *point)
{
    struct task *task = current;
    task->point = point;
    swapcontext(&task->context, &scheduler);
}

/* Another may go on, unless this one has a lock: then nobody else would get far. */
static void yield(const char *point)
{
    if (current && !current->locks)
        switch_away(point);
}

static void block(const void *on, const char *point)
{
    current->blocked = on;
    switch_away(point);
}

static void wake(const void *on)
{
    for (struct task *task = tasks; task < tasks + TASKS; task++)
        if (task->blocked == on)
            task->blocked = NULL;
}

static void task_main(void)
{
    current->call(current->argument);
    current->lives = false;
    swapcontext(&current->context, &scheduler);
}

static struct task *spawn(const char *name, void (*call)(void *), void *argument)
{
    struct task *task = tasks;
    while (task < tasks + TASKS && task->lives)
        task++;
    CHECK(task < tasks + TASKS, "too many tasks");
    *task = (struct task){.name = name,
                          .point = "its beginning",
                          .call = call,
                          .argument = argument,
                          .priority = (int)(draw() >> 40),
                          .lives = true};
    getcontext(&task->context);
    task->context.uc_stack.ss_sp = stacks + (size_t)(task - tasks) * STACK;
    task->context.uc_stack.ss_size = STACK;
    makecontext(&task->context, task_main, 0);
    return task;
}

/* Run until none is left, with `changes` changes of priority in the first `length` steps. */
static void run_tasks(uint64_t seed, int changes, uint32_t length)
{
    chance = seed * 0x9e3779b97f4a7c15ULL | 1;
    lowest = 0;
    changes_left = changes;
    for (int i = 0; i < changes; i++)
        change_at[i] = steps + (uint32_t)(draw() % length);
    for (struct task *task = tasks; task < tasks + TASKS; task++)
        task->priority = task->lives ? (int)(draw() >> 40) : 0;
    for (;;) {
        struct task *next = NULL;
        bool any = false;
        for (struct task *task = tasks; task < tasks + TASKS; task++) {
            any |= task->lives;
            if (task->lives && !task->blocked && (!next || task->priority > next->priority))
                next = task;
        }
        if (!any)
            return;
        CHECK(next, "nobody can go on");
        for (int i = 0; i < changes_left; i++)
            if (change_at[i] == steps)
                next->priority = --lowest;
        history[steps % HISTORY].name = next->name;
        history[steps % HISTORY].point = next->point;
        CHECK(++steps < STEPS_AT_MOST, "it does not end");
        current = next;
        hm_ranks_held = next->ranks;
        hm_rank_copied = next->copied;
        swapcontext(&scheduler, &next->context);
        next->ranks = hm_ranks_held;
        next->copied = hm_rank_copied;
        hm_ranks_held = 0;
        current = NULL;
    }
}

static void make_stacks(void)
{
    stacks = malloc((size_t)TASKS * STACK);
    CHECK(stacks, "stacks");
}

/* ---- what the core calls --------------------------------------------------------------------- */

void hm_pause(const char *point)
{
    yield(point);
}

int __real_pthread_mutex_lock(pthread_mutex_t *mutex);
int __wrap_pthread_mutex_lock(pthread_mutex_t *mutex);
int __wrap_pthread_mutex_lock(pthread_mutex_t *mutex)
{
    if (!current)
        return __real_pthread_mutex_lock(mutex);
    yield("a lock");
    while (pthread_mutex_trylock(mutex))
        block(mutex, "a lock that another has");
    current->locks++;
    return 0;
}

int __real_pthread_mutex_unlock(pthread_mutex_t *mutex);
int __wrap_pthread_mutex_unlock(pthread_mutex_t *mutex);
int __wrap_pthread_mutex_unlock(pthread_mutex_t *mutex)
{
    int error = __real_pthread_mutex_unlock(mutex);
    if (current) {
        current->locks--;
        wake(mutex);
        yield("what follows a lock");
    }
    return error;
}

int __real_pthread_cond_wait(pthread_cond_t *cond, pthread_mutex_t *mutex);
int __wrap_pthread_cond_wait(pthread_cond_t *cond, pthread_mutex_t *mutex);
int __wrap_pthread_cond_wait(pthread_cond_t *cond, pthread_mutex_t *mutex)
{
    if (!current)
        return __real_pthread_cond_wait(cond, mutex);
    __real_pthread_mutex_unlock(mutex);
    current->locks--;
    wake(mutex);
    block(cond, "a wait");
    while (pthread_mutex_trylock(mutex))
        block(mutex, "a lock that another has");
    current->locks++;
    return 0;
}

int __real_pthread_cond_broadcast(pthread_cond_t *cond);
int __wrap_pthread_cond_broadcast(pthread_cond_t *cond);
int __wrap_pthread_cond_broadcast(pthread_cond_t *cond)
{
    if (current)
        wake(cond);
    return __real_pthread_cond_broadcast(cond);
}

int __real_usleep(useconds_t us);
int __wrap_usleep(useconds_t us);
int __wrap_usleep(useconds_t us)
{
    if (!current)
        return __real_usleep(us);
    current->priority = --lowest; /* it waits for another */
    yield("a pause");
    return 0;
}

#endif
