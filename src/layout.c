#include "layout.h"

#include "text.h"

#include <assert.h>

/* ---- the text of one series ---------------------------------------------------------------------------------- */

struct series_text {
    struct buffer bytes;
    char separator;   /* of the next label */
    size_t head_size; /* up to the last label's value; 0 without labels */
};

static void add_label(struct series_text *text, const char *name, const char *value)
{
    char escaped[2 * SEGMENT_MODEL_MAX + 1];

    assert(value);
    buffer_add(&text->bytes, &text->separator, 1);
    text->separator = ',';
    buffer_text(&text->bytes, name);
    buffer_add(&text->bytes, "=\"", 2);
    text->head_size = text->bytes.size;
    buffer_add(&text->bytes, escaped, text_escape_label(escaped, sizeof escaped, value, strlen(value)));
    buffer_add(&text->bytes, "\"", 1);
}

static void add_number_label(struct series_text *text, const char *name, uint64_t value)
{
    char digits[TEXT_NUMBER_MAX + 1];

    digits[text_u64(digits, value)] = 0;
    add_label(text, name, digits);
}

static void add_scope_labels(struct series_text *text, const struct family *family, const struct family_at *at,
                             bool instance_label)
{
    const struct engine *engine = at->engine;
    const struct group *group = at->group;

    if (family->scope == SCOPE_EXPORTER)
        return;
    if (instance_label)
        add_label(text, "wideep_instance", engine ? engine->instance : group->instance);
    if (at->source)
        add_label(text, "model_name", at->source->segment->model[0]);
    else if (family->scope != SCOPE_RANK)
        add_label(text, "model_name", group ? group->model : at->model ? at->model->name : engine->model);
    if (engine)
        add_number_label(text, "engine", engine->number);
    else if (group)
        add_number_label(text, family->scope == SCOPE_EXPERT ? "engine" : "group", group->label);
    if (at->source && at->source->is_rank)
        add_label(text, "frontend", "rank");
    else if (at->source)
        add_number_label(text, "frontend", at->source->segment->view.identity.rank);
    if (family->scope == SCOPE_RANK)
        add_number_label(text, "rank", at->segment->view.identity.rank);
    if (family->scope == SCOPE_ENGINE_LAYER || family->scope >= SCOPE_GROUP_LAYER)
        add_number_label(text, "layer", at->layer);
    if (family->scope == SCOPE_GROUP_RANK)
        add_number_label(text, "ep_rank", at->ep_rank);
    if (family->scope == SCOPE_EXPERT)
        add_number_label(text, "expert_id", at->expert);
}

/* ---- layout ------------------------------------------------------------------------------------------------- */

struct layout_making {
    struct layout *layout;
    const struct family_sources *sources;
    bool instance_label;
    struct series_text text; /* of the series at hand */
};

/* Number of series that one visit of the walk stands for. */
static size_t series_of(const struct family *family)
{
    return family->type == FAMILY_HISTOGRAM ? family->bound_count + 3u : 1u;
}

/* The array of `count`, moved if need be, with room for one more; NULL when there is no memory. */
static void *with_room(void *array, size_t count, size_t *capacity, size_t size)
{
    if (count < *capacity)
        return array;
    size_t more = *capacity ? 2 * *capacity : 256;
    void *grown = realloc(array, more * size);
    if (grown)
        *capacity = more;
    return grown;
}

/* Does the text go on with the newest run, which is of the same family? */
static bool continues(const struct layout *layout, const struct layout_run *run, const struct series_text *text)
{
    return text->head_size > 0 && run->head_size == text->head_size &&
           memcmp(layout->texts.data + run->text, text->bytes.data, text->head_size) == 0;
}

/* The run that the text belongs to, or NULL without memory. */
static struct layout_run *run_for(struct layout *layout, const struct series_text *text)
{
    struct layout_family *family = &layout->families[layout->family_count - 1];

    if (family->run_count > 0 && continues(layout, &layout->runs[layout->run_count - 1], text))
        return &layout->runs[layout->run_count - 1];
    struct layout_run *runs = with_room(layout->runs, layout->run_count, &layout->run_capacity, sizeof *runs);
    if (!runs)
        return NULL;
    layout->runs = runs;
    struct layout_run *run = &runs[layout->run_count++];
    *run = (struct layout_run){
        .text = layout->texts.size, .first = layout->series_count, .head_size = (uint32_t)text->head_size};
    family->run_count++;
    buffer_add(&layout->texts, text->bytes.data, text->head_size);
    return run;
}

static void append_series(struct layout *layout, const struct series_text *text)
{
    /* Once a text is missing, runs lie beyond the texts: nothing may be compared with them, and all is in vain. */
    if (layout->texts.failed)
        return;
    struct layout_run *run = text->bytes.failed ? NULL : run_for(layout, text);
    uint16_t *tail_sizes =
        with_room(layout->tail_sizes, layout->series_count, &layout->series_capacity, sizeof *tail_sizes);
    size_t tail_size = text->bytes.size - text->head_size;

    if (tail_sizes)
        layout->tail_sizes = tail_sizes;
    if (!run || !tail_sizes) {
        layout->texts.failed = true;
        return;
    }
    assert(tail_size <= UINT16_MAX); /* a label's value and three bytes */
    buffer_add(&layout->texts, text->bytes.data + text->head_size, tail_size);
    tail_sizes[layout->series_count++] = (uint16_t)tail_size;
    run->tails_size += tail_size;
    run->count++;
}

