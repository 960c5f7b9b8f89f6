/* What happened, one event after the other: a ring that is always written and read when somebody
 * cares.
 *
 * One lock, held for the copy of an event: an event costs some 60 ns with its time, of the 13 us
 * that a device's fault takes on one CPU, and of these there are four. Without a ring, or with all
 * kinds filtered out, it is one load.
 */
#include "books/trace.h"

#include "base/events.h"

#include <errno.h>
#include <string.h>

#include <stdio.h>
#include <stdlib.h>

#define MAX_EVENTS (1u << 20)
#define ALL_KINDS ((1u << (HM_TRACE_PIN + 1)) - 1)

struct hm_trace_name {
    uint64_t ino;
    char name[];
};

int hm_trace_init(struct hm_core *core)
{
    struct hm_trace *trace = calloc(1, sizeof(*trace));
    if (!trace)
        return -ENOMEM;
    pthread_mutex_init(&trace->lock, NULL);
    trace->kinds = ALL_KINDS;
    core->trace = trace;
    return 0;
}

void hm_trace_deinit(struct hm_core *core)
{
    struct hm_trace *trace = core->trace;
    if (!trace)
        return;
    pthread_mutex_destroy(&trace->lock);
    for (int i = 0; i < HM_TRACE_NAMES; i++)
        free(trace->gone[i]);
    free(trace->ring);
    free(trace);
}

int hm_trace_resize(struct hm_core *core, uint32_t events)
{
    struct hm_trace *trace = core->trace;
    struct hm_trace_event *ring = NULL, *old;
    if (events > MAX_EVENTS || events & (events - 1))
        return -EINVAL;
    if (events) {
        ring = calloc(events, sizeof(*ring));
        if (!ring)
            return -ENOMEM;
    }
    hm_lock(HM_RANK_TRACE, &trace->lock);
    old = trace->ring;
    trace->ring = ring;
    trace->size = events;
    trace->floor = trace->head;
    atomic_store(&trace->mask, events ? trace->kinds : 0);
    hm_unlock(HM_RANK_TRACE, &trace->lock);
    free(old);
    return 0;
}

int hm_trace_kinds(struct hm_core *core, uint32_t mask)
{
    struct hm_trace *trace = core->trace;
    HM_GUARD(HM_RANK_TRACE, &trace->lock);
    trace->kinds = mask & ALL_KINDS;
    atomic_store(&trace->mask, trace->size ? trace->kinds : 0);
    return 0;
}

int hm_trace_region(struct hm_core *core, uint64_t ino, int on)
{
    HM_AUTO_PUT struct hm_region *region = hm_region_get(core, ino);
    if (!region)
        return -ENOENT;
    atomic_store(&region->untraced, !on);
    return 0;
}

static void record(struct hm_core *core, const struct hm_trace_event *event)
{
    struct hm_trace *trace = core->trace;
    bool wake = false;
    hm_lock(HM_RANK_TRACE, &trace->lock);
    if (trace->size) {
        trace->ring[trace->head++ & (trace->size - 1)] = *event;
        wake = trace->wake;
        trace->wake = false;
    }
    hm_unlock(HM_RANK_TRACE, &trace->lock);
    if (wake)
        hm_event_push(core, &(struct hm_event){.kind = HM_EVENT_TRACE});
}

uint64_t hm_trace_now(void)
{
    return hm_now();
}

int hm_trace_record(struct hm_core *core, const struct hm_trace_event *event)
{
    struct hm_trace_event copy = *event;
    if (event->kind > HM_TRACE_PIN)
        return -EINVAL;
    HM_AUTO_PUT struct hm_region *region = hm_region_get(core, event->ino);
    if (!region)
        return -ENOENT;
    if (!copy.at_ns)
        copy.at_ns = hm_now();
    if (hm_traced(region, event->kind))
        record(core, &copy);
    return 0;
}

void hm_trace(struct hm_region *region, uint64_t block, const struct hm_mask *mask,
              struct hm_trace_event event)
{
    uint32_t first = hm_next_page(mask->word, 0), last = first;
    if (first == HM_BLOCK_PAGES || !hm_traced(region, event.kind))
        return;
    for (int w = HM_WORDS - 1; w >= 0; w--)
        if (mask->word[w]) {
            last = (uint32_t)(w * 64 + 63 - __builtin_clzll(mask->word[w]));
            break;
        }
    event.ino = region->ino;
    event.page = block * HM_BLOCK_PAGES + first;
    event.count = last - first + 1;
    if (!event.at_ns)
        event.at_ns = hm_now();
    record(region->core, &event);
}

