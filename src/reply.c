#include "reply.h"

enum { FLAGS = JSON_COMPACT | JSON_REAL_PRECISION(15) };

char *reply_text_of(const json_t *root)
{
    size_t size = root ? json_dumpb(root, NULL, 0, FLAGS) : 0;
    char *text = size > 0 ? malloc(size + 2) : NULL;

    if (!text)
        return NULL;
    (void)json_dumpb(root, text, size, FLAGS);
    memcpy(text + size, "\n", 2);
    return text;
}

void reply_json(struct http_reply *reply, unsigned code, json_t *root)
{
    char *text = reply_text_of(root);

    json_decref(root);
    if (text)
        *reply =
            (struct http_reply){.code = code, .content_type = "application/json", .body = text, .size = strlen(text)};
    else
        http_reply_text(reply, 503, "out of memory\n");
}
