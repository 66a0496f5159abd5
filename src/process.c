#include "process.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

static uint64_t count_fds(void)
{
    uint64_t count = 0;
    DIR *directory = opendir("/proc/self/fd");

    if (!directory)
        return 0;
    for (struct dirent *entry; (entry = readdir(directory)) != NULL;)
        count += entry->d_name[0] != '.';
    (void)closedir(directory);
    return count > 0 ? count - 1 : 0; /* the directory's own */
}

static double boot_time_seconds(void)
{
    char line[256];
    double boot = 0;
    FILE *file = fopen("/proc/stat", "re");

    if (!file)
        return 0;
    while (fgets(line, sizeof line, file))
        if (strncmp(line, "btime ", 6) == 0)
            boot = strtod(line + 6, NULL);
    (void)fclose(file);
    return boot;
}

/* Fields of /proc/self/stat from the state (3) on: see proc(5). */
static void read_stat(struct process_stats *stats)
{
    static double boot;
    char text[1024];
    unsigned long long field[25] = {0};
    FILE *file = fopen("/proc/self/stat", "re");

    if (!file)
        return;
    size_t n = fread(text, 1, sizeof text - 1, file);
    (void)fclose(file);
    text[n] = 0;
    /* The command name may hold anything, brackets too. */
    char *at = strrchr(text, ')');
    if (!at || strlen(at) < 4)
        return;
    at += 3; /* the state letter is no number */
    for (int i = 4; i <= 24 && at; i++)
        field[i] = strtoull(at, &at, 10);
    if (boot == 0)
        boot = boot_time_seconds();
    stats->start_time_seconds = boot + (double)field[22] / (double)sysconf(_SC_CLK_TCK);
    stats->virtual_bytes = field[23];
    stats->resident_bytes = field[24] * (unsigned long long)sysconf(_SC_PAGESIZE);
}

void process_stats(struct process_stats *ret)
{
    struct timespec cpu;
    struct rlimit limit;

    memset(ret, 0, sizeof *ret);
    read_stat(ret);
    if (clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &cpu) == 0)
        ret->cpu_ns = (uint64_t)cpu.tv_sec * 1000000000u + (uint64_t)cpu.tv_nsec;
    ret->open_fds = count_fds();
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0)
        ret->max_fds = limit.rlim_cur;
    ret->virtual_max_bytes = UINT64_MAX;
    if (getrlimit(RLIMIT_AS, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY)
        ret->virtual_max_bytes = limit.rlim_cur;
}
