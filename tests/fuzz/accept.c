/*
 * Content negotiation and the small texts that come in a query: no failure is possible, so what is checked is that the
 * answer is one, that it does not depend on what it must not depend on, and, where a header is plain enough, that a
 * simple reading of RFC 9110 (12.4.2, 12.5.1, 12.5.3) comes to the same.
 */
#include "accept.h"
#include "admin.h"
#include "fuzz.h"
#include "text.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TEXT_MAX  6000
#define ITEMS_MAX 64

/* ---- what must make no difference ----------------------------------------------------------------------------- */

static void swap_case(char *text)
{
    for (; *text; text++)
        *text = (char)(islower((unsigned char)*text) ? toupper((unsigned char)*text) : tolower((unsigned char)*text));
}

/* Spaces around commas and semicolons; false where quotes or escapes may protect them, or there is no room. */
static bool add_spaces(char *ret, size_t size, const char *text)
{
    size_t length = 0;

    if (strpbrk(text, "\"\\"))
        return false;
    for (; *text; text++) {
        const bool separator = *text == ',' || *text == ';';
        if (length + 4 >= size)
            return false;
        if (separator)
            ret[length++] = ' ';
        ret[length++] = *text;
        if (separator)
            ret[length++] = '\t';
    }
    ret[length] = 0;
    return length <= ACCEPT_LENGTH_MAX;
}

static void check_indifference(const char *text)
{
    char other[TEXT_MAX + 1];
    const enum page_format format = accept_format(text);
    const enum page_encoding encoding = accept_encoding(text);

    fuzz_expect(format < PAGE_FORMATS && encoding < PAGE_ENCODINGS);
    (void)snprintf(other, sizeof other, "%s", text);
    swap_case(other);
    fuzz_expect(accept_format(other) == format && accept_encoding(other) == encoding);
    if (add_spaces(other, sizeof other, text))
        fuzz_expect(accept_format(other) == format && accept_encoding(other) == encoding);
    if (strlen(text) > ACCEPT_LENGTH_MAX) {
        (void)snprintf(other, sizeof other, "%s", text);
        other[ACCEPT_LENGTH_MAX] = 0;
        fuzz_expect(accept_format(other) == format && accept_encoding(other) == encoding);
    }
}

/* ---- another reading of Accept-Encoding ----------------------------------------------------------------------- */

/* Elements "coding" or "coding;q=0.123", without spaces. -1: not of this simple form. */
static int plain_quality(const char *element, const char *coding)
{
    const size_t length = strlen(coding);
    const char *q = element + length;

    if (strncmp(element, coding, length) != 0 || (*q != 0 && *q != ';'))
        return -1;
    if (*q == 0)
        return 1000;
    return (int)(strtod(q + 3, NULL) * 1000 + 0.5);
}

static bool is_plain(const char *element)
{
    const size_t coding = strspn(element, "abcdefghijklmnopqrstuvwxyz*-");
    const char *q = element + coding;

    if (coding == 0)
        return false;
    if (*q == 0)
        return true;
    if (strncmp(q, ";q=", 3) != 0 || (q[3] != '0' && q[3] != '1'))
        return false;
    if (q[4] == 0)
        return true;
    const size_t digits = strspn(q + 5, q[3] == '1' ? "0" : "0123456789");
    return q[4] == '.' && digits >= 1 && digits <= 3 && q[5 + digits] == 0;
}

