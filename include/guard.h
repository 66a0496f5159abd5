/*
 * guard: survives the truncation of a file under its mapping.
 *
 * Reading beyond the end of a mapped file raises SIGBUS. For addresses in a guarded mapping the handler puts a zero
 * page there and flags the guard; any other SIGBUS ends the process as usual.
 *
 * One thread adds, removes and reads guarded mappings.
 */
#ifndef WIDEEP_GUARD_H
#define WIDEEP_GUARD_H

#include <stdbool.h>
#include <stddef.h>

#define GUARD_MAX 1025

/* Installs the handler of the process; once, before the first guarded mapping is read. Returns 0 or a negative errno.
 */
int guard_install(void);

/* Guards a mapping. Returns its guard, or -1 when there are GUARD_MAX. */
int guard_add(const void *base, size_t size);

/* Before the mapping goes. -1 is fine. */
void guard_remove(int guard);

/* Was a part of the file missing when it was read? */
bool guard_hit(int guard);

#endif
