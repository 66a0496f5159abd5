/* wideep-dump: a read-only look into segments. */
#include "dump.h"

#include "nearest.h"
#include "version.h"

#include <getopt.h>
#include <regex.h>

/* ---- names -------------------------------------------------------------------------------------------------- */

/* As the exporter calls it. */
#define DUMP_NOT_REGULAR "not_regular"

#define DUMP_NAME(index, ...)                                                       \
    do {                                                                            \
        static const char *const names[] = {__VA_ARGS__};                           \
        return (index) < sizeof names / sizeof names[0] ? names[index] : "unknown"; \
    } while (0)

const char *dump_state_name(enum dump_state state)
{
    DUMP_NAME((unsigned)state, "alive", "closed", "dead");
}

const char *dump_role_name(uint32_t role)
{
    DUMP_NAME(role, "unknown", "rank", "frontend");
}

const char *dump_phase_name(uint32_t phase)
{
    DUMP_NAME(phase, "prefill", "decode");
}

const char *dump_outcome_name(uint32_t outcome)
{
    DUMP_NAME(outcome, "engaged", "below_threshold", "idle_rank", "empty_second_ubatch", "coordination_failure",
              "other");
}

const char *dump_mode_name(uint32_t mode)
{
    DUMP_NAME(mode, "sync", "async");
}

const char *dump_ubatch_name(uint32_t index)
{
    DUMP_NAME(index, "first", "second", "third", "fourth");
}

const char *dump_recording_name(uint64_t recording)
{
    DUMP_NAME(recording, "unknown", "yes", "no");
}

const char *dump_flag_name(unsigned index)
{
    DUMP_NAME(index, "reduced", "partial", "rebalancing", "first", "last");
}

/* ---- files -------------------------------------------------------------------------------------------------- */

