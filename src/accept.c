#include "accept.h"

#include <stdbool.h>
#include <string.h>
#include <strings.h>

#define ITEMS_MAX   64
#define QUALITY_MAX 1000

/* ---- elements of a list ------------------------------------------------------------------------------------- */

struct span {
    const char *at;
    size_t length;
};

static struct span span_of(const char *text)
{
    return (struct span){text, strnlen(text, ACCEPT_LENGTH_MAX)};
}

static bool span_is(struct span span, const char *text)
{
    return strlen(text) == span.length && strncasecmp(span.at, text, span.length) == 0;
}

static struct span span_trim(struct span span)
{
    while (span.length > 0 && (span.at[0] == ' ' || span.at[0] == '\t')) {
        span.at++;
        span.length--;
    }
    while (span.length > 0 && (span.at[span.length - 1] == ' ' || span.at[span.length - 1] == '\t'))
        span.length--;
    return span;
}

/* Takes off what stands before the next separator, those within a quoted string not counted. False at the end. */
static bool next_part(struct span *rest, char separator, struct span *ret)
{
    bool quoted = false;
    size_t i = 0;

    if (rest->length == 0)
        return false;
    for (; i < rest->length && (quoted || rest->at[i] != separator); i++) {
        if (rest->at[i] == '"')
            quoted = !quoted;
        else if (quoted && rest->at[i] == '\\' && i + 1 < rest->length)
            i++;
    }
    *ret = span_trim((struct span){rest->at, i});
    size_t taken = i < rest->length ? i + 1 : i;
    *rest = (struct span){rest->at + taken, rest->length - taken};
    return true;
}

/* "name=value"; a quoted value loses its quotes. Escapes in it stay: no value that we know has any. */
static void split_parameter(struct span parameter, struct span *ret_name, struct span *ret_value)
{
    const char *equals = memchr(parameter.at, '=', parameter.length);
    size_t length = equals ? (size_t)(equals - parameter.at) : parameter.length;
    struct span value = {parameter.at + length, 0};

    if (equals)
        value = span_trim((struct span){equals + 1, parameter.length - length - 1});
    if (value.length >= 2 && value.at[0] == '"' && value.at[value.length - 1] == '"')
        value = (struct span){value.at + 1, value.length - 2};
    *ret_name = span_trim((struct span){parameter.at, length});
    *ret_value = value;
}

/* Thousandths. More digits than the standard's three, and none before the point, are in use. */
static bool read_quality(struct span text, unsigned *ret)
{
    unsigned whole = 0, fraction = 0, unit = QUALITY_MAX / 10;
    size_t i = 0;

    if (i < text.length && (text.at[i] == '0' || text.at[i] == '1'))
        whole = (unsigned)(text.at[i++] - '0');
    else if (text.length < 2)
        return false;
    if (i < text.length && text.at[i++] != '.')
        return false;
    for (; i < text.length; i++, unit /= 10) {
        if (text.at[i] < '0' || text.at[i] > '9')
            return false;
        fraction += unit * (unsigned)(text.at[i] - '0');
    }
    *ret = whole * QUALITY_MAX + fraction;
    return *ret <= QUALITY_MAX;
}

/* One element of the list: what it is for, its parameters, its quality. */
struct item {
    struct span name, parameters;
    unsigned quality;
};

static bool read_item(struct span text, struct item *ret)
{
    struct span parameter, name, value;

    if (!next_part(&text, ';', &ret->name) || ret->name.length == 0)
        return false;
    ret->parameters = text;
    ret->quality = QUALITY_MAX;
    while (next_part(&text, ';', &parameter)) {
        split_parameter(parameter, &name, &value);
        if (span_is(name, "q"))
            return read_quality(value, &ret->quality);
    }
    return true;
}

/* ---- media types -------------------------------------------------------------------------------------------- */

/* How well a range fits; each parameter that agrees adds one to FIT_NAMED. */
enum { FIT_NONE, FIT_ANY, FIT_TYPE, FIT_NAMED };

/* Parameters that are not here are not looked at. So `escaping`: our names need none, which satisfies any value. */
struct media_parameter {
    const char *name, *value;
    bool needed; /* a range without it does not mean this format */
};

