/*
 * point: wideep_shm.h with its test points made real, and with the calls by which it changes files intercepted.
 *
 * Include it before whatever includes wideep_shm.h. Each point of an armed writer is written down on a board in memory
 * that its parent shares, and at a chosen one the writer kills itself with SIGKILL. The clock is replaced by one that
 * ticks once a call, so that a run stores the same values as the next.
 *
 * While watched, a writer is also proved to have a point after each change that another process can see: mappings are
 * read-only, so that every store into them raises SIGSEGV, whose handler lets it through, and calls are noted. A change
 * that finds the one before it unmarked is a fault. Stores into a file without a name need only be marked before it
 * gets one.
 *
 * One thread.
 */
#ifndef CRASH_POINT_H
#define CRASH_POINT_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define POINTS_MAX 16384

/* One point of a run. */
struct point {
    const char *name; /* the header's */
    uint64_t *word;   /* where the store went, in the writer's memory; NULL: no store */
    uint64_t value;   /* of that word, at the point */
};

/* What a writer leaves behind. */
struct point_board {
    uint32_t count;   /* points passed since it was armed */
    uint32_t kill;    /* the one to die at, from 1; 0: none */
    uint32_t changes; /* seen by a watched one */
    struct point points[POINTS_MAX];
    unsigned char *base; /* the writer's mapping, when it was armed */
    uint64_t size;
};

/* What goes wrong for the writer, once. */
enum point_trouble {
    POINT_NO_TROUBLE,
    POINT_FULL, /* no room for the temporary */
    POINT_RACED /* the name appears just before it is linked: a copy of point_rival */
};

extern struct point_board *point_board; /* shared with children */
extern const char *point_rival;         /* path of a dead segment */

/* Returns 0 or a negative errno. */
int point_init(void);

/* From here on points count. `base` may be NULL. */
void point_arm(uint32_t kill, enum point_trouble trouble, unsigned char *base, uint64_t size);
void point_disarm(void);

/* Shares the system's clock instead of ticking. */
void point_clock_real(void);

/* Begins and ends watching; the end returns the number of changes seen, and exits with a message if one was not marked.
 * -ENOTSUP on processors that this cannot step. */
int point_watch(void);
uint32_t point_watched(void);

void point_here(const char *name, uint64_t *word);

int point_clock(clockid_t clock, struct timespec *ret);
int point_open(const char *path, int flags, ...);
int point_close(int fd);
int point_fcntl(int fd, int command, ...);
int point_fchmod(int fd, mode_t mode);
int point_fallocate(int fd, off_t offset, off_t length);
int point_link(const char *from, const char *to);
int point_rename(const char *from, const char *to);
int point_unlink(const char *path);
void *point_mmap(void *at, size_t size, int protection, int flags, int fd, off_t offset);
int point_munmap(void *at, size_t size);

#ifndef POINT_IMPLEMENTATION
#define clock_gettime(clock, ret)                 point_clock(clock, ret)
#define open(...)                                 point_open(__VA_ARGS__)
#define close(fd)                                 point_close(fd)
#define fcntl(...)                                point_fcntl(__VA_ARGS__)
#define fchmod(fd, mode)                          point_fchmod(fd, mode)
#define posix_fallocate(fd, offset, length)       point_fallocate(fd, offset, length)
#define link(from, to)                            point_link(from, to)
#define rename(from, to)                          point_rename(from, to)
#define unlink(path)                              point_unlink(path)
#define mmap(at, size, protection, flags, fd, of) point_mmap(at, size, protection, flags, fd, of)
#define munmap(at, size)                          point_munmap(at, size)
#define WIDEEP_I_POINT(name, word)                point_here(name, word)

#include "wideep_shm.h"

#undef clock_gettime
#undef open
#undef close
#undef fcntl
#undef fchmod
#undef posix_fallocate
#undef link
#undef rename
#undef unlink
#undef mmap
#undef munmap
#endif

#endif
