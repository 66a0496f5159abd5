/* The HTTP server over real sockets with a fake snapshot, and the sockets themselves. */
#include "http.h"
#include "listen.h"
#include "process.h"
#include "snapshot.h"
#include "suite.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#define MS UINT64_C(1000000)
#define S  (1000 * MS)

/* ---- the fake ----------------------------------------------------------------------------------------------- */

struct snapshot {
    int references;
    uint64_t time_ns;
};

static struct snapshot fake;
static bool fake_there;
static int fake_error;
static char *fake_page;
static size_t fake_size;

struct snapshot *snapshot_acquire(void)
{
    if (!fake_there)
        return NULL;
    (void)__atomic_add_fetch(&fake.references, 1, __ATOMIC_ACQ_REL);
    return &fake;
}

void snapshot_release(struct snapshot *snapshot)
{
    if (snapshot)
        (void)__atomic_sub_fetch(&snapshot->references, 1, __ATOMIC_ACQ_REL);
}

struct snapshot *snapshot_acquire_page(void)
{
    return snapshot_acquire();
}

int snapshot_page(struct snapshot *snapshot, enum page_format format, enum page_encoding encoding,
                  const char **ret_data, size_t *ret_size)
{
    (void)snapshot;
    (void)format;
    (void)encoding;
    if (fake_error)
        return fake_error;
    *ret_data = fake_page;
    *ret_size = fake_size;
    return 0;
}

int snapshot_small_page(struct snapshot *snapshot, enum page_format format, enum page_encoding encoding,
                        const char *const *names, unsigned count, char **ret, size_t *ret_size)
{
    (void)snapshot;
    (void)format;
    (void)encoding;
    (void)names;
    (void)count;
    *ret = calloc(1, 1);
    *ret_size = 0;
    return *ret ? 0 : -ENOMEM;
}

int snapshot_large_page(struct snapshot *snapshot, enum page_format format, enum page_encoding encoding,
                        const char *const *names, unsigned count, const char **ret_data, size_t *ret_size)
{
    (void)names;
    (void)count;
    return snapshot_page(snapshot, format, encoding, ret_data, ret_size);
}

uint64_t snapshot_time_ns(const struct snapshot *snapshot)
{
    return snapshot->time_ns;
}

/* ---- helpers ------------------------------------------------------------------------------------------------ */

static struct http *http;
static int port;
static char answer[65536];

static void set_page(size_t size)
{
    free(fake_page);
    fake_page = malloc(size);
    ck_assert_ptr_nonnull(fake_page);
    memset(fake_page, 'x', size);
    fake_size = size;
}

static int open_port(int *ret_port)
{
    char error[256], text[160];
    int fd;

    ck_assert_msg(listen_open("127.0.0.1:0", &fd, error, sizeof error) == 0, "%s", error);
    listen_describe(fd, text, sizeof text);
    *ret_port = atoi(strrchr(text, ':') + 1);
    return fd;
}

static void start(uint64_t stale_ns)
{
    struct http_config config = {.socket_count = 1, .telemetry_path = "/m", .stale_ns = stale_ns, .version = "9.8.7"};

    config.sockets[0] = open_port(&port);
    ck_assert_int_eq(http_start(&http, &config), 0);
}

static int connect_to(int to)
{
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = htons((uint16_t)to), .sin_addr = {.s_addr = htonl(INADDR_LOOPBACK)}};
    const struct timeval limit = {.tv_sec = 10};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    ck_assert_int_ge(fd, 0);
    ck_assert_int_eq(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit), 0);
    ck_assert_int_eq(connect(fd, (const struct sockaddr *)&address, sizeof address), 0);
    return fd;
}