static void add_series(struct layout_making *making, const struct family *family, const struct family_at *at,
                       const char *suffix, const char *le)
{
    struct series_text *text = &making->text;

    text->bytes.size = text->head_size = 0;
    text->separator = '{';
    buffer_text(&text->bytes, family->name);
    buffer_text(&text->bytes, suffix);
    add_scope_labels(text, family, at, making->instance_label);
    if (family->labels[0].name)
        add_label(text, family->labels[0].name, family->labels[0].values[at->i]);
    if (family->labels[1].name)
        add_label(text, family->labels[1].name, family->labels[1].values[at->j]);
    for (size_t i = 0; i < FAMILY_FACTS_MAX && family->facts[i].name; i++)
        add_label(text, family->facts[i].name, family->facts[i].get(making->sources));
    if (le)
        add_label(text, "le", le);
    buffer_text(&text->bytes, text->separator == '{' ? " " : "} ");
    append_series(making->layout, text);
}

/* Asked in the same order when texts are made and when values are read, and answered alike. */
static bool has_room(const struct layout *layout, size_t taken, const struct family *family)
{
    return taken + series_of(family) <= layout->limit + LAYOUT_ABSENT_MAX;
}

static void add_histogram(struct layout_making *making, const struct family *family, const struct family_at *at)
{
    for (unsigned b = 0; b < family->bound_count; b++)
        add_series(making, family, at, "_bucket", family->bounds[b]);
    add_series(making, family, at, "_bucket", "+Inf");
    add_series(making, family, at, "_sum", NULL);
    add_series(making, family, at, "_count", NULL);
}

static void visit_layout(void *context, const struct family *family, struct family_at *at, uint32_t *index,
                         uint32_t count)
{
    struct layout_making *making = context;
    struct layout *layout = making->layout;

    for (*index = 0; *index < count && has_room(layout, layout->series_count, family); ++*index) {
        if (layout->family_count == 0 || layout->families[layout->family_count - 1].family != family)
            layout->families[layout->family_count++] =
                (struct layout_family){.family = family, .first = layout->series_count, .first_run = layout->run_count};
        if (family->type == FAMILY_HISTOGRAM)
            add_histogram(making, family, at);
        else
            add_series(making, family, at, "", NULL);
        layout->families[layout->family_count - 1].count += series_of(family);
    }
}

static int compare_names(const void *a, const void *b, void *context)
{
    const struct layout_family *all = context;

    return strcmp(all[*(const size_t *)a].family->name, all[*(const size_t *)b].family->name);
}

static void sort_names(struct layout *layout)
{
    for (size_t f = 0; f < layout->family_count; f++)
        layout->by_name[f] = f;
    qsort_r(layout->by_name, layout->family_count, sizeof *layout->by_name, compare_names, layout->families);
}

int layout_new(struct layout **ret, const struct family_sources *sources, uint64_t limit, bool instance_label)
{
    struct layout *layout = calloc(1, sizeof *layout);
    struct layout_making making = {.layout = layout, .sources = sources, .instance_label = instance_label};

    if (!layout)
        return -ENOMEM;
    layout->references = 1;
    layout->limit = limit;
    layout->families = calloc(family_count, sizeof *layout->families);
    layout->by_name = calloc(family_count, sizeof *layout->by_name);
    if (layout->families && layout->by_name) {
        family_walk(sources, visit_layout, &making);
        sort_names(layout);
    }
    free(making.text.bytes.data);
    static const char slack[LAYOUT_SLACK];
    buffer_add(&layout->texts, slack, sizeof slack);
    if (!layout->families || !layout->by_name || layout->texts.failed) {
        layout_unref(layout);
        return -ENOMEM;
    }
    *ret = layout;
    return 0;
}

struct layout *layout_ref(struct layout *layout)
{
    if (layout)
        (void)__atomic_add_fetch(&layout->references, 1, __ATOMIC_RELAXED);
    return layout;
}

void layout_unref(struct layout *layout)
{
    /* Release what this thread did with it; the last one acquires what all others did. */
    if (!layout || __atomic_sub_fetch(&layout->references, 1, __ATOMIC_ACQ_REL) > 0)
        return;
    free(layout->runs);
    free(layout->tail_sizes);
    free(layout->families);
    free(layout->by_name);
    free(layout->texts.data);
    free(layout);
}

size_t layout_series(const struct layout *layout)
{
    return layout->series_count;
}

/* ---- names -------------------------------------------------------------------------------------------------- */

