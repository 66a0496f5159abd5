/* top_views: what a frame says, and what keys do. */
#include "top.h"

#include <inttypes.h>
#include <math.h>
#include <time.h>

#define TEXT_MAX          64
#define TABLE_COLUMNS_MAX 12
#define BAR_MAX           40

const char *const top_view_names[TOP_VIEWS] = {"engines", "groups", "layers", "ranks", "experts", "help"};
static const char *const sort_names[TOP_SORTS] = {"number", "worst first", "best first"};

/* ---- texts -------------------------------------------------------------------------------------------------- */

static void ratio_text(char ret[TEXT_MAX], double value)
{
    (void)snprintf(ret, TEXT_MAX, isnan(value) ? "-" : "%.3f", value);
}

static void percent_text(char ret[TEXT_MAX], double value)
{
    (void)snprintf(ret, TEXT_MAX, isnan(value) ? "-" : "%.1f%%", 100 * value);
}

static void amount_text(char ret[TEXT_MAX], double value)
{
    if (isnan(value))
        (void)snprintf(ret, TEXT_MAX, "-");
    else if (value < 1e5)
        (void)snprintf(ret, TEXT_MAX, value < 100 && value != floor(value) ? "%.1f" : "%.0f", value);
    else if (value < 1e8)
        (void)snprintf(ret, TEXT_MAX, "%.1fk", value / 1e3);
    else
        (void)snprintf(ret, TEXT_MAX, "%.1fM", value / 1e6);
}

static void duration_text(char ret[TEXT_MAX], double seconds)
{
    if (isnan(seconds))
        (void)snprintf(ret, TEXT_MAX, "-");
    else if (seconds < 100)
        (void)snprintf(ret, TEXT_MAX, "%.0fs", seconds);
    else if (seconds < 6000)
        (void)snprintf(ret, TEXT_MAX, "%.0fm", floor(seconds / 60));
    else if (seconds < 360000)
        (void)snprintf(ret, TEXT_MAX, "%.0fh", floor(seconds / 3600));
    else
        (void)snprintf(ret, TEXT_MAX, "%.0fd", floor(seconds / 86400));
}

static enum top_style ratio_style(double balancedness)
{
    return isnan(balancedness) ? TOP_DIM : balancedness >= 0.8 ? TOP_GOOD : balancedness >= 0.6 ? TOP_WARN : TOP_BAD;
}

static enum top_style load_style(double load)
{
    return isnan(load) ? TOP_DIM : load < 1.25 ? TOP_PLAIN : load < 1.6 ? TOP_WARN : TOP_BAD;
}

static enum top_style state_style(enum lb_state state)
{
    static const enum top_style styles[LB_STATES] = {TOP_DIM, TOP_GOOD, TOP_WARN, TOP_BAD, TOP_BAD};

    return styles[state];
}

/* ---- pieces ------------------------------------------------------------------------------------------------- */

/* `value` of `full` as a bar of at most `width` columns; what is not 0 shows. */
static void put_bar(struct top_canvas *canvas, unsigned row, unsigned column, unsigned width, enum top_style style,
                    double value, double full)
{
    const double share = full > 0 && value > 0 ? fmin(value / full, 1) : 0;
    const unsigned length = share > 0 ? (unsigned)fmax(1, floor(share * width + 0.5)) : 0;

    for (unsigned i = 0; i < length; i++)
        (void)top_put(canvas, row, column + i, 1, style, canvas->ascii ? "#" : "█");
}

/* Five steps around the mean. */
static const char *shade(const struct top_canvas *canvas, double load)
{
    static const char *const marks[2][6] = {{" ", "·", "░", "▒", "▓", "█"}, {" ", ".", "-", "=", "+", "#"}};
    const unsigned step = isnan(load) ? 0 : load < 0.5 ? 1 : load < 0.8 ? 2 : load < 1.25 ? 3 : load < 1.6 ? 4 : 5;

    return marks[canvas->ascii][step];
}

struct column {
    const char *title;
    unsigned width;
    bool left;
};

/* How many of the columns fit; they are in the order of their importance. */
static unsigned fitting(const struct top_canvas *canvas, const struct column *columns, unsigned count)
{
    unsigned used = 0, fit = 0;

    while (fit < count && used + columns[fit].width <= canvas->columns)
        used += columns[fit++].width + 1;
    return fit;
}