/* Sends a request and reads until `last` is there, or the other side closes. Returns the status. */
static int ask(int fd, const char *method, const char *path, const char *last)
{
    char request[256];
    size_t size = 0;
    int n = snprintf(request, sizeof request, "%s %s HTTP/1.1\r\nHost: h\r\n\r\n", method, path);

    ck_assert_int_eq(send(fd, request, (size_t)n, MSG_NOSIGNAL), n);
    answer[0] = 0;
    while (!strstr(answer, last)) {
        ssize_t got = recv(fd, answer + size, sizeof answer - 1 - size, 0);
        if (got <= 0)
            break;
        size += (size_t)got;
        answer[size] = 0;
    }
    return strncmp(answer, "HTTP/1.1 ", 9) == 0 ? atoi(answer + 9) : -1;
}

static int ask_once(const char *method, const char *path, const char *last)
{
    int fd = connect_to(port);
    int status = ask(fd, method, path, last);

    (void)close(fd);
    return status;
}

static bool says(const char *text)
{
    return strstr(answer, text) != NULL;
}

static void setup(void)
{
    (void)signal(SIGPIPE, SIG_IGN);
    fake = (struct snapshot){.time_ns = wideep_i_clock_ns(CLOCK_BOOTTIME)};
    fake_there = true;
    fake_error = 0;
    set_page(1000);
    fake_page[999] = '\n';
}

static void teardown(void)
{
    http_stop(http);
    http = NULL;
    ck_assert_int_eq(fake.references, 0);
    free(fake_page);
    fake_page = NULL;
}

/* ---- http --------------------------------------------------------------------------------------------------- */

START_TEST(endpoints)
{
    start(10 * S);
    ck_assert_int_eq(ask_once("GET", "/m", "xxx\n"), 200);
    ck_assert(says("Content-Type: text/plain; version=0.0.4; charset=utf-8; escaping=underscores\r\n"));
    ck_assert(says("Content-Length: 1000\r\n"));
    ck_assert_int_eq(ask_once("HEAD", "/m", "\r\n\r\n"), 200);
    ck_assert(says("Content-Length: 1000\r\n") && !says("xxx"));
    ck_assert_int_eq(ask_once("GET", "/-/healthy", "ok\n"), 200);
    ck_assert_int_eq(ask_once("GET", "/-/ready", "ready\n"), 200);
    ck_assert_int_eq(ask_once("GET", "/", "</html>"), 200);
    ck_assert(says("9.8.7") && says("href=\"/m\""));
    ck_assert(says("Content-Security-Policy: default-src 'none'; script-src 'sha256-"));
    ck_assert_int_eq(ask_once("GET", "/metrics", "is\n"), 404);
    ck_assert_int_eq(ask_once("POST", "/m", "are\n"), 405);
    ck_assert(says("Allow: GET, HEAD\r\n"));
    ck_assert_int_eq(ask_once("POST", "/nowhere", "is\n"), 404);
}
END_TEST

START_TEST(keep_alive)
{
    start(10 * S);
    int fd = connect_to(port);
    for (unsigned i = 0; i < 3; i++) {
        ck_assert_int_eq(ask(fd, "HEAD", "/m", "\r\n\r\n"), 200);
        ck_assert_int_eq(ask(fd, "GET", "/m", "xxx\n"), 200);
        ck_assert_int_eq(ask(fd, "GET", "/nowhere", "is\n"), 404);
    }
    (void)close(fd);
}
END_TEST

START_TEST(no_snapshot)
{
    fake_there = false;
    start(300 * MS);
    ck_assert_int_eq(ask_once("GET", "/m", "yet\n"), 503);
    ck_assert_int_eq(ask_once("GET", "/-/ready", "yet\n"), 503);
    ck_assert_int_eq(ask_once("GET", "/-/healthy", "ok\n"), 200); /* the grace of a start */
    (void)usleep(400000);
    ck_assert_int_eq(ask_once("GET", "/-/healthy", "stuck\n"), 503);
}
END_TEST

