#include "framing.h"

#include <stdint.h>
#include <string.h>
#include <strings.h>

#define PAGE_SIZE 4096 /* the least there is */

struct framing {
    unsigned hosts, lengths, encodings;
    bool odd;
    const char *line_end; /* of the line before, in what was received */
};

/* Of a field's name (RFC 9110, section 5.6.2). To the library any other byte is a part of it, to a proxy perhaps none:
 * a space before the colon, for one. */
static bool is_token(const char *name)
{
    static const char allowed[] = "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";

    return *name != 0 && name[strspn(name, allowed)] == 0;
}

/* Whether a field's two texts, and the line before it, are next to each other as they were received. The library gives
 * its own memory, with NULs for each colon and end of a line. What it joins of folded lines, it joins to the name, in
 * other memory, so that they hide a field or make one; what is behind a NUL in a value it leaves out. */
static bool is_in_place(const char *line_end, const char *name, const char *value)
{
    const char *between = name + strlen(name) + 1;

    return (name == line_end + 1 || name == line_end + 2) && value == between + strspn(between, " \t");
}

static enum MHD_Result check_field(void *context, enum MHD_ValueKind kind, const char *name, const char *value)
{
    struct framing *framing = context;

    (void)kind;
    /* A carriage return alone is a text's to the library and may end the line to a proxy. */
    if (!is_token(name) || !value || strchr(value, '\r') || !is_in_place(framing->line_end, name, value)) {
        framing->odd = true;
        return MHD_NO;
    }
    framing->line_end = value + strlen(value);
    if (strcasecmp(name, MHD_HTTP_HEADER_HOST) == 0) {
        const char *rest = value + strcspn(value, " \t/@?#\\,");
        framing->hosts++;
        framing->odd = framing->odd || rest[strspn(rest, " \t")] != 0;
    }
    if (strcasecmp(name, MHD_HTTP_HEADER_CONTENT_LENGTH) == 0) {
        framing->lengths++;
        framing->odd = framing->odd || *value == 0 || value[strspn(value, "0123456789")] != 0;
    }
    if (strcasecmp(name, MHD_HTTP_HEADER_TRANSFER_ENCODING) == 0) {
        framing->encodings++;
        framing->odd = framing->odd || strcasecmp(value, "chunked") != 0;
    }
    return MHD_YES;
}

/* The library's memory is a mapping of its own, in which zeros follow what was received: so what there is of the page
 * may be read, and a NUL ends it. */
const char *framing_find_end(const char *target_end)
{
    const char *at = target_end + 1 + strlen(target_end + 1) + 1; /* behind the version and one end of line */
    const char *page_end = (const char *)(((uintptr_t)target_end | (PAGE_SIZE - 1)) + 1);

    if (at < page_end && *at == 0)
        at++; /* the line feed of two */
    while (at < page_end) {
        const char *newline = memchr(at, '\n', (size_t)(page_end - at));
        if (!newline || memchr(at, 0, (size_t)(newline - at)))
            return NULL;
        if (newline == at || (newline == at + 1 && *at == '\r'))
            return newline + 1;
        at = newline + 1;
    }
    return NULL;
}

/* Whether what the library took for the head ends with an empty line, two ends of lines in a row: to it, a line that
 * begins with a colon is one too, and what follows the next request. A line of a colon alone between unlike ends of
 * lines leaves the same traces; `head_end`, where it is known, tells. */
static bool ends_in_place(struct MHD_Connection *connection, const char *method, const char *line_end,
                          const char *head_end)
{
    const union MHD_ConnectionInfo *info = MHD_get_connection_info(connection, MHD_CONNECTION_INFO_REQUEST_HEADER_SIZE);
    const char *end = info ? method + info->header_size : NULL;

    return (end == line_end + 4 || end == line_end + 2) && (!head_end || end == head_end);
}

bool framing_is_sound(struct MHD_Connection *connection, const char *target_end, const char *head_end,
                      const char *method, const char *version, bool *ret_last)
{
    struct framing framing = {.line_end = version + strlen(version)};

    if (version != target_end + 1)
        return false;
    (void)MHD_get_connection_values(connection, MHD_HEADER_KIND, check_field, &framing);
    *ret_last = framing.encodings > 0 || !head_end;
    return !framing.odd && ends_in_place(connection, method, framing.line_end, head_end) &&
           framing.lengths + framing.encodings <= 1 && framing.hosts <= 1 &&
           (framing.hosts == 1 || strcmp(version, MHD_HTTP_VERSION_1_1) != 0);
}
