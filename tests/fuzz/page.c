#include "page.h"

#include "fuzz.h"

#include "prometheus.pb-c.h"

#include <ctype.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

struct span {
    const char *at;
    size_t length;
};

static bool same(struct span a, struct span b)
{
    return a.length == b.length && (a.length == 0 || memcmp(a.at, b.at, a.length) == 0);
}

static bool is_text(struct span span, const char *text)
{
    return same(span, (struct span){text, strlen(text)});
}

static bool starts_with(struct span span, const char *text)
{
    return span.length >= strlen(text) && memcmp(span.at, text, strlen(text)) == 0;
}

static bool ends_with(struct span span, const char *text)
{
    const size_t length = strlen(text);

    return span.length >= length && memcmp(span.at + span.length - length, text, length) == 0;
}

/* ---- what was there before ---------------------------------------------------------------------------------- */

/* A set of spans, open addressing, in memory of its own. */
struct seen {
    struct span *spans;
    size_t places; /* a power of two, more than twice what comes in */
};

static void seen_new(struct seen *seen, size_t most)
{
    for (seen->places = 64; seen->places < 2 * most + 2; seen->places *= 2)
        ;
    seen->spans = calloc(seen->places, sizeof *seen->spans);
    fuzz_expect(seen->spans);
}

/* False when it was there. */
static bool seen_add(struct seen *seen, struct span span)
{
    uint64_t hash = UINT64_C(0xcbf29ce484222325); /* FNV-1a */

    for (size_t i = 0; i < span.length; i++)
        hash = (hash ^ (uint8_t)span.at[i]) * UINT64_C(0x100000001b3);
    for (size_t place = hash ^ hash >> 32;; place++) {
        struct span *other = &seen->spans[place & (seen->places - 1)];
        if (!other->at) {
            *other = span;
            return true;
        }
        if (same(*other, span))
            return false;
    }
}

/* ---- one sample --------------------------------------------------------------------------------------------- */

struct sample {
    struct span series; /* name and labels */
    struct span name;   /* with its suffix */
    struct span labels; /* without the braces and without le */
    struct span le;     /* its value */
    double value;
};

enum { LABELS_MAX = 16 };

static size_t name_length(const char *at, const char *end, bool colon)
{
    const char *from = at;

    while (at < end && (isalpha((unsigned char)*at) || *at == '_' || (colon && *at == ':') ||
                        (at > from && isdigit((unsigned char)*at))))
        at++;
    return (size_t)(at - from);
}

/* Length of one well-formed character (Unicode, table 3-7), 0: none, or a NUL. */
static size_t utf8_length(const char *text, size_t left)
{
    const unsigned char *c = (const unsigned char *)text;

    if (c[0] < 0x80)
        return c[0] != 0;
    const size_t length = c[0] >= 0xf0 ? 4 : c[0] >= 0xe0 ? 3 : 2;
    if (c[0] < 0xc2 || c[0] > 0xf4 || left < length)
        return 0;
    const unsigned low = c[0] == 0xe0 ? 0xa0 : c[0] == 0xf0 ? 0x90 : 0x80;
    const unsigned high = c[0] == 0xed ? 0x9f : c[0] == 0xf4 ? 0x8f : 0xbf;
    if (c[1] < low || c[1] > high)
        return 0;
    for (size_t i = 2; i < length; i++)
        if (c[i] < 0x80 || c[i] > 0xbf)
            return 0;
    return length;
}

/* From behind the opening quote to the closing one. */
static const char *read_label_value(const char *at, const char *end)
{
    while (at < end && *at != '"') {
        if (*at == '\\') {
            fuzz_expect(at + 1 < end && strchr("\\n\"", at[1]) && at[1] != 0);
            at += 2;
            continue;
        }
        size_t length = utf8_length(at, (size_t)(end - at));
        if (length == 0)
            fuzz_fail("a label's value is not UTF-8");
        at += length;
    }
    fuzz_expect(at < end);
    return at;
}

/* From behind the opening brace to behind the closing one. */
static const char *read_labels(const char *at, const char *end, struct sample *sample)
{
    struct span names[LABELS_MAX];
    size_t count = 0;

    sample->labels = (struct span){at, 0};
    for (;; at++) {
        const struct span name = {at, name_length(at, end, false)};
        fuzz_expect(name.length > 0 && count < LABELS_MAX);
        for (size_t i = 0; i < count; i++)
            if (same(names[i], name))
                fuzz_fail("label %.*s is there twice", (int)name.length, name.at);
        names[count++] = name;
        at += name.length;
        fuzz_expect(end - at > 2 && at[0] == '=' && at[1] == '"');
        const char *value = at + 2;
        at = read_label_value(value, end);
        const bool is_le = is_text(name, "le");
        if (is_le)
            sample->le = (struct span){value, (size_t)(at - value)};
        at++;
        fuzz_expect(at < end && (*at == ',' || *at == '}'));
        if (!is_le)
            sample->labels.length = (size_t)(at - sample->labels.at);
        if (*at == '}')
            return at + 1;
        fuzz_expect(!is_le); /* the last one */
    }
}

