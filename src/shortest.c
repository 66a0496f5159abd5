/*
 * The algorithm is that of Raffaello Giulietti, "The Schubfach way to render doubles" (2020), whose names c, q, k and h
 * are kept.
 *
 * A double is c × 2^q. All between its two boundaries, half way to its neighbours, is read as it. With k such that 10^k
 * is at most as large as that interval and 10^(k+1) is larger, the interval has at least one multiple of 10^k and at
 * most one of 10^(k+1). The latter has a digit less: it is taken if there is one, else the multiple of 10^k that is
 * nearest to the double and inside.
 *
 * So three numbers are compared with multiples of 10^k: the double and its boundaries, scaled by 4 × 10^-k so that
 * those multiples and the middles between them are whole numbers. A scaled number need not be known exactly for that,
 * only its whole part and whether there is more: it is "rounded to odd".
 */
#include "shortest.h"

#include <assert.h>
#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "shortest_powers.h"

#define FRACTION_BITS 52
#define EXPONENT_BIAS 1075 /* c is a whole number */

__extension__ typedef unsigned __int128 u128;

/* floor(log10(2^q)), floor(log10(3/4 × 2^q)) and floor(log2(10^e)), by the logarithms of 2, 3/4 and 10 in units of
 * 2^-32. Exact for all exponents of doubles. */
static int log10_of_power_of_2(int q)
{
    return (int)((q * INT64_C(1292913986)) >> 32);
}

static int log10_of_three_quarters_of_power_of_2(int q)
{
    return (int)((q * INT64_C(1292913986) - INT64_C(536607788)) >> 32);
}

static int log2_of_power_of_10(int e)
{
    return (int)((e * INT64_C(14267572527)) >> 32);
}

/* `cp` × 10^-k, scaled by a power of two, rounded to odd. `cp` is below 2^60. */
static uint64_t scale(int k, uint64_t cp)
{
    const size_t i = (size_t)(-k - SHORTEST_POWERS_FIRST);
    const u128 low = (u128)shortest_powers[i].low * cp;
    const u128 product = (u128)shortest_powers[i].high * cp + (uint64_t)(low >> 64);

    /* The product with 128 bits behind the point is too large by at most cp of the last, because the power is by at
     * most one. No scaled number of a double is nearer than 2^-66 to a whole one without being one, which is far more
     * (tests/process/test_shortest.py). So the whole part is right, and what is behind the point is above cp if and
     * only if the number is not whole. */
    return (uint64_t)(product >> 64) | ((uint64_t)product != 0 || (uint64_t)low > cp);
}

static struct decimal shortest_of(uint64_t c, int q, bool lower_is_nearer)
{
    const int k = lower_is_nearer ? log10_of_three_quarters_of_power_of_2(q) : log10_of_power_of_2(q);
    const int h = q + log2_of_power_of_10(-k) + 1;
    /* The boundaries themselves are read as the neighbour whose c is even. */
    const uint64_t outside = c & 1;
    const uint64_t lower = scale(k, (4 * c - 2 + lower_is_nearer) << h) + outside;
    const uint64_t middle = scale(k, (4 * c) << h);
    const uint64_t upper = scale(k, (4 * c + 2) << h) - outside;
    const uint64_t below = middle / 4;
    const uint64_t tens = below / 10 * 10;

    const bool tens_below = lower <= 4 * tens, tens_above = 4 * (tens + 10) <= upper;
    if (tens_below != tens_above)
        return (struct decimal){tens_below ? tens : tens + 10, k};

    const bool in_below = lower <= 4 * below, in_above = 4 * (below + 1) <= upper;
    if (in_below != in_above)
        return (struct decimal){in_below ? below : below + 1, k};

    const uint64_t half_way = 4 * below + 2;
    const bool up = middle > half_way || (middle == half_way && below % 2 != 0);
    return (struct decimal){below + up, k};
}

struct decimal shortest_decimal(double value)
{
    uint64_t bits;

    assert(isfinite(value));
    memcpy(&bits, &value, sizeof bits);
    const uint64_t fraction = bits & ((UINT64_C(1) << FRACTION_BITS) - 1);
    const int exponent = (int)(bits >> FRACTION_BITS & 0x7ff);

    if (exponent == 0)
        return fraction == 0 ? (struct decimal){0, 0} : shortest_of(fraction, 1 - EXPONENT_BIAS, false);
    /* Below a power of two, doubles are twice as dense, but for the least of the normal ones. */
    return shortest_of(fraction | UINT64_C(1) << FRACTION_BITS, exponent - EXPONENT_BIAS,
                       fraction == 0 && exponent > 1);
}
