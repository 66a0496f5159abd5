/*
 * web_auth: checks passwords against bcrypt hashes without being slow for those who have been let in.
 *
 * bcrypt is made to be slow. So a user's last success is remembered, as a keyed hash of the password; the key is random
 * and lives as long as the object, so what is remembered is of no use to who reads the memory later. Wrong passwords
 * are computed one at a time: a client that guesses in a loop occupies one core at most, and those whose password is
 * remembered do not wait for it.
 */
#ifndef WIDEEP_WEB_AUTH_H
#define WIDEEP_WEB_AUTH_H

#include "web_config.h"

/* $2b$CC$, 22 characters of salt, 31 of hash. */
#define WEB_AUTH_HASH_LENGTH 60
#define WEB_AUTH_COST_MIN    4
#define WEB_AUTH_COST_MAX    31

/* Cost of a well-formed bcrypt hash, or -1 with what is wrong with it, and what to do. Any thread. */
int web_auth_cost(const char *hash, const char **ret_problem);

struct web_auth;

/* `users` stay the caller's and must outlive it; `count` is not 0, their hashes are well-formed. Returns 0, -ENOMEM, or
 * -EIO when there is no randomness to be had. */
int web_auth_create(struct web_auth **ret, const struct web_user *users, unsigned count);

/* Takes over what `before` remembers of users whose hash is the same. Before `auth` is used. */
void web_auth_inherit(struct web_auth *auth, struct web_auth *before);

/* NULL is allowed. */
void web_auth_free(struct web_auth *auth);

/* As web_config_authenticated_before(). */
bool web_auth_remembers(struct web_auth *auth, const char *user, const char *password);

/* As web_config_authenticate(). */
bool web_auth_check(struct web_auth *auth, const char *user, const char *password);

#endif
