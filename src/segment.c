#include "segment.h"

#include "guard.h"
#include "log.h"
#include "text.h"

#include <assert.h>
#include <search.h>
#include <stdalign.h>

#define SEGMENT_MAGIC      0x5365676d
#define LOCK_LOST_GRACE_NS 10000000000u
/* Lines about a file's comings and goings: so many in so long, whatever is done to it. */
#define LINES_MAX       4
#define LINES_PERIOD_NS 60000000000u

/* A name in the directory: attached, or refused for a reason. */
struct segment_file {
    char name[NAME_MAX + 1];
    dev_t device;
    ino_t inode;
    off_t size;
    struct timespec changed;
    unsigned reason;   /* when segment is NULL */
    uint64_t scan;     /* the scan that saw it last */
    uint64_t lines_ns; /* when the period began */
    uint32_t lines;    /* in the period */
    uint32_t omitted;  /* since the newest line */
    struct segment *segment;
    struct segment_file *next;
};

/* ---- names -------------------------------------------------------------------------------------------------- */

const char *segment_state_name(enum segment_state state)
{
    static const char *const names[SEGMENT_STATES] = {"live", "dead", "closed", "rejected", "ignored"};
    return names[state];
}

const char *segment_reason_name(unsigned reason)
{
    static const char *const names[SEGMENT_REASONS - WIDEEP_REASONS] = {
        "not_regular",       "unreadable", "owner",          "name_mismatch", "duplicate_ep_rank",
        "truncated_mapping", "over_limit", "other_instance", "lock_lost"};
    return reason < WIDEEP_REASONS ? wideep_reason_name((enum wideep_reason)reason) : names[reason - WIDEEP_REASONS];
}

static const char *reason_advice(unsigned reason)
{
    switch (reason) {
    case WIDEEP_BAD_VERSION:
        return "written by another major version of the ABI: update the exporter or the engine's plugin";
    case WIDEEP_BAD_ENDIAN:
    case WIDEEP_BAD_WORD_SIZE: return "written on another kind of machine: remove it";
    case SEGMENT_OWNER: return "list its owner in --shm.owner if it is an engine's";
    case SEGMENT_UNREADABLE:
        return "let the exporter's user read it (mode 0644), or give it more descriptors or memory";
    case SEGMENT_NAME_MISMATCH: return "a copy or a renamed segment: remove it";
    case SEGMENT_DUPLICATE_EP_RANK:
        return "two live ranks of one group claim the same EP rank: give each server its own WIDEEP_INSTANCE or group";
    case SEGMENT_TRUNCATED_MAPPING: return "somebody shortened it while it was in use: restart its rank";
    case SEGMENT_OVER_LIMIT: return "too many files: remove dead segments";
    default: return "not a segment: remove it, or keep the directory for segments alone";
    }
}

/* Length of the instance in wideep.<instance>.e<engine>.(r|fe)<number>, or 0. */
static size_t name_instance(const char *name)
{
    const char *last = strrchr(name, '.');
    const char *end, *digits;

    if (!last || last == name)
        return 0;
    digits = last + 1 + (last[1] == 'r' ? 1 : last[1] == 'f' && last[2] == 'e' ? 2 : 0);
    if (digits == last + 1 || !*digits || digits[strspn(digits, "0123456789")] != 0)
        return 0;
    for (end = last - 1; end > name && *end >= '0' && *end <= '9'; end--)
        ;
    if (end == last - 1 || *end != 'e' || end[-1] != '.' || end - 1 < name + 8)
        return 0;
    size_t length = (size_t)(end - 1 - (name + 7));
    return wideep_instance_valid(name + 7, length) ? length : 0;
}

/* ---- lines ------------------------------------------------------------------------------------------------------ */

/* Whether there may be a line about the file; one that may not be is counted. */
static bool file_spend_line(struct segment_file *file, uint64_t now_ns)
{
    if (file->lines == 0 || now_ns - file->lines_ns >= LINES_PERIOD_NS) {
        file->lines_ns = now_ns;
        file->lines = 0;
    }
    if (file->lines == LINES_MAX) {
        file->omitted++;
        return false;
    }
    file->lines++;
    return true;
}