static unsigned put_row(struct top_canvas *canvas, unsigned row, const struct column *columns, unsigned count,
                        char texts[][TEXT_MAX], const enum top_style *styles)
{
    unsigned at = 0;

    for (unsigned i = 0; i < count; i++) {
        const size_t length = strlen(texts[i]);
        const unsigned pad = columns[i].left || length >= columns[i].width ? 0 : columns[i].width - (unsigned)length;
        (void)top_put(canvas, row, at + pad, columns[i].width - pad, styles[i], texts[i]);
        at += columns[i].width + 1;
    }
    return at;
}

static void put_titles(struct top_canvas *canvas, unsigned row, const struct column *columns, unsigned count)
{
    char texts[TABLE_COLUMNS_MAX][TEXT_MAX];
    enum top_style styles[TABLE_COLUMNS_MAX];

    for (unsigned i = 0; i < count; i++) {
        (void)snprintf(texts[i], TEXT_MAX, "%s", columns[i].title);
        styles[i] = TOP_BOLD;
    }
    (void)put_row(canvas, row, columns, count, texts, styles);
}

/* The first of `count` rows to show in `room`, so that `selected` is among them. */
static uint32_t first_row(uint32_t count, uint32_t room, uint32_t selected)
{
    return selected < room || room == 0 ? 0 : selected - room + 1 > count ? 0 : selected - room + 1;
}

/* ---- order -------------------------------------------------------------------------------------------------- */

struct ranked {
    uint32_t number;
    double badness; /* TOP_UNKNOWN: last */
};

static int compare_badness(const void *a, const void *b)
{
    const struct ranked *x = a, *y = b;

    if (isnan(x->badness) || isnan(y->badness))
        return isnan(x->badness) - isnan(y->badness);
    if (x->badness != y->badness)
        return x->badness > y->badness ? -1 : 1;
    return x->number < y->number ? -1 : x->number > y->number;
}

static void sort_ranked(struct ranked *rows, uint32_t count, enum top_sort sort)
{
    if (sort == TOP_BY_NUMBER)
        return;
    for (uint32_t i = 0; sort == TOP_BEST_FIRST && i < count; i++)
        rows[i].badness = -rows[i].badness;
    qsort(rows, count, sizeof *rows, compare_badness);
}

/* In the order of the user's; NULL without memory. */
static struct ranked *layers_in_order(const struct top_group *group, enum top_sort sort)
{
    struct ranked *rows = calloc(group->layers + 1u, sizeof *rows);

    for (uint32_t l = 0; rows && l < group->layers; l++)
        rows[l] = (struct ranked){l, -group->ratio[l]};
    if (rows)
        sort_ranked(rows, group->layers, sort);
    return rows;
}

/* ---- views -------------------------------------------------------------------------------------------------- */

static const struct top_group *selected_group(const struct top_model *model, const struct top_ui *ui)
{
    return ui->group < model->group_count ? &model->groups[ui->group] : NULL;
}

static void put_engine(struct top_canvas *canvas, unsigned row, const struct column *columns, unsigned count,
                       const struct top_engine *engine, bool selected)
{
    char texts[TABLE_COLUMNS_MAX][TEXT_MAX];
    enum top_style styles[TABLE_COLUMNS_MAX] = {TOP_BOLD, state_style(engine->state)};
    uint64_t fallouts = 0;

    for (unsigned p = 0; p < WIDEEP_PHASES; p++)
        for (unsigned o = WIDEEP_FIRST_FALLOUT; o < WIDEEP_OUTCOMES; o++)
            fallouts += engine->dbo[p][o];
    (void)snprintf(texts[0], TEXT_MAX, "%c%" PRIu32, selected ? '>' : ' ', engine->number);
    (void)snprintf(texts[1], TEXT_MAX, "%s", engine->closed ? "closed" : lb_state_name(engine->state));
    duration_text(texts[2], engine->since);
    (void)snprintf(texts[3], TEXT_MAX, "%" PRIu32 "/%" PRIu32, engine->ranks_up, engine->ranks);
    amount_text(texts[4], engine->generation_rate);
    amount_text(texts[5], engine->prompt_rate);
    percent_text(texts[6], top_dbo_share(engine, WIDEEP_PREFILL));
    percent_text(texts[7], top_dbo_share(engine, WIDEEP_DECODE));
    amount_text(texts[8], engine->has_totals ? (double)fallouts : TOP_UNKNOWN);
    (void)snprintf(texts[9], TEXT_MAX, "%" PRIu64 "/%" PRIu64, engine->rearrangements[WIDEEP_SYNC],
                   engine->rearrangements[WIDEEP_ASYNC]);
    unsigned at = put_row(canvas, row, columns, count, texts, styles);
    if (count == 10)
        (void)top_put(canvas, row, at, canvas->columns, TOP_DIM, engine->model);
}

