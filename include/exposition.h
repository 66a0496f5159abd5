/*
 * exposition: label texts and the page in Prometheus' text format 0.0.4.
 *
 * A layout holds the text of every series up to its value ("name{labels} ") for one generation of the aggregate. It is
 * immutable and reference counted: the collector makes a new one when the set of series changes, snapshots share it.
 * A page is the layout's texts with a snapshot's values between them, families without a served series left out.
 *
 * Format: https://prometheus.io/docs/instrumenting/exposition_formats/
 */
#ifndef WIDEEP_EXPOSITION_H
#define WIDEEP_EXPOSITION_H

#include "family.h"

#include <stddef.h>

struct layout;

/* Lays out all series of the aggregate, at most `limit`; with the label wideep_instance on those that come from
 * segments when `instance_label`. Returns 0 or -ENOMEM. Collector thread. */
int layout_new(struct layout **ret, const struct family_sources *sources, uint64_t limit, bool instance_label);

/* Reference counting, any thread. NULL is fine. */
struct layout *layout_ref(struct layout *layout);
void layout_unref(struct layout *layout);

size_t layout_series(const struct layout *layout);
uint64_t layout_dropped(const struct layout *layout);

/* Reads the value of every series into `ret`, which has room for layout_series(). The aggregate must be of the same
 * generation as the layout. Collector thread. */
void layout_read_values(const struct layout *layout, const struct family_sources *sources, struct value *ret);

/* Renders a page into fresh memory. Returns 0 or -ENOMEM. Any thread. */
int exposition_render(const struct layout *layout, const struct value *values, char **ret_page, size_t *ret_size);

#endif
