/* load: scrapes, timed one by one, from one server or from several in turn.
 *
 *     bench-load [--connections=N] [--ms=MILLISECONDS] [--requests=N] [--pace=REQUESTS PER SECOND] [--gzip]
 *                PORT[:LEAST-MOST]…
 *
 * A burst is one GET /metrics on each of N keep-alive connections to one server, all sent before the first answer is
 * read; the next burst goes to the next server, when all answers of this one are complete. A sample is the time from
 * before a request is sent to the last byte of its answer. A server that closes after an answer gets a new connection,
 * which counts. Ends after so many milliseconds or so many requests to each server, whichever comes first, but not
 * within a turn. Says `connected` on standard error after a first burst to each, which does not count. With a pace, the
 * first turn is one period after that.
 *
 * Each answer must be 200 and complete, by its Content-Length, its chunks or its end, and have LEAST to MOST bytes
 * where they are given. All else ends the program with status 1 and a line. */
#include "bench.h"

#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <sys/epoll.h>

enum { CONNECTIONS_MAX = 256, TARGETS_MAX = 4, HEAD_MAX = 4096, READ_SIZE = 256 << 10 };

enum framing { BY_LENGTH, BY_CHUNKS, BY_END };

struct answer {
    char head[HEAD_MAX + 1];
    size_t head_size;
    int head_done, done, keep;
    enum framing framing;
    uint64_t left; /* bytes of the body, or of the chunk with its line end, that are to come */
    uint64_t size; /* of the body so far */
    char line[20]; /* of a chunk's size, as far as it has come */
    size_t line_size;
    int last_chunk;
};

struct connection {
    int fd; /* -1: not connected */
    uint64_t begin_ns;
    struct answer answer;
};

struct target {
    uint16_t port;
    uint64_t least, most; /* bytes of a body */
    int epoll;
    struct connection *connections;
    struct bench_samples samples;
    uint64_t bytes;
};

static char request[256];
static char received[READ_SIZE];

/* ---- answers ------------------------------------------------------------------------------------------------- */

static const char *header(const char *head, const char *name)
{
    const size_t length = strlen(name);

    for (const char *line = strstr(head, "\r\n"); line; line = strstr(line + 2, "\r\n"))
        if (strncasecmp(line + 2, name, length) == 0 && line[2 + length] == ':')
            return line + 3 + length + strspn(line + 3 + length, " ");
    return NULL;
}

static void parse_head(struct answer *answer)
{
    const char *length = header(answer->head, "content-length"), *coding = header(answer->head, "transfer-encoding");
    const char *connection = header(answer->head, "connection");

    if (strncmp(answer->head, "HTTP/1.", 7) != 0 || strncmp(answer->head + 8, " 200", 4) != 0) {
        (void)fprintf(stderr, "answer: %.*s\n", (int)strcspn(answer->head, "\r"), answer->head);
        bench_fail("an answer is not 200", -EPROTO);
    }
    answer->head_done = 1;
    answer->framing = coding && strncasecmp(coding, "chunked", 7) == 0 ? BY_CHUNKS : length ? BY_LENGTH : BY_END;
    answer->keep =
        answer->framing != BY_END && (connection ? strncasecmp(connection, "close", 5) != 0 : answer->head[7] == '1');
    if (answer->framing == BY_LENGTH) {
        answer->left = strtoull(length, NULL, 10);
        answer->done = answer->left == 0;
    }
}

/* One byte of a line with a chunk's size; the empty line behind the last chunk has none. */
static void take_chunk_line(struct answer *answer, char byte)
{
    if (byte != '\n') {
        if (answer->line_size < sizeof answer->line - 1)
            answer->line[answer->line_size++] = byte;
        return;
    }
    answer->line[answer->line_size] = 0;
    answer->line_size = 0;
    if (answer->last_chunk) {
        answer->done = 1;
        return;
    }
    const uint64_t size = strtoull(answer->line, NULL, 16);
    answer->last_chunk = size == 0;
    answer->size += size;
    answer->left = size ? size + 2 : 0;
}

static void take_body(struct answer *answer, const char *data, size_t size)
{
    while (size > 0 && !answer->done) {
        size_t step = answer->framing != BY_END && answer->left < size ? (size_t)answer->left : size;
        if (answer->framing == BY_CHUNKS && answer->left == 0) {
            take_chunk_line(answer, *data);
            step = 1;
        } else {
            answer->left -= answer->framing == BY_END ? 0 : step;
            answer->size += answer->framing == BY_CHUNKS ? 0 : step;
            answer->done = answer->framing == BY_LENGTH && answer->left == 0;
        }
        data += step;
        size -= step;
    }
    if (size > 0)
        bench_fail("bytes behind an answer", -EPROTO);
}

static void take(struct answer *answer, const char *data, size_t size)
{
    while (size > 0 && !answer->head_done) {
        if (answer->head_size == HEAD_MAX)
            bench_fail("the head of an answer is too long", -EPROTO);
        answer->head[answer->head_size++] = *data++;
        size--;
        if (answer->head_size >= 4 && memcmp(answer->head + answer->head_size - 4, "\r\n\r\n", 4) == 0) {
            answer->head[answer->head_size] = 0;
            parse_head(answer);
        }
    }
    take_body(answer, data, size);
}

/* ---- connections --------------------------------------------------------------------------------------------- */

static void open_connection(struct target *target, struct connection *connection)
{
    static const int on = 1;
    const struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = htons(target->port), .sin_addr = {htonl(INADDR_LOOPBACK)}};
    struct epoll_event event = {.events = EPOLLIN, .data = {.ptr = connection}};

    connection->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (connection->fd < 0 || connect(connection->fd, (const struct sockaddr *)&address, sizeof address) != 0)
        bench_fail("connect", -errno);
    (void)setsockopt(connection->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (epoll_ctl(target->epoll, EPOLL_CTL_ADD, connection->fd, &event) != 0)
        bench_fail("epoll_ctl", -errno);
}

