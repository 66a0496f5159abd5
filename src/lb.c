#include "lb.h"

#include "reply.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>

struct lb {
    bool name_instances;
    pthread_mutex_t lock; /* guards what follows; held for a copy or an exchange of pointers, never for longer */
    struct lb_engine *engines;
    uint32_t count, capacity;
    uint64_t renewed_ns; /* CLOCK_BOOTTIME; 0: never */
    bool seen;           /* some engine had ranks once */

    /* The collector's alone: the board that is being drawn. */
    struct lb_engine *next;
    uint32_t next_capacity;
};

int lb_new(struct lb **ret, bool name_instances)
{
    struct lb *lb = calloc(1, sizeof *lb);

    if (!lb)
        return -ENOMEM;
    lb->name_instances = name_instances;
    (void)pthread_mutex_init(&lb->lock, NULL);
    *ret = lb;
    return 0;
}

void lb_free(struct lb *lb)
{
    if (!lb)
        return;
    (void)pthread_mutex_destroy(&lb->lock);
    free(lb->engines);
    free(lb->next);
    free(lb);
}

const char *lb_state_name(enum lb_state state)
{
    static const char *const names[LB_STATES] = {"unknown", "serving", "rebalancing", "blocked", "dead"};
    return names[state];
}

/* ---- the board ---------------------------------------------------------------------------------------------- */

static enum lb_state rank_state(const struct segment *segment, uint64_t *since_ns)
{
    enum lb_state state = LB_SERVING;

    for (uint32_t m = 0; m < segment->view.identity.model_count; m++) {
        const struct wideep_live_model *live = &segment->view.live->models[m];
        /* Pairs with the release in wideep_rearrangement_begin(): its mode is then there. */
        uint64_t begin_ns = wideep_load_acquire(&live->rebalancing_since_ns);
        if (begin_ns == 0)
            continue;
        enum lb_state found = wideep_load(&live->rebalancing_mode) == WIDEEP_SYNC ? LB_BLOCKED : LB_REBALANCING;
        state = found > state ? found : state;
        *since_ns = *since_ns == 0 || begin_ns < *since_ns ? begin_ns : *since_ns;
    }
    return state;
}

static struct lb_engine look_at(const struct segment_set *set, const struct engine *engine)
{
    struct lb_engine row = {.number = engine->number, .state = LB_SERVING};

    memcpy(row.instance, engine->instance, sizeof row.instance);
    for (uint32_t i = 0; i < engine->rank_count; i++) {
        enum segment_state found = segment_probe(set, engine->ranks[i]);
        if (found == SEGMENT_CLOSED)
            continue;
        row.ranks++;
        row.ranks_up += found == SEGMENT_LIVE;
        enum lb_state state = found == SEGMENT_LIVE ? rank_state(engine->ranks[i], &row.rebalancing_since_ns) : LB_DEAD;
        row.state = state > row.state ? state : row.state;
    }
    if (row.state == LB_DEAD)
        row.rebalancing_since_ns = 0;
    row.closed = row.ranks == 0;
    if (row.closed)
        row.state = LB_DEAD;
    return row;
}

static int compare_rows(const struct lb_engine *a, const struct lb_engine *b)
{
    int order = strcmp(a->instance, b->instance);
    return order != 0 ? order : a->number < b->number ? -1 : a->number > b->number;
}

/* Since when the row is in its state: the engine's own word where it has one, else when it was first seen so. */
static uint64_t since_unix_ms(const struct lb_engine *row, const struct lb_engine *before, uint64_t now_ns)
{
    uint64_t now_unix_ms = wideep_i_clock_ns(CLOCK_REALTIME) / 1000000, since_ns = row->rebalancing_since_ns;

    if (before && before->state == row->state && before->closed == row->closed &&
        before->rebalancing_since_ns == since_ns)
        return before->since_unix_ms;
    bool has_word = row->state == LB_REBALANCING || row->state == LB_BLOCKED;
    return has_word && since_ns < now_ns ? now_unix_ms - (now_ns - since_ns) / 1000000 : now_unix_ms;
}

static int reserve(struct lb *lb, uint32_t count)
{
    if (count <= lb->next_capacity)
        return 0;
    struct lb_engine *engines = realloc(lb->next, count * sizeof *engines);
    if (!engines)
        return -ENOMEM;
    lb->next = engines;
    lb->next_capacity = count;
    return 0;
}