/* What the table has no room for: reasons, in numbers since the engine's start and of the last seconds. */
static void put_engine_details(struct top_canvas *canvas, unsigned row, unsigned end, const struct top_engine *engine)
{
    char text[200];

    if (!engine->has_totals)
        return;
    if (row < end) {
        (void)snprintf(text, sizeof text, "Engine %" PRIu32 ", DBO passes (last seconds):", engine->number);
        (void)top_put(canvas, row++, 0, canvas->columns, TOP_BOLD, text);
    }
    for (unsigned o = 0; o < WIDEEP_OUTCOMES && row < end; o++) {
        const bool bad = o >= WIDEEP_FIRST_FALLOUT && engine->recent[0][o] + engine->recent[1][o] > 0;
        (void)snprintf(
            text, sizeof text,
            canvas->columns < 72 ? "%-20.20s %" PRIu64 "(%" PRIu64 ") %" PRIu64 "(%" PRIu64 ")"
                                 : "%-21s prefill %" PRIu64 " (%" PRIu64 "), decode %" PRIu64 " (%" PRIu64 ")",
            top_outcome_name(o), engine->dbo[0][o], engine->recent[0][o], engine->dbo[1][o], engine->recent[1][o]);
        (void)top_put(canvas, row++, 0, canvas->columns, bad ? TOP_WARN : TOP_PLAIN, text);
    }
    if (row < end) {
        (void)snprintf(text, sizeof text, "Rearrangements: %" PRIu64 " sync, %" PRIu64 " async, %.1f s in all",
                       engine->rearrangements[WIDEEP_SYNC], engine->rearrangements[WIDEEP_ASYNC],
                       engine->rearrangement_seconds);
        (void)top_put(canvas, row, 0, canvas->columns, TOP_PLAIN, text);
    }
}

static void draw_engines(struct top_canvas *canvas, unsigned row, unsigned end, const struct top_model *model,
                         const struct top_ui *ui)
{
    static const struct column columns[] = {{"ENG", 4, true},           {"STATE", 11, true},  {"SINCE", 5, false},
                                            {"RANKS", 7, false},        {"GEN/s", 8, false},  {"PROMPT/s", 8, false},
                                            {"DBO prefill", 11, false}, {"decode", 7, false}, {"FALLOUTS", 8, false},
                                            {"REARR s/a", 9, false}};
    const unsigned fit = fitting(canvas, columns, 10);
    const uint32_t room = end > row + 1 ? end - row - 1 : 0;
    uint32_t shown = model->engine_count < room ? model->engine_count : room;

    put_titles(canvas, row++, columns, fit);
    uint32_t first = first_row(model->engine_count, shown, ui->engine);
    for (uint32_t i = first; i < first + shown && i < model->engine_count; i++)
        put_engine(canvas, row++, columns, fit, &model->engines[i], i == ui->engine);
    if (ui->engine < model->engine_count && row + 1 < end)
        put_engine_details(canvas, row + 1, end, &model->engines[ui->engine]);
}

static void put_fact(struct top_canvas *canvas, unsigned row, unsigned end, const char *name, const char *text,
                     enum top_style style)
{
    if (row >= end)
        return;
    (void)top_put(canvas, row, 2, 22, TOP_PLAIN, name);
    (void)top_put(canvas, row, 24, canvas->columns, style, text);
}

