/* wideep_shm.h without a second process: arguments, arithmetic of the totals, and what wideep_view_init()
 * refuses. */
#include "wideep_shm.h"
#include "suite.h"

static char directory[64];

static void setup(void)
{
    strcpy(directory, "/tmp/wideep-abi.XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(directory));
}

static void teardown(void)
{
    char path[512];
    DIR *entries = opendir(directory);
    ck_assert_ptr_nonnull(entries);
    for (struct dirent *entry; (entry = readdir(entries)) != NULL;) {
        (void)snprintf(path, sizeof path, "%s/%s", directory, entry->d_name);
        (void)unlink(path);
    }
    (void)closedir(entries);
    (void)rmdir(directory);
}

static struct wideep_config config_of(void)
{
    struct wideep_config config = {
        .directory = directory, .ep_size = 2, .model_count = 2, .models = {{"target", 3, 4, 6}, {"draft", 1, 2, 0}}};
    return config;
}

static struct wideep_writer *writer_new(void)
{
    struct wideep_writer *w = NULL;
    struct wideep_config config = config_of();
    ck_assert_int_eq(wideep_create(&w, &config), 0);
    if (!w) /* for the analyser, which does not know ck_assert */
        abort();
    return w;
}

/* ---- arithmetic ---- */

START_TEST(buckets_agree_with_bounds)
{
    for (unsigned i = 0; i + 1 < WIDEEP_DURATION_BUCKETS; i++) {
        ck_assert_uint_eq(wideep_duration_bucket(wideep_duration_bound_ns(i)), i);
        ck_assert_uint_eq(wideep_duration_bucket(wideep_duration_bound_ns(i) + 1), i + 1);
    }
    ck_assert_uint_eq(wideep_duration_bucket(0), 0);
    ck_assert_uint_eq(wideep_duration_bucket(UINT64_MAX), WIDEEP_DURATION_BUCKETS - 1);
    for (unsigned i = 0; i + 1 < WIDEEP_UBATCH_BUCKETS; i++) {
        ck_assert_uint_eq(wideep_ubatch_bucket((uint32_t)wideep_ubatch_bound(i)), i);
        ck_assert_uint_eq(wideep_ubatch_bucket((uint32_t)wideep_ubatch_bound(i) + 1), i + 1);
    }
    ck_assert_uint_eq(wideep_ubatch_bucket(0), 0);
    ck_assert_uint_eq(wideep_ubatch_bucket(UINT32_MAX), WIDEEP_UBATCH_BUCKETS - 1);
    ck_assert_uint_eq(wideep_ubatch_bound(WIDEEP_UBATCH_BUCKETS - 2), 8192);
}
END_TEST

START_TEST(names)
{
    char name[128];
    wideep_segment_name(name, sizeof name, "prod.a", WIDEEP_ROLE_RANK, 3, 17);
    ck_assert_str_eq(name, "wideep.prod.a.e3.r17");
    wideep_segment_name(name, sizeof name, "default", WIDEEP_ROLE_FRONTEND, 0, 2);
    ck_assert_str_eq(name, "wideep.default.e0.fe2");
    ck_assert(wideep_instance_valid("aZ09._-", 7));
    ck_assert(!wideep_instance_valid("", 0));
    ck_assert(!wideep_instance_valid(".hidden", 7));
    ck_assert(!wideep_instance_valid("a/b", 3));
    ck_assert(!wideep_instance_valid("a b", 3));
    ck_assert(!wideep_instance_valid("\xc3\xa4", 2));
    char longest[65];
    memset(longest, 'x', sizeof longest);
    ck_assert(wideep_instance_valid(longest, 63));
    ck_assert(!wideep_instance_valid(longest, 64));
    for (int reason = 0; reason < WIDEEP_REASONS; reason++)
        ck_assert_str_ne(wideep_reason_name((enum wideep_reason)reason), "unknown");
    ck_assert_str_eq(wideep_reason_name(WIDEEP_REASONS), "unknown");
    const int errors[] = {EBUSY,  EPERM,  ENOSPC, ENOENT, ENOTDIR,      EACCES, EROFS,
                          ECHILD, ESTALE, EINVAL, ERANGE, ENAMETOOLONG, EEXIST};
    for (size_t i = 0; i < sizeof errors / sizeof errors[0]; i++) {
        ck_assert_str_eq(wideep_error_text(errors[i]), wideep_error_text(-errors[i]));
        ck_assert_str_ne(wideep_error_text(-errors[i]), strerror(errors[i]));
    }
}
END_TEST

/* ---- arguments ---- */

START_TEST(create_refuses)
{
    static char longest[600];
    struct wideep_writer *w = NULL;
    struct wideep_config config;
    memset(longest, 'x', sizeof longest - 1);
    char name_256[257];
    memset(name_256, 'n', 256);
    name_256[256] = 0;
#define REFUSES(error, ...)                                  \
    do {                                                     \
        config = config_of();                                \
        __VA_ARGS__;                                         \
        ck_assert_int_eq(wideep_create(&w, &config), error); \
        ck_assert_ptr_null(w);                               \
    } while (0)
    REFUSES(-EINVAL, config.role = 3);
    REFUSES(-EINVAL, config.model_count = 0);
    REFUSES(-EINVAL, config.model_count = WIDEEP_MAX_MODELS + 1);
    REFUSES(-EINVAL, config.engine = WIDEEP_MAX_NUMBER + 1);
    REFUSES(-EINVAL, config.rank = 2);
    REFUSES(-EINVAL, config.role = WIDEEP_ROLE_FRONTEND; config.rank = WIDEEP_MAX_NUMBER + 1);
    REFUSES(-EINVAL, config.tp_rank = WIDEEP_MAX_NUMBER + 1);
    REFUSES(-EINVAL, config.ep_size = WIDEEP_MAX_EP_SIZE + 1);
    REFUSES(-EINVAL, config.models[0].name = NULL);
    REFUSES(-EINVAL, config.models[1].name = "");
    REFUSES(-EINVAL, config.models[1].name = "target");
    REFUSES(-EINVAL, config.models[0].layers = WIDEEP_MAX_LAYERS + 1);
    REFUSES(-EINVAL, config.models[0].logical_experts = 0; config.models[0].physical_experts = 0);
    REFUSES(-EINVAL, config.models[0].logical_experts = WIDEEP_MAX_LOGICAL_EXPERTS + 1);
    REFUSES(-EINVAL, config.models[0].physical_experts = WIDEEP_MAX_PHYSICAL_EXPERTS + 2);
    REFUSES(-EINVAL, config.models[0].physical_experts = 7);
    REFUSES(-EINVAL, config.instance = "a/b");
    REFUSES(-EINVAL, config.instance = ".a");
    REFUSES(-ENAMETOOLONG, config.instance = longest);
    REFUSES(-ENAMETOOLONG, config.models[0].name = name_256);
    REFUSES(-ENOENT, config.directory = "/nonexistent/wideep");
    REFUSES(-ENOTDIR, config.directory = "/proc/self/exe");
    REFUSES(-ENOTDIR, config.directory = "/dev/null");
    REFUSES(-ENOTDIR, config.directory = "/dev/null/wideep");
#undef REFUSES
    config = config_of();
    ck_assert_int_eq(wideep_create(NULL, &config), -EINVAL);
    ck_assert_int_eq(wideep_create(&w, NULL), -EINVAL);
    DIR *entries = opendir(directory);
    for (struct dirent *entry; (entry = readdir(entries)) != NULL;)
        ck_assert_msg(entry->d_name[0] == '.' && strlen(entry->d_name) <= 2, "left behind: %s", entry->d_name);
    (void)closedir(entries);
}
END_TEST

START_TEST(create_takes_the_limits)
{
    struct wideep_writer *w = NULL;
    struct wideep_view view;
    char name_255[256];
    memset(name_255, 'n', 255);
    name_255[255] = 0;
    struct wideep_config config = {.directory = directory,
                                   .engine = WIDEEP_MAX_NUMBER,
                                   .rank = WIDEEP_MAX_EP_SIZE - 1,
                                   .ep_size = WIDEEP_MAX_EP_SIZE,
                                   .model_count = 1,
                                   .models = {{name_255, WIDEEP_MAX_LAYERS, 256, 8192}}};
    ck_assert_int_eq(wideep_create(&w, &config), 0);
    if (!w)
        abort();
    ck_assert_int_eq(wideep_view_init(&view, w->base, w->size), WIDEEP_OK);
    ck_assert_uint_eq(view.eplb.batch, WIDEEP_MAX_LAYERS);
    ck_assert_uint_eq(view.eplb.count, (WIDEEP_RING_MIN_PASSES + 1) * WIDEEP_MAX_LAYERS);
    wideep_close(&w);
    /* The environment gives what the config leaves open. */
    ck_assert_int_eq(setenv("WIDEEP_SHM_DIR", directory, 1), 0);
    ck_assert_int_eq(setenv("WIDEEP_INSTANCE", "from-env", 1), 0);
    config = config_of();
    config.directory = NULL;
    ck_assert_int_eq(wideep_create(&w, &config), 0);
    ck_assert_str_eq(w->name, "wideep.from-env.e0.r0");
    wideep_close(&w);
    ck_assert_ptr_null(w);
    wideep_close(&w);
    wideep_close(NULL);
    ck_assert_int_eq(unsetenv("WIDEEP_SHM_DIR") | unsetenv("WIDEEP_INSTANCE"), 0);
}
END_TEST

/* Everything behind the identity, to compare before and after: what records nothing must move nothing. */
static unsigned char *frozen(const struct wideep_writer *w)
{
    unsigned char *copy = malloc(w->size);
    ck_assert_ptr_nonnull(copy);
    memcpy(copy, w->base, w->size);
    return copy;
}

START_TEST(records_refuse_and_record_nothing)
{
    struct wideep_writer *w = writer_new();
    int32_t loads[18] = {1};
    struct wideep_pass pass = {.pass = 1}, bad_model = {.model = 2}, bad_pass = {.pass = WIDEEP_MAX_PASS + 1};
    struct wideep_eplb_layer layers[4] = {{.layer = 0, .avg_tokens_per_rank = 1, .max_tokens_per_rank = 2},
                                          {.layer = 1, .avg_tokens_per_rank = 1, .max_tokens_per_rank = 2}};
    unsigned char *before = frozen(w);
    ck_assert_int_eq(wideep_record_pass(NULL, &pass, loads, NULL), -EINVAL);
    ck_assert_int_eq(wideep_record_pass(w, NULL, loads, NULL), -EINVAL);
    ck_assert_int_eq(wideep_record_pass(w, &pass, NULL, NULL), -EINVAL);
    ck_assert_int_eq(wideep_record_pass(w, &bad_model, loads, NULL), -EINVAL);
    ck_assert_int_eq(wideep_record_pass(w, &bad_pass, loads, NULL), -EINVAL);
    ck_assert_int_eq(wideep_skip_pass(w, &bad_model), -EINVAL);
    ck_assert_int_eq(wideep_skip_pass(w, NULL), -EINVAL);
    ck_assert_int_eq(wideep_record_eplb(w, &pass, NULL, 1), -EINVAL);
    ck_assert_int_eq(wideep_record_eplb(w, &pass, layers, 0), -EINVAL);
    ck_assert_int_eq(wideep_record_eplb(w, &pass, layers, 4), -EINVAL);
    ck_assert_int_eq(wideep_record_eplb(w, &bad_model, layers, 1), -EINVAL);
    const struct wideep_eplb_layer bad[] = {
        {.layer = 1}, /* not increasing */
        {.layer = 3}, /* past the end */
        {.layer = 2, .avg_tokens_per_rank = 3, .max_tokens_per_rank = 2},
        {.layer = 2, .avg_tokens_per_rank = -1, .max_tokens_per_rank = 2},
        {.layer = 2, .avg_tokens_per_rank = (double)__builtin_nanf(""), .max_tokens_per_rank = 2},
        {.layer = 2, .avg_tokens_per_rank = 0, .max_tokens_per_rank = (double)__builtin_nanf("")},
        {.layer = 2, .avg_tokens_per_rank = 0, .max_tokens_per_rank = (double)__builtin_inff()},
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        layers[2] = bad[i];
        ck_assert_msg(wideep_record_eplb(w, &pass, layers, 3) == -EINVAL, "case %u", (unsigned)i);
    }
    const struct wideep_dbo_stats bad_dbo[] = {
        {.phase = 2}, {.outcome = 6}, {.ubatches = 5}, {.pass = WIDEEP_MAX_PASS + 1}};
    for (size_t i = 0; i < sizeof bad_dbo / sizeof bad_dbo[0]; i++)
        ck_assert_int_eq(wideep_record_dbo(w, &bad_dbo[i]), -EINVAL);
    ck_assert_int_eq(wideep_record_dbo(w, NULL), -EINVAL);
    ck_assert_int_eq(wideep_record_dbo(NULL, NULL), -EINVAL);
    ck_assert_int_eq(wideep_rearrangement_begin(w, 2, WIDEEP_SYNC), -EINVAL);
    ck_assert_int_eq(wideep_rearrangement_begin(w, 0, (enum wideep_mode)2), -EINVAL);
    ck_assert_int_eq(wideep_rearrangement_end(w, 2, NULL), -EINVAL);
    ck_assert_int_eq(wideep_rearrangement_end(w, 0, NULL), -EALREADY);
    ck_assert_int_eq(wideep_rearrangement_abort(w, 2), -EINVAL);
    ck_assert_int_eq(wideep_rearrangement_abort(w, 0), -EALREADY);
    ck_assert_int_eq(wideep_record_tokens(NULL, 1, 1), -EINVAL);
    ck_assert_int_eq(wideep_check(NULL), -EINVAL);
    ck_assert_int_eq(memcmp(before, w->base, w->size), 0);
    free(before);
    wideep_close(&w);
}
END_TEST

START_TEST(a_front_end_has_tokens_only)
{
    struct wideep_writer *w = NULL;
    struct wideep_config config = config_of();
    struct wideep_pass pass = {.pass = 1};
    struct wideep_dbo_stats stats = {.pass = 1};
    struct wideep_eplb_layer layer = {.max_tokens_per_rank = 1};
    int32_t loads[18] = {0};
    config.role = WIDEEP_ROLE_FRONTEND;
    ck_assert_int_eq(wideep_create(&w, &config), 0);
    ck_assert_int_eq(wideep_record_pass(w, &pass, loads, NULL), -EINVAL);
    ck_assert_int_eq(wideep_record_eplb(w, &pass, &layer, 1), -EINVAL);
    ck_assert_int_eq(wideep_record_dbo(w, &stats), -EINVAL);
    ck_assert_int_eq(wideep_record_tokens(w, 5, 7), 0);
    ck_assert_uint_eq(w->totals->prompt_tokens, 5);
    ck_assert_uint_eq(w->totals->generation_tokens, 7);
    wideep_close(&w);
}
END_TEST

/* ---- what is counted ---- */

static uint64_t sum(const uint64_t *words, size_t count)
{
    uint64_t total = 0;
    for (size_t i = 0; i < count; i++)
        total += wideep_load(words + i);
    return total;
}

START_TEST(negative_loads_and_bad_maps_count_as_nothing)
{
    struct wideep_writer *w = writer_new();
    struct wideep_view view;
    struct wideep_eplb_record r;
    uint32_t tokens[2];
    struct wideep_pass pass = {.pass = 9, .step = 4};
    int32_t loads[18] = {1, 2, -3, 4, 5, INT32_MIN, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, INT32_MAX};
    int32_t map[18] = {0, 1, 2, 3, 4, -1, -2, 0, 0, 0, 0, 0, 0, 0, 0, INT32_MIN, INT32_MAX, 3};
    ck_assert_int_eq(wideep_record_pass(w, &pass, loads, map), -ERANGE);
    ck_assert_uint_eq(w->rank_tokens[0][0], 3);
    ck_assert_uint_eq(w->rank_tokens[0][1], 9);
    ck_assert_uint_eq(w->rank_tokens[0][2], 10);
    ck_assert_uint_eq(w->rank_tokens[0][5], INT32_MAX);
    const uint64_t experts[12] = {1, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, INT32_MAX};
    for (int i = 0; i < 12; i++)
        ck_assert_uint_eq(w->expert_tokens[0][i], experts[i]);
    ck_assert_uint_eq(w->totals->models[0].recorded_passes, 1);
    ck_assert_uint_eq(w->totals->models[1].recorded_passes, 0);
    ck_assert_int_eq(wideep_view_init(&view, w->base, w->size), WIDEEP_OK);
    ck_assert_int_eq(wideep_eplb_read(&view, 0, &r, tokens), WIDEEP_READ_OK);
    ck_assert_uint_eq(tokens[0], 3);
    ck_assert_uint_eq(tokens[1], 9);
    ck_assert(r.flags == (WIDEEP_PARTIAL | WIDEEP_FIRST) && r.step == 4 && r.pass == 9);
    /* A good pass after it is good; one without a map leaves the experts alone. */
    memset(loads, 0, sizeof loads);
    loads[0] = 1;
    ck_assert_int_eq(wideep_record_pass(w, &pass, loads, NULL), 0);
    ck_assert_uint_eq(w->expert_tokens[0][0], 1);
    /* -1 is an empty slot, not an error. */
    memset(map, 0xff, sizeof map);
    ck_assert_int_eq(wideep_record_pass(w, &pass, loads, map), 0);
    ck_assert_uint_eq(w->expert_tokens[0][0], 1);
    ck_assert_uint_eq(w->rank_tokens[0][0], 5);
    /* The second model has planes of its own. */
    pass.model = 1;
    ck_assert_int_eq(wideep_record_pass(w, &pass, loads, map), 0);
    ck_assert_uint_eq(w->rank_tokens[1][0], 1);
    ck_assert_uint_eq(w->rank_tokens[0][0], 5);
    wideep_close(&w);
}
END_TEST

START_TEST(loads_of_the_last_slot_count_once)
{
    struct wideep_writer *w = writer_new();
    struct wideep_pass pass = {.pass = 0};
    int32_t loads[18], map[18];
    for (int i = 0; i < 18; i++) {
        loads[i] = INT32_MAX;
        map[i] = i % 4;
    }
    for (uint64_t k = 0; k < 3; k++) {
        pass.pass = k;
        ck_assert_int_eq(wideep_record_pass(w, &pass, loads, map), 0);
    }
    ck_assert_uint_eq(sum(w->rank_tokens[0], 6), 3ull * 18 * INT32_MAX);
    ck_assert_uint_eq(sum(w->expert_tokens[0], 12), 3ull * 18 * INT32_MAX);
    /* Three times 2^31 does not fit a record's 32 bits; the plane has it, the record has the largest it can.
     */
    struct wideep_view view;
    struct wideep_eplb_record r;
    uint32_t tokens[2];
    ck_assert_int_eq(wideep_view_init(&view, w->base, w->size), WIDEEP_OK);
    ck_assert_int_eq(wideep_eplb_read(&view, 0, &r, tokens), WIDEEP_READ_OK);
    ck_assert_uint_eq(tokens[0], UINT32_MAX);
    ck_assert(!(r.max_tokens_per_rank < 3.0 * INT32_MAX) && !(r.balancedness < 1) && !(r.balancedness > 1));
    wideep_close(&w);
}
END_TEST

/* Against the plainest arithmetic, for ranks of any width and loads of any size. */
START_TEST(loads_of_any_shape)
{
    enum { RANKS = 7, LAYERS = 2, LOGICAL = 5, WIDEST = 13 };
    uint64_t state = 88172645463325252ull;
    for (uint32_t per_rank = 1; per_rank <= WIDEST; per_rank++) {
        struct wideep_writer *w = NULL;
        struct wideep_config config = {.directory = directory,
                                       .engine = per_rank,
                                       .ep_size = RANKS,
                                       .model_count = 1,
                                       .models = {{"m", LAYERS, LOGICAL, RANKS * per_rank}}};
        uint64_t ranks[LAYERS * RANKS] = {0}, experts[LAYERS * LOGICAL] = {0};
        int32_t loads[LAYERS * RANKS * WIDEST], map[LAYERS * RANKS * WIDEST];
        struct wideep_view view;
        ck_assert_int_eq(wideep_create(&w, &config), 0);
        if (!w)
            abort();
        ck_assert_int_eq(wideep_view_init(&view, w->base, w->size), WIDEEP_OK);
        for (uint32_t k = 0; k < 400; k++) {
            uint64_t routed[LAYERS * RANKS] = {0};
            int bad = 0;
            for (uint32_t i = 0; i < LAYERS * RANKS * per_rank; i++) {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                /* Small, of any size, right at what 32 bits can add up, and now and then negative. */
                loads[i] = k % 4 == 0   ? (int32_t)(state >> 32 & 0x7fffffff)
                           : k % 4 == 1 ? (int32_t)(UINT32_MAX / per_rank / 2 + state % 2)
                                        : (int32_t)(state >> 40 & 0xfff);
                if (k % 4 == 3 && state % 16 == 0)
                    loads[i] = -loads[i];
                map[i] = (int32_t)(state >> 8 & 0xff) % (k % 2 ? LOGICAL : LOGICAL + 1);
                if (state % 32 == 1)
                    map[i] = -1;
                uint32_t layer = i / (RANKS * per_rank), rank = i / per_rank % RANKS;
                uint64_t counted = loads[i] > 0 ? (uint64_t)loads[i] : 0;
                bad |= loads[i] < 0 || map[i] >= LOGICAL;
                ranks[layer * RANKS + rank] += counted;
                routed[layer * RANKS + rank] += counted;
                if (map[i] >= 0 && map[i] < LOGICAL)
                    experts[layer * LOGICAL + (uint32_t)map[i]] += counted;
            }
            struct wideep_pass pass = {.pass = k};
            ck_assert_int_eq(wideep_record_pass(w, &pass, loads, map), bad ? -ERANGE : 0);
            ck_assert_int_eq(memcmp(ranks, w->rank_tokens[0], sizeof ranks), 0);
            ck_assert_int_eq(memcmp(experts, w->expert_tokens[0], sizeof experts), 0);
            for (uint32_t layer = 0; layer < LAYERS; layer++) {
                struct wideep_eplb_record r;
                uint32_t tokens[RANKS];
                uint64_t total = 0, max = 0;
                ck_assert_int_eq(wideep_eplb_read(&view, w->eplb_head - LAYERS + layer, &r, tokens), WIDEEP_READ_OK);
                for (uint32_t rank = 0; rank < RANKS; rank++) {
                    const uint64_t n = routed[layer * RANKS + rank];
                    ck_assert_uint_eq(tokens[rank], n > UINT32_MAX ? UINT32_MAX : n);
                    total += n;
                    max = n > max ? n : max;
                }
                ck_assert_double_eq(r.avg_tokens_per_rank, (double)total / RANKS);
                ck_assert_double_eq(r.max_tokens_per_rank, (double)max);
            }
        }
        wideep_close(&w);
    }
}
END_TEST

START_TEST(reduced_records)
{
    struct wideep_writer *w = writer_new();
    struct wideep_view view;
    struct wideep_eplb_record r;
    uint32_t tokens[2] = {9, 9};
    struct wideep_pass pass = {.pass = 7, .step = WIDEEP_STEP_UNKNOWN, .rearrangement_duration_ns = 11};
    struct wideep_eplb_layer layers[2] = {{.layer = 0, .avg_tokens_per_rank = 1, .max_tokens_per_rank = 4},
                                          {.layer = 2}};
    ck_assert_int_eq(wideep_record_eplb(w, &pass, layers, 2), 0);
    ck_assert_int_eq(wideep_view_init(&view, w->base, w->size), WIDEEP_OK);
    ck_assert_uint_eq(wideep_ring_head(&view.eplb), 2);
    ck_assert_int_eq(wideep_eplb_read(&view, 0, &r, tokens), WIDEEP_READ_OK);
    ck_assert(r.flags == (WIDEEP_REDUCED | WIDEEP_FIRST) && r.layer == 0 && r.step == WIDEEP_STEP_UNKNOWN);
    ck_assert(tokens[0] == 0 && tokens[1] == 0 && r.rearrangement_duration_ns == 11);
    ck_assert_double_eq(r.balancedness, 0.25);
    ck_assert_int_eq(wideep_eplb_read(&view, 1, &r, NULL), WIDEEP_READ_OK);
    ck_assert(r.flags == (WIDEEP_REDUCED | WIDEEP_LAST) && r.layer == 2);
    ck_assert_double_eq(r.balancedness, 0);
    ck_assert_uint_eq(w->totals->models[0].recorded_passes, 0);
    ck_assert_uint_eq(sum(w->rank_tokens[0], 6), 0);
    ck_assert_uint_eq(w->live->models[0].passes, 8);
    wideep_close(&w);
}
END_TEST

/* A reduced record leaves the tokens in its slot as they were; no reader takes them for its own. */
START_TEST(reduced_records_have_no_tokens)
{
    struct wideep_writer *w = writer_new();
    struct wideep_view view;
    struct wideep_eplb_record r;
    struct wideep_eplb_layer layer = {.layer = 0, .avg_tokens_per_rank = 1, .max_tokens_per_rank = 1};
    int32_t loads[18];
    uint32_t tokens[2] = {9, 9};
    struct wideep_pass pass = {.pass = 0};
    for (int i = 0; i < 18; i++)
        loads[i] = 7;
    for (; w->eplb_head < w->eplb_count; pass.pass++)
        ck_assert_int_eq(wideep_record_pass(w, &pass, loads, NULL), 0);
    uint64_t n = w->eplb_head;
    ck_assert_int_eq(wideep_record_eplb(w, &pass, &layer, 1), 0);
    ck_assert_int_eq(wideep_view_init(&view, w->base, w->size), WIDEEP_OK);
    ck_assert_int_eq(wideep_eplb_read(&view, n - 1, &r, tokens), WIDEEP_READ_OK);
    ck_assert(tokens[0] == 21 && tokens[1] == 21);
    ck_assert_int_eq(wideep_eplb_read(&view, n, &r, tokens), WIDEEP_READ_OK);
    ck_assert(tokens[0] == 0 && tokens[1] == 0);
    wideep_close(&w);
}
END_TEST

START_TEST(dbo_totals)
{
    struct wideep_writer *w = writer_new();
    for (uint32_t phase = 0; phase < WIDEEP_PHASES; phase++)
        for (uint32_t outcome = 0; outcome < WIDEEP_OUTCOMES; outcome++) {
            struct wideep_dbo_stats stats = {
                .pass = 1, .phase = phase, .outcome = outcome, .ubatches = 2, .ubatch_tokens = {100, 9000, 7, 7}};
            for (uint32_t i = 0; i <= outcome; i++)
                ck_assert_int_eq(wideep_record_dbo(w, &stats), 0);
            ck_assert_uint_eq(w->totals->dbo_passes[phase][outcome], outcome + 1);
            ck_assert_uint_eq(w->live->dbo_active, outcome == WIDEEP_ENGAGED ? 1u << phase : 0);
        }
    /* Only what engaged enters the histograms, and only as many ubatches as it had. */
    ck_assert_uint_eq(w->totals->ubatch_sum[0], 200);
    ck_assert_uint_eq(w->totals->ubatch_sum[1], 18000);
    ck_assert_uint_eq(w->totals->ubatch_sum[2], 0);
    ck_assert_uint_eq(w->totals->ubatch_bucket[0][7], 2);
    ck_assert_uint_eq(w->totals->ubatch_bucket[1][WIDEEP_UBATCH_BUCKETS - 1], 2);
    ck_assert_uint_eq(sum(&w->totals->ubatch_bucket[0][0], sizeof w->totals->ubatch_bucket / 8), 4);
    wideep_close(&w);
}
END_TEST

START_TEST(rearrangements)
{
    struct wideep_writer *w = writer_new();
    struct wideep_pass pass = {.pass = 1, .step = WIDEEP_STEP_UNKNOWN};
    uint64_t duration_ns = 0;
    ck_assert_int_eq(wideep_rearrangement_begin(w, 0, WIDEEP_ASYNC), 0);
    ck_assert_int_eq(wideep_rearrangement_begin(w, 0, WIDEEP_SYNC), -EALREADY);
    ck_assert_int_eq(wideep_rearrangement_begin(w, 1, WIDEEP_SYNC), 0);
    ck_assert_uint_ne(w->live->models[0].rebalancing_since_ns, 0);
    ck_assert_uint_eq(w->live->models[0].rebalancing_mode, WIDEEP_ASYNC);
    ck_assert_uint_eq(w->live->models[1].rebalancing_mode, WIDEEP_SYNC);
    ck_assert_int_eq(wideep_skip_pass(w, &pass), 0);
    ck_assert_uint_eq(w->live->models[0].since_rearrangement, 1);
    ck_assert_int_eq(wideep_rearrangement_end(w, 0, &duration_ns), 0);
    ck_assert_uint_eq(w->live->models[0].rebalancing_since_ns, 0);
    ck_assert_uint_eq(w->live->models[0].since_rearrangement, 0);
    ck_assert_uint_eq(w->totals->models[0].rearrangement_sum_ns, duration_ns);
    ck_assert_uint_eq(w->totals->models[0].rearrangement_bucket[WIDEEP_ASYNC][wideep_duration_bucket(duration_ns)], 1);
    ck_assert_uint_eq(sum(&w->totals->models[0].rearrangement_bucket[0][0], 26), 1);
    ck_assert_int_eq(wideep_rearrangement_abort(w, 1), 0);
    ck_assert_uint_eq(sum(&w->totals->models[1].rearrangement_bucket[0][0], 26), 0);
    pass.step = 17;
    ck_assert_int_eq(wideep_skip_pass(w, &pass), 0);
    ck_assert_uint_eq(w->live->models[0].since_rearrangement, 17);
    ck_assert_uint_eq(w->live->models[0].recording, WIDEEP_RECORDING_NO);
    /* Closing ends what was under way, and says so. */
    struct wideep_view view;
    char path[800];
    ck_assert_int_eq(wideep_rearrangement_begin(w, 0, WIDEEP_SYNC), 0);
    (void)snprintf(path, sizeof path, "%s/%s", w->directory, w->name);
    wideep_close(&w);
    ck_assert_int_eq(wideep_open(&view, path, NULL), 0);
    ck_assert_ptr_nonnull(view.live);
    ck_assert_uint_ne(view.live->closed_ns, 0);
    ck_assert_uint_eq(view.live->models[0].rebalancing_since_ns, 0);
    ck_assert_int_eq(wideep_writer_alive(view.fd), 0);
    wideep_view_close(&view);
    wideep_view_close(&view);
}
END_TEST

/* ---- what a reader refuses ---- */

struct broken {
    const char *what;
    enum wideep_reason reason;
    size_t at;
    uint64_t value;
    unsigned size; /* bytes of the value */
};

#define BREAK(reason, field, value)                                                              \
    {                                                                                            \
#field " = " #value, reason, offsetof(struct wideep_identity, field), (uint64_t)(value), \
            (unsigned)sizeof(((struct wideep_identity *)NULL)->field)                            \
    }

START_TEST(view_init_refuses)
{
    struct wideep_writer *w = writer_new();
    const uint64_t size = w->size;
    struct wideep_view view;
    void *copy = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    ck_assert_ptr_ne(copy, MAP_FAILED);
    const struct broken cases[] = {
        BREAK(WIDEEP_BAD_MAGIC, magic[7], 'm'),
        BREAK(WIDEEP_BAD_ENDIAN, endian, 0x04030201),
        BREAK(WIDEEP_BAD_WORD_SIZE, word_bits, 32),
        BREAK(WIDEEP_BAD_VERSION, abi_major, 2),
        BREAK(WIDEEP_BAD_VERSION, abi_major, 0),
        BREAK(WIDEEP_OK, abi_minor, 9),
        BREAK(WIDEEP_BAD_SIZE, identity_size, 1921),
        BREAK(WIDEEP_BAD_SIZE, section_size, 0),
        BREAK(WIDEEP_BAD_SIZE, model_size, 256),
        BREAK(WIDEEP_BAD_SIZE, total_size, 4095),
        BREAK(WIDEEP_BAD_SIZE, total_size, WIDEEP_MAX_SEGMENT_SIZE + 1),
        BREAK(WIDEEP_BAD_SIZE, total_size, UINT64_MAX),
        BREAK(WIDEEP_BAD_TRUNCATED, total_size, size + 4096),
        BREAK(WIDEEP_BAD_LIMIT, role, 0),
        BREAK(WIDEEP_BAD_LIMIT, role, 3),
        BREAK(WIDEEP_BAD_LIMIT, section_count, WIDEEP_MAX_SECTIONS + 1),
        BREAK(WIDEEP_BAD_LIMIT, model_count, 0),
        BREAK(WIDEEP_BAD_LIMIT, model_count, WIDEEP_MAX_MODELS + 1),
        BREAK(WIDEEP_BAD_LIMIT, engine, WIDEEP_MAX_NUMBER + 1),
        BREAK(WIDEEP_BAD_LIMIT, rank, WIDEEP_MAX_NUMBER + 1),
        BREAK(WIDEEP_BAD_LIMIT, rank, 2),
        BREAK(WIDEEP_BAD_LIMIT, tp_rank, WIDEEP_MAX_NUMBER + 1),
        BREAK(WIDEEP_BAD_LIMIT, ep_size, 0),
        BREAK(WIDEEP_BAD_LIMIT, ep_size, WIDEEP_MAX_EP_SIZE + 1),
        BREAK(WIDEEP_BAD_LIMIT, ep_size, 1), /* and the models say 2 */
        BREAK(WIDEEP_BAD_LIMIT, models[0].layers, WIDEEP_MAX_LAYERS + 1),
        BREAK(WIDEEP_BAD_LIMIT, models[0].logical_experts, 0),
        BREAK(WIDEEP_BAD_LIMIT, models[0].logical_experts, UINT32_MAX),
        BREAK(WIDEEP_BAD_LIMIT, models[0].physical_experts, 0),
        BREAK(WIDEEP_BAD_LIMIT, models[0].physical_experts, 7),
        BREAK(WIDEEP_BAD_LIMIT, models[1].ep_ranks, 3),
        BREAK(WIDEEP_BAD_NAME, instance_length, 0),
        BREAK(WIDEEP_BAD_NAME, instance_length, 64),
        BREAK(WIDEEP_BAD_NAME, instance_length, UINT32_MAX),
        BREAK(WIDEEP_BAD_NAME, instance[0], '/'),
        BREAK(WIDEEP_BAD_NAME, instance[7], 'x'), /* no end */
        BREAK(WIDEEP_BAD_NAME, models[0].name_length, 0),
        BREAK(WIDEEP_BAD_NAME, models[0].name_length, 256),
        BREAK(WIDEEP_BAD_NAME, models[0].name_length, UINT32_MAX),
        BREAK(WIDEEP_BAD_NAME, models[1].name[5], 'x'),
        BREAK(WIDEEP_BAD_SECTION, section_count, 0),
        BREAK(WIDEEP_BAD_SECTION, section_count, 5),
        BREAK(WIDEEP_BAD_SECTION, section_count, 7),     /* the seventh is all zero */
        BREAK(WIDEEP_BAD_SECTION, sections[0].type, 99), /* skipped: so live is missing */
        BREAK(WIDEEP_BAD_SECTION, sections[0].type, 2),  /* twice */
        BREAK(WIDEEP_BAD_SECTION, sections[2].type, 99), /* no EPLB ring */
        BREAK(WIDEEP_OK, sections[3].type, 99),          /* no DBO ring: a writer may leave it out */
        BREAK(WIDEEP_BAD_SECTION, sections[0].offset, 0),
        BREAK(WIDEEP_BAD_SECTION, sections[0].offset, 4097),
        BREAK(WIDEEP_BAD_SECTION, sections[0].offset, UINT64_MAX - 63),
        BREAK(WIDEEP_BAD_SECTION, sections[1].offset, 4096), /* overlap */
        BREAK(WIDEEP_BAD_SECTION, sections[0].length, 8),
        BREAK(WIDEEP_BAD_SECTION, sections[1].length, 8),
        BREAK(WIDEEP_BAD_SECTION, sections[5].length, UINT64_MAX),
        BREAK(WIDEEP_BAD_SECTION, sections[5].length, 8),
        BREAK(WIDEEP_BAD_SECTION, sections[4].length, 8),
        BREAK(WIDEEP_BAD_SECTION, sections[2].stride, 64),
        BREAK(WIDEEP_BAD_SECTION, sections[2].count, 0),
        BREAK(WIDEEP_BAD_SECTION, sections[2].count, UINT32_MAX),
        BREAK(WIDEEP_BAD_SECTION, sections[2].batch, 0),
        BREAK(WIDEEP_BAD_SECTION, sections[2].batch, UINT32_MAX),
        BREAK(WIDEEP_BAD_SECTION, sections[3].stride, 0),
        BREAK(WIDEEP_BAD_SECTION, sections[3].batch, 2), /* a call makes one record */
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        memcpy(copy, w->base, size);
        memcpy((char *)copy + cases[i].at, &cases[i].value, cases[i].size);
        enum wideep_reason reason = wideep_view_init(&view, copy, size);
        ck_assert_msg(reason == cases[i].reason, "%s: %s instead of %s", cases[i].what, wideep_reason_name(reason),
                      wideep_reason_name(cases[i].reason));
    }
    memcpy(copy, w->base, size);
    ck_assert_int_eq(wideep_view_init(&view, copy, 0), WIDEEP_BAD_EMPTY);
    ck_assert_int_eq(wideep_view_init(&view, copy, 100), WIDEEP_BAD_TRUNCATED);
    ck_assert_int_eq(wideep_view_init(&view, copy, size - 1), WIDEEP_BAD_TRUNCATED);
    ck_assert_int_eq(wideep_view_init(&view, copy, size), WIDEEP_OK);
    (void)munmap(copy, size);
    wideep_close(&w);
}
END_TEST

/* Rings that fit their file and would make a reader look through millions of slots, or lose as many at once. */
START_TEST(view_init_refuses_huge_rings)
{
    const uint32_t most = (uint32_t)(WIDEEP_MAX_RING_SIZE / 128);
    const struct {
        uint32_t count, batch;
        enum wideep_reason reason;
    } cases[] = {{most, WIDEEP_MAX_LAYERS, WIDEEP_OK},
                 {most + 1, WIDEEP_MAX_LAYERS, WIDEEP_BAD_SECTION},
                 {most, WIDEEP_MAX_LAYERS + 1, WIDEEP_BAD_SECTION},
                 {1u << 22, 1u << 21, WIDEEP_BAD_SECTION},
                 {1024, 1024, WIDEEP_BAD_SECTION},
                 {WIDEEP_MAX_LAYERS, WIDEEP_MAX_LAYERS, WIDEEP_OK}};
    struct wideep_writer *w = writer_new();
    struct wideep_view view;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const uint64_t length = WIDEEP_RING_HEADER + 128ull * cases[i].count;
        const uint64_t at = wideep_i_round_up(w->size, 4096), size = at + wideep_i_round_up(length, 4096);
        void *copy = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        ck_assert_ptr_ne(copy, MAP_FAILED);
        memcpy(copy, w->base, w->size);
        struct wideep_identity *identity = (struct wideep_identity *)copy;
        identity->total_size = size;
        identity->sections[2].offset = at;
        identity->sections[2].length = length;
        identity->sections[2].count = cases[i].count;
        identity->sections[2].batch = cases[i].batch;
        enum wideep_reason reason = wideep_view_init(&view, copy, size);
        ck_assert_msg(reason == cases[i].reason, "case %u: %s", (unsigned)i, wideep_reason_name(reason));
        (void)munmap(copy, size);
    }
    wideep_close(&w);
}
END_TEST