static void file_log_refusal(const struct segment_file *file)
{
    log_warn("segment rejected", "file", file->name, "reason", segment_reason_name(file->reason), "advice",
             reason_advice(file->reason), NULL);
}

/* Once the period is over: how often, and what it came to, which the lines before need not say. */
static void file_settle_lines(struct segment_file *file, uint64_t now_ns)
{
    char omitted[16];

    if (file->omitted == 0 || now_ns - file->lines_ns < LINES_PERIOD_NS)
        return;
    (void)snprintf(omitted, sizeof omitted, "%u", file->omitted);
    log_warn("segment keeps changing", "file", file->name, "omitted_lines", omitted, "now",
             file->segment ? "attached" : segment_reason_name(file->reason), "advice", "find out who else writes to it",
             NULL);
    file->omitted = 0;
    file->lines_ns = now_ns;
    file->lines = 1;
}

/* ---- attaching ---------------------------------------------------------------------------------------------- */

/* The segment of the set that has, or had, this name. */
static struct segment *set_find(const struct segment_set *set, const char *name)
{
    for (uint32_t i = 0; i < set->count; i++)
        if (strcmp(set->segments[i]->file, name) == 0)
            return set->segments[i];
    return NULL;
}

static bool owner_listed(const struct segment_config *config, uid_t owner)
{
    for (uint32_t i = 0; i < config->owner_count; i++)
        if (config->owners[i] == owner)
            return true;
    return config->owner_count == 0;
}

static void segment_unmap(struct segment *segment)
{
    guard_remove(segment->guard);
    wideep_view_close(&segment->view);
    segment->guard = -1;
}

static void segment_free(struct segment *segment)
{
    if (!segment)
        return;
    assert(segment->magic == SEGMENT_MAGIC);
    segment_unmap(segment);
    segment->magic = 0;
    free(segment);
}

static void repair_models(struct segment *segment)
{
    const struct wideep_identity *id = &segment->view.identity;

    for (uint32_t m = 0; m < id->model_count; m++) {
        (void)text_repair(segment->model[m], sizeof segment->model[m], id->models[m].name, id->models[m].name_length);
        for (uint32_t other = 0; other < m; other++)
            if (strcmp(segment->model[other], segment->model[m]) == 0)
                segment->model[m][0] = 0; /* two names that look alike would make one series twice */
    }
}

/* Maps and validates an open regular file. Takes fd over on success. Returns 0 or a reason. */
static unsigned segment_map(struct segment *segment, int fd, size_t size)
{
    if (size > WIDEEP_MAX_SEGMENT_SIZE)
        return WIDEEP_BAD_SIZE;
    void *base = mmap(NULL, size, PROT_READ, MAP_SHARED, fd, 0);

    if (base == MAP_FAILED)
        return SEGMENT_UNREADABLE;
    segment->guard = guard_add(base, size);
    unsigned reason =
        segment->guard < 0 ? (unsigned)SEGMENT_OVER_LIMIT : (unsigned)wideep_view_init(&segment->view, base, size);
    if (reason == WIDEEP_OK && guard_hit(segment->guard))
        reason = WIDEEP_BAD_TRUNCATED;
    if (reason != WIDEEP_OK) {
        guard_remove(segment->guard);
        (void)munmap(base, size);
        return reason;
    }
    segment->view.fd = fd;
    /* Closing would drop the lock of a segment that this very process writes. */
    segment->view.keep_fd = wideep_i_own(&segment->view.identity);
    return WIDEEP_OK;
}

static unsigned segment_attach(const struct segment_set *set, int directory, const char *name, const struct stat *st,
                               struct segment **ret)
{
    char expected[128];

