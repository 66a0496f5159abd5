#include "web_config.h"

#include "log.h"
#include "nearest.h"
#include "text.h"
#include "web_auth.h"
#include "web_tls.h"
#include "web_yaml.h"

#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <gnutls/crypto.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

#define COUNT(array) (sizeof(array) / sizeof *(array))

/* Of the file and of each that it names. */
#define FILE_SIZE_MAX ((size_t)1 << 20)

#define RATE_BURST_MAX 1000000u
/* From this cost on, one computation takes seconds. */
#define COST_WARN 15

/* What is given as a file or in place. */
enum part { PART_CERT, PART_KEY, PART_CLIENT_CA, PARTS };

struct loader {
    const char *path;
    char *error;
    size_t error_size;
    yaml_document_t *document;
    struct web_config *config;
    struct web_tls_rules rules;
    gnutls_hash_hd_t hash;      /* over all that is read, for the fingerprint */
    const char *names[PARTS];   /* of the key that gave it; NULL: not given */
    size_t lines[PARTS];        /* where */
    size_t tls_line, auth_line; /* of tls_server_config, and of client_auth_type; 0: not given */
    size_t sans_line, rules_line;
    bool rate_interval_given;
};

struct key_row;
typedef int read_value(struct loader *, const struct key_row *, const yaml_node_t *);

struct key_row {
    const char *name;
    read_value *read;
    unsigned which; /* what of its kind: an enum part, a protocol bound */
};

/* The message; without a place in the file when `line` is 0. */
static void explain(struct loader *loader, size_t line, const char *format, ...) __attribute__((format(printf, 3, 4)));

static void explain(struct loader *loader, size_t line, const char *format, ...)
{
    va_list arguments;
    int length = line ? snprintf(loader->error, loader->error_size, "%.400s:%zu: ", loader->path, line)
                      : snprintf(loader->error, loader->error_size, "%.400s: ", loader->path);

    if (length < 0 || (size_t)length >= loader->error_size)
        return;
    va_start(arguments, format);
    (void)vsnprintf(loader->error + length, loader->error_size - (size_t)length, format, arguments);
    va_end(arguments);
}

/* A macro, so that who reads the code, analyzers among them, sees that the value is never 0. */
#define fail(loader, result, ...) (explain(loader, __VA_ARGS__), (result))

static int fail_memory(struct loader *loader)
{
    return fail(loader, -ENOMEM, 0, "not enough memory");
}

static void free_secret(char *text)
{
    if (text)
        explicit_bzero(text, strlen(text));
    free(text);
}

/* ---- files -------------------------------------------------------------------------------------------------- */

static const char *file_advice(int error)
{
    switch (-error) {
    case ENOENT:
    case ENOTDIR: return "check the path; a relative one begins at the directory of the file that names it";
    case EACCES: return "let the user that the exporter runs as read it";
    case EFBIG: return "1 MiB is the most that is read";
    case EINVAL: return "give a regular file of text";
    default: return "check the path";
    }
}

static const char *file_problem(int error)
{
    return error == -EINVAL ? "it is no regular file, or holds NUL bytes" : strerror(-error);
}

static int read_whole(int fd, size_t size, char **ret)
{
    char *text = malloc(size + 1);
    size_t done = 0;
    ssize_t n = 1;

    if (!text)
        return -ENOMEM;
    while (done < size && (n = read(fd, text + done, size - done)) != 0) {
        if (n < 0 && errno != EINTR) {
            int error = -errno;
            explicit_bzero(text, done);
            free(text);
            return error;
        }
        done += n > 0 ? (size_t)n : 0;
    }
    text[done] = 0;
    if (strlen(text) != done) {
        explicit_bzero(text, done);
        free(text);
        return -EINVAL;
    }
    *ret = text;
    return 0;
}

/* A file without NUL bytes, and its mode. Neither a pipe nor a device can make the caller wait. */
static int read_file(const char *path, char **ret, mode_t *ret_mode)
{
    struct stat status;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);

    if (fd < 0)
        return -errno;
    int result = fstat(fd, &status) != 0 ? -errno : !S_ISREG(status.st_mode) ? -EINVAL : 0;
    if (result == 0 && (uint64_t)status.st_size > FILE_SIZE_MAX)
        result = -EFBIG;
    if (result == 0)
        result = read_whole(fd, (size_t)status.st_size, ret);
    (void)close(fd);
    if (result == 0)
        *ret_mode = status.st_mode;
    return result;
}

