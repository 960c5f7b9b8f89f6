/* What each call of hmmfs.h says of arguments just past what it takes, and that it takes what is
 * just within. A refusal changes nothing, and leaves nothing held: the core ends as always. */
#include "inside.h"

#include <string.h>

#define PAGE HM_PAGE_SIZE
#define NODES 3
#define NOBODY (INO + 1) /* no region has this number */

static char sound[256];

#define IS(call, result)                                                                           \
    do {                                                                                           \
        long long is = (long long)(call);                                                          \
        CHECK(is == (result), "%lld", is);                                                         \
        CHECK(!hm_audit(core, sound, sizeof(sound)), "%s", sound);                                 \
    } while (0)

static void nodes(void)
{
    static uint32_t costs[513];
    struct hm_node_stats stats;
    struct hm_candidate found[4];
    uint64_t words[8] = {1}, far = HM_MAX_BLOCKS * HM_BLOCK_PAGES;
    struct hm_prefetch policy = {.kind = HM_PREFETCH_NEXT};
    struct hm_victim victim;
    IS(hm_fault_cost_set(core, NODES - 1, 0), 0);
    IS(hm_fault_cost_set(core, NODES, 0), -ENODEV);
    IS(hm_link_set(core, 0, NODES - 1, costs), 0);
    IS(hm_link_set(core, 0, NODES, costs), -ENODEV);
    IS(hm_link_set(core, NODES, 0, costs), -ENODEV);
    IS(hm_link_set(core, 1, 1, costs), -EINVAL);
    IS(hm_prefetch_set(core, NODES - 1, &policy), 0);
    IS(hm_prefetch_set(core, NODES, &policy), -ENODEV);
    policy.kind = HM_PREFETCH_ASK;
    IS(hm_prefetch_set(core, 1, &policy), 0);
    policy.kind++;
    IS(hm_prefetch_set(core, 1, &policy), -EINVAL);
    IS(hm_placement_set(core, HM_HOST, 0, 0), -ENODEV);
    IS(hm_placement_set(core, NODES - 1, 0, UINT16_MAX), 0);
    IS(hm_placement_set(core, NODES, 0, 0), -ENODEV);
    IS(hm_placement_set(core, 1, HM_PLACE_COUNTER, 1), 0);
    IS(hm_placement_set(core, 1, HM_PLACE_COUNTER + 1, 1), -EINVAL);
    IS(hm_placement_set(core, 1, 0, UINT16_MAX + 1), -EINVAL);
    IS(hm_placement_set(core, 1, 0, 0), 0);
    IS(hm_eviction_set(core, NODES - 1, &(struct hm_eviction){HM_EVICT_ASK, 0, NULL, 0}), 0);
    IS(hm_eviction_set(core, 1, &(struct hm_eviction){HM_EVICT_ASK + 1, 0, NULL, 0}), -EINVAL);
    IS(hm_eviction_set(core, NODES, &(struct hm_eviction){0}), -EINVAL);
    IS(hm_eviction_set(core, HM_HOST, &(struct hm_eviction){0}), -EINVAL);
    IS(hm_eviction_set(core, 1, &(struct hm_eviction){HM_EVICT_OPTIMAL, 0, &far, 1}), -EINVAL);
    far--;
    IS(hm_eviction_set(core, 1, &(struct hm_eviction){HM_EVICT_OPTIMAL, 0, &far, 1}), 0);
    IS(hm_victim_next(core, 1, 1, NULL, 0, &victim), 0);
    IS(hm_victim_next(core, HM_HOST, 1, NULL, 0, &victim), -ENODEV);
    IS(hm_victim_next(core, NODES, 1, NULL, 0, &victim), -ENODEV);
    IS(hm_node_exclude(core, NODES - 1, 0), 0);
    IS(hm_node_exclude(core, NODES, 0), -ENODEV);
    IS(hm_watermark(core, NODES - 1, 2048), 0);
    IS(hm_watermark(core, NODES - 1, 2049), -EINVAL);
    IS(hm_watermark(core, NODES, 1), -EINVAL);
    IS(hm_watermark(core, NODES - 1, 0), 0);
    IS(hm_candidates(core, NODES, found, 4), -ENODEV);
    IS(hm_node_stats_get(core, NODES - 1, &stats), 0);
    IS(hm_node_stats_get(core, NODES, &stats), -ENODEV);
    IS(hm_faults_failed(core, HM_HOST, INO, 0, words, 0, 1), -ENODEV);
    IS(hm_faults_failed(core, NODES, INO, 0, words, 0, 1), -ENODEV);
    IS(hm_reserve(core, NODES, 1, 0), -ENODEV);
}

