/*
 * layout: the texts of all series, for one generation of the aggregate.
 *
 * A layout holds each series' text up to its value ("name{labels} "), in the order of family_walk(). It is immutable
 * and reference counted: the collector makes a new one when the set of series changes, snapshots share it. What a
 * snapshot adds is one value for each series; one that is VALUE_ABSENT is not on the page.
 *
 * Neighbours mostly differ in the value of their last label alone, so texts are kept by runs: the head that its series
 * begin with, once, and behind it the tail of each. A page's prefixes then fit a cache, and the page itself is the only
 * large thing that rendering touches.
 *
 *     texts   …│tokens{engine="0",layer="7",expert_id="│0"} │1"} │2"} │ … │31"} │tokens{engine="0",layer="8",…
 *              └─ head of a run, to its last ="         └─ tails, one for each of its series ┘
 *
 * The limit on series is one on what a page shows, so it is applied where values are read: which series are absent is
 * not known before. The layout itself is bounded too, since what it describes comes from shared memory.
 */
#ifndef WIDEEP_LAYOUT_H
#define WIDEEP_LAYOUT_H

#include "buffer.h"
#include "family.h"

/* So many series beyond the limit are laid out, for those that are absent. Each takes up to 100 bytes. */
#define LAYOUT_ABSENT_MAX 200000

/* Bytes behind the last text that may be read. */
#define LAYOUT_SLACK 16

struct layout_run {
    size_t text;        /* offset of the head in `texts` */
    size_t first;       /* index of its first series, of the layout's */
    uint32_t count;     /* series */
    uint32_t head_size; /* bytes */
    size_t tails_size;
};

struct layout_family {
    const struct family *family;
    size_t first, count; /* series */
    size_t first_run, run_count;
};

/* Fields are for reading by those who make pages. */
struct layout {
    int references;
    uint64_t limit;
    struct layout_run *runs;
    size_t run_count, run_capacity;
    uint16_t *tail_sizes; /* [series_count] bytes */
    size_t series_count, series_capacity;
    struct layout_family *families; /* those with a series, in the order of the table */
    size_t family_count;
    size_t *by_name; /* indices into `families`, in the order of the names */
    struct buffer texts;
};

/* Lays out all series of the aggregate; with the label wideep_instance on those that come from segments when
 * `instance_label`. `limit`: most series of a page, the exporter's own always being there. Returns 0 or -ENOMEM.
 * Collector thread. */
int layout_new(struct layout **ret, const struct family_sources *sources, uint64_t limit, bool instance_label);

/* Reference counting, any thread. NULL is fine. */
struct layout *layout_ref(struct layout *layout);
void layout_unref(struct layout *layout);

size_t layout_series(const struct layout *layout);

/* Reads the value of every series into `ret`, which has room for layout_series(). Series that would go over the limit,
 * whole histograms at a time, become absent; those behind them that fit are kept. Returns how many were dropped. The
 * aggregate must be of the same generation as the layout. Collector thread. */
uint64_t layout_read_values(const struct layout *layout, const struct family_sources *sources, struct value *ret);

/* Finds a family: by its name; a histogram also by the names of its samples; a counter also by its name in OpenMetrics,
 * without _total. Returns its index in `families`, or -ENOENT. Any thread; logarithmic. */
int layout_find(const struct layout *layout, const char *name);

#endif
