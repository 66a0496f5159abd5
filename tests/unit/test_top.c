/* wideep-top without a terminal: the verdict, what gets onto a canvas, keys. */
#include "suite.h"
#include "top.h"

#include <locale.h>

enum { LAYERS = 2, RANKS = 4 };

/* One engine, one group of four ranks, all well. */
struct made {
    struct top_engine engine;
    struct top_group group;
    double ratios[4 * LAYERS];
    uint64_t tokens[LAYERS * RANKS];
    struct top_model model;
};

static struct made *make(void)
{
    struct made *made = calloc(1, sizeof *made);

    ck_assert_ptr_nonnull(made);
    made->engine = (struct top_engine){
        .model = "m", .state = LB_SERVING, .ranks = 4, .ranks_up = 4, .first_dead = UINT32_MAX, .has_totals = true};
    for (unsigned i = 0; i < 4 * LAYERS; i++)
        made->ratios[i] = 0.95;
    for (unsigned i = 0; i < LAYERS * RANKS; i++)
        made->tokens[i] = 100;
    made->group = (struct top_group){.model = "m",
                                     .layers = LAYERS,
                                     .ep_size = RANKS,
                                     .seen = RANKS,
                                     .balancedness = 0.95,
                                     .cost = 0.05,
                                     .gain = TOP_UNKNOWN,
                                     .drift = TOP_UNKNOWN,
                                     .ratio = made->ratios,
                                     .avg = made->ratios + LAYERS,
                                     .max = made->ratios + 2 * LAYERS,
                                     .achievable = made->ratios + 3 * LAYERS,
                                     .tokens = made->tokens,
                                     .recent = made->tokens,
                                     .moving = true};
    made->model = (struct top_model){.directory = "/dev/shm",
                                     .instance = "default",
                                     .state = LB_SERVING,
                                     .engines = &made->engine,
                                     .engine_count = 1,
                                     .groups = &made->group,
                                     .group_count = 1};
    return made;
}

static void says(const struct made *made, const char *words)
{
    char verdict[TOP_VERDICT_MAX];

    top_verdict(&made->model, verdict);
    ck_assert_msg(strstr(verdict, words) != NULL, "'%s' is not in '%s'", words, verdict);
}

START_TEST(test_verdict)
{
    struct made *made = make();

    says(made, "All engines serve, balancedness 0.950. Nothing to do.");
    made->engine.overdue = 7;
    says(made, "overdue by 7 passes");
    made->engine.state = made->model.state = LB_REBALANCING;
    says(made, "asynchronously");
    made->group.cost = 0.4;
    made->ratios[1] = 0.5;
    made->tokens[RANKS + 2] = 300;
    says(made, "imbalance costs 40% of expert time (worst: layer 1, rank 2 at 2.00 of the mean). What a rearr");
    made->group.gain = 0.8;
    says(made, "win back 80% of it: start one");
    made->group.gain = 0.1;
    says(made, "add redundant experts");
    made->engine.recent[WIDEEP_DECODE][WIDEEP_ENGAGED] = 10;
    made->engine.recent[WIDEEP_DECODE][WIDEEP_FIRST_FALLOUT] = 9;
    says(made, "imbalance"); /* too few to tell */
    made->engine.recent[WIDEEP_DECODE][WIDEEP_FIRST_FALLOUT + 1] = 21;
    says(made, "DBO falls out of 75% of its decode passes, mostly coordination_failure");
    made->engine.state = made->model.state = LB_BLOCKED;
    made->engine.since = 12;
    says(made, "blocked by a synchronous rearrangement for 12 s");
    made->engine.state = made->model.state = LB_DEAD;
    made->engine.ranks_up = 3;
    made->engine.first_dead = 2;
    says(made, "rank 2 died, 3 of 4 ranks are up");
    made->engine.closed = true;
    says(made, "shut down in order");
    made->model.engine_count = 0;
    says(made, "No engine: no segments");
    made->model.ignored = 3;
    says(made, "3 segments of others");
    made->model.directory_error = ENOENT;
    says(made, "Cannot read the segment directory");
    free(made);
}
END_TEST

/* What a row holds, as it is printed. */
static void row_is(const struct top_canvas *canvas, const char *expected)
{
    char *text = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);

    ck_assert_int_eq(top_canvas_print(canvas, out), 0);
    (void)fclose(out);
    ck_assert_str_eq(text, expected);
    free(text);
}