/* With its length, so that bytes that move from one file to another show. */
static bool add_to_fingerprint(struct loader *loader, const char *text)
{
    const uint64_t size = strlen(text);

    return gnutls_hash(loader->hash, &size, sizeof size) == 0 && gnutls_hash(loader->hash, text, size) == 0;
}

/* ---- values ------------------------------------------------------------------------------------------------- */

/* Text of a scalar, "" for an absent one, which the format takes as not given. */
static int take_text(struct loader *loader, const char *name, const yaml_node_t *value, const char **ret)
{
    const char *text = web_yaml_is_null(value) ? "" : web_yaml_text(value);

    if (text) {
        *ret = text;
        return 0;
    }
    if (value->type != YAML_SCALAR_NODE)
        return fail(loader, -EINVAL, web_yaml_line(value), "%.80s is %s; give one value", name, web_yaml_kind(value));
    return fail(loader, -EINVAL, web_yaml_line(value), "%.80s has a tag (!) or a NUL character; give plain text", name);
}

static int take_flag(struct loader *loader, const char *name, const yaml_node_t *value, bool *ret)
{
    static const char *const words[] = {"false", "true", "no", "yes", "off", "on", "n", "y"};
    const char *text = web_yaml_text(value);

    if (web_yaml_is_null(value))
        return 0;
    for (size_t i = 0; i < COUNT(words); i++)
        if (text && value->data.scalar.style == YAML_PLAIN_SCALAR_STYLE && strcasecmp(text, words[i]) == 0) {
            *ret = i % 2 != 0;
            return 0;
        }
    return fail(loader, -EINVAL, web_yaml_line(value), "%s: not a boolean; give true or false, without quotes", name);
}

/* `noun`: "" or "key ". Proposes what was meant, or lists what there is. */
static int fail_unknown(struct loader *loader, size_t line, const char *where, const char *noun, const char *given,
                        const char *(*known)(const void *, unsigned), const void *context)
{
    struct nearest nearest = nearest_to(given);
    const char *name;
    char list[900] = "";

    for (unsigned i = 0; (name = known(context, i)) != NULL; i++) {
        size_t used = strlen(list);
        (void)snprintf(list + used, sizeof list - used, "%s%s", i ? ", " : "", name);
        nearest_offer(&nearest, name);
    }
    return fail(loader, -EINVAL, line, "%s: %s'%.80s' is unknown; %s%s%s", where, noun, given,
                nearest.name ? "did you mean " : "known are: ", nearest.name ? nearest.name : list,
                nearest.name ? "?" : "");
}

static const char *tls_name(const void *context, unsigned index)
{
    return web_tls_name(*(const enum web_tls_names *)context, index);
}

static int take_tls_name(struct loader *loader, enum web_tls_names names, const char *what, const yaml_node_t *value,
                         unsigned *ret)
{
    const char *text;
    int result = take_text(loader, what, value, &text);

    if (result != 0)
        return result;
    int number = web_tls_find(names, text);
    if (number < 0)
        return fail_unknown(loader, web_yaml_line(value), what, "", text, tls_name, &names);
    *ret = (unsigned)number;
    return 0;
}

/* Number of items of a list; an absent value is an empty one. */
static int take_list(struct loader *loader, const char *name, const yaml_node_t *value, unsigned limit, unsigned *ret)
{
    if (web_yaml_is_null(value)) {
        *ret = 0;
        return 0;
    }
    if (value->type != YAML_SEQUENCE_NODE)
        return fail(loader, -EINVAL, web_yaml_line(value), "%s is %s; give a list: [A, B], or a line '- A' for each",
                    name, web_yaml_kind(value));
    size_t count = (size_t)(value->data.sequence.items.top - value->data.sequence.items.start);
    if (count > limit)
        return fail(loader, -EINVAL, web_yaml_line(value), "%s has more than %u items; shorten it", name, limit);
    *ret = (unsigned)count;
    return 0;
}

static const yaml_node_t *list_item(struct loader *loader, const yaml_node_t *list, unsigned index)
{
    return yaml_document_get_node(loader->document, list->data.sequence.items.start[index]);
}

/* ---- mappings ----------------------------------------------------------------------------------------------- */

struct mapping {
    const yaml_node_pair_t *pairs;
    size_t count;
};

static int take_mapping(struct loader *loader, const char *name, const yaml_node_t *value, struct mapping *ret)
{
    *ret = (struct mapping){NULL, 0};
    if (web_yaml_is_null(value))
        return 0;
    if (value->type != YAML_MAPPING_NODE)
        return fail(loader, -EINVAL, web_yaml_line(value), "%s is %s; give a mapping, a line 'key: value' for each",
                    name, web_yaml_kind(value));
    ret->pairs = value->data.mapping.pairs.start;
    ret->count = (size_t)(value->data.mapping.pairs.top - value->data.mapping.pairs.start);
    return 0;
}

