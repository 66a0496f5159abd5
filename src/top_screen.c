/* top_screen: the only part that knows curses. */
#include "top.h"

#include <sys/ioctl.h>

#include <curses.h>
#include <term.h>
#undef columns /* capabilities, as macros */
#undef lines

static SCREEN *screen;
static attr_t attributes[TOP_STYLES];

static void choose_attributes(void)
{
    const bool colours = has_colors() && start_color() == OK && use_default_colors() == OK;
    static const short pairs[TOP_STYLES] = {[TOP_GOOD] = COLOR_CYAN, [TOP_WARN] = COLOR_YELLOW, [TOP_BAD] = COLOR_RED};
    static const attr_t without[TOP_STYLES] = {
        [TOP_DIM] = A_DIM, [TOP_BOLD] = A_BOLD, [TOP_WARN] = A_BOLD, [TOP_BAD] = A_REVERSE, [TOP_SELECTED] = A_REVERSE};

    for (short style = 0; style < TOP_STYLES; style++) {
        attributes[style] = without[style];
        if (colours && pairs[style] != 0 && init_pair(style, pairs[style], -1) == OK)
            attributes[style] = COLOR_PAIR(style) | (style == TOP_BAD ? A_BOLD : 0);
    }
}

int top_screen_begin(void)
{
    int found;

    if (!isatty(STDIN_FILENO) || !isatty(STDOUT_FILENO))
        return -ENOTTY;
    /* newterm() alone would write to the terminal and exit where it is not known. */
    if (setupterm(NULL, STDOUT_FILENO, &found) != OK)
        return -ENODEV;
    const bool capable = cursor_address != NULL;
    (void)del_curterm(cur_term);
    if (!capable)
        return -ENODEV;
    screen = newterm(NULL, stdout, stdin);
    if (!screen)
        return -ENODEV;
    (void)cbreak();
    (void)noecho();
    (void)nonl();
    (void)keypad(stdscr, TRUE);
    (void)nodelay(stdscr, TRUE);
    (void)set_escdelay(50);
    (void)curs_set(0);
    choose_attributes();
    return 0;
}

void top_screen_end(void)
{
    if (!screen)
        return;
    (void)endwin();
    delscreen(screen);
    screen = NULL;
}

void top_screen_size(unsigned *ret_rows, unsigned *ret_columns)
{
    *ret_rows = (unsigned)LINES;
    *ret_columns = (unsigned)COLS;
}

void top_screen_resize(void)
{
    struct winsize size;

    if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_row > 0 && size.ws_col > 0)
        (void)resizeterm(size.ws_row, size.ws_col);
}

void top_screen_redraw(void)
{
    (void)clearok(curscr, TRUE);
}

void top_screen_show(const struct top_canvas *canvas)
{
    (void)erase();
    for (unsigned row = 0; row < canvas->rows; row++)
        for (unsigned column = 0; column < canvas->columns; column++) {
            const struct top_cell *cell = &canvas->cells[(size_t)row * canvas->columns + column];
            const wchar_t text[2] = {cell->c, 0};
            cchar_t out;
            if (cell->c == 0 || (cell->c == L' ' && cell->style != TOP_SELECTED))
                continue;
            if (setcchar(&out, text, attributes[cell->style] & ~A_COLOR, (short)PAIR_NUMBER(attributes[cell->style]),
                         NULL) == OK)
                (void)mvadd_wch((int)row, (int)column, &out);
        }
    (void)refresh();
}

bool top_screen_key(uint32_t *ret)
{
    static const struct {
        int code;
        enum top_key key;
    } keys[] = {{KEY_UP, TOP_KEY_UP},
                {KEY_DOWN, TOP_KEY_DOWN},
                {KEY_LEFT, TOP_KEY_LEFT},
                {KEY_RIGHT, TOP_KEY_RIGHT},
                {KEY_ENTER, TOP_KEY_ENTER}};
    int code = getch();

    if (code == ERR)
        return false;
    *ret = code < KEY_MIN ? (uint32_t)code : UINT32_MAX;
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++)
        if (keys[i].code == code)
            *ret = keys[i].key;
    return true;
}
