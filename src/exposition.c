#include "exposition.h"

#include "text.h"

#include <assert.h>
#include <stdarg.h>

/* A growing text; `failed` sticks, so that only the end has to look. */
struct buffer {
    char *data;
    size_t size, capacity;
    bool failed;
};

struct series {
    size_t offset; /* of "name{labels} " in the texts */
    uint32_t length;
};

struct layout_family {
    const struct family *family;
    size_t first, count; /* series */
};

struct layout {
    int references;
    size_t series_count, series_capacity;
    size_t family_count;
    uint64_t dropped;
    struct series *series;
    struct layout_family *families; /* in the order of the table */
    struct buffer texts;
};

/* ---- buffer ------------------------------------------------------------------------------------------------- */

static bool buffer_reserve(struct buffer *buffer, size_t more)
{
    if (buffer->failed || buffer->capacity - buffer->size >= more)
        return !buffer->failed;
    size_t capacity = buffer->capacity ? buffer->capacity : 4096;
    while (capacity - buffer->size < more)
        capacity *= 2;
    char *data = realloc(buffer->data, capacity);
    if (!data) {
        buffer->failed = true;
        return false;
    }
    buffer->data = data;
    buffer->capacity = capacity;
    return true;
}

static void buffer_add(struct buffer *buffer, const char *text, size_t length)
{
    if (!buffer_reserve(buffer, length))
        return;
    memcpy(buffer->data + buffer->size, text, length);
    buffer->size += length;
}

static void buffer_text(struct buffer *buffer, const char *text)
{
    buffer_add(buffer, text, strlen(text));
}

static void buffer_label(struct buffer *buffer, char *separator, const char *name, const char *value)
{
    char escaped[2 * SEGMENT_MODEL_MAX + 1];

    buffer_add(buffer, separator, 1);
    *separator = ',';
    buffer_text(buffer, name);
    buffer_add(buffer, "=\"", 2);
    buffer_add(buffer, escaped, text_escape_label(escaped, sizeof escaped, value, strlen(value)));
    buffer_add(buffer, "\"", 1);
}

static void buffer_label_number(struct buffer *buffer, char *separator, const char *name, uint64_t value)
{
    char digits[TEXT_NUMBER_MAX + 1];

    digits[text_u64(digits, value)] = 0;
    buffer_label(buffer, separator, name, digits);
}

/* ---- layout ------------------------------------------------------------------------------------------------- */

struct layout_making {
    struct layout *layout;
    const struct family_sources *sources;
    uint64_t limit;
    bool instance_label;
    bool full; /* once one does not fit, none behind it is taken: values are read by position */
};

/* Number of series that one visit of the walk stands for. */
static size_t series_of(const struct family *family)
{
    return family->type == FAMILY_HISTOGRAM ? family->bound_count + 3u : 1u;
}

static void add_scope_labels(struct buffer *text, char *separator, const struct family *family,
                             const struct family_at *at, bool instance_label)
{
    const struct engine *engine = at->engine;
    const struct group *group = at->group;

    if (family->scope == SCOPE_EXPORTER)
        return;
    if (instance_label)
        buffer_label(text, separator, "wideep_instance", engine ? engine->instance : group->instance);
    if (at->source)
        buffer_label(text, separator, "model_name", at->source->segment->model[0]);
    else if (family->scope != SCOPE_RANK)
        buffer_label(text, separator, "model_name", group ? group->model : at->model ? at->model->name : engine->model);
    if (engine)
        buffer_label_number(text, separator, "engine", engine->number);
    else
        buffer_label_number(text, separator, family->scope == SCOPE_EXPERT ? "engine" : "group", group->label);
    if (at->source && at->source->is_rank)
        buffer_label(text, separator, "frontend", "rank");
    else if (at->source)
        buffer_label_number(text, separator, "frontend", at->source->segment->view.identity.rank);
    if (family->scope == SCOPE_RANK)
        buffer_label_number(text, separator, "rank", at->segment->view.identity.rank);
    if (family->scope == SCOPE_ENGINE_LAYER || family->scope >= SCOPE_GROUP_LAYER)
        buffer_label_number(text, separator, "layer", at->layer);
    if (family->scope == SCOPE_GROUP_RANK)
        buffer_label_number(text, separator, "ep_rank", at->ep_rank);
    if (family->scope == SCOPE_EXPERT)
        buffer_label_number(text, separator, "expert_id", at->expert);
}

static void add_series(struct layout_making *making, const struct family *family, const struct family_at *at,
                       const char *suffix, const char *le)
{
    struct layout *layout = making->layout;
    struct buffer *text = &layout->texts;
    char separator = '{';

    if (layout->series_count == layout->series_capacity) {
        size_t capacity = layout->series_capacity ? 2 * layout->series_capacity : 1024;
        struct series *series = realloc(layout->series, capacity * sizeof *series);
        if (!series) {
            text->failed = true;
            return;
        }
        layout->series = series;
        layout->series_capacity = capacity;
    }
    struct series *series = &layout->series[layout->series_count++];
    series->offset = text->size;
    buffer_text(text, family->name);
    buffer_text(text, suffix);
    add_scope_labels(text, &separator, family, at, making->instance_label);
    if (family->labels[0].name)
        buffer_label(text, &separator, family->labels[0].name, family->labels[0].values[at->i]);
    if (family->labels[1].name)
        buffer_label(text, &separator, family->labels[1].name, family->labels[1].values[at->j]);
    if (family->get && strcmp(family->name, "wideep_build_info") == 0) {
        buffer_label(text, &separator, "version", making->sources->self->version);
        buffer_label(text, &separator, "commit", making->sources->self->commit);
    }
    if (le)
        buffer_label(text, &separator, "le", le);
    buffer_text(text, separator == '{' ? " " : "} ");
    series->length = (uint32_t)(text->size - series->offset);
}

