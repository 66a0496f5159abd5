#include "protobuf.h"

#include "prometheus.pb-c.h"
#include "text.h"

#include <assert.h>

#define LABELS_MAX 8 /* of the scope and of the family, the instance, one to spare */
#define VARINT_MAX 10

/* What is needed for one series, kept from one to the next. */
struct work {
    bool empty;            /* no metric of the family yet */
    struct buffer text;    /* as the layout has it */
    struct buffer strings; /* of the labels */
    Prom__LabelPair pairs[LABELS_MAX], *pair_pointers[LABELS_MAX];
    double bounds[FAMILY_BUCKETS_MAX];
    Prom__Bucket buckets[FAMILY_BUCKETS_MAX], *bucket_pointers[FAMILY_BUCKETS_MAX];
};

/* The double that a reader of the text page makes of it. */
static double to_double(struct value value)
{
    char text[TEXT_NUMBER_MAX + 1];

    switch (value.kind) {
    case VALUE_U64: return (double)value.bits;
    case VALUE_SECONDS:
        /* Of two exact doubles the quotient is the nearest double, which is what strtod() makes of it. */
        if (value.bits < UINT64_C(1) << 53)
            return (double)value.bits / 1e9;
        text[text_seconds(text, value.bits)] = 0;
        return strtod(text, NULL);
    default: return wideep_i_bits_double(value.bits);
    }
}

/* ---- labels, read back from the layout's own text ----------------------------------------------------------- */

/* Copies up to `end` and puts a NUL behind. Returns what follows the end. */
static const char *take_name(const char *at, struct buffer *strings, char end)
{
    while (*at != end)
        strings->data[strings->size++] = *at++;
    strings->data[strings->size++] = 0;
    return at + 1;
}

/* Undoes text_escape_label(). */
static const char *take_value(const char *at, struct buffer *strings)
{
    while (*at != '"') {
        bool escaped = *at == '\\';
        at += escaped;
        strings->data[strings->size++] = escaped && *at == 'n' ? '\n' : *at;
        at++;
    }
    strings->data[strings->size++] = 0;
    return at + 1;
}

/* Of the text at hand: name{label="value",…} or name without labels. Returns how many pairs there are, -ENOMEM. */
static int read_labels(struct work *work)
{
    const char *at = work->text.failed ? NULL : memchr(work->text.data, '{', work->text.size);
    int n = 0;

    work->strings.size = 0;
    /* Each `="` makes room for a NUL more. */
    if (work->text.failed || !buffer_reserve(&work->strings, work->text.size))
        return -ENOMEM;
    while (at && *at != '}') {
        assert(n < LABELS_MAX);
        prom__label_pair__init(&work->pairs[n]);
        work->pairs[n].name = work->strings.data + work->strings.size;
        at = take_name(at + 1, &work->strings, '=');
        work->pairs[n].value = work->strings.data + work->strings.size;
        at = take_value(at + 1, &work->strings);
        work->pair_pointers[n] = &work->pairs[n];
        n++;
    }
    return n;
}

/* ---- metrics ------------------------------------------------------------------------------------------------ */

/* The message's encoding is that of its fields in a row, so a family can be written in pieces. */
static void add_piece(struct buffer *page, const Prom__MetricFamily *piece)
{
    size_t size = prom__metric_family__get_packed_size(piece);

    if (buffer_reserve(page, size))
        page->size += prom__metric_family__pack(piece, (uint8_t *)page->data + page->size);
}

static void add_metric(struct buffer *page, struct work *work, Prom__Metric *metric)
{
    Prom__MetricFamily piece = PROM__METRIC_FAMILY__INIT;
    int labels = read_labels(work);

    if (labels < 0) {
        page->failed = true;
        return;
    }
    metric->n_label = (size_t)labels;
    metric->label = work->pair_pointers;
    piece.n_metric = 1;
    piece.metric = &metric;
    add_piece(page, &piece);
}

static void add_simple(struct buffer *page, struct work *work, enum family_type type, struct value value)
{
    Prom__Metric metric = PROM__METRIC__INIT;
    Prom__Counter counter = PROM__COUNTER__INIT;
    Prom__Gauge gauge = PROM__GAUGE__INIT;

    if (type == FAMILY_COUNTER) {
        counter.has_value = true;
        counter.value = to_double(value);
        metric.counter = &counter;
    } else {
        gauge.has_value = true;
        gauge.value = to_double(value);
        metric.gauge = &gauge;
    }
    add_metric(page, work, &metric);
}

