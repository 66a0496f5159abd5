/*
 * reply: JSON as the answer of an HTTP handler. Any thread.
 */
#ifndef WIDEEP_REPLY_H
#define WIDEEP_REPLY_H

#include "http.h"

#include <jansson.h>

/* A document as one line with its newline: malloc'd, NULL without memory or for NULL. Numbers have the 15 significant
 * digits that any double has; times in seconds are to the microsecond then. */
char *reply_text_of(const json_t *root);

/* Takes `root` over. NULL, which is what a document is that there was no memory for, answers 503. */
void reply_json(struct http_reply *reply, unsigned code, json_t *root);

#endif
