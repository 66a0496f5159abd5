/*
 * dump: what wideep-dump shows of one segment file, loaded once into private memory.
 *
 * Nothing is mapped: a file that shrinks or changes while it is read costs words of the copy, never a SIGBUS.
 * A copy cannot use the rings' sequence locks, so each record is read from the file again, between two looks
 * at its seq.
 */
#ifndef WIDEEP_DUMP_H
#define WIDEEP_DUMP_H

#include "wideep_shm.h"

#include <stdbool.h>
#include <stdio.h>

#define DUMP_RECORDS_MAX 1000000u

enum dump_state { DUMP_ALIVE, DUMP_CLOSED, DUMP_DEAD };

struct dump_config {
    const char *directory; /* NULL: the files named */
    const char *instance;  /* "*": all */
    uint64_t records;
    bool json;
};

struct dump_file {
    const char *path;
    int fd;
    char error[160]; /* why it is not shown; "": it is */
    unsigned char *copy;
    uint64_t size;
    uint32_t owner;
    enum dump_state state;
    bool name_matches; /* the file's name is that of the identity inside */
    struct wideep_view view;
};

/* Moments and their distance from now. A segment of another boot has times that mean nothing here. */
struct dump_clock {
    uint64_t realtime_ns, boottime_ns;
    uint8_t boot_id[16];
};

/* Range of the newest `want` records that may still be whole; returns the first, *ret_head is behind the
 * last. */
uint64_t dump_ring_range(const struct wideep_ring *ring, uint64_t want, uint64_t *ret_head);

/* Brings record n of the file into the copy, whole or marked as lost, so that wideep_eplb_read() and
 * wideep_dbo_read() on the view give the right answer. */
void dump_refresh(const struct dump_file *file, const struct wideep_ring *ring, uint64_t n);

bool dump_same_boot(const struct dump_file *file, const struct dump_clock *clock);

const char *dump_state_name(enum dump_state state);
const char *dump_role_name(uint32_t role);
const char *dump_phase_name(uint32_t phase);
const char *dump_outcome_name(uint32_t outcome);
const char *dump_mode_name(uint32_t mode);
const char *dump_ubatch_name(uint32_t index);
const char *dump_recording_name(uint64_t recording);

/* "FIRST" and so on, in the order of the bits; `index` < 5. */
const char *dump_flag_name(unsigned index);

/* Sum of a model's part of a token plane. */
uint64_t dump_plane_sum(const struct wideep_view *view, uint32_t model, int experts);

/* Bytes from outside for a terminal: what is not printable, and what turns text round, as \xNN or \uNNNN. */
void dump_text_escaped(FILE *out, const char *bytes, size_t length);

void dump_text(FILE *out, const struct dump_file *file, const struct dump_config *config,
               const struct dump_clock *clock);

/* A JSON document is begun, gets each file, and is ended with why the directory cannot be read, or NULL. */
void dump_json_begin(FILE *out, const struct dump_config *config, const struct dump_clock *clock);
void dump_json_file(FILE *out, const struct dump_file *file, const struct dump_config *config,
                    const struct dump_clock *clock);
void dump_json_end(FILE *out, const char *error);

#endif