static void check_encoding(const char *text)
{
    char copy[TEXT_MAX + 1];
    int gzip = -1, identity = -1, others = -1;
    unsigned count = 0;
    char *at = copy;

    if (strlen(text) > ACCEPT_LENGTH_MAX || *text == 0)
        return;
    (void)snprintf(copy, sizeof copy, "%s", text);
    for (char *element; (element = strsep(&at, ",")) != NULL; count++) {
        if (!is_plain(element) || count == ITEMS_MAX)
            return;
        const int q[] = {plain_quality(element, "gzip"), plain_quality(element, "x-gzip"),
                         plain_quality(element, "identity"), plain_quality(element, "*")};
        gzip = q[0] >= 0 ? q[0] : q[1] >= 0 ? q[1] : gzip;
        identity = q[2] >= 0 ? q[2] : identity;
        others = q[3] >= 0 ? q[3] : others;
    }
    gzip = gzip >= 0 ? gzip : others;
    identity = identity >= 0 ? identity : others;
    const enum page_encoding encoding = accept_encoding(text);
    if (gzip == 0 && identity != 0)
        fuzz_expect(encoding == PAGE_IDENTITY);
    if (identity == 0 && gzip != 0)
        fuzz_expect(encoding == PAGE_GZIP);
    if (gzip > 0 && identity >= 0)
        fuzz_expect(encoding == (gzip >= identity ? PAGE_GZIP : PAGE_IDENTITY));
}

/* A format that the header names last, all others refused, is the answer. */
static void check_refusals(const char *text)
{
    static const char only[] = "text/plain;q=0,application/openmetrics-text;version=1.0.0;q=0.3,*/*;q=0,";
    char joined[TEXT_MAX + sizeof only];

    if (strpbrk(text, "/*"))
        return; /* it may name a type */
    (void)snprintf(joined, sizeof joined, "%s%s", only, text);
    fuzz_expect(accept_format(joined) == PAGE_OPENMETRICS);
}

/* ---- arguments ------------------------------------------------------------------------------------------------ */

static void check_layers(const char *text)
{
    struct layer_set layers = {{0}}, again;
    char described[TEXT_MAX];

    if (admin_parse_layers(text, &layers) != 0)
        return;
    admin_describe_layers(&layers, described, sizeof described);
    fuzz_expect(strlen(described) < sizeof described);
    if (strcmp(described, "all") == 0)
        return;
    fuzz_expect(admin_parse_layers(described, &again) == 0 && memcmp(&layers, &again, sizeof layers) == 0);
    char little[12];
    admin_describe_layers(&layers, little, sizeof little);
    fuzz_expect(strlen(little) < sizeof little);
}

static void check_duration(const char *text)
{
    uint64_t ns;

    if (!text_duration(text, &ns))
        return;
    fuzz_expect(text[0] != 0 && text[strspn(text, "0123456789.hmsun\xb5\xc2\xce\xbc")] == 0);
}

/* As a label's value; read back, it is the same. */
static void check_label(const char *text, size_t length)
{
    static char repaired[3 * TEXT_MAX + 1], again[9 * TEXT_MAX + 1], escaped[6 * TEXT_MAX + 1];
    size_t size = text_repair(repaired, 3 * length + 1, text, length), out = 0;

    fuzz_expect(size <= 3 * length && strlen(repaired) == size);
    fuzz_expect(text_repair(again, sizeof again, repaired, size) == size && strcmp(again, repaired) == 0);
    size_t escaped_size = text_escape_label(escaped, sizeof escaped, repaired, size);
    for (size_t i = 0; i < escaped_size; i++, out++) {
        fuzz_expect(escaped[i] != '\n' && escaped[i] != '"');
        if (escaped[i] == '\\') {
            i++;
            fuzz_expect(i < escaped_size && escaped[i] && strchr("n\\\"", escaped[i]));
        }
        fuzz_expect(
            (escaped[i - (escaped[i] == 0)] == 'n' && i > 0 && escaped[i - 1] == '\\' && repaired[out] == '\n') ||
            escaped[i] == repaired[out]);
    }
    fuzz_expect(out == size);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc;
    (void)argv;
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char text[TEXT_MAX + 1];
    const size_t length = size < TEXT_MAX ? size : TEXT_MAX;

    if (length > 0)
        memcpy(text, data, length);
    text[length] = 0;
    check_indifference(text);
    check_encoding(text);
    check_refusals(text);
    check_layers(text);
    check_duration(text);
    check_label(text, length);
    return 0;
}
