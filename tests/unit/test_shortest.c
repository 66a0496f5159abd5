/* The table of powers by exact arithmetic; decimals against the C library, which reads and prints doubles exactly. */
#include "shortest.h"
#include "text.h"
#include "suite.h"
#include "wideep_shm.h"

#include <fenv.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "shortest_powers.h"

/* ---- the table: whole numbers of any length, in words of 32 bits, the lowest first ---------------------------- */

#define WORDS 48

struct whole {
    uint32_t words[WORDS];
};

static struct whole whole_from(uint64_t high, uint64_t low)
{
    return (struct whole){{(uint32_t)low, (uint32_t)(low >> 32), (uint32_t)high, (uint32_t)(high >> 32)}};
}

static void whole_multiply(struct whole *whole, uint32_t factor)
{
    uint64_t carry = 0;
    for (size_t i = 0; i < WORDS; i++) {
        carry += (uint64_t)whole->words[i] * factor;
        whole->words[i] = (uint32_t)carry;
        carry >>= 32;
    }
    if (carry != 0)
        ck_abort_msg("a whole number outgrew its words");
}

static void whole_raise(struct whole *whole, uint32_t factor, int times)
{
    for (; times > 0; times--)
        whole_multiply(whole, factor);
}

static int whole_compare(const struct whole *a, const struct whole *b)
{
    for (size_t i = WORDS; i-- > 0;)
        if (a->words[i] != b->words[i])
            return a->words[i] > b->words[i] ? 1 : -1;
    return 0;
}

/* `significand` × 2^shift compared with 10^exponent: what has a negative exponent goes to the other side. */
static int compare_with_power(struct whole significand, int shift, int exponent)
{
    struct whole power = {{1}};
    whole_raise(&significand, 2, shift);
    whole_raise(&significand, 10, -exponent);
    whole_raise(&power, 2, -shift);
    whole_raise(&power, 10, exponent);
    return whole_compare(&significand, &power);
}

/* An entry has 128 bits. It is above the power by at most one unit. */
START_TEST(powers)
{
    ck_assert_uint_eq(sizeof shortest_powers / sizeof *shortest_powers,
                      SHORTEST_POWERS_LAST - SHORTEST_POWERS_FIRST + 1);
    for (int e = SHORTEST_POWERS_FIRST; e <= SHORTEST_POWERS_LAST; e++) {
        uint64_t high = shortest_powers[e - SHORTEST_POWERS_FIRST].high;
        uint64_t low = shortest_powers[e - SHORTEST_POWERS_FIRST].low;
        int shift = (int)floor(e * log2(10.0)) - 127;
        ck_assert_msg(high >> 63 == 1, "10^%d", e);
        ck_assert_msg(compare_with_power(whole_from(high, low), shift, e) > 0, "10^%d", e);
        ck_assert_msg(compare_with_power(whole_from(high - (low == 0), low - 1), shift, e) <= 0, "10^%d", e);
    }
}
END_TEST

/* ---- doubles to try ------------------------------------------------------------------------------------------- */

/* Never zero, nor negative: signs are the matter of test_text. */
static double random_double(unsigned kind)
{
    static const double divisors[] = {1e1, 1e2, 1e3, 1e6, 1e9, 1e12, 1e22};
    double value;

    switch (kind % 8) {
    case 0: value = (double)(random_word() >> 32) / divisors[random_word() % 7]; break;     /* few digits */
    case 1: value = (double)(random_word() >> 20) / (double)(1 + random_word()); break;     /* a mean, a rate */
    case 2: value = (double)(random_word() >> random_word() % 16); break;                   /* whole, around 2^53 */
    case 3: value = wideep_i_bits_double(random_word() >> 12 >> random_word() % 52); break; /* subnormal */
    default: value = wideep_i_bits_double(random_word() >> 1);                              /* of all binades */
    }
    return isfinite(value) && value > 0 ? value : 1.5;
}

typedef void visitor(double value);

static void visit_around(visitor *visit, uint64_t bits)
{
    for (uint64_t b = bits - 2; b != bits + 3; b++)
        if (isfinite(wideep_i_bits_double(b)) && wideep_i_bits_double(b) > 0)
            visit(wideep_i_bits_double(b));
}

/* Where an algorithm would go wrong first: both ends and the middle of each binade, numbers around each power of two
 * and of ten, the least, the greatest, the last whole numbers, and all that have few digits. */
static void visit_edges(visitor *visit)
{
    char text[16];
    for (uint64_t exponent = 0; exponent < 2048; exponent++) {
        visit_around(visit, exponent << 52);
        visit_around(visit, exponent << 52 | UINT64_C(1) << 51);
    }
    for (int bit = 0; bit < 52; bit++)
        visit_around(visit, UINT64_C(1) << bit);
    for (int e = -324; e <= 308; e++)
        for (int digit = 1; digit <= 9; digit++) {
            (void)snprintf(text, sizeof text, "%de%d", digit, e);
            visit_around(visit, wideep_i_double_bits(strtod(text, NULL)));
        }
    for (int k = 1; k <= 20000; k++) {
        visit(wideep_i_bits_double((uint64_t)k));
        visit(k / 1000.0);
        visit(9007199254740992.0 - 10000 + k);
    }
}

