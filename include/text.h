/*
 * text: UTF-8 repair and number formatting. Pure functions, any thread, no allocation, independent of the locale.
 */
#ifndef WIDEEP_TEXT_H
#define WIDEEP_TEXT_H

#include <stddef.h>
#include <stdbool.h>
#include <stdint.h>

/* Room for any number in any of the forms below, with a NUL. The functions that write numbers may use all of it, also
 * behind the length that they return. */
#define TEXT_NUMBER_MAX 40

/* Copies `length` bytes as valid UTF-8 without NUL: each maximal ill-formed subpart (as Unicode 3.9 and Python's
 * errors='replace' have it) and each NUL becomes U+FFFD. `size` must be at least 3 × length + 1. Returns the length. */
size_t text_repair(char *ret, size_t size, const char *bytes, size_t length);

/* Decimal digits of a number; returns how many characters were written, no NUL. */
size_t text_u64(char *ret, uint64_t value);

/* Nanoseconds as seconds, exactly: 1234567890 gives 1.23456789. Returns the length, no NUL. */
size_t text_seconds(char *ret, uint64_t ns);

/* The shortest decimal that reads back as the same double, see shortest.h, but whole numbers below 2^53 with all their
 * digits; spelt as by C's %g, e.g. 0.0001, 1e-05, 1234567.5, 1e+16. +Inf, -Inf, NaN as Prometheus writes them, -0 for
 * the negative zero. Returns the length, no NUL. */
size_t text_double(char *ret, double value);

/* Escapes a label value as both exposition formats do: backslash, newline, double quote. `size` must be at least
 * 2 × length + 1. Returns the length. */
size_t text_escape_label(char *ret, size_t size, const char *text, size_t length);

/* A duration as Go and Prometheus write it: 250ms, 10s, 1m30s, 1h, or a bare 0. False for anything else, and for what
 * is too long for 64 bits. Any thread. */
bool text_duration(const char *text, uint64_t *ret_ns);

#endif
