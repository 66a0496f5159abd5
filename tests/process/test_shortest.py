"""What src/shortest.c takes for granted about the scaled numbers of all doubles, by exact arithmetic."""

LEAST_Q, GREATEST_Q = -1074, 971
SIGNIFICANDS = 2**53


def floor_log2(numerator, denominator):
    e = numerator.bit_length() - denominator.bit_length()
    return e if numerator << max(-e, 0) >= denominator << max(e, 0) else e - 1


def floor_log10(numerator, denominator):
    e = int(floor_log2(numerator, denominator) * 0.30103) - 2
    while numerator * 10 ** max(-e - 1, 0) >= denominator * 10 ** max(e + 1, 0):
        e += 1
    return e


def nearest_to_whole(numerator, denominator, count):
    """How near x * numerator / denominator comes to a whole number from above and from below, in units of
    1 / denominator, for x from 1 to count; those that are whole left out. None if all are.

    The record holders from either side are found as by Euclid: adding the two makes the next of one side.
    """
    above, x_above, below, x_below = numerator % denominator, 1, denominator, 0
    if above == 0:
        return None
    while above != below:
        if above > below:
            times = min((above - 1) // below, (count - x_above) // x_below)
            above, x_above = above - times * below, x_above + times * x_below
        else:
            times = min((below - 1) // above, (count - x_below) // x_above)
            below, x_below = below - times * above, x_below + times * x_above
        if times == 0:
            break
    return above, below


def test_nearest_to_whole_against_all():
    for denominator in range(1, 40):
        for numerator in range(denominator):
            for count in (1, 2, 7, 100):
                rests = {x * numerator % denominator for x in range(1, count + 1)} - {0}
                expected = (min(rests), denominator - max(rests)) if rests else None
                assert nearest_to_whole(numerator, denominator, count) == expected, (numerator, denominator, count)


def scaled(q, k):
    """4 * 2^q / 10^k as a fraction."""
    return 4 * 2 ** max(q, 0) * 10 ** max(-k, 0), 2 ** max(-q, 0) * 10 ** max(k, 0)


def room(q, k, greatest):
    """The bits of the number that scale() is given for greatest * 2^q."""
    h = q + floor_log2(10 ** max(-k, 0), 10 ** max(k, 0)) + 1
    assert h >= 0
    return (greatest << h).bit_length()


def test_no_scaled_number_is_nearly_whole():
    """None is nearer than 2^-66 to a whole number without being one, and scale() is given less than 2^60."""
    for q in range(LEAST_Q, GREATEST_Q + 1):
        k = floor_log10(2 ** max(q, 0), 2 ** max(-q, 0))
        assert room(q, k, 4 * SIGNIFICANDS) <= 60
        # A double and its boundaries are whole numbers of halves.
        numerator, denominator = scaled(q, k)
        distances = nearest_to_whole(numerator, 2 * denominator, 2 * SIGNIFICANDS + 1)
        assert distances is None or min(distances) << 66 >= 2 * denominator, q

        # Below a power of two the boundary lies at a quarter.
        k = floor_log10(3 * 2 ** max(q, 0), 4 * 2 ** max(-q, 0))
        assert room(q, k, 4 * SIGNIFICANDS) <= 60
        numerator, denominator = scaled(q, k)
        for quarters in (2 * SIGNIFICANDS - 1, 2 * SIGNIFICANDS, 2 * SIGNIFICANDS + 2):
            rest = quarters * numerator % (4 * denominator)
            assert rest == 0 or min(rest, 4 * denominator - rest) << 66 >= 4 * denominator, q