static void hints(void)
{
    uint64_t none[8] = {0}, touched[8] = {1}, inside[8] = {~0ULL}, out[8];
    struct hm_stride stride = {0};
    struct hm_prefetch policy = {.kind = HM_PREFETCH_DENSITY, .argument = {51}};
    IS(hm_prefetch_hint(&policy, none, touched, inside, 0, &stride, out), 0);
    policy = (struct hm_prefetch){.kind = HM_PREFETCH_TABLE}; /* groups of no page: none beside */
    IS(hm_prefetch_hint(&policy, none, touched, inside, 0, &stride, out), 0);
    CHECK(out[0] == 1 && !out[1], "%#llx", (unsigned long long)out[0]);
    policy.kind = HM_PREFETCH_ASK;
    IS(hm_prefetch_hint(&policy, none, touched, inside, 0, &stride, out), -EINVAL);
}

static void devices(void)
{
    int pipes[2];
    CHECK(!pipe(pipes), "pipe");
    IS(hm_device_worker(core, NODES), 0);
    IS(hm_device_attach(core, HM_HOST, pipes[0], -1), -ENODEV);
    IS(hm_device_attach(core, NODES, pipes[0], -1), -ENODEV);
    IS(hm_device_attach(core, 1, pipes[0], -1), -EINVAL);
    IS(hm_device_attach(core, 1, -1, -1), -EINVAL);
    IS(hm_device_detach(core, HM_HOST), -ENODEV);
    IS(hm_device_detach(core, NODES), -ENODEV);
    IS(hm_device_detach(core, 1), -ENOENT);
    IS(hm_device_map(core, HM_HOST, INO, PAGE, HM_BLOCK_BYTES), -ENODEV);
    IS(hm_device_map(core, NODES, INO, PAGE, HM_BLOCK_BYTES), -ENODEV);
    IS(hm_device_map(core, 1, INO, 0, HM_BLOCK_BYTES), -EINVAL);
    IS(hm_device_map(core, 1, INO, PAGE + 1, HM_BLOCK_BYTES), -EINVAL);
    IS(hm_device_map(core, 1, INO, PAGE, HM_BLOCK_BYTES + PAGE), -EINVAL);
    IS(hm_device_map(core, 1, INO, PAGE, HM_MAX_BYTES + HM_BLOCK_BYTES), -EINVAL);
    IS(hm_device_map(core, 1, INO, 1ULL << 63, HM_BLOCK_BYTES), -EINVAL);
    IS(hm_device_map(core, 1, NOBODY, PAGE, HM_BLOCK_BYTES), -ENOENT);
    IS(hm_device_map(core, 1, INO, PAGE, HM_BLOCK_BYTES), -ENOTCONN); /* it has no worker */
    IS(hm_device_discard(core, HM_HOST, INO, PAGE), -ENODEV);
    IS(hm_device_discard(core, NODES, INO, PAGE), -ENODEV);
    IS(hm_device_discard(core, 1, INO, HM_MAX_BYTES + 1), -EINVAL);
    IS(hm_device_discard(core, 2, INO, PAGE), -ENOENT);
    IS(hm_device_discard(core, 1, NOBODY, PAGE), -ENOENT);
    IS(hm_device_discard(core, 1, INO, 0), -ENOENT);
    IS(hm_device_unmap(core, 1, INO), -ENOENT);
    IS(hm_pool_descriptor(core, INO, NODES), -ENODEV);
    IS(hm_pool_descriptor(core, NOBODY, 1), -ENOENT);
    close(pipes[0]);
    close(pipes[1]);
}