/* Any bytes at all: no access outside of what was given (the sanitizers look), and what is accepted can be
 * read. */
START_TEST(view_init_on_noise)
{
    struct wideep_writer *w = writer_new();
    struct wideep_view view;
    struct wideep_eplb_record eplb;
    struct wideep_dbo_record dbo;
    uint32_t tokens[WIDEEP_MAX_EP_SIZE];
    const uint64_t size = w->size;
    unsigned accepted = 0;
    unsigned char *copy = NULL;
    ck_assert_int_eq(posix_memalign((void **)&copy, 64, size), 0);
    uint64_t state = 88172645463325252ull;
    for (int round = 0; round < 20000; round++) {
        memcpy(copy, w->base, size);
        unsigned count = 1u + (unsigned)round % 4;
        for (unsigned i = 0; i < count; i++) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            copy[state % sizeof(struct wideep_identity)] = (unsigned char)(state >> 40);
        }
        if (wideep_view_init(&view, copy, size) != WIDEEP_OK)
            continue;
        accepted++;
        if (view.eplb.head)
            for (uint64_t n = 0; n < 3; n++)
                (void)wideep_eplb_read(&view, state + n, &eplb, tokens);
        if (view.dbo.head)
            (void)wideep_dbo_read(&view, state, &dbo);
        uint64_t words = 0;
        if (view.rank_tokens && view.expert_tokens)
            words = sum(view.rank_tokens, wideep_plane_offset(&view.identity, view.identity.model_count, 0)) +
                    sum(view.expert_tokens, wideep_plane_offset(&view.identity, view.identity.model_count, 1));
        ck_assert_uint_eq(words + sum(&view.totals->prompt_tokens, sizeof *view.totals / 8), 0);
    }
    ck_assert_uint_gt(accepted, 100);
    free(copy);
    wideep_close(&w);
}
END_TEST

