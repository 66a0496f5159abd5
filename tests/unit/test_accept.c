/* Content negotiation. */
#include "accept.h"
#include "suite.h"

#include <stdlib.h>
#include <string.h>

#define PROTO "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited"
#define OM    "application/openmetrics-text"

static const struct {
    const char *accept;
    enum page_format expected;
} formats[] = {
    {NULL, PAGE_TEXT},
    {"", PAGE_TEXT},
    {"*/*", PAGE_TEXT},
    {"*", PAGE_TEXT},
    /* Prometheus 3, without and with native histograms, and with other escapings */
    {OM ";version=1.0.0;escaping=allow-utf-8;q=0.6," OM ";version=0.0.1;q=0.5,text/plain;version=1.0.0;"
        "escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
     PAGE_OPENMETRICS},
    {PROTO ";q=0.7," OM ";version=1.0.0;escaping=allow-utf-8;q=0.6," OM ";version=0.0.1;q=0.5,text/plain;version=1.0.0;"
           "escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
     PAGE_PROTOBUF},
    {OM ";version=1.0.0;escaping=underscores;q=0.6,text/plain;version=0.0.4;q=0.3", PAGE_OPENMETRICS},
    {OM ";version=1.0.0;escaping=values;q=0.2,text/plain;version=0.0.4;escaping=dots;q=0.3", PAGE_TEXT},
    {"text/plain;version=1.0.0;escaping=allow-utf-8;q=0.6,text/plain;version=0.0.4;q=0.5,*/*;q=0.1", PAGE_TEXT},
    /* 2.33 to 2.48, with and without native histograms */
    {OM ";version=1.0.0," OM ";version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1", PAGE_OPENMETRICS},
    {PROTO "," OM ";version=1.0.0;q=0.8," OM ";version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
     PAGE_PROTOBUF},
    /* before 2.33 */
    {OM "; version=0.0.1,text/plain;version=0.0.4;q=0.5,*/*;q=0.1", PAGE_OPENMETRICS_0_0_1},
    /* equal qualities, as one release had them */
    {PROTO "," OM ";version=1.0.0;q=1.0," OM ";version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5", PAGE_PROTOBUF},
    {OM ";version=1.0.0," PROTO, PAGE_OPENMETRICS},
    {"text/plain," OM, PAGE_TEXT},
    {OM ",text/plain", PAGE_OPENMETRICS},
    /* versions alone */
    {OM ";version=0.0.1", PAGE_OPENMETRICS_0_0_1},
    {OM ";version=1.0.0", PAGE_OPENMETRICS},
    {OM, PAGE_OPENMETRICS},
    {OM ";version=2.0.0", PAGE_TEXT},
    {"text/plain;version=1.0.0", PAGE_TEXT},
    {"text/plain;version=0.0.4;charset=iso-8859-1," OM ";q=0.1", PAGE_OPENMETRICS},
    {"TEXT/Plain;Version=0.0.4," OM ";q=0.1", PAGE_TEXT},
    {"Application/OpenMetrics-Text; Version=\"1.0.0\" ; Q=0.9 , text/plain;q=0.8", PAGE_OPENMETRICS},
    /* protobuf only by its message and framing */
    {"application/vnd.google.protobuf", PAGE_TEXT},
    {"application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily", PAGE_TEXT},
    {"application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=text", PAGE_TEXT},
    {"application/vnd.google.protobuf;proto=other.Message;encoding=delimited," OM ";q=0.1", PAGE_OPENMETRICS},
    {"application/vnd.google.protobuf; encoding=delimited; proto=io.prometheus.client.MetricFamily", PAGE_PROTOBUF},
    /* qualities and specificity */
    {"text/plain;q=0.1," OM ";q=0.2", PAGE_OPENMETRICS},
    {"*/*;q=0.9," OM ";q=0.2", PAGE_TEXT},
    {"*/*;q=0.1," OM ";q=0.2", PAGE_OPENMETRICS},
    {"application/*", PAGE_OPENMETRICS},
    {"application/*,text/*", PAGE_TEXT},
    {"application/*;q=0.5,text/*;q=0.4", PAGE_OPENMETRICS},
    {"text/plain;q=0.1,text/*;q=1," OM ";q=0.5", PAGE_OPENMETRICS},
    {"text/plain;q=1,text/plain;version=0.0.4;q=0.1," OM ";q=0.5", PAGE_OPENMETRICS},
    {"*/*;q=1,text/*;q=0.1", PAGE_OPENMETRICS},
    {OM ",*/*", PAGE_OPENMETRICS},
    {"*/*," OM, PAGE_OPENMETRICS},
    {"text/plain;q=0.001," OM ";q=0.0019", PAGE_TEXT},
    {"text/plain;q=0.001," OM ";q=0.002", PAGE_OPENMETRICS},
    /* zero excludes */
    {"text/plain;q=0,*/*", PAGE_OPENMETRICS},
    {"text/*;q=0," OM ";q=0,*/*;q=0.1", PAGE_PROTOBUF},
    {OM ";q=0,application/*;q=1", PAGE_PROTOBUF},
    {OM ";version=1.0.0;q=0," OM ";q=0.1", PAGE_TEXT},
    {"*/*;q=0", PAGE_TEXT},
    {"text/plain;q=0", PAGE_TEXT},
    {"text/plain;q=0.000," OM ";q=0.001", PAGE_OPENMETRICS},
    /* what browsers and old libraries send */
    {"text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8", PAGE_TEXT},
    {"text/html, image/gif, image/jpeg, *; q=.2, */*; q=.2", PAGE_TEXT},
    {"application/json", PAGE_TEXT},
    /* garbage */
    {",,, ,;;;,=,;q=1," OM, PAGE_OPENMETRICS},
    {OM ";q=," OM ";q=2,text/plain;q=0.1", PAGE_TEXT},
    {OM ";q=1.001,text/plain;q=0.1", PAGE_TEXT},
    {OM ";q=-1,text/plain;q=0.1", PAGE_TEXT},
    {OM ";q=nan,text/plain;q=0.1", PAGE_TEXT},
    {OM ";q=0.5x,text/plain;q=0.1", PAGE_TEXT},
    {OM ";q=.,text/plain;q=0.1", PAGE_TEXT},
    {"a/b;x=\"," OM ",\";q=1,text/plain;q=0.5", PAGE_TEXT},
    {"a/b;x=\"\\\"," OM "\",text/plain;q=0.5", PAGE_TEXT},
    {"a/b;x=\"unended," OM, PAGE_TEXT},
    {"\xff\xfe/\x80;q=1,\t" OM "\t;\tversion\t=\t1.0.0\t", PAGE_OPENMETRICS},
    {"/,//,*/,/*,text/,/plain," OM ";q=0.1", PAGE_OPENMETRICS},
    {"\"", PAGE_TEXT},
    {"\\", PAGE_TEXT},
};

