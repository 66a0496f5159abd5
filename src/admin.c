#include "admin.h"

#include "log.h"
#include "reply.h"
#include "text.h"

#define LAYERS_TEXT_MAX 2048
#define DURATION_MIN_NS UINT64_C(1000000000) /* as of --debug.duration */

/* ---- layers ------------------------------------------------------------------------------------------------- */

static bool parse_layer(const char **text, uint32_t *ret)
{
    uint32_t layer = 0;
    const char *c = *text;

    for (; *c >= '0' && *c <= '9' && layer < WIDEEP_MAX_LAYERS; c++)
        layer = layer * 10 + (uint32_t)(*c - '0');
    if (c == *text || layer >= WIDEEP_MAX_LAYERS)
        return false;
    *text = c;
    *ret = layer;
    return true;
}

int admin_parse_layers(const char *text, struct layer_set *ret)
{
    struct layer_set layers = {0};

    for (;; text++) {
        uint32_t first, last;
        if (!parse_layer(&text, &first))
            return -EINVAL;
        last = first;
        if (*text == '-' && (text++, !parse_layer(&text, &last)))
            return -EINVAL;
        if (last < first)
            return -EINVAL;
        for (uint32_t layer = first; layer <= last; layer++)
            layers.words[layer / 64] |= UINT64_C(1) << layer % 64;
        if (*text == 0)
            break;
        if (*text != ',')
            return -EINVAL;
    }
    *ret = layers;
    return 0;
}

void admin_describe_layers(const struct layer_set *layers, char *ret, size_t size)
{
    size_t used = 0;

    ret[0] = 0;
    for (uint32_t first = 0, last; first < WIDEEP_MAX_LAYERS; first = last + 1) {
        char item[24];
        last = first;
        if (!layer_set_has(layers, first))
            continue;
        while (last + 1 < WIDEEP_MAX_LAYERS && layer_set_has(layers, last + 1))
            last++;
        if (first == 0 && last == WIDEEP_MAX_LAYERS - 1) {
            (void)snprintf(ret, size, "all");
            return;
        }
        int length = last > first ? snprintf(item, sizeof item, "%s%u-%u", used ? "," : "", first, last)
                                  : snprintf(item, sizeof item, "%s%u", used ? "," : "", first);
        if (length < 0 || (size_t)length >= size - used)
            return;
        memcpy(ret + used, item, (size_t)length + 1);
        used += (size_t)length;
    }
}

/* ---- per-expert series -------------------------------------------------------------------------------------- */

static void describe_seconds(char *ret, size_t size, uint64_t ns)
{
    char text[TEXT_NUMBER_MAX];

    (void)snprintf(ret, size, "%.*ss", (int)text_seconds(text, ns), text);
}

/* What is on now, as JSON. */
static void reply_status(const struct admin *admin, struct http_reply *reply)
{
    struct collector_debug debug;
    char layers[LAYERS_TEXT_MAX];

    collector_get_debug(admin->collector, &debug);
    if (!debug.on) {
        reply_json(reply, 200, json_pack("{s:b}", "on", 0));
        return;
    }
    uint64_t now_ns = wideep_i_clock_ns(CLOCK_BOOTTIME), now_unix_ms = wideep_i_clock_ns(CLOCK_REALTIME) / 1000000;
    uint64_t left_ms = debug.until_ns > now_ns ? (debug.until_ns - now_ns) / 1000000 : 0;
    admin_describe_layers(&debug.layers, layers, sizeof layers);
    reply_json(reply, 200,
               json_pack("{s:b, s:f, s:f, s:s, s:s}", "on", 1, "until", (double)(now_unix_ms + left_ms) / 1000,
                         "seconds_left", (double)left_ms / 1000, "layers", layers, "by", debug.who));
}

/* USER@PEER, or PEER. What is not plain ASCII is replaced: it is JSON text, and user names may be any bytes. */
static void describe_who(const struct http_request *request, char *ret, size_t size)
{
    (void)snprintf(ret, size, "%s%s%s", request->user ? request->user : "", request->user ? "@" : "", request->peer);
    for (char *c = ret; *c; c++)
        if ((unsigned char)*c < ' ' || (unsigned char)*c >= 0x7f)
            *c = '?';
}

