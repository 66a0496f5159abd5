#include "snapshot.h"

#include "rcu.h"

#include <assert.h>
#include <pthread.h>

#define SNAPSHOT_MAGIC 0x536e6170

#ifdef RCU_TSAN
char rcu_grace_period;
#endif

struct snapshot {
    uint32_t magic;
    int references;
    struct layout *layout;
    struct value *values;
    uint64_t time_ns;
    pthread_mutex_t render; /* guards page: whoever comes first renders, the others wait */
    char *page;
    size_t page_size;
};

static struct snapshot *newest;

static pthread_mutex_t durations_lock = PTHREAD_MUTEX_INITIALIZER;
static struct self_durations durations;

struct snapshot *snapshot_new(struct layout *layout, struct value *values, uint64_t time_ns)
{
    struct snapshot *snapshot = calloc(1, sizeof *snapshot);

    if (!snapshot)
        return NULL;
    snapshot->magic = SNAPSHOT_MAGIC;
    snapshot->references = 1;
    snapshot->layout = layout;
    snapshot->values = values;
    snapshot->time_ns = time_ns;
    (void)pthread_mutex_init(&snapshot->render, NULL);
    return snapshot;
}

struct snapshot *snapshot_acquire(void)
{
    rcu_read_begin();
    struct snapshot *snapshot = rcu_read_pointer(newest);
    /* The publisher gives its own reference up only after a grace period, so there is one to add to. */
    if (snapshot)
        (void)__atomic_add_fetch(&snapshot->references, 1, __ATOMIC_RELAXED);
    rcu_read_end();
    assert(!snapshot || snapshot->magic == SNAPSHOT_MAGIC);
    return snapshot;
}

void snapshot_release(struct snapshot *snapshot)
{
    /* Release what this thread did with it; the last one acquires what all others did. */
    if (!snapshot || __atomic_sub_fetch(&snapshot->references, 1, __ATOMIC_ACQ_REL) > 0)
        return;
    snapshot->magic = 0;
    layout_unref(snapshot->layout);
    free(snapshot->values);
    free(snapshot->page);
    (void)pthread_mutex_destroy(&snapshot->render);
    free(snapshot);
}

void snapshot_publish(struct snapshot *snapshot)
{
    struct snapshot *old = rcu_publish(newest, snapshot);

    if (!old)
        return;
    rcu_wait();
    snapshot_release(old);
}

int snapshot_page(struct snapshot *snapshot, const char **ret_data, size_t *ret_size)
{
    int error = 0;

    (void)pthread_mutex_lock(&snapshot->render);
    if (!snapshot->page) {
        uint64_t begin_ns = wideep_i_clock_ns(CLOCK_MONOTONIC);
        error = exposition_render(snapshot->layout, snapshot->values, &snapshot->page, &snapshot->page_size);
        uint64_t took_ns = wideep_i_clock_ns(CLOCK_MONOTONIC) - begin_ns;
        (void)pthread_mutex_lock(&durations_lock);
        self_duration_observe(&durations, took_ns);
        (void)pthread_mutex_unlock(&durations_lock);
    }
    if (!error) {
        *ret_data = snapshot->page;
        *ret_size = snapshot->page_size;
    }
    (void)pthread_mutex_unlock(&snapshot->render);
    return error;
}

uint64_t snapshot_time_ns(const struct snapshot *snapshot)
{
    return snapshot->time_ns;
}

void snapshot_render_durations(struct self_durations *ret)
{
    (void)pthread_mutex_lock(&durations_lock);
    *ret = durations;
    (void)pthread_mutex_unlock(&durations_lock);
}
