/*
 * snapshot: the immutable result of one collection, published with RCU.
 *
 * The collector builds a snapshot, publishes it, and never touches its values again. HTTP threads take a
 * reference to the newest one inside a read-side critical section and keep it for as long as a response is
 * being sent, outside any critical section: sending can take minutes.
 *
 * A snapshot owns its pages. Each is rendered, and compressed, at most once, by the first who asks for that format and
 * encoding; concurrent callers wait for it.
 *
 * What a snapshot that has gone leaves behind is used again: its memory for the next one, its buffers for other pages,
 * and the newest such text page as what unchanged lines are copied from. So a collection allocates nothing as long as
 * the layout stays the same. Nothing is kept of another layout than that of the newest snapshot.
 *
 * Slow readers hold old snapshots, so the number of those with pages is bounded: snapshot_acquire_page() gives each new
 * snapshot one of SNAPSHOT_GENERATIONS_MAX places, which it keeps until its last reference goes. While none is free, it
 * gives the newest snapshot that has one. A page that is kept to copy from has one of these places.
 */
#ifndef WIDEEP_SNAPSHOT_H
#define WIDEEP_SNAPSHOT_H

#include "exposition.h"

#define SNAPSHOT_GENERATIONS_MAX 4

struct snapshot;

/* A snapshot of a layout, with a reference for the caller. `ret_values`: [layout_series()], to be filled before it is
 * published. NULL when there is no memory. Collector thread. */
struct snapshot *snapshot_new(struct layout *layout, uint64_t time_ns, struct value **ret_values);

/* Makes it the newest; takes over the caller's reference. NULL withdraws the newest and keeps nothing. Waits for a
 * grace period, which is as long as readers need to take a reference. Collector thread. */
void snapshot_publish(struct snapshot *snapshot);

/* The newest published snapshot with a reference for the caller, or NULL before the first collection.
 * Any thread, never blocks. */
struct snapshot *snapshot_acquire(void);

/* The same for a caller that will ask for snapshot_page(): an older one while slow readers hold as many generations as
 * may have pages. Any thread; waits for others in here only. */
struct snapshot *snapshot_acquire_page(void);

/* Gives the reference back; NULL is fine. Any thread. */
void snapshot_release(struct snapshot *snapshot);

/* The whole page. The bytes live as long as the caller's reference. Returns 0, or -ENOMEM. Any thread; the first call
 * per format and encoding takes from tens of microseconds to tens of milliseconds. */
int snapshot_page(struct snapshot *snapshot, enum page_format format, enum page_encoding encoding,
                  const char **ret_data, size_t *ret_size);

/* A page of the named families alone, as layout_find() knows them, in fresh memory of the caller's. Names that are not
 * there, or there twice, are fine. Costs what is asked for. Returns 0, -ENOMEM, or -E2BIG when it would be so large
 * that it is a matter for snapshot_large_page(). Any thread. */
int snapshot_small_page(struct snapshot *snapshot, enum page_format format, enum page_encoding encoding,
                        const char *const *names, unsigned count, char **ret, size_t *ret_size);

/* The same, made once for all who ask this snapshot for the same names; the bytes live as long as the caller's
 * reference, which is one of snapshot_acquire_page(). Returns 0, -ENOMEM, or -EBUSY when too many others have asked for
 * pages of other names. Any thread. */
int snapshot_large_page(struct snapshot *snapshot, enum page_format format, enum page_encoding encoding,
                        const char *const *names, unsigned count, const char **ret_data, size_t *ret_size);

/* CLOCK_BOOTTIME nanoseconds at which the snapshot was taken. */
uint64_t snapshot_time_ns(const struct snapshot *snapshot);

/* How long whole pages took to render, by rendering, and to compress, since the start. Any thread. */
void snapshot_durations(struct self_durations ret_render[PAGE_RENDERINGS], struct self_durations *ret_compress);

#endif
