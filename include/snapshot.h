/*
 * snapshot: the immutable result of one collection, published with RCU.
 *
 * The collector builds a snapshot, publishes it, and never touches its values again. HTTP threads take a
 * reference to the newest one inside a read-side critical section and keep it for as long as a response is
 * being sent, outside any critical section: sending can take minutes.
 *
 * A snapshot owns its rendered page. The page is rendered at most once, by the first caller of
 * snapshot_page(); concurrent callers wait for it.
 */
#ifndef WIDEEP_SNAPSHOT_H
#define WIDEEP_SNAPSHOT_H

#include "exposition.h"

struct snapshot;

/* Takes over a reference to `layout` and the array of its values. Returns NULL, with both still the caller's, when
 * there is no memory. Collector thread. */
struct snapshot *snapshot_new(struct layout *layout, struct value *values, uint64_t time_ns);

/* Makes it the newest; takes over the caller's reference. NULL withdraws the newest. Waits for a grace period, which is
 * as long as readers need to take a reference. Collector thread. */
void snapshot_publish(struct snapshot *snapshot);

/* The newest published snapshot with a reference for the caller, or NULL before the first collection.
 * Any thread, never blocks. */
struct snapshot *snapshot_acquire(void);

/* Gives the reference back; NULL is fine. Any thread. */
void snapshot_release(struct snapshot *snapshot);

/* The page as Prometheus text format 0.0.4. The bytes live as long as the caller's reference.
 * Returns 0, or -ENOMEM. Any thread; the first call per snapshot renders, which takes from tens of
 * microseconds to milliseconds. */
int snapshot_page(struct snapshot *snapshot, const char **ret_data, size_t *ret_size);

/* CLOCK_BOOTTIME nanoseconds at which the snapshot was taken. */
uint64_t snapshot_time_ns(const struct snapshot *snapshot);

/* Adds up how long pages took to render, since the start. Any thread. */
void snapshot_render_durations(struct self_durations *ret);

#endif