static int take_key(struct loader *loader, const char *mapping, const yaml_node_t *key, const char **ret)
{
    *ret = web_yaml_text(key);
    if (*ret && **ret)
        return 0;
    return fail(loader, -EINVAL, web_yaml_line(key),
                "a key of %s is empty or no plain text; give a name before the colon", mapping);
}

struct key_table {
    const struct key_row *rows;
    unsigned count;
};

static const char *key_name(const void *context, unsigned index)
{
    const struct key_table *table = context;

    return index < table->count ? table->rows[index].name : NULL;
}

static int read_pair(struct loader *loader, const char *what, const struct key_table *table,
                     const yaml_node_pair_t *pair, unsigned *seen)
{
    const yaml_node_t *key = yaml_document_get_node(loader->document, pair->key);
    const char *name;
    unsigned i = 0;
    int result = take_key(loader, what, key, &name);

    if (result != 0)
        return result;
    while (i < table->count && strcmp(table->rows[i].name, name) != 0)
        i++;
    if (i == table->count)
        return fail_unknown(loader, web_yaml_line(key), what, "key ", name, key_name, table);
    if (*seen & 1u << i)
        return fail(loader, -EINVAL, web_yaml_line(key), "%s is given twice in %s; keep one", name, what);
    *seen |= 1u << i;
    return table->rows[i].read(loader, &table->rows[i], yaml_document_get_node(loader->document, pair->value));
}

/* A mapping with known keys, at most as many as a word has bits. */
static int read_mapping(struct loader *loader, const char *what, const struct key_row *rows, unsigned count,
                        const yaml_node_t *value)
{
    const struct key_table table = {rows, count};
    struct mapping mapping;
    unsigned seen = 0;
    int result = take_mapping(loader, what, value, &mapping);

    for (size_t i = 0; result == 0 && i < mapping.count; i++)
        result = read_pair(loader, what, &table, &mapping.pairs[i], &seen);
    return result;
}

/* ---- tls_server_config -------------------------------------------------------------------------------------- */

static char **part_text(struct loader *loader, enum part part)
{
    char **const texts[] = {&loader->config->cert_pem, &loader->config->key_pem, &loader->config->client_ca_pem};

    return texts[part];
}

static char **part_file(struct loader *loader, enum part part)
{
    char **const files[] = {&loader->config->cert_file, &loader->config->key_file, &loader->config->client_ca_file};

    return files[part];
}

/* Notes which key gives a part, of the two that can. `ret` is "" when this one says nothing. */
static int take_part(struct loader *loader, const struct key_row *row, const yaml_node_t *value, const char **ret)
{
    int result = take_text(loader, row->name, value, ret);

    if (result != 0 || **ret == 0)
        return result;
    if (loader->names[row->which])
        return fail(loader, -EINVAL, web_yaml_line(value), "%s and %s are both given; keep one",
                    loader->names[row->which], row->name);
    loader->names[row->which] = row->name;
    loader->lines[row->which] = web_yaml_line(value);
    return 0;
}

static int read_inline(struct loader *loader, const struct key_row *row, const yaml_node_t *value)
{
    const char *text;
    int result = take_part(loader, row, value, &text);

    if (result != 0 || *text == 0)
        return result;
    *part_text(loader, row->which) = strdup(text);
    return *part_text(loader, row->which) ? 0 : fail_memory(loader);
}

static int read_file_name(struct loader *loader, const struct key_row *row, const yaml_node_t *value)
{
    const char *slash = strrchr(loader->path, '/'), *text;
    int result = take_part(loader, row, value, &text);

    if (result != 0 || *text == 0)
        return result;
    int length = *text == '/' || !slash ? 0 : (int)(slash + 1 - loader->path);
    if (asprintf(part_file(loader, row->which), "%.*s%s", length, loader->path, text) < 0) {
        *part_file(loader, row->which) = NULL;
        return fail_memory(loader);
    }
    return 0;
}

static const struct {
    const char *name;
    enum web_client_auth asked;
} client_auths[] = {
    {"NoClientCert", WEB_CLIENT_NONE},
    {"RequestClientCert", WEB_CLIENT_REQUEST},
    {"RequireAnyClientCert", WEB_CLIENT_REQUIRE_ANY},
    {"VerifyClientCertIfGiven", WEB_CLIENT_VERIFY_IF_GIVEN},
    {"RequireAndVerifyClientCert", WEB_CLIENT_REQUIRE_AND_VERIFY},
    {"RequireClientCert", WEB_CLIENT_REQUIRE_ANY}, /* what it was called once */
};