void hm_trace_cpu_fault(struct hm_region *region, uint64_t block, const struct hm_mask *mask,
                        bool write, uint64_t began, bool ended)
{
    enum hm_trace_kind kind = ended ? HM_TRACE_PAGE_FAULT_END : HM_TRACE_PAGE_FAULT_START;
    uint64_t now;
    if (!hm_traced(region, kind))
        return;
    now = ended ? hm_now() : began;
    hm_trace(region, block, mask,
             (struct hm_trace_event){.kind = (uint8_t)kind,
                                     .trigger = write ? HM_BY_WRITE : HM_BY_READ,
                                     .node = HM_HOST,
                                     .from = HM_NOWHERE,
                                     .to = HM_NOWHERE,
                                     .at_ns = now,
                                     .took_ns = now - began});
}

uint64_t hm_trace_wake(struct hm_core *core, uint64_t from)
{
    struct hm_trace *trace = core->trace;
    uint64_t head;
    HM_GUARD(HM_RANK_TRACE, &trace->lock);
    head = trace->head;
    trace->wake |= from >= head;
    return head;
}

void hm_trace_clear(struct hm_core *core)
{
    struct hm_trace *trace = core->trace;
    HM_GUARD(HM_RANK_TRACE, &trace->lock);
    trace->floor = trace->head;
}

/* The lock is held. */
static uint64_t oldest_of(const struct hm_trace *trace)
{
    uint64_t oldest = trace->head > trace->size ? trace->head - trace->size : 0;
    return oldest > trace->floor ? oldest : trace->floor;
}

uint64_t hm_trace_oldest(struct hm_core *core)
{
    HM_GUARD(HM_RANK_TRACE, &core->trace->lock);
    return oldest_of(core->trace);
}

/* ---- as text -------------------------------------------------------------------------------- */

#define BATCH 64

static const char *const kinds[] = {
    [HM_TRACE_PAGE_FAULT_START] = "page_fault_start",
    [HM_TRACE_PAGE_FAULT_END] = "page_fault_end",
    [HM_TRACE_MIGRATE_START] = "migrate_start",
    [HM_TRACE_MIGRATE_END] = "migrate_end",
    [HM_TRACE_QUEUE_EVICTION] = "queue_eviction",
    [HM_TRACE_QUEUE_RESTORE] = "queue_restore",
    [HM_TRACE_UNMAP] = "unmap",
    [HM_TRACE_READ_DUPLICATE] = "read_duplicate",
    [HM_TRACE_READ_DUPLICATE_INVALIDATE] = "read_duplicate_invalidate",
    [HM_TRACE_MAP_REMOTE] = "map_remote",
    [HM_TRACE_THRASHING] = "thrashing",
    [HM_TRACE_THROTTLE] = "throttle",
    [HM_TRACE_PIN] = "pin",
};

static const char *const triggers[] = {
    [HM_BY_NOTHING] = "-",
    [HM_BY_CPU_FAULT] = "cpu_fault",
    [HM_BY_DEVICE_FAULT] = "device_fault",
    [HM_BY_PREFETCH] = "prefetch",
    [HM_BY_EVICTION] = "eviction",
    [HM_BY_OPERATION] = "operation",
    [HM_BY_READ] = "read",
    [HM_BY_WRITE] = "write",
    [HM_BY_CAPACITY] = "capacity",
    [HM_BY_SHARING] = "sharing",
};

const char *hm_trace_kind_name(int kind)
{
    return kind >= 0 && kind <= HM_TRACE_PIN ? kinds[kind] : NULL;
}

void hm_trace_gone(struct hm_region *region)
{
    struct hm_trace *trace = region->core->trace;
    struct hm_trace_name *made, *old;
    size_t length = strnlen(region->record->name, HM_NAME_MAX);
    made = malloc(sizeof(*made) + length + 1);
    if (!made)
        return; /* then its events have a number */
    made->ino = region->ino;
    memcpy(made->name, region->record->name, length);
    made->name[length] = 0;
    hm_lock(HM_RANK_TRACE, &trace->lock);
    old = trace->gone[region->ino % HM_TRACE_NAMES];
    trace->gone[region->ino % HM_TRACE_NAMES] = made;
    hm_unlock(HM_RANK_TRACE, &trace->lock);
    free(old);
}

