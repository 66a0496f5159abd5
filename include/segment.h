/*
 * segment: the files in the shared-memory directory, attached read-only and trusted in nothing.
 *
 * A segment_set scans one directory, attaches what is a valid segment of the wanted instance, asks the kernel who is
 * alive, and keeps count of what it refused and why. One bad file costs that file, with a reason and one log line; one
 * that is good and bad by turns has four a minute, and one then that says how many there were not.
 *
 *     file appears ── attach ──► LIVE ── lock free ────► DEAD ──┐  name gone, and no more of them since the last
 *                       │          └─── closed_ns set ─► CLOSED ─┤  scan: retired, all at once
 *                       │                                        └  another file under the name: retired with
 *                       │                                           `successor`
 *                       └─ refused: remembered by name, inode, size and time until one of them changes
 *
 * A live segment whose name is gone stays attached: its writer will link it anew. A byte-for-byte copy that it links
 * (same instance id) replaces the mapping in place, positions included.
 *
 * Only the thread that scans may touch mappings. A file that is truncated under its mapping reads as zeros from there
 * on (see guard.h), and the next scan rejects it (reason "truncated_mapping").
 */
#ifndef WIDEEP_SEGMENT_H
#define WIDEEP_SEGMENT_H

#include "wideep_shm.h"

#include <stdbool.h>
#include <sys/types.h>

#define SEGMENT_MAX        1024  /* attached at once */
#define SEGMENT_FILES_MAX  16384 /* names remembered */
#define SEGMENT_OWNERS_MAX 16
#define SEGMENT_MODEL_MAX  (3 * WIDEEP_MAX_NAME + 1)

enum segment_state { SEGMENT_LIVE, SEGMENT_DEAD, SEGMENT_CLOSED, SEGMENT_REJECTED, SEGMENT_IGNORED, SEGMENT_STATES };

/* Continues enum wideep_reason. */
enum segment_reason {
    SEGMENT_NOT_REGULAR = WIDEEP_REASONS, /* a directory, symlink, FIFO, device */
    SEGMENT_UNREADABLE,                   /* open, stat or mmap failed; tried again at each scan */
    SEGMENT_OWNER,                        /* its owner is not in --shm.owner */
    SEGMENT_NAME_MISMATCH,                /* the file's name is not that of the identity inside */
    SEGMENT_DUPLICATE_EP_RANK,            /* another, older live segment of the group has this EP rank */
    SEGMENT_TRUNCATED_MAPPING,            /* it shrank while attached */
    SEGMENT_OVER_LIMIT,                   /* more than SEGMENT_MAX segments or SEGMENT_FILES_MAX names */
    SEGMENT_OTHER_INSTANCE,               /* ignored: of another instance */
    SEGMENT_LOCK_LOST,                    /* live: its words advance although nobody holds its lock */
    SEGMENT_REASONS
};

const char *segment_state_name(enum segment_state state);
const char *segment_reason_name(unsigned reason);

/* How fast a ring fills. */
struct segment_pace {
    uint64_t head, time_ns; /* when it was looked at, 0: never */
    double records_per_ns;
};