static void regions(void)
{
    struct hm_region_flows flows;
    struct hm_block_counts counts;
    uint64_t words[22];
    IS(hm_region_destroy(core, NOBODY), -ENOENT);
    IS(hm_region_truncate(core, NOBODY, PAGE), -ENOENT);
    IS(hm_region_truncate(core, INO, HM_MAX_BYTES), 0);
    IS(hm_region_truncate(core, INO, HM_MAX_BYTES + 1), -EFBIG);
    IS(hm_region_truncate(core, INO, 16 * PAGE), 0);
    IS(hm_region_punch(core, NOBODY, 0, PAGE), -ENOENT);
    IS(hm_region_allocate(core, NOBODY, 0, PAGE), -ENOENT);
    IS(hm_region_allocate(core, INO, HM_MAX_BYTES, 1), -EFBIG);
    IS(hm_region_allocate(core, INO, UINT64_MAX, 1), -EFBIG);
    IS(hm_region_sync(core, NOBODY), -ENOENT);
    IS(hm_region_set_times(core, NOBODY, 0, 0, 0), -ENOENT);
    IS(hm_region_modified(core, NOBODY, 1), -ENOENT);
    IS(hm_region_seek(core, NOBODY, 0, 0), -ENOENT);
    IS(hm_region_seek(core, INO, 16 * PAGE, 0), -ENXIO);
    IS(hm_region_seek(core, INO, 16 * PAGE, 1), -ENXIO);
    IS(hm_region_seek(core, INO, 16 * PAGE - 1, 1), 16 * PAGE - 1);
    CHECK(!hm_region_blocks(core, NOBODY), "blocks");
    IS(hm_region_touched(core, NOBODY, 0, words, 1), -ENOENT);
    IS(hm_region_residency(core, NOBODY, words), -ENOENT);
    IS(hm_region_flows_get(core, NOBODY, &flows), -ENOENT);
    IS(hm_region_block_counts(core, NOBODY, 0, &counts, 1), -ENOENT);
    IS(hm_region_writers(core, NOBODY, 1), -ENOENT);
    IS(hm_region_writers(core, INO, -1), -EINVAL);
    IS(hm_region_writers(core, INO, 1), 0);
    IS(hm_region_writers(core, INO, -1), 0);
    IS(hm_region_writers(core, INO, -1), -EINVAL);
    IS(hm_labelled_or_duplicate(core, INO, 0, NODES, words), -ENODEV);
    IS(hm_labelled_or_duplicate(core, NOBODY, 0, 1, words), -ENOENT);
    IS(hm_labelled_or_duplicate(core, INO, HM_MAX_BLOCKS, 1, words), -EINVAL);
    IS(hm_labelled_or_duplicate(core, INO, HM_MAX_BLOCKS - 1, 1, words), 0);
    IS(hm_region_numa(core, INO, HM_NUMA_INTERLEAVE + 1, 1), -EINVAL);
    IS(hm_region_numa(core, INO, HM_NUMA_BIND, 1u << NODES), -EINVAL);
    IS(hm_region_numa(core, INO, HM_NUMA_BIND, 0), -EINVAL);
    IS(hm_region_numa(core, INO, HM_NUMA_DEFAULT, 1), -EINVAL);
    IS(hm_region_numa(core, INO, HM_NUMA_BIND, 1), -EOPNOTSUPP);
    IS(hm_region_numa(core, INO, HM_NUMA_DEFAULT, 0), 0);
    IS(hm_region_numa(core, NOBODY, HM_NUMA_DEFAULT, 0), -ENOENT);
}

