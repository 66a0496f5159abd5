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

/* So many buffers of pages that have gone are kept for each encoding. */
#define BUFFERS_KEPT 2

struct page {
    bool made; /* false: nobody asked yet */
    struct buffer bytes;
};

/* A page of some families that is large enough to be kept for the next who asks for the same. */
struct named {
    bool *wanted; /* [families of the layout]; NULL: not in use */
    enum page_format rendering;
    enum page_encoding encoding;
    struct buffer page;
};

struct snapshot {
    uint32_t magic;
    int references;
    struct layout *layout;
    struct value *values;
    uint64_t time_ns;
    pthread_mutex_t lock; /* guards pages: whoever comes first makes one, the others wait */
    struct page pages[PAGE_RENDERINGS][PAGE_ENCODINGS];
    struct exposition_span *spans[PAGE_RENDERINGS]; /* of the plain pages; NULL where they have none */
    struct named named[NAMED_MAX];                  /* in use from the first on */
};

static struct snapshot *newest;

static pthread_mutex_t kept_lock = PTHREAD_MUTEX_INITIALIZER; /* guards the two below; held for moments */

/* Snapshots that may have pages. A place is no reference: it is given up by who releases the last one, before the
 * memory goes, so whoever holds the lock may look at what is in it. */
static struct snapshot *generations[SNAPSHOT_GENERATIONS_MAX];

/* What is left of snapshots that have gone, for those to come. Its snapshots have no references, but one to their
 * layout. */
static struct {
    const struct layout *layout; /* of the newest snapshot, not to be followed: nothing of another is kept */
    struct snapshot *earlier;    /* the newest that had a text page, which it still has */
    struct snapshot *spare;      /* without pages */
    struct buffer buffers[PAGE_ENCODINGS][BUFFERS_KEPT];
} kept;

static pthread_mutex_t durations_lock = PTHREAD_MUTEX_INITIALIZER;
static struct self_durations render_durations[PAGE_RENDERINGS], compress_durations;

/* ---- what is kept ------------------------------------------------------------------------------------------- */

/* NULL is fine. */
static void snapshot_free(struct snapshot *snapshot)
{
    if (!snapshot)
        return;
    layout_unref(snapshot->layout);
    free(snapshot->values);
    for (unsigned r = 0; r < PAGE_RENDERINGS; r++) {
        for (unsigned e = 0; e < PAGE_ENCODINGS; e++)
            free(snapshot->pages[r][e].bytes.data);
        free(snapshot->spans[r]);
    }
    (void)pthread_mutex_destroy(&snapshot->lock);
    free(snapshot);
}

/* With the lock held. */
static void keep_buffer(struct page *page, enum page_encoding encoding)
{
    page->made = false;
    page->bytes.size = 0;
    for (unsigned i = 0; i < BUFFERS_KEPT; i++)
        if (!kept.buffers[encoding][i].data) {
            kept.buffers[encoding][i] = page->bytes;
            page->bytes = (struct buffer){0};
            return;
        }
    free(page->bytes.data);
    page->bytes = (struct buffer){0};
}

static struct buffer take_buffer(enum page_encoding encoding)
{
    struct buffer buffer = {0};

    (void)pthread_mutex_lock(&kept_lock);
    for (unsigned i = 0; i < BUFFERS_KEPT && !buffer.data; i++) {
        buffer = kept.buffers[encoding][i];
        kept.buffers[encoding][i] = (struct buffer){0};
    }
    (void)pthread_mutex_unlock(&kept_lock);
    return buffer;
}

/* The one of the two text formats that lines can be copied from, or NULL. */
static struct page *text_page(struct snapshot *snapshot)
{
    return snapshot->pages[PAGE_TEXT][PAGE_IDENTITY].made          ? &snapshot->pages[PAGE_TEXT][PAGE_IDENTITY]
           : snapshot->pages[PAGE_OPENMETRICS][PAGE_IDENTITY].made ? &snapshot->pages[PAGE_OPENMETRICS][PAGE_IDENTITY]
                                                                   : NULL;
}

/* With the lock held: keeps the buffers of all pages but one (NULL: all). */
static void keep_buffers(struct snapshot *snapshot, const struct page *but)
{
    for (unsigned r = 0; r < PAGE_RENDERINGS; r++)
        for (unsigned e = 0; e < PAGE_ENCODINGS; e++)
            if (snapshot->pages[r][e].made && &snapshot->pages[r][e] != but)
                keep_buffer(&snapshot->pages[r][e], (enum page_encoding)e);
}

/* With the lock held: keeps what is of use of one without references. */
static void keep_spare(struct snapshot *snapshot)
{
    keep_buffers(snapshot, NULL);
    if (kept.spare)
        snapshot_free(snapshot);
    else
        kept.spare = snapshot;
}

/* With the lock held. */
static bool has_empty_place(void)
{
    for (unsigned i = 0; i < SNAPSHOT_GENERATIONS_MAX; i++)
        if (!generations[i])
            return true;
    return false;
}