static unsigned put_group(struct top_canvas *canvas, unsigned row, unsigned end, const struct top_group *group,
                          bool selected)
{
    char text[TEXT_MAX];

    if (row >= end)
        return row;
    (void)snprintf(text, sizeof text, "%cgroup %" PRIu32 "  %" PRIu32 "/%" PRIu32 " ranks  ", selected ? '>' : ' ',
                   group->label, group->seen, group->ep_size);
    unsigned at = top_put(canvas, row, 0, canvas->columns, TOP_BOLD, text);
    (void)top_put(canvas, row++, at, canvas->columns, TOP_DIM, group->model);
    ratio_text(text, group->balancedness);
    put_fact(canvas, row++, end, "balancedness", text, ratio_style(group->balancedness));
    percent_text(text, group->cost);
    put_fact(canvas, row++, end, "cost of imbalance", text, ratio_style(group->balancedness));
    percent_text(text, group->gain);
    put_fact(canvas, row++, end, "rearrangement gain", text, TOP_PLAIN);
    percent_text(text, group->drift);
    put_fact(canvas, row++, end, "drift", text, TOP_PLAIN);
    return row;
}

static void draw_groups(struct top_canvas *canvas, unsigned row, unsigned end, const struct top_model *model,
                        const struct top_ui *ui)
{
    const uint32_t room = (end - row) / 5 > 0 ? (end - row) / 5 : 1;

    for (uint32_t i = first_row(model->group_count, room, ui->group); i < model->group_count && row < end; i++)
        row = put_group(canvas, row, end, &model->groups[i], i == ui->group);
}

static void put_layer(struct top_canvas *canvas, unsigned row, const struct column *columns, unsigned count,
                      const struct top_group *group, uint32_t layer, bool selected)
{
    const double ratio = group->ratio[layer];
    char texts[TABLE_COLUMNS_MAX][TEXT_MAX];
    const enum top_style styles[TABLE_COLUMNS_MAX] = {TOP_BOLD, ratio_style(ratio)};

    (void)snprintf(texts[0], TEXT_MAX, "%c%" PRIu32, selected ? '>' : ' ', layer);
    ratio_text(texts[1], ratio);
    ratio_text(texts[2], 1 / ratio);
    ratio_text(texts[3], group->achievable[layer]);
    amount_text(texts[4], group->avg[layer]);
    amount_text(texts[5], group->max[layer]);
    unsigned at = put_row(canvas, row, columns, count, texts, styles);
    if (at + 5 < canvas->columns)
        put_bar(canvas, row, at, canvas->columns - at < BAR_MAX ? canvas->columns - at : BAR_MAX, ratio_style(ratio),
                ratio, 1);
}

static void draw_layers(struct top_canvas *canvas, unsigned row, unsigned end, const struct top_group *group,
                        const struct top_ui *ui)
{
    static const struct column columns[] = {{"LAYER", 6, true},        {"BALANCED", 8, false}, {"MAX/AVG", 7, false},
                                            {"ACHIEVABLE", 10, false}, {"AVG/pass", 9, false}, {"MAX/pass", 9, false}};
    const unsigned fit = fitting(canvas, columns, 6);
    const uint32_t room = end > row + 1 ? end - row - 1 : 0;
    struct ranked *rows = layers_in_order(group, ui->sort);
    uint32_t selected = 0;

    put_titles(canvas, row++, columns, fit);
    while (rows && selected < group->layers && rows[selected].number != ui->layer)
        selected++;
    for (uint32_t i = first_row(group->layers, room, selected); rows && i < group->layers && row < end; i++)
        put_layer(canvas, row++, columns, fit, group, rows[i].number, i == selected);
    free(rows);
}

/* The highest load of the layers that share a cell. */
static double cell_load(const struct top_group *group, uint32_t rank, uint32_t first, uint32_t end)
{
    double highest = TOP_UNKNOWN;

    for (uint32_t l = first; l < end && l < group->layers; l++)
        highest = fmax(highest, top_rank_load(group, l, rank));
    return highest;
}

static void put_heat(struct top_canvas *canvas, unsigned row, unsigned column, const struct top_group *group,
                     uint32_t rank)
{
    const unsigned room = canvas->columns - column;
    const uint32_t per_cell = (group->layers + room - 1) / room;

    for (uint32_t l = 0; l < group->layers; l += per_cell) {
        double load = cell_load(group, rank, l, l + per_cell);
        (void)top_put(canvas, row, column++, 1, load_style(load), shade(canvas, load));
    }
}

