/*
 * framing: whether all who read a request agree on where it ends (RFC 9112, section 6.3). Behind a proxy that reads it
 * otherwise, the rest of a body would be a request of somebody else's.
 *
 * The library's parser joins, cuts and overlooks what it should refuse, so this compares the texts that it gives with
 * how they lie in its buffer of what was received (libmicrohttpd 0.9.75), and where it ends a head with the head as it
 * was before it was taken apart. A head that had not come as a whole by then, is longer than a page or has a NUL may
 * hide what cannot be told from an empty line: its request is the last of its connection.
 */
#ifndef WIDEEP_FRAMING_H
#define WIDEEP_FRAMING_H

#include <microhttpd.h>
#include <stdbool.h>

/* In the library's URI log callback, which has the request's line taken apart and nothing behind it yet: where the head
 * ends, or NULL if that cannot be seen. */
const char *framing_find_end(const char *target_end);

/* Of a request whose head has been read: `target_end` is the NUL behind its target as received, `head_end` what was
 * found there, `method` and `version` as given to the library's access handler. `ret_last`: nothing that comes behind
 * this request may be answered, left alone when the request's line is not in place. The thread that serves the
 * connection. */
bool framing_is_sound(struct MHD_Connection *connection, const char *target_end, const char *head_end,
                      const char *method, const char *version, bool *ret_last);

#endif
