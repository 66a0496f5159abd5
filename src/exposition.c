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

/* ---- runs --------------------------------------------------------------------------------------------------- */

static bool is_shown(const struct layout_run *run, const struct value *values)
{
    for (uint32_t i = 0; i < run->count; i++)
        if (values[run->first + i].kind != VALUE_ABSENT)
            return true;
    return false;
}

static bool same_values(const struct layout_run *run, const struct value *a, const struct value *b)
{
    uint64_t differ = 0;

    if (a == b)
        return true;
    for (size_t i = run->first; i < run->first + run->count; i++)
        differ |= (a[i].bits ^ b[i].bits) | (uint64_t)(a[i].kind ^ b[i].kind);
    return differ == 0;
}

/* In pieces of fixed size, which compile to a few instructions each. Reads and writes less than LAYOUT_SLACK bytes too
 * many: of the layout's texts, and where the number comes. */
static char *copy_piece(char *to, const char *from, size_t size)
{
    for (size_t i = 0; i < size; i += LAYOUT_SLACK)
        memcpy(to + i, from + i, LAYOUT_SLACK);
    return to + size;
}

static_assert(TEXT_NUMBER_MAX >= LAYOUT_SLACK, "what is copied too much is in the place of the number");

/* Most bytes of its lines. */
static size_t lines_max(const struct layout_run *run)
{
    return run->tails_size + run->count * (run->head_size + TEXT_NUMBER_MAX + 1u);
}

static void add_lines(struct buffer *page, const struct layout *layout, const struct layout_run *run,
                      const struct value *values)
{
    const char *head = layout->texts.data + run->text, *tail = head + run->head_size;

    if (!buffer_reserve(page, lines_max(run)))
        return;
    char *at = page->data + page->size;
    for (size_t i = run->first; i < run->first + run->count; i++) {
        const size_t tail_size = layout->tail_sizes[i];
        if (values[i].kind != VALUE_ABSENT) {
            at = copy_piece(at, head, run->head_size);
            at = copy_piece(at, tail, tail_size);
            at += format_value(at, values[i]);
            *at++ = '\n';
        }
        tail += tail_size;
    }
    page->size = (size_t)(at - page->data);
}

/* ---- pages -------------------------------------------------------------------------------------------------- */

struct rendering {
    struct buffer *page;
    const struct layout *layout;
    const struct value *values;
    enum page_format format;
    const struct exposition_earlier *earlier; /* NULL: none */
    struct exposition_span *spans;            /* NULL: nobody asks */
};

static void add_run(const struct rendering *rendering, size_t r)
{
    const struct layout_run *run = &rendering->layout->runs[r];
    const struct exposition_earlier *earlier = rendering->earlier;
    const size_t begin = rendering->page->size;

    if (earlier && same_values(run, rendering->values, earlier->values))
        buffer_add(rendering->page, earlier->page + earlier->spans[r].begin,
                   earlier->spans[r].end - earlier->spans[r].begin);
    else
        add_lines(rendering->page, rendering->layout, run, rendering->values);
    if (rendering->spans)
        rendering->spans[r] = (struct exposition_span){begin, rendering->page->size};
}

static void add_family(const struct rendering *rendering, const struct layout_family *family)
{
    bool header = false;

    for (size_t r = family->first_run; r < family->first_run + family->run_count; r++) {
        if (!header && is_shown(&rendering->layout->runs[r], rendering->values)) {
            add_header(rendering->page, family->family, rendering->format);
            header = true;
        }
        add_run(rendering, r);
    }
}

/* So that the page need not be moved as it grows. An empty page is a page, too. */
static void reserve(const struct rendering *rendering, const bool *wanted)
{
    const struct layout *layout = rendering->layout;
    size_t size = 1;

    for (size_t f = 0; f < layout->family_count; f++)
        for (size_t r = 0; r < layout->families[f].run_count && (!wanted || wanted[f]); r++)
            size += lines_max(&layout->runs[layout->families[f].first_run + r]);
    (void)buffer_reserve(rendering->page, size);
}

static int render(const struct rendering *rendering, const bool *wanted)
{
    const struct layout *layout = rendering->layout;

    reserve(rendering, wanted);
    for (size_t f = 0; f < layout->family_count; f++) {
        if (wanted && !wanted[f])
            continue;
        if (rendering->format == PAGE_PROTOBUF)
            protobuf_add_family(rendering->page, layout, rendering->values, &layout->families[f]);
        else
            add_family(rendering, &layout->families[f]);
    }
    if (rendering->format == PAGE_OPENMETRICS)
        buffer_text(rendering->page, "# EOF\n");
    return rendering->page->failed ? -ENOMEM : 0;
}

int exposition_render(struct buffer *page, const struct layout *layout, const struct value *values,
                      enum page_format format, const struct exposition_earlier *earlier,
                      struct exposition_span *ret_spans)
{
    const struct rendering rendering = {page, layout, values, page_rendering(format), earlier, ret_spans};

    return render(&rendering, NULL);
}

int exposition_render_some(struct buffer *page, const struct layout *layout, const struct value *values,
                           enum page_format format, const bool *wanted)
{
    const struct rendering rendering = {page, layout, values, page_rendering(format), NULL, NULL};

    return render(&rendering, wanted);
}
