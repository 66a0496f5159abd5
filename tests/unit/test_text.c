/* UTF-8 repair and numbers. */
#include "text.h"
#include "shortest.h"
#include "suite.h"

#include <inttypes.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FFFD "\xEF\xBF\xBD"

static const struct {
    const char *bytes;
    size_t length;
    const char *expected;
} repairs[] = {
    {"", 0, ""},
    {"plain", 5, "plain"},
    {"a\"b\\c\n\x7f", 7, "a\"b\\c\n\x7f"},
    {"\xC3\xBC\xE2\x82\xAC\xF0\x9F\x98\x80", 9, "\xC3\xBC\xE2\x82\xAC\xF0\x9F\x98\x80"},
    {"\xC2\x80\xDF\xBF\xE0\xA0\x80\xEF\xBF\xBF", 10, "\xC2\x80\xDF\xBF\xE0\xA0\x80\xEF\xBF\xBF"}, /* bounds */
    {"\xED\x9F\xBF\xEE\x80\x80\xF0\x90\x80\x80\xF4\x8F\xBF\xBF", 14,
     "\xED\x9F\xBF\xEE\x80\x80\xF0\x90\x80\x80\xF4\x8F\xBF\xBF"},
    {"a\0b", 3, "a" FFFD "b"},
    {"\0\0", 2, FFFD FFFD},
    {"\x80", 1, FFFD},
    {"\xFE\xFF", 2, FFFD FFFD},
    {"\xC0\x80", 2, FFFD FFFD},                                               /* overlong NUL */
    {"\xC1\xBF", 2, FFFD FFFD},                                               /* overlong DEL */
    {"\xE0\x80\xAF", 3, FFFD FFFD FFFD},                                      /* overlong slash */
    {"\xE0\x9F\xBF", 3, FFFD FFFD FFFD},                                      /* overlong U+07FF */
    {"\xF0\x8F\xBF\xBF", 4, FFFD FFFD FFFD FFFD},                             /* overlong U+FFFF */
    {"\xED\xA0\x80", 3, FFFD FFFD FFFD},                                      /* surrogate */
    {"\xED\xBF\xBF", 3, FFFD FFFD FFFD},                                      /* surrogate */
    {"\xF4\x90\x80\x80", 4, FFFD FFFD FFFD FFFD},                             /* U+110000 */
    {"\xF5\x80\x80\x80", 4, FFFD FFFD FFFD FFFD},                             /* no such lead byte */
    {"\xC3", 1, FFFD},                                                        /* truncated at the end */
    {"\xE2\x82", 2, FFFD},                                                    /* one maximal subpart */
    {"\xF0\x9F\x98", 3, FFFD},                                                /* one maximal subpart */
    {"\xE2\x82z", 3, FFFD "z"},                                               /* and by another character */
    {"\xF0\x9F\x98\xC3\xBC", 5, FFFD "\xC3\xBC"},                             /* and by a good sequence */
    {"\xE2\0\x82", 3, FFFD FFFD FFFD},                                        /* and by a NUL */
    {"\xF1\x80\x80\xE1\x80\xC2\x62\x80\x63", 9, FFFD FFFD FFFD "b" FFFD "c"}, /* the standard's example */
};

START_TEST(repair)
{
    char out[64];
    for (size_t i = 0; i < sizeof repairs / sizeof *repairs; i++) {
        size_t n = text_repair(out, sizeof out, repairs[i].bytes, repairs[i].length);
        ck_assert_msg(strcmp(out, repairs[i].expected) == 0, "case %zu", i);
        ck_assert_uint_eq(n, strlen(repairs[i].expected));
    }
    /* Exactly as much room as it asks for. */
    ck_assert_uint_eq(text_repair(out, 7, "\xFF\xFF", 2), 6);
}
END_TEST

/* What came out is valid, so a second repair changes nothing. */
START_TEST(repair_of_noise)
{
    char in[32], once[3 * sizeof in + 1], twice[3 * sizeof once + 1];
    for (unsigned round = 0; round < 20000; round++) {
        size_t length = random_word() % (sizeof in + 1);
        for (size_t i = 0; i < length; i++)
            in[i] = (char)(random_word() >> 20);
        size_t n = text_repair(once, sizeof once, in, length);
        ck_assert_uint_eq(strlen(once), n);
        ck_assert_uint_eq(text_repair(twice, sizeof twice, once, n), n);
        ck_assert_str_eq(once, twice);
    }
}
END_TEST

