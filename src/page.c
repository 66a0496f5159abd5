#include "page.h"

#include <errno.h>
#ifdef HAVE_ISAL
#include <isa-l/igzip_lib.h>
#endif
#include <libdeflate.h>
#include <stdlib.h>

/* Of a text page of 248 KB (8 ranks, 58 layers), level 3 leaves 7.5 % in 0.57 ms, which is no slower than the levels
 * below; level 6 leaves 6.9 % in 0.92 ms, level 9 6.4 % in 6.3 ms. */
#define GZIP_LEVEL 3

const char *const page_rendering_names[PAGE_RENDERINGS] = {"text", "openmetrics", "protobuf"};

enum page_format page_rendering(enum page_format format)
{
    return format == PAGE_OPENMETRICS_0_0_1 ? PAGE_OPENMETRICS : format;
}

const char *page_content_type(enum page_format format)
{
    static const char *const types[PAGE_FORMATS] = {
        [PAGE_TEXT] = "text/plain; version=0.0.4; charset=utf-8; escaping=underscores",
        [PAGE_OPENMETRICS] = "application/openmetrics-text; version=1.0.0; charset=utf-8; escaping=underscores",
        [PAGE_PROTOBUF] = ("application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; "
                           "encoding=delimited; escaping=underscores"),
        [PAGE_OPENMETRICS_0_0_1] = "application/openmetrics-text; version=0.0.1; charset=utf-8; escaping=underscores",
    };
    return types[format];
}

const char *page_content_encoding(enum page_encoding encoding)
{
    return encoding == PAGE_GZIP ? "gzip" : NULL;
}

/* ---- compression -------------------------------------------------------------------------------------------- */

/* What compressing needs besides the page; too much for a thread's stack. */
struct work {
    struct libdeflate_compressor *compressor; /* NULL: not needed yet */
#ifdef HAVE_ISAL
    struct isal_zstream stream;
    uint8_t level[ISAL_DEF_LVL1_DEFAULT];
#endif
};

/* Whoever has compressed leaves it to the next, who is seldom in a hurry: a second one at the same time makes another.
 */
static struct work *spare;

static struct work *take_work(void)
{
    /* Pairs with the release in keep_work(). */
    struct work *work = __atomic_exchange_n(&spare, NULL, __ATOMIC_ACQUIRE);

    if (work)
        return work;
    work = malloc(sizeof *work);
    if (work)
        work->compressor = NULL;
    return work;
}

static void keep_work(struct work *work)
{
    work = __atomic_exchange_n(&spare, work, __ATOMIC_ACQ_REL);
    if (!work)
        return;
    libdeflate_free_compressor(work->compressor);
    free(work);
}

#ifdef HAVE_ISAL
/* False when it cannot: more than its 32 bits can count. */
static bool igzip(struct work *work, struct buffer *ret, const char *data, size_t size)
{
    if (size > UINT32_MAX || ret->capacity > UINT32_MAX)
        return false;
    isal_deflate_stateless_init(&work->stream);
    work->stream.level = 1;
    work->stream.level_buf = work->level;
    work->stream.level_buf_size = sizeof work->level;
    work->stream.gzip_flag = IGZIP_GZIP;
    work->stream.end_of_stream = 1;
    work->stream.next_in = (uint8_t *)(uintptr_t)data; /* only read */
    work->stream.avail_in = (uint32_t)size;
    work->stream.next_out = (uint8_t *)ret->data;
    work->stream.avail_out = (uint32_t)ret->capacity;
    if (isal_deflate_stateless(&work->stream) != COMP_OK)
        return false;
    ret->size = work->stream.total_out;
    return true;
}
#else
static bool igzip(struct work *work, struct buffer *ret, const char *data, size_t size)
{
    (void)work;
    (void)ret;
    (void)data;
    (void)size;
    return false;
}
#endif

static bool deflate(struct work *work, struct buffer *ret, const char *data, size_t size)
{
    if (!work->compressor)
        work->compressor = libdeflate_alloc_compressor(GZIP_LEVEL);
    if (!work->compressor)
        return false;
    ret->size = libdeflate_gzip_compress(work->compressor, data, size, ret->data, ret->capacity);
    return ret->size > 0;
}

int page_gzip(struct buffer *ret, const char *data, size_t size)
{
    /* Within this bound neither fails for want of room. */
    if (!buffer_reserve(ret, libdeflate_gzip_compress_bound(NULL, size)))
        return -ENOMEM;
    struct work *work = take_work();
    if (!work)
        return -ENOMEM;
    bool done = igzip(work, ret, data, size) || deflate(work, ret, data, size);
    keep_work(work);
    return done ? 0 : -ENOMEM;
}
