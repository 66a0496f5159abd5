/* Log lines, read back from a pipe in place of stderr. */
#include "log.h"
#include "suite.h"

#include <ctype.h>
#include <string.h>
#include <unistd.h>

static char line[2 * LOG_LINE_MAX];

static void setup(void)
{
    capture_stderr();
}

static void teardown(void)
{
    release_stderr();
    log_setup(LOG_INFO, LOG_LOGFMT);
}

/* What was written since; "" for nothing. Every line ends in a newline, which is taken off. */
static const char *written(void)
{
    ssize_t n = read(captured[0], line, sizeof line - 1);
    if (n <= 0)
        return "";
    ck_assert_int_le(n, LOG_LINE_MAX);
    ck_assert_int_eq(line[n - 1], '\n');
    line[n - 1] = 0;
    ck_assert_ptr_null(strchr(line, '\n'));
    return line;
}

/* Is it one JSON object of strings alone? */
static int is_json(const char *c)
{
    if (*c++ != '{')
        return 0;
    for (unsigned strings = 0;; strings++) {
        if (*c++ != '"')
            return 0;
        for (; *c != '"'; c++) {
            if ((unsigned char)*c < 0x20)
                return 0;
            if (*c != '\\')
                continue;
            if (!strchr("\"\\/bfnrtu", *++c))
                return 0;
            for (unsigned i = 0; c[0] == 'u' && i < 4; i++)
                if (!isxdigit((unsigned char)c[1 + i]))
                    return 0;
        }
        c++;
        if (strings % 2 == 0 ? *c != ':' : *c != ',')
            return strings % 2 == 1 && c[0] == '}' && c[1] == 0;
        c++;
    }
}

START_TEST(logfmt)
{
    log_setup(LOG_INFO, LOG_LOGFMT);
    log_info("hello", "a", "plain", "b", "two words", "c", "x=\"y\\", "d", "", "e", "new\nline\x01", "f",
             "\xC3\xBC\xFF", "g", (const char *)NULL, NULL);
    const char *text = written();
    ck_assert_int_eq(strncmp(text, "ts=2", 4), 0);
    ck_assert_int_eq(text[strcspn(text, "Z") + 1], ' ');
    ck_assert_str_eq(strchr(text, ' '), " level=info msg=hello a=plain b=\"two words\" c=\"x=\\\"y\\\\\" d=\"\" "
                                        "e=\"new\\nline\\u0001\" f=\"\xC3\xBC\xEF\xBF\xBD\" g=\"\"");
    log_warn("two words", NULL);
    ck_assert_ptr_nonnull(strstr(written(), " level=warn msg=\"two words\""));
}
END_TEST

START_TEST(json)
{
    log_setup(LOG_DEBUG, LOG_JSON);
    log_debug("hello", "a", "quote\" slash\\ nl\n tab\t del\x7f bad\xC0", NULL);
    const char *text = written();
    ck_assert(is_json(text));
    ck_assert_int_eq(strncmp(text, "{\"ts\":\"2", 8), 0);
    ck_assert_ptr_nonnull(strstr(text, "\",\"level\":\"debug\",\"msg\":\"hello\",\"a\":\"quote\\\" slash\\\\ nl\\n "
                                       "tab\\u0009 del\\u007f bad\xEF\xBF\xBD\"}"));
}
END_TEST

START_TEST(levels)
{
    static const enum log_level all[] = {LOG_DEBUG, LOG_INFO, LOG_WARN, LOG_ERROR};
    for (unsigned least = 0; least < 4; least++) {
        log_setup(all[least], LOG_LOGFMT);
        for (unsigned level = 0; level < 4; level++) {
            log_write(all[level], "m", NULL);
            ck_assert_int_eq(*written() != 0, level >= least);
        }
    }
}
END_TEST

/* Whatever the length of the texts: one line, within the limit, well-formed, and it says so where it was cut. */
START_TEST(cut)
{
    static char text[3 * LOG_LINE_MAX];
    static const char *const fillers[] = {"a", "\"", "\n", "\x01", "\xFF"};
    for (unsigned filler = 0; filler < sizeof fillers / sizeof *fillers; filler++)
        for (size_t length = 1; length < sizeof text; length += length < 900 || length > 1400 ? 37 : 1) {
            memset(text, fillers[filler][0], length);
            text[length] = 0;
            log_setup(LOG_INFO, LOG_JSON);
            log_info("long", "a", text, "b", text, "c", text, "d", text, NULL);
            const char *got = written();
            ck_assert_msg(is_json(got), "filler %u length %zu", filler, length);
            if (length >= 1100)
                ck_assert_msg(strstr(got, "[cut]\"}") || strstr(got, ",\"cut\":\"1\"}"), "filler %u length %zu", filler,
                              length);
            log_setup(LOG_INFO, LOG_LOGFMT);
            log_info("long", "a", text, "b", text, "c", text, "d", text, NULL);
            ck_assert(*written() != 0);
        }
}
END_TEST

/* A text that fits the line but not a value says so at its own end, and what follows is there. */
START_TEST(long_value)
{
    static char text[2001];
    memset(text, 'a', sizeof text - 1);
    log_setup(LOG_INFO, LOG_LOGFMT);
    log_info("long", "a", text, "b", "last", NULL);
    ck_assert_ptr_nonnull(strstr(written(), "aaa...[cut]\" b=last"));
    log_setup(LOG_INFO, LOG_JSON);
    log_info("long", "a", text, "b", "last", NULL);
    const char *got = written();
    ck_assert(is_json(got));
    ck_assert_ptr_nonnull(strstr(got, "aaa...[cut]\",\"b\":\"last\"}"));
    text[1365] = 0; /* the longest that is whole */
    log_info("long", "a", text, NULL);
    ck_assert_ptr_null(strstr(written(), "cut"));
}
END_TEST

START_TEST(nobody_reads)
{
    char junk[4096] = {0};
    while (write(captured[1], junk, sizeof junk) > 0)
        ;
    log_info("lost", NULL); /* a full pipe: neither blocks nor fails */
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("log");
    TCase *tcase = tcase_create("log");
    tcase_set_timeout(tcase, 60);
    tcase_add_checked_fixture(tcase, setup, teardown);
    tcase_add_test(tcase, logfmt);
    tcase_add_test(tcase, json);
    tcase_add_test(tcase, levels);
    tcase_add_test(tcase, cut);
    tcase_add_test(tcase, long_value);
    tcase_add_test(tcase, nobody_reads);
    suite_add_tcase(suite, tcase);
    return suite_run(suite);
}
