#include "exposition.h"

#include "protobuf.h"
#include "text.h"

#include <assert.h>

#define TOTAL "_total"

/* OpenMetrics names a counter without the suffix that its samples have. */
static void add_name(struct buffer *page, const struct family *family, enum page_format format)
{
    size_t length = strlen(family->name);

    if (format == PAGE_OPENMETRICS && family->type == FAMILY_COUNTER) {
        assert(length > sizeof TOTAL && strcmp(family->name + length - (sizeof TOTAL - 1), TOTAL) == 0);
        length -= sizeof TOTAL - 1;
    }
    buffer_add(page, family->name, length);
}

/* Help texts have nothing that either format would escape. */
static void add_header(struct buffer *page, const struct family *family, enum page_format format)
{
    buffer_text(page, "# HELP ");
    add_name(page, family, format);
    buffer_text(page, " ");
    buffer_text(page, family->help);
    buffer_text(page, "\n# TYPE ");
    add_name(page, family, format);
    buffer_text(page, " ");
    buffer_text(page, family_type_name(family->type));
    buffer_text(page, "\n");
}

static size_t format_value(char *ret, struct value value)
{
    switch (value.kind) {
    case VALUE_U64: return text_u64(ret, value.bits);
    case VALUE_SECONDS: return text_seconds(ret, value.bits);
    default: return text_double(ret, wideep_i_bits_double(value.bits));
    }
}

static void add_family(struct buffer *page, const struct layout *layout, const struct value *values,
                       const struct layout_family *family, enum page_format format)
{
    bool header = false;

    for (size_t i = family->first; i < family->first + family->count; i++) {
        const struct layout_series *series = &layout->series[i];
        if (values[i].kind == VALUE_ABSENT)
            continue;
        if (!header)
            add_header(page, family->family, format);
        header = true;
        if (!buffer_reserve(page, series->length + TEXT_NUMBER_MAX + 1))
            return;
        memcpy(page->data + page->size, layout->texts.data + series->offset, series->length);
        page->size += series->length;
        page->size += format_value(page->data + page->size, values[i]);
        page->data[page->size++] = '\n';
    }
}

int exposition_render(const struct layout *layout, const struct value *values, enum page_format format,
                      const bool *wanted, char **ret_page, size_t *ret_size)
{
    const enum page_format rendering = page_rendering(format);
    struct buffer page = {0};

    (void)buffer_reserve(&page, 1); /* an empty page is a page */
    for (size_t f = 0; f < layout->family_count; f++) {
        if (wanted && !wanted[f])
            continue;
        if (rendering == PAGE_PROTOBUF)
            protobuf_add_family(&page, layout, values, &layout->families[f]);
        else
            add_family(&page, layout, values, &layout->families[f], rendering);
    }
    if (rendering == PAGE_OPENMETRICS)
        buffer_text(&page, "# EOF\n");
    if (page.failed) {
        free(page.data);
        return -ENOMEM;
    }
    *ret_page = page.data;
    *ret_size = page.size;
    return 0;
}
