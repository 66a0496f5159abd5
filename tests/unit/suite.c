#include "suite.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

int suite_run(Suite *suite)
{
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}

void remove_segments(const char *directory)
{
    char path[600];
    DIR *entries = opendir(directory);
    ck_assert_ptr_nonnull(entries);
    for (struct dirent *entry; (entry = readdir(entries)) != NULL;) {
        (void)snprintf(path, sizeof path, "%s/%s", directory, entry->d_name);
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            (void)unlink(path);
    }
    (void)closedir(entries);
    ck_assert_int_eq(rmdir(directory), 0);
}

int captured[2];
static int stderr_before;

void capture_stderr(void)
{
    ck_assert_int_eq(pipe2(captured, O_NONBLOCK | O_CLOEXEC), 0);
    stderr_before = dup(STDERR_FILENO);
    ck_assert_int_eq(dup2(captured[1], STDERR_FILENO), STDERR_FILENO);
}

void release_stderr(void)
{
    (void)dup2(stderr_before, STDERR_FILENO);
    (void)close(stderr_before);
    (void)close(captured[0]);
    (void)close(captured[1]);
}

uint64_t random_word(void)
{
    static uint64_t state = 42;

    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}
