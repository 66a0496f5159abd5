/*
 * top: wideep-top's parts. The collector reads the segments, as in the exporter; a model copies from it what is shown;
 * canvases are drawn from the model alone, and the screen shows a canvas. So all but the screen works without a
 * terminal, and each figure is the exporter's.
 *
 * Main thread only, but for the collector's own.
 */
#ifndef WIDEEP_TOP_H
#define WIDEEP_TOP_H

#include "advisor.h"
#include "lb.h"
#include "state.h"

#include <math.h>
#include <stdio.h>
#include <wchar.h>

/* ---- model -------------------------------------------------------------------------------------------------- */

#define TOP_VERDICT_MAX 512

/* A figure that is not known: not-a-number. */
#define TOP_UNKNOWN ((double)NAN)

struct top_engine {
    char instance[WIDEEP_MAX_INSTANCE + 1];
    uint32_t number;
    char model[SEGMENT_MODEL_MAX]; /* valid UTF-8 and nothing more: a canvas makes it harmless */
    enum lb_state state;           /* LB_UNKNOWN: it has front ends alone */
    bool closed;                   /* LB_DEAD because its ranks closed in order */
    double since;                  /* s in this state, or since it was first seen so */
    uint32_t ranks, ranks_up;
    uint32_t first_dead;                 /* number of a dead rank, where there is one */
    double prompt_rate, generation_rate; /* tokens per second */
    bool has_totals;                     /* of the figures below */
    uint64_t dbo[WIDEEP_PHASES][WIDEEP_OUTCOMES];
    uint64_t recent[WIDEEP_PHASES][WIDEEP_OUTCOMES]; /* of the last seconds */
    uint64_t rearrangements[WIDEEP_MODES];
    double rearrangement_seconds; /* of all of them together */
    uint64_t overdue;             /* passes */
};

struct top_group {
    char instance[WIDEEP_MAX_INSTANCE + 1];
    char model[SEGMENT_MODEL_MAX];
    uint32_t label, layers, experts, ep_size, seen;
    double balancedness, cost, gain, drift; /* ratios 0 … 1 */
    double *ratio, *avg, *max, *achievable; /* [layers]; tokens per pass for avg and max */
    uint64_t *tokens;                       /* [layers][ep_size] cumulative */
    uint64_t *recent;                       /* [layers][ep_size] of the last seconds, of all time where none */
    bool moving;                            /* `recent` is of the last seconds */
    double *expert;                         /* [experts] of one layer, tokens per pass; NULL: not known */
    uint32_t expert_layer;
};

struct top_model {
    const char *directory, *instance; /* borrowed; instance NULL: all */
    double time;                      /* s, CLOCK_REALTIME of the collection */
    int directory_error;              /* errno, 0: readable */
    uint32_t rejected, ignored;       /* files */
    enum lb_state state;              /* the worst of the engines */
    struct top_engine *engines;
    uint32_t engine_count;
    struct top_group *groups;
    uint32_t group_count;
};

/* What "the last seconds" are counted from: cumulative figures of a while ago. Owned by the caller, zeroed at first. */
struct top_history {
    struct top_model base, next;
    double base_time, next_time;
};

/* Copies the newest collection; compares with the history and renews it. `layer`: whose experts are wanted. Returns 0,
 * -ENOMEM, or -EAGAIN while there was no collection; then *ret is as it was. Free with top_model_free(). */
int top_model_read(struct top_model *ret, struct state_board *board, const struct segment_config *config,
                   uint32_t layer, struct top_history *history);
void top_model_free(struct top_model *model);
void top_history_free(struct top_history *history);

/* The load of an EP rank in a layer against the layer's mean, TOP_UNKNOWN without tokens; UINT32_MAX: in all layers. */
double top_rank_load(const struct top_group *group, uint32_t layer, uint32_t ep_rank);

/* Share of the eligible passes (engaged or fallen out) of the last seconds that engaged; TOP_UNKNOWN: there were none.
 */
double top_dbo_share(const struct top_engine *engine, unsigned phase);

const char *top_outcome_name(unsigned outcome);

/* One sentence or two: what is wrong, and what to do. */
void top_verdict(const struct top_model *model, char ret[TOP_VERDICT_MAX]);

/* Writes the model as one JSON document, see wideep-top(1). Returns 0, -ENOMEM or -EIO. */
int top_json(const struct top_model *model, FILE *out);

/* ---- canvas ------------------------------------------------------------------------------------------------- */

enum top_style { TOP_PLAIN, TOP_DIM, TOP_BOLD, TOP_GOOD, TOP_WARN, TOP_BAD, TOP_SELECTED, TOP_STYLES };

struct top_cell {
    wchar_t c; /* 0: the right half of a wide character */
    unsigned char style;
};

struct top_canvas {
    unsigned rows, columns;
    struct top_cell *cells; /* [rows][columns] */
    bool ascii;             /* bars and shades of ASCII alone */
};

/* All blank. Returns 0 or -ENOMEM. */
int top_canvas_new(struct top_canvas *ret, unsigned rows, unsigned columns, bool ascii);
void top_canvas_free(struct top_canvas *canvas);

/* Writes text from a column up to `width` columns; whatever it holds, only printable characters get there, others as
 * '?', and none crosses the border. What is cut ends in '~'. Returns the column behind it. */
unsigned top_put(struct top_canvas *canvas, unsigned row, unsigned column, unsigned width, enum top_style style,
                 const char *text);

/* The rows as UTF-8 lines without trailing blanks; blank rows at the end are left out. Returns 0 or -EIO. */
int top_canvas_print(const struct top_canvas *canvas, FILE *out);

/* ---- views -------------------------------------------------------------------------------------------------- */

enum top_view { TOP_ENGINES, TOP_GROUPS, TOP_LAYERS, TOP_RANKS, TOP_EXPERTS, TOP_HELP, TOP_VIEWS };
enum top_sort { TOP_BY_NUMBER, TOP_WORST_FIRST, TOP_BEST_FIRST, TOP_SORTS };

struct top_ui {
    enum top_view view;
    enum top_sort sort;
    uint32_t engine, group, layer; /* selected; engine and group are positions in the model */
    uint32_t scroll;
    bool paused, quit;
};

extern const char *const top_view_names[TOP_VIEWS];

/* Draws a frame, and brings what is selected within the model. */
void top_draw(struct top_canvas *canvas, const struct top_model *model, struct top_ui *ui);

/* Keys: characters, or these. Returns whether it is one. */
enum top_key { TOP_KEY_UP = 0x110000, TOP_KEY_DOWN, TOP_KEY_LEFT, TOP_KEY_RIGHT, TOP_KEY_ENTER };
bool top_key(struct top_ui *ui, const struct top_model *model, uint32_t key);

/* ---- screen ------------------------------------------------------------------------------------------------- */

/* Takes the terminal over. Returns 0, or -ENOTTY or -ENODEV (unknown TERM) with the terminal as it was. */
int top_screen_begin(void);
void top_screen_end(void);
void top_screen_size(unsigned *ret_rows, unsigned *ret_columns);
void top_screen_resize(void); /* after SIGWINCH */
void top_screen_redraw(void); /* everything, at the next show: others may have written to the terminal */
void top_screen_show(const struct top_canvas *canvas);
bool top_screen_key(uint32_t *ret); /* one that was pressed; never waits */

#endif
