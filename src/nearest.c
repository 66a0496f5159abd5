#include "nearest.h"

#include <limits.h>
#include <string.h>
#include <strings.h>

#define SLIP_MAX 6

/* How many letters to insert, to remove or to change. */
static unsigned edit_distance(const char *a, const char *b)
{
    unsigned row[NEAREST_LENGTH_MAX + 1];
    size_t n = strlen(b);

    if (n > NEAREST_LENGTH_MAX || strlen(a) > NEAREST_LENGTH_MAX)
        return UINT_MAX;
    for (unsigned j = 0; j <= n; j++)
        row[j] = j;
    for (unsigned i = 1; a[i - 1]; i++) {
        unsigned diagonal = row[0];
        row[0] = i;
        for (unsigned j = 1; j <= n; j++) {
            unsigned above = row[j];
            unsigned best = diagonal + (a[i - 1] != b[j - 1]);
            best = above + 1 < best ? above + 1 : best;
            row[j] = row[j - 1] + 1 < best ? row[j - 1] + 1 : best;
            diagonal = above;
        }
    }
    return row[n];
}

struct nearest nearest_to(const char *given)
{
    /* A third of its letters wrong is a slip, but not more than this; the rest is another word. */
    size_t slip = strlen(given) / 3 + 2;
    return (struct nearest){.given = given, .distance = slip < SLIP_MAX ? (unsigned)slip : SLIP_MAX};
}

void nearest_offer(struct nearest *nearest, const char *name)
{
    unsigned distance = strcasecmp(nearest->given, name) == 0 ? 0 : edit_distance(nearest->given, name);

    if (distance < nearest->distance) {
        nearest->distance = distance;
        nearest->name = name;
    }
}
