#include "live.h"

#include "live_page.h"
#include "page.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

const char live_policy[] = LIVE_POLICY;

/* In the page's HTML, where its script does not reach. */
static const struct mark {
    const char *name;
    bool is_path;
} marks[] = {{"@METRICS@", true}, {"@VERSION@", false}};

enum { MARKS = sizeof marks / sizeof *marks };

/* The first mark in what is left of the source; NULL: there is none. */
static const char *next_mark(const char *from, const char *end, const struct mark **ret)
{
    const char *found = NULL;

    for (unsigned i = 0; i < MARKS; i++) {
        const char *at = memmem(from, (size_t)(end - from), marks[i].name, strlen(marks[i].name));
        if (at && (!found || at < found)) {
            found = at;
            *ret = &marks[i];
        }
    }
    return found;
}

static void fill(struct buffer *page, const char *telemetry_path, const char *version)
{
    const char *at = live_source, *end = live_source + sizeof live_source, *found;
    const struct mark *mark = NULL;

    while ((found = next_mark(at, end, &mark))) {
        buffer_add(page, at, (size_t)(found - at));
        buffer_text(page, mark->is_path ? telemetry_path : version);
        at = found + strlen(mark->name);
    }
    buffer_add(page, at, (size_t)(end - at));
}

int live_make(struct live *ret, const char *telemetry_path, const char *version)
{
    *ret = (struct live){0};
    fill(&ret->page, telemetry_path, version);
    int error = ret->page.failed ? -ENOMEM : page_gzip(&ret->gzip, ret->page.data, ret->page.size);
    if (error)
        live_free(ret);
    return error;
}

void live_free(struct live *live)
{
    free(live->page.data);
    free(live->gzip.data);
    *live = (struct live){0};
}