START_TEST(stuck_collector)
{
    fake.time_ns -= 5 * S;
    start(4 * S);
    ck_assert_int_eq(ask_once("GET", "/-/healthy", "stuck\n"), 503);
    ck_assert_int_eq(ask_once("GET", "/-/ready", "ready\n"), 200);
    ck_assert_int_eq(ask_once("GET", "/m", "xxx\n"), 200);
}
END_TEST

START_TEST(no_memory)
{
    fake_error = -ENOMEM;
    start(10 * S);
    ck_assert_int_eq(ask_once("GET", "/m", "page\n"), 500);
}
END_TEST

START_TEST(statistics)
{
    struct http_stats before, after;
    http_stats(&before);
    start(10 * S);
    (void)ask_once("GET", "/m", "xxx\n");
    (void)ask_once("GET", "/nowhere", "is\n");
    (void)ask_once("PUT", "/m", "are\n");
    http_stop(http);
    http = NULL;
    http_stats(&after);
    ck_assert_uint_eq(after.in_flight, 0);
    for (unsigned h = 0; h < SELF_HANDLERS; h++) {
        for (unsigned c = 0; c < SELF_CODES; c++) {
            const char *handler = self_handlers[h], *code = self_codes[c];
            bool asked = strcmp(handler, "metrics") == 0 && (strcmp(code, "200") == 0 || strcmp(code, "405") == 0);
            asked = asked || (strcmp(handler, "other") == 0 && strcmp(code, "404") == 0);
            ck_assert_uint_eq(after.requests[h][c] - before.requests[h][c], asked ? 1u : 0u);
        }
    }
    ck_assert_uint_ge(after.response_bytes - before.response_bytes, fake_size);
    ck_assert_uint_eq(after.accepted - before.accepted, 3);
    ck_assert_uint_eq(after.connections, 0);
}
END_TEST

/* ---- routes of others --------------------------------------------------------------------------------------- */

/* Says what it was asked. */
static void echo(void *context, const struct http_request *request, struct http_reply *reply)
{
    const char *argument = http_argument(request, "a"), *other = http_argument(request, "b");

    http_reply_text(reply, 200, "%s %s %s a=%s b=%s user=%s peer=%.10s.\n", (const char *)context, request->method,
                    request->path, argument ? argument : "absent", other ? other : "absent",
                    request->user ? request->user : "none", request->peer);
}

static void constant(void *context, const struct http_request *request, struct http_reply *reply)
{
    static char text[] = "{}\n";

    (void)context;
    (void)request;
    *reply =
        (struct http_reply){.code = 400, .content_type = "application/json", .body = text, .size = 3, .constant = true};
}

static void silent(void *context, const struct http_request *request, struct http_reply *reply)
{
    (void)context;
    (void)request;
    (void)reply;
}

static char exact_text[] = "exact", prefix_text[] = "prefix";

static const struct http_route others[] = {
    {"/a", false, HTTP_GET | HTTP_DELETE, "state", echo, exact_text, false, false},
    {"/a/", true, HTTP_POST, "debug", echo, prefix_text, false, false},
    {"/c", false, HTTP_GET, "lb", constant, NULL, false, false},
    {"/s", false, HTTP_GET, "unheard of", silent, NULL, false, false},
};

static void start_with(unsigned max_requests)
{
    struct http_config config = {.socket_count = 1,
                                 .telemetry_path = "/m",
                                 .stale_ns = 10 * S,
                                 .version = "1",
                                 .routes = others,
                                 .route_count = sizeof others / sizeof *others,
                                 .max_requests = max_requests};

    config.sockets[0] = open_port(&port);
    ck_assert_int_eq(http_start(&http, &config), 0);
}