static void visit_layout(void *context, const struct family *family, const struct family_at *at)
{
    struct layout_making *making = context;
    struct layout *layout = making->layout;

    if (making->full || layout->series_count + series_of(family) > making->limit) {
        making->full = true;
        layout->dropped += series_of(family);
        return;
    }
    if (layout->family_count == 0 || layout->families[layout->family_count - 1].family != family)
        layout->families[layout->family_count++] = (struct layout_family){family, layout->series_count, 0};
    if (family->type == FAMILY_HISTOGRAM) {
        for (unsigned b = 0; b < family->bound_count; b++)
            add_series(making, family, at, "_bucket", family->bounds[b]);
        add_series(making, family, at, "_bucket", "+Inf");
        add_series(making, family, at, "_sum", NULL);
        add_series(making, family, at, "_count", NULL);
    } else {
        add_series(making, family, at, "", NULL);
    }
    layout->families[layout->family_count - 1].count += series_of(family);
}

int layout_new(struct layout **ret, const struct family_sources *sources, uint64_t limit, bool instance_label)
{
    struct layout *layout = calloc(1, sizeof *layout);

    if (!layout)
        return -ENOMEM;
    layout->references = 1;
    layout->families = calloc(family_count, sizeof *layout->families);
    struct layout_making making = {layout, sources, limit, instance_label, false};
    if (layout->families)
        family_walk(sources, visit_layout, &making);
    if (!layout->families || layout->texts.failed) {
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
    free(layout->series);
    free(layout->families);
    free(layout->texts.data);
    free(layout);
}

size_t layout_series(const struct layout *layout)
{
    return layout->series_count;
}

uint64_t layout_dropped(const struct layout *layout)
{
    return layout->dropped;
}

/* ---- values ------------------------------------------------------------------------------------------------- */

struct value_reading {
    const struct layout *layout;
    const struct family_sources *sources;
    struct value *values;
    size_t next;
};

static void visit_values(void *context, const struct family *family, const struct family_at *at)
{
    struct value_reading *reading = context;
    size_t n = series_of(family);
    struct value *value = reading->values + reading->next;

    if (reading->next + n > reading->layout->series_count)
        return; /* dropped by the limit */
    reading->next += n;
    if (family->type != FAMILY_HISTOGRAM) {
        *value = family->get(reading->sources, at);
        return;
    }
    struct family_histogram histogram;
    bool served = family->histogram(reading->sources, at, &histogram);
    uint64_t cumulative = 0;
    for (unsigned b = 0; b <= family->bound_count; b++) {
        cumulative += served ? histogram.bucket[b] : 0;
        *value++ = (struct value){cumulative, served ? VALUE_U64 : VALUE_ABSENT};
    }
    *value++ = served ? histogram.sum : (struct value){0, VALUE_ABSENT};
    *value = (struct value){cumulative, served ? VALUE_U64 : VALUE_ABSENT};
}

void layout_read_values(const struct layout *layout, const struct family_sources *sources, struct value *ret)
{
    struct value_reading reading = {layout, sources, ret, 0};

    family_walk(sources, visit_values, &reading);
    assert(reading.next == layout->series_count);
}

/* ---- the page ----------------------------------------------------------------------------------------------- */

static void add_header(struct buffer *page, const struct family *family)
{
    buffer_text(page, "# HELP ");
    buffer_text(page, family->name);
    buffer_text(page, " ");
    buffer_text(page, family->help);
    buffer_text(page, "\n# TYPE ");
    buffer_text(page, family->name);
    buffer_text(page, " ");
    buffer_text(page, family_type_name(family->type));
    buffer_text(page, "\n");
}

static size_t format_value(char *ret, struct value value)
{
    switch (value.kind) {
    case VALUE_U64: return text_u64(ret, value.bits);
    case VALUE_SECONDS: return text_seconds(ret, value.bits);
    default: return text_double(ret, wideep_i_bits_double(value.bits));
    }
}

int exposition_render(const struct layout *layout, const struct value *values, char **ret_page, size_t *ret_size)
{
    struct buffer page = {0};

    for (size_t f = 0; f < layout->family_count; f++) {
        const struct layout_family *family = &layout->families[f];
        bool header = false;
        for (size_t i = family->first; i < family->first + family->count; i++) {
            const struct series *series = &layout->series[i];
            if (values[i].kind == VALUE_ABSENT)
                continue;
            if (!header)
                add_header(&page, family->family);
            header = true;
            if (!buffer_reserve(&page, series->length + TEXT_NUMBER_MAX + 1))
                break;
            memcpy(page.data + page.size, layout->texts.data + series->offset, series->length);
            page.size += series->length;
            page.size += format_value(page.data + page.size, values[i]);
            page.data[page.size++] = '\n';
        }
    }
    if (page.failed) {
        free(page.data);
        return -ENOMEM;
    }
    *ret_page = page.data;
    *ret_size = page.size;
    return 0;
}
