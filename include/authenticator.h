/*
 * authenticator: a thread that checks passwords, so that those that serve do not.
 *
 * A password that has not been seen before costs a bcrypt computation: a tenth of a second in which a serving thread
 * would answer nobody, for anyone who guesses in a loop. So such requests wait here, a few at most for each name, and
 * fewer of them from one client: who guesses at a name keeps neither others nor, from another address, its user out.
 */
#ifndef WIDEEP_AUTHENTICATOR_H
#define WIDEEP_AUTHENTICATOR_H

#include "web_config.h"

/* At once for one name, and for all names together that no user has; of those, from one client; and in all. */
#define AUTHENTICATOR_TASKS_OF_NAME_MAX   8
#define AUTHENTICATOR_TASKS_OF_CLIENT_MAX 2
#define AUTHENTICATOR_TASKS_MAX           64

enum auth_verdict {
    AUTH_NONE, /* not asked */
    AUTH_GOOD,
    AUTH_WRONG,
    AUTH_DROPPED, /* not checked: the owner or the authenticator ends */
};

/* Whose tasks can be dropped together. Zeroed by the owner; the rest is the authenticator's. */
struct auth_owner {
    bool dropped;
};

/* Belongs to the asker, and stays where it is until `done` is called, which may end it. */
struct auth_task {
    const struct web_config *config;
    const char *user, *password;
    uint64_t peer; /* stands for the client's address, or for the network that is surely one client's */
    int which;     /* web_config_user(); the asker leaves it */
    struct auth_owner *owner;
    void (*done)(struct auth_task *task, enum auth_verdict verdict); /* once, in another thread */
    struct auth_task *next;
};

struct authenticator;

/* Returns 0 or a negative errno. */
int authenticator_start(struct authenticator **ret);

/* Drops all tasks. NULL is fine. */
void authenticator_stop(struct authenticator *authenticator);

/* Returns false when too many wait already, for this name, for it from this client, or in all, or the owner is dropped.
 * Any thread. */
bool authenticator_ask(struct authenticator *authenticator, struct auth_task *task);

/* When it returns, no task of that owner is left, and there will be none. Any thread but the authenticator's. */
void authenticator_drop(struct authenticator *authenticator, struct auth_owner *owner);

#endif
