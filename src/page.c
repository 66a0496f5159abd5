#include "page.h"

#include <errno.h>
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

int page_gzip(const char *data, size_t size, char **ret, size_t *ret_size)
{
    struct libdeflate_compressor *compressor = libdeflate_alloc_compressor(GZIP_LEVEL);
    char *out = NULL;
    size_t written = 0;

    if (compressor) {
        size_t bound = libdeflate_gzip_compress_bound(compressor, size);
        out = malloc(bound);
        if (out)
            written = libdeflate_gzip_compress(compressor, data, size, out, bound);
        libdeflate_free_compressor(compressor);
    }
    /* Within its own bound it never fails, and writes a header at least. */
    if (written == 0) {
        free(out);
        return -ENOMEM;
    }
    /* The bound is the size of the page, of which a tenth is used. */
    char *shrunk = realloc(out, written);
    if (shrunk)
        out = shrunk;
    *ret = out;
    *ret_size = written;
    return 0;
}