/* Returns true, or false with the reply that says why not. */
static bool parse_wish(const struct admin *admin, const struct http_request *request, uint64_t *ret_duration_ns,
                       struct layer_set *ret_layers, struct http_reply *reply)
{
    const char *duration = http_argument(request, "duration"), *layers = http_argument(request, "layer");
    static const char *const known[] = {"duration", "layer", NULL};
    char most[40];

    *ret_duration_ns = admin->duration_ns;
    memset(ret_layers, 0xff, sizeof *ret_layers);
    if (http_unknown_argument(request, known)) {
        http_reply_text(reply, 400, "the arguments here are duration and layer, in the query\n");
        return false;
    }
    if (duration && (!text_duration(duration, ret_duration_ns) || *ret_duration_ns < DURATION_MIN_NS)) {
        http_reply_text(reply, 400, "duration must be 1s or more, such as 30s, 5m or 1m30s; DELETE ends the series\n");
        return false;
    }
    if (*ret_duration_ns > admin->duration_max_ns) {
        describe_seconds(most, sizeof most, admin->duration_max_ns);
        http_reply_text(reply, 400, "duration is longer than the %s that --debug.max-duration allows\n", most);
        return false;
    }
    if (layers && admin_parse_layers(layers, ret_layers) != 0) {
        http_reply_text(reply, 400, "layer must be a list of layer numbers below %u and ranges of them: 3,7-9\n",
                        WIDEEP_MAX_LAYERS);
        return false;
    }
    return true;
}

static void switch_on(const struct admin *admin, const struct http_request *request, struct http_reply *reply)
{
    struct collector_debug debug = {.on = true};
    char layers[LAYERS_TEXT_MAX], duration[40];
    uint64_t duration_ns;

    if (!parse_wish(admin, request, &duration_ns, &debug.layers, reply))
        return;
    debug.until_ns = wideep_i_clock_ns(CLOCK_BOOTTIME) + duration_ns;
    describe_who(request, debug.who, sizeof debug.who);
    collector_set_debug(admin->collector, &debug);
    admin_describe_layers(&debug.layers, layers, sizeof layers);
    describe_seconds(duration, sizeof duration, duration_ns);
    log_info("per-expert series switched on", "by", debug.who, "duration", duration, "layers", layers, NULL);
    reply_status(admin, reply);
}

static void switch_off(const struct admin *admin, const struct http_request *request, struct http_reply *reply)
{
    struct collector_debug off = {0};

    describe_who(request, off.who, sizeof off.who);
    collector_set_debug(admin->collector, &off);
    log_info("per-expert series switched off", "by", off.who, NULL);
    reply_status(admin, reply);
}

/* Whether a page of another site has its reader's browser ask, which would bring along the reader's address, password
 * and certificate. Browsers say so; other clients send neither header. */
static bool is_cross_site(const struct http_request *request)
{
    const char *site = http_header(request, "Sec-Fetch-Site"), *origin = http_header(request, "Origin");
    const char *host = http_header(request, "Host"), *authority = origin ? strstr(origin, "://") : NULL;

    if (site && strcasecmp(site, "cross-site") == 0)
        return true;
    /* An opaque origin is "null", and nobody's. */
    return origin && (!authority || !host || strcasecmp(authority + strlen("://"), host) != 0);
}

void admin_handle_per_expert(void *context, const struct http_request *request, struct http_reply *reply)
{
    const struct admin *admin = context;
    const bool changes = strcmp(request->method, "POST") == 0 || strcmp(request->method, "DELETE") == 0;

    if (!admin->enabled)
        http_reply_text(reply, 403, "the admin API is off; it is switched on with --web.enable-admin-api\n");
    else if (changes && is_cross_site(request))
        http_reply_text(reply, 403, "refused: a page of another site asks; the header Origin must name this host\n");
    else if (strcmp(request->method, "POST") == 0)
        switch_on(admin, request, reply);
    else if (strcmp(request->method, "DELETE") == 0)
        switch_off(admin, request, reply);
    else
        reply_status(admin, reply);
}
