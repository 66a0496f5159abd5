#include "text.h"

#include "shortest.h"

#include <assert.h>
#include <ctype.h>
#include <endian.h>
#include <math.h>
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

/* ---- numbers ------------------------------------------------------------------------------------------------ */

#define EIGHT_DIGITS UINT64_C(100000000)

/* The eight digits of a number below EIGHT_DIGITS, a byte of 0 to 9 for each, the first digit in the lowest byte: as
 * they are stored, so that leading zeros are the low zero bits. All of a kind are divided at once, each in a lane of
 * its own: the two halves by 100, then the four pairs by 10. The factors are the reciprocals, exact for so small
 * numbers. */
static uint64_t eight_digits(uint64_t value)
{
    const uint64_t halves = value / 10000 | value % 10000 << 32;
    const uint64_t hundreds = (halves * 10486 >> 20) & UINT64_C(0x0000007F0000007F);
    const uint64_t pairs = hundreds | (halves - hundreds * 100) << 16;
    const uint64_t tens = (pairs * 103 >> 10) & UINT64_C(0x000F000F000F000F);
    return tens | (pairs - tens * 10) << 8;
}

static void put_eight(char *ret, uint64_t digits)
{
    digits = htole64(digits | UINT64_C(0x3030303030303030));
    memcpy(ret, &digits, sizeof digits);
}

/* How many of eight digits there are without the zeros at the end; not for eight zeros. */
static size_t without_trailing_zeros(uint64_t digits)
{
    return 8 - (size_t)__builtin_clzll(digits) / 8;
}

size_t text_u64(char *ret, uint64_t value)
{
    if (value >= EIGHT_DIGITS) {
        size_t n = text_u64(ret, value / EIGHT_DIGITS);
        put_eight(ret + n, eight_digits(value % EIGHT_DIGITS));
        return n + 8;
    }
    const uint64_t digits = eight_digits(value);
    /* The bit of the last digit: a zero has one, too. */
    const unsigned leading_zeros = (unsigned)__builtin_ctzll(digits | UINT64_C(1) << 56) / 8;
    put_eight(ret, digits >> 8 * leading_zeros);
    return 8 - leading_zeros;
}

size_t text_seconds(char *ret, uint64_t ns)
{
    const uint64_t fraction = ns % 1000000000u;
    size_t n = text_u64(ret, ns / 1000000000u);

    if (fraction == 0)
        return n;
    const uint64_t digits = eight_digits(fraction / 10);
    ret[n++] = '.';
    put_eight(ret + n, digits);
    if (fraction % 10 == 0)
        return n + without_trailing_zeros(digits);
    ret[n + 8] = (char)('0' + fraction % 10);
    return n + 9;
}

/* Writes all 17 digits of a number that has so many. Returns how many there are without the zeros at the end. */
static size_t put_seventeen(char *ret, uint64_t value)
{
    const uint64_t last_sixteen = value % (EIGHT_DIGITS * EIGHT_DIGITS);
    const uint64_t middle = eight_digits(last_sixteen / EIGHT_DIGITS), last = eight_digits(last_sixteen % EIGHT_DIGITS);

    ret[0] = (char)('0' + value / (EIGHT_DIGITS * EIGHT_DIGITS));
    put_eight(ret + 1, middle);
    put_eight(ret + 9, last);
    return last ? 9 + without_trailing_zeros(last) : middle ? 1 + without_trailing_zeros(middle) : 1;
}

/* e, sign, at least two digits: -308 gives e-308, 21 gives e+21. Returns the length. */
static size_t put_exponent(char *ret, int exponent)
{
    const unsigned magnitude = (unsigned)abs(exponent);

    ret[0] = 'e';
    ret[1] = exponent < 0 ? '-' : '+';
    ret[2] = '0';
    return (magnitude < 10 ? 3 : 2) + text_u64(ret + (magnitude < 10 ? 3 : 2), magnitude);
}

/* Plain from 0.0001 on, unless that took zeros before the point that are no digits of the number; not for 0. Copies
 * have fixed sizes, which compile to two instructions; what they have too much lies behind the end, and their last byte
 * is ret[SHORTEST_DIGITS_MAX * 2 - 1] at most. */
static size_t put_decimal(char *ret, struct decimal decimal)
{
    char digits[SHORTEST_DIGITS_MAX * 2 - 1];

    for (; decimal.digits < EIGHT_DIGITS * EIGHT_DIGITS; decimal.exponent--)
        decimal.digits *= 10;
    const size_t count = put_seventeen(digits, decimal.digits);
    const int before_point = SHORTEST_DIGITS_MAX + decimal.exponent;

    if (before_point <= 0 && before_point > -4) {
        memcpy(ret, "0.000", 5);
        memcpy(ret + 2 - before_point, digits, SHORTEST_DIGITS_MAX);
        return (size_t)(2 - before_point) + count;
    }
    if (before_point > 0 && (size_t)before_point <= count) {
        memcpy(ret, digits, SHORTEST_DIGITS_MAX);
        if ((size_t)before_point == count)
            return count;
        ret[before_point] = '.';
        memcpy(ret + before_point + 1, digits + before_point, SHORTEST_DIGITS_MAX - 1);
        return count + 1;
    }
    ret[0] = digits[0];
    ret[1] = '.';
    memcpy(ret + 2, digits + 1, SHORTEST_DIGITS_MAX - 1);
    const size_t n = count == 1 ? 1 : count + 1;
    return n + put_exponent(ret + n, before_point - 1);
}

static_assert(TEXT_NUMBER_MAX >= 1 + SHORTEST_DIGITS_MAX * 2, "a sign and all that put_decimal() writes");

size_t text_double(char *ret, double value)
{
    const char *special = isnan(value) ? "NaN" : isinf(value) ? (value > 0 ? "+Inf" : "-Inf") : NULL;

    if (special) {
        memcpy(ret, special, strlen(special));
        return strlen(special);
    }
    const double magnitude = fabs(value);
    const size_t sign = signbit(value) ? 1 : 0;
    ret[0] = '-'; /* stays if there is a sign */
    /* Below 2^53 a whole double is its digits. */
    if (magnitude < 9007199254740992.0 && magnitude == (double)(int64_t)magnitude)
        return sign + text_u64(ret + sign, (uint64_t)magnitude);
    return sign + put_decimal(ret + sign, shortest_decimal(value));
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
