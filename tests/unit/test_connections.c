/* Deadlines and room of connections on a clock of the test's own. */
#include "connections.h"
#include "suite.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define S    UINT64_C(1000000000)
#define MOST 16u /* the high-water mark is 14 */

static struct connections *connections;
static struct connection *all[MOST];
static int here[MOST], there[MOST]; /* the server's ends, and the clients' */
static uint64_t cuts_before[HTTP_CUTS];
static bool retired;

/* A TCP connection to ourselves. */
static void open_pair(int *ret_here, int *ret_there)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr = {.s_addr = htonl(INADDR_LOOPBACK)}};
    const struct timeval limit = {.tv_sec = 10};
    socklen_t length = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    ck_assert_int_eq(bind(listener, (const struct sockaddr *)&address, sizeof address), 0);
    ck_assert_int_eq(listen(listener, 1), 0);
    ck_assert_int_eq(getsockname(listener, (struct sockaddr *)&address, &length), 0);
    *ret_there = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    ck_assert_int_eq(setsockopt(*ret_there, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit), 0);
    ck_assert_int_eq(connect(*ret_there, (const struct sockaddr *)&address, sizeof address), 0);
    *ret_here = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    ck_assert_int_ge(*ret_here, 0);
    (void)close(listener);
}

static void open_local_pair(int *ret_here, int *ret_there)
{
    int pair[2];

    ck_assert_int_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair), 0);
    *ret_here = pair[0];
    *ret_there = pair[1];
}

static void add_of(void (*open)(int *ret_here, int *ret_there), unsigned i, uint64_t now_ns)
{
    open(&here[i], &there[i]);
    all[i] = connections_add(connections, here[i], &retired, now_ns);
    ck_assert_ptr_nonnull(all[i]);
}

static void add(unsigned i, uint64_t now_ns)
{
    add_of(open_pair, i, now_ns);
}

static void drop(unsigned i)
{
    connections_remove(connections, all[i]);
    (void)close(here[i]);
    (void)close(there[i]);
    all[i] = NULL;
}

static bool is_cut(unsigned i)
{
    char byte;

    return recv(here[i], &byte, 1, MSG_PEEK | MSG_DONTWAIT) == 0 || errno != EAGAIN;
}

static uint64_t cuts(enum http_cut cause)
{
    uint64_t now[HTTP_CUTS];

    connections_cut_counts(now);
    return now[cause] - cuts_before[cause];
}

static void setup(void)
{
    const struct connections_config config = {
        .most = MOST, .request_ns = 10 * S, .response_ns = 20 * S, .idle_ns = 100 * S};

    connections = connections_new(&config);
    ck_assert_ptr_nonnull(connections);
    connections_cut_counts(cuts_before);
    retired = false;
}

static void teardown(void)
{
    for (unsigned i = 0; i < MOST; i++)
        if (all[i])
            drop(i);
    ck_assert_uint_eq(connections_open(), 0);
    connections_free(connections);
}

START_TEST(each_state_has_its_deadline)
{
    add(0, 1 * S);
    add(1, 1 * S);
    add(2, 1 * S);
    connection_answers(connections, all[1], 2 * S);
    connection_answers(connections, all[2], 2 * S);
    connection_rests(connections, all[2], 3 * S);
    connections_reap(connections, 10 * S);
    ck_assert(!is_cut(0) && !is_cut(1) && !is_cut(2));
    connections_reap(connections, 11 * S);
    ck_assert(is_cut(0) && !is_cut(1) && !is_cut(2));
    connections_reap(connections, 22 * S);
    ck_assert(is_cut(1) && !is_cut(2));
    connections_reap(connections, 102 * S);
    ck_assert(!is_cut(2));
    connections_reap(connections, 103 * S);
    ck_assert(is_cut(2));
    ck_assert(cuts(HTTP_CUT_SENDER) == 1 && cuts(HTTP_CUT_READER) == 1 && cuts(HTTP_CUT_IDLE) == 1);
    connection_answers(connections, all[2], 104 * S); /* what is cut stays so, and is cut once */
    connections_reap(connections, 1000 * S);
    ck_assert_uint_eq(cuts(HTTP_CUT_READER), 1);
}
END_TEST

/* A kept connection whose client has begun to send has the deadline of a request. */
START_TEST(request_begun_on_kept_connection)
{
    add_of(_i == 0 ? open_pair : open_local_pair, 0, 1 * S);
    connection_answers(connections, all[0], 1 * S);
    connection_rests(connections, all[0], 1 * S);
    connections_reap(connections, 4 * S);
    ck_assert_int_eq(send(there[0], "G", 1, MSG_NOSIGNAL), 1);
    char byte;
    while (recv(here[0], &byte, 1, 0) != 1) /* the library reads it, and says nothing */
        ck_assert_int_eq(errno, EAGAIN);
    connections_reap(connections, 6 * S);
    connections_reap(connections, 15 * S);
    ck_assert(!is_cut(0));
    connections_reap(connections, 16 * S);
    ck_assert(is_cut(0));
    ck_assert_uint_eq(cuts(HTTP_CUT_SENDER), 1);
}
END_TEST

