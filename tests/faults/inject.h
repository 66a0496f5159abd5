/* What tests/faults/inject.so is told by a test, and tells it: one page that both map, of words alone.
 *
 * Each kind of call is counted. Call number n, from 0, fails if from <= n < until. A test arms a window by setting
 * `until` to 0, then `from`, then `until`; the counts go on. All fields are little machine words that are read and
 * written whole, with no order between them: a test that changes one waits until its effect shows. */
#ifndef FAULTS_INJECT_H
#define FAULTS_INJECT_H

#include <stdint.h>

enum inject_kind { INJECT_MEMORY, INJECT_THREAD, INJECT_RANDOM, INJECT_FILE, INJECT_KINDS };

struct inject_window {
    uint64_t calls;       /* made so far */
    uint64_t from, until; /* those to fail */
    uint64_t failed;      /* that did fail */
};

struct inject {
    struct inject_window windows[INJECT_KINDS];
    int64_t realtime_shift_s; /* added to CLOCK_REALTIME */
    uint64_t scan_stall_ms;   /* how long each read of a directory takes */
    uint64_t stalled_scans;
    int64_t blocks;         /* allocated and not freed */
    uint64_t interruptions; /* signals that were handled */
};

#endif