/* `values`: the buckets up to the one without a bound, sum and count. The text is that of the count. */
static void add_histogram(struct buffer *page, struct work *work, unsigned bounds, const struct value *values)
{
    Prom__Metric metric = PROM__METRIC__INIT;
    Prom__Histogram histogram = PROM__HISTOGRAM__INIT;

    for (unsigned b = 0; b < bounds; b++) {
        prom__bucket__init(&work->buckets[b]);
        work->buckets[b].has_upper_bound = work->buckets[b].has_cumulative_count = true;
        work->buckets[b].upper_bound = work->bounds[b];
        work->buckets[b].cumulative_count = values[b].bits;
        work->bucket_pointers[b] = &work->buckets[b];
    }
    histogram.n_bucket = bounds;
    histogram.bucket = work->bucket_pointers;
    histogram.has_sample_sum = histogram.has_sample_count = true;
    histogram.sample_sum = to_double(values[bounds + 1]);
    histogram.sample_count = values[bounds + 2].bits;
    metric.histogram = &histogram;
    add_metric(page, work, &metric);
}

static void add_header(struct buffer *page, const struct family *family)
{
    static const Prom__MetricType types[] = {
        [FAMILY_GAUGE] = PROM__METRIC_TYPE__GAUGE,
        [FAMILY_COUNTER] = PROM__METRIC_TYPE__COUNTER,
        [FAMILY_HISTOGRAM] = PROM__METRIC_TYPE__HISTOGRAM,
    };
    Prom__MetricFamily piece = PROM__METRIC_FAMILY__INIT;

    /* Packing only reads them. */
    piece.name = (char *)(uintptr_t)family->name;
    piece.help = (char *)(uintptr_t)family->help;
    piece.has_type = true;
    piece.type = types[family->type];
    add_piece(page, &piece);
}

/* ---- the family --------------------------------------------------------------------------------------------- */

/* Puts the length of all from `start` on in front of it. */
static void delimit(struct buffer *page, size_t start)
{
    uint64_t length = page->size - start;
    uint8_t varint[VARINT_MAX];
    size_t n = 0;

    for (; length >= 0x80; length >>= 7)
        varint[n++] = (uint8_t)(length | 0x80);
    varint[n++] = (uint8_t)length;
    if (!buffer_reserve(page, n))
        return;
    memmove(page->data + start + n, page->data + start, page->size - start);
    memcpy(page->data + start, varint, n);
    page->size += n;
}

static void take_text(struct work *work, const struct layout *layout, const struct layout_run *run, const char *tail,
                      size_t tail_size)
{
    work->text.size = 0;
    buffer_add(&work->text, layout->texts.data + run->text, run->head_size);
    buffer_add(&work->text, tail, tail_size);
}

/* Adds the metrics whose last series the run has: all of a simple family's, a histogram's when it is that of counts. */
static void add_run(struct buffer *page, struct work *work, const struct layout *layout, const struct value *values,
                    const struct layout_family *family, const struct layout_run *run)
{
    const unsigned bounds = family->family->bound_count;
    const size_t step = family->family->type == FAMILY_HISTOGRAM ? bounds + 3u : 1u;
    const char *tail = layout->texts.data + run->text + run->head_size;

    for (size_t i = run->first; i < run->first + run->count; tail += layout->tail_sizes[i++]) {
        if (values[i].kind == VALUE_ABSENT || (i - family->first) % step != step - 1)
            continue;
        if (work->empty)
            add_header(page, family->family);
        work->empty = false;
        take_text(work, layout, run, tail, layout->tail_sizes[i]);
        if (step > 1)
            add_histogram(page, work, bounds, &values[i + 1 - step]);
        else
            add_simple(page, work, family->family->type, values[i]);
    }
}

void protobuf_add_family(struct buffer *page, const struct layout *layout, const struct value *values,
                         const struct layout_family *family)
{
    const size_t start = page->size;
    struct work work = {.empty = true};

    for (unsigned b = 0; b < family->family->bound_count; b++)
        work.bounds[b] = strtod(family->family->bounds[b], NULL);
    for (size_t r = family->first_run; r < family->first_run + family->run_count && !page->failed; r++)
        add_run(page, &work, layout, values, family, &layout->runs[r]);
    free(work.text.data);
    free(work.strings.data);
    if (page->size > start)
        delimit(page, start);
}