static const char *client_auth_name(const void *context, unsigned index)
{
    (void)context;
    return index < COUNT(client_auths) ? client_auths[index].name : NULL;
}

static int read_client_auth(struct loader *loader, const struct key_row *row, const yaml_node_t *value)
{
    const char *text;
    int result = take_text(loader, row->name, value, &text);

    if (result != 0 || *text == 0)
        return result;
    loader->auth_line = web_yaml_line(value);
    for (size_t i = 0; i < COUNT(client_auths); i++)
        if (strcmp(client_auths[i].name, text) == 0) {
            loader->config->client_auth = client_auths[i].asked;
            return 0;
        }
    return fail_unknown(loader, loader->auth_line, row->name, "", text, client_auth_name, NULL);
}

static int read_client_sans(struct loader *loader, const struct key_row *row, const yaml_node_t *value)
{
    struct web_config *config = loader->config;
    unsigned count;
    int result = take_list(loader, row->name, value, WEB_CONFIG_SANS_MAX, &count);

    if (result != 0 || web_yaml_is_null(value))
        return result;
    loader->sans_line = web_yaml_line(value);
    if (count == 0)
        return fail(loader, -EINVAL, loader->sans_line,
                    "%s is empty, so no client could connect; list names, or leave it "
                    "out",
                    row->name);
    config->client_sans = calloc(count, sizeof *config->client_sans);
    if (!config->client_sans)
        return fail_memory(loader);
    for (unsigned i = 0; i < count; i++) {
        const yaml_node_t *item = list_item(loader, value, i);
        const char *text;
        result = take_text(loader, row->name, item, &text);
        if (result != 0)
            return result;
        if (*text == 0)
            return fail(loader, -EINVAL, web_yaml_line(item), "%s has an empty name; give one, or leave it out",
                        row->name);
        config->client_sans[i] = strdup(text);
        if (!config->client_sans[i])
            return fail_memory(loader);
        config->client_san_count++;
    }
    return 0;
}

static int read_names(struct loader *loader, enum web_tls_names names, const char *what, const yaml_node_t *list,
                      unsigned *ret, unsigned *ret_count)
{
    unsigned count;
    int result = take_list(loader, what, list, WEB_TLS_LIST_MAX, &count);

    for (unsigned i = 0; result == 0 && i < count; i++)
        result = take_tls_name(loader, names, what, list_item(loader, list, i), &ret[i]);
    if (result == 0)
        *ret_count = count;
    return result;
}

static int read_suites(struct loader *loader, const struct key_row *row, const yaml_node_t *value)
{
    loader->rules_line = web_yaml_line(value);
    return read_names(loader, WEB_TLS_SUITES, row->name, value, loader->rules.suites, &loader->rules.suite_count);
}

static int read_curves(struct loader *loader, const struct key_row *row, const yaml_node_t *value)
{
    return read_names(loader, WEB_TLS_CURVES, row->name, value, loader->rules.curves, &loader->rules.curve_count);
}

enum { BOUND_MIN, BOUND_MAX };

static int read_version(struct loader *loader, const struct key_row *row, const yaml_node_t *value)
{
    unsigned *bound = row->which == BOUND_MIN ? &loader->rules.min_version : &loader->rules.max_version;
    int result = web_yaml_is_null(value) ? 0 : take_tls_name(loader, WEB_TLS_VERSIONS, row->name, value, bound);

    if (result == 0 && loader->rules.min_version > loader->rules.max_version)
        return fail(loader, -EINVAL, web_yaml_line(value),
                    "min_version %s is newer than max_version %s; exchange them, or leave one out",
                    web_tls_name(WEB_TLS_VERSIONS, loader->rules.min_version),
                    web_tls_name(WEB_TLS_VERSIONS, loader->rules.max_version));
    return result;
}

static int read_prefer_server(struct loader *loader, const struct key_row *row, const yaml_node_t *value)
{
    return take_flag(loader, row->name, value, &loader->rules.prefer_server);
}