static uint64_t dump_now_ns(clockid_t clock)
{
    struct timespec now;
    if (clock_gettime(clock, &now) != 0)
        return 0;
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void dump_clock_read(struct dump_clock *ret)
{
    char text[64];
    unsigned nibbles = 0;

    memset(ret, 0, sizeof *ret);
    ret->realtime_ns = dump_now_ns(CLOCK_REALTIME);
    ret->boottime_ns = dump_now_ns(CLOCK_BOOTTIME);
    FILE *file = fopen("/proc/sys/kernel/random/boot_id", "re");
    if (!file)
        return;
    if (fgets(text, sizeof text, file))
        for (const char *c = text; *c && nibbles < 32; c++) {
            int value = *c >= '0' && *c <= '9' ? *c - '0' : *c >= 'a' && *c <= 'f' ? *c - 'a' + 10 : -1;
            if (value < 0)
                continue;
            ret->boot_id[nibbles / 2] = (uint8_t)(ret->boot_id[nibbles / 2] << 4 | value);
            nibbles++;
        }
    (void)fclose(file);
}

bool dump_same_boot(const struct dump_file *file, const struct dump_clock *clock)
{
    return memcmp(file->view.identity.boot_id, clock->boot_id, sizeof clock->boot_id) == 0;
}

/* Reads up to `size` bytes; what the file no longer has stays as it is. Returns how many there were. */
static uint64_t dump_pread(int fd, void *ret, uint64_t size, uint64_t at)
{
    uint64_t done = 0;
    while (done < size) {
        ssize_t n = pread(fd, (char *)ret + done, (size_t)(size - done), (off_t)(at + done));
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            break;
        done += (uint64_t)n;
    }
    return done;
}

/* The instance in the name of a segment: wideep.<instance>.e<engine>.(r|fe)<number>. NULL and a length of 0: none. */
static const char *dump_name_instance(const char *name, size_t *ret_length)
{
    regmatch_t match[2];
    regex_t pattern;
    const char *found = NULL;

    *ret_length = 0;
    if (regcomp(&pattern, "^wideep\\.(.+)\\.e[0-9]+\\.(r|fe)[0-9]+$", REG_EXTENDED) != 0)
        return NULL;
    if (regexec(&pattern, name, 2, match, 0) == 0 &&
        wideep_instance_valid(name + match[1].rm_so, (size_t)(match[1].rm_eo - match[1].rm_so))) {
        found = name + match[1].rm_so;
        *ret_length = (size_t)(match[1].rm_eo - match[1].rm_so);
    }
    regfree(&pattern);
    return found;
}

/* May a file that cannot be read be one of this instance, by its name? */
static bool dump_name_of_instance(const char *name, const char *instance)
{
    size_t length;
    const char *found = dump_name_instance(name, &length);

    return strcmp(instance, "*") == 0 || (found && strlen(instance) == length && strncmp(found, instance, length) == 0);
}

static void dump_file_free(struct dump_file *file)
{
    if (file->copy)
        (void)munmap(file->copy, (size_t)file->size);
    if (file->fd >= 0)
        (void)close(file->fd);
    file->copy = NULL;
    file->fd = -1;
}

static int dump_file_fail(struct dump_file *file, const char *reason)
{
    (void)snprintf(file->error, sizeof file->error, "%s", reason);
    dump_file_free(file);
    return -EBADMSG;
}

static const char *dump_base_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

/* Returns 0, or -EBADMSG with the reason in file->error. `link`: a symbolic link may lead to it. */
static int dump_file_load(struct dump_file *file, const char *path, bool link)
{
    struct stat st;
    char name[128];

    memset(file, 0, sizeof *file);
    file->path = path;
    file->fd = -1;
    /* Before it is opened, which has effects where it is a device, and fails where it is a socket. */
    if ((link ? stat(path, &st) : lstat(path, &st)) != 0)
        return dump_file_fail(file, strerror(errno));
    if (!S_ISREG(st.st_mode))
        return dump_file_fail(file, DUMP_NOT_REGULAR);
    file->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | (link ? 0 : O_NOFOLLOW));
    if (file->fd < 0)
        return dump_file_fail(file, strerror(errno));
    if (fstat(file->fd, &st) != 0)
        return dump_file_fail(file, strerror(errno));
    if (!S_ISREG(st.st_mode))
        return dump_file_fail(file, DUMP_NOT_REGULAR);
    if (st.st_size == 0)
        return dump_file_fail(file, wideep_reason_name(WIDEEP_BAD_EMPTY));
    if ((uint64_t)st.st_size > WIDEEP_MAX_SEGMENT_SIZE)
        return dump_file_fail(file, wideep_reason_name(WIDEEP_BAD_SIZE));
    file->owner = st.st_uid;
    file->size = (uint64_t)st.st_size;
    void *copy = mmap(NULL, (size_t)file->size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (copy == MAP_FAILED)
        return dump_file_fail(file, strerror(errno));
    file->copy = (unsigned char *)copy;
    uint64_t size = dump_pread(file->fd, file->copy, file->size, 0);
    enum wideep_reason reason = wideep_view_init(&file->view, file->copy, size);
    if (reason != WIDEEP_OK)
        return dump_file_fail(file, wideep_reason_name(reason));
    int alive = wideep_writer_alive(file->fd);
    if (alive < 0)
        return dump_file_fail(file, strerror(-alive));
    file->state = alive ? DUMP_ALIVE : wideep_load(&file->view.live->closed_ns) ? DUMP_CLOSED : DUMP_DEAD;
    const struct wideep_identity *id = &file->view.identity;
    wideep_segment_name(name, sizeof name, id->instance, id->role, id->engine, id->rank);
    file->name_matches = strcmp(name, dump_base_name(path)) == 0;
    return 0;
}

uint64_t dump_ring_range(const struct wideep_ring *ring, uint64_t want, uint64_t *ret_head)
{
    uint64_t head = wideep_ring_head(ring), tail = wideep_ring_tail(ring, head);
    *ret_head = head;
    return head - tail > want ? head - want : tail;
}

void dump_refresh(const struct dump_file *file, const struct wideep_ring *ring, uint64_t n)
{
    uint64_t at = (uint64_t)(ring->slots - file->copy) + n % ring->count * ring->stride, before = 0, after = 0;
    unsigned char *slot = file->copy + at;

    if (dump_pread(file->fd, &before, sizeof before, at) != sizeof before)
        before = 0;
    WIDEEP_FENCE_ACQUIRE();
    if (dump_pread(file->fd, slot, ring->stride, at) != ring->stride)
        before = 0;
    WIDEEP_FENCE_ACQUIRE();
    if (dump_pread(file->fd, &after, sizeof after, at) != sizeof after || after != before)
        before = 0; /* 0 is the seq of no record */
    memcpy(slot, &before, sizeof before);
}

uint64_t dump_plane_sum(const struct wideep_view *view, uint32_t model, int experts)
{
    const uint64_t *plane = experts ? view->expert_tokens : view->rank_tokens;
    uint64_t sum = 0;
    for (uint64_t i = wideep_plane_offset(&view->identity, model, experts);
         plane && i < wideep_plane_offset(&view->identity, model + 1, experts); i++)
        sum += wideep_load(plane + i);
    return sum;
}

/* ---- the program -------------------------------------------------------------------------------------------- */

static void dump_complain(const char *path, const char *reason)
{
    (void)fputs("wideep-dump: ", stderr);
    dump_text_escaped(stderr, path, strlen(path));
    (void)fprintf(stderr, ": %s\n", reason);
}

/* What came of all files. */
struct dump_result {
    unsigned shown; /* bad ones too */
    bool bad;
    const char *error; /* why the directory cannot be read, or NULL */
};

/* Of a directory, the name says which instance a bad file belongs to. */
static void dump_show(struct dump_result *result, const char *path, bool named, const struct dump_config *config,
                      const struct dump_clock *clock)
{
    struct dump_file file;
    size_t length;
    struct stat st;
    int error = dump_file_load(&file, path, named);
    /* It went away between listing and opening: there is nothing wrong with that. */
    if (error && !named && lstat(path, &st) != 0 && errno == ENOENT)
        return;
    /* The exporter looks at the name first, and at nothing else where that is no segment's. */
    if (error && !named && !dump_name_instance(dump_base_name(path), &length))
        (void)dump_file_fail(&file, wideep_reason_name(WIDEEP_BAD_NAME));
    const char *instance = error ? NULL : file.view.identity.instance;
    bool wanted = instance ? strcmp(config->instance, "*") == 0 || strcmp(config->instance, instance) == 0
                           : named || dump_name_of_instance(dump_base_name(path), config->instance);
    if (wanted) {
        if (error)
            dump_complain(path, file.error);
        if (config->json)
            dump_json_file(stdout, &file, config, clock);
        else if (!error)
            dump_text(stdout, &file, config, clock);
    }
    dump_file_free(&file);
    result->shown += wanted;
    result->bad |= wanted && error;
}

static int dump_select(const struct dirent *entry)
{
    return strncmp(entry->d_name, "wideep.", 7) == 0;
}

static void dump_nothing(const struct dump_config *config)
{
    (void)fputs("no segments", stdout);
    if (strcmp(config->instance, "*") != 0)
        (void)printf(" of instance %s", config->instance);
    (void)fputs(" in ", stdout);
    dump_text_escaped(stdout, config->directory, strlen(config->directory));
    (void)fputc('\n', stdout);
}

static void dump_directory(struct dump_result *result, const struct dump_config *config, const struct dump_clock *clock)
{
    struct dirent **entries = NULL;
    int count = scandir(config->directory, &entries, dump_select, versionsort);
    if (count < 0) {
        result->error = strerror(errno);
        result->bad = true;
        dump_complain(config->directory, result->error);
        return;
    }
    for (int i = 0; i < count; i++) {
        char path[PATH_MAX];
        int length = snprintf(path, sizeof path, "%s/%s", config->directory, entries[i]->d_name);
        if (length > 0 && (size_t)length < sizeof path)
            dump_show(result, path, false, config, clock);
        free(entries[i]);
    }
    free(entries);
    if (result->shown == 0 && !config->json)
        dump_nothing(config);
}

static void dump_help(void)
{
    (void)printf("Usage: wideep-dump [--FLAG=VALUE | --FLAG VALUE]... [FILE]...\n"
                 "\n"
                 "Shows what is in the shared-memory segments of a wide expert-parallel engine: who writes them,\n"
                 "whether the writer lives, its totals and its newest records. Reads only. Without FILE: all segments\n"
                 "of the directory.\n"
                 "\n"
                 "Flags:\n"
                 "  --shm.dir DIR            the directory [$WIDEEP_SHM_DIR, else /dev/shm]\n"
                 "  --instance NAME          segments of this instance alone [*, which is all]\n"
                 "  --records N              newest records of each ring, up to %u; 0: none [10]\n"
                 "  --json                   one JSON document\n"
                 "  --version                print version and commit, and exit\n"
                 "  --help                   print this help, and exit; also -h\n"
                 "\n"
                 "Exit status: 0; 1 when a file or the directory was bad or unreadable; 2 for wrong usage.\n",
                 DUMP_RECORDS_MAX);
}

static int dump_usage(const char *what, const char *value)
{
    (void)fprintf(stderr, "wideep-dump: %s", what);
    dump_text_escaped(stderr, value, strlen(value));
    (void)fputs("; try --help\n", stderr);
    return 2;
}

static int dump_unknown(const struct option *known, const char *given)
{
    char name[NEAREST_LENGTH_MAX + 1];
    const char *word = given + strspn(given, "-");

    (void)snprintf(name, sizeof name, "%.*s", (int)strcspn(word, "="), word);
    struct nearest nearest = nearest_to(name);
    for (; known->name; known++) {
        if (strcmp(known->name, name) == 0)
            return dump_usage("this flag takes no value: ", given);
        nearest_offer(&nearest, known->name);
    }
    (void)fputs("wideep-dump: unknown flag ", stderr);
    dump_text_escaped(stderr, given, strlen(given));
    (void)fprintf(stderr, "; %s%s%stry --help\n", nearest.name ? "did you mean --" : "",
                  nearest.name ? nearest.name : "", nearest.name ? "? " : "");
    return 2;
}

/* Above any letter. */
enum dump_option { DUMP_DIRECTORY = 256, DUMP_INSTANCE, DUMP_RECORDS, DUMP_JSON, DUMP_VERSION };

int main(int argc, char **argv)
{
    static const struct option options[] = {{"shm.dir", required_argument, NULL, DUMP_DIRECTORY},
                                            {"instance", required_argument, NULL, DUMP_INSTANCE},
                                            {"records", required_argument, NULL, DUMP_RECORDS},
                                            {"json", no_argument, NULL, DUMP_JSON},
                                            {"version", no_argument, NULL, DUMP_VERSION},
                                            {"help", no_argument, NULL, 'h'},
                                            {NULL, 0, NULL, 0}};
    char letter[] = "-?";
    struct dump_config config = {.directory = getenv("WIDEEP_SHM_DIR"), .instance = "*", .records = 10};
    struct dump_clock clock;
    struct dump_result result = {0};

    opterr = 0;
    for (int option; (option = getopt_long(argc, argv, ":h", options, NULL)) != -1;) {
        char *end = NULL;
        switch (option) {
        case DUMP_DIRECTORY: config.directory = optarg; break;
        case DUMP_INSTANCE: config.instance = optarg; break;
        case DUMP_RECORDS:
            errno = 0;
            config.records = strtoull(optarg, &end, 10);
            if (*optarg < '0' || *optarg > '9' || *end || errno || config.records > DUMP_RECORDS_MAX)
                return dump_usage("--records takes a number from 0 to 1000000, not ", optarg);
            break;
        case DUMP_JSON: config.json = true; break;
        case DUMP_VERSION: (void)printf("wideep-dump %s (commit %s)\n", WIDEEP_VERSION, WIDEEP_COMMIT); return 0;
        case 'h': dump_help(); return 0;
        case ':': return dump_usage("a value is missing after ", argv[optind - 1]);
        default:
            /* Of a group of letters getopt says which; else it is the whole word. */
            letter[1] = (char)optopt;
            return dump_unknown(options,
                                optopt > 0 && optopt < DUMP_DIRECTORY && optopt != 'h' ? letter : argv[optind - 1]);
        }
    }
    if (strcmp(config.instance, "*") != 0 && !wideep_instance_valid(config.instance, strlen(config.instance)))
        return dump_usage("an instance has 1 to 63 of A-Z a-z 0-9 . _ - and no leading dot, unlike ", config.instance);
    if (!config.directory || !*config.directory)
        config.directory = "/dev/shm";
    if (optind < argc)
        config.directory = NULL;

    dump_clock_read(&clock);
    if (config.json)
        dump_json_begin(stdout, &config, &clock);
    if (config.directory)
        dump_directory(&result, &config, &clock);
    for (int i = optind; i < argc; i++)
        dump_show(&result, argv[i], true, &config, &clock);
    if (config.json)
        dump_json_end(stdout, result.error);
    if (fflush(stdout) != 0 || ferror(stdout)) {
        (void)fprintf(stderr, "wideep-dump: standard output: %s\n", strerror(errno));
        return 1;
    }
    return result.bad;
}
