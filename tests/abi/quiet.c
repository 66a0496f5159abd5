/* quiet: records through every function with all system calls but write and exit forbidden; the kernel kills
 * it for any other. Prints "ok". Filter mode and not SECCOMP_MODE_STRICT, which forbids reading the
 * time-stamp counter too, and so the vDSO's clock.
 *
 *     quiet probe      reads the clock alone: dies where the kernel's clock needs a system call
 *     quiet DIRECTORY  creates a rank and a front end there, then records 1000 passes
 */
#include "wideep_shm.h"

#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#if defined(__x86_64__)
#define QUIET_ARCH AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define QUIET_ARCH AUDIT_ARCH_AARCH64
#endif

static int quiet_enter(void)
{
#ifdef QUIET_ARCH
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, QUIET_ARCH, 1, 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_write, 2, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_exit_group, 1, 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof filter / sizeof filter[0], filter};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0)
        return -errno;
    return 0;
#else
    return -ENOSYS;
#endif
}

/* 77: it cannot be tried here. */
static void quiet_exit(int code, const char *text)
{
    if (syscall(SYS_write, 1, text, strlen(text)) < 0)
        code = 1;
    (void)syscall(SYS_exit_group, code);
}

enum { QUIET_LAYERS = 4, QUIET_EXPERTS = 32 };

static int quiet_record(struct wideep_writer *rank, struct wideep_writer *frontend, uint64_t n)
{
    static int32_t loads[QUIET_LAYERS * QUIET_EXPERTS], map[QUIET_LAYERS * QUIET_EXPERTS];
    struct wideep_pass pass = {.pass = 3 * n, .step = WIDEEP_STEP_UNKNOWN};
    struct wideep_eplb_layer layer = {.avg_tokens_per_rank = 1, .max_tokens_per_rank = 2};
    struct wideep_dbo_stats stats = {
        .pass = n, .phase = (uint32_t)n % 2, .outcome = (uint32_t)n % 6, .ubatches = 2, .ubatch_tokens = {3, 5}};
    for (int i = 0; i < QUIET_LAYERS * QUIET_EXPERTS; i++) {
        loads[i] = (int32_t)(n + (uint64_t)i);
        map[i] = i % QUIET_EXPERTS;
    }
    int error = wideep_record_pass(rank, &pass, loads, map);
    pass.pass++;
    if (!error)
        error = wideep_record_eplb(rank, &pass, &layer, 1);
    pass.pass++;
    if (!error)
        error = wideep_skip_pass(rank, &pass);
    if (!error)
        error = wideep_record_dbo(rank, &stats);
    if (!error)
        error = wideep_rearrangement_begin(rank, 0, n % 2 ? WIDEEP_SYNC : WIDEEP_ASYNC);
    if (!error)
        error = n % 3 ? wideep_rearrangement_end(rank, 0, NULL) : wideep_rearrangement_abort(rank, 0);
    if (!error)
        error = wideep_record_tokens(rank, n, 1);
    if (!error)
        error = wideep_record_tokens(frontend, n, 1);
    return error;
}

int main(int argc, char **argv)
{
#if defined(__SANITIZE_ADDRESS__) || defined(WIDEEP_TSAN)
    quiet_exit(77, "a sanitizer makes system calls of its own\n");
#endif
    if (argc != 2)
        quiet_exit(2, "usage: quiet probe | quiet DIRECTORY\n");
    if (strcmp(argv[1], "probe") == 0) {
        if (quiet_enter() != 0)
            quiet_exit(77, "no seccomp filter here\n");
        quiet_exit(wideep_i_clock_ns(CLOCK_BOOTTIME) == 0, "ok\n");
    }
    struct wideep_writer *rank = NULL, *frontend = NULL;
    struct wideep_config config = {
        .directory = argv[1], .ep_size = 8, .model_count = 1, .models = {{"m", QUIET_LAYERS, QUIET_EXPERTS, 0}}};
    int error = wideep_create(&rank, &config);
    config.role = WIDEEP_ROLE_FRONTEND;
    if (!error)
        error = wideep_create(&frontend, &config);
    if (error)
        quiet_exit(1, wideep_error_text(error));
    if (quiet_enter() != 0)
        quiet_exit(77, "no seccomp filter here\n");
    for (uint64_t n = 0; n < 1000; n++)
        if (quiet_record(rank, frontend, n) != 0)
            quiet_exit(1, "a record function failed\n");
    quiet_exit(0, "ok\n");
}