START_TEST(other_routes)
{
    start_with(40);
    ck_assert_int_eq(ask_once("GET", "/a?a=1%202&b", ".\n"), 200);
    ck_assert(says("\r\n\r\nexact GET /a a=1 2 b= user=none peer=127.0.0.1:.\n"));
    ck_assert_int_eq(ask_once("DELETE", "/a?A=1&a=2&a=3", ".\n"), 200);
    ck_assert(says("exact DELETE /a a=2 b=absent "));
    ck_assert_int_eq(ask_once("POST", "/a/x%2fy?b=%41", ".\n"), 200);
    ck_assert(says("prefix POST /a/x/y a=absent b=A "));
    ck_assert_int_eq(ask_once("POST", "/a/", ".\n"), 200);
    ck_assert_int_eq(ask_once("HEAD", "/a", "\r\n\r\n"), 200);
    ck_assert(says("Content-Length: ") && !says("exact"));
    ck_assert_int_eq(ask_once("POST", "/a", "are\n"), 405);
    ck_assert(says("Allow: GET, HEAD, DELETE\r\n"));
    ck_assert_int_eq(ask_once("HEAD", "/a/x", "\r\n\r\n"), 405);
    ck_assert(says("Allow: POST\r\n"));
    ck_assert_int_eq(ask_once("GET", "/ab", "is\n"), 404);
    ck_assert_int_eq(ask_once("GET", "/c", "{}\n"), 400);
    ck_assert(says("Content-Type: application/json\r\n"));
    ck_assert_int_eq(ask_once("GET", "/s", "\r\n\r\n"), 500);
    ck_assert_int_eq(ask_once("GET", "/a%00", "is\n"), 404);
}
END_TEST

/* What is over the limit is refused, what does not count is not, and an end gives its place back. */
START_TEST(requests_at_once)
{
    set_page(24u << 20);
    start_with(2);
    int fds[] = {connect_to(port), connect_to(port)};
    for (unsigned i = 0; i < 2; i++)
        ck_assert_int_eq(ask(fds[i], "GET", "/m", "\r\n\r\n"), 200);
    ck_assert_int_eq(ask_once("GET", "/m", "limit\n"), 503);
    ck_assert(says("Retry-After: 1\r\n"));
    ck_assert_int_eq(ask_once("GET", "/-/healthy", "ok\n"), 200);
    ck_assert_int_eq(ask_once("GET", "/a", ".\n"), 200);
    ck_assert_int_eq(ask_once("POST", "/m", "are\n"), 405);
    (void)close(fds[0]);
    int status = 503;
    for (unsigned i = 0; i < 500 && status == 503; i++) {
        status = ask_once("HEAD", "/m", "\r\n\r\n");
        (void)usleep(20000);
    }
    ck_assert_int_eq(status, 200);
    (void)close(fds[1]);
}
END_TEST

static void *stop_it(void *unused)
{
    (void)unused;
    http_stop(http);
    return NULL;
}

/* What is under way when it stops arrives whole, although the reader is slow. */
START_TEST(stop_drains)
{
    pthread_t stopper;
    size_t size = 0;
    ssize_t n;
    set_page(24u << 20);
    start(10 * S);
    int fd = connect_to(port);
    ck_assert_int_eq(ask(fd, "GET", "/m", "\r\n\r\n"), 200);
    ck_assert(says("Content-Length: 25165824\r\n"));
    size = strlen(strstr(answer, "\r\n\r\n") + 4);
    ck_assert_int_eq(pthread_create(&stopper, NULL, stop_it, NULL), 0);
    (void)usleep(100000);
    while ((n = recv(fd, answer, sizeof answer, 0)) > 0)
        size += (size_t)n;
    (void)close(fd);
    (void)pthread_join(stopper, NULL);
    http = NULL;
    ck_assert_uint_eq(size, fake_size);
}
END_TEST

/* Who does not read at all is not waited for longer than a second. */
START_TEST(stop_ends)
{
    set_page(24u << 20);
    start(10 * S);
    int fd = connect_to(port);
    ck_assert_int_eq(ask(fd, "GET", "/m", "\r\n\r\n"), 200);
    uint64_t begin_ns = wideep_i_clock_ns(CLOCK_MONOTONIC);
    http_stop(http);
    http = NULL;
    ck_assert_uint_lt(wideep_i_clock_ns(CLOCK_MONOTONIC) - begin_ns, 3 * S);
    (void)close(fd);
}
END_TEST