int lb_update(struct lb *lb, const struct aggregate *aggregate, uint64_t now_ns)
{
    uint32_t count = 0, before = 0;

    for (const struct engine *engine = aggregate->engines; engine; engine = engine->next)
        count += engine->rank_count > 0;
    int error = reserve(lb, count);
    if (error)
        return error;
    count = 0;
    for (const struct engine *engine = aggregate->engines; engine; engine = engine->next) {
        if (engine->rank_count == 0)
            continue;
        struct lb_engine *row = &lb->next[count++];
        *row = look_at(aggregate->set, engine);
        /* Both boards are in the same order. Only this thread changes the other one, so it may be read unlocked. */
        while (before < lb->count && compare_rows(&lb->engines[before], row) < 0)
            before++;
        bool known = before < lb->count && compare_rows(&lb->engines[before], row) == 0;
        row->since_unix_ms = since_unix_ms(row, known ? &lb->engines[before] : NULL, now_ns);
    }
    (void)pthread_mutex_lock(&lb->lock);
    struct lb_engine *old = lb->engines;
    uint32_t old_capacity = lb->capacity;
    lb->engines = lb->next;
    lb->capacity = lb->next_capacity;
    lb->count = count;
    lb->renewed_ns = now_ns;
    lb->seen = lb->seen || count > 0;
    (void)pthread_mutex_unlock(&lb->lock);
    lb->next = old;
    lb->next_capacity = old_capacity;
    return 0;
}

static enum lb_state state_of(const struct lb_view *view, bool seen)
{
    enum lb_state worst = LB_UNKNOWN;

    for (uint32_t i = 0; i < view->count; i++)
        if (!view->engines[i].closed && view->engines[i].state > worst)
            worst = view->engines[i].state;
    return worst == LB_UNKNOWN && seen ? LB_DEAD : worst;
}

int lb_copy(struct lb *lb, const uint32_t *number, uint64_t now_ns, struct lb_view *ret)
{
    struct lb_view view = {0};
    int error = 0;

    (void)pthread_mutex_lock(&lb->lock);
    bool stale = lb->renewed_ns != 0 && now_ns > lb->renewed_ns && now_ns - lb->renewed_ns > LB_STALE_NS;
    if (lb->count > 0 && !stale) {
        view.engines = malloc(lb->count * sizeof *view.engines);
        error = view.engines ? 0 : -ENOMEM;
    }
    for (uint32_t i = 0; view.engines && i < lb->count; i++)
        if (!number || lb->engines[i].number == *number)
            view.engines[view.count++] = lb->engines[i];
    view.stale = stale;
    /* An engine that is asked for by number and not there is unknown, whatever was here once. */
    view.state = stale ? LB_UNKNOWN : state_of(&view, number ? view.count > 0 : lb->seen);
    (void)pthread_mutex_unlock(&lb->lock);
    if (!error)
        *ret = view;
    return error;
}

/* May it be sent requests? `one`: a single engine was asked for. Nothing seen is no reason to turn requests away, as
 * the exporter may be there before the engine; an engine that is asked for by number must be there. */
static bool is_up(const struct lb_view *view, bool one, bool avoid_rebalancing)
{
    switch (view->state) {
    case LB_SERVING: return true;
    case LB_REBALANCING: return !avoid_rebalancing;
    case LB_UNKNOWN: return !one && !view->stale;
    default: return false;
    }
}

/* ---- /lb ---------------------------------------------------------------------------------------------------- */

static bool parse_engine(const char *text, size_t length, uint32_t *ret)
{
    uint32_t number = 0;

    if (length == 0 || length > 5)
        return false;
    for (size_t i = 0; i < length; i++) {
        if (text[i] < '0' || text[i] > '9')
            return false;
        number = number * 10 + (uint32_t)(text[i] - '0');
    }
    *ret = number;
    return number <= WIDEEP_MAX_NUMBER;
}