static void draw_ranks(struct top_canvas *canvas, unsigned row, unsigned end, const struct top_group *group,
                       const struct top_ui *ui)
{
    const unsigned bar = canvas->columns >= 72 ? 20 : 10, heat = 14 + bar;
    struct ranked *rows = calloc(group->ep_size + 1u, sizeof *rows);
    char text[TEXT_MAX];

    for (uint32_t r = 0; rows && r < group->ep_size; r++)
        rows[r] = (struct ranked){r, top_rank_load(group, UINT32_MAX, r)};
    if (!rows)
        return;
    (void)top_put(canvas, row, 0, canvas->columns, TOP_BOLD, group->moving ? "RANK  LOAD" : "RANK  LOAD of all time");
    if (group->moving && canvas->columns > heat)
        (void)top_put(canvas, row, heat, canvas->columns, TOP_BOLD, "LAYERS 0 to last, against the mean");
    row++;
    sort_ranked(rows, group->ep_size, ui->sort);
    for (uint32_t i = ui->scroll; i < group->ep_size && row < end; i++, row++) {
        double load = top_rank_load(group, UINT32_MAX, rows[i].number);
        (void)snprintf(text, sizeof text, "%4" PRIu32, rows[i].number);
        (void)top_put(canvas, row, 0, 5, TOP_BOLD, text);
        ratio_text(text, load);
        (void)top_put(canvas, row, 5, 7, load_style(load), text);
        put_bar(canvas, row, 13, bar, load_style(load), load, 2);
        if (canvas->columns > heat)
            put_heat(canvas, row, heat, group, rows[i].number);
    }
    free(rows);
}

static void draw_experts(struct top_canvas *canvas, unsigned row, unsigned end, const struct top_group *group,
                         const struct top_ui *ui)
{
    struct ranked *rows = group->expert ? calloc(group->experts + 1u, sizeof *rows) : NULL;
    char text[TEXT_MAX];
    double highest = 0;

    (void)snprintf(text, sizeof text, "EXPERT  TOKENS/pass  layer %" PRIu32, ui->layer);
    (void)top_put(canvas, row++, 0, canvas->columns, TOP_BOLD, text);
    if (!rows || group->expert_layer != ui->layer) {
        (void)top_put(canvas, row, 0, canvas->columns, TOP_DIM, "not known yet, or not written");
        free(rows);
        return;
    }
    for (uint32_t e = 0; e < group->experts; e++) {
        rows[e] = (struct ranked){e, group->expert[e]};
        highest = fmax(highest, group->expert[e]);
    }
    sort_ranked(rows, group->experts, ui->sort);
    for (uint32_t i = ui->scroll; i < group->experts && row < end; i++, row++) {
        const double tokens = group->expert[rows[i].number];
        (void)snprintf(text, sizeof text, "%6" PRIu32, rows[i].number);
        (void)top_put(canvas, row, 0, 7, TOP_BOLD, text);
        amount_text(text, tokens);
        (void)top_put(canvas, row, 8, 11, TOP_PLAIN, text);
        put_bar(canvas, row, 20, canvas->columns > 20 ? canvas->columns - 20 : 0, TOP_PLAIN, tokens, highest);
    }
    free(rows);
}

static void draw_help(struct top_canvas *canvas, unsigned row, unsigned end)
{
    static const char *const lines[] = {"1 2 3 4 5, Tab  views; ? this help",
                                        "Up Down, k j    select or scroll",
                                        "Enter           engine's group; layer's experts",
                                        "[ ]             group",
                                        "< >             layer (experts)",
                                        "s               order: number, worst, best",
                                        "Space           pause",
                                        "q               quit",
                                        "",
                                        "balancedness: average over maximum of the",
                                        "ranks' tokens; 1 is even. LOAD: against",
                                        "the mean of the ranks, over 5 to 10 s.",
                                        "GEN/s, PROMPT/s: tokens per second."};

    for (unsigned i = 0; i < sizeof lines / sizeof lines[0] && row < end; i++)
        (void)top_put(canvas, row++, 0, canvas->columns, TOP_PLAIN, lines[i]);
}

/* ---- frame -------------------------------------------------------------------------------------------------- */

