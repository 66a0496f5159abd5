/* bare_mhd: the floor of a scrape. libmicrohttpd with the exporter's flags sends a file from a static buffer to whoever
 * asks for whatever, by one response object.
 *
 *     bench-bare PORT FILE [--gzip]
 *
 * Says `ready` when it listens on 127.0.0.1. --gzip: the file is compressed, say so in the header. Its sockets have the
 * exporter's buffers, without which large pages take longer. It keeps the library's own listen socket and watches over
 * nobody: what the exporter does beyond that is what the comparison is about. */
#include "bench.h"

#include <arpa/inet.h>
#include <microhttpd.h>
#include <signal.h>
#include <stdio.h>
#include <sys/prctl.h>

/* As in http_server.c. */
enum { THREADS = 4, CONNECTIONS_MOST = 2 * 4096, REQUEST_MEMORY = 48 << 10 };
static const int send_bytes = 128 << 10, receive_bytes = 32 << 10;

static void on_connection(void *context, struct MHD_Connection *connection, void **socket_context,
                          enum MHD_ConnectionNotificationCode code)
{
    (void)context, (void)socket_context;
    if (code != MHD_CONNECTION_NOTIFY_STARTED)
        return;
    const int fd = MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD)->connect_fd;
    (void)setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &send_bytes, sizeof send_bytes);
    (void)setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &receive_bytes, sizeof receive_bytes);
}

static enum MHD_Result answer(void *response, struct MHD_Connection *connection, const char *url, const char *method,
                              const char *version, const char *upload, size_t *upload_size, void **request)
{
    static int seen;

    (void)url, (void)method, (void)version, (void)upload, (void)upload_size;
    /* An answer to the first call, before the headers are dealt with, would close the connection. */
    if (!*request) {
        *request = &seen;
        return MHD_YES;
    }
    return MHD_queue_response(connection, MHD_HTTP_OK, response);
}

static char *read_file(const char *path, size_t *ret_size)
{
    struct stat status;
    FILE *file = fopen(path, "rb");

    if (!file || fstat(fileno(file), &status) != 0)
        bench_fail(path, -errno);
    *ret_size = (size_t)status.st_size;
    char *data = bench_allocate(*ret_size + 1, 1);
    if (fread(data, 1, *ret_size, file) != *ret_size)
        bench_fail(path, -EIO);
    (void)fclose(file);
    return data;
}

int main(int argc, char **argv)
{
    const unsigned flags = MHD_USE_INTERNAL_POLLING_THREAD | MHD_USE_EPOLL | MHD_USE_ITC | MHD_USE_ERROR_LOG;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    size_t size;

    if (argc < 3)
        bench_fail("usage: bench-bare PORT FILE [--gzip]", -EINVAL);
    (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
    (void)signal(SIGPIPE, SIG_IGN);
    address.sin_port = htons((uint16_t)atoi(argv[1]));
    char *page = read_file(argv[2], &size);
    struct MHD_Response *response = MHD_create_response_from_buffer(size, page, MHD_RESPMEM_PERSISTENT);
    if (!response)
        bench_fail("response", -ENOMEM);
    (void)MHD_add_response_header(response, MHD_HTTP_HEADER_CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8");
    if (bench_flag(argc, argv, "gzip"))
        (void)MHD_add_response_header(response, MHD_HTTP_HEADER_CONTENT_ENCODING, "gzip");
    if (!MHD_start_daemon(flags, 0, NULL, NULL, answer, response, MHD_OPTION_SOCK_ADDR, (struct sockaddr *)&address,
                          MHD_OPTION_LISTENING_ADDRESS_REUSE, 1u, MHD_OPTION_THREAD_POOL_SIZE, (unsigned)THREADS,
                          MHD_OPTION_CONNECTION_LIMIT, (unsigned)CONNECTIONS_MOST, MHD_OPTION_CONNECTION_MEMORY_LIMIT,
                          (size_t)REQUEST_MEMORY, MHD_OPTION_STRICT_FOR_CLIENT, 1, MHD_OPTION_NOTIFY_CONNECTION,
                          on_connection, NULL, MHD_OPTION_END))
        bench_fail("cannot start the server", -EIO);
    (void)printf("ready\n");
    (void)fflush(stdout);
    for (;;)
        (void)pause();
}
