#include "connections.h"

#include <limits.h>
#include <linux/sockios.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#define S UINT64_C(1000000000)
/* A kept connection is looked at this often: whether its client reads and whether it has begun to send. */
#define LOOK_NS (2 * S)
/* No honest client needs longer than this between connecting and its request, so one that does goes first. */
#define DAWDLE_NS (1 * S)

enum state { RECEIVING, ANSWERING, RESTING, CUT, STATES };

struct connection {
    struct connection *previous, *next;
    uint64_t since_ns; /* in this state */
    uint64_t look_ns;  /* RESTING: when to look at it next */
    uint64_t received; /* RESTING: the mark of its receipt when it began to */
    const bool *retired;
    int fd;
    bool is_unix;
    enum state state;
};

/* Each state has a list in order of since_ns, the oldest first. */
struct list {
    struct connection *first, *last;
};

struct connections {
    struct connections_config config;
    pthread_mutex_t lock; /* guards all below, and each connection's fields */
    struct list lists[STATES];
    unsigned count, cut_count; /* all, and those of them that are CUT */
};

static uint64_t open_now, cuts[HTTP_CUTS];

/* ---- lists -------------------------------------------------------------------------------------------------- */

static void unlink_connection(struct connections *connections, struct connection *connection)
{
    struct list *list = &connections->lists[connection->state];

    *(connection->previous ? &connection->previous->next : &list->first) = connection->next;
    *(connection->next ? &connection->next->previous : &list->last) = connection->previous;
    connection->previous = connection->next = NULL;
}

/* Clocks are read before the lock is taken, so times can be a little out of order; the order of the list decides. */
static void append(struct connections *connections, struct connection *connection, enum state state, uint64_t now_ns)
{
    struct list *list = &connections->lists[state];

    connection->state = state;
    connection->since_ns = now_ns;
    connection->previous = list->last;
    *(list->last ? &list->last->next : &list->first) = connection;
    list->last = connection;
}

/* Out of CUT there is no way but to be removed. */
static void move(struct connections *connections, struct connection *connection, enum state state, uint64_t now_ns)
{
    if (connection->state == CUT)
        return;
    unlink_connection(connections, connection);
    append(connections, connection, state, now_ns);
}

/* ---- what the kernel knows ---------------------------------------------------------------------------------- */

struct receipt {
    uint64_t mark; /* a number that changes when bytes arrive or are read */
    bool ended;    /* the client will send no more than has arrived */
};

/* As netinet/tcp.h has it, which does not go with the kernel's own header. */
enum { STATE_CLOSE_WAIT = 8 };

static struct receipt tcp_receipt(int fd)
{
    struct tcp_info info = {0};
    socklen_t size = sizeof info;

    (void)getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &size);
    return (struct receipt){info.tcpi_bytes_received, info.tcpi_state == STATE_CLOSE_WAIT};
}

/* Unix sockets do not count, but take from the offset of peeking, once it is set, what is read without peeking
 * (socket(7), SO_PEEK_OFF), and nobody peeks here. */
static struct receipt unix_receipt(int fd)
{
    struct pollfd polled = {.fd = fd, .events = POLLRDHUP};
    int offset = 0;
    socklen_t size = sizeof offset;
    uint64_t mark = getsockopt(fd, SOL_SOCKET, SO_PEEK_OFF, &offset, &size) == 0 ? (uint64_t)offset : 0;

    return (struct receipt){mark, poll(&polled, 1, 0) > 0};
}

static struct receipt receipt_of(const struct connection *connection)
{
    return connection->is_unix ? unix_receipt(connection->fd) : tcp_receipt(connection->fd);
}

/* The offset ends at 0, so it is wound up before each rest. */
static void wind_up(const struct connection *connection)
{
    static const int offset = INT_MAX;

    if (connection->is_unix)
        (void)setsockopt(connection->fd, SOL_SOCKET, SO_PEEK_OFF, &offset, sizeof offset);
}

