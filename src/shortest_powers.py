"""Prints the header shortest_powers.h: powers of ten to 128 bits, by exact arithmetic on whole numbers."""

FIRST, LAST = -292, 324  # what shortest.c multiplies doubles with


def significand(exponent):
    """floor(10^exponent / 2^r) + 1, with r such that it has 128 bits."""
    numerator, denominator = 10 ** max(exponent, 0), 10 ** max(-exponent, 0)
    shift = 128 - numerator.bit_length() + denominator.bit_length()
    quotient = (numerator << max(shift, 0)) // (denominator << max(-shift, 0))
    return (quotient >> quotient.bit_length() - 128) + 1


print("/* Generated. */")
print(f"#define SHORTEST_POWERS_FIRST ({FIRST})")
print(f"#define SHORTEST_POWERS_LAST {LAST}")
print("static const struct {\n    uint64_t high, low;\n} shortest_powers[] = {")
for power in range(FIRST, LAST + 1):
    print(f"    {{0x{significand(power) >> 64:016x}, 0x{significand(power) % 2**64:016x}}}, /* 10^{power} */")
print("};")