static void advice(void)
{
    const uint64_t last = HM_MAX_BYTES / PAGE - 1;
    struct hm_advice got;
    IS(hm_advise(core, NOBODY, 0, 1, HM_ADVICE_PINNED, 1), -ENOENT);
    IS(hm_advise(core, INO, 0, 0, HM_ADVICE_PINNED, 1), -EINVAL);
    IS(hm_advise(core, INO, last + 1, 1, HM_ADVICE_PINNED, 1), -EINVAL);
    IS(hm_advise(core, INO, last, 2, HM_ADVICE_PINNED, 1), -EINVAL);
    IS(hm_advise(core, INO, 1, UINT64_MAX, HM_ADVICE_PINNED, 1), -EINVAL);
    IS(hm_advise(core, INO, 0, 1, HM_ADVICE_UNACCESSED_BY + 1, 1), -EINVAL);
    IS(hm_advise(core, INO, 0, 1, HM_ADVICE_READ_MOSTLY, 2), -EINVAL);
    IS(hm_advise(core, INO, 0, 1, HM_ADVICE_PINNED, 2), -EINVAL);
    IS(hm_advise(core, INO, 0, 1, HM_ADVICE_NO_MIGRATE, 2), -EINVAL);
    IS(hm_advise(core, INO, 0, 1, HM_ADVICE_GRANULARITY, 11), -EINVAL);
    IS(hm_advise(core, INO, 0, 1, HM_ADVICE_PREFERRED, NODES + 1), -EINVAL);
    IS(hm_advise(core, INO, 0, 1, HM_ADVICE_PREFETCHED, NODES + 1), -EINVAL);
    IS(hm_advise(core, INO, 0, 1, HM_ADVICE_ACCESSED_BY, NODES), -EINVAL);
    IS(hm_advise(core, INO, 0, 1, HM_ADVICE_UNACCESSED_BY, NODES), -EINVAL);
    IS(hm_advice_get(core, NOBODY, 0, &got, 1), -ENOENT);
    IS(hm_advice_get(core, INO, 0, &got, 1), 0);
    IS(hm_advise(core, INO, last, 1, HM_ADVICE_GRANULARITY, 10), 0);
    IS(hm_advise(core, INO, last, 1, HM_ADVICE_PREFERRED, NODES), 0);
    IS(hm_advise(core, INO, last, 1, HM_ADVICE_ACCESSED_BY, NODES - 1), 0);
    IS(hm_advice_get(core, INO, 0, &got, 1), 1);
    CHECK(got.first == last && got.count == 1 && got.granularity == 10 && got.preferred == NODES &&
              got.accessed_by == 1u << (NODES - 1) && !got.pinned,
          "what was said");
}

static void jobs(void)
{
    uint8_t bytes[8];
    struct hm_job read = {
        .kind = HM_JOB_READ, .cookie = 1, .node = 1, .length = 8, .buffer = bytes};
    struct hm_job move = {.kind = HM_JOB_MIGRATE, .cookie = 1, .node = 1, .count = HM_BLOCK_PAGES};
#define JOB(job, field, value, result)                                                             \
    do {                                                                                           \
        struct hm_job changed = job;                                                               \
        changed.field = value;                                                                     \
        IS(run_job(changed), result);                                                              \
    } while (0)
    JOB(read, node, 1, 0);
    JOB(read, kind, HM_JOB_DEVICE_FAULT + 1, -EINVAL);
    JOB(read, block, HM_MAX_BLOCKS, -EINVAL);
    JOB(read, node, NODES, -ENODEV);
    JOB(read, node, HM_HOST, -ENODEV);
    JOB(read, length, 0, -EINVAL);
    JOB(read, offset, HM_BLOCK_BYTES, -EINVAL);
    JOB(read, offset, HM_BLOCK_BYTES - 7, -EINVAL);
    JOB(read, offset, HM_BLOCK_BYTES - 8, -ERANGE);
    JOB(read, offset, 16 * PAGE - 8, 0);
    JOB(read, offset, 16 * PAGE - 7, -ERANGE);
    JOB(move, node, 1, 0);
    JOB(move, node, NODES, -ENODEV);
    JOB(move, first, HM_BLOCK_PAGES, -EINVAL);
    JOB(move, first, 1, -EINVAL);
    JOB(move, count, HM_BLOCK_PAGES + 1, -EINVAL);
    JOB(move, flags, HM_JOB_REMOTE, -EINVAL);
}

