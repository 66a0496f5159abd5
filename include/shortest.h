/*
 * shortest: the shortest decimal that stands for a double. Pure functions, any thread, no allocation, independent of
 * the locale and of the rounding mode.
 *
 * A decimal stands for a double if a reader that rounds to nearest, ties to even (strtod, Go, Prometheus) makes that
 * double of it. Of those with the fewest digits, it is the one nearest to the double; of two equally near, the even
 * one.
 */
#ifndef WIDEEP_SHORTEST_H
#define WIDEEP_SHORTEST_H

#include <stdint.h>

/* No decimal of shortest_decimal() has more digits. */
#define SHORTEST_DIGITS_MAX 17

/* digits × 10^exponent. `digits` is below 10^SHORTEST_DIGITS_MAX, and may end in zeros, which do not count as digits.
 */
struct decimal {
    uint64_t digits;
    int exponent;
};

/* `value` must be finite. Its sign is left out; zero gives no digits at all: 0. */
struct decimal shortest_decimal(double value);

#endif