START_TEST(test_put)
{
    static const struct {
        const char *text;
        unsigned width;
        const char *expected;
    } cases[] = {
        {"plain", 8, "plain\n"},
        {"12345678", 8, "12345678\n"},
        {"123456789", 8, "1234567~\n"},
        {"\x1b[2J\x07\t\x7f", 8, "?[2J???\n"},
        {"\xc2\x9b", 8, "?\n"},                /* CSI of 8 bits */
        {"e\xcc\x81\xe2\x80\xae", 8, "e??\n"}, /* combining, right-to-left override */
        {"\xe6\xa8\xa1\xe5\x9e\x8b", 8, "\xe6\xa8\xa1\xe5\x9e\x8b\n"},
        {"\xe6\xa8\xa1\xe5\x9e\x8b", 3, "\xe6\xa8\xa1~\n"}, /* the second has no room for its right half */
        {"\xe6\xa8\xa1\xe5\x9e\x8b", 2, "~\n"},
        {"\xf0\x9f\x9a\x80", 8, "?\n"},
        {"\xe6", 8, "\xef\xbf\xbd\n"}, /* cut short, at the text's end */
        {"\xff", 8, "\xef\xbf\xbd\n"},
    };

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct top_canvas canvas;
        ck_assert_int_eq(top_canvas_new(&canvas, 1, 8, false), 0);
        unsigned end = top_put(&canvas, 0, 0, cases[i].width, TOP_PLAIN, cases[i].text);
        ck_assert_uint_le(end, cases[i].width);
        row_is(&canvas, cases[i].expected);
        top_canvas_free(&canvas);
    }
}
END_TEST

/* Every view in every small size: sanitizers and the canvas's own border watch. */
START_TEST(test_sizes)
{
    struct made *made = make();

    made->group.experts = 3;
    made->group.expert = made->ratios;
    for (unsigned rows = 1; rows < 30; rows++)
        for (unsigned columns = 1; columns < 120; columns += columns < 45 ? 1 : 15)
            for (unsigned view = 0; view < TOP_VIEWS; view++) {
                struct top_ui ui = {.view = (enum top_view)view, .scroll = 99, .layer = 99, .group = 9, .engine = 9};
                struct top_canvas canvas;
                ck_assert_int_eq(top_canvas_new(&canvas, rows, columns, view % 2), 0);
                top_draw(&canvas, &made->model, &ui);
                top_canvas_free(&canvas);
            }
    free(made);
}
END_TEST

START_TEST(test_keys)
{
    struct made *made = make();
    struct top_ui ui = {.sort = TOP_BY_NUMBER};

    ck_assert(top_key(&ui, &made->model, TOP_KEY_ENTER));
    ck_assert_int_eq(ui.view, TOP_GROUPS);
    ck_assert(top_key(&ui, &made->model, TOP_KEY_ENTER));
    ck_assert(top_key(&ui, &made->model, TOP_KEY_DOWN));
    ck_assert(top_key(&ui, &made->model, 'j')); /* not beyond the last layer */
    ck_assert_uint_eq(ui.layer, 1);
    ck_assert(top_key(&ui, &made->model, TOP_KEY_ENTER));
    ck_assert_int_eq(ui.view, TOP_EXPERTS);
    ck_assert(top_key(&ui, &made->model, '<'));
    ck_assert_uint_eq(ui.layer, 0);
    ck_assert(top_key(&ui, &made->model, 's'));
    ck_assert_int_eq(ui.sort, TOP_WORST_FIRST);
    ck_assert(top_key(&ui, &made->model, '\t'));
    ck_assert_int_eq(ui.view, TOP_ENGINES);
    ck_assert(top_key(&ui, &made->model, ' '));
    ck_assert(ui.paused);
    ck_assert(!top_key(&ui, &made->model, 'x'));
    ck_assert(top_key(&ui, &made->model, 'q'));
    ck_assert(ui.quit);
    free(made);
}
END_TEST

START_TEST(test_loads)
{
    struct made *made = make();

    made->tokens[0] = 500;
    ck_assert_double_eq_tol(top_rank_load(&made->group, 0, 0), 2.5, 1e-12);
    ck_assert_double_eq_tol(top_rank_load(&made->group, 1, 0), 1, 1e-12);
    ck_assert_double_eq_tol(top_rank_load(&made->group, UINT32_MAX, 0), 2, 1e-12);
    memset(made->tokens, 0, sizeof made->tokens);
    ck_assert(isnan(top_rank_load(&made->group, 0, 0)));
    ck_assert(isnan(top_dbo_share(&made->engine, WIDEEP_PREFILL)));
    free(made);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("top");
    TCase *tests = tcase_create("top");

    (void)setlocale(LC_CTYPE, "C.UTF-8");
    tcase_set_timeout(tests, 120);
    tcase_add_test(tests, test_verdict);
    tcase_add_test(tests, test_put);
    tcase_add_test(tests, test_sizes);
    tcase_add_test(tests, test_keys);
    tcase_add_test(tests, test_loads);
    suite_add_tcase(suite, tests);
    return suite_run(suite);
}
