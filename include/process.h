/*
 * process: what the kernel says of this process, for the process_* families.
 */
#ifndef WIDEEP_PROCESS_H
#define WIDEEP_PROCESS_H

#include <stdint.h>

struct process_stats {
    uint64_t cpu_ns; /* user and system */
    uint64_t resident_bytes, virtual_bytes;
    uint64_t virtual_max_bytes;                 /* UINT64_MAX: unlimited */
    uint64_t received_bytes, transmitted_bytes; /* by IP, of the network namespace, which the kernel counts by */
    uint64_t open_fds, max_fds;
    double start_time_seconds; /* Unix time */
};

/* What cannot be found out is 0. No allocation. One thread at a time. */
void process_stats(struct process_stats *ret);

#endif