static json_t *engine_json(const struct lb *lb, const struct lb_engine *row)
{
    json_t *object =
        json_pack("{s:i, s:s, s:f, s:i, s:i}", "engine", (int)row->number, "state", lb_state_name(row->state), "since",
                  (double)row->since_unix_ms / 1000, "ranks", (int)row->ranks, "ranks_up", (int)row->ranks_up);

    if (object && lb->name_instances)
        (void)json_object_set_new(object, "instance", json_string(row->instance));
    if (object && row->rebalancing_since_ns != 0)
        (void)json_object_set_new(object, "mode", json_string(row->state == LB_BLOCKED ? "sync" : "async"));
    if (object && row->closed)
        (void)json_object_set_new(object, "closed", json_true());
    return object;
}

static json_t *view_json(const struct lb *lb, const struct lb_view *view, bool one)
{
    json_t *engines = json_array(), *root;

    for (uint32_t i = 0; i < view->count; i++)
        if (one || !view->engines[i].closed)
            (void)json_array_append_new(engines, engine_json(lb, &view->engines[i]));
    root = json_pack("{s:s, s:o}", "state", lb_state_name(view->state), "engines", engines);
    if (root && view->stale)
        (void)json_object_set_new(root, "reason", json_string("the collector stands still"));
    else if (root && one && view->count == 0)
        (void)json_object_set_new(root, "reason", json_string("no such engine"));
    return root;
}

void lb_handle(void *context, const struct http_request *request, struct http_reply *reply)
{
    struct lb *lb = context;
    const char *engine = http_argument(request, "engine"), *avoid = http_argument(request, "avoid");
    static const char *const known[] = {"engine", "avoid", NULL};
    struct lb_view view;
    uint32_t number;

    if (http_unknown_argument(request, known)) {
        http_reply_text(reply, 400, "the arguments here are engine and avoid\n");
        return;
    }
    if (engine && !parse_engine(engine, strlen(engine), &number)) {
        http_reply_text(reply, 400, "engine must be a number from 0 to %u\n", WIDEEP_MAX_NUMBER);
        return;
    }
    if (avoid && strcmp(avoid, "rebalancing") != 0) {
        http_reply_text(reply, 400, "avoid must be 'rebalancing', or left out\n");
        return;
    }
    if (lb_copy(lb, engine ? &number : NULL, wideep_i_clock_ns(CLOCK_BOOTTIME), &view) != 0) {
        http_reply_text(reply, 503, "out of memory\n");
        return;
    }
    unsigned code = is_up(&view, engine != NULL, avoid != NULL) ? 200 : 503;
    reply_json(reply, code, view_json(lb, &view, engine != NULL));
    free(view.engines);
}

/* ---- /lb/metrics -------------------------------------------------------------------------------------------- */

/* The labels of a row, up to where more may follow. Instance names need no escapes. */
static void put_labels(FILE *page, const struct lb *lb, const char *name, const struct lb_engine *row)
{
    (void)fprintf(page, "%s{engine=\"%" PRIu32 "\"", name, row->number);
    if (lb->name_instances)
        (void)fprintf(page, ",wideep_instance=\"%s\"", row->instance);
}

static void put_header(FILE *page, const char *name, const char *help)
{
    (void)fprintf(page, "# HELP %s %s\n# TYPE %s gauge\n", name, help, name);
}

static bool row_up(const struct lb_engine *row)
{
    return row->state == LB_SERVING || row->state == LB_REBALANCING;
}

static void put_states(FILE *page, const struct lb *lb, const struct lb_view *view)
{
    put_header(page, "wideep_lb_state", "The engine's state: 1 for the one it is in.");
    for (uint32_t i = 0; i < view->count; i++)
        for (unsigned state = 0; state < LB_STATES; state++) {
            put_labels(page, lb, "wideep_lb_state", &view->engines[i]);
            (void)fprintf(page, ",state=\"%s\"} %d\n", lb_state_name((enum lb_state)state),
                          view->engines[i].state == state);
        }
}

static bool any_blocked(const struct lb_view *view)
{
    for (uint32_t i = 0; i < view->count; i++)
        if (view->engines[i].state == LB_BLOCKED)
            return true;
    return false;
}

static void put_number(FILE *page, const struct lb *lb, const char *name, const struct lb_engine *row, uint64_t number)
{
    put_labels(page, lb, name, row);
    (void)fprintf(page, "} %" PRIu64 "\n", number);
}

