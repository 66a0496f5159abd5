/*
 * observe: what another process makes of a segment whose writer died, and whether that is allowed.
 *
 * All functions that check print what is wrong and count it.
 */
#ifndef CRASH_OBSERVE_H
#define CRASH_OBSERVE_H

#include "point.h"

#include "ring.h"
#include "segment.h"

extern unsigned observe_faults;

/* What the faults that follow are about: a run, and the point at which it ended. */
void observe_about(const char *format, ...) __attribute__((format(printf, 1, 2)));
bool observe_check(bool good, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* A private copy of a segment, which reads as one. */
struct image {
    unsigned char *bytes; /* NULL: none */
    uint64_t size;
    struct wideep_view view;
};

/* -ENOENT: nobody has the name; -EBADMSG: it is no segment. */
int image_take(struct image *ret, const char *path);
void image_of(struct image *ret, const unsigned char *bytes, uint64_t size);
void image_free(struct image *image);

static inline const uint64_t *image_words(const struct image *image)
{
    return (const uint64_t *)(const void *)image->bytes;
}

/* Does a hold every total of b (NULL: 0), each `plus` (NULL: 0) more? */
bool image_totals_equal(const struct image *a, const struct image *b, const struct image *plus);

/* The rules of order in the header's prose, which hold between any two stores of a call that leads from one image to
 * the other. */
void observe_order(const struct image *before, const struct image *now, const struct image *after);

/* A slot that reads as record n holds that record, whole; below head, the window of whole records is whole. */
void observe_records(const struct image *before, const struct image *now, const struct image *after);

/* The exporter's own reader over a directory. */
struct observer {
    struct segment_set *set;
    struct ring_drain *drain;
    struct ring_counts counts;
    uint64_t instance_id;               /* of the segment whose passes came last */
    uint64_t newest[WIDEEP_MAX_MODELS]; /* its newest pass + 1 */
};

void observer_start(struct observer *ret, const char *directory);
void observer_stop(struct observer *observer);

/* Scans and drains; checks that it does so in a bounded time. */
void observer_collect(struct observer *observer);

#endif
