#include "collector.h"

#include "guard.h"
#include "http.h"
#include "log.h"
#include "process.h"
#include "snapshot.h"
#include "text.h"

#include <pthread.h>

/* How old process_* may be. */
#define PROCESS_NS UINT64_C(1000000000)

/* Rings are not drained more often than this, however fast they fill. */
#define DRAIN_MIN_NS UINT64_C(1000000)

/* Turns without an engine. */
#define IDLE_NS UINT64_C(1000000000)

struct collector {
    struct collector_config config;
    struct segment_set *set;
    struct aggregate *aggregate;
    struct advisor *advisor; /* NULL: off */
    struct layout *layout;
    uint64_t layout_generation;
    uint64_t warned_generation; /* of the layout whose dropped series were logged */
    struct self_stats self;
    uint64_t process_ns;  /* when its figures of the process were gathered; 0: never */
    bool others_reported; /* until none of another instance is left */
    uint64_t turns;       /* atomic */
    pthread_t thread;
    pthread_mutex_t lock; /* guards what follows */
    pthread_cond_t wake;
    bool stop;
    struct collector_debug debug;
};

/* The kernel makes texts and lists of these for us, which costs as much as the rest of a collection. */
static void gather_process(struct collector *collector, uint64_t now_ns)
{
    struct self_stats *self = &collector->self;
    struct process_stats process;

    if (collector->process_ns != 0 && now_ns - collector->process_ns < PROCESS_NS)
        return;
    collector->process_ns = now_ns;
    process_stats(&process);
    self->cpu_ns = process.cpu_ns;
    self->resident_bytes = process.resident_bytes;
    self->virtual_bytes = process.virtual_bytes;
    self->virtual_max_bytes = process.virtual_max_bytes;
    self->received_bytes = process.received_bytes;
    self->transmitted_bytes = process.transmitted_bytes;
    self->open_fds = process.open_fds;
    self->max_fds = process.max_fds;
    self->start_time_seconds = process.start_time_seconds;
}

static void gather_self(struct collector *collector, const struct collector_debug *debug, uint64_t now_ns)
{
    struct self_stats *self = &collector->self;

    gather_process(collector, now_ns);
    http_stats(&self->http);
    snapshot_durations(self->render, &self->compress);
    segment_set_count(collector->set, self->segments);
    uint64_t realtime_ms = wideep_i_clock_ns(CLOCK_REALTIME) / 1000000;
    self->snapshot_unix_ms = realtime_ms;
    self->realtime_offset_ms = (int64_t)realtime_ms - (int64_t)(wideep_i_clock_ns(CLOCK_BOOTTIME) / 1000000);
    self->debug_until_unix_ms =
        debug->on ? (uint64_t)((int64_t)(debug->until_ns / 1000000) + self->realtime_offset_ms) : 0;
}

static int renew_layout(struct collector *collector, const struct family_sources *sources)
{
    struct layout *layout;

    if (collector->layout && collector->layout_generation == collector->aggregate->generation)
        return 0;
    int error = layout_new(&layout, sources, collector->config.series_limit, !collector->config.segments.instance);
    if (error)
        return error;
    layout_unref(collector->layout);
    collector->layout = layout;
    collector->layout_generation = collector->aggregate->generation;
    return 0;
}

/* Known only when the values have been read, so it is served with the next collection. */
static void note_dropped(struct collector *collector, uint64_t dropped)
{
    /* Gauges come and go; one line per set of series is enough. */
    if (dropped > 0 && collector->warned_generation != collector->layout_generation) {
        log_warn("too many series, the rest is not served", "advice", "raise --limit.series", NULL);
        collector->warned_generation = collector->layout_generation;
    }
    collector->self.series_dropped = dropped;
}

static int publish(struct collector *collector, const struct collector_debug *debug, uint64_t now_ns)
{
    const struct family_sources sources = {collector->aggregate, &collector->self};

    gather_self(collector, debug, now_ns);
    int error = renew_layout(collector, &sources);
    if (error)
        return error;
    struct value *values;
    struct snapshot *snapshot = snapshot_new(collector->layout, now_ns, &values);
    if (!snapshot)
        return -ENOMEM;
    note_dropped(collector, layout_read_values(collector->layout, &sources, values));
    snapshot_publish(snapshot);
    return 0;
}

/* Whoever named the instance for the writers and not for the exporter, or the other way round, sees an empty page. */
static void report_others(struct collector *collector)
{
    char count[TEXT_NUMBER_MAX];
    const struct segment_set *set = collector->set;

    if (set->ignored == 0)
        collector->others_reported = false;
    if (set->ignored == 0 || set->count > 0 || collector->others_reported)
        return;
    collector->others_reported = true;
    (void)snprintf(count, sizeof count, "%u", set->ignored);
    log_warn("segments of other instances are ignored, and there are no others", "instance", set->config.instance,
             "count", count, "advice", "give --shm.instance the engine's WIDEEP_INSTANCE, or * for all", NULL);
}