/* ---- decimals ------------------------------------------------------------------------------------------------- */

/* No assertions of Check for what is asked a million times: each of those is a system call. */
static void comes_back(double value)
{
    char text[TEXT_NUMBER_MAX + 1];
    text[text_double(text, value)] = 0;
    if (strtod(text, NULL) != value)
        ck_abort_msg("%s of %a", text, value);
}

START_TEST(edges_come_back)
{
    visit_edges(comes_back);
}
END_TEST

/* WIDEEP_TEST_DOUBLES: how many. */
START_TEST(doubles_come_back)
{
    const char *asked = getenv("WIDEEP_TEST_DOUBLES");
    unsigned long count = asked ? strtoul(asked, NULL, 10) : 10000000;
    ck_assert_uint_gt(count, 0);
    for (unsigned long i = 0; i < count; i++)
        comes_back(random_double((unsigned)i));
}
END_TEST

/* The decimal with `count` digits next to the double in that direction. */
static struct decimal library_decimal(double value, int count, int direction)
{
    char text[64];
    struct decimal decimal = {0, 0};

    (void)fesetround(direction);
    (void)snprintf(text, sizeof text, "%.*e", count - 1, value);
    (void)fesetround(FE_TONEAREST);
    for (const char *c = text; *c != 'e'; c++)
        if (*c != '.')
            decimal.digits = decimal.digits * 10 + (uint64_t)(*c - '0');
    decimal.exponent = (int)strtol(strchr(text, 'e') + 1, NULL, 10) - (count - 1);
    return decimal;
}

static bool stands_for(struct decimal decimal, double value)
{
    char text[64];
    (void)snprintf(text, sizeof text, "%llue%d", (unsigned long long)decimal.digits, decimal.exponent);
    return strtod(text, NULL) == value;
}

static struct decimal without_trailing_zeros(struct decimal decimal)
{
    for (; decimal.digits % 10 == 0; decimal.exponent++)
        decimal.digits /= 10;
    return decimal;
}

/* Nothing with a digit less stands for the double, and nothing with as many that is nearer. */
static void is_shortest(double value)
{
    struct decimal got = shortest_decimal(value);
    if (got.digits == 0 || got.digits >= 100000000000000000)
        ck_abort_msg("%a: %llu", value, (unsigned long long)got.digits);

    got = without_trailing_zeros(got);
    int count = 1;
    for (uint64_t rest = got.digits; rest >= 10; rest /= 10)
        count++;
    if (count > 1 && (stands_for(library_decimal(value, count - 1, FE_DOWNWARD), value) ||
                      stands_for(library_decimal(value, count - 1, FE_UPWARD), value)))
        ck_abort_msg("%a: %llu has too many digits", value, (unsigned long long)got.digits);

    /* At a power of two the nearest may lie outside on the lower side, where doubles are denser. */
    struct decimal expected = library_decimal(value, count, FE_TONEAREST);
    if (!stands_for(expected, value))
        expected = library_decimal(value, count, FE_UPWARD);
    expected = without_trailing_zeros(expected);
    if (got.digits != expected.digits || got.exponent != expected.exponent)
        ck_abort_msg("%a: %llu is not the nearest", value, (unsigned long long)got.digits);
}

START_TEST(edges_are_shortest)
{
    visit_edges(is_shortest);
}
END_TEST

START_TEST(doubles_are_shortest)
{
    for (unsigned i = 0; i < 1000000; i++)
        is_shortest(random_double(i));
}
END_TEST

START_TEST(signs_and_zero)
{
    ck_assert_uint_eq(shortest_decimal(0.0).digits, 0);
    ck_assert_uint_eq(shortest_decimal(-0.0).digits, 0);
    ck_assert_uint_eq(shortest_decimal(-2.5).digits, shortest_decimal(2.5).digits);
    ck_assert_int_eq(shortest_decimal(-2.5).exponent, shortest_decimal(2.5).exponent);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("shortest");
    TCase *tcase = tcase_create("shortest");
    tcase_set_timeout(tcase, 600);
    tcase_add_test(tcase, powers);
    tcase_add_test(tcase, edges_come_back);
    tcase_add_test(tcase, doubles_come_back);
    tcase_add_test(tcase, edges_are_shortest);
    tcase_add_test(tcase, doubles_are_shortest);
    tcase_add_test(tcase, signs_and_zero);
    suite_add_tcase(suite, tcase);
    return suite_run(suite);
}
