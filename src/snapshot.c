#include "snapshot.h"

#include "rcu.h"

#include <assert.h>
#include <pthread.h>

#define SNAPSHOT_MAGIC 0x536e6170

#ifdef RCU_TSAN
char rcu_grace_period;
#endif

/* Series from which on a page of names is made once for all who ask, and how many such a snapshot makes: so that nobody
 * keeps the threads that serve busy with rendering. */
#define NAMED_SERIES 2048
#define NAMED_MAX    4

struct page {
    char *data; /* NULL: nobody asked yet */
    size_t size;
};

/* A page of some families that is large enough to be kept for the next who asks for the same. */
struct named {
    bool *wanted; /* [families of the layout]; NULL: not in use */
    enum page_format rendering;
    enum page_encoding encoding;
    struct page page;
};

struct snapshot {
    uint32_t magic;
    int references;
    struct layout *layout;
    struct value *values;
    uint64_t time_ns;
    pthread_mutex_t lock; /* guards pages: whoever comes first makes one, the others wait */
    struct page pages[PAGE_RENDERINGS][PAGE_ENCODINGS];
    struct named named[NAMED_MAX]; /* in use from the first on */
};

static struct snapshot *newest;

/* Snapshots that may have pages. A place is no reference: it is given up by who releases the last one, before the
 * memory goes, so whoever holds the lock may look at what is in it. */
static pthread_mutex_t generations_lock = PTHREAD_MUTEX_INITIALIZER;
static struct snapshot *generations[SNAPSHOT_GENERATIONS_MAX];

static pthread_mutex_t durations_lock = PTHREAD_MUTEX_INITIALIZER;
static struct self_durations render_durations[PAGE_RENDERINGS], compress_durations;

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
    (void)pthread_mutex_init(&snapshot->lock, NULL);
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

/* ---- generations -------------------------------------------------------------------------------------------- */

/* A reference to a snapshot that may be on its way out: false when its last one has gone. */
static bool revive(struct snapshot *snapshot)
{
    int references = __atomic_load_n(&snapshot->references, __ATOMIC_RELAXED);

    while (references > 0)
        if (__atomic_compare_exchange_n(&snapshot->references, &references, references + 1, true, __ATOMIC_RELAXED,
                                        __ATOMIC_RELAXED))
            return true;
    return false;
}

/* With the lock held: does it have a place, or get one? */
static bool find_place(struct snapshot *snapshot)
{
    struct snapshot **empty = NULL;

    for (unsigned i = 0; i < SNAPSHOT_GENERATIONS_MAX; i++) {
        if (generations[i] == snapshot)
            return true;
        if (!generations[i])
            empty = &generations[i];
    }
    if (empty)
        *empty = snapshot;
    return empty != NULL;
}

/* With the lock held: the newest that has a place, with a reference; NULL when all are on their way out. */
static struct snapshot *newest_placed(void)
{
    uint64_t before_ns = UINT64_MAX;

    for (;;) {
        struct snapshot *best = NULL;
        for (unsigned i = 0; i < SNAPSHOT_GENERATIONS_MAX; i++)
            if (generations[i] && generations[i]->time_ns < before_ns &&
                (!best || generations[i]->time_ns > best->time_ns))
                best = generations[i];
        if (!best || revive(best))
            return best;
        before_ns = best->time_ns;
    }
}

struct snapshot *snapshot_acquire_page(void)
{
    struct snapshot *snapshot = snapshot_acquire(), *other = NULL;

    if (!snapshot)
        return NULL;
    (void)pthread_mutex_lock(&generations_lock);
    if (!find_place(snapshot))
        other = newest_placed();
    (void)pthread_mutex_unlock(&generations_lock);
    if (!other)
        return snapshot;
    snapshot_release(snapshot);
    return other;
}

static void give_place_up(const struct snapshot *snapshot)
{
    (void)pthread_mutex_lock(&generations_lock);
    for (unsigned i = 0; i < SNAPSHOT_GENERATIONS_MAX; i++)
        if (generations[i] == snapshot)
            generations[i] = NULL;
    (void)pthread_mutex_unlock(&generations_lock);
}

void snapshot_release(struct snapshot *snapshot)
{
    /* Release what this thread did with it; the last one acquires what all others did. */
    if (!snapshot || __atomic_sub_fetch(&snapshot->references, 1, __ATOMIC_ACQ_REL) > 0)
        return;
    give_place_up(snapshot);
    snapshot->magic = 0;
    layout_unref(snapshot->layout);
    free(snapshot->values);
    for (unsigned r = 0; r < PAGE_RENDERINGS; r++)
        for (unsigned e = 0; e < PAGE_ENCODINGS; e++)
            free(snapshot->pages[r][e].data);
    for (unsigned i = 0; i < NAMED_MAX; i++) {
        free(snapshot->named[i].wanted);
        free(snapshot->named[i].page.data);
    }
    (void)pthread_mutex_destroy(&snapshot->lock);
    free(snapshot);
}

/* ---- publication --------------------------------------------------------------------------------------------- */

void snapshot_publish(struct snapshot *snapshot)
{
    struct snapshot *old = rcu_publish(newest, snapshot);

    if (!old)
        return;
    rcu_wait();
    snapshot_release(old);
}

/* ---- pages --------------------------------------------------------------------------------------------------- */