static const char *number(double value)
{
    static char text[TEXT_NUMBER_MAX];
    memset(text, 'x', sizeof text);
    size_t n = text_double(text, value);
    ck_assert_uint_lt(n, sizeof text);
    text[n] = 0;
    return text;
}

START_TEST(doubles)
{
    ck_assert_str_eq(number(0.0), "0");
    ck_assert_str_eq(number(-0.0), "-0");
    ck_assert_str_eq(number(1.0), "1");
    ck_assert_str_eq(number(-1.0), "-1");
    ck_assert_str_eq(number(0.1), "0.1");
    ck_assert_str_eq(number(0.1 + 0.2), "0.30000000000000004");
    ck_assert_str_eq(number(1.0 / 3), "0.3333333333333333");
    ck_assert_str_eq(number(9007199254740991.0), "9007199254740991");
    ck_assert_str_eq(number(1e300), "1e+300");
    ck_assert_str_eq(number((double)INFINITY), "+Inf");
    ck_assert_str_eq(number((double)-INFINITY), "-Inf");
    ck_assert_str_eq(number((double)NAN), "NaN");
    ck_assert_str_eq(number((double)-NAN), "NaN");
    static const double edges[] = {5e-324,
                                   2.2250738585072014e-308,
                                   1.7976931348623157e308,
                                   9007199254740992.0,
                                   9007199254740993.0,
                                   18446744073709551616.0,
                                   -1e22,
                                   123456.789e-7};
    for (size_t i = 0; i < sizeof edges / sizeof *edges; i++)
        ck_assert(strtod(number(edges[i]), NULL) == edges[i]);
}
END_TEST

