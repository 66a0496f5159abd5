/*
 * page: in what shapes a snapshot goes over the wire. Facts only: who chooses is accept.h, who renders exposition.h,
 * who keeps the bytes snapshot.h. Any thread.
 */
#ifndef WIDEEP_PAGE_H
#define WIDEEP_PAGE_H

#include "buffer.h"

/* The last of them is not rendered by itself: it is OpenMetrics under the version that older Prometheus servers ask
 * for, with the same bytes. */
enum page_format { PAGE_TEXT, PAGE_OPENMETRICS, PAGE_PROTOBUF, PAGE_OPENMETRICS_0_0_1, PAGE_FORMATS };

/* Formats with bytes of their own come first. */
#define PAGE_RENDERINGS 3

enum page_encoding { PAGE_IDENTITY, PAGE_GZIP, PAGE_ENCODINGS };

/* Names of the renderings, for the label `format`. */
extern const char *const page_rendering_names[PAGE_RENDERINGS];

/* The one whose bytes the format has: itself, or PAGE_OPENMETRICS for its older version. */
enum page_format page_rendering(enum page_format format);

/* For the header of that name; static. */
const char *page_content_type(enum page_format format);

/* Value of the header Content-Encoding; NULL for PAGE_IDENTITY. */
const char *page_content_encoding(enum page_encoding encoding);

/* Puts the compressed bytes into an empty buffer. Returns 0 or -ENOMEM. */
int page_gzip(struct buffer *ret, const char *data, size_t size);

#endif
