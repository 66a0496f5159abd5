/*
 * fuzz: what the fuzz targets share. A target is one file with LLVMFuzzerInitialize() and LLVMFuzzerTestOneInput(); it
 * must do the same for the same input, whatever came before, so time and random numbers are ours (see fuzz.c), and it
 * must say by fuzz_fail() what is wrong, since "it did not crash" is no test of a parser.
 *
 * With WIDEEP_FUZZ_SEEDS=DIRECTORY in its environment, a target that has seeds writes them there and ends.
 */
#ifndef WIDEEP_FUZZ_H
#define WIDEEP_FUZZ_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Says what the target found, and aborts, for libFuzzer to keep the input. */
void fuzz_fail(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));

#define fuzz_expect(condition) ((condition) ? (void)0 : fuzz_fail("%s:%d: not so: %s", __FILE__, __LINE__, #condition))

/* All clocks of the code under test. */
#define FUZZ_START_NS UINT64_C(1000000000000)
extern uint64_t fuzz_now_ns;

/* A message for people: there is one, and in it no control character. */
void fuzz_expect_message(const char *message);

/* What is left of an input. At its end, zeros are read. */
struct fuzz_input {
    const uint8_t *at;
    size_t left;
};

uint8_t fuzz_byte(struct fuzz_input *input);
/* The next `width` bytes (1 to 8), lowest first. */
uint64_t fuzz_word(struct fuzz_input *input, unsigned width);

/* A directory in memory that goes with the process; static. */
const char *fuzz_directory(void);

/* Writes one seed into $WIDEEP_FUZZ_SEEDS. */
void fuzz_seed(const char *name, const void *data, size_t size);

#endif
