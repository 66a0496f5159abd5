/*
 * admin: requests that change what the exporter does. Off unless --web.enable-admin-api is given.
 *
 * There is one: /-/debug/per-expert. POST serves a series per layer and expert from the next collection on, for a
 * limited time; DELETE ends it; GET says what is on. A later POST replaces an earlier one. Each change is logged with
 * who asked for it.
 */
#ifndef WIDEEP_ADMIN_H
#define WIDEEP_ADMIN_H

#include "collector.h"
#include "http.h"

/* Constant while handlers run. */
struct admin {
    bool enabled;
    struct collector *collector;
    uint64_t duration_ns, duration_max_ns; /* without duration=, and at most */
};

/* Layers as numbers and ranges: "3,7-9". Returns 0, or -EINVAL for what is no such list or beyond WIDEEP_MAX_LAYERS. */
int admin_parse_layers(const char *text, struct layer_set *ret);

/* The inverse; "all" for the full set. Cut off, at a comma, where it does not fit. */
void admin_describe_layers(const struct layer_set *layers, char *ret, size_t size);

/* GET, POST and DELETE /-/debug/per-expert[?duration=300s][&layer=3,7-9]; the context is a struct admin. 403 when it is
 * not enabled, and to what a browser asks to change for a page of another site. Any thread. */
void admin_handle_per_expert(void *context, const struct http_request *request, struct http_reply *reply);

#endif