START_TEST(open_refuses)
{
    struct wideep_view view;
    enum wideep_reason reason = WIDEEP_OK;
    char path[200];
    (void)snprintf(path, sizeof path, "%s/f", directory);
    ck_assert_int_eq(wideep_open(&view, path, &reason), -ENOENT);
    ck_assert_int_eq(wideep_open(&view, directory, &reason), -EINVAL);
    wideep_view_close(&view);
    int fd = open(path, O_CREAT | O_RDWR, 0600);
    ck_assert_int_ge(fd, 0);
    ck_assert_int_eq(wideep_open(&view, path, &reason), -EBADMSG);
    ck_assert_int_eq(reason, WIDEEP_BAD_EMPTY);
    ck_assert_int_eq(ftruncate(fd, 100), 0);
    ck_assert_int_eq(wideep_open(&view, path, &reason), -EBADMSG);
    ck_assert_int_eq(reason, WIDEEP_BAD_TRUNCATED);
    ck_assert_int_eq(ftruncate(fd, 8192), 0);
    ck_assert_int_eq(wideep_open(&view, path, NULL), -EBADMSG);
    ck_assert_int_eq(wideep_open(&view, path, &reason), -EBADMSG);
    ck_assert_int_eq(reason, WIDEEP_BAD_MAGIC);
    wideep_view_close(&view);
    /* A size that no segment has, in a file that is as long: refused, and never mapped whole. */
    struct wideep_writer *w = writer_new();
    struct wideep_identity identity = w->identity;
    wideep_close(&w);
    identity.total_size = 1ull << 43;
    ck_assert_int_eq((int)pwrite(fd, &identity, sizeof identity, 0), (int)sizeof identity);
    ck_assert_int_eq(ftruncate(fd, (off_t)1 << 43), 0);
    ck_assert_int_eq(wideep_open(&view, path, &reason), -EBADMSG);
    ck_assert_int_eq(reason, WIDEEP_BAD_SIZE);
    (void)close(fd);
    ck_assert_int_eq(unlink(path), 0);
    ck_assert_int_eq(symlink("/dev/null", path), 0);
    ck_assert_int_eq(wideep_open(&view, path, &reason), -ELOOP);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("abi");
    TCase *abi = tcase_create("abi");
    tcase_add_checked_fixture(abi, setup, teardown);
    tcase_set_timeout(abi, 120);
    tcase_add_test(abi, buckets_agree_with_bounds);
    tcase_add_test(abi, names);
    tcase_add_test(abi, create_refuses);
    tcase_add_test(abi, create_takes_the_limits);
    tcase_add_test(abi, records_refuse_and_record_nothing);
    tcase_add_test(abi, a_front_end_has_tokens_only);
    tcase_add_test(abi, negative_loads_and_bad_maps_count_as_nothing);
    tcase_add_test(abi, loads_of_the_last_slot_count_once);
    tcase_add_test(abi, loads_of_any_shape);
    tcase_add_test(abi, reduced_records);
    tcase_add_test(abi, reduced_records_have_no_tokens);
    tcase_add_test(abi, dbo_totals);
    tcase_add_test(abi, rearrangements);
    tcase_add_test(abi, view_init_refuses);
    tcase_add_test(abi, view_init_refuses_huge_rings);
    tcase_add_test(abi, view_init_on_noise);
    tcase_add_test(abi, open_refuses);
    suite_add_tcase(suite, abi);
    return suite_run(suite);
}
