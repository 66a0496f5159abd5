/*
 * state: what the newest snapshot says, as JSON for scripts and pages.
 *
 * A document of engines, groups and segments, made by the first request after a collection for all that come before the
 * next; the tokens by layer and rank, and a layer's experts, are in it for who asks for them. It is drawn from the
 * collector's own aggregate, so a collection and the drawing exclude each other: a handler waits for the milliseconds
 * of a collection, and a collection for those of a drawing, one at most.
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

/* Around what changes the aggregate. `sources` and `lb` (NULL: none) are borrowed until the board is freed. Collector
 * thread. */
void state_begin_collection(struct state_board *board);
void state_end_collection(struct state_board *board, const struct family_sources *sources, struct lb *lb);

/* Calls between two collections with what the board was last given, and returns what that returns; -EAGAIN before the
 * first collection, or when one takes too long. The collector waits meanwhile. Any thread. */
typedef int state_visitor(void *context, const struct family_sources *sources, struct lb *lb);
int state_visit(struct state_board *board, state_visitor *visit, void *context);

/* GET /api/v1/state[?loads][&experts=LAYER]; the context is the board. Any thread. */
void state_handle(void *context, const struct http_request *request, struct http_reply *reply);

#endif