    if (!S_ISREG(st->st_mode))
        return SEGMENT_NOT_REGULAR;
    if (!owner_listed(&set->config, st->st_uid))
        return SEGMENT_OWNER;
    if (st->st_size == 0)
        return WIDEEP_BAD_EMPTY;
    /* A successor takes its predecessor's place. */
    if (set->count == SEGMENT_MAX && !set_find(set, name))
        return SEGMENT_OVER_LIMIT;
    int fd = openat(directory, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0)
        return SEGMENT_UNREADABLE;
    struct stat now;
    struct segment *segment = calloc(1, sizeof *segment);
    unsigned reason = !segment || fstat(fd, &now) != 0 || now.st_ino != st->st_ino || now.st_dev != st->st_dev
                          ? (unsigned)SEGMENT_UNREADABLE
                          : segment_map(segment, fd, (size_t)st->st_size);
    if (reason != WIDEEP_OK) {
        free(segment);
        (void)close(fd);
        return reason;
    }
    const struct wideep_identity *id = &segment->view.identity;
    segment->magic = SEGMENT_MAGIC;
    segment->device = st->st_dev;
    segment->inode = st->st_ino;
    wideep_segment_name(expected, sizeof expected, id->instance, id->role, id->engine, id->rank);
    if (strcmp(expected, name) != 0) {
        segment_free(segment);
        return SEGMENT_NAME_MISMATCH;
    }
    (void)snprintf(segment->file, sizeof segment->file, "%s", expected);
    segment->linked = true;
    repair_models(segment);
    *ret = segment;
    return WIDEEP_OK;
}

/* ---- liveness ----------------------------------------------------------------------------------------------- */

/* Has the name gone to another file since the scan looked? A writer that links its segment anew gives the copy its name
 * before it lets go of the old lock, so a lock that is free for that reason is seen here, and no death. */
static bool moved_on(const struct segment_set *set, const struct segment *segment)
{
    char path[PATH_MAX];
    struct stat st;
    int n = snprintf(path, sizeof path, "%s/%s", set->config.directory, segment->file);

    return n > 0 && (size_t)n < sizeof path && lstat(path, &st) == 0 &&
           (st.st_ino != segment->inode || st.st_dev != segment->device);
}

static bool writer_alive(const struct segment_set *set, const struct segment *segment)
{
    return !segment->other_boot && set->config.alive(segment->view.fd) > 0;
}

enum segment_state segment_probe(const struct segment_set *set, const struct segment *segment)
{
    if (segment->state != SEGMENT_LIVE || segment->lock_lost)
        return segment->state;
    /* The lock before the word: a writer that closes in order says so before it lets go. */
    bool ended = !writer_alive(set, segment) && !moved_on(set, segment);
    if (wideep_load_acquire(&segment->view.live->closed_ns) != 0)
        return SEGMENT_CLOSED;
    return ended ? SEGMENT_DEAD : SEGMENT_LIVE;
}

static void update_state(struct segment_set *set, struct segment *segment, uint64_t now_ns)
{
    const struct wideep_view *view = &segment->view;
    /* The lock before the word: whoever is found dead has then written its last. */
    bool alive = writer_alive(set, segment);
    /* The next scan finds what has the name now, and this segment's end with it. */
    if (!alive && segment->state == SEGMENT_LIVE && moved_on(set, segment))
        return;
    uint64_t activity = wideep_load(&view->live->activity);
    enum segment_state state = SEGMENT_LIVE;
    bool lock_lost = false;

    if (wideep_load_acquire(&view->live->closed_ns) != 0) {
        state = SEGMENT_CLOSED;
    } else if (!alive) {
        /* Counts only what moved since an earlier scan that found the lock free as well. */
        if (segment->died_ns != 0 && activity != segment->activity)
            segment->activity_ns = now_ns;
        lock_lost = segment->activity_ns != 0 && now_ns - segment->activity_ns < LOCK_LOST_GRACE_NS;
        state = lock_lost ? SEGMENT_LIVE : SEGMENT_DEAD;
    }
    if (alive)
        segment->died_ns = segment->activity_ns = 0;
    else if (segment->died_ns == 0)
        segment->died_ns = now_ns;
    bool changed = state != segment->state || lock_lost != segment->lock_lost;
    set->generation += changed;
    if (!segment->announced && !segment->quiet)
        log_info("segment attached", "file", segment->file, "model", segment->model[0], "state",
                 segment_state_name(state), NULL);
    else if (segment->announced && changed)
        log_info("segment changed state", "file", segment->file, "from", segment_state_name(segment->state), "to",
                 segment_state_name(state), "reason", lock_lost ? "lock_lost" : "ok", NULL);
    segment->announced = true;
    segment->activity = activity;
    segment->state = state;
    segment->lock_lost = lock_lost;
}

