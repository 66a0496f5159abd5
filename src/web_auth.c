#include "web_auth.h"

#include <assert.h>
#include <crypt.h>
#include <errno.h>
#include <gnutls/crypto.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define SALTED_LENGTH 29 /* of a hash: all but the 31 characters that the password decides */
#define DIGEST_SIZE   32
#define NO_USER       UINT32_MAX

struct memory {
    bool filled;
    unsigned char digest[DIGEST_SIZE];
};

struct web_auth {
    const struct web_user *users;
    uint32_t user_count;
    unsigned char key[DIGEST_SIZE];
    pthread_mutex_t turn;      /* to compute; held for as long as that takes, guards `scratch` */
    struct crypt_data scratch; /* too large for the stack of a server's thread */
    pthread_mutex_t guard;     /* of `remembered`, held shortly, also within a turn */
    struct memory remembered[];
};

int web_auth_cost(const char *hash, const char **ret_problem)
{
    static const char alphabet[] = "./ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
    const char *kind = hash[0] == '$' && hash[1] == '2' ? hash + 2 : "";
    const char *digits = *kind ? kind + 1 : "";

    if (*kind == 0 || !strchr("aby", *kind) || digits[0] != '$') {
        *ret_problem =
            "is not a bcrypt hash, which begins with $2a$, $2b$ or $2y$; make one with: htpasswd -nBC 10 \"\"";
        return -1;
    }
    if (strspn(digits + 1, "0123456789") != 2 || digits[3] != '$' ||
        strspn(digits + 4, alphabet) != strlen(digits + 4) || strlen(hash) != WEB_AUTH_HASH_LENGTH) {
        *ret_problem =
            "is a damaged bcrypt hash: it must have 60 characters, $2y$10$ and 53 of A-Z a-z 0-9 . /; copy it "
            "whole";
        return -1;
    }
    int cost = 10 * (digits[1] - '0') + (digits[2] - '0');
    if (cost < WEB_AUTH_COST_MIN || cost > WEB_AUTH_COST_MAX) {
        *ret_problem = "has a bcrypt cost outside 4 to 31; make one with: htpasswd -nBC 10 \"\"";
        return -1;
    }
    return cost;
}

int web_auth_create(struct web_auth **ret, const struct web_user *users, unsigned count)
{
    struct web_auth *auth = calloc(1, sizeof *auth + count * sizeof auth->remembered[0]);

    assert(count > 0);
    if (!auth)
        return -ENOMEM;
    if (gnutls_rnd(GNUTLS_RND_KEY, auth->key, sizeof auth->key) != 0) {
        free(auth);
        return -EIO;
    }
    auth->users = users;
    auth->user_count = count;
    (void)pthread_mutex_init(&auth->turn, NULL);
    (void)pthread_mutex_init(&auth->guard, NULL);
    *ret = auth;
    return 0;
}

void web_auth_free(struct web_auth *auth)
{
    if (!auth)
        return;
    (void)pthread_mutex_destroy(&auth->turn);
    (void)pthread_mutex_destroy(&auth->guard);
    explicit_bzero(auth->key, sizeof auth->key);
    free(auth);
}

static bool same(const char *a, const char *b)
{
    size_t length = strlen(a);

    return length == strlen(b) && gnutls_memcmp(a, b, length) == 0;
}

/* Looks at all of them, so that the place of a name in the file does not show in the time. */
static uint32_t find_user(const struct web_auth *auth, const char *name)
{
    uint32_t found = NO_USER;

    for (uint32_t i = 0; i < auth->user_count; i++)
        if (same(auth->users[i].name, name))
            found = i;
    return found;
}

/* Keyed hash of two texts. The first is taken with its NUL, so that no other pair gives the same bytes. */
static bool digest(const struct web_auth *auth, const char *first, const char *second, unsigned char ret[DIGEST_SIZE])
{
    gnutls_hmac_hd_t state;

    if (gnutls_hmac_init(&state, GNUTLS_MAC_SHA256, auth->key, sizeof auth->key) != 0)
        return false;
    bool good = gnutls_hmac(state, first, strlen(first) + 1) == 0 && gnutls_hmac(state, second, strlen(second)) == 0;
    gnutls_hmac_deinit(state, ret);
    return good;
}

void web_auth_inherit(struct web_auth *auth, struct web_auth *before)
{
    (void)pthread_mutex_lock(&before->guard);
    memcpy(auth->key, before->key, sizeof auth->key);
    for (uint32_t i = 0; i < auth->user_count; i++) {
        uint32_t user = find_user(before, auth->users[i].name);
        if (user != NO_USER && same(before->users[user].hash, auth->users[i].hash))
            auth->remembered[i] = before->remembered[user];
    }
    (void)pthread_mutex_unlock(&before->guard);
}

static bool is_remembered(struct web_auth *auth, uint32_t user, const unsigned char given[DIGEST_SIZE])
{
    (void)pthread_mutex_lock(&auth->guard);
    bool found = auth->remembered[user].filled && gnutls_memcmp(auth->remembered[user].digest, given, DIGEST_SIZE) == 0;
    (void)pthread_mutex_unlock(&auth->guard);
    return found;
}

static void remember(struct web_auth *auth, uint32_t user, const unsigned char given[DIGEST_SIZE])
{
    (void)pthread_mutex_lock(&auth->guard);
    memcpy(auth->remembered[user].digest, given, DIGEST_SIZE);
    auth->remembered[user].filled = true;
    (void)pthread_mutex_unlock(&auth->guard);
}

bool web_auth_remembers(struct web_auth *auth, const char *user, const char *password)
{
    unsigned char given[DIGEST_SIZE];
    uint32_t index = find_user(auth, user);

    return index != NO_USER && digest(auth, auth->users[index].hash, password, given) &&
           is_remembered(auth, index, given);
}

/* The user whose cost an unknown name takes: always the same one for a name, so that names of users with different
 * costs cannot be told from unknown ones either. */
static uint32_t stand_in(const struct web_auth *auth, const char *name)
{
    unsigned char bytes[DIGEST_SIZE];
    uint32_t number;

    if (!digest(auth, name, "", bytes))
        return 0;
    memcpy(&number, bytes, sizeof number);
    return number % auth->user_count;
}

/* Within a turn. What the salt is written like may differ from what crypt_r() makes of it, so it is not compared. */
static bool compute(struct web_auth *auth, const char *hash, const char *password)
{
    const char *made = crypt_r(password, hash, &auth->scratch);
    bool equal = made && strlen(made) == WEB_AUTH_HASH_LENGTH &&
                 gnutls_memcmp(made + SALTED_LENGTH, hash + SALTED_LENGTH, WEB_AUTH_HASH_LENGTH - SALTED_LENGTH) == 0;

    explicit_bzero(&auth->scratch, sizeof auth->scratch); /* it holds the password */
    return equal;
}

bool web_auth_check(struct web_auth *auth, const char *user, const char *password)
{
    uint32_t index = find_user(auth, user);
    const char *hash = auth->users[index == NO_USER ? stand_in(auth, user) : index].hash;
    unsigned char given[DIGEST_SIZE];

    if (!digest(auth, hash, password, given))
        return false;
    if (index != NO_USER && is_remembered(auth, index, given))
        return true;
    (void)pthread_mutex_lock(&auth->turn);
    /* Clients that come together after a start have one computation made, by the first of them. */
    bool good = index != NO_USER && is_remembered(auth, index, given);
    if (!good)
        good = compute(auth, hash, password) && index != NO_USER;
    if (good)
        remember(auth, index, given);
    (void)pthread_mutex_unlock(&auth->turn);
    return good;
}
