/*
 * nearest: which known name a misspelt one was meant to be. Pure functions, any thread, no allocation.
 *
 *     struct nearest nearest = nearest_to("shm.dri");
 *     for each known name: nearest_offer(&nearest, name);
 *     nearest.name is "shm.dir", or NULL when none is near enough to be worth saying
 */
#ifndef WIDEEP_NEAREST_H
#define WIDEEP_NEAREST_H

/* Longer names are near to nothing. */
#define NEAREST_LENGTH_MAX 64

struct nearest {
    const char *given;
    const char *name;  /* the nearest of those offered, or NULL */
    unsigned distance; /* what is not below this is no slip of the pen */
};

/* The structure refers to `given`, and later to the names offered. */
struct nearest nearest_to(const char *given);

void nearest_offer(struct nearest *nearest, const char *name);

#endif
