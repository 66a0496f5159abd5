/* Lists of layers. The requests are tested in tests/process/test_admin.py. */
#include "admin.h"
#include "suite.h"

/* Parses and describes. */
static const char *round_trip(const char *text)
{
    static char described[2048];
    struct layer_set layers;
    ck_assert_int_eq(admin_parse_layers(text, &layers), 0);
    admin_describe_layers(&layers, described, sizeof described);
    return described;
}

START_TEST(good_layers)
{
    ck_assert_str_eq(round_trip("3"), "3");
    ck_assert_str_eq(round_trip("3,7-9"), "3,7-9");
    ck_assert_str_eq(round_trip("9,7,8,3,3"), "3,7-9");
    ck_assert_str_eq(round_trip("0-1,1-2,511"), "0-2,511");
    ck_assert_str_eq(round_trip("63-64"), "63-64");
    ck_assert_str_eq(round_trip("0-511"), "all");
    ck_assert_str_eq(round_trip("007"), "7");
}
END_TEST

START_TEST(bad_layers)
{
    static const char *const bad[] = {"",    ",",   "3,",  ",3",   "x",     "3-",         "-3",
                                      "9-7", "512", "3 4", "1--2", "1-2-3", "4294967299", "99999999999999999999999"};
    struct layer_set layers = {{1}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        ck_assert_msg(admin_parse_layers(bad[i], &layers) == -EINVAL, "'%s'", bad[i]);
        ck_assert_uint_eq(layers.words[0], 1);
    }
}
END_TEST

START_TEST(described_short)
{
    struct layer_set layers;
    char described[8];
    ck_assert_int_eq(admin_parse_layers("1,3,5,7,9", &layers), 0);
    admin_describe_layers(&layers, described, sizeof described);
    ck_assert_str_eq(described, "1,3,5,7");
    const struct layer_set none = {{0}};
    admin_describe_layers(&none, described, sizeof described);
    ck_assert_str_eq(described, "");
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("admin");
    TCase *tcase = tcase_create("admin");
    tcase_add_test(tcase, good_layers);
    tcase_add_test(tcase, bad_layers);
    tcase_add_test(tcase, described_short);
    suite_add_tcase(suite, tcase);
    return suite_run(suite);
}