struct segment {
    uint32_t magic;
    enum segment_state state; /* LIVE, DEAD or CLOSED */
    unsigned refused;         /* 0, or the reason why it is not served although it is attached */
    bool linked;              /* its name leads to it */
    bool lock_lost;           /* LIVE: nobody holds the lock, but its words advance */
    int fd;
    dev_t device;
    ino_t inode;
    int guard;       /* of the mapping */
    bool announced;  /* its attachment is logged, or left out */
    bool quiet;      /* left out: there were too many lines about its file */
    bool other_boot; /* written before this boot: its times mean nothing now */
    struct wideep_view view;
    char file[128];
    char model[WIDEEP_MAX_MODELS][SEGMENT_MODEL_MAX]; /* names as valid UTF-8; "" where one repeats an earlier one */
    uint64_t eplb_next, eplb_end, dbo_next;           /* ring positions, the ring module's */
    uint32_t eplb_budget;                             /* what reading up to eplb_end may still cost */
    struct segment_pace eplb_pace, dbo_pace;          /* the ring module's too */
    uint32_t eplb_loss;                               /* bit per model: records were lost since its last pass */
    uint64_t activity;                                /* at the newest scan */
    uint64_t activity_ns;                             /* when it was last seen to advance under a free lock */
    uint64_t attached_ns, died_ns;                    /* CLOCK_BOOTTIME of the scan that found it, found it dead */
    struct segment *successor;                        /* retired ones: who has the name now, or NULL */
    void *members[WIDEEP_MAX_MODELS];                 /* per model, the aggregate module's */
};

struct segment_config {
    const char *directory;
    const char *instance; /* NULL: all */
    uint32_t owner_count; /* 0: any */
    uid_t owners[SEGMENT_OWNERS_MAX];
    int (*alive)(int fd); /* NULL: wideep_writer_alive */
};

struct segment_file;

struct segment_set {
    struct segment_config config;
    struct segment *segments[SEGMENT_MAX];
    uint32_t count;
    struct segment *retired[SEGMENT_MAX]; /* left the set in the newest scan */
    uint32_t retired_count;
    uint64_t generation;        /* moves whenever the set or a state in it changed */
    uint64_t exporter_start_ns; /* CLOCK_BOOTTIME */
    uint32_t rejected[SEGMENT_REASONS];
    uint32_t ignored;
    int directory_error; /* errno of the newest scan, 0: readable */
    uint64_t scans;
    uint32_t nameless; /* dead segments without a name at the newest scan */
    uint32_t file_count;
    void *tree; /* of struct segment_file, by name */
    struct segment_file *files;
    uint8_t boot_id[16];
};

/* Before the first scan, guard_install(). The set keeps the strings of the config by reference. Returns 0 or -ENOMEM.
 */
int segment_set_new(struct segment_set **ret, const struct segment_config *config, uint64_t now_ns);

/* Detaches everything. NULL is fine. */
void segment_set_free(struct segment_set *set);

/* Brings the set up to date with the directory. Segments that left it are in `retired`, still mapped, so that their
 * rings can be drained a last time; segment_set_reap() frees them. An unreadable directory is logged once, remembered
 * in directory_error, and waited for. Scanning thread only. */
void segment_set_scan(struct segment_set *set, uint64_t now_ns);

/* Frees what the newest scan retired; their `members` must be gone. */
void segment_set_reap(struct segment_set *set);

/* Refuses an attached segment for a reason that only the caller can know; 0 takes it back. */
void segment_refuse(struct segment_set *set, struct segment *segment, unsigned reason);

/* The state that a scan would find now, by what the kernel says of the lock; changes nothing. One system call for a
 * live segment. A segment that is not LIVE, or LIVE with its lock lost, is as the newest scan left it. Scanning thread.
 */
enum segment_state segment_probe(const struct segment_set *set, const struct segment *segment);

/* Files of each state and reason, for wideep_segments. */
void segment_set_count(const struct segment_set *set, uint32_t ret[SEGMENT_STATES][SEGMENT_REASONS]);

/* Do their ranks run collectives together? Group 0 is an engine by itself. */
static inline bool segment_same_group(const struct wideep_identity *a, const struct wideep_identity *b)
{
    return a->group == b->group && (a->group != 0 || a->engine == b->engine) && strcmp(a->instance, b->instance) == 0;
}

static inline bool segment_is_rank(const struct segment *segment)
{
    return segment->view.identity.role == WIDEEP_ROLE_RANK;
}

/* Live and not refused. */
static inline bool segment_serves_gauges(const struct segment *segment)
{
    return segment->state == SEGMENT_LIVE && segment->refused == 0;
}

#endif
