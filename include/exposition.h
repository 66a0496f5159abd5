/*
 * exposition: pages in Prometheus' text format 0.0.4, in OpenMetrics 1.0.0 and in protobuf.
 *
 * A page is a layout's texts with a snapshot's values between them, families without a served series left out. The
 * series and their values are the same in all formats.
 *
 * Formats: https://prometheus.io/docs/instrumenting/exposition_formats/
 *          https://github.com/prometheus/OpenMetrics/blob/v1.0.0/specification/OpenMetrics.md
 */
#ifndef WIDEEP_EXPOSITION_H
#define WIDEEP_EXPOSITION_H

#include "layout.h"
#include "page.h"

/* Renders a page into fresh memory, which is never NULL. `wanted`: which of the layout's families, NULL for all. Costs
 * what the wanted families cost. Returns 0 or -ENOMEM. Any thread. */
int exposition_render(const struct layout *layout, const struct value *values, enum page_format format,
                      const bool *wanted, char **ret_page, size_t *ret_size);

#endif
