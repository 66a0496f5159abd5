/*
 * accept: content negotiation as RFC 9110 has it (12.5.1, 12.5.3), over what we have. Pure functions of a header that
 * anyone may have written: any thread, no allocation, time bounded whatever the header says.
 *
 * An element that cannot be read is skipped, so is what follows the first 4096 characters or 64 elements. There is no
 * failure: a scrape with a page that it did not ask for is of more use than an error.
 */
#ifndef WIDEEP_ACCEPT_H
#define WIDEEP_ACCEPT_H

#include "page.h"

/* What is beyond it is not read. */
#define ACCEPT_LENGTH_MAX 4096

/* `accept`: value of the header, NULL when absent. The format of highest quality, each judged by the most specific
 * range that matches it. Of equals, one that is named goes before those that only a wildcard admits, then what is named
 * first; under a wildcard text goes before OpenMetrics before protobuf. Text when nothing is acceptable. */
enum page_format accept_format(const char *accept);

/* `accept`: value of the header Accept-Encoding, NULL when absent. gzip where it is accepted no less than identity. */
enum page_encoding accept_encoding(const char *accept);

#endif