/* ---- the set ------------------------------------------------------------------------------------------------ */

static int compare_files(const void *a, const void *b)
{
    return strcmp(((const struct segment_file *)a)->name, ((const struct segment_file *)b)->name);
}

int segment_set_new(struct segment_set **ret, const struct segment_config *config, uint64_t now_ns)
{
    struct wideep_identity self = {0};
    struct segment_set *set = calloc(1, sizeof *set);

    if (!set)
        return -ENOMEM;
    set->config = *config;
    if (!set->config.alive)
        set->config.alive = wideep_writer_alive;
    set->exporter_start_ns = now_ns;
    (void)wideep_i_stamp(&self, 0);
    memcpy(set->boot_id, self.boot_id, sizeof set->boot_id);
    *ret = set;
    return 0;
}

static void set_retire(struct segment_set *set, struct segment *segment, struct segment *successor)
{
    for (uint32_t i = 0; i < set->count; i++)
        if (set->segments[i] == segment) {
            set->segments[i] = set->segments[--set->count];
            break;
        }
    segment->successor = successor;
    /* Whatever its writer does now, it is not served any more. */
    if (segment->state == SEGMENT_LIVE)
        segment->state = SEGMENT_DEAD;
    set->retired[set->retired_count++] = segment;
    set->generation++;
}

void segment_set_reap(struct segment_set *set)
{
    for (uint32_t i = 0; i < set->retired_count; i++)
        segment_free(set->retired[i]);
    set->retired_count = 0;
}

void segment_set_free(struct segment_set *set)
{
    if (!set)
        return;
    segment_set_reap(set);
    for (uint32_t i = 0; i < set->count; i++)
        segment_free(set->segments[i]);
    while (set->files) {
        struct segment_file *file = set->files;
        set->files = file->next;
        (void)tdelete(file, &set->tree, compare_files);
        free(file);
    }
    free(set);
}

/* The writer linked a copy of what we have: go on reading there. Takes `copy` over. */
static void segment_adopt(struct segment *segment, struct segment *copy)
{
    struct wideep_view view = segment->view;
    int guard = segment->guard;

    segment->view = copy->view;
    segment->guard = copy->guard;
    segment->device = copy->device;
    segment->inode = copy->inode;
    segment->linked = true;
    copy->view = view;
    copy->guard = guard;
    segment_free(copy);
}

static struct segment *set_add(struct segment_set *set, struct segment *segment, uint64_t now_ns)
{
    struct segment *namesake = set_find(set, segment->file);

    set->generation++;
    if (namesake && namesake->view.identity.instance_id == segment->view.identity.instance_id) {
        segment_adopt(namesake, segment);
        return namesake;
    }
    segment->attached_ns = now_ns;
    segment->other_boot = memcmp(segment->view.identity.boot_id, set->boot_id, sizeof set->boot_id) != 0;
    /* Older than this process: what its ring holds was another exporter's to read. */
    bool old = segment->other_boot || segment->view.identity.start_boottime_ns < set->exporter_start_ns;
    if (segment->view.eplb.head)
        segment->eplb_next = old ? wideep_ring_head(&segment->view.eplb) : 0;
    if (segment->view.dbo.head)
        segment->dbo_next = old ? wideep_ring_head(&segment->view.dbo) : 0;
    if (namesake)
        set_retire(set, namesake, segment);
    set->segments[set->count++] = segment;
    return segment;
}

static void file_refuse(struct segment_file *file, unsigned reason, uint64_t now_ns)
{
    const bool news = file->reason != reason || file->segment;

    file->segment = NULL;
    file->reason = reason;
    if (news && file_spend_line(file, now_ns))
        file_log_refusal(file);
}

