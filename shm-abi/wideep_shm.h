/* SPDX-License-Identifier: Apache-2.0
 *
 * wideep_shm.h: the shared-memory ABI between the ranks of a wide expert-parallel engine and wideep-exporter.
 *
 * Header only: C11 or C++17, Linux, 64 bit, nothing to link. Include it before other system headers, or compile
 * with -D_GNU_SOURCE. shm-abi/README.md has the same format as tables, for writers and readers in other languages.
 *
 * THE SEGMENT
 *
 * One writer process owns one file: a rank (one EP rank of an engine) or a front end (one API process of an
 * engine). All integers are in the byte order and word size that the identity states.
 *
 *     0        4096      section table says where each of these begins (multiples of 64)
 *     +--------+------+--------+-----------+----------+-------------+---------------+
 *     |identity| live | totals | EPLB ring | DBO ring | rank tokens | expert tokens |
 *     +--------+------+--------+-----------+----------+-------------+---------------+
 *      written  single 64-bit    slots under a          cumulative 64-bit words
 *      once     words            sequence lock
 *
 * Everything that a rank counts is a cumulative 64-bit word in totals or in a token plane. The rings carry the same
 * passes as records, so that a reader can join the ranks of a group by pass; losing a record costs time resolution
 * and never a total.
 *
 * WRITER'S RULES
 *
 *  - One writer, wait-free: no lock, no compare-and-swap, no system call and no allocation in any record function
 *    (the clock is read through the vDSO). Each word is stored whole, so a writer killed between two instructions
 *    leaves each word as it was before or after its store.
 *  - Record n of a ring goes to slot n % count:
 *        seq = 2n+1 (relaxed) | release fence | payload words (relaxed) | seq = 2n+2 (release)
 *    and after the last record of a call, head = n+1 (release). Positions never wrap: 2^63 records do not happen.
 *  - Histogram sums are stored before their buckets, planes before recorded_passes, recorded_passes before head.
 *
 * READER'S RULES
 *
 *  - head (acquire) says which records exist: all n < head. The writer may be busy with `batch` more, so the oldest
 *    that can still be whole is head + batch - count.
 *  - seq (acquire) must be 2n+2 | copy the payload (relaxed) | acquire fence | seq (relaxed) must be unchanged.
 *    Otherwise the record is lost to this reader, who goes on: a dead writer leaves an odd seq for ever.
 *    Correctness: H. Boehm, "Can seqlocks get along with programming language memory models?", MSPC 2012.
 *  - Copy the identity to private memory, validate the copy with wideep_view_init(), and use only the copy.
 *
 * LIVENESS
 *
 * The writer holds a process-associated write lock (fcntl F_SETLK) on byte 0 of the file for as long as it lives; the
 * kernel drops it with the process. A reader asks with F_GETLK and looks at the answered type alone. The trap:
 * closing ANY descriptor of the file in the writing process drops the lock. So the writer's descriptor stays open,
 * and wideep_open() reads a segment that its own process writes through that very descriptor. Byte 1 is the claim of a
 * successor that is taking the name over.
 *
 * LINEAGE
 *
 * A fresh segment gets a random lineage. A successor (same file name, writer dead) inherits it with all totals that
 * have the same key (model name, layer, expert or rank), so counters survive restarts of the rank.
 */
#ifndef WIDEEP_SHM_H
#define WIDEEP_SHM_H

#if !defined(__SIZEOF_POINTER__) || __SIZEOF_POINTER__ != 8
#error "wideep_shm.h refuses 32-bit targets: its words are 64-bit atomics, build for a 64-bit target"
#endif

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#if !defined(MADV_WIPEONFORK) || !defined(O_PATH)
#error "include wideep_shm.h before other system headers, or compile with -D_GNU_SOURCE"
#endif

/* How the functions are declared. wideep_shm.c sets it to export them from libwideep_shm.so. */
#ifndef WIDEEP_API
#define WIDEEP_API static inline __attribute__((unused))
#endif

/* Marks each moment at which another process can see something new of a writer: after every store into a mapping, which
 * `word` leads to, and after every call that changes a file, a name or a lock (NULL). Nothing, unless a test that wants
 * to stop there defines it. */
#ifndef WIDEEP_I_POINT
#define WIDEEP_I_POINT(name, word) ((void)0)
#endif

