/*
 * protobuf: metric families as length-delimited messages, see src/prometheus.proto. Pure functions, any thread.
 */
#ifndef WIDEEP_PROTOBUF_H
#define WIDEEP_PROTOBUF_H

#include "layout.h"

/* Appends a family with those of its series that are not absent; nothing if all are. A counter keeps its _total. Uses
 * memory in proportion to one series beside the page. */
void protobuf_add_family(struct buffer *page, const struct layout *layout, const struct value *values,
                         const struct layout_family *family);

#endif