static void scan_name(struct segment_set *set, int directory, const char *name, uint64_t now_ns)
{
    struct segment_file *file = NULL, key;
    struct stat st;

    size_t length = name_instance(name);
    const char *wanted = set->config.instance;
    if (length > 0 && wanted && (strlen(wanted) != length || strncmp(name + 7, wanted, length) != 0)) {
        set->ignored++;
        return;
    }
    if (fstatat(directory, name, &st, AT_SYMLINK_NOFOLLOW) != 0)
        return; /* gone again */
    (void)snprintf(key.name, sizeof key.name, "%s", name);
    void *found = tfind(&key, &set->tree, compare_files);
    if (found) {
        file = *(struct segment_file **)found;
    } else {
        file = set->file_count < SEGMENT_FILES_MAX ? calloc(1, sizeof *file) : NULL;
        if (!file) {
            set->rejected[SEGMENT_OVER_LIMIT]++;
            return;
        }
        (void)snprintf(file->name, sizeof file->name, "%s", name);
        if (!tsearch(file, &set->tree, compare_files)) {
            free(file);
            return;
        }
        file->next = set->files;
        set->files = file;
        set->file_count++;
    }
    file->scan = set->scans;
    bool same_inode = found && file->device == st.st_dev && file->inode == st.st_ino;
    /* The change of the inode, so that chmod and chown count. */
    bool unchanged = same_inode && file->size == st.st_size && file->changed.tv_sec == st.st_ctim.tv_sec &&
                     file->changed.tv_nsec == st.st_ctim.tv_nsec;
    bool again = file->reason == SEGMENT_OVER_LIMIT || file->reason == SEGMENT_UNREADABLE;
    if (file->segment ? same_inode : unchanged && !again)
        return;
    file->device = st.st_dev;
    file->inode = st.st_ino;
    file->size = st.st_size;
    file->changed = st.st_ctim;
    struct segment *segment = NULL;
    unsigned reason = length == 0 ? (unsigned)WIDEEP_BAD_NAME : segment_attach(set, directory, name, &st, &segment);
    if (reason != WIDEEP_OK) {
        if (file->segment)
            file->segment->linked = false;
        file_refuse(file, reason, now_ns);
        return;
    }
    file->reason = WIDEEP_OK;
    file->segment = set_add(set, segment, now_ns);
    /* One that goes on under its name has had its line. */
    if (file->segment == segment)
        segment->quiet = !file_spend_line(file, now_ns);
}

/* Forgets names that the scan did not see. */
static void drop_unseen(struct segment_set *set, uint64_t now_ns)
{
    for (struct segment_file **at = &set->files; *at;) {
        struct segment_file *file = *at;
        if (file->scan == set->scans) {
            file_settle_lines(file, now_ns);
            if (!file->segment)
                set->rejected[file->reason]++;
            at = &file->next;
            continue;
        }
        if (file->segment)
            file->segment->linked = false;
        *at = file->next;
        (void)tdelete(file, &set->tree, compare_files);
        free(file);
        set->file_count--;
    }
}

/* A file that shrank under its mapping is no segment any more. */
static void drop_truncated(struct segment_set *set, uint64_t now_ns)
{
    for (uint32_t i = 0; i < set->count;) {
        struct segment *segment = set->segments[i];
        if (!guard_hit(segment->guard)) {
            i++;
            continue;
        }
        struct stat st;
        bool known = fstat(segment->view.fd, &st) == 0;
        for (struct segment_file *file = set->files; file; file = file->next) {
            if (file->segment != segment)
                continue;
            file_refuse(file, SEGMENT_TRUNCATED_MAPPING, now_ns);
            if (known) {
                /* As it is now, it has been looked at; only a further change is news. */
                file->size = st.st_size;
                file->changed = st.st_ctim;
            }
        }
        segment->refused = SEGMENT_TRUNCATED_MAPPING;
        set_retire(set, segment, NULL);
    }
}

