/* confine LIST PROGRAM ARGUMENT…: runs a program that may use the system calls named in LIST and no others. One more
 * kills it with SIGSYS, which its parent sees. LIST has a name a line, and comments from '#' on; names that this
 * processor does not have are passed over. */
#include <errno.h>
#include <seccomp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Returns 0 or a negative errno. */
static int allow(scmp_filter_ctx filter, const char *name)
{
    const int number = seccomp_syscall_resolve_name(name);

    if (number == __NR_SCMP_ERROR) {
        (void)fprintf(stderr, "confine: no system call is named %s\n", name);
        return -EINVAL;
    }
    return number < 0 ? 0 : seccomp_rule_add(filter, SCMP_ACT_ALLOW, number, 0);
}

static int allow_list(scmp_filter_ctx filter, const char *path)
{
    char line[256];
    int error = 0;
    FILE *list = fopen(path, "re");

    if (!list)
        return -errno;
    while (!error && fgets(line, sizeof line, list)) {
        line[strcspn(line, "# \t\n")] = 0;
        if (line[0] != 0)
            error = allow(filter, line);
    }
    (void)fclose(list);
    return error;
}

int main(int argc, char **argv)
{
    if (argc < 3) {
        (void)fprintf(stderr, "usage: confine LIST PROGRAM ARGUMENT...\n");
        return EXIT_FAILURE;
    }
    scmp_filter_ctx filter = seccomp_init(SCMP_ACT_KILL_PROCESS);
    int error = filter ? allow_list(filter, argv[1]) : -ENOMEM;
    if (!error)
        error = seccomp_load(filter);
    if (!error) {
        (void)execv(argv[2], argv + 2);
        error = -errno;
    }
    (void)fprintf(stderr, "confine: %s: %s\n", argv[2], strerror(-error));
    return EXIT_FAILURE;
}
