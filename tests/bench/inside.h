/*
 * inside: the one place where the benchmark links against the exporter's own modules: a collection and its page,
 * without the threads and the server around them. One thread.
 */
#ifndef WIDEEP_BENCH_INSIDE_H
#define WIDEEP_BENCH_INSIDE_H

#include "page.h"

#include <stdbool.h>
#include <stdint.h>

struct inside;

/* Reads all segments of the directory; with a series per expert if `experts`. */
void inside_open(struct inside **ret, const char *directory, bool experts);
void inside_close(struct inside *inside);

/* A whole collection: scan, drain, join, read the values, publish. */
void inside_collect(struct inside *inside);

/* Scans the directory; then reads the EPLB rings to their ends and throws the passes away. Returns the records read. */
void inside_scan(struct inside *inside);
uint64_t inside_drain(struct inside *inside);

/* The newest snapshot's page: what the first scrape of it costs. Returns its size. */
size_t inside_page(enum page_encoding encoding);

/* A page of one family's samples alone, rendered anew. Returns the lines that are samples. */
size_t inside_render_family(const char *name);

#endif