static bool is_unix(int fd)
{
    int domain = 0;
    socklen_t size = sizeof domain;

    return getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &size) == 0 && domain == AF_UNIX;
}

static bool has_unsent(int fd)
{
    int bytes = 0;

    return ioctl(fd, SIOCOUTQ, &bytes) == 0 && bytes > 0;
}

/* The library does not see the end of a client's half that came along with its request, and would wait for more. What
 * was received before can still be read. */
static void pass_end_on(const struct connection *connection, const struct receipt *receipt)
{
    if (receipt->ended)
        (void)shutdown(connection->fd, SHUT_RD);
}

static void cut(struct connections *connections, struct connection *connection, enum http_cut cause, uint64_t now_ns)
{
    const struct linger reset = {.l_onoff = 1};

    (void)setsockopt(connection->fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
    (void)shutdown(connection->fd, SHUT_RDWR);
    move(connections, connection, CUT, now_ns);
    connections->cut_count++;
    (void)__atomic_add_fetch(&cuts[cause], 1, __ATOMIC_RELAXED);
}

/* ---- a connection's life ------------------------------------------------------------------------------------ */

struct connections *connections_new(const struct connections_config *config)
{
    struct connections *connections = calloc(1, sizeof *connections);

    if (!connections)
        return NULL;
    connections->config = *config;
    (void)pthread_mutex_init(&connections->lock, NULL);
    return connections;
}

void connections_free(struct connections *connections)
{
    if (!connections)
        return;
    (void)pthread_mutex_destroy(&connections->lock);
    free(connections);
}

struct connection *connections_add(struct connections *connections, int fd, const bool *retired, uint64_t now_ns)
{
    struct connection *connection = calloc(1, sizeof *connection);

    if (!connection)
        return NULL;
    connection->fd = fd;
    connection->is_unix = is_unix(fd);
    connection->retired = retired;
    (void)pthread_mutex_lock(&connections->lock);
    append(connections, connection, RECEIVING, now_ns);
    connections->count++;
    (void)pthread_mutex_unlock(&connections->lock);
    (void)__atomic_add_fetch(&open_now, 1, __ATOMIC_RELAXED);
    return connection;
}

void connections_remove(struct connections *connections, struct connection *connection)
{
    if (!connection)
        return;
    (void)pthread_mutex_lock(&connections->lock);
    unlink_connection(connections, connection);
    connections->count--;
    connections->cut_count -= connection->state == CUT;
    (void)pthread_mutex_unlock(&connections->lock);
    (void)__atomic_sub_fetch(&open_now, 1, __ATOMIC_RELAXED);
    free(connection);
}

void connection_answers(struct connections *connections, struct connection *connection, uint64_t now_ns)
{
    (void)pthread_mutex_lock(&connections->lock);
    move(connections, connection, ANSWERING, now_ns);
    (void)pthread_mutex_unlock(&connections->lock);
}

void connection_rests(struct connections *connections, struct connection *connection, uint64_t now_ns)
{
    /* The kernel is asked without the lock, which all threads want for each request: the descriptor is open as long as
     * the thread that serves it is in here. */
    wind_up(connection);
    const struct receipt receipt = receipt_of(connection);

    (void)pthread_mutex_lock(&connections->lock);
    connection->look_ns = now_ns + LOOK_NS;
    connection->received = receipt.mark;
    move(connections, connection, RESTING, now_ns);
    (void)pthread_mutex_unlock(&connections->lock);
    pass_end_on(connection, &receipt);
}

/* ---- deadlines ---------------------------------------------------------------------------------------------- */

static bool is_past(const struct connection *connection, uint64_t limit_ns, uint64_t now_ns)
{
    return now_ns > connection->since_ns && now_ns - connection->since_ns >= limit_ns;
}

static void reap_list(struct connections *connections, enum state state, uint64_t limit_ns, enum http_cut cause,
                      uint64_t now_ns)
{
    struct connection *connection;

    while ((connection = connections->lists[state].first) && is_past(connection, limit_ns, now_ns))
        cut(connections, connection, cause, now_ns);
}

/* To the library a response is done with when the kernel has it, and a request is none before it is whole. */
static void look(struct connections *connections, struct connection *connection, uint64_t now_ns)
{
    const bool unsent = has_unsent(connection->fd);
    const struct receipt receipt = receipt_of(connection);

    connection->look_ns = now_ns + LOOK_NS;
    pass_end_on(connection, &receipt);
    if (is_past(connection, connections->config.response_ns, now_ns) && unsent)
        cut(connections, connection, HTTP_CUT_READER, now_ns);
    else if (receipt.mark != connection->received)
        move(connections, connection, RECEIVING, now_ns);
    else if (__atomic_load_n(connection->retired, __ATOMIC_RELAXED) && !unsent)
        (void)shutdown(connection->fd, SHUT_RD); /* to the library its client's end: it closes it in order */
}

void connections_reap(struct connections *connections, uint64_t now_ns)
{
    const struct connections_config *config = &connections->config;

    (void)pthread_mutex_lock(&connections->lock);
    reap_list(connections, RECEIVING, config->request_ns, HTTP_CUT_SENDER, now_ns);
    reap_list(connections, ANSWERING, config->response_ns, HTTP_CUT_READER, now_ns);
    reap_list(connections, RESTING, config->idle_ns, HTTP_CUT_IDLE, now_ns);
    for (struct connection *connection = connections->lists[RESTING].first, *next; connection; connection = next) {
        next = connection->next;
        if (now_ns >= connection->look_ns)
            look(connections, connection, now_ns);
    }
    (void)pthread_mutex_unlock(&connections->lock);
}

/* ---- room --------------------------------------------------------------------------------------------------- */

/* With the lock held. A reader goes when there is nobody else, if it has had its second: else clients that do not read
 * could keep all others out. Returns false when there is none to go. */
static bool evict_one(struct connections *connections, uint64_t now_ns)
{
    struct connection *receiving = connections->lists[RECEIVING].first;
    struct connection *resting = connections->lists[RESTING].first;
    struct connection *answering = connections->lists[ANSWERING].first;
    struct connection *chosen = receiving && (!resting || is_past(receiving, DAWDLE_NS, now_ns)) ? receiving : resting;

    if (!chosen && answering && is_past(answering, DAWDLE_NS, now_ns))
        chosen = answering;
    if (chosen)
        cut(connections, chosen, HTTP_CUT_EVICTED, now_ns);
    return chosen != NULL;
}

bool connections_has_room(struct connections *connections)
{
    (void)pthread_mutex_lock(&connections->lock);
    const bool room = connections->count < connections->config.most;
    (void)pthread_mutex_unlock(&connections->lock);
    return room;
}

void connections_make_room(struct connections *connections, uint64_t now_ns)
{
    const unsigned most = connections->config.most;

    (void)pthread_mutex_lock(&connections->lock);
    /* Those that are cut are as good as gone. There can be several too many, since the library begins with a
     * connection some time after it was accepted. */
    while (connections->count - connections->cut_count >= most - most / 8 && evict_one(connections, now_ns))
        ;
    (void)pthread_mutex_unlock(&connections->lock);
}

void connections_evict(struct connections *connections, uint64_t now_ns)
{
    (void)pthread_mutex_lock(&connections->lock);
    (void)evict_one(connections, now_ns);
    (void)pthread_mutex_unlock(&connections->lock);
}

uint64_t connections_open(void)
{
    return __atomic_load_n(&open_now, __ATOMIC_RELAXED);
}

void connections_cut_counts(uint64_t ret[HTTP_CUTS])
{
    for (unsigned i = 0; i < HTTP_CUTS; i++)
        ret[i] = __atomic_load_n(&cuts[i], __ATOMIC_RELAXED);
}