/* Dead segments without a name go all at once, when their number has stopped growing: so that somebody who deletes many
 * files makes one reset of the sums over them, not several. */
static void expire_nameless(struct segment_set *set)
{
    uint32_t nameless = 0;

    for (uint32_t i = 0; i < set->count; i++)
        nameless += !set->segments[i]->linked && set->segments[i]->state != SEGMENT_LIVE;
    if (nameless > 0 && nameless == set->nameless) {
        for (uint32_t i = 0; i < set->count;)
            if (!set->segments[i]->linked && set->segments[i]->state != SEGMENT_LIVE) {
                log_info("segment withdrawn", "file", set->segments[i]->file, NULL);
                set_retire(set, set->segments[i], NULL);
            } else {
                i++;
            }
        nameless = 0;
    }
    set->nameless = nameless;
}

/* By the system call itself: readdir() would allocate a stream at each scan. Returns 0 or an errno. */
static int scan_names(struct segment_set *set, int directory, uint64_t now_ns)
{
    alignas(struct dirent64) char entries[16384];
    ssize_t size;

    while ((size = getdents64(directory, entries, sizeof entries)) > 0)
        for (ssize_t at = 0; at < size;) {
            const struct dirent64 *entry = (const void *)(entries + at);
            if (strncmp(entry->d_name, "wideep.", 7) == 0)
                scan_name(set, directory, entry->d_name, now_ns);
            at += entry->d_reclen;
        }
    return size < 0 ? errno : 0;
}

void segment_set_scan(struct segment_set *set, uint64_t now_ns)
{
    assert(set->retired_count == 0);
    set->scans++;
    set->ignored = 0;
    memset(set->rejected, 0, sizeof set->rejected);
    drop_truncated(set, now_ns);
    int directory = open(set->config.directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int error = directory >= 0 ? 0 : errno;
    if (error != set->directory_error) {
        if (error)
            log_warn("cannot read the shared-memory directory, waiting for it", "directory", set->config.directory,
                     "error", strerror(error), "advice", "create it, let this user read it, or set --shm.dir", NULL);
        else
            log_info("reading the shared-memory directory", "directory", set->config.directory, NULL);
        set->generation++;
    }
    set->directory_error = error;
    bool whole = directory >= 0 && scan_names(set, directory, now_ns) == 0;
    if (directory >= 0)
        (void)close(directory);
    /* A directory that is gone has no names either. One that cannot be read just now, for want of a descriptor say,
     * tells nothing about them. */
    if (whole || error == ENOENT || error == ENOTDIR)
        drop_unseen(set, now_ns);
    for (uint32_t i = 0; i < set->count; i++)
        update_state(set, set->segments[i], now_ns);
    expire_nameless(set);
}

void segment_refuse(struct segment_set *set, struct segment *segment, unsigned reason)
{
    if (segment->refused == reason)
        return;
    segment->refused = reason;
    set->generation++;
    if (reason != 0)
        log_warn("segment rejected", "file", segment->file, "reason", segment_reason_name(reason), "advice",
                 reason_advice(reason), NULL);
    else
        log_info("segment accepted again", "file", segment->file, NULL);
}

void segment_set_count(const struct segment_set *set, uint32_t ret[SEGMENT_STATES][SEGMENT_REASONS])
{
    memset(ret, 0, sizeof(uint32_t) * SEGMENT_STATES * SEGMENT_REASONS);
    for (uint32_t i = 0; i < set->count; i++) {
        const struct segment *segment = set->segments[i];
        if (segment->refused)
            ret[SEGMENT_REJECTED][segment->refused]++;
        else
            ret[segment->state][segment->lock_lost ? (unsigned)SEGMENT_LOCK_LOST : (unsigned)WIDEEP_OK]++;
    }
    for (unsigned reason = 0; reason < SEGMENT_REASONS; reason++)
        ret[SEGMENT_REJECTED][reason] += set->rejected[reason];
    ret[SEGMENT_IGNORED][SEGMENT_OTHER_INSTANCE] = set->ignored;
}