static void keep(struct snapshot *snapshot)
{
    (void)pthread_mutex_lock(&kept_lock);
    if (snapshot->layout != kept.layout) {
        snapshot_free(snapshot);
    } else if (text_page(snapshot) && has_empty_place() &&
               (!kept.earlier || kept.earlier->time_ns < snapshot->time_ns)) {
        if (kept.earlier)
            keep_spare(kept.earlier);
        keep_buffers(snapshot, text_page(snapshot));
        kept.earlier = snapshot;
    } else {
        keep_spare(snapshot);
    }
    (void)pthread_mutex_unlock(&kept_lock);
}

/* With the lock held: from here on, what is of that layout is kept. */
static void keep_layout(const struct layout *layout)
{
    if (layout == kept.layout)
        return;
    snapshot_free(kept.earlier);
    snapshot_free(kept.spare);
    for (unsigned e = 0; e < PAGE_ENCODINGS; e++)
        for (unsigned i = 0; i < BUFFERS_KEPT; i++)
            free(kept.buffers[e][i].data);
    memset(&kept, 0, sizeof kept);
    kept.layout = layout;
}

/* ---- references --------------------------------------------------------------------------------------------- */

static struct snapshot *snapshot_alloc(struct layout *layout)
{
    struct snapshot *snapshot = calloc(1, sizeof *snapshot);

    if (!snapshot)
        return NULL;
    (void)pthread_mutex_init(&snapshot->lock, NULL);
    snapshot->layout = layout_ref(layout);
    snapshot->values = malloc((layout_series(layout) + 1) * sizeof *snapshot->values);
    bool complete = snapshot->values;
    for (unsigned r = 0; r < PAGE_RENDERINGS; r++)
        if (r != PAGE_PROTOBUF) {
            snapshot->spans[r] = malloc((layout->run_count + 1) * sizeof *snapshot->spans[r]);
            complete = complete && snapshot->spans[r];
        }
    if (complete)
        return snapshot;
    snapshot_free(snapshot);
    return NULL;
}

struct snapshot *snapshot_new(struct layout *layout, uint64_t time_ns, struct value **ret_values)
{
    (void)pthread_mutex_lock(&kept_lock);
    keep_layout(layout);
    struct snapshot *snapshot = kept.spare;
    kept.spare = NULL;
    (void)pthread_mutex_unlock(&kept_lock);
    if (!snapshot)
        snapshot = snapshot_alloc(layout);
    if (!snapshot)
        return NULL;
    snapshot->magic = SNAPSHOT_MAGIC;
    snapshot->references = 1;
    snapshot->time_ns = time_ns;
    *ret_values = snapshot->values;
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
    unsigned left = 0;

    for (unsigned i = 0; i < SNAPSHOT_GENERATIONS_MAX; i++) {
        if (generations[i] == snapshot)
            return true;
        if (!generations[i]) {
            empty = &generations[i];
            left++;
        }
    }
    if (!empty)
        return false;
    if (left == 1 && kept.earlier) {
        keep_spare(kept.earlier);
        kept.earlier = NULL;
    }
    *empty = snapshot;
    return true;
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
    (void)pthread_mutex_lock(&kept_lock);
    if (!find_place(snapshot))
        other = newest_placed();
    (void)pthread_mutex_unlock(&kept_lock);
    if (!other)
        return snapshot;
    snapshot_release(snapshot);
    return other;
}

static void give_place_up(const struct snapshot *snapshot)
{
    (void)pthread_mutex_lock(&kept_lock);
    for (unsigned i = 0; i < SNAPSHOT_GENERATIONS_MAX; i++)
        if (generations[i] == snapshot)
            generations[i] = NULL;
    (void)pthread_mutex_unlock(&kept_lock);
}

void snapshot_release(struct snapshot *snapshot)
{
    /* Release what this thread did with it; the last one acquires what all others did. */
    if (!snapshot || __atomic_sub_fetch(&snapshot->references, 1, __ATOMIC_ACQ_REL) > 0)
        return;
    give_place_up(snapshot);
    snapshot->magic = 0;
    for (unsigned i = 0; i < NAMED_MAX; i++) {
        free(snapshot->named[i].wanted);
        free(snapshot->named[i].page.data);
    }
    memset(snapshot->named, 0, sizeof snapshot->named);
    keep(snapshot);
}

/* ---- publication --------------------------------------------------------------------------------------------- */

void snapshot_publish(struct snapshot *snapshot)
{
    struct snapshot *old = rcu_publish(newest, snapshot);

    if (old) {
        rcu_wait();
        snapshot_release(old);
    }
    if (!snapshot) {
        (void)pthread_mutex_lock(&kept_lock);
        keep_layout(NULL);
        (void)pthread_mutex_unlock(&kept_lock);
    }
}

/* ---- pages --------------------------------------------------------------------------------------------------- */

static void observe(struct self_durations *durations, uint64_t begin_ns)
{
    uint64_t took_ns = wideep_i_clock_ns(CLOCK_MONOTONIC) - begin_ns;

    (void)pthread_mutex_lock(&durations_lock);
    self_duration_observe(durations, took_ns);
    (void)pthread_mutex_unlock(&durations_lock);
}