static void send_request(struct target *target, struct connection *connection)
{
    struct answer *answer = &connection->answer;
    const size_t size = strlen(request);

    *answer = (struct answer){.keep = 0};
    connection->begin_ns = bench_now_ns();
    if (connection->fd < 0)
        open_connection(target, connection);
    if (send(connection->fd, request, size, MSG_NOSIGNAL) != (ssize_t)size)
        bench_fail("send", -errno);
}

static void check_size(const struct target *target, uint64_t size)
{
    if (size >= target->least && size <= target->most)
        return;
    (void)fprintf(stderr, "port %u: a body of %llu bytes, expected %llu to %llu\n", target->port,
                  (unsigned long long)size, (unsigned long long)target->least, (unsigned long long)target->most);
    bench_fail("an answer has another size than expected", -EPROTO);
}

/* Reads once. Returns 1 when the answer is complete. */
static int receive(struct target *target, struct connection *connection)
{
    struct answer *answer = &connection->answer;
    const ssize_t size = recv(connection->fd, received, sizeof received, 0);

    if (size < 0 && errno != ECONNRESET)
        bench_fail("recv", -errno);
    if (size < 0 || (size == 0 && !(answer->head_done && answer->framing == BY_END)))
        bench_fail("an answer was cut off", -EPROTO);
    if (size == 0)
        answer->done = 1;
    else
        take(answer, received, (size_t)size);
    if (!answer->done)
        return 0;
    bench_sample(&target->samples, (double)(bench_now_ns() - connection->begin_ns));
    check_size(target, answer->size);
    target->bytes += answer->size;
    if (!answer->keep) {
        (void)close(connection->fd);
        connection->fd = -1;
    }
    return 1;
}

static void run_burst(struct target *target, unsigned connections)
{
    struct epoll_event events[CONNECTIONS_MAX];
    unsigned complete = 0;

    for (unsigned i = 0; i < connections; i++)
        send_request(target, &target->connections[i]);
    /* A single connection is waited for in recv(). */
    while (connections == 1 && complete == 0)
        complete += (unsigned)receive(target, &target->connections[0]);
    while (complete < connections) {
        const int ready = epoll_wait(target->epoll, events, CONNECTIONS_MAX, -1);
        if (ready < 0 && errno != EINTR)
            bench_fail("epoll_wait", -errno);
        for (int i = 0; i < ready; i++)
            complete += (unsigned)receive(target, events[i].data.ptr);
    }
}

/* ---- the run ------------------------------------------------------------------------------------------------- */

static unsigned open_targets(int argc, char **argv, struct target *ret, unsigned connections)
{
    unsigned count = 0;

    for (int i = 1; i < argc && count < TARGETS_MAX; i++) {
        if (argv[i][0] == '-')
            continue;
        struct target *target = &ret[count++];
        char *end;
        *target = (struct target){
            .port = (uint16_t)strtoul(argv[i], &end, 10), .most = UINT64_MAX, .epoll = epoll_create1(EPOLL_CLOEXEC)};
        if (*end == ':') {
            target->least = strtoull(end + 1, &end, 10);
            target->most = *end == '-' ? strtoull(end + 1, NULL, 10) : target->least;
        }
        target->connections = bench_allocate(connections, sizeof *target->connections);
        for (unsigned c = 0; c < connections; c++)
            target->connections[c].fd = -1;
    }
    if (count == 0)
        bench_fail("usage: bench-load [--OPTION=N]... PORT[:LEAST-MOST]...", -EINVAL);
    return count;
}

static void wait_for_turn(uint64_t begin_ns, uint64_t turn, double pace)
{
    const uint64_t at_ns = begin_ns + (uint64_t)((double)(turn + 1) * 1e9 / pace);
    const struct timespec until = {(time_t)(at_ns / 1000000000u), (long)(at_ns % 1000000000u)};

    (void)clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL);
}

int main(int argc, char **argv)
{
    struct target targets[TARGETS_MAX];
    const unsigned connections = (unsigned)bench_option(argc, argv, "connections", 1);
    const double requests = bench_option(argc, argv, "requests", 1e9), pace = bench_option(argc, argv, "pace", 0);

    if (connections < 1 || connections > CONNECTIONS_MAX)
        bench_fail("--connections", -EINVAL);
    (void)snprintf(request, sizeof request, "GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\n%s\r\n",
                   bench_flag(argc, argv, "gzip") ? "Accept-Encoding: gzip\r\n" : "");
    const unsigned count = open_targets(argc, argv, targets, connections);
    for (unsigned t = 0; t < count; t++) { /* connections are made, buffers have grown */
        run_burst(&targets[t], connections);
        targets[t].samples.count = targets[t].bytes = 0;
    }
    (void)fprintf(stderr, "connected\n");
    const uint64_t begin_ns = bench_now_ns(),
                   end_ns = begin_ns + (uint64_t)(bench_option(argc, argv, "ms", 1000) * 1e6);
    for (uint64_t turn = 0; turn == 0 || (bench_now_ns() < end_ns && (double)(turn * connections) < requests); turn++) {
        if (pace > 0)
            wait_for_turn(begin_ns, turn, pace);
        for (unsigned t = 0; t < count; t++)
            run_burst(&targets[t], connections);
    }
    for (unsigned t = 0; t < count; t++) {
        (void)printf("{\"port\":%u,\"bytes\":%llu", targets[t].port, (unsigned long long)targets[t].bytes);
        bench_print_samples("ns", &targets[t].samples);
        (void)printf("}\n");
        free(targets[t].connections);
    }
    return 0;
}