/* The wish as it stands now; one that has run out is taken back. */
static struct collector_debug current_debug(struct collector *collector, uint64_t now_ns)
{
    (void)pthread_mutex_lock(&collector->lock);
    bool ended = collector->debug.on && now_ns >= collector->debug.until_ns;
    if (ended)
        collector->debug.on = false;
    struct collector_debug debug = collector->debug;
    (void)pthread_mutex_unlock(&collector->lock);
    if (ended)
        log_info("per-expert series ended", NULL, NULL);
    return debug;
}

static int copy_live(struct collector *collector)
{
    return collector->config.lb
               ? lb_update(collector->config.lb, collector->aggregate, wideep_i_clock_ns(CLOCK_BOOTTIME))
               : 0;
}

/* Returns 0, or why it is incomplete. */
static int collect(struct collector *collector)
{
    const struct family_sources sources = {collector->aggregate, &collector->self};
    uint64_t begin_ns = wideep_i_clock_ns(CLOCK_MONOTONIC), now_ns = wideep_i_clock_ns(CLOCK_BOOTTIME);
    struct collector_debug debug = current_debug(collector, now_ns);

    if (collector->config.state)
        state_begin_collection(collector->config.state);
    segment_set_scan(collector->set, now_ns);
    report_others(collector);
    if (debug.on)
        aggregate_select_layers(collector->aggregate, &debug.layers);
    int error = aggregate_collect(collector->aggregate, debug.on, now_ns);
    if (collector->advisor && !error)
        error = advisor_turn(collector->advisor, collector->aggregate, now_ns);
    int failed = publish(collector, &debug, now_ns);
    /* The board is a load balancer's only news: it does not depend on the page. */
    int stale = copy_live(collector);
    self_duration_observe(&collector->self.collect, wideep_i_clock_ns(CLOCK_MONOTONIC) - begin_ns);
    if (collector->config.state)
        state_end_collection(collector->config.state, &sources, collector->config.lb);
    failed = failed ? failed : stale;
    error = error ? error : failed;
    if (error)
        log_error("a collection is incomplete", "error", strerror(-error), NULL);
    return error;
}

/* Waits for a point of CLOCK_MONOTONIC, or the end. Returns false at the end. */
static bool wait_until(struct collector *collector, uint64_t time_ns)
{
    const struct timespec until = {(time_t)(time_ns / 1000000000u), (long)(time_ns % 1000000000u)};

    (void)pthread_mutex_lock(&collector->lock);
    while (!collector->stop && pthread_cond_timedwait(&collector->wake, &collector->lock, &until) != ETIMEDOUT)
        ;
    bool stop = collector->stop;
    (void)pthread_mutex_unlock(&collector->lock);
    return !stop;
}

/* One period after `last_ns`; after a suspension, or work that took longer than the period, on from now rather than
 * catch up. */
static uint64_t next_turn(uint64_t last_ns, uint64_t period_ns)
{
    uint64_t now_ns = wideep_i_clock_ns(CLOCK_MONOTONIC);

    return last_ns + period_ns > now_ns ? last_ns + period_ns : now_ns;
}

/* Rings that would overrun before the next collection are drained in between. */
static void drain(struct collector *collector)
{
    const struct family_sources sources = {collector->aggregate, &collector->self};

    if (collector->config.state)
        state_begin_collection(collector->config.state);
    aggregate_drain(collector->aggregate, wideep_i_clock_ns(CLOCK_BOOTTIME));
    if (collector->config.state)
        state_end_collection(collector->config.state, &sources, collector->config.lb);
}

/* When rings have to be drained at the latest, with as much time again to spare: they may fill faster than so far. Half
 * of what is left comes to an end only if it is not halved anew at each turn: until rings are drained, the earliest
 * answer holds. */
static uint64_t drain_due(struct collector *collector)
{
    uint64_t now_ns = wideep_i_clock_ns(CLOCK_MONOTONIC), left_ns = aggregate_left_ns(collector->aggregate, now_ns);

    return now_ns + (left_ns / 2 > DRAIN_MIN_NS ? left_ns / 2 : DRAIN_MIN_NS);
}

/* Without engines there is nothing to copy for load balancers, but the board, and the turns, must not grow old. */
static uint64_t live_due(const struct collector *collector, uint64_t last_ns)
{
    return next_turn(last_ns, collector->aggregate->engines ? COLLECTOR_LIVE_NS : IDLE_NS);
}