static double read_number(struct span text)
{
    char copy[64], *end;

    fuzz_expect(text.length > 0 && text.length < sizeof copy);
    memcpy(copy, text.at, text.length);
    copy[text.length] = 0;
    if (strcmp(copy, "+Inf") == 0)
        return HUGE_VAL;
    if (strcmp(copy, "-Inf") == 0)
        return -HUGE_VAL;
    if (strcmp(copy, "NaN") == 0)
        return (double)NAN;
    fuzz_expect(copy[strspn(copy, "0123456789+-.e")] == 0);
    double value = strtod(copy, &end);
    fuzz_expect(*end == 0 && end != copy);
    return value;
}

static void read_sample(struct span line, struct sample *ret)
{
    const char *end = line.at + line.length, *at = line.at;

    *ret = (struct sample){.name = {at, name_length(at, end, true)}};
    fuzz_expect(ret->name.length > 0);
    at += ret->name.length;
    fuzz_expect(at < end);
    if (*at == '{')
        at = read_labels(at + 1, end, ret);
    ret->series = (struct span){line.at, (size_t)(at - line.at)};
    fuzz_expect(at < end && *at == ' ');
    ret->value = read_number((struct span){at + 1, (size_t)(end - at - 1)});
}

/* ---- a page ------------------------------------------------------------------------------------------------- */

enum kind { NONE, GAUGE, COUNTER, HISTOGRAM };

struct reading {
    bool openmetrics;
    struct seen families, series;
    struct span family; /* by HELP and TYPE */
    enum kind kind;
    bool help_alone; /* HELP was read, TYPE not yet */
    size_t samples;  /* of all families */
    size_t family_samples;
    /* A histogram of which buckets were read, but not yet its count. */
    struct span histogram; /* its labels; at NULL: none is open */
    double bound, cumulative;
    bool infinite, summed;
};

static void end_family(const struct reading *reading)
{
    fuzz_expect(!reading->help_alone && !reading->histogram.at);
    if (reading->kind != NONE && reading->family_samples == 0)
        fuzz_fail("%.*s has no sample", (int)reading->family.length, reading->family.at);
}

/* "# HELP name text" or "# TYPE name type". */
static void read_header(struct reading *reading, struct span line)
{
    const bool help = starts_with(line, "# HELP "), type = starts_with(line, "# TYPE ");
    const char *at = line.at + 7, *end = line.at + line.length;

    if (!help && !type)
        fuzz_fail("a comment of no kind: %.*s", (int)line.length, line.at);
    const struct span name = {at, name_length(at, end, true)};
    fuzz_expect(name.length > 0 && at + name.length + 1 < end && at[name.length] == ' ');
    const struct span rest = {at + name.length + 1, (size_t)(end - at) - name.length - 1};
    if (help) {
        end_family(reading);
        if (!seen_add(&reading->families, name))
            fuzz_fail("%.*s begins twice", (int)name.length, name.at);
        reading->family = name;
        reading->family_samples = 0;
        reading->help_alone = true;
        return;
    }
    fuzz_expect(reading->help_alone && same(name, reading->family));
    reading->help_alone = false;
    reading->kind = is_text(rest, "gauge")       ? GAUGE
                    : is_text(rest, "counter")   ? COUNTER
                    : is_text(rest, "histogram") ? HISTOGRAM
                                                 : NONE;
    fuzz_expect(reading->kind != NONE);
    fuzz_expect(!reading->openmetrics || reading->kind != COUNTER || !ends_with(name, "_total"));
}

/* Buckets by ascending bound, the sum, the count: one histogram after the other. */
static void read_histogram(struct reading *reading, const struct sample *sample, struct span suffix)
{
    fuzz_expect(sample->value >= 0);
    if (is_text(suffix, "_bucket")) {
        const double bound = read_number(sample->le);
        if (!reading->histogram.at) {
            reading->histogram = sample->labels;
            if (!reading->histogram.at)
                reading->histogram = (struct span){"", 0};
            reading->bound = -HUGE_VAL;
            reading->cumulative = 0;
            reading->infinite = reading->summed = false;
        }
        fuzz_expect(same(sample->labels, reading->histogram) && bound > reading->bound);
        fuzz_expect(sample->value >= reading->cumulative);
        reading->bound = bound;
        reading->cumulative = sample->value;
        reading->infinite = isinf(bound);
        return;
    }
    fuzz_expect(reading->histogram.at && reading->infinite && sample->le.at == NULL);
    fuzz_expect(same(sample->labels, reading->histogram));
    if (is_text(suffix, "_sum")) {
        fuzz_expect(!reading->summed && isfinite(sample->value));
        reading->summed = true;
        return;
    }
    fuzz_expect(is_text(suffix, "_count") && reading->summed && sample->value == reading->cumulative);
    reading->histogram.at = NULL;
}

