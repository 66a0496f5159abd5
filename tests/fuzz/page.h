/*
 * page: reads pages as a strict client does, fast enough for a fuzzer: written from the formats' descriptions, and with
 * nothing of the exporter's own. What is wrong with a page ends in fuzz_fail().
 */
#ifndef WIDEEP_FUZZ_PAGE_H
#define WIDEEP_FUZZ_PAGE_H

#include <stdbool.h>
#include <stddef.h>

/* A page in text format 0.0.4, or in OpenMetrics 1.0.0. Returns its number of samples. */
size_t page_check(const char *page, size_t size, bool openmetrics);

/* The same page as delimited protobuf messages: returns how many samples it would have as text. */
size_t page_check_protobuf(const char *page, size_t size);

/* A JSON document. */
void page_check_json(const char *text, size_t size);

#endif