static int read_tls(struct loader *loader, const struct key_row *row, const yaml_node_t *value)
{
    static const struct key_row rows[] = {
        {"cert_file", read_file_name, PART_CERT},   {"key_file", read_file_name, PART_KEY},
        {"cert", read_inline, PART_CERT},           {"key", read_inline, PART_KEY},
        {"client_auth_type", read_client_auth, 0},  {"client_ca_file", read_file_name, PART_CLIENT_CA},
        {"client_ca", read_inline, PART_CLIENT_CA}, {"client_allowed_sans", read_client_sans, 0},
        {"min_version", read_version, BOUND_MIN},   {"max_version", read_version, BOUND_MAX},
        {"cipher_suites", read_suites, 0},          {"prefer_server_cipher_suites", read_prefer_server, 0},
        {"curve_preferences", read_curves, 0},
    };
    int result = read_mapping(loader, row->name, rows, COUNT(rows), value);

    /* Whoever writes anything here wants TLS: nothing that is missing may turn it off. */
    if (result == 0 && value->type == YAML_MAPPING_NODE &&
        value->data.mapping.pairs.top > value->data.mapping.pairs.start)
        loader->tls_line = web_yaml_line(value);
    return result;
}

/* ---- http_server_config ------------------------------------------------------------------------------------- */

static const char *const frame_options[] = {"deny", "sameorigin", NULL};
static const char *const content_type_options[] = {"nosniff", NULL};

static const struct header_rule {
    const char *name;
    const char *const *values; /* NULL: any */
} header_rules[] = {
    {"Content-Security-Policy", NULL},
    {"X-Frame-Options", frame_options},
    {"X-Content-Type-Options", content_type_options},
    {"X-XSS-Protection", NULL},
    {"Strict-Transport-Security", NULL},
};

static bool is_listed(const char *const *values, const char *text)
{
    while (*values && strcmp(*values, text) != 0)
        values++;
    return *values != NULL;
}

static bool is_header_value(const char *text)
{
    for (const char *c = text; *c; c++)
        if (*c < ' ' || *c > '~')
            return false;
    return text[0] != ' ' && text[strlen(text) - 1] != ' ';
}

static int read_header(struct loader *loader, const struct key_row *row, const yaml_node_t *value)
{
    const struct header_rule *rule = &header_rules[row->which];
    struct web_config *config = loader->config;
    const char *text;
    int result = take_text(loader, row->name, value, &text);

    if (result != 0 || *text == 0)
        return result;
    if (rule->values && !is_listed(rule->values, text))
        return fail(loader, -EINVAL, web_yaml_line(value), "%s: '%.80s' is not allowed; give %s%s%s", row->name, text,
                    rule->values[0], rule->values[1] ? " or " : "", rule->values[1] ? rule->values[1] : "");
    if (!is_header_value(text))
        return fail(loader, -EINVAL, web_yaml_line(value),
                    "%s: a header's value is one line of printable ASCII without spaces around it; correct it",
                    row->name);
    struct web_header *header = &config->headers[config->header_count++];
    header->name = strdup(row->name);
    header->value = strdup(text);
    return header->name && header->value ? 0 : fail_memory(loader);
}

static int read_headers(struct loader *loader, const struct key_row *row, const yaml_node_t *value)
{
    struct key_row rows[COUNT(header_rules)];

    for (unsigned i = 0; i < COUNT(rows); i++)
        rows[i] = (struct key_row){header_rules[i].name, read_header, i};
    loader->config->headers = calloc(COUNT(rows), sizeof *loader->config->headers);
    if (!loader->config->headers)
        return fail_memory(loader);
    return read_mapping(loader, row->name, rows, COUNT(rows), value);
}

static int read_http2(struct loader *loader, const struct key_row *row, const yaml_node_t *value)
{
    return take_flag(loader, row->name, value, &loader->config->http2);
}

static int read_http(struct loader *loader, const struct key_row *row, const yaml_node_t *value)
{
    static const struct key_row rows[] = {{"http2", read_http2, 0}, {"headers", read_headers, 0}};

    return read_mapping(loader, row->name, rows, COUNT(rows), value);
}

/* ---- basic_auth_users and rate_limit ------------------------------------------------------------------------ */

static int check_user_name(struct loader *loader, const char *name, size_t line)
{
    const struct web_config *config = loader->config;

    for (const char *c = name; *c; c++)
        if (*c == ':' || iscntrl((unsigned char)*c))
            return fail(loader, -EINVAL, line,
                        "user '%.80s': basic authentication has no names with colons or control characters; rename it",
                        name);
    for (unsigned i = 0; i < config->user_count; i++)
        if (strcmp(config->users[i].name, name) == 0)
            return fail(loader, -EINVAL, line, "user '%.80s' is given twice; keep one", name);
    return 0;
}