START_TEST(formats_by_table)
{
    for (size_t i = 0; i < sizeof formats / sizeof *formats; i++)
        ck_assert_msg(accept_format(formats[i].accept) == formats[i].expected, "%s gives %d",
                      formats[i].accept ? formats[i].accept : "(absent)", (int)accept_format(formats[i].accept));
}
END_TEST

static const struct {
    const char *accept;
    enum page_encoding expected;
} encodings[] = {
    {NULL, PAGE_IDENTITY},
    {"", PAGE_IDENTITY},
    {"gzip", PAGE_GZIP},
    {"GZIP", PAGE_GZIP},
    {"x-gzip", PAGE_GZIP},
    {"gzip, deflate, br, zstd", PAGE_GZIP},
    {"deflate, br", PAGE_IDENTITY},
    {"zstd", PAGE_IDENTITY},
    {"identity", PAGE_IDENTITY},
    {"*", PAGE_GZIP},
    {"*;q=0", PAGE_IDENTITY},
    {"gzip;q=0", PAGE_IDENTITY},
    {"gzip;q=0.000", PAGE_IDENTITY},
    {"gzip;q=0,*", PAGE_IDENTITY},
    {"gzip;q=0,*;q=0", PAGE_IDENTITY},
    {"gzip;q=0.001", PAGE_GZIP},
    {"gzip,*;q=0", PAGE_GZIP},
    {"identity;q=0", PAGE_GZIP},
    {"identity;q=0,gzip", PAGE_GZIP},
    {"identity;q=0,gzip;q=0", PAGE_IDENTITY},
    {"identity;q=0,br", PAGE_GZIP},
    {"identity,gzip", PAGE_GZIP},
    {"identity;q=1,gzip;q=0.5", PAGE_IDENTITY},
    {"identity;q=0.5,gzip;q=1", PAGE_GZIP},
    {"gzip;q=1.0, identity; q=0.5, *;q=0", PAGE_GZIP},
    {"compress;q=0.5, gzip;q=1.0", PAGE_GZIP},
    {"gzip;q=x", PAGE_IDENTITY},
    {"gzipped", PAGE_IDENTITY},
    {"gzi", PAGE_IDENTITY},
    {",;,gzip", PAGE_GZIP},
};

