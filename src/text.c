#include "text.h"

#include <assert.h>
#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Length of the well-formed sequence at `s`, or 0 with the length of its maximal ill-formed subpart in `ret_bad`.
 * The ranges are those of table 3-7 of the Unicode standard. */
static size_t sequence_length(const unsigned char *s, size_t left, size_t *ret_bad)
{
    unsigned char low = 0x80, high = 0xBF;
    size_t need;

    *ret_bad = 1;
    if (s[0] < 0x80)
        return 1;
    if (s[0] >= 0xC2 && s[0] <= 0xDF) {
        need = 2;
    } else if (s[0] >= 0xE0 && s[0] <= 0xEF) {
        need = 3;
        low = s[0] == 0xE0 ? 0xA0 : 0x80;
        high = s[0] == 0xED ? 0x9F : 0xBF;
    } else if (s[0] >= 0xF0 && s[0] <= 0xF4) {
        need = 4;
        low = s[0] == 0xF0 ? 0x90 : 0x80;
        high = s[0] == 0xF4 ? 0x8F : 0xBF;
    } else {
        return 0;
    }
    for (size_t i = 1; i < need; i++) {
        if (i >= left || s[i] < low || s[i] > high)
            return 0;
        *ret_bad = i + 1;
        low = 0x80;
        high = 0xBF;
    }
    return need;
}

size_t text_repair(char *ret, size_t size, const char *bytes, size_t length)
{
    size_t out = 0;

    assert(size > 3 * length);
    for (size_t i = 0; i < length;) {
        size_t bad;
        size_t good = sequence_length((const unsigned char *)bytes + i, length - i, &bad);
        if (good > 0 && bytes[i] != 0) {
            memcpy(ret + out, bytes + i, good);
            out += good;
            i += good;
        } else {
            memcpy(ret + out, "\xEF\xBF\xBD", 3);
            out += 3;
            i += good > 0 ? good : bad;
        }
    }
    ret[out] = 0;
    return out;
}

size_t text_u64(char *ret, uint64_t value)
{
    char digits[20];
    size_t n = 0;

    do
        digits[n++] = (char)('0' + value % 10);
    while ((value /= 10) != 0);
    for (size_t i = 0; i < n; i++)
        ret[i] = digits[n - 1 - i];
    return n;
}

size_t text_seconds(char *ret, uint64_t ns)
{
    uint64_t fraction = ns % 1000000000u;
    size_t n = text_u64(ret, ns / 1000000000u);

    if (fraction == 0)
        return n;
    ret[n++] = '.';
    for (; fraction != 0; fraction = fraction % 100000000u * 10)
        ret[n++] = (char)('0' + fraction / 100000000u);
    return n;
}

size_t text_double(char *ret, double value)
{
    char text[TEXT_NUMBER_MAX];
    const char *special = isnan(value) ? "NaN" : isinf(value) ? (value > 0 ? "+Inf" : "-Inf") : NULL;

    if (special) {
        memcpy(ret, special, strlen(special));
        return strlen(special);
    }
    /* Below 2^53 an integral double is its digits. */
    if (value >= 0 && value < 9007199254740992.0 && value == (double)(uint64_t)value && !signbit(value))
        return text_u64(ret, (uint64_t)value);
    /* 15 digits always survive the way to a double, 17 always suffice for the way back. */
    for (int digits = 15; digits <= 17; digits++) {
        (void)snprintf(text, sizeof text, "%.*g", digits, value);
        if (strtod(text, NULL) == value)
            break;
    }
    size_t n = strlen(text);
    memcpy(ret, text, n);
    return n;
}

size_t text_escape_label(char *ret, size_t size, const char *text, size_t length)
{
    size_t out = 0;

    assert(size > 2 * length);
    for (size_t i = 0; i < length; i++) {
        char c = text[i];
        if (c == '\\' || c == '"' || c == '\n')
            ret[out++] = '\\';
        ret[out++] = c == '\n' ? 'n' : c;
    }
    ret[out] = 0;
    return out;
}

/* ---- durations ---------------------------------------------------------------------------------------------- */

#define US UINT64_C(1000)
#define S  (1000 * 1000 * US)

/* Digits with an optional fraction, in units of `unit_ns`; digits below a nanosecond are dropped. */
static bool scale_decimal(const char *text, size_t length, uint64_t unit_ns, uint64_t *ret_ns)
{
    uint64_t whole = 0, fraction_ns = 0, place_ns = unit_ns;
    bool in_fraction = false;

    for (size_t i = 0; i < length; i++) {
        uint64_t digit = (uint64_t)(text[i] - '0');
        if (text[i] == '.') {
            if (in_fraction)
                return false;
            in_fraction = true;
        } else if (in_fraction) {
            place_ns /= 10;
            fraction_ns += digit * place_ns;
        } else if (__builtin_mul_overflow(whole, 10, &whole) || __builtin_add_overflow(whole, digit, &whole)) {
            return false;
        }
    }
    return !__builtin_mul_overflow(whole, unit_ns, ret_ns) && !__builtin_add_overflow(*ret_ns, fraction_ns, ret_ns);
}

bool text_duration(const char *text, uint64_t *ret_ns)
{
    static const struct {
        const char *unit;
        uint64_t ns;
    } units[] = {{"ns", 1}, {"us", US}, {"µs", US}, {"ms", 1000 * US}, {"s", S}, {"m", 60 * S}, {"h", 3600 * S}};
    uint64_t sum_ns = 0;

    if (*text == 0)
        return false;
    if (strcmp(text, "0") == 0)
        text++;
    while (*text) {
        size_t digits = strspn(text, "0123456789."), length = strcspn(text + digits, "0123456789.");
        uint64_t unit_ns = 0, term_ns;
        for (size_t i = 0; i < sizeof units / sizeof *units; i++)
            if (strlen(units[i].unit) == length && strncmp(text + digits, units[i].unit, length) == 0)
                unit_ns = units[i].ns;
        if (!isdigit((unsigned char)*text) || unit_ns == 0 || !scale_decimal(text, digits, unit_ns, &term_ns) ||
            __builtin_add_overflow(sum_ns, term_ns, &sum_ns))
            return false;
        text += digits + length;
    }
    *ret_ns = sum_ns;
    return true;
}
