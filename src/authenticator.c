#include "authenticator.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

struct authenticator {
    pthread_t thread;
    pthread_mutex_t lock;  /* guards all below */
    pthread_cond_t change; /* a task came, one was done, or it ends */
    struct auth_task *first, **last;
    unsigned waiting;
    const struct auth_owner *busy_owner; /* of the task that is being checked; NULL: none is */
    bool stop;
};

/* With the lock held. */
static struct auth_task *take(struct authenticator *authenticator, struct auth_task **link)
{
    struct auth_task *task = *link;

    *link = task->next;
    if (!*link)
        authenticator->last = link;
    authenticator->waiting--;
    return task;
}

static void *authenticator_main(void *argument)
{
    struct authenticator *authenticator = argument;

    (void)pthread_mutex_lock(&authenticator->lock);
    for (;;) {
        while (!authenticator->first && !authenticator->stop)
            (void)pthread_cond_wait(&authenticator->change, &authenticator->lock);
        if (authenticator->stop)
            break;
        struct auth_task *task = take(authenticator, &authenticator->first);
        authenticator->busy_owner = task->owner;
        (void)pthread_mutex_unlock(&authenticator->lock);
        bool good = web_config_authenticate(task->config, task->user, task->password);
        task->done(task, good ? AUTH_GOOD : AUTH_WRONG);
        (void)pthread_mutex_lock(&authenticator->lock);
        authenticator->busy_owner = NULL;
        (void)pthread_cond_broadcast(&authenticator->change);
    }
    (void)pthread_mutex_unlock(&authenticator->lock);
    return NULL;
}

int authenticator_start(struct authenticator **ret)
{
    struct authenticator *authenticator = calloc(1, sizeof *authenticator);

    if (!authenticator)
        return -ENOMEM;
    authenticator->last = &authenticator->first;
    (void)pthread_mutex_init(&authenticator->lock, NULL);
    (void)pthread_cond_init(&authenticator->change, NULL);
    int error = -pthread_create(&authenticator->thread, NULL, authenticator_main, authenticator);
    if (error) {
        (void)pthread_cond_destroy(&authenticator->change);
        (void)pthread_mutex_destroy(&authenticator->lock);
        free(authenticator);
        return error;
    }
    *ret = authenticator;
    return 0;
}

/* With the lock held. */
static bool has_room_for(const struct authenticator *authenticator, const struct auth_task *asked)
{
    unsigned of_name = 0, of_client = 0;

    for (const struct auth_task *task = authenticator->first; task; task = task->next) {
        of_name += task->which == asked->which;
        of_client += task->which == asked->which && task->peer == asked->peer;
    }
    return authenticator->waiting < AUTHENTICATOR_TASKS_MAX && of_name < AUTHENTICATOR_TASKS_OF_NAME_MAX &&
           of_client < AUTHENTICATOR_TASKS_OF_CLIENT_MAX;
}

bool authenticator_ask(struct authenticator *authenticator, struct auth_task *task)
{
    task->which = web_config_user(task->config, task->user);
    (void)pthread_mutex_lock(&authenticator->lock);
    bool room = !task->owner->dropped && has_room_for(authenticator, task);
    if (room) {
        task->next = NULL;
        *authenticator->last = task;
        authenticator->last = &task->next;
        authenticator->waiting++;
        (void)pthread_cond_broadcast(&authenticator->change);
    }
    (void)pthread_mutex_unlock(&authenticator->lock);
    return room;
}

/* A list of the waiting tasks of an owner, of all for NULL. With the lock held. */
static struct auth_task *take_all(struct authenticator *authenticator, const struct auth_owner *owner)
{
    struct auth_task *taken = NULL, **link = &authenticator->first;

    while (*link) {
        if (owner && (*link)->owner != owner) {
            link = &(*link)->next;
            continue;
        }
        struct auth_task *task = take(authenticator, link);
        task->next = taken;
        taken = task;
    }
    return taken;
}

static void drop_list(struct auth_task *tasks)
{
    while (tasks) {
        struct auth_task *task = tasks;
        tasks = task->next;
        task->done(task, AUTH_DROPPED);
    }
}

void authenticator_drop(struct authenticator *authenticator, struct auth_owner *owner)
{
    (void)pthread_mutex_lock(&authenticator->lock);
    owner->dropped = true;
    struct auth_task *tasks = take_all(authenticator, owner);
    while (authenticator->busy_owner == owner)
        (void)pthread_cond_wait(&authenticator->change, &authenticator->lock);
    (void)pthread_mutex_unlock(&authenticator->lock);
    drop_list(tasks);
}

void authenticator_stop(struct authenticator *authenticator)
{
    if (!authenticator)
        return;
    (void)pthread_mutex_lock(&authenticator->lock);
    authenticator->stop = true;
    (void)pthread_cond_broadcast(&authenticator->change);
    (void)pthread_mutex_unlock(&authenticator->lock);
    (void)pthread_join(authenticator->thread, NULL);
    drop_list(take_all(authenticator, NULL));
    (void)pthread_cond_destroy(&authenticator->change);
    (void)pthread_mutex_destroy(&authenticator->lock);
    free(authenticator);
}