static void observe(struct self_durations *durations, uint64_t begin_ns)
{
    uint64_t took_ns = wideep_i_clock_ns(CLOCK_MONOTONIC) - begin_ns;

    (void)pthread_mutex_lock(&durations_lock);
    self_duration_observe(durations, took_ns);
    (void)pthread_mutex_unlock(&durations_lock);
}

/* With the lock held: renders, or compresses what was rendered, unless that is done. */
static int make_page(struct snapshot *snapshot, enum page_format rendering, enum page_encoding encoding)
{
    struct page *page = &snapshot->pages[rendering][encoding];
    const struct page *plain = &snapshot->pages[rendering][PAGE_IDENTITY];
    uint64_t begin_ns = wideep_i_clock_ns(CLOCK_MONOTONIC);
    int error;

    if (page->data)
        return 0;
    if (encoding == PAGE_GZIP)
        error = page_gzip(plain->data, plain->size, &page->data, &page->size);
    else
        error = exposition_render(snapshot->layout, snapshot->values, rendering, NULL, &page->data, &page->size);
    if (!error)
        observe(encoding == PAGE_GZIP ? &compress_durations : &render_durations[rendering], begin_ns);
    return error;
}

int snapshot_page(struct snapshot *snapshot, enum page_format format, enum page_encoding encoding,
                  const char **ret_data, size_t *ret_size)
{
    const enum page_format rendering = page_rendering(format);
    const struct page *page = &snapshot->pages[rendering][encoding];

    (void)pthread_mutex_lock(&snapshot->lock);
    int error = make_page(snapshot, rendering, PAGE_IDENTITY);
    if (!error)
        error = make_page(snapshot, rendering, encoding);
    if (!error) {
        *ret_data = page->data;
        *ret_size = page->size;
    }
    (void)pthread_mutex_unlock(&snapshot->lock);
    return error;
}

static int make_page_of(const struct snapshot *snapshot, enum page_format format, enum page_encoding encoding,
                        const bool *wanted, struct page *ret)
{
    struct page plain;
    int error = exposition_render(snapshot->layout, snapshot->values, format, wanted, &plain.data, &plain.size);

    if (error || encoding == PAGE_IDENTITY) {
        *ret = plain;
        return error;
    }
    error = page_gzip(plain.data, plain.size, &ret->data, &ret->size);
    free(plain.data);
    return error;
}

/* With the lock held. Takes `wanted` over when it is kept, which is when *wanted becomes NULL. */
static int find_named(struct snapshot *snapshot, enum page_format rendering, enum page_encoding encoding, bool **wanted,
                      const struct page **ret)
{
    const size_t size = snapshot->layout->family_count * sizeof **wanted;

    for (unsigned i = 0; i < NAMED_MAX; i++) {
        struct named *named = &snapshot->named[i];
        if (named->wanted &&
            (named->rendering != rendering || named->encoding != encoding || memcmp(named->wanted, *wanted, size) != 0))
            continue;
        if (!named->wanted) {
            int error = make_page_of(snapshot, rendering, encoding, *wanted, &named->page);
            if (error)
                return error;
            named->wanted = *wanted;
            named->rendering = rendering;
            named->encoding = encoding;
            *wanted = NULL;
        }
        *ret = &named->page;
        return 0;
    }
    return -EBUSY;
}

static int copy_named(struct snapshot *snapshot, enum page_format format, enum page_encoding encoding, bool **wanted,
                      struct page *ret)
{
    const struct page *kept;

    (void)pthread_mutex_lock(&snapshot->lock);
    int error = find_named(snapshot, page_rendering(format), encoding, wanted, &kept);
    (void)pthread_mutex_unlock(&snapshot->lock);
    if (error)
        return error;
    /* It lasts as long as the caller's reference. */
    *ret = (struct page){malloc(kept->size + 1), kept->size};
    if (!ret->data)
        return -ENOMEM;
    memcpy(ret->data, kept->data, kept->size);
    return 0;
}

int snapshot_page_of(struct snapshot *snapshot, enum page_format format, enum page_encoding encoding,
                     const char *const *names, unsigned count, char **ret, size_t *ret_size)
{
    const struct layout *layout = snapshot->layout;
    bool *wanted = calloc(layout->family_count + 1, sizeof *wanted);
    struct page page;
    size_t series = 0;

    if (!wanted)
        return -ENOMEM;
    for (unsigned i = 0; i < count; i++) {
        int family = layout_find(layout, names[i]);
        if (family < 0 || wanted[family])
            continue;
        wanted[family] = true;
        series += layout->families[family].count;
    }
    int error = series < NAMED_SERIES ? make_page_of(snapshot, format, encoding, wanted, &page)
                                      : copy_named(snapshot, format, encoding, &wanted, &page);
    free(wanted);
    if (error)
        return error;
    *ret = page.data;
    *ret_size = page.size;
    return 0;
}

uint64_t snapshot_time_ns(const struct snapshot *snapshot)
{
    return snapshot->time_ns;
}

void snapshot_durations(struct self_durations ret_render[PAGE_RENDERINGS], struct self_durations *ret_compress)
{
    (void)pthread_mutex_lock(&durations_lock);
    memcpy(ret_render, render_durations, sizeof render_durations);
    *ret_compress = compress_durations;
    (void)pthread_mutex_unlock(&durations_lock);
}
