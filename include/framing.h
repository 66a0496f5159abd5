/*
 * framing: whether all who read a request agree on where it ends (RFC 9112, section 6.3). Behind a proxy that reads it
 * otherwise, the rest of a body would be a request of somebody else's.
 *
 * The library's parser joins, cuts and overlooks what it should refuse, so this compares the texts that it gives with
 * how they lie in its buffer of what was received (libmicrohttpd 0.9.75). One thing leaves no trace there: a line of a
 * colon alone that ends otherwise than the line before it (CRLF ":" LF, or LF ":" CRLF), which to the library is the
 * empty line. A proxy that passes such a line on is not protected.
 */
#ifndef WIDEEP_FRAMING_H
#define WIDEEP_FRAMING_H

#include <microhttpd.h>
#include <stdbool.h>

/* Of a request whose head has been read: `target_end` is the NUL behind its target as received, `method` and `version`
 * as given to the library's access handler. `ret_chunked`: whether its body is, left alone when the request's line is
 * not in place. The thread that serves the connection. */
bool framing_is_sound(struct MHD_Connection *connection, const char *target_end, const char *method,
                      const char *version, bool *ret_chunked);

#endif
