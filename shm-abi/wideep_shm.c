/* SPDX-License-Identifier: Apache-2.0
 *
 * libwideep_shm.so: the functions of wideep_shm.h as symbols, for languages that cannot include a header.
 */
#define WIDEEP_API __attribute__((visibility("default")))
#include "wideep_shm.h"