#ifdef __cplusplus
#define WIDEEP_ASSERT(condition, text) static_assert(condition, text)
extern "C" {
#else
#define WIDEEP_ASSERT(condition, text) _Static_assert(condition, text)
#endif

/* ---- constants ---------------------------------------------------------------------------------------------- */

#define WIDEEP_MAGIC      "WIDEEPSM" /* 8 bytes, without the NUL */
#define WIDEEP_ABI_MAJOR  1u         /* another major: refuse */
#define WIDEEP_ABI_MINOR  0u         /* a higher minor adds section types or uses reserved words: read on */
#define WIDEEP_ENDIAN_TAG 0x01020304u
#define WIDEEP_WORD_BITS  64u

#define WIDEEP_IDENTITY_PAGE        4096u
#define WIDEEP_MAX_SECTIONS         16u
#define WIDEEP_MAX_MODELS           4u
#define WIDEEP_MAX_NAME             255u  /* bytes of a model name */
#define WIDEEP_MAX_INSTANCE         63u   /* bytes of an instance name: A-Z a-z 0-9 . _ -, no leading dot */
#define WIDEEP_MAX_LAYERS           512u  /* MoE layers of a model */
#define WIDEEP_MAX_LOGICAL_EXPERTS  4096u /* per layer */
#define WIDEEP_MAX_PHYSICAL_EXPERTS 8192u /* per layer */
#define WIDEEP_MAX_EP_SIZE          1024u
#define WIDEEP_MAX_NUMBER           65535u /* highest engine, rank and front-end number */
#define WIDEEP_MAX_UBATCHES         4u
#define WIDEEP_MAX_SEGMENT_SIZE     (1ull << 30)
#define WIDEEP_MAX_RING_SIZE        (64ull << 20)    /* bytes of a ring's slots */
#define WIDEEP_MAX_PASS             (UINT64_MAX / 2) /* highest pass number */
#define WIDEEP_MAX_PATH             512u             /* bytes of the directory's absolute path */

#define WIDEEP_RING_HEADER     128u       /* head has these bytes to itself */
#define WIDEEP_RING_PASSES     64u        /* depth of the EPLB ring in passes of all models */
#define WIDEEP_RING_MIN_PASSES 4u         /* kept even where WIDEEP_RING_MAX_SIZE would leave fewer: 35 MiB at most */
#define WIDEEP_RING_MAX_SIZE   (4u << 20) /* bytes of the EPLB ring's slots, unless they are too few passes */
#define WIDEEP_DBO_SLOTS       512u
#define WIDEEP_SLOT_HEADER     64u /* bytes of an EPLB slot before rank_tokens */

#define WIDEEP_STEP_UNKNOWN 0xffffffffu

enum wideep_role { WIDEEP_ROLE_RANK = 1, WIDEEP_ROLE_FRONTEND = 2 };

enum wideep_section_type {
    WIDEEP_SECTION_LIVE = 1,
    WIDEEP_SECTION_TOTALS = 2,
    WIDEEP_SECTION_EPLB_RING = 3,
    WIDEEP_SECTION_DBO_RING = 4,
    WIDEEP_SECTION_RANK_TOKENS = 5,
    WIDEEP_SECTION_EXPERT_TOKENS = 6
};

/* Flags of a segment (identity.flags). */
#define WIDEEP_LOADS_REPLICATED 1u /* the TP ranks of this engine route the same tokens: count tp_rank 0's alone */

/* Flags of an EPLB record. */
#define WIDEEP_REDUCED     1u  /* avg and max are of the whole group: this record stands for its pass and layer */
#define WIDEEP_PARTIAL     2u  /* rank_tokens are what this rank routed; sum them over the group's ranks */
#define WIDEEP_REBALANCING 4u  /* a rearrangement was under way when the record was made */
#define WIDEEP_FIRST       8u  /* first record of a pass of one model */
#define WIDEEP_LAST        16u /* last record of it: the pass is whole */

enum wideep_mode { WIDEEP_SYNC = 0, WIDEEP_ASYNC = 1 };
#define WIDEEP_MODES 2u

enum wideep_phase { WIDEEP_PREFILL = 0, WIDEEP_DECODE = 1 };
#define WIDEEP_PHASES 2u

/* What became of Dual Batch Overlap in one pass. From EMPTY_SECOND_UBATCH on it is a fallout, and the fallout's reason
 * is the outcome; BELOW_THRESHOLD and IDLE_RANK are ordinary. */
enum wideep_outcome {
    WIDEEP_ENGAGED = 0,
    WIDEEP_BELOW_THRESHOLD = 1,     /* every rank had too few tokens */
    WIDEEP_IDLE_RANK = 2,           /* a rank ran a dummy batch */
    WIDEEP_EMPTY_SECOND_UBATCH = 3, /* after padding, the last ubatch would have been empty */
    WIDEEP_COORDINATION_FAILURE = 4,
    WIDEEP_OTHER = 5
};
#define WIDEEP_OUTCOMES      6u
#define WIDEEP_FIRST_FALLOUT 3u

#define WIDEEP_DURATION_BUCKETS 13u /* 12 bounds and +Inf */
#define WIDEEP_UBATCH_BUCKETS   15u /* 14 bounds and +Inf */

/* live.recording */
enum wideep_recording { WIDEEP_RECORDING_UNKNOWN = 0, WIDEEP_RECORDING_YES = 1, WIDEEP_RECORDING_NO = 2 };

/* ---- the layout --------------------------------------------------------------------------------------------- */

struct wideep_section {
    uint32_t type;   /* enum wideep_section_type; skip what you do not know */
    uint32_t stride; /* rings: bytes of a slot; planes: bytes of a row; else 0 */
    uint64_t offset; /* from the start of the file, a multiple of 64 */
    uint64_t length; /* bytes */
    uint32_t count;  /* rings: slots; planes: rows; else 1 */
    uint32_t batch;  /* rings: most records that one call writes before it moves head: EPLB 1 … 512, DBO 1; else 0 */
};

struct wideep_model {
    char name[256];            /* served model name as given, NUL-terminated; may not be valid UTF-8 */
    uint32_t name_length;      /* 1 … 255 */
    uint32_t layers;           /* MoE layers; 0 for a front end */
    uint32_t logical_experts;  /* per layer */
    uint32_t physical_experts; /* per layer over the whole group, redundant ones included; a multiple of ep_ranks */
    uint32_t ep_ranks;         /* equals identity.ep_size */
    uint32_t reserved[3];
};

struct wideep_identity {
    char magic[8];
    uint32_t abi_major;
    uint32_t abi_minor;
    uint32_t endian;    /* WIDEEP_ENDIAN_TAG in the writer's byte order */
    uint32_t word_bits; /* 64 */
    uint64_t total_size;
    uint32_t identity_size; /* sizeof(struct wideep_identity) */
    uint32_t section_count;
    uint32_t section_size; /* sizeof(struct wideep_section) */
    uint32_t model_count;
    uint32_t model_size; /* sizeof(struct wideep_model) */
    uint32_t role;       /* enum wideep_role */
    uint32_t engine;     /* engine number, the label `engine` */
    uint32_t rank;       /* EP rank, or the front end's number */
    uint32_t ep_size;
    uint32_t tp_rank;
    uint32_t tp_size;
    uint32_t dp_rank;
    uint32_t dp_size;
    uint32_t flags;
    uint64_t group;             /* alike on the ranks that run collectives together; 0: this engine by itself */
    uint64_t instance_id;       /* random, of this segment */
    uint64_t lineage;           /* random, inherited at takeover */
    uint8_t boot_id[16];        /* of the kernel that the times below belong to */
    uint64_t start_realtime_ns; /* CLOCK_REALTIME at creation */
    uint64_t start_boottime_ns; /* CLOCK_BOOTTIME at creation */
    uint64_t pid_namespace;     /* inode of /proc/self/ns/pid */
    uint64_t process_start_ticks;
    uint32_t pid; /* in that namespace */
    uint32_t instance_length;
    char instance[64]; /* NUL-terminated */
    uint64_t reserved[3];
    struct wideep_section sections[WIDEEP_MAX_SECTIONS];
    struct wideep_model models[WIDEEP_MAX_MODELS];
};

struct wideep_live_model {
    uint64_t passes;               /* number of the newest pass + 1, recorded or not; 0: none yet */
    uint64_t pass_time_ns;         /* CLOCK_BOOTTIME of it */
    uint64_t rebalancing_since_ns; /* CLOCK_BOOTTIME; 0: no rearrangement under way */
    uint64_t rebalancing_mode;     /* enum wideep_mode, stored before rebalancing_since_ns: a sync one blocks */
    uint64_t since_rearrangement;  /* passes since the last rearrangement, the engine's own count where it gives one */
    uint64_t recording;            /* enum wideep_recording of the newest pass */
    uint64_t recorded_time_ns;     /* CLOCK_BOOTTIME of the newest recorded pass; 0: none yet */
    uint64_t reserved;
};

struct wideep_live {
    uint64_t activity;               /* +1 with every call of the writer */
    uint64_t closed_ns;              /* CLOCK_BOOTTIME of an orderly close; 0: open */
    uint64_t dbo_active;             /* bit 0: newest DBO pass was prefill and engaged; bit 1: decode and engaged */
    uint64_t dbo_passes;             /* number of the newest DBO pass + 1; 0: none yet */
    uint64_t dbo_time_ns;            /* CLOCK_BOOTTIME of it */
    uint64_t rearrangement_interval; /* configured passes between rearrangements; 0: unknown */
    uint64_t reserved[2];
    struct wideep_live_model models[WIDEEP_MAX_MODELS];
};

struct wideep_totals_model {
    uint64_t recorded_passes;      /* passes whose loads are in the planes; stored with release after them */
    uint64_t rearrangement_sum_ns; /* over both modes */
    /* [enum wideep_mode][le], not cumulative: the number of rearrangements by mode is the sum of its buckets */
    uint64_t rearrangement_bucket[WIDEEP_MODES][WIDEEP_DURATION_BUCKETS];
    uint64_t reserved[4];
};

struct wideep_totals {
    uint64_t prompt_tokens;
    uint64_t generation_tokens;
    uint64_t dbo_passes[WIDEEP_PHASES][WIDEEP_OUTCOMES]; /* fallouts by reason are the outcomes from 3 on */
    uint64_t ubatch_sum[WIDEEP_MAX_UBATCHES];            /* tokens */
    uint64_t ubatch_bucket[WIDEEP_MAX_UBATCHES][WIDEEP_UBATCH_BUCKETS]; /* not cumulative */
    uint64_t reserved[2];
    struct wideep_totals_model models[WIDEEP_MAX_MODELS];
};

/* One slot of the EPLB ring; stride = 64 + 4 × ep_size rounded up to a multiple of 64. */
struct wideep_eplb_slot {
    uint64_t seq;
    uint64_t pass;
    uint64_t time_ns;           /* CLOCK_BOOTTIME */
    uint64_t tags;              /* bits 0-7 model, 8-15 flags, 16-31 layer, 32-63 rearrangement step */
    double avg_tokens_per_rank; /* REDUCED: of the group; PARTIAL: of what this rank routed */
    double max_tokens_per_rank;
    double balancedness;                /* avg / max, 0 when no token was routed */
    uint64_t rearrangement_duration_ns; /* of a rearrangement that ended since the last recorded pass, else 0 */
    /* uint32_t rank_tokens[ep_size] follows: what this rank routed to each EP rank; nothing when REDUCED */
};

struct wideep_dbo_slot {
    uint64_t seq;
    uint64_t pass;
    uint64_t time_ns; /* CLOCK_BOOTTIME */
    uint64_t tags;    /* bytes 0 … 5 from the lowest: phase, prefill_active, decode_active, outcome, fallout_reason
                         (0 none, else 1 + outcome - 3), number of ubatches */
    uint64_t ubatch_tokens01; /* first in the low 32 bits, second in the high ones */
    uint64_t ubatch_tokens23; /* third, fourth */
    uint64_t reserved[2];
};

#define WIDEEP_AT(type, field, at) WIDEEP_ASSERT(offsetof(struct type, field) == (at), #type "." #field " moved")
#define WIDEEP_SIZE(type, size)    WIDEEP_ASSERT(sizeof(struct type) == (size), "struct " #type " changed its size")
WIDEEP_AT(wideep_section, type, 0);
WIDEEP_AT(wideep_section, stride, 4);
WIDEEP_AT(wideep_section, offset, 8);
WIDEEP_AT(wideep_section, length, 16);
WIDEEP_AT(wideep_section, count, 24);
WIDEEP_AT(wideep_section, batch, 28);
WIDEEP_SIZE(wideep_section, 32);
WIDEEP_AT(wideep_model, name, 0);
WIDEEP_AT(wideep_model, name_length, 256);
WIDEEP_AT(wideep_model, layers, 260);
WIDEEP_AT(wideep_model, logical_experts, 264);
WIDEEP_AT(wideep_model, physical_experts, 268);
WIDEEP_AT(wideep_model, ep_ranks, 272);
WIDEEP_AT(wideep_model, reserved, 276);
WIDEEP_SIZE(wideep_model, 288);
WIDEEP_AT(wideep_identity, magic, 0);
WIDEEP_AT(wideep_identity, abi_major, 8);
WIDEEP_AT(wideep_identity, abi_minor, 12);
WIDEEP_AT(wideep_identity, endian, 16);
WIDEEP_AT(wideep_identity, word_bits, 20);
WIDEEP_AT(wideep_identity, total_size, 24);
WIDEEP_AT(wideep_identity, identity_size, 32);
WIDEEP_AT(wideep_identity, section_count, 36);
WIDEEP_AT(wideep_identity, section_size, 40);
WIDEEP_AT(wideep_identity, model_count, 44);
WIDEEP_AT(wideep_identity, model_size, 48);
WIDEEP_AT(wideep_identity, role, 52);
WIDEEP_AT(wideep_identity, engine, 56);
WIDEEP_AT(wideep_identity, rank, 60);
WIDEEP_AT(wideep_identity, ep_size, 64);
WIDEEP_AT(wideep_identity, tp_rank, 68);
WIDEEP_AT(wideep_identity, tp_size, 72);
WIDEEP_AT(wideep_identity, dp_rank, 76);
WIDEEP_AT(wideep_identity, dp_size, 80);
WIDEEP_AT(wideep_identity, flags, 84);
WIDEEP_AT(wideep_identity, group, 88);
WIDEEP_AT(wideep_identity, instance_id, 96);
WIDEEP_AT(wideep_identity, lineage, 104);
WIDEEP_AT(wideep_identity, boot_id, 112);
WIDEEP_AT(wideep_identity, start_realtime_ns, 128);
WIDEEP_AT(wideep_identity, start_boottime_ns, 136);
WIDEEP_AT(wideep_identity, pid_namespace, 144);
WIDEEP_AT(wideep_identity, process_start_ticks, 152);
WIDEEP_AT(wideep_identity, pid, 160);
WIDEEP_AT(wideep_identity, instance_length, 164);
WIDEEP_AT(wideep_identity, instance, 168);
WIDEEP_AT(wideep_identity, reserved, 232);
WIDEEP_AT(wideep_identity, sections, 256);
WIDEEP_AT(wideep_identity, models, 768);
WIDEEP_SIZE(wideep_identity, 1920);
WIDEEP_AT(wideep_live_model, passes, 0);
WIDEEP_AT(wideep_live_model, pass_time_ns, 8);
WIDEEP_AT(wideep_live_model, rebalancing_since_ns, 16);
WIDEEP_AT(wideep_live_model, rebalancing_mode, 24);
WIDEEP_AT(wideep_live_model, since_rearrangement, 32);
WIDEEP_AT(wideep_live_model, recording, 40);
WIDEEP_AT(wideep_live_model, recorded_time_ns, 48);
WIDEEP_AT(wideep_live_model, reserved, 56);
WIDEEP_SIZE(wideep_live_model, 64);
WIDEEP_AT(wideep_live, activity, 0);
WIDEEP_AT(wideep_live, closed_ns, 8);
WIDEEP_AT(wideep_live, dbo_active, 16);
WIDEEP_AT(wideep_live, dbo_passes, 24);
WIDEEP_AT(wideep_live, dbo_time_ns, 32);
WIDEEP_AT(wideep_live, rearrangement_interval, 40);
WIDEEP_AT(wideep_live, reserved, 48);
WIDEEP_AT(wideep_live, models, 64);
WIDEEP_SIZE(wideep_live, 320);
WIDEEP_AT(wideep_totals_model, recorded_passes, 0);
WIDEEP_AT(wideep_totals_model, rearrangement_sum_ns, 8);
WIDEEP_AT(wideep_totals_model, rearrangement_bucket, 16);
WIDEEP_AT(wideep_totals_model, reserved, 224);
WIDEEP_SIZE(wideep_totals_model, 256);
WIDEEP_AT(wideep_totals, prompt_tokens, 0);
WIDEEP_AT(wideep_totals, generation_tokens, 8);
WIDEEP_AT(wideep_totals, dbo_passes, 16);
WIDEEP_AT(wideep_totals, ubatch_sum, 112);
WIDEEP_AT(wideep_totals, ubatch_bucket, 144);
WIDEEP_AT(wideep_totals, reserved, 624);
WIDEEP_AT(wideep_totals, models, 640);
WIDEEP_SIZE(wideep_totals, 1664);
WIDEEP_AT(wideep_eplb_slot, seq, 0);
WIDEEP_AT(wideep_eplb_slot, pass, 8);
WIDEEP_AT(wideep_eplb_slot, time_ns, 16);
WIDEEP_AT(wideep_eplb_slot, tags, 24);
WIDEEP_AT(wideep_eplb_slot, avg_tokens_per_rank, 32);
WIDEEP_AT(wideep_eplb_slot, max_tokens_per_rank, 40);
WIDEEP_AT(wideep_eplb_slot, balancedness, 48);
WIDEEP_AT(wideep_eplb_slot, rearrangement_duration_ns, 56);
WIDEEP_SIZE(wideep_eplb_slot, 64);
WIDEEP_AT(wideep_dbo_slot, seq, 0);
WIDEEP_AT(wideep_dbo_slot, pass, 8);
WIDEEP_AT(wideep_dbo_slot, time_ns, 16);
WIDEEP_AT(wideep_dbo_slot, tags, 24);
WIDEEP_AT(wideep_dbo_slot, ubatch_tokens01, 32);
WIDEEP_AT(wideep_dbo_slot, ubatch_tokens23, 40);
WIDEEP_AT(wideep_dbo_slot, reserved, 48);
WIDEEP_SIZE(wideep_dbo_slot, 64);
WIDEEP_ASSERT(sizeof(double) == 8, "double must be IEEE 754 binary64");
#undef WIDEEP_AT
#undef WIDEEP_SIZE

/* ---- words and fences --------------------------------------------------------------------------------------- */

/* ThreadSanitizer does not model fences. There, the payload accesses carry the order themselves, which is stronger
 * than the fences ask for. */
#if defined(__SANITIZE_THREAD__)
#define WIDEEP_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define WIDEEP_TSAN 1
#endif
#endif
#ifdef WIDEEP_TSAN
#define WIDEEP_FENCE_RELEASE() ((void)0)
#define WIDEEP_FENCE_ACQUIRE() ((void)0)
#define WIDEEP_PAYLOAD_STORE   __ATOMIC_RELEASE
#define WIDEEP_PAYLOAD_LOAD    __ATOMIC_ACQUIRE
#else
#define WIDEEP_FENCE_RELEASE() __atomic_thread_fence(__ATOMIC_RELEASE)
#define WIDEEP_FENCE_ACQUIRE() __atomic_thread_fence(__ATOMIC_ACQUIRE)
#define WIDEEP_PAYLOAD_STORE   __ATOMIC_RELAXED
#define WIDEEP_PAYLOAD_LOAD    __ATOMIC_RELAXED
#endif

/* A word of shared memory, without order. */
WIDEEP_API uint64_t wideep_load(const uint64_t *word)
{
    return __atomic_load_n(word, __ATOMIC_RELAXED);
}

/* A word of shared memory; what its writer stored before it is visible afterwards. */
WIDEEP_API uint64_t wideep_load_acquire(const uint64_t *word)
{
    return __atomic_load_n(word, __ATOMIC_ACQUIRE);
}

WIDEEP_API void wideep_i_store(uint64_t *word, uint64_t value)
{
    __atomic_store_n(word, value, __ATOMIC_RELAXED);
    WIDEEP_I_POINT("stored", word);
}

WIDEEP_API void wideep_i_store_release(uint64_t *word, uint64_t value)
{
    __atomic_store_n(word, value, __ATOMIC_RELEASE);
    WIDEEP_I_POINT("released", word);
}

/* A plain read and a plain store: the caller is the only writer of the word. gcc does not make one instruction of two
 * atomic accesses; the one it would make stores an aligned word whole, too. */
WIDEEP_API void wideep_i_add(uint64_t *word, uint64_t value)
{
#if defined(__x86_64__) && defined(__GNUC__) && !defined(WIDEEP_TSAN)
    __asm__("addq %1, %0" : "+m"(*word) : "er"(value) : "cc");
    WIDEEP_I_POINT("added", word);
#else
    wideep_i_store(word, wideep_load(word) + value);
#endif
}

WIDEEP_API uint64_t wideep_i_double_bits(double value)
{
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

WIDEEP_API double wideep_i_bits_double(uint64_t bits)
{
    double value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

WIDEEP_API uint64_t wideep_i_clock_ns(clockid_t clock)
{
    struct timespec now;
    if (clock_gettime(clock, &now) != 0)
        return 0;
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

WIDEEP_API uint64_t wideep_i_round_up(uint64_t value, uint64_t to)
{
    return (value + to - 1) / to * to;
}

/* ---- histogram bounds --------------------------------------------------------------------------------------- */

/* Upper bound of duration bucket i in nanoseconds, 0.05 s … 120 s; UINT64_MAX for the last. i < 13. */
WIDEEP_API uint64_t wideep_duration_bound_ns(unsigned i)
{
    static const uint32_t bounds_ms[WIDEEP_DURATION_BUCKETS - 1] = {50,   100,   250,   500,   1000,  2500,
                                                                    5000, 10000, 20000, 30000, 60000, 120000};
    return i < WIDEEP_DURATION_BUCKETS - 1 ? (uint64_t)bounds_ms[i] * 1000000u : UINT64_MAX;
}

WIDEEP_API unsigned wideep_duration_bucket(uint64_t duration_ns)
{
    unsigned i = 0;
    while (duration_ns > wideep_duration_bound_ns(i))
        i++;
    return i;
}

/* Upper bound of ubatch bucket i in tokens: 1, 2, 4 … 8192; UINT64_MAX for the last. i < 15. */
WIDEEP_API uint64_t wideep_ubatch_bound(unsigned i)
{
    return i < WIDEEP_UBATCH_BUCKETS - 1 ? (uint64_t)1 << i : UINT64_MAX;
}

WIDEEP_API unsigned wideep_ubatch_bucket(uint32_t tokens)
{
    unsigned i = tokens <= 1 ? 0u : 32u - (unsigned)__builtin_clz(tokens - 1);
    return i < WIDEEP_UBATCH_BUCKETS ? i : WIDEEP_UBATCH_BUCKETS - 1;
}

/* ---- reading ------------------------------------------------------------------------------------------------ */

/* Why a file is not a segment that this header can read. */
enum wideep_reason {
    WIDEEP_OK = 0,
    WIDEEP_BAD_EMPTY,     /* zero length */
    WIDEEP_BAD_TRUNCATED, /* shorter than it says, or than an identity */
    WIDEEP_BAD_MAGIC,
    WIDEEP_BAD_ENDIAN,
    WIDEEP_BAD_WORD_SIZE,
    WIDEEP_BAD_VERSION,
    WIDEEP_BAD_SIZE,    /* total_size or a structure size out of range */
    WIDEEP_BAD_LIMIT,   /* a count or number beyond the limits above */
    WIDEEP_BAD_NAME,    /* instance or model name without end, or not allowed */
    WIDEEP_BAD_SECTION, /* a section misaligned, past the end, overlapping, missing or of a wrong shape */
    WIDEEP_REASONS
};

WIDEEP_API const char *wideep_reason_name(enum wideep_reason reason)
{
    static const char *const names[WIDEEP_REASONS] = {"ok",         "empty",         "truncated",   "bad_magic",
                                                      "bad_endian", "bad_word_size", "bad_version", "bad_size",
                                                      "bad_limit",  "bad_name",      "bad_section"};
    return (unsigned)reason < WIDEEP_REASONS ? names[reason] : "unknown";
}

struct wideep_ring {
    const uint64_t *head; /* NULL: the segment has no such ring */
    const unsigned char *slots;
    uint32_t stride;
    uint32_t count;
    uint32_t batch;
};

/* A validated segment. `identity` is a private copy: nothing in it changes under the reader, all its numbers are
 * within the limits, its names are terminated. The pointers lead into the mapping. */
struct wideep_view {
    const unsigned char *base;
    uint64_t size; /* mapped bytes */
    int fd;      /* for wideep_writer_alive(); -1: not of wideep_open(), or this process has the writer's descriptor */
    int keep_fd; /* fd may belong to a segment of this process: closing it would drop its lock */
    struct wideep_identity identity;
    const struct wideep_live *live;
    const struct wideep_totals *totals;
    struct wideep_ring eplb, dbo;
    const uint64_t *rank_tokens;   /* [model][layer][ep_size], models one after another; NULL for a front end */
    const uint64_t *expert_tokens; /* [model][layer][logical_experts] */
};

/* First word of a model's part of a token plane. `experts`: of expert_tokens, else of rank_tokens. */
WIDEEP_API uint64_t wideep_plane_offset(const struct wideep_identity *identity, uint32_t model, int experts)
{
    uint64_t words = 0;
    for (uint32_t m = 0; m < model; m++)
        words +=
            (uint64_t)identity->models[m].layers * (experts ? identity->models[m].logical_experts : identity->ep_size);
    return words;
}

/* [A-Za-z0-9._-]{1,63}, no leading dot. */
WIDEEP_API int wideep_instance_valid(const char *name, size_t length)
{
    if (length < 1 || length > WIDEEP_MAX_INSTANCE || name[0] == '.')
        return 0;
    for (size_t i = 0; i < length; i++) {
        char c = name[i];
        if (!((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' || c == '_' ||
              c == '-'))
            return 0;
    }
    return 1;
}

/* The file name that belongs to an identity: wideep.<instance>.e<engine>.r<rank>, or .fe<k> for a front end.
 * `ret` holds at least 128 bytes. */
WIDEEP_API void wideep_segment_name(char *ret, size_t size, const char *instance, uint32_t role, uint32_t engine,
                                    uint32_t rank)
{
    (void)snprintf(ret, size, "wideep.%.63s.e%u.%s%u", instance, (unsigned)engine,
                   role == WIDEEP_ROLE_FRONTEND ? "fe" : "r", (unsigned)rank);
}

WIDEEP_API uint32_t wideep_i_slot_stride(uint32_t ep_size)
{
    return (uint32_t)wideep_i_round_up(WIDEEP_SLOT_HEADER + 4ull * ep_size, 64);
}

WIDEEP_API enum wideep_reason wideep_i_check_models(const struct wideep_identity *id)
{
    for (uint32_t m = 0; m < id->model_count; m++) {
        const struct wideep_model *model = &id->models[m];
        if (model->name_length < 1 || model->name_length > WIDEEP_MAX_NAME || model->name[model->name_length] != 0)
            return WIDEEP_BAD_NAME;
        if (id->role == WIDEEP_ROLE_FRONTEND)
            continue;
        if (model->layers > WIDEEP_MAX_LAYERS || model->logical_experts > WIDEEP_MAX_LOGICAL_EXPERTS ||
            model->physical_experts > WIDEEP_MAX_PHYSICAL_EXPERTS || model->ep_ranks != id->ep_size)
            return WIDEEP_BAD_LIMIT;
        if (model->layers > 0 &&
            (model->logical_experts < 1 || model->physical_experts < 1 || model->physical_experts % id->ep_size != 0))
            return WIDEEP_BAD_LIMIT;
    }
    return WIDEEP_OK;
}

/* The limits on count and batch bound what a reader may have to look through, and lose, because of a writer that it
 * does not trust. */
WIDEEP_API int wideep_i_ring_init(struct wideep_ring *ring, const unsigned char *base,
                                  const struct wideep_section *section, uint32_t stride, uint32_t max_batch)
{
    const uint64_t size = (uint64_t)section->count * stride;
    if (section->stride != stride || section->batch < 1 || section->batch > section->count ||
        section->batch > max_batch || size > WIDEEP_MAX_RING_SIZE || section->length != WIDEEP_RING_HEADER + size)
        return 0;
    ring->head = (const uint64_t *)(const void *)(base + section->offset);
    ring->slots = base + section->offset + WIDEEP_RING_HEADER;
    ring->stride = stride;
    ring->count = section->count;
    ring->batch = section->batch;
    return 1;
}

/* Walks the section table of the private copy; every offset that it stores has been checked against total_size. */
WIDEEP_API enum wideep_reason wideep_i_check_sections(struct wideep_view *view)
{
    const struct wideep_identity *id = &view->identity;
    uint64_t rank_words = wideep_plane_offset(id, id->model_count, 0);
    uint64_t expert_words = wideep_plane_offset(id, id->model_count, 1);
    uint32_t seen = 0;

    for (uint32_t i = 0; i < id->section_count; i++) {
        const struct wideep_section *s = &id->sections[i];
        if (s->offset % 64 != 0 || s->offset < WIDEEP_IDENTITY_PAGE || s->offset > id->total_size || s->length < 8 ||
            s->length > id->total_size - s->offset)
            return WIDEEP_BAD_SECTION;
        for (uint32_t j = 0; j < i; j++) {
            const struct wideep_section *other = &id->sections[j];
            if (s->offset < other->offset + other->length && other->offset < s->offset + s->length)
                return WIDEEP_BAD_SECTION;
        }
        if (s->type < 1 || s->type > WIDEEP_SECTION_EXPERT_TOKENS)
            continue;
        if (seen & (1u << s->type))
            return WIDEEP_BAD_SECTION;
        seen |= 1u << s->type;
        const void *at = view->base + s->offset;
        int good = 1;
        switch (s->type) {
        case WIDEEP_SECTION_LIVE:
            good = s->length >= sizeof(struct wideep_live);
            view->live = (const struct wideep_live *)at;
            break;
        case WIDEEP_SECTION_TOTALS:
            good = s->length >= sizeof(struct wideep_totals);
            view->totals = (const struct wideep_totals *)at;
            break;
        case WIDEEP_SECTION_EPLB_RING:
            good = wideep_i_ring_init(&view->eplb, view->base, s, wideep_i_slot_stride(id->ep_size), WIDEEP_MAX_LAYERS);
            break;
        case WIDEEP_SECTION_DBO_RING:
            good = wideep_i_ring_init(&view->dbo, view->base, s, sizeof(struct wideep_dbo_slot), 1);
            break;
        case WIDEEP_SECTION_RANK_TOKENS:
            good = s->length / 8 >= rank_words;
            view->rank_tokens = (const uint64_t *)at;
            break;
        default:
            good = s->length / 8 >= expert_words;
            view->expert_tokens = (const uint64_t *)at;
            break;
        }
        if (!good)
            return WIDEEP_BAD_SECTION;
    }
    if (!view->live || !view->totals)
        return WIDEEP_BAD_SECTION;
    if (expert_words > 0 && (!view->eplb.head || !view->rank_tokens || !view->expert_tokens))
        return WIDEEP_BAD_SECTION;
    return WIDEEP_OK;
}

/* Validates `size` mapped (or copied) bytes at `base`, which must be aligned to 64, as a segment. On WIDEEP_OK the
 * view is ready; else it says why not, and the view must not be used. The bytes may change meanwhile: only the private
 * copy is looked at. Any thread; no allocation, no system call. */
WIDEEP_API enum wideep_reason wideep_view_init(struct wideep_view *view, const void *base, uint64_t size)
{
    struct wideep_identity *id = &view->identity;

    memset(view, 0, sizeof *view);
    view->fd = -1;
    if (size == 0)
        return WIDEEP_BAD_EMPTY;
    if (size < WIDEEP_IDENTITY_PAGE)
        return WIDEEP_BAD_TRUNCATED;
    view->base = (const unsigned char *)base;
    view->size = size;
    memcpy(id, base, sizeof *id);
    if (memcmp(id->magic, WIDEEP_MAGIC, sizeof id->magic) != 0)
        return WIDEEP_BAD_MAGIC;
    if (id->endian != WIDEEP_ENDIAN_TAG)
        return WIDEEP_BAD_ENDIAN;
    if (id->word_bits != WIDEEP_WORD_BITS)
        return WIDEEP_BAD_WORD_SIZE;
    if (id->abi_major != WIDEEP_ABI_MAJOR)
        return WIDEEP_BAD_VERSION;
    if (id->identity_size != sizeof *id || id->section_size != sizeof(struct wideep_section) ||
        id->model_size != sizeof(struct wideep_model) || id->total_size < WIDEEP_IDENTITY_PAGE ||
        id->total_size > WIDEEP_MAX_SEGMENT_SIZE)
        return WIDEEP_BAD_SIZE;
    if (id->total_size > size)
        return WIDEEP_BAD_TRUNCATED;
    if ((id->role != WIDEEP_ROLE_RANK && id->role != WIDEEP_ROLE_FRONTEND) || id->section_count > WIDEEP_MAX_SECTIONS ||
        id->model_count < 1 || id->model_count > WIDEEP_MAX_MODELS || id->engine > WIDEEP_MAX_NUMBER ||
        id->rank > WIDEEP_MAX_NUMBER || id->tp_rank > WIDEEP_MAX_NUMBER)
        return WIDEEP_BAD_LIMIT;
    if (id->role == WIDEEP_ROLE_RANK && (id->ep_size > WIDEEP_MAX_EP_SIZE || id->rank >= id->ep_size))
        return WIDEEP_BAD_LIMIT;
    if (id->instance_length > WIDEEP_MAX_INSTANCE || id->instance[id->instance_length] != 0 ||
        !wideep_instance_valid(id->instance, id->instance_length))
        return WIDEEP_BAD_NAME;
    enum wideep_reason reason = wideep_i_check_models(id);
    if (reason != WIDEEP_OK)
        return reason;
    /* A front end counts no experts; what its table says of them must not size anything. */
    if (id->role == WIDEEP_ROLE_FRONTEND) {
        id->ep_size = 1;
        for (uint32_t m = 0; m < id->model_count; m++)
            id->models[m].layers = 0;
    }
    return wideep_i_check_sections(view);
}

/* Does a writer hold this file? Asks the kernel for a lock on byte 0; `fd` may be read-only. 1 yes, 0 no, or a
 * negative errno. A lock of the calling process itself is not seen. One system call. */
WIDEEP_API int wideep_writer_alive(int fd)
{
    struct flock lock;
    memset(&lock, 0, sizeof lock);
    lock.l_type = F_RDLCK;
    lock.l_whence = SEEK_SET;
    lock.l_len = 1;
    if (fcntl(fd, F_GETLK, &lock) != 0)
        return -errno;
    return lock.l_type != F_UNLCK;
}

struct wideep_eplb_record {
    uint64_t pass;
    uint64_t time_ns;
    uint32_t model;
    uint32_t layer;
    uint32_t flags;
    uint32_t step; /* WIDEEP_STEP_UNKNOWN: the engine has none */
    double avg_tokens_per_rank;
    double max_tokens_per_rank;
    double balancedness;
    uint64_t rearrangement_duration_ns;
};

struct wideep_dbo_record {
    uint64_t pass;
    uint64_t time_ns;
    uint32_t phase; /* enum wideep_phase */
    uint32_t prefill_active;
    uint32_t decode_active;
    uint32_t outcome;        /* enum wideep_outcome */
    uint32_t fallout_reason; /* 0: no fallout; else an enum wideep_outcome from WIDEEP_FIRST_FALLOUT on */
    uint32_t ubatches;
    uint32_t ubatch_tokens[WIDEEP_MAX_UBATCHES];
};

enum wideep_read {
    WIDEEP_READ_OK = 0,
    WIDEEP_READ_OVERRUN, /* overwritten before it was read */
    WIDEEP_READ_TORN,    /* overwritten while it was being copied */
    WIDEEP_READ_INVALID  /* a sequence number or content that no writer of this format makes */
};

/* Number of records ever written. Pairs with the release of head in wideep_i_ring_publish(). */
WIDEEP_API uint64_t wideep_ring_head(const struct wideep_ring *ring)
{
    return wideep_load_acquire(ring->head);
}

/* Oldest record that may still be whole when `head` records are written. */
WIDEEP_API uint64_t wideep_ring_tail(const struct wideep_ring *ring, uint64_t head)
{
    uint64_t depth = ring->count - ring->batch;
    return head > depth ? head - depth : 0;
}

/* Where record n is, if it is whole. Never waits, never retries: a slot that is being overwritten is lost. */
WIDEEP_API enum wideep_read wideep_i_slot_find(const struct wideep_ring *ring, uint64_t n, const uint64_t **ret_slot)
{
    const uint64_t *slot = (const uint64_t *)(const void *)(ring->slots + (n % ring->count) * ring->stride);
    *ret_slot = slot;
    /* Pairs with the release of 2n+2 in wideep_i_ring_end(). */
    uint64_t seq = wideep_load_acquire(slot);
    if (seq == 2 * n + 2)
        return WIDEEP_READ_OK;
    /* A later record of this slot, or one that cannot be. The writer is at most a batch ahead of head, and the head
     * seen here at most one publication old: an odd seq is ordered after the one before the newest alone. */
    uint64_t later = (seq - 1) / 2, end = wideep_load_acquire(ring->head) + 2 * (uint64_t)ring->batch;
    return seq > 2 * n + 2 && later < end && later % ring->count == n % ring->count ? WIDEEP_READ_OVERRUN
                                                                                    : WIDEEP_READ_INVALID;
}

/* A payload word of a slot, as it was at some moment. */
WIDEEP_API uint64_t wideep_i_slot_word(const uint64_t *slot, uint32_t i)
{
    return __atomic_load_n(slot + i, WIDEEP_PAYLOAD_LOAD);
}

/* Were all words that were copied those of record n? */
WIDEEP_API enum wideep_read wideep_i_slot_check(const uint64_t *slot, uint64_t n)
{
    /* Pairs with the release fence in wideep_i_ring_begin(): had a payload word come from a later record, its odd seq
     * would be seen here. */
    WIDEEP_FENCE_ACQUIRE();
    return wideep_load(slot) == 2 * n + 2 ? WIDEEP_READ_OK : WIDEEP_READ_TORN;
}

/* The 32-bit values behind an EPLB slot's header: two, or the first of two, of a word. */
WIDEEP_API void wideep_i_slot_pair(const uint64_t *word, uint32_t *ret, uint32_t values)
{
    const uint64_t pair = wideep_i_slot_word(word, 0);
    memcpy(ret, &pair, values * sizeof *ret);
}

/* By eights, as compilers do not unroll such a loop themselves. */
WIDEEP_API void wideep_i_slot_tokens(const uint64_t *slot, uint32_t *ret, uint32_t ep_size)
{
    const uint64_t *word = slot + WIDEEP_SLOT_HEADER / 8;
    for (; ep_size >= 8; ep_size -= 8, ret += 8, word += 4) {
        wideep_i_slot_pair(word, ret, 2);
        wideep_i_slot_pair(word + 1, ret + 2, 2);
        wideep_i_slot_pair(word + 2, ret + 4, 2);
        wideep_i_slot_pair(word + 3, ret + 6, 2);
    }
    for (; ep_size >= 2; ep_size -= 2, ret += 2, word++)
        wideep_i_slot_pair(word, ret, 2);
    if (ep_size > 0)
        wideep_i_slot_pair(word, ret, 1);
}

/* Reads record n of the EPLB ring, n < head. `ret_rank_tokens` has room for ep_size values, or is NULL; those of a
 * REDUCED record are 0. On anything but WIDEEP_READ_OK the outputs are undefined. What is returned is within range:
 * model < model_count, layer < layers. */
WIDEEP_API enum wideep_read wideep_eplb_read(const struct wideep_view *view, uint64_t n, struct wideep_eplb_record *ret,
                                             uint32_t *ret_rank_tokens)
{
    const uint64_t *slot;
    enum wideep_read result = wideep_i_slot_find(&view->eplb, n, &slot);
    if (result != WIDEEP_READ_OK)
        return result;
    const uint64_t tags = wideep_i_slot_word(slot, 3);
    ret->pass = wideep_i_slot_word(slot, 1);
    ret->time_ns = wideep_i_slot_word(slot, 2);
    ret->model = (uint32_t)(tags & 0xff);
    ret->flags = (uint32_t)(tags >> 8 & 0xff);
    ret->layer = (uint32_t)(tags >> 16 & 0xffff);
    ret->step = (uint32_t)(tags >> 32);
    ret->avg_tokens_per_rank = wideep_i_bits_double(wideep_i_slot_word(slot, 4));
    ret->max_tokens_per_rank = wideep_i_bits_double(wideep_i_slot_word(slot, 5));
    ret->balancedness = wideep_i_bits_double(wideep_i_slot_word(slot, 6));
    ret->rearrangement_duration_ns = wideep_i_slot_word(slot, 7);
    if (ret_rank_tokens && (ret->flags & WIDEEP_PARTIAL))
        wideep_i_slot_tokens(slot, ret_rank_tokens, view->identity.ep_size);
    else if (ret_rank_tokens)
        memset(ret_rank_tokens, 0, 4ull * view->identity.ep_size);
    result = wideep_i_slot_check(slot, n);
    if (result != WIDEEP_READ_OK)
        return result;
    /* Comparisons that hold, so that a NaN fails them. */
    if (ret->pass > WIDEEP_MAX_PASS || ret->model >= view->identity.model_count ||
        ret->layer >= view->identity.models[ret->model].layers ||
        !(ret->flags & WIDEEP_REDUCED) == !(ret->flags & WIDEEP_PARTIAL) ||
        !(ret->avg_tokens_per_rank >= 0 && ret->max_tokens_per_rank >= ret->avg_tokens_per_rank &&
          ret->max_tokens_per_rank <= 1e18) ||
        !(ret->balancedness >= 0 && ret->balancedness <= 1))
        return WIDEEP_READ_INVALID;
    return WIDEEP_READ_OK;
}

/* Reads record n of the DBO ring, n < head. As wideep_eplb_read(). */
WIDEEP_API enum wideep_read wideep_dbo_read(const struct wideep_view *view, uint64_t n, struct wideep_dbo_record *ret)
{
    const uint64_t *slot;
    enum wideep_read result = wideep_i_slot_find(&view->dbo, n, &slot);
    if (result != WIDEEP_READ_OK)
        return result;
    const uint64_t tags = wideep_i_slot_word(slot, 3);
    const uint64_t tokens01 = wideep_i_slot_word(slot, 4), tokens23 = wideep_i_slot_word(slot, 5);
    const uint32_t fallout = (uint32_t)(tags >> 32 & 0xff);
    ret->pass = wideep_i_slot_word(slot, 1);
    ret->time_ns = wideep_i_slot_word(slot, 2);
    ret->phase = (uint32_t)(tags & 0xff);
    ret->prefill_active = (uint32_t)(tags >> 8 & 0xff);
    ret->decode_active = (uint32_t)(tags >> 16 & 0xff);
    ret->outcome = (uint32_t)(tags >> 24 & 0xff);
    ret->fallout_reason = fallout ? fallout - 1 + WIDEEP_FIRST_FALLOUT : 0;
    ret->ubatches = (uint32_t)(tags >> 40 & 0xff);
    ret->ubatch_tokens[0] = (uint32_t)tokens01;
    ret->ubatch_tokens[1] = (uint32_t)(tokens01 >> 32);
    ret->ubatch_tokens[2] = (uint32_t)tokens23;
    ret->ubatch_tokens[3] = (uint32_t)(tokens23 >> 32);
    result = wideep_i_slot_check(slot, n);
    if (result != WIDEEP_READ_OK)
        return result;
    if (ret->pass > WIDEEP_MAX_PASS || ret->phase >= WIDEEP_PHASES || ret->outcome >= WIDEEP_OUTCOMES ||
        ret->ubatches > WIDEEP_MAX_UBATCHES || ret->fallout_reason >= WIDEEP_OUTCOMES)
        return WIDEEP_READ_INVALID;
    return WIDEEP_READ_OK;
}

/* ---- who am I ----------------------------------------------------------------------------------------------- */

struct wideep_i_process {
    uint64_t pid_namespace;
    uint64_t start_ticks;
    uint32_t pid;
};

WIDEEP_API int wideep_i_read_file(const char *path, char *ret, size_t size)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    ssize_t n = read(fd, ret, size - 1);
    int error = errno;
    (void)close(fd);
    if (n < 0)
        return -error;
    ret[n] = 0;
    return 0;
}

WIDEEP_API void wideep_i_process_self(struct wideep_i_process *ret)
{
    char text[1024];
    struct stat st;

    memset(ret, 0, sizeof *ret);
    ret->pid = (uint32_t)getpid();
    if (stat("/proc/self/ns/pid", &st) == 0)
        ret->pid_namespace = (uint64_t)st.st_ino;
    if (wideep_i_read_file("/proc/self/stat", text, sizeof text) != 0)
        return;
    /* The command name may hold anything, so count the fields from its closing bracket: the start time is field 22. */
    char *at = strrchr(text, ')');
    for (int field = 2; at && field < 22; field++)
        at = strchr(at + 1, ' ');
    if (at)
        ret->start_ticks = strtoull(at + 1, NULL, 10);
}

/* 0 is what nobody could find out: it differs from nothing. */
WIDEEP_API int wideep_i_may_equal(uint64_t a, uint64_t b)
{
    return a == b || a == 0 || b == 0;
}

/* Is this process the one that wrote the identity? Yes also where the system does not let us tell (no descriptor free,
 * no /proc): a wrong yes costs a descriptor, a wrong no the writer's lock. */
WIDEEP_API int wideep_i_own(const struct wideep_identity *identity)
{
    struct wideep_i_process self;
    if (identity->pid != (uint32_t)getpid())
        return 0;
    wideep_i_process_self(&self);
    return wideep_i_may_equal(identity->pid_namespace, self.pid_namespace) &&
           wideep_i_may_equal(identity->process_start_ticks, self.start_ticks);
}

WIDEEP_API int wideep_i_own_file(int fd)
{
    struct wideep_identity identity;
    return pread(fd, &identity, sizeof identity, 0) == (ssize_t)sizeof identity && wideep_i_own(&identity);
}

/* A descriptor of this process, other than fd, that has the file open for writing; -1: none, -2: cannot tell. */
WIDEEP_API int wideep_i_writing_fd(int fd, const struct stat *st)
{
    int found = -1;
    DIR *directory = opendir("/proc/self/fd");
    if (!directory)
        return -2;
    for (struct dirent *entry; found < 0 && (entry = readdir(directory)) != NULL;) {
        struct stat other;
        int number = atoi(entry->d_name);
        if (entry->d_name[0] == '.' || number == fd || number == dirfd(directory) || fstat(number, &other) != 0)
            continue;
        if (other.st_dev == st->st_dev && other.st_ino == st->st_ino && (fcntl(number, F_GETFL) & O_ACCMODE) == O_RDWR)
            found = number;
    }
    (void)closedir(directory);
    return found;
}

/* The descriptor by which this process writes the segment under this path; -1: none was found. Opens nothing, so that
 * nothing need be closed. */
WIDEEP_API int wideep_i_writing_path(const char *path)
{
    struct stat st;
    if (lstat(path, &st) != 0 || !S_ISREG(st.st_mode))
        return -1;
    int number = wideep_i_writing_fd(-1, &st);
    /* A forked child has its parent's descriptor, but not its identity. */
    return number >= 0 && wideep_i_own_file(number) ? number : -1;
}

/* Does this process write the open file? If so, fd must not be closed: that would drop the lock. */
WIDEEP_API int wideep_i_writing_file(int fd)
{
    struct stat st;
    /* -2 counts as yes, the careful answer. */
    return wideep_i_own_file(fd) && fstat(fd, &st) == 0 && wideep_i_writing_fd(fd, &st) != -1;
}

/* How much of a file is of interest: what it says it needs, no more than it has. A size that no segment has is left to
 * wideep_view_init(), which needs one page to refuse it. */
WIDEEP_API uint64_t wideep_i_useful_size(int fd, uint64_t file_size)
{
    uint64_t size;
    if (pread(fd, &size, sizeof size, (off_t)offsetof(struct wideep_identity, total_size)) != (ssize_t)sizeof size ||
        size < WIDEEP_IDENTITY_PAGE || size > WIDEEP_MAX_SEGMENT_SIZE)
        size = WIDEEP_IDENTITY_PAGE;
    return size < file_size ? size : file_size;
}

/* Maps and validates an open file. fd stays the caller's. */
WIDEEP_API int wideep_i_open_map(struct wideep_view *ret, int fd, enum wideep_reason *ret_reason)
{
    struct stat st;
    enum wideep_reason reason = WIDEEP_BAD_EMPTY;

    if (fstat(fd, &st) != 0)
        return -errno;
    if (!S_ISREG(st.st_mode))
        return -EINVAL;
    if (st.st_size > 0) {
        uint64_t size = wideep_i_useful_size(fd, (uint64_t)st.st_size);
        void *base = mmap(NULL, (size_t)size, PROT_READ, MAP_SHARED, fd, 0);
        if (base == MAP_FAILED)
            return -errno;
        reason = wideep_view_init(ret, base, size);
        if (reason == WIDEEP_OK)
            return 0;
        (void)munmap(base, (size_t)size);
        ret->base = NULL; /* wideep_view_close() is harmless after a failure too */
    }
    if (ret_reason)
        *ret_reason = reason;
    return -EBADMSG;
}

/* Opens and maps a segment read-only. Returns 0 and a view for wideep_view_close(); -EBADMSG with `ret_reason` (may
 * be NULL) when it is not a valid segment; -EINVAL when it is no regular file; else a negative errno. Maps no more than
 * the segment's total_size. Reading a file that somebody truncates meanwhile raises SIGBUS.
 *
 * Any thread. Safe in the process that writes the segment, but not during a wideep_create(), wideep_check() or
 * wideep_close() of it. */
WIDEEP_API int wideep_open(struct wideep_view *ret, const char *path, enum wideep_reason *ret_reason)
{
    memset(ret, 0, sizeof *ret);
    ret->fd = -1;
    /* Of one's own segment nothing may be closed, so nothing is opened: the mapping does without a descriptor. */
    int writing = wideep_i_writing_path(path);
    if (writing >= 0)
        return wideep_i_open_map(ret, writing, ret_reason);
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0)
        return -errno;
    int error = wideep_i_open_map(ret, fd, ret_reason);
    int keep = wideep_i_writing_file(fd); /* no descriptor was found, but perhaps we could not look */
    if (error) {
        if (!keep)
            (void)close(fd);
        return error;
    }
    ret->fd = fd;
    ret->keep_fd = keep;
    return 0;
}

WIDEEP_API void wideep_view_close(struct wideep_view *view)
{
    if (view->base)
        (void)munmap((void *)(uintptr_t)view->base, (size_t)view->size);
    if (view->fd >= 0 && !view->keep_fd)
        (void)close(view->fd);
    view->base = NULL;
    view->fd = -1;
}

/* ---- writing: the handle ------------------------------------------------------------------------------------ */

struct wideep_model_config {
    const char *name;          /* served model name, 1 … 255 bytes, as the engine's own metrics carry it */
    uint32_t layers;           /* MoE layers, 0 … 512; 0 for a front end or a dense model */
    uint32_t logical_experts;  /* per layer, 1 … 4096 */
    uint32_t physical_experts; /* per layer over the whole group, a multiple of ep_size; 0: logical_experts */
};

/* Zero what you do not use: 0 means the default. */
struct wideep_config {
    const char *directory; /* NULL: $WIDEEP_SHM_DIR, else /dev/shm */
    const char *instance;  /* NULL: $WIDEEP_INSTANCE, else "default" */
    uint32_t role;         /* enum wideep_role; 0: rank */
    uint32_t engine;       /* engine (data-parallel) number */
    uint32_t rank;         /* EP rank; front end: its number */
    uint32_t ep_size;      /* 0: 1 */
    uint32_t tp_rank;
    uint32_t tp_size; /* 0: 1 */
    uint32_t dp_rank;
    uint32_t dp_size;     /* 0: 1 */
    uint32_t flags;       /* WIDEEP_LOADS_REPLICATED */
    uint32_t model_count; /* 1 … 4; models[0] is the one that DBO and token counters are of */
    uint64_t group;       /* alike on the ranks that run collectives together, e.g. a hash of their address; 0: this
                           * engine by itself */
    uint64_t rearrangement_interval; /* configured passes between rearrangements; 0: unknown */
    struct wideep_model_config models[WIDEEP_MAX_MODELS];
};

enum wideep_origin {
    WIDEEP_ORIGIN_FRESH = 1,    /* no predecessor: totals begin at 0 */
    WIDEEP_ORIGIN_TAKEOVER = 2, /* totals and lineage of a dead predecessor */
    WIDEEP_ORIGIN_REPLACED = 3  /* the name held something unreadable: totals begin at 0 */
};

#define WIDEEP_WRITER_MAGIC 0x5749444545505752ull

/* The writer's handle: private memory of one process, wiped in its forked children. Its fields are the header's own. */
struct wideep_writer {
    uint64_t magic; /* 0 in a forked child */
    int fd;         /* holds the lock: never closed but by wideep_close() */
    int stale;      /* another live segment has the name: nothing is written any more */
    enum wideep_origin origin;
    unsigned char *base;
    uint64_t size;
    struct wideep_live *live;
    struct wideep_totals *totals;
    unsigned char *eplb_slots, *dbo_slots;
    uint64_t *eplb_shared_head, *dbo_shared_head;
    uint64_t eplb_head, dbo_head; /* next position to write */
    uint32_t eplb_count, eplb_stride, dbo_count;
    uint64_t *rank_tokens[WIDEEP_MAX_MODELS], *expert_tokens[WIDEEP_MAX_MODELS];
    struct wideep_identity identity; /* as written */
    char directory[WIDEEP_MAX_PATH + 1];
    char name[128];
};

/* What a negative errno of this header means and what to do about it. Static text, any thread. */
WIDEEP_API const char *wideep_error_text(int error)
{
    switch (error < 0 ? -error : error) {
    case 0: return "no error";
    case EBUSY:
        return "a live process writes this segment; give each server on a host its own instance (WIDEEP_INSTANCE)";
    case EPERM:
        return "the dead segment belongs to another user and this directory does not let you replace it; remove the "
               "file as its owner, or use a directory of your own (WIDEEP_SHM_DIR)";
    case ENOSPC: return "the shared-memory directory is full; enlarge the tmpfs or remove dead segments";
    case ENOENT: return "the shared-memory directory does not exist; create it or set WIDEEP_SHM_DIR";
    case ENOTDIR: return "the shared-memory directory's path leads to a file; set WIDEEP_SHM_DIR to a directory";
    case EACCES:
        return "no permission to write in the shared-memory directory; allow it, or set WIDEEP_SHM_DIR to another one";
    case EROFS: return "the shared-memory directory is read-only; set WIDEEP_SHM_DIR to one that can be written to";
    case ECHILD: return "the handle belongs to the parent of this forked process; open a segment of its own here";
    case ESTALE: return "another live segment has taken the name; this writer has stopped";
    case EINVAL: return "an argument is out of range";
    case ERANGE: return "a load was negative or a map entry out of range; it was counted as 0, the rest was recorded";
    case ENAMETOOLONG: return "the model name exceeds 255 bytes, the instance 63 or the directory's path 512";
    case EALREADY: return "a rearrangement of this model is under way at its begin, or none at its end";
    case EBADMSG: return "the file is no segment that this version can read";
    case EEXIST: return "the segment's name is taken by something that is not a regular file; remove it";
    default: return strerror(error < 0 ? -error : error);
    }
}

WIDEEP_API int wideep_i_ready(const struct wideep_writer *w)
{
    if (!w)
        return -EINVAL;
    if (w->magic != WIDEEP_WRITER_MAGIC)
        return -ECHILD;
    return w->stale ? -ESTALE : 0;
}

/* How the totals of this segment began. */
WIDEEP_API enum wideep_origin wideep_origin(const struct wideep_writer *w)
{
    return w->origin;
}

/* ---- writing: creation and takeover ------------------------------------------------------------------------- */

WIDEEP_API int wideep_i_lock(int fd, int byte, short type)
{
    struct flock lock;
    memset(&lock, 0, sizeof lock);
    lock.l_type = type;
    lock.l_whence = SEEK_SET;
    lock.l_start = byte;
    lock.l_len = 1;
    if (fcntl(fd, F_SETLK, &lock) != 0)
        return -errno;
    WIDEEP_I_POINT("locked", NULL);
    return 0;
}

WIDEEP_API int wideep_i_path(char *ret, size_t size, const struct wideep_writer *w, const char *name)
{
    int n = snprintf(ret, size, "%s/%s", w->directory, name);
    return n < 0 || (size_t)n >= size ? -ENAMETOOLONG : 0;
}

WIDEEP_API int wideep_i_configure(struct wideep_writer *w, const struct wideep_config *config)
{
    struct wideep_identity *id = &w->identity;
    const char *directory = config->directory ? config->directory : getenv("WIDEEP_SHM_DIR");
    const char *instance = config->instance ? config->instance : getenv("WIDEEP_INSTANCE");

    if (!directory || !*directory)
        directory = "/dev/shm";
    if (!instance || !*instance)
        instance = "default";
    struct stat st;
    char *real = realpath(directory, NULL);
    if (!real)
        return -errno;
    if (stat(real, &st) == 0 && !S_ISDIR(st.st_mode)) {
        free(real);
        return -ENOTDIR;
    }
    size_t length = strlen(real);
    if (length <= WIDEEP_MAX_PATH)
        memcpy(w->directory, real, length + 1);
    free(real);
    if (length > WIDEEP_MAX_PATH)
        return -ENAMETOOLONG;

    memcpy(id->magic, WIDEEP_MAGIC, sizeof id->magic);
    id->abi_major = WIDEEP_ABI_MAJOR;
    id->abi_minor = WIDEEP_ABI_MINOR;
    id->endian = WIDEEP_ENDIAN_TAG;
    id->word_bits = WIDEEP_WORD_BITS;
    id->identity_size = sizeof *id;
    id->section_size = sizeof(struct wideep_section);
    id->model_size = sizeof(struct wideep_model);
    id->role = config->role ? config->role : (uint32_t)WIDEEP_ROLE_RANK;
    id->engine = config->engine;
    id->rank = config->rank;
    id->ep_size = config->ep_size && id->role == WIDEEP_ROLE_RANK ? config->ep_size : 1;
    id->tp_rank = config->tp_rank;
    id->tp_size = config->tp_size ? config->tp_size : 1;
    id->dp_rank = config->dp_rank;
    id->dp_size = config->dp_size ? config->dp_size : 1;
    id->flags = config->flags;
    id->group = config->group;
    length = strlen(instance);
    if (length > WIDEEP_MAX_INSTANCE)
        return -ENAMETOOLONG;
    if (!wideep_instance_valid(instance, length))
        return -EINVAL;
    memcpy(id->instance, instance, length);
    id->instance_length = (uint32_t)length;

    if ((id->role != WIDEEP_ROLE_RANK && id->role != WIDEEP_ROLE_FRONTEND) || config->model_count < 1 ||
        config->model_count > WIDEEP_MAX_MODELS || id->engine > WIDEEP_MAX_NUMBER || id->rank > WIDEEP_MAX_NUMBER ||
        id->tp_rank > WIDEEP_MAX_NUMBER || id->ep_size > WIDEEP_MAX_EP_SIZE ||
        (id->role == WIDEEP_ROLE_RANK && id->rank >= id->ep_size))
        return -EINVAL;
    id->model_count = config->model_count;
    for (uint32_t m = 0; m < config->model_count; m++) {
        const struct wideep_model_config *from = &config->models[m];
        struct wideep_model *to = &id->models[m];
        if (!from->name || !*from->name)
            return -EINVAL;
        length = strlen(from->name);
        if (length > WIDEEP_MAX_NAME)
            return -ENAMETOOLONG;
        memcpy(to->name, from->name, length);
        to->name_length = (uint32_t)length;
        to->ep_ranks = id->ep_size;
        for (uint32_t other = 0; other < m; other++)
            if (strcmp(id->models[other].name, to->name) == 0)
                return -EINVAL;
        if (id->role == WIDEEP_ROLE_FRONTEND)
            continue;
        to->layers = from->layers;
        to->logical_experts = from->logical_experts;
        to->physical_experts = from->physical_experts ? from->physical_experts : from->logical_experts;
    }
    if (wideep_i_check_models(id) != WIDEEP_OK)
        return -EINVAL;
    wideep_segment_name(w->name, sizeof w->name, id->instance, id->role, id->engine, id->rank);
    return 0;
}

WIDEEP_API void wideep_i_add_section(struct wideep_identity *id, uint32_t type, uint64_t length, uint32_t stride,
                                     uint32_t count, uint32_t batch)
{
    struct wideep_section *section = &id->sections[id->section_count++];
    section->type = type;
    section->stride = stride;
    section->offset = id->total_size;
    section->length = length;
    section->count = count;
    section->batch = batch;
    id->total_size = wideep_i_round_up(id->total_size + length, 128);
}

WIDEEP_API void wideep_i_lay_out(struct wideep_identity *id)
{
    uint32_t layers = 0, widest = 0;
    for (uint32_t m = 0; m < id->model_count; m++) {
        layers += id->models[m].layers;
        widest = id->models[m].layers > widest ? id->models[m].layers : widest;
    }
    id->section_count = 0;
    id->total_size = WIDEEP_IDENTITY_PAGE;
    wideep_i_add_section(id, WIDEEP_SECTION_LIVE, sizeof(struct wideep_live), 0, 1, 0);
    wideep_i_add_section(id, WIDEEP_SECTION_TOTALS, sizeof(struct wideep_totals), 0, 1, 0);
    if (id->role == WIDEEP_ROLE_RANK) {
        uint32_t stride = wideep_i_slot_stride(id->ep_size);
        if (layers > 0) {
            uint32_t passes = WIDEEP_RING_MAX_SIZE / (stride * layers);
            passes = passes > WIDEEP_RING_PASSES ? WIDEEP_RING_PASSES : passes;
            passes = passes < WIDEEP_RING_MIN_PASSES ? WIDEEP_RING_MIN_PASSES : passes;
            /* The pass that is being written costs one more. */
            uint32_t count = passes * layers + widest;
            wideep_i_add_section(id, WIDEEP_SECTION_EPLB_RING, WIDEEP_RING_HEADER + (uint64_t)count * stride, stride,
                                 count, widest);
        }
        wideep_i_add_section(id, WIDEEP_SECTION_DBO_RING,
                             WIDEEP_RING_HEADER + (uint64_t)WIDEEP_DBO_SLOTS * sizeof(struct wideep_dbo_slot),
                             sizeof(struct wideep_dbo_slot), WIDEEP_DBO_SLOTS, 1);
        if (layers > 0) {
            wideep_i_add_section(id, WIDEEP_SECTION_RANK_TOKENS, 8 * wideep_plane_offset(id, id->model_count, 0),
                                 8 * id->ep_size, layers, 0);
            /* Rows of this plane differ between models, so it has no stride. */
            wideep_i_add_section(id, WIDEEP_SECTION_EXPERT_TOKENS, 8 * wideep_plane_offset(id, id->model_count, 1), 0,
                                 layers, 0);
        }
    }
    id->total_size = wideep_i_round_up(id->total_size, WIDEEP_IDENTITY_PAGE);
}

/* Fields that belong to this process and this moment. */
WIDEEP_API int wideep_i_stamp(struct wideep_identity *id, uint64_t lineage)
{
    struct wideep_i_process self;
    uint64_t random[2];
    char text[64] = {0};

    if (getrandom(random, sizeof random, 0) != (ssize_t)sizeof random)
        return -EIO;
    id->instance_id = random[0];
    id->lineage = lineage ? lineage : (random[1] | 1);
    wideep_i_process_self(&self);
    id->pid = self.pid;
    id->pid_namespace = self.pid_namespace;
    id->process_start_ticks = self.start_ticks;
    id->start_realtime_ns = wideep_i_clock_ns(CLOCK_REALTIME);
    id->start_boottime_ns = wideep_i_clock_ns(CLOCK_BOOTTIME);
    if (wideep_i_read_file("/proc/sys/kernel/random/boot_id", text, sizeof text) == 0) {
        unsigned nibbles = 0;
        for (const char *c = text; *c && nibbles < 32; c++) {
            unsigned value = *c >= '0' && *c <= '9'   ? (unsigned)(*c - '0')
                             : *c >= 'a' && *c <= 'f' ? (unsigned)(*c - 'a') + 10u
                                                      : 16u;
            if (value == 16u)
                continue;
            id->boot_id[nibbles / 2] = (uint8_t)((unsigned)id->boot_id[nibbles / 2] << 4 | value);
            nibbles++;
        }
    }
    return 0;
}

/* Points the handle into a mapping whose identity is w->identity. */
WIDEEP_API void wideep_i_wire(struct wideep_writer *w, unsigned char *base)
{
    const struct wideep_identity *id = &w->identity;
    w->base = base;
    w->size = id->total_size;
    for (uint32_t i = 0; i < id->section_count; i++) {
        const struct wideep_section *s = &id->sections[i];
        void *at = base + s->offset;
        switch (s->type) {
        case WIDEEP_SECTION_LIVE: w->live = (struct wideep_live *)at; break;
        case WIDEEP_SECTION_TOTALS: w->totals = (struct wideep_totals *)at; break;
        case WIDEEP_SECTION_EPLB_RING:
            w->eplb_shared_head = (uint64_t *)at;
            w->eplb_slots = base + s->offset + WIDEEP_RING_HEADER;
            w->eplb_count = s->count;
            w->eplb_stride = s->stride;
            break;
        case WIDEEP_SECTION_DBO_RING:
            w->dbo_shared_head = (uint64_t *)at;
            w->dbo_slots = base + s->offset + WIDEEP_RING_HEADER;
            w->dbo_count = s->count;
            break;
        default:
            for (uint32_t m = 0; m < id->model_count; m++) {
                int experts = s->type == WIDEEP_SECTION_EXPERT_TOKENS;
                uint64_t *plane = (uint64_t *)at + wideep_plane_offset(id, m, experts);
                if (experts)
                    w->expert_tokens[m] = plane;
                else
                    w->rank_tokens[m] = plane;
            }
        }
    }
}

WIDEEP_API void wideep_i_copy_words(uint64_t *to, const uint64_t *from, uint64_t words)
{
    for (uint64_t i = 0; i < words; i++)
        wideep_i_store(to + i, wideep_load(from + i));
}

/* A copy of some other segment's file is no predecessor: it would give that one's lineage to two. */
WIDEEP_API int wideep_i_same_name(const struct wideep_identity *a, const struct wideep_identity *b)
{
    return a->role == b->role && a->engine == b->engine && a->rank == b->rank && strcmp(a->instance, b->instance) == 0;
}

/* Copies the totals of a dead predecessor by key into the fresh mapping. */
WIDEEP_API void wideep_i_inherit(struct wideep_writer *w, const struct wideep_view *old)
{
    const struct wideep_identity *id = &w->identity;

    /* Tokens and DBO are of models[0]: under another name they would be another series. */
    if (strcmp(id->models[0].name, old->identity.models[0].name) == 0)
        wideep_i_copy_words(&w->totals->prompt_tokens, &old->totals->prompt_tokens,
                            offsetof(struct wideep_totals, models) / 8);
    for (uint32_t m = 0; m < id->model_count; m++)
        for (uint32_t o = 0; o < old->identity.model_count; o++) {
            const struct wideep_model *to = &id->models[m], *from = &old->identity.models[o];
            if (strcmp(to->name, from->name) != 0)
                continue;
            wideep_i_copy_words(&w->totals->models[m].recorded_passes, &old->totals->models[o].recorded_passes,
                                sizeof(struct wideep_totals_model) / 8);
            if (!old->rank_tokens || !w->rank_tokens[m])
                continue;
            uint64_t layers = to->layers < from->layers ? to->layers : from->layers;
            uint64_t ranks = id->ep_size < old->identity.ep_size ? id->ep_size : old->identity.ep_size;
            uint64_t experts =
                to->logical_experts < from->logical_experts ? to->logical_experts : from->logical_experts;
            const uint64_t *rank_plane = old->rank_tokens + wideep_plane_offset(&old->identity, o, 0);
            const uint64_t *expert_plane = old->expert_tokens + wideep_plane_offset(&old->identity, o, 1);
            for (uint64_t l = 0; l < layers; l++) {
                wideep_i_copy_words(w->rank_tokens[m] + l * id->ep_size, rank_plane + l * old->identity.ep_size, ranks);
                wideep_i_copy_words(w->expert_tokens[m] + l * to->logical_experts,
                                    expert_plane + l * from->logical_experts, experts);
            }
        }
}

/* Makes a locked temporary of `size` bytes beside the name. The lock belongs to the inode, so the segment is alive from
 * the instant its name appears. */
WIDEEP_API int wideep_i_temporary(const struct wideep_writer *w, uint64_t size, int *ret_fd, char *ret_path,
                                  size_t path_size)
{
    uint64_t random;
    char name[192];

    if (getrandom(&random, sizeof random, 0) != (ssize_t)sizeof random)
        return -EIO;
    (void)snprintf(name, sizeof name, ".%s.%016llx", w->name, (unsigned long long)random);
    int error = wideep_i_path(ret_path, path_size, w, name);
    if (error)
        return error;
    int fd = open(ret_path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0644);
    if (fd < 0)
        return -errno;
    WIDEEP_I_POINT("temporary made", NULL);
    error = wideep_i_lock(fd, 0, F_WRLCK);
    /* The exporter may be another user, whatever the engine's umask is. */
    if (!error && fchmod(fd, 0644) != 0)
        error = -errno;
    WIDEEP_I_POINT("mode set", NULL);
    if (!error) {
        do
            error = -posix_fallocate(fd, 0, (off_t)size);
        while (error == -EINTR);
        WIDEEP_I_POINT("size set", NULL);
    }
    if (error) {
        (void)unlink(ret_path);
        WIDEEP_I_POINT("failed temporary removed", NULL);
        (void)close(fd);
        WIDEEP_I_POINT("failed temporary closed", NULL);
        return error;
    }
    *ret_fd = fd;
    return 0;
}

/* A forked child must neither write the segment nor keep it mapped. */
WIDEEP_API unsigned char *wideep_i_map(int fd, uint64_t size)
{
    void *base = mmap(NULL, (size_t)size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
    if (base == MAP_FAILED)
        return NULL;
    (void)madvise(base, (size_t)size, MADV_DONTFORK);
    return (unsigned char *)base;
}

/* Removes temporaries of this identity that nobody holds: their makers died, or will find them gone and start over. */
WIDEEP_API void wideep_i_sweep(const struct wideep_writer *w)
{
    char prefix[160], path[WIDEEP_MAX_PATH + 300];
    DIR *directory = opendir(w->directory);
    if (!directory)
        return;
    (void)snprintf(prefix, sizeof prefix, ".%s.", w->name);
    size_t length = strlen(prefix);
    for (struct dirent *entry; (entry = readdir(directory)) != NULL;) {
        if (strncmp(entry->d_name, prefix, length) != 0 || strlen(entry->d_name) != length + 16 ||
            wideep_i_path(path, sizeof path, w, entry->d_name) != 0)
            continue;
        int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
        if (fd < 0)
            continue;
        struct stat st;
        if (fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && wideep_writer_alive(fd) == 0)
            (void)unlink(path);
        WIDEEP_I_POINT("leftover removed", NULL);
        (void)close(fd);
    }
    (void)closedir(directory);
}

/* Gives a temporary its real name: with link() when that must be free, with rename() when the caller holds the claim
 * on the file that has it. -EAGAIN: that file is no longer there. */
WIDEEP_API int wideep_i_take_name(const char *temporary, const char *path, const struct stat *claimed)
{
    struct stat now;
    if (!claimed) {
        if (link(temporary, path) != 0)
            return -errno;
        WIDEEP_I_POINT("name linked", NULL);
        return 0;
    }
    /* The claim keeps starters away while its file has the name. Whoever deletes that lets one in, who must not be
     * replaced. */
    if (lstat(path, &now) != 0 || now.st_ino != claimed->st_ino || now.st_dev != claimed->st_dev)
        return -EAGAIN;
    if (rename(temporary, path) != 0)
        return -errno;
    WIDEEP_I_POINT("name replaced", NULL);
    return 0;
}

/* A segment under construction: a locked temporary, mapped. */
struct wideep_i_draft {
    unsigned char *base;
    uint64_t size;
    int fd;
    char temporary[WIDEEP_MAX_PATH + 300], path[WIDEEP_MAX_PATH + 300];
};

WIDEEP_API void wideep_i_draft_discard(struct wideep_i_draft *draft)
{
    (void)unlink(draft->temporary);
    WIDEEP_I_POINT("draft removed", NULL);
    if (draft->base)
        (void)munmap(draft->base, (size_t)draft->size);
    (void)close(draft->fd);
    WIDEEP_I_POINT("draft closed", NULL);
}

WIDEEP_API int wideep_i_draft_begin(const struct wideep_writer *w, struct wideep_i_draft *ret)
{
    ret->size = w->identity.total_size;
    int error = wideep_i_path(ret->path, sizeof ret->path, w, w->name);
    if (!error)
        error = wideep_i_temporary(w, ret->size, &ret->fd, ret->temporary, sizeof ret->temporary);
    if (error)
        return error;
    ret->base = wideep_i_map(ret->fd, ret->size);
    if (!ret->base) {
        error = -errno;
        wideep_i_draft_discard(ret);
    }
    return error;
}

/* Gives a filled draft the segment's name, with which its descriptor and mapping become the handle's; on failure the
 * draft is gone. */
WIDEEP_API int wideep_i_draft_publish(struct wideep_writer *w, struct wideep_i_draft *draft, const struct stat *claimed)
{
    int error = wideep_i_take_name(draft->temporary, draft->path, claimed);
    if (error) {
        wideep_i_draft_discard(draft);
        return error;
    }
    if (!claimed) {
        (void)unlink(draft->temporary);
        WIDEEP_I_POINT("temporary name removed", NULL);
    }
    w->fd = draft->fd;
    wideep_i_wire(w, draft->base);
    return 0;
}

/* Builds the segment of w->identity, with the totals of `old` (may be NULL). */
WIDEEP_API int wideep_i_build(struct wideep_writer *w, const struct wideep_view *old, const struct stat *claimed)
{
    struct wideep_i_draft draft;
    int error = wideep_i_stamp(&w->identity, old ? old->identity.lineage : 0);
    if (!error)
        error = wideep_i_draft_begin(w, &draft);
    if (error)
        return error;
    if (old) {
        wideep_i_wire(w, draft.base);
        wideep_i_inherit(w, old);
    }
    memcpy(draft.base, &w->identity, sizeof w->identity);
    WIDEEP_I_POINT("identity copied", NULL);
    return wideep_i_draft_publish(w, &draft, claimed);
}

/* Reads a dead segment into private memory (no mapping: it might be truncated under us). */
WIDEEP_API void *wideep_i_read_whole(int fd, uint64_t size)
{
    if (size < WIDEEP_IDENTITY_PAGE)
        return NULL;
    void *copy = mmap(NULL, (size_t)size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (copy == MAP_FAILED)
        return NULL;
    for (uint64_t at = 0; at < size;) {
        ssize_t n = pread(fd, (char *)copy + at, (size_t)(size - at), (off_t)at);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            break; /* what is missing stays 0 */
        at += (uint64_t)n;
    }
    return copy;
}

/* The name cannot be opened for writing: is its writer alive, or is the file just not ours? */
WIDEEP_API int wideep_i_foreign(const char *path)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0)
        return errno == ENOENT ? -EAGAIN : -EPERM;
    if (wideep_i_writing_file(fd))
        return -EBUSY;
    int alive = wideep_writer_alive(fd);
    (void)close(fd);
    return alive > 0 ? -EBUSY : -EPERM;
}

/* Opens the file that has the name and claims it, which gives the caller alone the right to replace it until he closes
 * `ret_fd`. -ENOENT: nobody has the name; -EBUSY: a live writer has; -EINPROGRESS: another starter has the claim;
 * -EAGAIN: the name moved on, start over; -EEXIST: no regular file; -EPERM: a dead one that is not ours to replace. */
WIDEEP_API int wideep_i_claim(const char *path, int *ret_fd, struct stat *ret_claimed)
{
    struct stat now;
    int error = 0, fd = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0) {
        if (errno == EACCES || errno == EPERM)
            return wideep_i_foreign(path);
        return errno == ELOOP || errno == EISDIR || errno == ENXIO ? -EEXIST : -errno;
    }
    if (wideep_i_writing_file(fd))
        return -EBUSY;
    if (fstat(fd, ret_claimed) != 0 || !S_ISREG(ret_claimed->st_mode))
        error = -EEXIST;
    else if (wideep_writer_alive(fd) > 0)
        error = -EBUSY;
    else if (wideep_i_lock(fd, 1, F_WRLCK) != 0)
        error = -EINPROGRESS;
    else if (wideep_writer_alive(fd) > 0)
        error = -EBUSY;
    else if (stat(path, &now) != 0 || now.st_ino != ret_claimed->st_ino || now.st_dev != ret_claimed->st_dev)
        error = -EAGAIN; /* before our claim counted */
    if (error)
        (void)close(fd);
    else
        *ret_fd = fd;
    WIDEEP_I_POINT("claim decided", NULL);
    return error;
}

/* Builds the segment in the place of a claimed file, with its totals where it is a segment of this identity. */
WIDEEP_API int wideep_i_succeed(struct wideep_writer *w, int fd, const struct stat *claimed)
{
    struct stat st;
    struct wideep_view *old = NULL;
    int error = 0;

    /* Dead since before the claim, so this reading is final. */
    uint64_t size = fstat(fd, &st) == 0 ? wideep_i_useful_size(fd, (uint64_t)st.st_size) : 0;
    void *copy = wideep_i_read_whole(fd, size);
    if (copy) {
        old = (struct wideep_view *)malloc(sizeof *old);
        if (!old)
            error = -ENOMEM;
        else if (wideep_view_init(old, copy, size) != WIDEEP_OK || !wideep_i_same_name(&old->identity, &w->identity) ||
                 old->identity.lineage == 0) {
            free(old);
            old = NULL;
        }
    }
    if (!error)
        error = wideep_i_build(w, old, claimed);
    w->origin = old ? WIDEEP_ORIGIN_TAKEOVER : WIDEEP_ORIGIN_REPLACED;
    free(old);
    if (copy)
        (void)munmap(copy, (size_t)size);
    return error;
}

/* One round of the creation loop: 0, -EAGAIN to start over (after a millisecond: -EINPROGRESS), or an error. */
WIDEEP_API int wideep_i_create_once(struct wideep_writer *w)
{
    char path[WIDEEP_MAX_PATH + 300];
    struct stat claimed;
    int fd = -1;

    int error = wideep_i_path(path, sizeof path, w, w->name);
    if (error)
        return error;
    if (wideep_i_writing_path(path) >= 0)
        return -EBUSY;
    error = wideep_i_claim(path, &fd, &claimed);
    if (error == -ENOENT) {
        error = wideep_i_build(w, NULL, NULL);
        w->origin = WIDEEP_ORIGIN_FRESH;
        return error == -EEXIST || error == -ENOENT ? -EAGAIN : error;
    }
    if (error)
        return error;
    error = wideep_i_succeed(w, fd, &claimed);
    /* Only now: until the new segment has the name, the claim keeps other starters away. */
    (void)close(fd);
    WIDEEP_I_POINT("claim released", NULL);
    return error == -ENOENT ? -EAGAIN : error; /* our temporary was swept, or the directory was */
}

/* Repeats a round that asked to start over, for at most two seconds of others being busy. */
WIDEEP_API int wideep_i_create_loop(struct wideep_writer *w)
{
    int error = -EAGAIN, busy = 0;
    for (int round = 0; round < 100000 && (error == -EAGAIN || error == -EINPROGRESS); round++) {
        if (error == -EINPROGRESS) {
            struct timespec pause;
            pause.tv_sec = 0;
            pause.tv_nsec = 1000000;
            if (++busy > 2000)
                return -EBUSY;
            (void)nanosleep(&pause, NULL);
        }
        /* The directory itself may be gone: then starting over would never end. */
        if (error == -EAGAIN && access(w->directory, X_OK) != 0)
            return -errno;
        error = wideep_i_create_once(w);
    }
    return error == -EAGAIN || error == -EINPROGRESS ? -EBUSY : error;
}

/* Creates the segment of an identity (instance, engine, role, rank), or takes over that of a dead predecessor.
 *
 * Returns 0 and a handle for wideep_close(). Errors, with nothing left behind: -EBUSY a live process (this one
 * included) writes it; -EPERM the dead file is another user's in a sticky directory; -ENOSPC the file system is full;
 * -EINVAL, -ENAMETOOLONG a value of the config is out of its range; -EEXIST the name is no regular file; -ENOENT,
 * -ENOTDIR, -EACCES, -EROFS the directory; else another negative errno. wideep_error_text() has advice.
 *
 * Blocks for up to two seconds while other starters race for the identity. One call at a time in a process. */
WIDEEP_API int wideep_create(struct wideep_writer **ret, const struct wideep_config *config)
{
    size_t size = (size_t)wideep_i_round_up(sizeof(struct wideep_writer), 65536);
    if (!ret || !config)
        return -EINVAL;
    void *page = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED)
        return -errno;
    struct wideep_writer *w = (struct wideep_writer *)page;
    int error = madvise(page, size, MADV_WIPEONFORK) == 0 ? 0 : -errno;
    if (!error)
        error = wideep_i_configure(w, config);
    if (!error) {
        wideep_i_lay_out(&w->identity);
        error = w->identity.total_size > WIDEEP_MAX_SEGMENT_SIZE ? -EINVAL : wideep_i_create_loop(w);
    }
    if (error) {
        (void)munmap(page, size);
        return error;
    }
    wideep_i_sweep(w);
    wideep_i_store(&w->live->rearrangement_interval, config->rearrangement_interval);
    w->magic = WIDEEP_WRITER_MAGIC;
    *ret = w;
    return 0;
}

/* Gives the segment a name again, as a copy of itself to the last byte (same lineage and instance id, so a reader goes
 * on where it was). */
WIDEEP_API int wideep_i_recreate(struct wideep_writer *w, const struct stat *claimed)
{
    struct wideep_i_draft draft;
    unsigned char *base = w->base;
    int fd = w->fd, error = wideep_i_draft_begin(w, &draft);
    if (error)
        return error;
    memcpy(draft.base, base, (size_t)w->size);
    WIDEEP_I_POINT("segment copied", NULL);
    error = wideep_i_draft_publish(w, &draft, claimed);
    if (error)
        return error;
    (void)munmap(base, (size_t)w->size);
    (void)close(fd);
    WIDEEP_I_POINT("old segment closed", NULL);
    return 0;
}

/* Another file has our name. A live writer's: -ESTALE. A dead one's: claim it and put ours in its place. */
WIDEEP_API int wideep_i_reclaim(struct wideep_writer *w, const char *path)
{
    struct wideep_identity other;
    struct stat claimed;
    int fd = -1, error = wideep_i_claim(path, &fd, &claimed);
    if (error)
        return error == -EBUSY ? -ESTALE : error == -ENOENT || error == -EINPROGRESS ? -EAGAIN : error;
    if (pread(fd, &other, sizeof other, 0) == (ssize_t)sizeof other && other.lineage == w->identity.lineage &&
        other.instance_id != w->identity.instance_id)
        error = -ESTALE; /* a successor took our totals over and counted on: ours are behind */
    else
        error = wideep_i_recreate(w, &claimed);
    (void)close(fd);
    WIDEEP_I_POINT("claim of a foreigner released", NULL);
    return error;
}

/* Asserts that the segment is still held and still has its name. Call it from the writer's thread, between passes and
 * from its idle loop, about once a second; it makes a few system calls.
 *
 * Name gone: the segment is linked anew with all it holds. The name is another live segment's: -ESTALE, and nothing is
 * written any more. Other errors (-ENOSPC, -EACCES …) leave the writer working; call again later. */
WIDEEP_API int wideep_check(struct wideep_writer *w)
{
    char path[WIDEEP_MAX_PATH + 300];
    struct stat own, named;

    int error = wideep_i_ready(w);
    if (error)
        return error;
    wideep_i_add(&w->live->activity, 1);
    error = wideep_i_lock(w->fd, 0, F_WRLCK);
    if (error)
        return error;
    error = wideep_i_path(path, sizeof path, w, w->name);
    if (error)
        return error;
    if (fstat(w->fd, &own) != 0)
        return -errno;
    error = -EAGAIN;
    for (int round = 0; round < 100 && error == -EAGAIN; round++) {
        if (lstat(path, &named) == 0) {
            if (named.st_ino == own.st_ino && named.st_dev == own.st_dev)
                return 0;
            error = wideep_i_reclaim(w, path);
        } else if (errno == ENOENT) {
            error = wideep_i_recreate(w, NULL);
            if (error == -EEXIST)
                error = -EAGAIN;
        } else {
            return -errno;
        }
    }
    if (error == -ESTALE)
        w->stale = 1;
    return error;
}

/* Marks the segment closed, keeps the file with its totals, frees the handle and sets *w to NULL. In a forked child
 * only the pointer goes. NULL is fine. */
WIDEEP_API void wideep_close(struct wideep_writer **w)
{
    if (!w || !*w)
        return;
    struct wideep_writer *writer = *w;
    *w = NULL;
    if (writer->magic != WIDEEP_WRITER_MAGIC)
        return;
    uint64_t now_ns = wideep_i_clock_ns(CLOCK_BOOTTIME);
    for (uint32_t m = 0; m < writer->identity.model_count; m++)
        wideep_i_store(&writer->live->models[m].rebalancing_since_ns, 0);
    wideep_i_store(&writer->live->dbo_active, 0);
    wideep_i_store_release(&writer->live->closed_ns, now_ns);
    (void)munmap(writer->base, (size_t)writer->size);
    (void)close(writer->fd);
    WIDEEP_I_POINT("closed", NULL);
    writer->magic = 0;
    (void)munmap(writer, (size_t)wideep_i_round_up(sizeof *writer, 65536));
}

/* ---- writing: records --------------------------------------------------------------------------------------- */
/*
 * All record functions: called by one thread at a time per handle. They return 0; -EINVAL for an argument out of range,
 * with nothing recorded; -ECHILD in a forked child and -ESTALE after wideep_check() said so, with nothing recorded. No
 * system call, no allocation, no waiting.
 */

WIDEEP_API void wideep_i_ring_begin(uint64_t *slot, uint64_t n)
{
    wideep_i_store(slot, 2 * n + 1);
    /* Pairs with the acquire fence in wideep_i_slot_check(). */
    WIDEEP_FENCE_RELEASE();
}

WIDEEP_API void wideep_i_ring_end(uint64_t *slot, uint64_t n)
{
    /* Pairs with the acquire of seq in wideep_i_slot_find(). */
    wideep_i_store_release(slot, 2 * n + 2);
}

WIDEEP_API void wideep_i_ring_publish(uint64_t *shared_head, uint64_t head)
{
    /* Pairs with the acquire in wideep_ring_head(). */
    wideep_i_store_release(shared_head, head);
}

WIDEEP_API void wideep_i_payload(uint64_t *slot, unsigned i, uint64_t value)
{
    __atomic_store_n(slot + i, value, WIDEEP_PAYLOAD_STORE);
    WIDEEP_I_POINT("payload stored", slot + i);
}

struct wideep_pass {
    uint64_t pass; /* number of the forward pass, from 0 at the group's initialisation, alike on all its ranks, strictly
                      increasing within a model, at most WIDEEP_MAX_PASS; passes may be left out (not recorded) */
    uint32_t model;                     /* index into config.models */
    uint32_t step;                      /* the engine's passes since the last rearrangement, or WIDEEP_STEP_UNKNOWN */
    uint64_t rearrangement_duration_ns; /* of a rearrangement that ended since the last recorded pass, else 0 */
};

WIDEEP_API int wideep_i_pass_valid(const struct wideep_writer *w, const struct wideep_pass *pass)
{
    int error = wideep_i_ready(w);
    if (error)
        return error;
    if (!pass || pass->model >= w->identity.model_count || pass->pass > WIDEEP_MAX_PASS)
        return -EINVAL;
    return 0;
}

/* Live words of a pass. */
WIDEEP_API void wideep_i_pass_live(struct wideep_writer *w, const struct wideep_pass *pass, uint64_t now_ns,
                                   enum wideep_recording recording)
{
    struct wideep_live_model *live = &w->live->models[pass->model];
    wideep_i_store(&live->since_rearrangement,
                   pass->step != WIDEEP_STEP_UNKNOWN ? pass->step : wideep_load(&live->since_rearrangement) + 1);
    wideep_i_store(&live->recording, (uint64_t)recording);
    if (recording == WIDEEP_RECORDING_YES)
        wideep_i_store(&live->recorded_time_ns, now_ns);
    wideep_i_store(&live->pass_time_ns, now_ns);
    wideep_i_store(&live->passes, pass->pass + 1);
    wideep_i_add(&w->live->activity, 1);
}

/* Tags of a record without its layer; `flags` are those that all records of the pass have. */
WIDEEP_API uint64_t wideep_i_tags(const struct wideep_writer *w, const struct wideep_pass *pass, uint32_t flags)
{
    if (wideep_load(&w->live->models[pass->model].rebalancing_since_ns) != 0)
        flags |= WIDEEP_REBALANCING;
    return (uint64_t)pass->model | (uint64_t)flags << 8 | (uint64_t)pass->step << 32;
}

/* Adds the layer, and whether it is the first or the last that the pass records. */
WIDEEP_API uint64_t wideep_i_layer_tags(uint64_t tags, uint32_t layer, int first, int last)
{
    const uint64_t flags = (first ? WIDEEP_FIRST : 0) | (last ? WIDEEP_LAST : 0);
    return tags | flags << 8 | (uint64_t)layer << 16;
}

WIDEEP_API void wideep_i_eplb_words(uint64_t *slot, const struct wideep_pass *pass, uint64_t now_ns, uint64_t tags,
                                    double avg, double max, double balancedness)
{
    wideep_i_payload(slot, 1, pass->pass);
    wideep_i_payload(slot, 2, now_ns);
    wideep_i_payload(slot, 3, tags);
    wideep_i_payload(slot, 4, wideep_i_double_bits(avg));
    wideep_i_payload(slot, 5, wideep_i_double_bits(max));
    wideep_i_payload(slot, 6, wideep_i_double_bits(balancedness));
    wideep_i_payload(slot, 7, pass->rearrangement_duration_ns);
}

WIDEEP_API uint64_t *wideep_i_eplb_slot(const struct wideep_writer *w, uint64_t n)
{
    return (uint64_t *)(void *)(w->eplb_slots + (n % w->eplb_count) * w->eplb_stride);
}

/* The slot after it, without a division. */
WIDEEP_API uint64_t *wideep_i_eplb_next(const struct wideep_writer *w, uint64_t *slot)
{
    unsigned char *next = (unsigned char *)slot + w->eplb_stride;
    if (next == w->eplb_slots + (size_t)w->eplb_count * w->eplb_stride)
        next = w->eplb_slots;
    return (uint64_t *)(void *)next;
}

/* Four 32-bit values at once: one register of a machine that has such, else what compilers make of it. */
typedef uint32_t wideep_i_four __attribute__((vector_size(16)));

WIDEEP_API wideep_i_four wideep_i_four_load(const int32_t *from)
{
    wideep_i_four four;
    memcpy(&four, from, sizeof four);
    return four;
}

#ifdef __has_builtin
#if __has_builtin(__builtin_shufflevector)
#define WIDEEP_SHUFFLE 1
#endif
#endif

/* The sums of four times four values. */
WIDEEP_API wideep_i_four wideep_i_four_sums(wideep_i_four a, wideep_i_four b, wideep_i_four c, wideep_i_four d)
{
#ifdef WIDEEP_SHUFFLE
    const wideep_i_four ab = __builtin_shufflevector(a, b, 0, 4, 1, 5) + __builtin_shufflevector(a, b, 2, 6, 3, 7);
    const wideep_i_four cd = __builtin_shufflevector(c, d, 0, 4, 1, 5) + __builtin_shufflevector(c, d, 2, 6, 3, 7);
    return __builtin_shufflevector(ab, cd, 0, 1, 4, 5) + __builtin_shufflevector(ab, cd, 2, 3, 6, 7);
#else
    const wideep_i_four sums = {a[0] + a[1] + a[2] + a[3], b[0] + b[1] + b[2] + b[3], c[0] + c[1] + c[2] + c[3],
                                d[0] + d[1] + d[2] + d[3]};
    return sums;
#endif
}

/* What the loads of one layer add up to. */
struct wideep_i_sums {
    uint64_t total, max;                     /* over the EP ranks */
    uint32_t tokens[WIDEEP_MAX_EP_SIZE + 1]; /* by EP rank, UINT32_MAX for what exceeds it; a 0 pairs with an odd one */
};

/* Fills in tokens[] of the first ranks, by fours, and returns of how many. It does not look at what it adds up: 0 when
 * a load is negative, or so large that a sum might have run over, and then tokens[] are of no use. Ranks have
 * `per_rank` loads each, at least four. */
WIDEEP_API uint32_t wideep_i_sum_fours(const int32_t *load, uint32_t ep_size, uint32_t per_rank, uint32_t *ret)
{
    /* A rank's loads are `fours` times four, and then its last four as far as they are not among those. */
    const size_t next = per_rank, fours = (next - 1) / 4, last = next - 4, left = next - 4 * fours;
    const wideep_i_four rest = {left > 3 ? UINT32_MAX : 0, left > 2 ? UINT32_MAX : 0, left > 1 ? UINT32_MAX : 0,
                                UINT32_MAX};
    wideep_i_four any = {0, 0, 0, 0};
    uint32_t rank = 0;
    for (; rank + 4 <= ep_size; rank += 4, load += 4 * next) {
        const int32_t *at = load;
        wideep_i_four a = wideep_i_four_load(load + last), b = wideep_i_four_load(load + next + last);
        wideep_i_four c = wideep_i_four_load(load + 2 * next + last), d = wideep_i_four_load(load + 3 * next + last);
        any |= a | b | c | d;
        a &= rest;
        b &= rest;
        c &= rest;
        d &= rest;
        for (size_t i = 0; i < fours; i++, at += 4) {
            const wideep_i_four e = wideep_i_four_load(at), f = wideep_i_four_load(at + next);
            const wideep_i_four g = wideep_i_four_load(at + 2 * next), h = wideep_i_four_load(at + 3 * next);
            any |= e | f | g | h;
            a += e;
            b += f;
            c += g;
            d += h;
        }
        const wideep_i_four sums = wideep_i_four_sums(a, b, c, d);
        memcpy(ret + rank, &sums, sizeof sums);
    }
    /* No load exceeds the bits of all of them, and a negative one has the highest: it passes for no number of loads. */
    const uint64_t bits = any[0] | any[1] | any[2] | any[3];
    return bits * per_rank <= INT32_MAX ? rank : 0;
}

/* Adds up one layer's loads by EP rank, and adds the sums to its row of the rank tokens. Returns 1 if a load was
 * negative, which counts as 0. */
WIDEEP_API int wideep_i_rank_sums(const int32_t *load, uint32_t ep_size, uint32_t per_rank, uint64_t *plane,
                                  struct wideep_i_sums *ret)
{
    const uint32_t done = per_rank >= 4 ? wideep_i_sum_fours(load, ep_size, per_rank, ret->tokens) : 0;
    uint64_t total = 0, max = 0;
    int32_t any = 0;
    for (uint32_t rank = 0; rank < done; rank++) {
        const uint64_t tokens = ret->tokens[rank];
        wideep_i_add(plane + rank, tokens);
        total += tokens;
        max = tokens > max ? tokens : max;
    }
    load += (size_t)done * per_rank;
    for (uint32_t rank = done; rank < ep_size; rank++) {
        uint64_t tokens = 0;
        for (uint32_t p = 0; p < per_rank; p++, load++) {
            any |= *load;
            tokens += (uint32_t)(*load > 0 ? *load : 0);
        }
        ret->tokens[rank] = tokens > UINT32_MAX ? UINT32_MAX : (uint32_t)tokens;
        wideep_i_add(plane + rank, tokens);
        total += tokens;
        max = tokens > max ? tokens : max;
    }
    ret->tokens[ep_size] = 0;
    ret->total = total;
    ret->max = max;
    return any < 0;
}

/* Adds to an expert; a map entry that is neither an expert nor -1 sets `bad`. */
WIDEEP_API void wideep_i_expert_add(uint64_t *experts, uint32_t logical, uint32_t expert, uint32_t tokens, int *bad)
{
    if (__builtin_expect(expert < logical, 1))
        wideep_i_add(experts + expert, tokens);
    else if (expert != UINT32_MAX)
        *bad = 1;
}

/* Adds one layer's loads, none of them negative, to its experts. Returns 1 if a map entry was bad. Each entry is
 * checked as it is used, not all of them before: the engine's memory might change in between. They are read two at a
 * time, whichever half of a word is which, because loads and stores are what bounds this loop. */
WIDEEP_API int wideep_i_experts_add(uint64_t *experts, uint32_t logical, const int32_t *map, const int32_t *load,
                                    uint32_t physical)
{
    int bad = 0;
    for (; physical >= 4; physical -= 4, map += 4, load += 4) {
        uint64_t m[2], l[2];
        memcpy(m, map, sizeof m);
        memcpy(l, load, sizeof l);
        wideep_i_expert_add(experts, logical, (uint32_t)m[0], (uint32_t)l[0], &bad);
        wideep_i_expert_add(experts, logical, (uint32_t)(m[0] >> 32), (uint32_t)(l[0] >> 32), &bad);
        wideep_i_expert_add(experts, logical, (uint32_t)m[1], (uint32_t)l[1], &bad);
        wideep_i_expert_add(experts, logical, (uint32_t)(m[1] >> 32), (uint32_t)(l[1] >> 32), &bad);
    }
    for (; physical > 0; physical--, map++, load++)
        wideep_i_expert_add(experts, logical, (uint32_t)*map, (uint32_t)*load, &bad);
    return bad;
}

/* The same where some loads are negative, which count as 0: the call is -ERANGE already, whatever the map holds. */
WIDEEP_API void wideep_i_experts_add_positive(uint64_t *experts, uint32_t logical, const int32_t *map,
                                              const int32_t *load, uint32_t physical)
{
    int bad = 0;
    for (uint32_t p = 0; p < physical; p++)
        wideep_i_expert_add(experts, logical, (uint32_t)map[p], (uint32_t)(load[p] > 0 ? load[p] : 0), &bad);
    (void)bad;
}

/* Words that will be added to in no order that a processor could foresee. A pass finds them cold, as the engine has
 * computed since the last one. */
WIDEEP_API void wideep_i_prefetch(const uint64_t *words, uint32_t count)
{
    for (uint32_t i = 0; i < count; i += 8)
        __builtin_prefetch(words + i, 1);
}

/* Writes one layer's record. */
WIDEEP_API void wideep_i_record_layer(uint64_t *slot, uint64_t n, const struct wideep_pass *pass, uint64_t now_ns,
                                      uint64_t tags, uint32_t ep_size, const struct wideep_i_sums *sums)
{
    const double total = (double)sums->total, max = (double)sums->max;
    wideep_i_ring_begin(slot, n);
    wideep_i_eplb_words(slot, pass, now_ns, tags, total / ep_size, max, sums->max ? total / (ep_size * max) : 0);
    for (uint32_t rank = 0; rank < ep_size; rank += 2) {
        uint64_t pair;
        memcpy(&pair, sums->tokens + rank, sizeof pair);
        wideep_i_payload(slot, WIDEEP_SLOT_HEADER / 8 + rank / 2, pair);
    }
    wideep_i_ring_end(slot, n);
}

/* Records the expert loads of one forward pass.
 *
 *   loads                 int32 [layers][physical_experts], row-major: tokens (top-k assignments) that THIS rank routed
 *                         to each physical expert in this pass, both ubatches together. A rank that ran a dummy batch
 *                         passes zeros. Physical expert p lives on EP rank p / (physical_experts / ep_size).
 *   physical_to_logical   int32 [layers][physical_experts]: the logical expert in each physical slot during this pass
 *                         (the map from before a rearrangement that the pass itself completes), -1: none. NULL: the
 *                         expert tokens are left alone.
 *
 * Writes one PARTIAL record per layer and adds to rank tokens, expert tokens and recorded_passes. A negative load
 * counts as 0, tokens under a map entry out of range are of no logical expert; then -ERANGE, with all the rest
 * recorded. Costs about 0.15 microseconds a layer at 288 physical experts; twice that where a layer holds negative
 * loads or ones of millions of tokens. */
WIDEEP_API int wideep_record_pass(struct wideep_writer *w, const struct wideep_pass *pass, const int32_t *loads,
                                  const int32_t *physical_to_logical)
{
    int error = wideep_i_pass_valid(w, pass);
    if (error)
        return error;
    const struct wideep_model *model = &w->identity.models[pass->model];
    if (!loads || model->layers == 0)
        return -EINVAL;
    const uint32_t ep_size = w->identity.ep_size, physical = model->physical_experts, logical = model->logical_experts;
    const uint64_t now_ns = wideep_i_clock_ns(CLOCK_BOOTTIME), tags = wideep_i_tags(w, pass, WIDEEP_PARTIAL);
    uint64_t *slot = wideep_i_eplb_slot(w, w->eplb_head);
    struct wideep_i_sums sums;
    int bad = 0;

    for (uint32_t layer = 0; layer < model->layers; layer++, slot = wideep_i_eplb_next(w, slot)) {
        const size_t at = (size_t)layer * physical;
        if (physical_to_logical && layer + 1 < model->layers)
            wideep_i_prefetch(w->expert_tokens[pass->model] + (size_t)(layer + 1) * logical, logical);
        const int negative = wideep_i_rank_sums(loads + at, ep_size, physical / ep_size,
                                                w->rank_tokens[pass->model] + (size_t)layer * ep_size, &sums);
        wideep_i_record_layer(slot, w->eplb_head + layer, pass, now_ns,
                              wideep_i_layer_tags(tags, layer, layer == 0, layer + 1 == model->layers), ep_size, &sums);
        bad |= negative;
        if (!physical_to_logical)
            continue;
        uint64_t *experts = w->expert_tokens[pass->model] + (size_t)layer * logical;
        if (negative)
            wideep_i_experts_add_positive(experts, logical, physical_to_logical + at, loads + at, physical);
        else
            bad |= wideep_i_experts_add(experts, logical, physical_to_logical + at, loads + at, physical);
    }
    w->eplb_head += model->layers;
    uint64_t *recorded = &w->totals->models[pass->model].recorded_passes;
    wideep_i_store_release(recorded, wideep_load(recorded) + 1);
    wideep_i_pass_live(w, pass, now_ns, WIDEEP_RECORDING_YES);
    wideep_i_ring_publish(w->eplb_shared_head, w->eplb_head);
    return bad ? -ERANGE : 0;
}

/* A forward pass whose loads the engine did not record: moves the live words alone. */
WIDEEP_API int wideep_skip_pass(struct wideep_writer *w, const struct wideep_pass *pass)
{
    int error = wideep_i_pass_valid(w, pass);
    if (!error)
        wideep_i_pass_live(w, pass, wideep_i_clock_ns(CLOCK_BOOTTIME), WIDEEP_RECORDING_NO);
    return error;
}

struct wideep_eplb_layer {
    uint32_t layer;             /* < layers, strictly increasing within a call */
    uint32_t reserved;          /* 0 */
    double avg_tokens_per_rank; /* tokens per EP rank in this pass, mean over the group's ranks; 0 … max */
    double max_tokens_per_rank; /* of the slowest rank; finite */
};

/* Records the figures of one pass that the engine has already reduced over all ranks: one REDUCED record per given
 * layer. One call per pass and model, layers in increasing order; it adds to no token plane and not to recorded_passes.
 */
WIDEEP_API int wideep_record_eplb(struct wideep_writer *w, const struct wideep_pass *pass,
                                  const struct wideep_eplb_layer *layers, uint32_t count)
{
    int error = wideep_i_pass_valid(w, pass);
    if (error)
        return error;
    const struct wideep_model *model = &w->identity.models[pass->model];
    if (!layers || count < 1 || count > model->layers)
        return -EINVAL;
    for (uint32_t i = 0; i < count; i++)
        if (layers[i].layer >= model->layers || (i > 0 && layers[i].layer <= layers[i - 1].layer) ||
            !(layers[i].avg_tokens_per_rank >= 0 && layers[i].max_tokens_per_rank >= layers[i].avg_tokens_per_rank &&
              layers[i].max_tokens_per_rank <= 1e18))
            return -EINVAL;
    const uint64_t now_ns = wideep_i_clock_ns(CLOCK_BOOTTIME), tags = wideep_i_tags(w, pass, WIDEEP_REDUCED);
    uint64_t *slot = wideep_i_eplb_slot(w, w->eplb_head);
    for (uint32_t i = 0; i < count; i++, slot = wideep_i_eplb_next(w, slot)) {
        const double avg = layers[i].avg_tokens_per_rank, max = layers[i].max_tokens_per_rank;
        wideep_i_ring_begin(slot, w->eplb_head + i);
        wideep_i_eplb_words(slot, pass, now_ns, wideep_i_layer_tags(tags, layers[i].layer, i == 0, i + 1 == count), avg,
                            max, max > 0 ? avg / max : 0);
        wideep_i_ring_end(slot, w->eplb_head + i);
    }
    w->eplb_head += count;
    wideep_i_pass_live(w, pass, now_ns, WIDEEP_RECORDING_YES);
    wideep_i_ring_publish(w->eplb_shared_head, w->eplb_head);
    return 0;
}

struct wideep_dbo_stats {
    uint64_t pass;                               /* number of the forward pass, at most WIDEEP_MAX_PASS */
    uint32_t phase;                              /* enum wideep_phase */
    uint32_t outcome;                            /* enum wideep_outcome */
    uint32_t ubatches;                           /* 0 … 4 sizes below; those of an engaged pass enter the histogram */
    uint32_t ubatch_tokens[WIDEEP_MAX_UBATCHES]; /* tokens of this rank in each ubatch, padding left out */
    uint32_t reserved;                           /* 0 */
};

/* Records what became of Dual Batch Overlap in one pass. */
WIDEEP_API int wideep_record_dbo(struct wideep_writer *w, const struct wideep_dbo_stats *stats)
{
    int error = wideep_i_ready(w);
    if (error)
        return error;
    if (!stats || !w->dbo_shared_head || stats->phase >= WIDEEP_PHASES || stats->outcome >= WIDEEP_OUTCOMES ||
        stats->ubatches > WIDEEP_MAX_UBATCHES || stats->pass > WIDEEP_MAX_PASS)
        return -EINVAL;
    const uint64_t now_ns = wideep_i_clock_ns(CLOCK_BOOTTIME), n = w->dbo_head;
    const uint64_t active = stats->outcome == WIDEEP_ENGAGED ? (uint64_t)1 << stats->phase : 0;
    const uint64_t fallout = stats->outcome >= WIDEEP_FIRST_FALLOUT ? stats->outcome - WIDEEP_FIRST_FALLOUT + 1 : 0;
    uint32_t tokens[WIDEEP_MAX_UBATCHES] = {0, 0, 0, 0};
    for (uint32_t i = 0; i < stats->ubatches; i++)
        tokens[i] = stats->ubatch_tokens[i];
    uint64_t *slot = (uint64_t *)(void *)(w->dbo_slots + (n % w->dbo_count) * sizeof(struct wideep_dbo_slot));
    wideep_i_ring_begin(slot, n);
    wideep_i_payload(slot, 1, stats->pass);
    wideep_i_payload(slot, 2, now_ns);
    wideep_i_payload(slot, 3,
                     (uint64_t)stats->phase | (active & 1) << 8 | (active >> 1) << 16 | (uint64_t)stats->outcome << 24 |
                         fallout << 32 | (uint64_t)stats->ubatches << 40);
    wideep_i_payload(slot, 4, (uint64_t)tokens[0] | (uint64_t)tokens[1] << 32);
    wideep_i_payload(slot, 5, (uint64_t)tokens[2] | (uint64_t)tokens[3] << 32);
    wideep_i_ring_end(slot, n);
    if (active)
        for (uint32_t i = 0; i < stats->ubatches; i++) {
            wideep_i_add(&w->totals->ubatch_sum[i], tokens[i]);
            wideep_i_add(&w->totals->ubatch_bucket[i][wideep_ubatch_bucket(tokens[i])], 1);
        }
    wideep_i_add(&w->totals->dbo_passes[stats->phase][stats->outcome], 1);
    wideep_i_store(&w->live->dbo_active, active);
    wideep_i_store(&w->live->dbo_time_ns, now_ns);
    wideep_i_store(&w->live->dbo_passes, stats->pass + 1);
    wideep_i_add(&w->live->activity, 1);
    w->dbo_head = n + 1;
    wideep_i_ring_publish(w->dbo_shared_head, n + 1);
    return 0;
}

/* A rearrangement of the experts begins. Call it before the engine blocks: the flag is in shared memory when it
 * returns. mode: WIDEEP_SYNC blocks the engine, WIDEEP_ASYNC runs beside it. -EALREADY while one is under way for this
 * model. */
WIDEEP_API int wideep_rearrangement_begin(struct wideep_writer *w, uint32_t model, enum wideep_mode mode)
{
    int error = wideep_i_ready(w);
    if (error)
        return error;
    if (model >= w->identity.model_count || (unsigned)mode >= WIDEEP_MODES)
        return -EINVAL;
    struct wideep_live_model *live = &w->live->models[model];
    if (wideep_load(&live->rebalancing_since_ns) != 0)
        return -EALREADY;
    wideep_i_store(&live->rebalancing_mode, (uint64_t)mode);
    wideep_i_add(&w->live->activity, 1);
    /* Whoever sees the flag (acquire) sees its mode. */
    wideep_i_store_release(&live->rebalancing_since_ns, wideep_i_clock_ns(CLOCK_BOOTTIME));
    return 0;
}

/* It is done: counts it with its duration, which `ret_duration_ns` (may be NULL) gets. -EALREADY when none is under
 * way. */
WIDEEP_API int wideep_rearrangement_end(struct wideep_writer *w, uint32_t model, uint64_t *ret_duration_ns)
{
    int error = wideep_i_ready(w);
    if (error)
        return error;
    if (model >= w->identity.model_count)
        return -EINVAL;
    struct wideep_live_model *live = &w->live->models[model];
    struct wideep_totals_model *totals = &w->totals->models[model];
    uint64_t since_ns = wideep_load(&live->rebalancing_since_ns);
    if (since_ns == 0)
        return -EALREADY;
    uint64_t duration_ns = wideep_i_clock_ns(CLOCK_BOOTTIME) - since_ns;
    uint64_t mode = wideep_load(&live->rebalancing_mode) % WIDEEP_MODES;
    wideep_i_add(&totals->rearrangement_sum_ns, duration_ns);
    wideep_i_add(&totals->rearrangement_bucket[mode][wideep_duration_bucket(duration_ns)], 1);
    wideep_i_store(&live->since_rearrangement, 0);
    wideep_i_add(&w->live->activity, 1);
    wideep_i_store_release(&live->rebalancing_since_ns, 0);
    if (ret_duration_ns)
        *ret_duration_ns = duration_ns;
    return 0;
}

/* It was given up: the flag goes, nothing is counted. -EALREADY when none is under way. */
WIDEEP_API int wideep_rearrangement_abort(struct wideep_writer *w, uint32_t model)
{
    int error = wideep_i_ready(w);
    if (error)
        return error;
    if (model >= w->identity.model_count)
        return -EINVAL;
    if (wideep_load(&w->live->models[model].rebalancing_since_ns) == 0)
        return -EALREADY;
    wideep_i_add(&w->live->activity, 1);
    wideep_i_store_release(&w->live->models[model].rebalancing_since_ns, 0);
    return 0;
}

/* Adds prompt and generation tokens: of a front end, or of a rank where the engine has none. */
WIDEEP_API int wideep_record_tokens(struct wideep_writer *w, uint64_t prompt, uint64_t generation)
{
    int error = wideep_i_ready(w);
    if (error)
        return error;
    wideep_i_add(&w->totals->prompt_tokens, prompt);
    wideep_i_add(&w->totals->generation_tokens, generation);
    wideep_i_add(&w->live->activity, 1);
    return 0;
}

#ifdef __cplusplus
}
#endif
#endif
