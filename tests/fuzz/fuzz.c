#include "fuzz.h"

#include <ctype.h>
#include <dirent.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

uint64_t fuzz_now_ns = FUZZ_START_NS;

void fuzz_fail(const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    (void)fputs("FUZZ: ", stderr);
    (void)vfprintf(stderr, format, arguments);
    (void)fputc('\n', stderr);
    va_end(arguments);
    abort();
}

/* For speed: what is freed need not be remembered for long, as every input begins anew. */
const char *__asan_default_options(void);

const char *__asan_default_options(void)
{
    return "quarantine_size_mb=2:thread_local_quarantine_size_kb=64:malloc_context_size=6";
}

/* The linker puts these in place of the C library's (-Wl,--wrap) where our objects call them. */
int __wrap_clock_gettime(clockid_t clock, struct timespec *ret);
ssize_t __wrap_getrandom(void *ret, size_t size, unsigned flags);

int __wrap_clock_gettime(clockid_t clock, struct timespec *ret)
{
    (void)clock;
    ret->tv_sec = (time_t)(fuzz_now_ns / 1000000000u);
    ret->tv_nsec = (long)(fuzz_now_ns % 1000000000u);
    return 0;
}

ssize_t __wrap_getrandom(void *ret, size_t size, unsigned flags)
{
    static uint8_t next;

    (void)flags;
    for (size_t i = 0; i < size; i++)
        ((uint8_t *)ret)[i] = ++next;
    return (ssize_t)size;
}

void fuzz_expect_message(const char *message)
{
    fuzz_expect(*message != 0);
    for (; *message; message++)
        fuzz_expect(!iscntrl((unsigned char)*message));
}

uint8_t fuzz_byte(struct fuzz_input *input)
{
    if (input->left == 0)
        return 0;
    input->left--;
    return *input->at++;
}

uint64_t fuzz_word(struct fuzz_input *input, unsigned width)
{
    uint64_t word = 0;

    for (unsigned i = 0; i < width; i++)
        word |= (uint64_t)fuzz_byte(input) << 8 * i;
    return word;
}

static char directory[64];

static void remove_directory(void)
{
    char path[400];
    DIR *entries = opendir(directory);

    for (struct dirent *entry; entries && (entry = readdir(entries)) != NULL;) {
        (void)snprintf(path, sizeof path, "%s/%s", directory, entry->d_name);
        if (entry->d_name[0] != '.')
            (void)unlink(path);
    }
    if (entries)
        (void)closedir(entries);
    (void)rmdir(directory);
}

const char *fuzz_directory(void)
{
    if (directory[0] == 0) {
        (void)snprintf(directory, sizeof directory, "/dev/shm/wideep-fuzz.XXXXXX");
        fuzz_expect(mkdtemp(directory));
        (void)atexit(remove_directory);
    }
    return directory;
}

void fuzz_seed(const char *name, const void *data, size_t size)
{
    char path[400];

    (void)snprintf(path, sizeof path, "%s/%s", getenv("WIDEEP_FUZZ_SEEDS"), name);
    FILE *file = fopen(path, "wb");
    fuzz_expect(file && fwrite(data, 1, size, file) == size);
    fuzz_expect(fclose(file) == 0);
}