static uint64_t earliest(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static void *collector_main(void *argument)
{
    struct collector *collector = argument;
    uint64_t now_ns = wideep_i_clock_ns(CLOCK_MONOTONIC);
    uint64_t collect_ns = next_turn(now_ns, collector->config.interval_ns), live_ns = live_due(collector, now_ns);
    uint64_t drain_ns = drain_due(collector);

    while (wait_until(collector, earliest(collect_ns, earliest(live_ns, drain_ns)))) {
        int error = 0;
        bool drained = true;
        now_ns = wideep_i_clock_ns(CLOCK_MONOTONIC);
        if (now_ns >= collect_ns) {
            error = collect(collector);
            collect_ns = next_turn(collect_ns, collector->config.interval_ns);
        } else if (now_ns >= drain_ns) {
            drain(collector);
        } else {
            drained = false;
        }
        if (now_ns >= live_ns) { /* without memory the board stays as it is; handlers see its age */
            error = error ? error : copy_live(collector);
            live_ns = live_due(collector, live_ns);
        }
        drain_ns = drained ? drain_due(collector) : earliest(drain_ns, drain_due(collector));
        if (!error)
            (void)__atomic_add_fetch(&collector->turns, 1, __ATOMIC_RELAXED);
    }
    return NULL;
}

void collector_set_debug(struct collector *collector, const struct collector_debug *debug)
{
    (void)pthread_mutex_lock(&collector->lock);
    collector->debug = *debug;
    (void)pthread_mutex_unlock(&collector->lock);
}

void collector_get_debug(struct collector *collector, struct collector_debug *ret)
{
    uint64_t now_ns = wideep_i_clock_ns(CLOCK_BOOTTIME);

    (void)pthread_mutex_lock(&collector->lock);
    *ret = collector->debug;
    (void)pthread_mutex_unlock(&collector->lock);
    ret->on = ret->on && now_ns < ret->until_ns;
}

uint64_t collector_turns(const struct collector *collector)
{
    return __atomic_load_n(&collector->turns, __ATOMIC_RELAXED);
}

static void collector_free(struct collector *collector)
{
    advisor_stop(collector->advisor);
    aggregate_free(collector->aggregate);
    segment_set_free(collector->set);
    layout_unref(collector->layout);
    (void)pthread_cond_destroy(&collector->wake);
    (void)pthread_mutex_destroy(&collector->lock);
    free(collector);
}

int collector_start(struct collector **ret, const struct collector_config *config)
{
    pthread_condattr_t attributes;
    uint64_t now_ns = wideep_i_clock_ns(CLOCK_BOOTTIME);
    struct collector *collector = calloc(1, sizeof *collector);

    if (!collector)
        return -ENOMEM;
    collector->config = *config;
    collector->self.version = config->version;
    collector->self.commit = config->commit;
    collector->self.interval_ns = config->interval_ns;
    collector->self.admin = config->admin;
    collector->debug = (struct collector_debug){
        .on = config->debug_ns != 0, .until_ns = now_ns + config->debug_ns, .who = "--debug.per-expert"};
    memset(&collector->debug.layers, 0xff, sizeof collector->debug.layers);
    (void)pthread_mutex_init(&collector->lock, NULL);
    (void)pthread_condattr_init(&attributes);
    (void)pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    (void)pthread_cond_init(&collector->wake, &attributes);
    (void)pthread_condattr_destroy(&attributes);
    int error = guard_install();
    if (!error)
        error = segment_set_new(&collector->set, &config->segments, now_ns);
    if (!error)
        error = aggregate_new(&collector->aggregate, &config->aggregate, collector->set);
    if (!error && config->advisor_ns != 0)
        error = advisor_start(&collector->advisor, config->advisor_ns);
    if (!error) {
        (void)collect(collector); /* what is incomplete is collected again */
        if (collector->set->count == 0 && collector->set->directory_error == 0)
            log_info("waiting for segments", "directory", config->segments.directory, "instance",
                     config->segments.instance ? config->segments.instance : "*", NULL);
        error = -pthread_create(&collector->thread, NULL, collector_main, collector);
        if (!error)
            (void)pthread_setname_np(collector->thread, "collector"); /* for ps and debuggers */
    }
    if (error) {
        snapshot_publish(NULL);
        collector_free(collector);
        return error;
    }
    *ret = collector;
    return 0;
}

void collector_stop(struct collector *collector)
{
    if (!collector)
        return;
    (void)pthread_mutex_lock(&collector->lock);
    collector->stop = true;
    (void)pthread_cond_signal(&collector->wake);
    (void)pthread_mutex_unlock(&collector->lock);
    (void)pthread_join(collector->thread, NULL);
    snapshot_publish(NULL);
    collector_free(collector);
}