/* The newest earlier page, for the caller to copy from and to keep() again; NULL when there is none of the layout. */
static struct snapshot *take_earlier(const struct layout *layout)
{
    struct snapshot *earlier = NULL;

    (void)pthread_mutex_lock(&kept_lock);
    if (kept.earlier && kept.earlier->layout == layout) {
        earlier = kept.earlier;
        kept.earlier = NULL;
    }
    (void)pthread_mutex_unlock(&kept_lock);
    return earlier;
}

/* With the snapshot's lock held. */
static int render_page(struct snapshot *snapshot, enum page_format rendering, struct buffer *ret)
{
    struct snapshot *other = NULL, *from = NULL;
    struct exposition_earlier earlier;

    if (rendering != PAGE_PROTOBUF && text_page(snapshot))
        from = snapshot; /* the other text format's lines are the same */
    else if (rendering != PAGE_PROTOBUF)
        from = other = take_earlier(snapshot->layout);
    if (from) {
        enum page_format format =
            text_page(from) == &from->pages[PAGE_TEXT][PAGE_IDENTITY] ? PAGE_TEXT : PAGE_OPENMETRICS;
        earlier = (struct exposition_earlier){text_page(from)->bytes.data, from->spans[format], from->values};
    }
    int error = exposition_render(ret, snapshot->layout, snapshot->values, rendering, from ? &earlier : NULL,
                                  snapshot->spans[rendering]);
    if (other)
        keep(other);
    return error;
}

/* With the snapshot's lock held: renders, or compresses what was rendered, unless that is done. */
static int make_page(struct snapshot *snapshot, enum page_format rendering, enum page_encoding encoding)
{
    struct page *page = &snapshot->pages[rendering][encoding];
    const struct buffer *plain = &snapshot->pages[rendering][PAGE_IDENTITY].bytes;
    uint64_t begin_ns = wideep_i_clock_ns(CLOCK_MONOTONIC);

    if (page->made)
        return 0;
    struct buffer bytes = take_buffer(encoding);
    int error =
        encoding == PAGE_GZIP ? page_gzip(&bytes, plain->data, plain->size) : render_page(snapshot, rendering, &bytes);
    if (error) {
        free(bytes.data);
        return error;
    }
    *page = (struct page){true, bytes};
    observe(encoding == PAGE_GZIP ? &compress_durations : &render_durations[rendering], begin_ns);
    return 0;
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
        *ret_data = page->bytes.data;
        *ret_size = page->bytes.size;
    }
    (void)pthread_mutex_unlock(&snapshot->lock);
    return error;
}

static int make_page_of(const struct snapshot *snapshot, enum page_format format, enum page_encoding encoding,
                        const bool *wanted, struct buffer *ret)
{
    struct buffer plain = {0}, packed = {0};
    int error = exposition_render_some(&plain, snapshot->layout, snapshot->values, format, wanted);

    if (!error && encoding == PAGE_GZIP) {
        error = page_gzip(&packed, plain.data, plain.size);
        free(plain.data);
        plain = packed;
    }
    if (error) {
        free(plain.data);
        return error;
    }
    *ret = plain;
    return 0;
}

/* With the lock held. Takes `wanted` over when it is kept, which is when *wanted becomes NULL. */
static int find_named(struct snapshot *snapshot, enum page_format rendering, enum page_encoding encoding, bool **wanted,
                      const struct buffer **ret)
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

/* Which of the layout's families the names are of, to be freed; NULL without memory. */
static bool *select_families(const struct layout *layout, const char *const *names, unsigned count, size_t *ret_series)
{
    bool *wanted = calloc(layout->family_count + 1, sizeof *wanted);

    *ret_series = 0;
    for (unsigned i = 0; wanted && i < count; i++) {
        int family = layout_find(layout, names[i]);
        if (family < 0 || wanted[family])
            continue;
        wanted[family] = true;
        *ret_series += layout->families[family].count;
    }
    return wanted;
}

int snapshot_small_page(struct snapshot *snapshot, enum page_format format, enum page_encoding encoding,
                        const char *const *names, unsigned count, char **ret, size_t *ret_size)
{
    struct buffer page = {0};
    size_t series;
    bool *wanted = select_families(snapshot->layout, names, count, &series);
    int error = !wanted                  ? -ENOMEM
                : series >= NAMED_SERIES ? -E2BIG
                                         : make_page_of(snapshot, format, encoding, wanted, &page);

    free(wanted);
    if (error)
        return error;
    *ret = page.data;
    *ret_size = page.size;
    return 0;
}

int snapshot_large_page(struct snapshot *snapshot, enum page_format format, enum page_encoding encoding,
                        const char *const *names, unsigned count, const char **ret_data, size_t *ret_size)
{
    const struct buffer *page = NULL;
    size_t series;
    bool *wanted = select_families(snapshot->layout, names, count, &series);

    if (!wanted)
        return -ENOMEM;
    (void)pthread_mutex_lock(&snapshot->lock);
    int error = find_named(snapshot, page_rendering(format), encoding, &wanted, &page);
    (void)pthread_mutex_unlock(&snapshot->lock);
    free(wanted);
    if (error)
        return error;
    *ret_data = page->data;
    *ret_size = page->size;
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
