/*
 * exposition: pages in Prometheus' text format 0.0.4, in OpenMetrics 1.0.0 and in protobuf.
 *
 * A page is a layout's texts with a snapshot's values between them, families without a served series left out. The
 * series and their values are the same in all formats, and their lines the same in both text formats.
 *
 * Formats: https://prometheus.io/docs/instrumenting/exposition_formats/
 *          https://github.com/prometheus/OpenMetrics/blob/v1.0.0/specification/OpenMetrics.md
 */
#ifndef WIDEEP_EXPOSITION_H
#define WIDEEP_EXPOSITION_H

#include "layout.h"
#include "page.h"

/* Where the lines of a run are in a page; the family's header is in front of them. */
struct exposition_span {
    size_t begin, end;
};

/* An earlier page of the same layout in one of the two text formats, whose lines are the same, and what it was made
 * of. Borrowed. */
struct exposition_earlier {
    const char *page;
    const struct exposition_span *spans; /* [runs of the layout] */
    const struct value *values;
};

/* Appends the page of all families. A run whose values have not changed is copied from `earlier` (NULL: none).
 * `ret_spans`: as in struct exposition_earlier, for the next time; not written for PAGE_PROTOBUF, which copies nothing
 * either. Returns 0, or -ENOMEM with the page incomplete. Any thread. */
int exposition_render(struct buffer *page, const struct layout *layout, const struct value *values,
                      enum page_format format, const struct exposition_earlier *earlier,
                      struct exposition_span *ret_spans);

/* The same of those families alone that `wanted` has: [families of the layout]. Costs what these cost. */
int exposition_render_some(struct buffer *page, const struct layout *layout, const struct value *values,
                           enum page_format format, const bool *wanted);

#endif
