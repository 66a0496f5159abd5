/*
 * live: the page that shows the instance to people: one file, src/live.html, that reads /api/v1/state by itself.
 */
#ifndef WIDEEP_LIVE_H
#define WIDEEP_LIVE_H

#include "buffer.h"

struct live {
    struct buffer page, gzip; /* constant once made */
};

/* For Content-Security-Policy: nothing but the page's own script and style, and this host to ask. */
extern const char live_policy[];

/* Makes the page; both texts must need no escape in HTML. Returns 0 or -ENOMEM, with nothing to free then. */
int live_make(struct live *ret, const char *telemetry_path, const char *version);
void live_free(struct live *live);

#endif
