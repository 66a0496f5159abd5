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

#ifdef HAVE_ISAL
/* What ISA-L needs besides the page; too much for a thread's stack. */
struct igzip {
    struct isal_zstream stream;
    uint8_t level[ISAL_DEF_LVL1_DEFAULT];
};

/* False when it cannot: no memory, or more than its 32 bits can count. */
static bool igzip(struct buffer *ret, const char *data, size_t size)
{
    struct igzip *work = size <= UINT32_MAX && ret->capacity <= UINT32_MAX ? malloc(sizeof *work) : NULL;

    if (!work)
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
    bool done = isal_deflate_stateless(&work->stream) == COMP_OK;
    if (done)
        ret->size = work->stream.total_out;
    free(work);
    return done;
}
#else
static bool igzip(struct buffer *ret, const char *data, size_t size)
{
    (void)ret;
    (void)data;
    (void)size;
    return false;
}
#endif

static bool deflate(struct buffer *ret, const char *data, size_t size)
{
    struct libdeflate_compressor *compressor = libdeflate_alloc_compressor(GZIP_LEVEL);

    if (!compressor)
        return false;
    ret->size = libdeflate_gzip_compress(compressor, data, size, ret->data, ret->capacity);
    libdeflate_free_compressor(compressor);
    return ret->size > 0;
}

int page_gzip(struct buffer *ret, const char *data, size_t size)
{
    /* Within this bound neither fails for want of room. */
    if (!buffer_reserve(ret, libdeflate_gzip_compress_bound(NULL, size)))
        return -ENOMEM;
    return igzip(ret, data, size) || deflate(ret, data, size) ? 0 : -ENOMEM;
}
