#include "log.h"

#include "text.h"

#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define CUT "...[cut]"

static enum log_level least = LOG_INFO;
static enum log_format form = LOG_LOGFMT;

static const char *const level_names[] = {"debug", "info", "warn", "error"};

struct line {
    char text[LOG_LINE_MAX];
    size_t size;
    bool cut;
};

void log_setup(enum log_level level, enum log_format format)
{
    least = level;
    form = format;
}

/* Leaves room for the mark of a cut, a closing quote, bracket and newline. */
static void line_add(struct line *line, const char *text, size_t length)
{
    const size_t limit = sizeof line->text - sizeof CUT - 4; /* a closing quote may lie just past it */

    if (line->cut)
        return;
    line->cut = line->size + length > limit;
    if (line->cut)
        return;
    memcpy(line->text + line->size, text, length);
    line->size += length;
}

static void line_quoted(struct line *line, const char *text)
{
    char repaired[LOG_LINE_MAX], escape[8];
    size_t length = strnlen(text, (sizeof repaired - 1) / 3);
    const bool longer = text[length] != 0;

    length = text_repair(repaired, sizeof repaired, text, length);
    line_add(line, "\"", 1);
    if (line->cut) /* the mark of the cut needs its quote all the same; there is room */
        line->text[line->size++] = '"';
    for (size_t i = 0; i < length; i++) {
        unsigned char c = (unsigned char)repaired[i];
        if (c == '"' || c == '\\')
            line_add(line, (const char[]){'\\', (char)c}, 2);
        else if (c == '\n')
            line_add(line, "\\n", 2);
        else if (c < 0x20 || c == 0x7F)
            line_add(line, escape, (size_t)snprintf(escape, sizeof escape, "\\u%04x", c));
        else
            line_add(line, repaired + i, 1);
    }
    if (longer)
        line_add(line, CUT, sizeof CUT - 1);
    if (line->cut) {
        memcpy(line->text + line->size, CUT, sizeof CUT - 1);
        line->size += sizeof CUT - 1;
    }
    line->text[line->size++] = '"';
}

/* A logfmt value needs quotes when it holds a space, a quote, '=' or anything beyond plain ASCII. */
static bool is_plain(const char *text)
{
    for (const char *c = text; *c; c++)
        if (*c <= ' ' || *c > '~' || *c == '"' || *c == '=' || *c == '\\')
            return false;
    return *text != 0;
}

/* A pair of which nothing can be shown: takes its beginning back, and says so. */
static void line_drop(struct line *line, size_t start)
{
    const char *mark = form == LOG_JSON ? ",\"cut\":\"1\"" : " cut=1"; /* no longer than the room that is left */

    line->size = start;
    memcpy(line->text + line->size, mark, strlen(mark));
    line->size += strlen(mark);
}

static void line_pair(struct line *line, const char *key, const char *text)
{
    size_t start = line->size;

    if (line->cut)
        return;
    if (form == LOG_JSON) {
        line_add(line, line->size > 1 ? ",\"" : "\"", line->size > 1 ? 2 : 1);
        line_add(line, key, strlen(key));
        line_add(line, "\":", 2);
    } else {
        if (line->size > 0)
            line_add(line, " ", 1);
        line_add(line, key, strlen(key));
        line_add(line, "=", 1);
    }
    if (!line->cut && (form == LOG_JSON || !is_plain(text) || strlen(text) >= 256)) {
        line_quoted(line, text); /* marks its own cut */
        return;
    }
    line_add(line, text, strlen(text)); /* nothing if the line is cut already */
    if (line->cut)
        line_drop(line, start);
}

void log_write(enum log_level level, const char *message, ...)
{
    struct line line = {.size = 0};
    struct timespec now;
    struct tm utc;
    char stamp[40];
    va_list pairs;

    if (level < least)
        return;
    (void)clock_gettime(CLOCK_REALTIME, &now);
    (void)gmtime_r(&now.tv_sec, &utc);
    size_t n = strftime(stamp, sizeof stamp, "%Y-%m-%dT%H:%M:%S", &utc);
    (void)snprintf(stamp + n, sizeof stamp - n, ".%03ldZ", now.tv_nsec / 1000000);
    if (form == LOG_JSON)
        line_add(&line, "{", 1);
    line_pair(&line, "ts", stamp);
    line_pair(&line, "level", level_names[level]);
    line_pair(&line, "msg", message);
    va_start(pairs, message);
    for (const char *key; (key = va_arg(pairs, const char *)) != NULL;) {
        const char *text = va_arg(pairs, const char *);
        line_pair(&line, key, text ? text : "");
    }
    va_end(pairs);
    if (form == LOG_JSON)
        line.text[line.size++] = '}';
    line.text[line.size++] = '\n';
    /* A log that cannot be written must not stop the exporter. */
    ssize_t written = write(STDERR_FILENO, line.text, line.size);
    (void)written;
}