/* Its name now, or when it went. False: it is not known any more. */
static bool name_of(struct hm_core *core, uint64_t ino, char name[HM_NAME_MAX + 1])
{
    HM_AUTO_PUT struct hm_region *region = hm_region_get(core, ino);
    const struct hm_trace_name *gone;
    if (region) {
        memcpy(name, region->record->name, HM_NAME_MAX);
        name[HM_NAME_MAX] = 0;
        return true;
    }
    HM_GUARD(HM_RANK_TRACE, &core->trace->lock);
    gone = core->trace->gone[ino % HM_TRACE_NAMES];
    if (!gone || gone->ino != ino)
        return false;
    strcpy(name, gone->name);
    return true;
}

/* The length of a UTF-8 sequence; 0: it is none. Overlong ones and surrogates are none; and control
 * characters, U+2028 and U+2029 are not taken for text, since terminals obey them and some readers
 * end a line there. */
static size_t utf8(const unsigned char *at)
{
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    size_t length = at[0] >= 0xf0 ? 4 : at[0] >= 0xe0 ? 3 : 2;
    uint32_t point = at[0] & (0x7f >> length);
    if (at[0] < 0xc2 || at[0] > 0xf4)
        return 0;
    for (size_t i = 1; i < length; i++) {
        if ((at[i] & 0xc0) != 0x80)
            return 0;
        point = point << 6 | (at[i] & 0x3f);
    }
    return point < least[length] || point > 0x10ffff || (point >= 0xd800 && point < 0xe000) ||
                   point < 0xa0 || point == 0x2028 || point == 0x2029
               ? 0
               : length;
}

/* As /proc/mounts writes names; what is not text, and a name that would stand for none, likewise.
 */
static char *put_name(char *out, const char *name)
{
    const unsigned char *at = (const unsigned char *)name;
    bool dash = !strcmp(name, "-");
    while (*at) {
        size_t length = *at < 0x80 ? *at > ' ' && *at != 0x7f && *at != '\\' && !dash : utf8(at);
        if (length) {
            memcpy(out, at, length);
            out += length;
            at += length;
        } else {
            out += sprintf(out, "\\%03o", *at++);
        }
    }
    return out;
}

static char *put_node(char *out, uint32_t node)
{
    if (node == HM_NOWHERE)
        return out + sprintf(out, " -");
    return node == HM_HOST ? out + sprintf(out, " host") : out + sprintf(out, " dev%u", node - 1);
}

static char *put_us(char *out, uint64_t ns)
{
    return out + sprintf(out, " %llu.%03u", (unsigned long long)(ns / 1000), (uint32_t)(ns % 1000));
}

static char *put_line(struct hm_core *core, char *out, const struct hm_trace_event *event)
{
    typedef unsigned long long number;
    char name[HM_NAME_MAX + 1];
    out += sprintf(out, "%llu.%09u", (number)(event->at_ns / 1000000000),
                   (uint32_t)(event->at_ns % 1000000000));
    out += event->node ? sprintf(out, " dev%u", event->node - 1) : sprintf(out, " cpu");
    out += sprintf(out, " %s ", kinds[event->kind]);
    if (name_of(core, event->ino, name))
        out = put_name(out, name);
    else
        out += sprintf(out, "?%llu", (number)event->ino);
    out += sprintf(out, " %llu+%u", (number)event->page, event->count);
    out = put_node(put_node(out, event->from), event->to);
    out += sprintf(out, " %s %llu", triggers[event->trigger], (number)event->copied * HM_PAGE_SIZE);
    out = put_us(put_us(out, event->took_ns), event->charged_ns);
    *out++ = '\n';
    return out;
}

int64_t hm_trace_text(struct hm_core *core, uint64_t *cursor, uint64_t until, char *out,
                      size_t size)
{
    struct hm_trace *trace = core->trace;
    struct hm_trace_event events[BATCH];
    char *at = out;
    uint32_t n = 1;
    while (n && (size_t)(at - out) + HM_TRACE_LINE <= size) {
        uint64_t fit = (size - (size_t)(at - out)) / HM_TRACE_LINE, oldest, end;
        hm_lock(HM_RANK_TRACE, &trace->lock);
        oldest = oldest_of(trace);
        end = trace->head < until ? trace->head : until;
        if (*cursor < oldest) {
            at += sprintf(at, "# lost %llu events\n", (unsigned long long)(oldest - *cursor));
            *cursor = oldest;
            fit = fit ? fit - 1 : 0;
        }
        fit = fit < BATCH ? fit : BATCH;
        for (n = 0; n < fit && *cursor < end; n++)
            events[n] = trace->ring[(*cursor)++ & (trace->size - 1)];
        hm_unlock(HM_RANK_TRACE, &trace->lock);
        for (uint32_t i = 0; i < n; i++)
            at = put_line(core, at, &events[i]);
    }
    return at - out;
}