START_TEST(spellings)
{
    static const struct {
        double value;
        const char *text;
    } cases[] = {
        {1e-4, "0.0001"},
        {0.00012345, "0.00012345"},
        {0.00099999999999999982, "0.0009999999999999998"},
        {1e-5, "1e-05"},
        {1.5e-5, "1.5e-05"},
        {9.9999999999999991e-05, "9.999999999999999e-05"},
        {0.5, "0.5"},
        {-1.5, "-1.5"},
        {1.0000000000000002, "1.0000000000000002"},
        {1234567.125, "1234567.125"},
        {999999999999999.9, "999999999999999.9"},
        {1e15, "1000000000000000"},
        {9007199254740992.0, "9007199254740992"},
        {9100000000000000.0, "9.1e+15"},
        {1e16, "1e+16"},
        {18014398509481984.0, "18014398509481984"},
        {18446744073709551616.0, "1.8446744073709552e+19"},
        {1e100, "1e+100"},
        {1e-300, "1e-300"},
        {5e-324, "5e-324"},
        {2.2250738585072014e-308, "2.2250738585072014e-308"},
        {-9007199254740991.0, "-9007199254740991"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        ck_assert_str_eq(number(cases[i].value), cases[i].text);
    /* As long as any. */
    ck_assert_uint_eq(strlen(number(-1.7976931348623157e308)), 24);
}
END_TEST

/* As the C library spells that number with as many digits; at whole powers of two it may differ, see test_shortest. */
START_TEST(spelt_as_by_the_library)
{
    char expected[TEXT_NUMBER_MAX];
    for (unsigned i = 0; i < 100000; i++) {
        double value = ldexp((double)(random_word() >> 11 | 1), (int)(random_word() % 160) - 120);
        if (i % 2)
            value = -(double)(random_word() >> 40) / (i % 4 == 1 ? 1e3 : 1e9);
        struct decimal decimal = shortest_decimal(value);
        int digits = SHORTEST_DIGITS_MAX;
        for (uint64_t unit = 10; digits > 1 && decimal.digits % unit == 0; unit *= 10)
            digits--;
        if (decimal.digits < 10000000000000000)
            digits--;
        bool whole = fabs(value) < 9007199254740992.0 && value == trunc(value);
        (void)snprintf(expected, sizeof expected, whole ? "%.*f" : "%.*g", whole ? 0 : digits, value);
        ck_assert_str_eq(number(value), expected);
    }
}
END_TEST

START_TEST(doubles_come_back)
{
    for (unsigned i = 0; i < 100000; i++) {
        uint64_t bits = random_word();
        double value;
        memcpy(&value, &bits, sizeof value);
        if (i % 2)
            value = (double)(random_word() >> 20) / (double)(1 + random_word() % 1000000);
        if (isnan(value) || isinf(value))
            continue;
        const char *text = number(value);
        double back = strtod(text, NULL);
        /* Bits, so that -0 is not taken for 0. */
        uint64_t back_bits;
        memcpy(&bits, &value, sizeof bits);
        memcpy(&back_bits, &back, sizeof back_bits);
        ck_assert_msg(back_bits == bits, "%s", text);
    }
}
END_TEST

static void is_whole_number(uint64_t value)
{
    char text[TEXT_NUMBER_MAX], expected[TEXT_NUMBER_MAX];
    text[text_u64(text, value)] = 0;
    (void)snprintf(expected, sizeof expected, "%" PRIu64, value);
    ck_assert_str_eq(text, expected);
}

/* Every length, both ends and something between. */
START_TEST(whole_numbers)
{
    static const uint64_t ends[] = {0, UINT32_MAX, UINT64_MAX};
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++)
        is_whole_number(ends[i]);
    for (uint64_t power = 1;; power *= 10) {
        is_whole_number(power - 1);
        is_whole_number(power);
        is_whole_number(power + 1);
        for (unsigned i = 0; i < 1000; i++)
            is_whole_number(random_word() % power);
        if (power > UINT64_MAX / 10)
            break;
    }
}
END_TEST

START_TEST(seconds)
{
    static const uint64_t values[] = {0, 1, 10, 999999999, 1000000000, 1000000001, 1234567890, 1500000000, UINT64_MAX};
    static const char *const texts[] = {"0",           "0.000000001", "0.00000001", "0.999999999",          "1",
                                        "1.000000001", "1.23456789",  "1.5",        "18446744073.709551615"};
    char text[TEXT_NUMBER_MAX];
    for (size_t i = 0; i < sizeof values / sizeof *values; i++) {
        text[text_seconds(text, values[i])] = 0;
        ck_assert_str_eq(text, texts[i]);
    }
    /* Each length of the fraction. */
    for (unsigned i = 0; i < 100000; i++) {
        static const uint64_t units[] = {1, 10, 100, 1000, 10000, 100000, 1000000, 10000000, 100000000, 1000000000};
        uint64_t ns = random_word() >> random_word() % 64;
        char expected[64];
        ns -= ns % units[i % 10];
        int n = snprintf(expected, sizeof expected, "%" PRIu64 ".%09" PRIu64, ns / 1000000000, ns % 1000000000);
        while (expected[n - 1] == '0')
            n--;
        expected[n - (expected[n - 1] == '.')] = 0;
        text[text_seconds(text, ns)] = 0;
        ck_assert_str_eq(text, expected);
    }
}
END_TEST

START_TEST(escapes)
{
    static const char raw[] = "a\"b\\c\nd\te\xC3\xBC";
    char text[2 * sizeof raw];
    ck_assert_uint_eq(text_escape_label(text, sizeof text, raw, sizeof raw - 1), sizeof raw - 1 + 3);
    ck_assert_str_eq(text, "a\\\"b\\\\c\\nd\te\xC3\xBC");
    ck_assert_uint_eq(text_escape_label(text, 1, "", 0), 0);
    ck_assert_str_eq(text, "");
    ck_assert_uint_eq(text_escape_label(text, 5, "\"\"", 2), 4);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("text");
    TCase *tcase = tcase_create("text");
    tcase_set_timeout(tcase, 60);
    tcase_add_test(tcase, repair);
    tcase_add_test(tcase, repair_of_noise);
    tcase_add_test(tcase, doubles);
    tcase_add_test(tcase, spellings);
    tcase_add_test(tcase, spelt_as_by_the_library);
    tcase_add_test(tcase, doubles_come_back);
    tcase_add_test(tcase, whole_numbers);
    tcase_add_test(tcase, seconds);
    tcase_add_test(tcase, escapes);
    suite_add_tcase(suite, tcase);
    return suite_run(suite);
}
