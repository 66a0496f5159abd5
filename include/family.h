/*
 * family: the table of metric families. Rendering, documentation and tests are driven by it: adding a metric is adding
 * a row in family.c.
 *
 * family_walk() visits every series in the order of the table, row by row. The order is a function of the aggregate's
 * generation, so label texts can be made once per generation and values alone be read at each collection.
 */
#ifndef WIDEEP_FAMILY_H
#define WIDEEP_FAMILY_H

#include "aggregate.h"
#include "page.h"

#define FAMILY_BUCKETS_MAX 16

enum value_kind {
    VALUE_ABSENT,  /* the series is not served now */
    VALUE_U64,     /* a count */
    VALUE_F64,     /* bits of a double */
    VALUE_SECONDS, /* nanoseconds, served as seconds */
};

struct value {
    uint64_t bits;
    enum value_kind kind;
};

enum family_type { FAMILY_GAUGE, FAMILY_COUNTER, FAMILY_HISTOGRAM };

/* What a family has one series (or histogram) for, and so its labels. */
enum family_scope {
    SCOPE_EXPORTER,     /* once */
    SCOPE_ENGINE,       /* model_name, engine: DBO, of engines with ranks */
    SCOPE_ENGINE_RATE,  /* model_name, engine: of all engines */
    SCOPE_ENGINE_MODEL, /* model_name, engine: models with MoE layers */
    SCOPE_ENGINE_LAYER, /* model_name, engine, layer */
    SCOPE_SOURCE,       /* model_name, engine, frontend */
    SCOPE_RANK,         /* engine, rank */
    SCOPE_GROUP,        /* model_name, group */
    SCOPE_GROUP_LAYER,  /* model_name, group, layer */
    SCOPE_GROUP_RANK,   /* model_name, group, layer, ep_rank */
    SCOPE_EXPERT,       /* model_name, engine, layer, expert_id */
};

struct family_label {
    const char *name;
    const char *const *values;
    unsigned count;
};

/* Where in the walk a series is. What the scope does not have is NULL or 0. */
struct family_at {
    const struct engine *engine;
    const struct engine_model *model;
    const struct engine_source *source;
    const struct group *group;
    const struct segment *segment;
    uint32_t layer, ep_rank, expert;
    uint32_t i, j; /* indices into the family's own labels */
};

/* Upper bounds in seconds of the exporter's own duration histograms. */
#define SELF_DURATION_BUCKETS 11
extern const uint64_t self_duration_bounds_ns[SELF_DURATION_BUCKETS - 1];

struct self_durations {
    uint64_t bucket[SELF_DURATION_BUCKETS]; /* not cumulative */
    uint64_t sum_ns;
};

void self_duration_observe(struct self_durations *durations, uint64_t duration_ns);

/* Label values of the HTTP server's own metrics; the last of each stands for all that is not listed. */
#define SELF_CODES    14
#define SELF_HANDLERS 9
extern const char *const self_codes[SELF_CODES];
extern const char *const self_handlers[SELF_HANDLERS];

/* Why a connection was cut off; the index into self_cuts. */
enum http_cut { HTTP_CUT_SENDER, HTTP_CUT_READER, HTTP_CUT_IDLE, HTTP_CUT_EVICTED, HTTP_CUTS };
extern const char *const self_cuts[HTTP_CUTS];

/* What the HTTP server counts, since the start of the process. */
struct http_stats {
    uint64_t requests[SELF_HANDLERS][SELF_CODES];
    uint64_t response_bytes;     /* of bodies, before TLS */
    uint64_t in_flight;          /* requests being answered */
    uint64_t connections;        /* open now */
    uint64_t accepted;           /* connections */
    uint64_t cut[HTTP_CUTS];     /* connections */
    uint64_t out_of_descriptors; /* times that a connection could not be accepted for want of them */
    uint64_t reload_failures;    /* web configurations that could not be used */
    bool reload_successful;      /* the newest web configuration is in use */
};

/* What the exporter knows of itself, gathered by the collector before each walk. */

struct self_stats {
    const char *version, *commit;
    uint64_t snapshot_unix_ms;
    int64_t realtime_offset_ms;   /* CLOCK_REALTIME - CLOCK_BOOTTIME */
    uint64_t interval_ns;         /* of collections */
    bool admin;                   /* the admin API is on */
    uint64_t debug_until_unix_ms; /* per-expert loads are served until then; 0: they are not */
    uint64_t series_dropped;
    uint32_t segments[SEGMENT_STATES][SEGMENT_REASONS];
    struct self_durations collect, render[PAGE_RENDERINGS], compress;
    struct http_stats http;
    uint64_t cpu_ns, resident_bytes, virtual_bytes, virtual_max_bytes, open_fds, max_fds;
    uint64_t received_bytes, transmitted_bytes;
    double start_time_seconds;
};

struct family_sources {
    const struct aggregate *aggregate;
    const struct self_stats *self;
};

struct family_histogram {
    uint64_t bucket[FAMILY_BUCKETS_MAX]; /* not cumulative, as many as the family has bounds and one more */
    struct value sum;
};

/* A label whose value only the running exporter knows. */
#define FAMILY_FACTS_MAX 2

struct family_fact {
    const char *name;
    const char *(*get)(const struct family_sources *sources);
};

struct family {
    const char *name; /* a counter's ends in _total */
    enum family_type type;
    enum family_scope scope;
    const char *help; /* one line, no quote, backslash or newline */
    struct family_label labels[2];
    struct family_fact facts[FAMILY_FACTS_MAX]; /* behind the labels, in the one row of the family */
    struct value (*get)(const struct family_sources *sources, const struct family_at *at);
    /* Histograms: false when it is not served now. */
    bool (*histogram)(const struct family_sources *sources, const struct family_at *at, struct family_histogram *ret);
    const char *const *bounds; /* histograms: the le values, without +Inf */
    unsigned bound_count;
};

extern const struct family families[];
extern const size_t family_count;

/* `count` series, or histograms, that differ in the one index alone that `index` points to, in `at`: the visitor sets
 * it from 0 to count - 1. */
typedef void family_visit(void *context, const struct family *family, struct family_at *at, uint32_t *index,
                          uint32_t count);

void family_walk(const struct family_sources *sources, family_visit *visit, void *context);

/* "gauge", "counter", "histogram" */
const char *family_type_name(enum family_type type);

#endif