static void traces(void)
{
    struct hm_trace_event event = {.ino = INO, .kind = HM_TRACE_PIN};
    IS(hm_trace_resize(core, 3), -EINVAL);
    IS(hm_trace_resize(core, 1u << 31), -EINVAL);
    IS(hm_trace_resize(core, 4), 0);
    IS(hm_trace_kinds(core, ~0u), 0);
    IS(hm_trace_region(core, NOBODY, 1), -ENOENT);
    IS(hm_trace_region(core, INO, 1), 0);
    IS(hm_trace_record(core, &event), 0);
    event.kind++;
    IS(hm_trace_record(core, &event), -EINVAL);
    event = (struct hm_trace_event){.ino = NOBODY, .kind = HM_TRACE_PIN};
    IS(hm_trace_record(core, &event), -ENOENT);
    CHECK(hm_trace_kind_name(HM_TRACE_PIN) && !hm_trace_kind_name(HM_TRACE_PIN + 1) &&
              !hm_trace_kind_name(-1),
          "names");
    IS(hm_trace_wake(core, 7), 1);
    IS(hm_trace_resize(core, 0), 0);
}

/* Of memory that is not a program's. */
static void programs(void)
{
    struct hm_process_config config = {.pid = 1, .pidfd = -1, .uffd = -1, .socket = -1};
    uint64_t words[8] = {0};
    uint16_t state;
    uint64_t frame;
    IS(hm_process_attach(core, NOBODY, &config), -ENOENT);
    IS(hm_process_detach(core, NOBODY, 0), -ENOENT);
    IS(hm_process_offset(core, INO, PAGE, PAGE), -ESRCH);
    IS(hm_process_address_of(core, INO, 0), 0);
    IS(hm_process_exclusive(core, INO, 1, 0, NULL, words), -ESRCH);
    IS(hm_process_set_huge(core, INO, 1, 0), -ESRCH);
    IS(hm_process_close(core, INO, 1, 1), -ESRCH);
    IS(hm_process_forget(core, INO, PAGE, PAGE), -ESRCH);
    IS(hm_process_look(core, INO, PAGE, 1, &state, &frame), -ESRCH);
}

static void cores(void)
{
    struct hm_config config = {.nodes = 1, .threads = 1, .capacity = {1}};
    struct hm_core *other;
    IS(hm_core_create(&config, &other), 0);
    hm_core_destroy(other);
    config.threads = 0;
    IS(hm_core_create(&config, &other), -EINVAL);
    config = (struct hm_config){.threads = 1};
    IS(hm_core_create(&config, &other), -EINVAL);
    config.nodes = HM_MAX_NODES + 1;
    IS(hm_core_create(&config, &other), -EINVAL);
}

int main(void)
{
    make_core((struct hm_config){.nodes = NODES, .threads = 1, .capacity = {2048, 2048, 2048}},
              16 * PAGE);
    nodes();
    hints();
    devices();
    regions();
    advice();
    jobs();
    traces();
    programs();
    cores();
    IS(hm_gate_passthrough(core), -EAGAIN);
    IS(hm_waits(core, 1), 0);
    CHECK(region->refs == 2, "%u hold the region, not the table and we", region->refs);
    end_core();
    return 0;
}