static void put_title(struct top_canvas *canvas, const struct top_model *model, const struct top_ui *ui)
{
    char text[TEXT_MAX] = "";
    time_t time_s = (time_t)model->time;
    struct tm tm;

    if (gmtime_r(&time_s, &tm))
        (void)strftime(text, sizeof text, "%H:%M:%SZ", &tm);
    unsigned at = top_put(canvas, 0, 0, canvas->columns, TOP_BOLD, "wideep-top ");
    at = top_put(canvas, 0, at, canvas->columns, TOP_PLAIN, text);
    if (ui->paused)
        at = top_put(canvas, 0, at, canvas->columns, TOP_WARN, " paused");
    at = top_put(canvas, 0, at, canvas->columns, TOP_DIM, " ");
    at = top_put(canvas, 0, at, canvas->columns, TOP_DIM, model->instance ? model->instance : "all instances");
    at = top_put(canvas, 0, at, canvas->columns, TOP_DIM, " ");
    at = top_put(canvas, 0, at, canvas->columns, TOP_DIM, model->directory ? model->directory : "");
    if (model->rejected > 0) {
        (void)snprintf(text, sizeof text, " %" PRIu32 " files rejected", model->rejected);
        (void)top_put(canvas, 0, at, canvas->columns, TOP_WARN, text);
    }
}

/* Breaks at blanks, in up to `room` rows. Returns the row behind it. The text is ASCII. */
static unsigned put_wrapped(struct top_canvas *canvas, unsigned row, unsigned room, enum top_style style,
                            const char *text)
{
    for (; *text && room > 0; room--) {
        size_t length = strlen(text), take = length;
        if (length > canvas->columns && room > 1)
            for (take = canvas->columns; take > 0 && text[take] != ' '; take--)
                ;
        take = take == 0 ? canvas->columns : take;
        char line[TOP_VERDICT_MAX];
        (void)snprintf(line, sizeof line, "%.*s", (int)take, text);
        (void)top_put(canvas, row++, 0, canvas->columns, style, line);
        text += take + strspn(text + take, " ");
    }
    return row;
}

static enum top_style verdict_style(const struct top_model *model, const char *verdict)
{
    if (model->state == LB_DEAD || model->state == LB_BLOCKED || model->engine_count == 0)
        return TOP_BAD;
    return strstr(verdict, "Nothing to do") ? TOP_GOOD : TOP_WARN;
}

static void put_tabs(struct top_canvas *canvas, unsigned row, const struct top_ui *ui)
{
    unsigned at = 0;
    char text[TEXT_MAX];

    for (unsigned view = 0; view < TOP_HELP; view++) {
        (void)snprintf(text, sizeof text, canvas->columns >= 60 ? "%u %s" : "%u%s", view + 1, top_view_names[view]);
        at = top_put(canvas, row, at, canvas->columns, view == ui->view ? TOP_SELECTED : TOP_PLAIN, text);
        at = top_put(canvas, row, at, canvas->columns, TOP_PLAIN, canvas->columns >= 60 ? "  " : " ");
    }
    if (ui->view >= TOP_LAYERS && ui->view <= TOP_EXPERTS && canvas->columns >= 60) {
        (void)snprintf(text, sizeof text, "order: %s  ", sort_names[ui->sort]);
        at = top_put(canvas, row, at, canvas->columns, TOP_DIM, text);
    }
    (void)top_put(canvas, row, at, canvas->columns, TOP_DIM, canvas->columns >= 60 ? "? help" : "?");
}

static void clamp(const struct top_model *model, struct top_ui *ui)
{
    if (ui->engine >= model->engine_count)
        ui->engine = model->engine_count > 0 ? model->engine_count - 1 : 0;
    if (ui->group >= model->group_count)
        ui->group = model->group_count > 0 ? model->group_count - 1 : 0;
    const struct top_group *group = selected_group(model, ui);
    const uint32_t layers = group ? group->layers : 0;
    const uint32_t rows = !group ? 0 : ui->view == TOP_RANKS ? group->ep_size : group->experts;
    if (ui->layer >= layers)
        ui->layer = layers > 0 ? layers - 1 : 0;
    if (ui->scroll >= rows)
        ui->scroll = rows > 0 ? rows - 1 : 0;
}

