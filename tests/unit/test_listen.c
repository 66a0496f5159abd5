/* Addresses to listen on, and machines that lack some of them. */
#include "listen.h"
#include "suite.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static struct sockaddr_in loopback(uint16_t port)
{
    return (struct sockaddr_in){
        .sin_family = AF_INET, .sin_port = htons(port), .sin_addr = {.s_addr = htonl(INADDR_LOOPBACK)}};
}

static struct addrinfo info_of(struct sockaddr_in *address, struct addrinfo *next)
{
    return (struct addrinfo){.ai_family = AF_INET,
                             .ai_socktype = SOCK_STREAM,
                             .ai_addr = (struct sockaddr *)address,
                             .ai_addrlen = sizeof *address,
                             .ai_next = next};
}

static uint16_t port_of(int fd)
{
    struct sockaddr_in address = {0};
    socklen_t length = sizeof address;
    ck_assert_int_eq(getsockname(fd, (struct sockaddr *)&address, &length), 0);
    return ntohs(address.sin_port);
}

START_TEST(addresses)
{
    static const char *const good[] = {":0", ":9464", "localhost:65535", "127.0.0.1:1", "[::1]:80", "[::]:0"};
    static const char *const bad[] = {"",
                                      ":",
                                      "9464",
                                      "host",
                                      "host:",
                                      ":x",
                                      ":65536",
                                      ":-1",
                                      ":+1",
                                      ": 1",
                                      "::1:80",
                                      "[::1]",
                                      "[]:1",
                                      "[::1:1",
                                      "::1]:1",
                                      ":00001x",
                                      ":999999999999999999999"};
    for (size_t i = 0; i < sizeof good / sizeof *good; i++)
        ck_assert_msg(listen_address_valid(good[i]), "%s", good[i]);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        ck_assert_msg(!listen_address_valid(bad[i]), "%s", bad[i]);
}
END_TEST

START_TEST(opens)
{
    int fd = -1;
    char error[512] = "", text[160];
    ck_assert_msg(listen_open("127.0.0.1:0", &fd, error, sizeof error) == 0, "%s", error);
    listen_describe(fd, text, sizeof text);
    ck_assert_ptr_nonnull(strstr(text, "127.0.0.1:"));
    (void)close(fd);
    /* Everywhere, whether or not this machine has IPv6. */
    ck_assert_msg(listen_open(":0", &fd, error, sizeof error) == 0, "%s", error);
    (void)close(fd);
    fd = -1;
    ck_assert_int_eq(listen_open("127.0.0.1:99999", &fd, error, sizeof error), -EINVAL);
    ck_assert_ptr_nonnull(strstr(error, "65535"));
    ck_assert_int_eq(fd, -1);
}
END_TEST

START_TEST(an_address_that_this_machine_lacks_is_passed_over)
{
    struct sockaddr_in here = loopback(0), elsewhere = loopback(0);
    struct addrinfo third = info_of(&here, NULL), second = info_of(&elsewhere, &third), first = info_of(&here, &second);
    int fd = -1;

    elsewhere.sin_addr.s_addr = inet_addr("192.0.2.1"); /* reserved for documentation: nobody's */
    first.ai_family = AF_UNSPEC;                        /* as IPv6 where the kernel has none: no such sockets */
    ck_assert_int_eq(listen_first(&first, true, &fd), 0);
    ck_assert_uint_gt(port_of(fd), 0);
    (void)close(fd);
    second.ai_next = NULL;
    fd = -1;
    ck_assert_int_eq(listen_first(&first, true, &fd), -EADDRNOTAVAIL);
    ck_assert_int_eq(listen_first(NULL, true, &fd), -EAFNOSUPPORT);
    ck_assert_int_eq(fd, -1);
}
END_TEST

START_TEST(a_port_that_is_taken_is_not_passed_over)
{
    struct sockaddr_in any = loopback(0), taken, other = loopback(0);
    struct addrinfo one = info_of(&any, NULL), second = info_of(&other, NULL), first = info_of(&taken, &second);
    int holder = -1, fd = -1;

    ck_assert_int_eq(listen_first(&one, true, &holder), 0);
    taken = loopback(port_of(holder));
    ck_assert_int_eq(listen_first(&first, true, &fd), -EADDRINUSE);
    ck_assert_int_eq(fd, -1);
    (void)close(holder);
}
END_TEST

START_TEST(unix_sockets)
{
    char directory[] = "/tmp/wideep-listen.XXXXXX", address[120], error[300], *path = address + strlen("unix:");
    struct stat status;
    int fd = -1, second = -1;

    ck_assert_ptr_nonnull(mkdtemp(directory));
    (void)snprintf(address, sizeof address, "unix:%s/s?mode=0640", directory);
    ck_assert(listen_address_valid(address));
    ck_assert_int_eq(listen_open(address, &fd, error, sizeof error), 0);
    *strchr(path, '?') = 0;
    ck_assert_int_eq(stat(path, &status), 0);
    ck_assert_uint_eq(status.st_mode & 0777, 0640);
    ck_assert_int_eq(listen_open(address, &second, error, sizeof error), -EADDRINUSE); /* somebody listens there */
    ck_assert_ptr_nonnull(strstr(error, "another process"));
    (void)close(fd); /* as a process does that is killed: the file stays */
    ck_assert_int_eq(listen_open(address, &fd, error, sizeof error), 0);
    ck_assert_int_eq(stat(path, &status), 0);
    ck_assert_uint_eq(status.st_mode & 0777, LISTEN_UNIX_MODE);
    listen_remove(address);
    (void)close(fd);
    ck_assert_int_ne(stat(path, &status), 0);
    fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    ck_assert_int_ge(fd, 0);
    (void)close(fd);
    ck_assert_int_eq(listen_open(address, &second, error, sizeof error), -EEXIST); /* no socket: it is somebody's */
    ck_assert_int_eq(unlink(path), 0);
    ck_assert_int_eq(rmdir(directory), 0);
    ck_assert(!listen_address_valid("unix:"));
    ck_assert(!listen_address_valid("unix:/tmp/s?mode=99"));
    ck_assert(!listen_address_valid("unix:/tmp/s?mode="));
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("listen");
    TCase *tcase = tcase_create("listen");
    tcase_add_test(tcase, addresses);
    tcase_add_test(tcase, opens);
    tcase_add_test(tcase, an_address_that_this_machine_lacks_is_passed_over);
    tcase_add_test(tcase, a_port_that_is_taken_is_not_passed_over);
    tcase_add_test(tcase, unix_sockets);
    suite_add_tcase(suite, tcase);
    return suite_run(suite);
}