START_TEST(encodings_by_table)
{
    for (size_t i = 0; i < sizeof encodings / sizeof *encodings; i++)
        ck_assert_msg(accept_encoding(encodings[i].accept) == encodings[i].expected, "%s",
                      encodings[i].accept ? encodings[i].accept : "(absent)");
}
END_TEST

static char header[8192];

static void put(size_t at, const char *text)
{
    memcpy(header + at, text, strlen(text) + 1);
}

/* What lies behind the limits is not read. */
START_TEST(number_and_length_are_capped)
{
    size_t length = 0;

    for (unsigned i = 0; i < 63; i++, length += 4)
        put(length, "a/b,");
    put(length, OM);
    ck_assert_int_eq(accept_format(header), PAGE_OPENMETRICS);
    put(length, "a/b," OM);
    ck_assert_int_eq(accept_format(header), PAGE_TEXT);

    memset(header, ' ', sizeof header);
    put(4096 - strlen(OM), OM);
    ck_assert_int_eq(accept_format(header), PAGE_OPENMETRICS);
    memset(header, ' ', sizeof header);
    put(4097 - strlen(OM), OM);
    ck_assert_int_eq(accept_format(header), PAGE_TEXT);
    memset(header, ' ', sizeof header);
    put(5000, "gzip");
    ck_assert_int_eq(accept_encoding(header), PAGE_IDENTITY);
}
END_TEST

/* Any bytes: the answer is a format, and sanitizers see reads past the end. */
START_TEST(random_headers)
{
    static const char alphabet[] = ",;=\"\\/*q. 01tgzip\t\xff" OM PROTO "text/plain";
    uint64_t state = 42;

    for (unsigned round = 0; round < 20000; round++) {
        size_t length = round % 97;
        char *noise = malloc(length + 1);
        ck_assert_ptr_nonnull(noise);
        for (size_t i = 0; i < length; i++) {
            state = state * UINT64_C(6364136223846793005) + 1442695040888963407;
            noise[i] = alphabet[(state >> 33) % (sizeof alphabet - 1)];
        }
        noise[length] = 0;
        ck_assert_uint_lt(accept_format(noise), PAGE_FORMATS);
        ck_assert_uint_lt(accept_encoding(noise), PAGE_ENCODINGS);
        free(noise);
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("accept");
    TCase *tcase = tcase_create("accept");
    tcase_add_test(tcase, formats_by_table);
    tcase_add_test(tcase, encodings_by_table);
    tcase_add_test(tcase, number_and_length_are_capped);
    tcase_add_test(tcase, random_headers);
    suite_add_tcase(suite, tcase);
    return suite_run(suite);
}
