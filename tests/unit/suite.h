/* What every unit test program ends with. */
#ifndef WIDEEP_TEST_SUITE_H
#define WIDEEP_TEST_SUITE_H

#include <check.h>
#include <stdint.h>

/* Runs the suite and frees it. Returns the exit status of the program: 0 when no test failed. */
int suite_run(Suite *suite);

/* Removes a directory of segments and all in it. */
void remove_segments(const char *directory);

/* Has stderr go into a pipe, which drops what does not fit, until release_stderr(). Both return or end the test. The
 * ends: what is written can be read from captured[0]. */
extern int captured[2];
void capture_stderr(void);
void release_stderr(void);

/* Noise that is the same in each run of a program (Marsaglia's xorshift). One thread. */
uint64_t random_word(void);

#endif