static void read_series(struct reading *reading, struct span line)
{
    struct sample sample;

    read_sample(line, &sample);
    if (!seen_add(&reading->series, sample.series))
        fuzz_fail("twice: %.*s", (int)sample.series.length, sample.series.at);
    reading->samples++;
    reading->family_samples++;
    const struct span family = reading->family;
    fuzz_expect(reading->kind != NONE && !reading->help_alone && sample.name.length >= family.length);
    fuzz_expect(memcmp(sample.name.at, family.at, family.length) == 0);
    const struct span suffix = {sample.name.at + family.length, sample.name.length - family.length};
    if (reading->kind == HISTOGRAM) {
        read_histogram(reading, &sample, suffix);
        return;
    }
    fuzz_expect(sample.le.at == NULL);
    fuzz_expect(is_text(suffix, reading->openmetrics && reading->kind == COUNTER ? "_total" : ""));
    if (reading->kind == COUNTER && !(sample.value >= 0 && isfinite(sample.value)))
        fuzz_fail("no count: %.*s", (int)line.length, line.at);
    if (is_text(sample.name, "vllm:eplb_balancedness_ratio") && !(sample.value >= 0 && sample.value <= 1.000001))
        fuzz_fail("no ratio: %.*s", (int)line.length, line.at);
}

size_t page_check(const char *page, size_t size, bool openmetrics)
{
    struct reading reading = {.openmetrics = openmetrics};
    const char *at = page, *end = page + size;
    size_t lines = 0;
    bool ended = false;

    for (size_t i = 0; i < size; i++)
        lines += page[i] == '\n';
    seen_new(&reading.families, 300);
    seen_new(&reading.series, lines);
    while (at < end) {
        const char *newline = memchr(at, '\n', (size_t)(end - at));
        fuzz_expect(newline && newline > at && !ended);
        const struct span line = {at, (size_t)(newline - at)};
        at = newline + 1;
        if (openmetrics && is_text(line, "# EOF"))
            ended = true;
        else if (*line.at == '#')
            read_header(&reading, line);
        else
            read_series(&reading, line);
    }
    end_family(&reading);
    fuzz_expect(ended == openmetrics);
    free(reading.families.spans);
    free(reading.series.spans);
    return reading.samples;
}

/* ---- the other forms ---------------------------------------------------------------------------------------- */

static size_t count_histogram(const Prom__Histogram *histogram)
{
    uint64_t before = 0;

    fuzz_expect(histogram);
    for (size_t b = 0; b < histogram->n_bucket; b++) {
        fuzz_expect(histogram->bucket[b]->cumulative_count >= before);
        before = histogram->bucket[b]->cumulative_count;
    }
    fuzz_expect(histogram->sample_count >= before);
    return histogram->n_bucket + 3; /* le="+Inf", sum and count */
}

size_t page_check_protobuf(const char *page, size_t size)
{
    const uint8_t *at = (const uint8_t *)page, *end = at + size;
    size_t samples = 0;

    while (at < end) {
        uint64_t length = 0;
        for (unsigned shift = 0;; shift += 7) {
            fuzz_expect(at < end && shift < 35);
            length |= (uint64_t)(*at & 0x7f) << shift;
            if ((*at++ & 0x80) == 0)
                break;
        }
        fuzz_expect(length > 0 && length <= (uint64_t)(end - at));
        Prom__MetricFamily *family = prom__metric_family__unpack(NULL, length, at);
        fuzz_expect(family && family->name && family->n_metric > 0);
        for (size_t m = 0; m < family->n_metric; m++)
            samples += family->metric[m]->histogram ? count_histogram(family->metric[m]->histogram) : 1;
        prom__metric_family__free_unpacked(family, NULL);
        at += length;
    }
    return samples;
}

void page_check_json(const char *text, size_t size)
{
    json_error_t error;
    json_t *document = json_loadb(text, size, JSON_REJECT_DUPLICATES, &error);

    if (!document)
        fuzz_fail("no JSON: %s: %.*s", error.text, (int)(size < 200 ? size : 200), text);
    json_decref(document);
}
