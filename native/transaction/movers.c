/* The movers: native threads that run jobs, and the queue that they take them from. */
#include "transaction/movers.h"

#include <errno.h>
#include <stdlib.h>

static void *mover(void *arg)
{
    struct hm_core *core = arg;
    hm_lock(HM_RANK_JOBS, &core->jobs_lock);
    while (!core->stopping) {
        struct hm_queued_job *queued = core->jobs;
        if (!queued) {
            core->movers_idle++;
            pthread_cond_wait(&core->jobs_ready, &core->jobs_lock);
            core->movers_idle--;
            continue;
        }
        core->jobs = queued->next;
        core->jobs_waiting--;
        if (!core->jobs)
            core->jobs_end = &core->jobs;
        hm_unlock(HM_RANK_JOBS, &core->jobs_lock);
        hm_count(&core->count.jobs, 1);
        if (core->run(core, queued))
            free(queued);
        hm_lock(HM_RANK_JOBS, &core->jobs_lock);
    }
    hm_unlock(HM_RANK_JOBS, &core->jobs_lock);
    return NULL;
}

/* jobs_lock is held. A mover may block in a recall, so there must always be another. */
static int add_mover(struct hm_core *core)
{
    int error = pthread_create(&core->mover[core->movers], NULL, mover, core);
    if (!error)
        core->movers++;
    return -error;
}

int hm_submit(struct hm_core *core, const struct hm_job *job)
{
    struct hm_queued_job *queued = malloc(sizeof(*queued));
    if (!queued)
        return -ENOMEM;
    queued->job = *job;
    hm_queue(core, queued);
    return 0;
}

void hm_queue(struct hm_core *core, struct hm_queued_job *queued)
{
    queued->next = NULL;
    HM_GUARD(HM_RANK_JOBS, &core->jobs_lock);
    *core->jobs_end = queued;
    core->jobs_end = &queued->next;
    pthread_cond_signal(&core->jobs_ready);
    if (++core->jobs_waiting > core->movers_idle && core->movers < HM_MAX_MOVERS)
        add_mover(core); /* when it fails the job waits for the others */
}

int hm_movers_start(struct hm_core *core,
                    bool (*run)(struct hm_core *core, struct hm_queued_job *queued))
{
    core->run = run;
    HM_GUARD(HM_RANK_JOBS, &core->jobs_lock);
    return add_mover(core);
}

void hm_movers_stop(struct hm_core *core)
{
    hm_lock(HM_RANK_JOBS, &core->jobs_lock);
    core->stopping = true;
    pthread_cond_broadcast(&core->jobs_ready);
    hm_unlock(HM_RANK_JOBS, &core->jobs_lock);
    for (uint32_t i = 0; i < core->movers; i++)
        pthread_join(core->mover[i], NULL);
    core->movers = 0;
    while (core->jobs) {
        struct hm_queued_job *queued = core->jobs;
        core->jobs = queued->next;
        free(queued);
    }
}
