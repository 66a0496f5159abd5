/*
 * buffer: a growing piece of memory that texts and messages are written into. A failed allocation sticks, and what is
 * added then is dropped, so that only the end has to look. An owner's own: one thread at a time.
 */
#ifndef WIDEEP_BUFFER_H
#define WIDEEP_BUFFER_H

#include <stdbool.h>
#include <stddef.h>

/* All zero bytes are an empty one. `data` is the owner's to free. */
struct buffer {
    char *data;
    size_t size, capacity;
    bool failed;
};

/* Makes room for `more` bytes behind `size`; false when there is no memory. */
bool buffer_reserve(struct buffer *buffer, size_t more);

void buffer_add(struct buffer *buffer, const char *bytes, size_t length);
void buffer_text(struct buffer *buffer, const char *text);

#endif
