/*
 * calls: the writer's functions as the campaign calls them, with values that are a function of a salt alone, so that
 * one run stores what the next does and neighbouring records differ in every word.
 */
#ifndef CRASH_CALLS_H
#define CRASH_CALLS_H

#include "point.h"

#define CALLS_SALT 1000u /* of the call that is interrupted */

struct call {
    const char *name;
    uint32_t role;
    int (*prepare)(struct wideep_writer *w); /* NULL: nothing */
    int (*run)(struct wideep_writer **w);    /* wideep_close() frees it */
};

extern const struct call calls[];
extern const size_t calls_count;

/* A segment of two models, one of whose loads are added up by vectors and one whose are not. */
int calls_create(struct wideep_writer **ret, const char *directory, uint32_t role, uint32_t engine);

/* One of each record function. Returns 0 or the first error. */
int calls_everything(struct wideep_writer *w, uint32_t salt);

#endif