/* A start that fails closes the sockets that it was given, and no others. */
START_TEST(start_fails)
{
    struct rlimit before, few;
    struct http_config config = {.socket_count = 2, .telemetry_path = "/m", .version = "1"};
    int unused, fd;
    config.sockets[0] = open_port(&unused);
    config.sockets[1] = open_port(&unused);
    fd = config.sockets[1];
    ck_assert_int_eq(getrlimit(RLIMIT_NOFILE, &before), 0);
    few = before;
    few.rlim_cur = (rlim_t)fd + 1; /* none left for epoll */
    ck_assert_int_eq(setrlimit(RLIMIT_NOFILE, &few), 0);
    int error = http_start(&http, &config);
    ck_assert_int_eq(setrlimit(RLIMIT_NOFILE, &before), 0);
    ck_assert_int_lt(error, 0);
    ck_assert_ptr_null(http);
    ck_assert_int_eq(fcntl(config.sockets[0], F_GETFD), -1);
    ck_assert_int_eq(fcntl(config.sockets[1], F_GETFD), -1);
}
END_TEST

/* ---- listen ------------------------------------------------------------------------------------------------- */

START_TEST(good_addresses)
{
    static const char *const good[] = {":0", "127.0.0.1:0", "localhost:0", "[127.0.0.1]:0"};
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        char error[256] = "", text[160];
        int fd = -1;
        ck_assert_msg(listen_open(good[i], &fd, error, sizeof error) == 0, "%s", error);
        listen_describe(fd, text, sizeof text);
        ck_assert_int_gt(atoi(strrchr(text, ':') + 1), 0);
        ck_assert_int_ne(fcntl(fd, F_GETFL) & O_NONBLOCK, 0);
        ck_assert_int_ne(fcntl(fd, F_GETFD) & FD_CLOEXEC, 0);
        (void)close(fd);
    }
}
END_TEST

static mode_t mode_of(const char *path)
{
    struct stat status;

    ck_assert_int_eq(lstat(path, &status), 0);
    return status.st_mode & 07777;
}