/* To the library a response is sent that only the kernel has. */
START_TEST(unread_response_in_the_kernel)
{
    static char bytes[1 << 16];
    add(0, 1 * S);
    connection_answers(connections, all[0], 1 * S);
    while (send(here[0], bytes, sizeof bytes, MSG_NOSIGNAL | MSG_DONTWAIT) > 0)
        ;
    connection_rests(connections, all[0], 1 * S);
    connections_reap(connections, 20 * S);
    ck_assert(!is_cut(0));
    connections_reap(connections, 40 * S);
    ck_assert(is_cut(0));
    ck_assert_uint_eq(cuts(HTTP_CUT_READER), 1);
}
END_TEST

/* Who goes on asking is answered, whoever reads is sent it all, and who rests goes, in order. */
START_TEST(retired_server)
{
    static char bytes[1 << 16];
    for (unsigned i = 0; i < 3; i++) {
        add_of(_i == 0 ? open_pair : open_local_pair, i, 1 * S);
        connection_answers(connections, all[i], 1 * S);
    }
    while (send(here[2], bytes, sizeof bytes, MSG_NOSIGNAL | MSG_DONTWAIT) > 0)
        ;
    for (unsigned i = 0; i < 3; i++)
        connection_rests(connections, all[i], 1 * S);
    connections_reap(connections, 10 * S);
    retired = true;
    ck_assert_int_eq(send(there[1], "G", 1, MSG_NOSIGNAL), 1);
    char byte;
    while (recv(here[1], &byte, 1, 0) != 1)
        ck_assert_int_eq(errno, EAGAIN);
    connections_reap(connections, 11 * S);
    ck_assert(!is_cut(0)); /* it may be about to ask again */
    connections_reap(connections, 12 * S);
    ck_assert(is_cut(0) && !is_cut(1) && !is_cut(2));
    ck_assert_int_eq(send(here[0], "x", 1, MSG_NOSIGNAL), 1); /* to its client this end is still whole */
    ck_assert_uint_eq(cuts(HTTP_CUT_READER) + cuts(HTTP_CUT_SENDER) + cuts(HTTP_CUT_IDLE), 0);
}
END_TEST

START_TEST(half_closed_client)
{
    add(0, 1 * S);
    connection_answers(connections, all[0], 1 * S);
    ck_assert_int_eq(shutdown(there[0], SHUT_WR), 0);
    while (!is_cut(0)) /* its end has arrived */
        ;
    connection_rests(connections, all[0], 1 * S);
    ck_assert_int_eq(send(here[0], "x", 1, MSG_NOSIGNAL), 1); /* the other half is as it was */
    connections_reap(connections, 4 * S);
    ck_assert_uint_eq(cuts(HTTP_CUT_READER) + cuts(HTTP_CUT_SENDER) + cuts(HTTP_CUT_IDLE), 0);
}
END_TEST

/* Who dawdles goes before who is kept, the oldest first; who is being answered goes when there is nobody else, and has
 * had a second. */
START_TEST(room)
{
    for (unsigned i = 0; i < 14; i++)
        add(i, i < 10 ? 1 * S : 5 * S);
    for (unsigned i = 0; i < 8; i++)
        connection_answers(connections, all[i], 1 * S);
    for (unsigned i = 5; i < 8; i++)
        connection_rests(connections, all[i], 2 * S + i);
    /* 0 to 4 are answered, 5 to 7 kept, 8 and 9 dawdle, 10 to 13 are fresh */
    ck_assert(connections_has_room(connections));
    for (unsigned round = 0; round < 8; round++) {
        static const unsigned order[] = {8, 9, 5, 6, 7, 10, 11, 12};
        ck_assert(!is_cut(order[round]));
        connections_make_room(connections, 5 * S);
        ck_assert(is_cut(order[round]));
        drop(order[round]);
        add(order[round], 1 * S); /* another takes the place, and is answered at once */
        connection_answers(connections, all[order[round]], 5 * S);
    }
    connections_make_room(connections, 5 * S);
    ck_assert(is_cut(13));
    connections_make_room(connections, 5 * S); /* one is on its way out, which is enough */
    ck_assert_uint_eq(cuts(HTTP_CUT_EVICTED), 9);
    ck_assert(!is_cut(0));
    connections_evict(connections, 5 * S); /* and now all are answered */
    ck_assert(is_cut(0));
    for (unsigned i = 1; i < 5; i++)
        connections_evict(connections, 5 * S);
    connections_evict(connections, 5 * S); /* those left have had no second yet */
    ck_assert_uint_eq(cuts(HTTP_CUT_EVICTED), 14);
    add(14, 5 * S);
    add(15, 5 * S);
    ck_assert(!connections_has_room(connections));
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("connections");
    TCase *tcase = tcase_create("connections");
    tcase_set_timeout(tcase, 60);
    tcase_add_checked_fixture(tcase, setup, teardown);
    tcase_add_test(tcase, each_state_has_its_deadline);
    tcase_add_loop_test(tcase, request_begun_on_kept_connection, 0, 2);
    tcase_add_loop_test(tcase, retired_server, 0, 2);
    tcase_add_test(tcase, unread_response_in_the_kernel);
    tcase_add_test(tcase, half_closed_client);
    tcase_add_test(tcase, room);
    suite_add_tcase(suite, tcase);
    return suite_run(suite);
}