static int read_user(struct loader *loader, const yaml_node_pair_t *pair)
{
    const yaml_node_t *key = yaml_document_get_node(loader->document, pair->key);
    const yaml_node_t *value = yaml_document_get_node(loader->document, pair->value);
    const char *name, *hash, *problem;
    int result = take_key(loader, "basic_auth_users", key, &name);

    if (result == 0)
        result = check_user_name(loader, name, web_yaml_line(key));
    if (result == 0)
        result = take_text(loader, name, value, &hash);
    if (result != 0)
        return result;
    int cost = web_auth_cost(hash, &problem);
    if (cost < 0)
        return fail(loader, -EINVAL, web_yaml_line(value), "user '%.80s': the value %s", name, problem);
    struct web_user *user = &loader->config->users[loader->config->user_count++];
    user->name = strdup(name);
    user->hash = strdup(hash);
    return user->name && user->hash ? 0 : fail_memory(loader);
}

static int read_users(struct loader *loader, const struct key_row *row, const yaml_node_t *value)
{
    struct mapping mapping;
    int result = take_mapping(loader, row->name, value, &mapping);

    if (result != 0 || mapping.count == 0)
        return result;
    if (mapping.count > WEB_CONFIG_USERS_MAX)
        return fail(loader, -EINVAL, web_yaml_line(value), "more than %d users; use client certificates",
                    WEB_CONFIG_USERS_MAX);
    assert(loader->config->user_count == 0); /* a key is read once */
    loader->config->users = calloc(mapping.count, sizeof *loader->config->users);
    if (!loader->config->users)
        return fail_memory(loader);
    for (size_t i = 0; result == 0 && i < mapping.count; i++)
        result = read_user(loader, &mapping.pairs[i]);
    return result;
}

static int read_rate_interval(struct loader *loader, const struct key_row *row, const yaml_node_t *value)
{
    const char *text;
    int result = take_text(loader, row->name, value, &text);

    loader->rate_interval_given = true;
    if (result != 0 || text_duration(text, &loader->config->rate_interval_ns))
        return result;
    return fail(loader, -EINVAL, web_yaml_line(value), "%s: '%.80s' is no duration; give one as 100ms or 1s", row->name,
                text);
}

static int read_rate_burst(struct loader *loader, const struct key_row *row, const yaml_node_t *value)
{
    const char *text;
    char *end;
    int result = take_text(loader, row->name, value, &text);

    if (result != 0)
        return result;
    unsigned long burst = strtoul(text, &end, 10);
    if (!isdigit((unsigned char)*text) || *end || burst > RATE_BURST_MAX)
        return fail(loader, -EINVAL, web_yaml_line(value), "%s: '%.80s' is not a whole number from 0 to %u", row->name,
                    text, RATE_BURST_MAX);
    loader->config->rate_burst = (uint32_t)burst;
    return 0;
}

static int read_rate_limit(struct loader *loader, const struct key_row *row, const yaml_node_t *value)
{
    static const struct key_row rows[] = {{"interval", read_rate_interval, 0}, {"burst", read_rate_burst, 0}};
    int result = read_mapping(loader, row->name, rows, COUNT(rows), value);

    if (result == 0 && loader->config->rate_interval_ns == 0 && loader->config->rate_burst > 0 &&
        !loader->rate_interval_given)
        return fail(loader, -EINVAL, web_yaml_line(value),
                    "rate_limit without an interval limits nothing; give interval: 100ms, or 0s for no limit");
    if (result == 0 && loader->config->rate_interval_ns > 0 && loader->config->rate_burst == 0)
        return fail(loader, -EINVAL, web_yaml_line(value),
                    "rate_limit without a burst would answer no request; give burst: 1 or more");
    return result;
}

/* ---- the whole ---------------------------------------------------------------------------------------------- */

static int read_document(struct loader *loader)
{
    static const struct key_row rows[] = {{"tls_server_config", read_tls, 0},
                                          {"http_server_config", read_http, 0},
                                          {"basic_auth_users", read_users, 0},
                                          {"rate_limit", read_rate_limit, 0}};
    const yaml_node_t *root = yaml_document_get_root_node(loader->document);

    return root ? read_mapping(loader, "the file", rows, COUNT(rows), root) : 0;
}

static int read_text(struct loader *loader, const char *text)
{
    yaml_document_t document;
    char problem[300];
    size_t line;
    int result = web_yaml_parse(&document, text, strlen(text), &line, problem, sizeof problem);

    if (result != 0)
        return fail(loader, result, line, "%s", problem);
    loader->document = &document;
    result = read_document(loader);
    loader->document = NULL;
    web_yaml_free(&document);
    return result;
}

