/*
 * state: what the newest snapshot says, as JSON for scripts and pages.
 *
 * With every snapshot the collector thread publishes a document of engines, groups and segments. Its text is made at
 * most once, by the first request for it. A board keeps the newest document; requests that still hold an older one keep
 * that alive.
 */
#ifndef WIDEEP_STATE_H
#define WIDEEP_STATE_H

#include "family.h"
#include "lb.h"

struct state_board;

/* Returns 0 or -ENOMEM. */
int state_new(struct state_board **ret);

/* No handler may be running. NULL is fine. */
void state_free(struct state_board *board);

/* Replaces the document by one of what the sources say now, the load balancer's states of `lb` with it (NULL: none).
 * Returns 0, or -ENOMEM with the document as it was. Collector thread. */
int state_publish(struct state_board *board, const struct family_sources *sources, struct lb *lb);

/* GET /api/v1/state; the context is the board. Any thread. */
void state_handle(void *context, const struct http_request *request, struct http_reply *reply);

#endif
