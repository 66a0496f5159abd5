/*
 * web_yaml: a YAML document that is safe to walk.
 *
 * The text may come from anyone: one document, no aliases (with which a small file stands for an enormous tree or for
 * one without an end) and no deep nesting, so that what is walked is no larger than what was written. Pure functions,
 * any thread.
 */
#ifndef WIDEEP_WEB_YAML_H
#define WIDEEP_WEB_YAML_H

#include <stdbool.h>
#include <stddef.h>
#include <yaml.h>

/* Returns 0 with a document that the caller hands to web_yaml_free(); it has no root node if the text is empty.
 * Otherwise -EINVAL or -ENOMEM, with the line (from 1) and the reason. */
int web_yaml_parse(yaml_document_t *ret, const char *text, size_t size, size_t *ret_line, char *error,
                   size_t error_size);

/* Wipes the scalars, which may be keys, before they are freed. */
void web_yaml_free(yaml_document_t *document);

/* Line of a node, from 1. */
size_t web_yaml_line(const yaml_node_t *node);

/* An absent value: nothing, ~ or null. */
bool web_yaml_is_null(const yaml_node_t *node);

/* Text of a scalar that has no NUL in it and no tag that makes it more than text; NULL for all else. */
const char *web_yaml_text(const yaml_node_t *node);

/* "a list", "a mapping" or "a value", for messages. */
const char *web_yaml_kind(const yaml_node_t *node);

#endif