static int read_part(struct loader *loader, enum part part)
{
    const char *path = *part_file(loader, part);
    mode_t mode = 0;

    if (!path)
        return 0;
    int result = read_file(path, part_text(loader, part), &mode);
    if (result != 0)
        return fail(loader, result, loader->lines[part], "%s %.300s: %s; %s", loader->names[part], path,
                    file_problem(result), file_advice(result));
    if (part == PART_KEY)
        loader->config->key_mode = mode;
    return add_to_fingerprint(loader, *part_text(loader, part)) ? 0 : fail_memory(loader);
}

static bool is_verifying(enum web_client_auth asked)
{
    return asked == WEB_CLIENT_VERIFY_IF_GIVEN || asked == WEB_CLIENT_REQUIRE_AND_VERIFY;
}

/* That the parts of tls_server_config are all there and do not contradict each other. */
static int check_tls_parts(struct loader *loader)
{
    const enum web_client_auth asked = loader->config->client_auth;
    const bool has_ca = loader->names[PART_CLIENT_CA] != NULL;

    if (!loader->names[PART_CERT])
        return fail(loader, -EINVAL, loader->tls_line,
                    "tls_server_config has no certificate; give cert_file (or cert)");
    if (!loader->names[PART_KEY])
        return fail(loader, -EINVAL, loader->tls_line, "tls_server_config has no private key; give key_file (or key)");
    if (is_verifying(asked) && !has_ca)
        return fail(loader, -EINVAL, loader->auth_line,
                    "client_auth_type verifies certificates, but there is none to do it with; give client_ca_file");
    if (has_ca && asked == WEB_CLIENT_NONE)
        return fail(loader, -EINVAL, loader->lines[PART_CLIENT_CA],
                    "%s has no effect without client_auth_type; give RequireAndVerifyClientCert there",
                    loader->names[PART_CLIENT_CA]);
    if (loader->sans_line && asked != WEB_CLIENT_REQUIRE_ANY && asked != WEB_CLIENT_REQUIRE_AND_VERIFY)
        return fail(loader, -EINVAL, loader->sans_line,
                    "client_allowed_sans needs a client_auth_type that requires a certificate; give "
                    "RequireAndVerifyClientCert");
    return 0;
}

static int fail_part(struct loader *loader, int result, enum part part, const char *problem)
{
    const char *path = *part_file(loader, part);

    return fail(loader, result, loader->lines[part], "%s%s%.300s: %s", loader->names[part], path ? " " : "",
                path ? path : "", problem);
}

static int check_tls_contents(struct loader *loader)
{
    struct web_config *config = loader->config;
    gnutls_pk_algorithm_t key;
    enum web_tls_part wrong;
    char problem[300];
    int result = web_tls_check_pair(config->cert_pem, config->key_pem, &key, &wrong, problem, sizeof problem);

    if (result != 0)
        return fail_part(loader, result, wrong == WEB_TLS_KEY ? PART_KEY : PART_CERT, problem);
    result = config->client_ca_pem ? web_tls_check_ca(config->client_ca_pem, problem, sizeof problem) : 0;
    if (result != 0)
        return fail_part(loader, result, PART_CLIENT_CA, problem);
    result = web_tls_priorities(&loader->rules, key, &config->priorities, problem, sizeof problem);
    if (result != 0)
        return fail(loader, result, loader->rules_line ? loader->rules_line : loader->tls_line, "%s", problem);
    return 0;
}

static int load_tls(struct loader *loader)
{
    if (!loader->tls_line)
        return 0;
    loader->config->tls = true;
    int result = check_tls_parts(loader);
    for (enum part part = 0; result == 0 && part < PARTS; part++)
        result = read_part(loader, part);
    return result == 0 ? check_tls_contents(loader) : result;
}

static int load_all(struct loader *loader)
{
    struct web_config *config = loader->config;
    char *text = NULL;
    mode_t mode = 0;
    int result = read_file(loader->path, &text, &mode);

    if (result == -ENOENT || result == -ENOTDIR)
        return fail(loader, result, 0, "%s; check --web.config.file", file_problem(result));
    if (result != 0)
        return fail(loader, result, 0, "%s; %s", file_problem(result), file_advice(result));
    assert(text);
    result = add_to_fingerprint(loader, text) ? read_text(loader, text) : fail_memory(loader);
    free_secret(text);
    if (result == 0)
        result = load_tls(loader);
    if (result != 0)
        return result;
    if (config->tls && !config->key_file)
        config->key_mode = mode;
    if (config->user_count == 0)
        return 0;
    result = web_auth_create(&config->auth, config->users, config->user_count);
    return result == 0 ? 0 : fail(loader, result, 0, "cannot prepare passwords: %s; try again", strerror(-result));
}