void top_draw(struct top_canvas *canvas, const struct top_model *model, struct top_ui *ui)
{
    char verdict[TOP_VERDICT_MAX];

    clamp(model, ui);
    const struct top_group *group = selected_group(model, ui);
    top_verdict(model, verdict);
    put_title(canvas, model, ui);
    unsigned row = put_wrapped(canvas, 1, canvas->rows < 16 ? 3 : 4, verdict_style(model, verdict), verdict);
    put_tabs(canvas, row++, ui);
    const unsigned end = canvas->rows;
    if (row >= end)
        return;
    switch (ui->view) {
    case TOP_ENGINES: draw_engines(canvas, row, end, model, ui); return;
    case TOP_GROUPS: draw_groups(canvas, row, end, model, ui); return;
    case TOP_HELP: draw_help(canvas, row, end); return;
    default: break;
    }
    if (!group)
        (void)top_put(canvas, row, 0, canvas->columns, TOP_DIM, "no group of ranks");
    else if (ui->view == TOP_LAYERS)
        draw_layers(canvas, row, end, group, ui);
    else if (ui->view == TOP_RANKS)
        draw_ranks(canvas, row, end, group, ui);
    else
        draw_experts(canvas, row, end, group, ui);
}

/* ---- keys --------------------------------------------------------------------------------------------------- */

static void step(uint32_t *value, int by)
{
    if (by > 0)
        ++*value;
    else if (*value > 0)
        --*value;
}

/* To the next layer in the order on the screen. */
static void step_layer(const struct top_group *group, struct top_ui *ui, int by)
{
    struct ranked *rows = group ? layers_in_order(group, ui->sort) : NULL;
    uint32_t at = 0;

    while (rows && at + 1 < group->layers && rows[at].number != ui->layer)
        at++;
    step(&at, by);
    if (rows && at < group->layers)
        ui->layer = rows[at].number;
    free(rows);
}

static void move(struct top_ui *ui, const struct top_model *model, int by)
{
    switch (ui->view) {
    case TOP_ENGINES: step(&ui->engine, by); break;
    case TOP_GROUPS: step(&ui->group, by); break;
    case TOP_LAYERS: step_layer(selected_group(model, ui), ui, by); break;
    default: step(&ui->scroll, by); break;
    }
}

static void show(struct top_ui *ui, unsigned view)
{
    ui->view = (enum top_view)view;
    ui->scroll = 0;
}

/* From an engine to its model's group, from a group to its layers, from a layer to its experts. */
static void enter(struct top_ui *ui, const struct top_model *model)
{
    const struct top_engine *engine = ui->engine < model->engine_count ? &model->engines[ui->engine] : NULL;

    if (ui->view == TOP_ENGINES) {
        /* A group is named after its lowest engine. */
        for (uint32_t g = 0; engine && g < model->group_count; g++)
            if (strcmp(model->groups[g].model, engine->model) == 0 &&
                strcmp(model->groups[g].instance, engine->instance) == 0 && model->groups[g].label <= engine->number)
                ui->group = g;
        show(ui, TOP_GROUPS);
    } else if (ui->view == TOP_GROUPS) {
        show(ui, TOP_LAYERS);
    } else if (ui->view == TOP_LAYERS) {
        show(ui, TOP_EXPERTS);
    }
}

bool top_key(struct top_ui *ui, const struct top_model *model, uint32_t key)
{
    switch (key) {
    case '1':
    case '2':
    case '3':
    case '4':
    case '5': show(ui, key - '1'); break;
    case '\t':
    case TOP_KEY_RIGHT: show(ui, (ui->view + 1u) % TOP_HELP); break;
    case TOP_KEY_LEFT: show(ui, (ui->view + TOP_HELP - 1u) % TOP_HELP); break;
    case '?':
    case 'h': show(ui, ui->view == TOP_HELP ? TOP_ENGINES : TOP_HELP); break;
    case 'k':
    case TOP_KEY_UP: move(ui, model, -1); break;
    case 'j':
    case TOP_KEY_DOWN: move(ui, model, 1); break;
    case '\r':
    case '\n':
    case TOP_KEY_ENTER: enter(ui, model); break;
    case '[': step(&ui->group, -1); break;
    case ']': step(&ui->group, 1); break;
    case '<': step(&ui->layer, -1); break;
    case '>': step(&ui->layer, 1); break;
    case 's': ui->sort = (enum top_sort)((ui->sort + 1u) % TOP_SORTS); break;
    case ' ':
    case 'p': ui->paused = !ui->paused; break;
    case 'q': ui->quit = true; break;
    default: return false;
    }
    clamp(model, ui);
    return true;
}
