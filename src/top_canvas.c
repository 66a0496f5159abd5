/* top_canvas: a grid of characters that a terminal shows as they are, one or two columns wide. */
#include "top.h"

int top_canvas_new(struct top_canvas *ret, unsigned rows, unsigned columns, bool ascii)
{
    struct top_canvas canvas = {.rows = rows, .columns = columns, .ascii = ascii};

    canvas.cells = malloc(((size_t)rows * columns + 1) * sizeof *canvas.cells);
    if (!canvas.cells)
        return -ENOMEM;
    for (size_t i = 0; i < (size_t)rows * columns; i++)
        canvas.cells[i] = (struct top_cell){L' ', TOP_PLAIN};
    *ret = canvas;
    return 0;
}

void top_canvas_free(struct top_canvas *canvas)
{
    free(canvas->cells);
    *canvas = (struct top_canvas){0};
}

/* The next character of UTF-8 text; what is none counts as U+FFFD. Never reads behind the NUL. */
static uint32_t next_character(const char **text)
{
    const unsigned char *bytes = (const unsigned char *)*text;
    const unsigned more = bytes[0] >= 0xf0 ? 3 : bytes[0] >= 0xe0 ? 2 : bytes[0] >= 0xc0 ? 1 : 0;
    uint32_t c = more ? bytes[0] & (0x3fu >> more) : bytes[0] < 0x80 ? bytes[0] : 0xfffd;
    unsigned i = 1;

    for (; i <= more && (bytes[i] & 0xc0) == 0x80; i++)
        c = c << 6 | (bytes[i] & 0x3fu);
    *text += i;
    return i == more + 1 ? c : 0xfffd;
}

/* Controls and what the locale cannot show have no width; combining and direction marks have 0 and would act on their
 * neighbours; beyond the basic plane, terminals and the C library disagree about widths. */
static unsigned width_of(uint32_t *c)
{
    int width = *c <= 0xffff ? wcwidth((wchar_t)*c) : -1;

    if (width == 1 || width == 2)
        return (unsigned)width;
    *c = '?';
    return 1;
}

unsigned top_put(struct top_canvas *canvas, unsigned row, unsigned column, unsigned width, enum top_style style,
                 const char *text)
{
    if (row >= canvas->rows || column >= canvas->columns)
        return column;
    const unsigned end = width < canvas->columns - column ? column + width : canvas->columns;
    struct top_cell *cells = &canvas->cells[(size_t)row * canvas->columns];
    unsigned last = column; /* where the newest character begins */

    while (*text && column < end) {
        uint32_t c = next_character(&text);
        unsigned needed = width_of(&c);
        if (column + needed > end) {
            cells[column++] = (struct top_cell){L'~', (unsigned char)style};
            return column;
        }
        last = column;
        cells[column++] = (struct top_cell){(wchar_t)c, (unsigned char)style};
        if (needed == 2)
            cells[column++] = (struct top_cell){0, (unsigned char)style};
    }
    for (unsigned i = last; *text && i < end; i++)
        cells[i] = (struct top_cell){i == last ? L'~' : L' ', (unsigned char)style};
    return column;
}

/* Writes a character of the basic plane. */
static void write_character(uint32_t c, FILE *out)
{
    if (c >= 0x800) {
        (void)fputc((int)(0xe0 | c >> 12), out);
        (void)fputc((int)(0x80 | (c >> 6 & 0x3f)), out);
    } else if (c >= 0x80) {
        (void)fputc((int)(0xc0 | c >> 6), out);
    }
    (void)fputc((int)(c < 0x80 ? c : 0x80 | (c & 0x3f)), out);
}

static unsigned length_of(const struct top_canvas *canvas, unsigned row)
{
    unsigned length = canvas->columns;

    while (length > 0 && canvas->cells[(size_t)row * canvas->columns + length - 1].c == L' ')
        length--;
    return length;
}

int top_canvas_print(const struct top_canvas *canvas, FILE *out)
{
    unsigned rows = canvas->rows;

    while (rows > 0 && length_of(canvas, rows - 1) == 0)
        rows--;
    for (unsigned row = 0; row < rows; row++) {
        const unsigned length = length_of(canvas, row);
        for (unsigned i = 0; i < length; i++) {
            uint32_t c = (uint32_t)canvas->cells[(size_t)row * canvas->columns + i].c;
            if (c != 0)
                write_character(c, out);
        }
        (void)fputc('\n', out);
    }
    return fflush(out) == 0 && !ferror(out) ? 0 : -EIO;
}
