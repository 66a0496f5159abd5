/*
 * options: the daemon's flags and environment variables, driven by one table.
 *
 * Each flag --a.b-c=VALUE (or "--a.b-c VALUE") is also the environment variable WIDEEP_A_B_C; the flag wins. Flags that
 * may be repeated are separated by commas in the environment, and an empty variable counts as unset. Variables that are
 * no flag's are left alone, but one that looks like a misspelt flag's is worth a warning.
 */
#ifndef WIDEEP_OPTIONS_H
#define WIDEEP_OPTIONS_H

#include "aggregate.h"
#include "log.h"

#include <stdio.h>

#define OPTIONS_ADDRESSES_MAX 8
#define OPTIONS_TEXT_MAX      256

struct options {
    char shm_dir[WIDEEP_MAX_PATH + 1];   /* what a writer takes */
    char shm_instance[OPTIONS_TEXT_MAX]; /* "*": all */
    uint32_t owner_count;                /* 0: any */
    uid_t owners[SEGMENT_OWNERS_MAX];
    char addresses[OPTIONS_ADDRESSES_MAX][OPTIONS_TEXT_MAX];
    uint32_t address_count;
    char telemetry_path[OPTIONS_TEXT_MAX];
    char web_config_file[OPTIONS_TEXT_MAX]; /* "": none */
    uint64_t web_config_check;
    uint64_t max_requests; /* 0: any number */
    uint64_t collect_interval_ns, eplb_window_ns, throughput_interval_ns;
    uint64_t advisor_interval_ns; /* 0: off */
    uint64_t debug_duration_ns, debug_max_duration_ns;
    uint64_t engine_label; /* enum aggregate_engine_label */
    uint64_t debug_per_expert;
    uint64_t series_limit;
    uint64_t log_level;  /* enum log_level */
    uint64_t log_format; /* enum log_format */
    uint64_t systemd_socket, admin_api;
    uint64_t healthcheck, version, help;
};

/* Returns 0, or -EINVAL with one line in `error` that says which flag or variable, what was wrong, and what is allowed.
 */
int options_parse(struct options *ret, int argc, char *const *argv, char *error, size_t error_size);

/* Logs each variable of the environment that is none of ours but nearly so, with the one it was meant to be. */
void options_warn_misspelt(char *const *environment);

void options_print_help(FILE *file);

#endif