static const struct media {
    const char *type, *any_of_type;
    bool named_only; /* no wildcard admits it */
    struct media_parameter parameters[2];
} media_types[PAGE_FORMATS] = {
    [PAGE_TEXT] = {"text/plain", "text/*", false, {{"version", "0.0.4", false}, {"charset", "utf-8", false}}},
    [PAGE_OPENMETRICS] = {"application/openmetrics-text",
                          "application/*",
                          false,
                          {{"version", "1.0.0", false}, {"charset", "utf-8", false}}},
    [PAGE_PROTOBUF] = {"application/vnd.google.protobuf",
                       "application/*",
                       false,
                       {{"proto", "io.prometheus.client.MetricFamily", true}, {"encoding", "delimited", true}}},
    [PAGE_OPENMETRICS_0_0_1] = {"application/openmetrics-text",
                                "application/*",
                                true,
                                {{"version", "0.0.1", true}, {"charset", "utf-8", false}}},
};

/* -1: the range has the parameter with another value. 0: has it not. 1: agrees. */
static int compare_parameter(struct span parameters, const struct media_parameter *wanted)
{
    struct span parameter, name, value;

    while (next_part(&parameters, ';', &parameter)) {
        split_parameter(parameter, &name, &value);
        if (span_is(name, wanted->name))
            return span_is(value, wanted->value) ? 1 : -1;
    }
    return 0;
}

static int media_fit(const struct media *media, const struct item *item)
{
    int fit = FIT_NAMED;

    if (!span_is(item->name, media->type)) {
        /* A lone asterisk is what an old Java library sends. */
        bool any = span_is(item->name, "*/*") || span_is(item->name, "*");
        if (media->named_only)
            return FIT_NONE;
        return any ? FIT_ANY : span_is(item->name, media->any_of_type) ? FIT_TYPE : FIT_NONE;
    }
    for (size_t i = 0; i < sizeof media->parameters / sizeof *media->parameters; i++) {
        int agrees = compare_parameter(item->parameters, &media->parameters[i]);
        if (agrees < 0 || (agrees == 0 && media->parameters[i].needed))
            return FIT_NONE;
        fit += agrees;
    }
    return fit;
}

/* What the header says of one format. */
struct judgement {
    int fit;
    unsigned quality, position;
};

static bool preferred(const struct judgement *a, const struct judgement *b)
{
    bool a_named = a->fit >= FIT_NAMED, b_named = b->fit >= FIT_NAMED;

    if (a->quality != b->quality)
        return a->quality > b->quality;
    if (a_named != b_named)
        return a_named;
    return a_named && a->position < b->position;
}

enum page_format accept_format(const char *accept)
{
    struct judgement judgements[PAGE_FORMATS] = {{0}};
    struct span list = span_of(accept ? accept : ""), text;
    enum page_format best = PAGE_TEXT;
    struct item item;

    for (unsigned i = 0; i < ITEMS_MAX && next_part(&list, ',', &text); i++) {
        if (!read_item(text, &item))
            continue;
        for (unsigned f = 0; f < PAGE_FORMATS; f++) {
            int fit = media_fit(&media_types[f], &item);
            if (fit > judgements[f].fit)
                judgements[f] = (struct judgement){fit, item.quality, i};
        }
    }
    for (unsigned f = 0; f < PAGE_FORMATS; f++)
        if (judgements[f].quality > 0 && preferred(&judgements[f], &judgements[best]))
            best = (enum page_format)f;
    return best;
}

/* ---- codings ------------------------------------------------------------------------------------------------ */

enum page_encoding accept_encoding(const char *accept)
{
    enum { UNSAID = -1 };
    int gzip = UNSAID, identity = UNSAID, others = UNSAID;
    struct span list = span_of(accept ? accept : ""), text;
    struct item item;

    for (unsigned i = 0; i < ITEMS_MAX && next_part(&list, ',', &text); i++) {
        if (!read_item(text, &item))
            continue;
        if (span_is(item.name, "gzip") || span_is(item.name, "x-gzip"))
            gzip = (int)item.quality;
        else if (span_is(item.name, "identity"))
            identity = (int)item.quality;
        else if (span_is(item.name, "*"))
            others = (int)item.quality;
    }
    if (gzip == UNSAID)
        gzip = others;
    if (identity == UNSAID)
        identity = others;
    /* Refused in so many words, where the other was merely not mentioned. */
    if (gzip == UNSAID)
        return identity == 0 ? PAGE_GZIP : PAGE_IDENTITY;
    /* Identity that is not mentioned is acceptable, but not asked for. */
    return gzip > 0 && gzip >= identity ? PAGE_GZIP : PAGE_IDENTITY;
}
