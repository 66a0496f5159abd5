/* SPDX-License-Identifier: Apache-2.0
 *
 * A rank of an engine in C:  cc rank.c -o rank $(pkg-config --cflags wideep_shm)  &&  ./rank 0
 */
#include "wideep_shm.h"

enum { RANKS = 2, LAYERS = 3, LOGICAL = 6, PHYSICAL = 8, PASSES = 50 };

/* Stands for a forward pass: what this rank routed, and the expert in each physical slot. */
static void forward(uint64_t pass, int32_t loads[LAYERS][PHYSICAL], int32_t map[LAYERS][PHYSICAL])
{
    for (int layer = 0; layer < LAYERS; layer++)
        for (int p = 0; p < PHYSICAL; p++) {
            loads[layer][p] = (int32_t)(pass + (uint64_t)(layer + p));
            map[layer][p] = p % LOGICAL;
        }
}

int main(int argc, char **argv)
{
    static int32_t loads[LAYERS][PHYSICAL], map[LAYERS][PHYSICAL];
    struct wideep_config config = {.engine = 0,
                                   .rank = argc > 1 ? (uint32_t)atoi(argv[1]) : 0,
                                   .ep_size = RANKS,
                                   .model_count = 1,
                                   .models = {{"example", LAYERS, LOGICAL, PHYSICAL}}};
    struct wideep_writer *writer = NULL;
    int error = wideep_create(&writer, &config);
    if (error) {
        (void)fprintf(stderr, "wideep: %s\n", wideep_error_text(error));
        return 1;
    }
    int told = 0; /* an engine's log is for other things */
    for (uint64_t n = 0; n < PASSES; n++) {
        struct wideep_pass pass = {.pass = n, .step = (uint32_t)n};
        forward(n, loads, map);
        error = wideep_record_pass(writer, &pass, &loads[0][0], &map[0][0]);
        if (!error && n % 10 == 0) /* in an engine: about once a second, and while it is idle too */
            error = wideep_check(writer);
        if (error && error != told)
            (void)fprintf(stderr, "wideep: %s\n", wideep_error_text(error));
        told = error;
    }
    (void)wideep_rearrangement_begin(writer, 0, WIDEEP_SYNC); /* before the engine blocks */
    (void)wideep_rearrangement_end(writer, 0, NULL);
    wideep_close(&writer);
    return 0;
}