START_TEST(unix_sockets)
{
    char directory[] = "/tmp/wideep-listen-XXXXXX", path[64], address[96], error[256] = "", text[160];
    int fd = -7, second = -7;
    ck_assert_ptr_nonnull(mkdtemp(directory));
    (void)snprintf(path, sizeof path, "%s/s", directory);
    (void)snprintf(address, sizeof address, "unix:%s", path);
    ck_assert_msg(listen_open(address, &fd, error, sizeof error) == 0, "%s", error);
    ck_assert_uint_eq(mode_of(path), LISTEN_UNIX_MODE);
    ck_assert_int_ne(fcntl(fd, F_GETFL) & O_NONBLOCK, 0);
    listen_describe(fd, text, sizeof text);
    ck_assert_str_eq(text, address);
    ck_assert_int_eq(listen_open(address, &second, error, sizeof error), -EADDRINUSE);
    ck_assert_ptr_nonnull(strstr(error, "another process"));
    ck_assert_int_eq(second, -7);
    /* left behind by a process that was killed */
    (void)close(fd);
    (void)snprintf(address, sizeof address, "unix:%s?mode=0606", path);
    ck_assert_msg(listen_open(address, &fd, error, sizeof error) == 0, "%s", error);
    ck_assert_uint_eq(mode_of(path), 0606);
    listen_remove(address);
    (void)close(fd);
    ck_assert_int_eq(access(path, F_OK), -1);
    /* a file of another kind stays */
    (void)close(open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
    ck_assert_int_eq(listen_open(address, &fd, error, sizeof error), -EEXIST);
    ck_assert_ptr_nonnull(strstr(error, "no socket"));
    ck_assert_int_eq(unlink(path), 0);
    ck_assert_int_eq(rmdir(directory), 0);
    ck_assert_int_eq(listen_open(address, &fd, error, sizeof error), -ENOENT);
    ck_assert_int_eq(listen_open("unix:", &fd, error, sizeof error), -EINVAL);
    ck_assert_int_eq(listen_open("unix:/x?mode=", &fd, error, sizeof error), -EINVAL);
    ck_assert_int_eq(listen_open("unix:/x?mode=999", &fd, error, sizeof error), -EINVAL);
    ck_assert_int_eq(listen_open("unix:/x?mode=1777", &fd, error, sizeof error), -EINVAL);
    ck_assert_int_eq(listen_open("unix:/x?owner=1", &fd, error, sizeof error), -EINVAL);
}
END_TEST

START_TEST(bad_addresses)
{
    static const char *const bad[] = {"",        "h",      ":",       ":x",    ":-1",  ":65536", ":99999",
                                      ":100000", "::1:80", "[::1:80", "[]:80", "[:80", "::1]:80"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char error[256] = "";
        int fd = -7;
        ck_assert_msg(listen_open(bad[i], &fd, error, sizeof error) == -EINVAL, "%s", bad[i]);
        ck_assert_int_eq(fd, -7);
        ck_assert_ptr_nonnull(strstr(error, ":PORT"));
    }
}
END_TEST

START_TEST(busy_port)
{
    char error[256] = "", address[64];
    int busy, fd = -7, held = open_port(&busy);
    (void)snprintf(address, sizeof address, "127.0.0.1:%d", busy);
    ck_assert_int_eq(listen_open(address, &fd, error, sizeof error), -EADDRINUSE);
    ck_assert_int_eq(fd, -7);
    ck_assert_ptr_nonnull(strstr(error, address));
    ck_assert_ptr_nonnull(strstr(error, "--web.listen-address"));
    (void)close(held);
}
END_TEST

/* ---- process ------------------------------------------------------------------------------------------------ */

START_TEST(process)
{
    struct process_stats one, two;
    struct timespec now;
    process_stats(&one);
    int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    process_stats(&two);
    (void)close(fd);
    (void)clock_gettime(CLOCK_REALTIME, &now);
    ck_assert_uint_eq(two.open_fds, one.open_fds + 1);
    ck_assert_uint_gt(one.max_fds, one.open_fds);
    ck_assert_uint_gt(one.resident_bytes, 100000);
    ck_assert_uint_gt(one.virtual_bytes, one.resident_bytes);
    ck_assert_uint_ge(two.cpu_ns, one.cpu_ns);
    ck_assert(one.start_time_seconds == two.start_time_seconds);
    ck_assert(one.start_time_seconds > (double)now.tv_sec - 3600 && one.start_time_seconds < (double)now.tv_sec + 2);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("http");
    TCase *tcase = tcase_create("http");
    tcase_set_timeout(tcase, 60);
    tcase_add_checked_fixture(tcase, setup, teardown);
    tcase_add_test(tcase, endpoints);
    tcase_add_test(tcase, keep_alive);
    tcase_add_test(tcase, no_snapshot);
    tcase_add_test(tcase, stuck_collector);
    tcase_add_test(tcase, no_memory);
    tcase_add_test(tcase, statistics);
    tcase_add_test(tcase, other_routes);
    tcase_add_test(tcase, requests_at_once);
    tcase_add_test(tcase, stop_drains);
    tcase_add_test(tcase, stop_ends);
    tcase_add_test(tcase, start_fails);
    suite_add_tcase(suite, tcase);
    TCase *sockets = tcase_create("listen");
    tcase_add_test(sockets, good_addresses);
    tcase_add_test(sockets, unix_sockets);
    tcase_add_test(sockets, bad_addresses);
    tcase_add_test(sockets, busy_port);
    tcase_add_test(sockets, process);
    suite_add_tcase(suite, sockets);
    return suite_run(suite);
}