int web_config_load(struct web_config **ret, const char *path, char *error, size_t size)
{
    struct loader loader = {.path = path,
                            .error = error,
                            .error_size = size,
                            .rules = {.min_version = WEB_TLS_12, .max_version = WEB_TLS_13, .prefer_server = true}};
    unsigned char digest[32];

    loader.config = calloc(1, sizeof *loader.config);
    if (!loader.config || gnutls_hash_init(&loader.hash, GNUTLS_DIG_SHA256) != 0) {
        free(loader.config);
        return fail_memory(&loader);
    }
    loader.config->http2 = true;
    int result = load_all(&loader);
    gnutls_hash_deinit(loader.hash, digest);
    if (result != 0) {
        web_config_free(loader.config);
        /* What is quoted in it must not make it more than one line. */
        for (char *c = error; *c; c++)
            if (iscntrl((unsigned char)*c))
                *c = '?';
        return result;
    }
    memcpy(&loader.config->fingerprint, digest, sizeof loader.config->fingerprint);
    *ret = loader.config;
    return 0;
}

const char *web_client_auth_text(enum web_client_auth asked)
{
    switch (asked) {
    case WEB_CLIENT_REQUEST: return "asked for, not required";
    case WEB_CLIENT_REQUIRE_ANY: return "required, not verified";
    case WEB_CLIENT_VERIFY_IF_GIVEN: return "verified if given";
    case WEB_CLIENT_REQUIRE_AND_VERIFY: return "required and verified";
    default: return "not asked for";
    }
}

static bool is_readable_by_others(const struct web_config *config)
{
    return config->tls && (config->key_mode & (S_IRGRP | S_IROTH)) != 0;
}

static void warn_readable_key(const struct web_config *config, const char *path)
{
    char mode[8];

    (void)snprintf(mode, sizeof mode, "%04o", (unsigned)(config->key_mode & 07777));
    log_warn("others than its owner may read the private key; run chmod 600 on it", "file",
             config->key_file ? config->key_file : path, "mode", mode, NULL);
}

static bool has_user(const struct web_config *config, const struct web_user *user)
{
    int index = web_config_user(config, user->name);

    return index >= 0 && strcmp(config->users[index].hash, user->hash) == 0;
}

void web_config_warn(const struct web_config *config, const struct web_config *before, const char *path)
{
    const char *problem;

    if (is_readable_by_others(config) &&
        !(before && is_readable_by_others(before) && strcmp(before->key_pem, config->key_pem) == 0))
        warn_readable_key(config, path);
    for (unsigned i = 0; i < config->user_count; i++)
        if (web_auth_cost(config->users[i].hash, &problem) >= COST_WARN &&
            !(before && has_user(before, &config->users[i])))
            log_warn("a password of such a bcrypt cost takes seconds or more to check; make a hash of cost 10", "file",
                     path, "user", config->users[i].name, NULL);
}

void web_config_free(struct web_config *config)
{
    if (!config)
        return;
    web_auth_free(config->auth);
    free(config->cert_file);
    free(config->key_file);
    free(config->client_ca_file);
    free(config->cert_pem);
    free_secret(config->key_pem);
    free(config->client_ca_pem);
    free(config->priorities);
    for (unsigned i = 0; i < config->client_san_count; i++)
        free(config->client_sans[i]);
    free(config->client_sans);
    for (unsigned i = 0; i < config->user_count; i++) {
        free(config->users[i].name);
        free_secret(config->users[i].hash);
    }
    free(config->users);
    for (unsigned i = 0; i < config->header_count; i++) {
        free(config->headers[i].name);
        free(config->headers[i].value);
    }
    free(config->headers);
    free(config);
}

void web_config_remember(struct web_config *config, const struct web_config *before)
{
    if (config->auth && before->auth)
        web_auth_inherit(config->auth, before->auth);
}

int web_config_user(const struct web_config *config, const char *user)
{
    for (unsigned i = 0; i < config->user_count; i++)
        if (strcmp(config->users[i].name, user) == 0)
            return (int)i;
    return -1;
}

bool web_config_authenticate(const struct web_config *config, const char *user, const char *password)
{
    return config->auth && web_auth_check(config->auth, user, password);
}

bool web_config_authenticated_before(const struct web_config *config, const char *user, const char *password)
{
    return config->auth && web_auth_remembers(config->auth, user, password);
}