static const struct family *named(const struct layout *layout, size_t place)
{
    return layout->families[layout->by_name[place]].family;
}

/* By the first `length` bytes of `name` followed by `suffix`. Index or -ENOENT. */
static int find_exactly(const struct layout *layout, const char *name, size_t length, const char *suffix)
{
    size_t low = 0, high = layout->family_count;

    while (low < high) {
        size_t middle = low + (high - low) / 2;
        const char *other = named(layout, middle)->name;
        int order = strncmp(other, name, length);
        if (order == 0)
            order = strcmp(other + length, suffix);
        if (order == 0)
            return (int)layout->by_name[middle];
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return -ENOENT;
}

int layout_find(const struct layout *layout, const char *name)
{
    static const char *const samples[] = {"_bucket", "_sum", "_count"};
    size_t length = strlen(name);
    int found = find_exactly(layout, name, length, "");

    if (found < 0) {
        found = find_exactly(layout, name, length, "_total");
        if (found >= 0 && layout->families[found].family->type != FAMILY_COUNTER)
            found = -ENOENT;
    }
    for (size_t i = 0; found < 0 && i < sizeof samples / sizeof *samples; i++) {
        size_t suffix = strlen(samples[i]);
        if (length <= suffix || strcmp(name + length - suffix, samples[i]) != 0)
            continue;
        found = find_exactly(layout, name, length - suffix, "");
        if (found >= 0 && layout->families[found].family->type != FAMILY_HISTOGRAM)
            found = -ENOENT;
    }
    return found;
}

/* ---- values ------------------------------------------------------------------------------------------------- */

struct value_reading {
    const struct layout *layout;
    const struct family_sources *sources;
    struct value *values;
    size_t next;
    uint64_t shown, dropped;
};

/* Buckets come from memory that others write: a sum that wrapped would make a later bucket smaller than an earlier one,
 * for which a parser may refuse the whole page. */
static uint64_t add_saturating(uint64_t a, uint64_t b)
{
    return b > UINT64_MAX - a ? UINT64_MAX : a + b;
}

/* A histogram's values in the order of its series: absent all together or not at all. */
static void read_histogram(const struct value_reading *reading, const struct family *family, const struct family_at *at,
                           struct value *ret)
{
    struct family_histogram histogram;
    bool served = family->histogram(reading->sources, at, &histogram);
    uint64_t cumulative = 0;

    for (unsigned b = 0; b <= family->bound_count; b++) {
        cumulative = add_saturating(cumulative, served ? histogram.bucket[b] : 0);
        *ret++ = (struct value){cumulative, served ? VALUE_U64 : VALUE_ABSENT};
    }
    *ret++ = served ? histogram.sum : (struct value){0, VALUE_ABSENT};
    *ret = (struct value){cumulative, served ? VALUE_U64 : VALUE_ABSENT};
}

/* The values of one series or histogram, which the page may have no room for. */
static void read_one(struct value_reading *reading, const struct family *family, const struct family_at *at)
{
    const struct layout *layout = reading->layout;
    struct value beside[FAMILY_BUCKETS_MAX + 2];
    const size_t n = series_of(family);
    const bool laid_out = has_room(layout, reading->next, family);
    struct value *values = laid_out ? reading->values + reading->next : beside;

    if (laid_out)
        reading->next += n;
    if (family->type == FAMILY_HISTOGRAM)
        read_histogram(reading, family, at, values);
    else
        *values = family->get(reading->sources, at);
    if (values->kind == VALUE_ABSENT)
        return;
    if (laid_out && (family->scope == SCOPE_EXPORTER || reading->shown + n <= layout->limit)) {
        reading->shown += n;
        return;
    }
    reading->dropped += n;
    for (size_t i = 0; i < n; i++)
        values[i].kind = VALUE_ABSENT;
}

/* A row of series that the page has room for, all of them. */
static void read_row(struct value_reading *reading, const struct family *family, const struct family_at *at,
                     uint32_t *index, uint32_t count)
{
    struct value *values = reading->values + reading->next;
    uint32_t absent = 0;

    for (uint32_t i = 0; i < count; i++) {
        *index = i;
        values[i] = family->get(reading->sources, at);
        absent += values[i].kind == VALUE_ABSENT;
    }
    reading->next += count;
    reading->shown += count - absent;
}

static void visit_values(void *context, const struct family *family, struct family_at *at, uint32_t *index,
                         uint32_t count)
{
    struct value_reading *reading = context;

    if (family->type != FAMILY_HISTOGRAM && reading->next + count <= reading->layout->series_count &&
        reading->shown + count <= reading->layout->limit) {
        read_row(reading, family, at, index, count);
        return;
    }
    for (*index = 0; *index < count; ++*index)
        read_one(reading, family, at);
}

uint64_t layout_read_values(const struct layout *layout, const struct family_sources *sources, struct value *ret)
{
    struct value_reading reading = {layout, sources, ret, 0, 0, 0};

    family_walk(sources, visit_values, &reading);
    assert(reading.next == layout->series_count);
    return reading.dropped;
}
