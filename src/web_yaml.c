#include "web_yaml.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

/* The format itself needs three levels. */
#define DEPTH_MAX 16

static int report_parser(const yaml_parser_t *parser, size_t *ret_line, char *error, size_t error_size)
{
    /* Where its scanner runs out of memory, the library fails without saying why. */
    if (parser->error == YAML_MEMORY_ERROR || parser->error == YAML_NO_ERROR) {
        *ret_line = 1;
        (void)snprintf(error, error_size, "not enough memory");
        return -ENOMEM;
    }
    *ret_line = parser->problem_mark.line + 1;
    if (parser->error == YAML_READER_ERROR) {
        *ret_line = parser->mark.line + 1; /* the reader knows an offset alone */
        (void)snprintf(error, error_size, "not text: %s; save the file as UTF-8",
                       parser->problem ? parser->problem : "unreadable characters");
    } else {
        (void)snprintf(error, error_size, "not YAML: %s%s%s; check indentation, colons and quotes there",
                       parser->context ? parser->context : "", parser->context ? ", " : "",
                       parser->problem ? parser->problem : "syntax error");
    }
    return -EINVAL;
}

/* What an event may not be; NULL: it is fine. Keeps the depth and the number of documents. */
static const char *event_problem(const yaml_event_t *event, unsigned *depth, unsigned *documents)
{
    switch (event->type) {
    case YAML_ALIAS_EVENT: return "aliases (*name) are not supported; write the value out";
    case YAML_DOCUMENT_START_EVENT: return ++*documents > 1 ? "a second document begins; keep one per file" : NULL;
    case YAML_MAPPING_START_EVENT:
    case YAML_SEQUENCE_START_EVENT: return ++*depth > DEPTH_MAX ? "nested too deeply; see README.md" : NULL;
    case YAML_MAPPING_END_EVENT:
    case YAML_SEQUENCE_END_EVENT: --*depth; return NULL;
    default: return NULL;
    }
}

/* Before a document is built: libyaml resolves aliases while it builds one, and does not say where they were. */
static int check_events(const char *text, size_t size, size_t *ret_line, char *error, size_t error_size)
{
    yaml_parser_t parser;
    unsigned depth = 0, documents = 0;
    bool ended = false;
    int result = 0;

    if (!yaml_parser_initialize(&parser))
        return -ENOMEM;
    yaml_parser_set_input_string(&parser, (const unsigned char *)text, size);
    while (!ended && result == 0) {
        yaml_event_t event;
        if (!yaml_parser_parse(&parser, &event)) {
            result = report_parser(&parser, ret_line, error, error_size);
            break;
        }
        const char *problem = event_problem(&event, &depth, &documents);
        if (problem) {
            *ret_line = event.start_mark.line + 1;
            (void)snprintf(error, error_size, "%s", problem);
            result = -EINVAL;
        }
        ended = event.type == YAML_STREAM_END_EVENT;
        yaml_event_delete(&event);
    }
    yaml_parser_delete(&parser);
    return result;
}

int web_yaml_parse(yaml_document_t *ret, const char *text, size_t size, size_t *ret_line, char *error,
                   size_t error_size)
{
    yaml_parser_t parser;

    *ret_line = 1;
    (void)snprintf(error, error_size, "not enough memory");
    int result = check_events(text, size, ret_line, error, error_size);
    if (result != 0)
        return result;
    if (!yaml_parser_initialize(&parser))
        return -ENOMEM;
    yaml_parser_set_input_string(&parser, (const unsigned char *)text, size);
    if (!yaml_parser_load(&parser, ret))
        result = report_parser(&parser, ret_line, error, error_size);
    yaml_parser_delete(&parser);
    return result;
}

void web_yaml_free(yaml_document_t *document)
{
    for (yaml_node_t *node = document->nodes.start; node < document->nodes.top; node++)
        if (node->type == YAML_SCALAR_NODE)
            explicit_bzero(node->data.scalar.value, node->data.scalar.length);
    yaml_document_delete(document);
}

size_t web_yaml_line(const yaml_node_t *node)
{
    return node->start_mark.line + 1;
}

/* libyaml gives this tag to every scalar that has none of its own. */
static bool is_plain_text(const yaml_node_t *node)
{
    return node->type == YAML_SCALAR_NODE && strcmp((const char *)node->tag, YAML_STR_TAG) == 0;
}

bool web_yaml_is_null(const yaml_node_t *node)
{
    static const char *const nulls[] = {"", "~", "null", "Null", "NULL"};

    if (!is_plain_text(node) || node->data.scalar.style != YAML_PLAIN_SCALAR_STYLE)
        return false;
    for (size_t i = 0; i < sizeof nulls / sizeof *nulls; i++)
        if (strcmp((const char *)node->data.scalar.value, nulls[i]) == 0)
            return true;
    return false;
}

const char *web_yaml_text(const yaml_node_t *node)
{
    const char *text = is_plain_text(node) ? (const char *)node->data.scalar.value : NULL;

    return text && strlen(text) == node->data.scalar.length ? text : NULL;
}

const char *web_yaml_kind(const yaml_node_t *node)
{
    return node->type == YAML_SEQUENCE_NODE ? "a list" : node->type == YAML_MAPPING_NODE ? "a mapping" : "a value";
}