static void put_duration(FILE *page, const struct lb *lb, const struct lb_engine *row, uint64_t now_ns)
{
    uint64_t since_ns = row->rebalancing_since_ns;
    uint64_t running_ms = since_ns != 0 && since_ns < now_ns ? (now_ns - since_ns) / 1000000 : 0;

    put_labels(page, lb, "wideep_lb_rebalancing_seconds", row);
    (void)fprintf(page, "} %" PRIu64 ".%03" PRIu64 "\n", running_ms / 1000, running_ms % 1000);
}

static void put_page(FILE *page, const struct lb *lb, const struct lb_view *view, bool one, uint64_t now_ns)
{
    put_header(page, "wideep_lb_ready",
               "Whether /lb, or /lb?engine=N on the page of one engine, answers 200 (1) or 503 (0).");
    (void)fprintf(page, "wideep_lb_ready %d\n", is_up(view, one, false));
    /* One series that is always there, for pollers that keep the last value of a series that is gone. */
    put_header(page, "wideep_lb_blocked", "Whether an engine of this page is in a synchronous rearrangement now.");
    (void)fprintf(page, "wideep_lb_blocked %d\n", any_blocked(view));
    put_header(page, "wideep_lb_up", "Whether the engine may be sent requests (1) or is dead, stalled or unknown (0).");
    for (uint32_t i = 0; i < view->count; i++)
        put_number(page, lb, "wideep_lb_up", &view->engines[i], row_up(&view->engines[i]));
    put_states(page, lb, view);
    put_header(page, "wideep_lb_rebalancing_seconds",
               "How long the rearrangement under way has been running, 0 when there is none.");
    for (uint32_t i = 0; i < view->count; i++)
        put_duration(page, lb, &view->engines[i], now_ns);
    put_header(page, "wideep_lb_ranks_up", "Live ranks of the engine.");
    for (uint32_t i = 0; i < view->count; i++)
        put_number(page, lb, "wideep_lb_ranks_up", &view->engines[i], view->engines[i].ranks_up);
    put_header(page, "wideep_lb_ranks", "Ranks of the engine, those left out that closed in order.");
    for (uint32_t i = 0; i < view->count; i++)
        put_number(page, lb, "wideep_lb_ranks", &view->engines[i], view->engines[i].ranks);
}

static int render(const struct lb *lb, const struct lb_view *view, bool one, uint64_t now_ns, char **ret,
                  size_t *ret_size)
{
    FILE *page = open_memstream(ret, ret_size);

    if (!page)
        return -ENOMEM;
    put_page(page, lb, view, one, now_ns);
    bool written = !ferror(page);
    return fclose(page) == 0 && written ? 0 : -ENOMEM;
}

/* /lb/metrics: all engines. /lb/N/metrics: engine N. */
static bool parse_path(const char *path, bool *ret_one, uint32_t *ret_number)
{
    const char *rest = strncmp(path, "/lb/", 4) == 0 ? path + 4 : "", *slash = strchr(rest, '/');

    *ret_one = slash != NULL;
    if (!slash)
        return strcmp(rest, "metrics") == 0;
    return strcmp(slash, "/metrics") == 0 && parse_engine(rest, (size_t)(slash - rest), ret_number);
}

void lb_handle_metrics(void *context, const struct http_request *request, struct http_reply *reply)
{
    struct lb *lb = context;
    uint64_t now_ns = wideep_i_clock_ns(CLOCK_BOOTTIME);
    struct lb_engine unknown = {.state = LB_UNKNOWN};
    struct lb_view view;
    bool one;
    char *text = NULL;
    size_t size = 0;

    if (!parse_path(request->path, &one, &unknown.number)) {
        http_reply_text(reply, 404, "not found; there are /lb/metrics and /lb/N/metrics with N an engine's number\n");
        return;
    }
    int error = lb_copy(lb, one ? &unknown.number : NULL, now_ns, &view);
    if (!error) {
        const struct lb_view nobody = {.engines = &unknown, .count = 1, .stale = view.stale};
        error = render(lb, one && view.count == 0 ? &nobody : &view, one, now_ns, &text, &size);
        free(view.engines);
    }
    if (error) {
        free(text);
        http_reply_text(reply, 503, "out of memory\n");
        return;
    }
    *reply = (struct http_reply){.code = 200,
                                 .content_type = "text/plain; version=0.0.4; charset=utf-8; escaping=underscores",
                                 .body = text,
                                 .size = size};
}
