/* The slot protocol of shm-abi/wideep_shm.h: one writer, one reader, a ring of slots under sequence locks.
 *
 * MEMORY
 *
 * What C11 lets each load return is made explicit. The stores are numbered in the order of the writer's program. Store
 * i tells whoever reads it, and synchronizes with it, that stores 1 … carries[i] have happened: everything before it for
 * a release store, everything before the last release fence for a relaxed one. A reader knows that stores 1 … seen have
 * happened. A load returns any store to its location that is neither older than the newest one among those, nor older
 * than one that the reader has had from there (coherence): which one is the model's choice, so stores may become
 * visible in another order than they were made, and loads be satisfied early. A load with acquire adds what the store
 * carries to `seen`; what relaxed ones have read is added by the acquire fence.
 *
 * The writer reads nothing that another writes and the reader writes nothing, so these are all executions that C11 and
 * C++20 allow: prefixes of the one writer's program stand for the views of a full model (J. Kang et al., "A promising
 * semantics for relaxed-memory concurrency", POPL 2017), and no load can depend on a store of its own future. Release
 * sequences count for nothing here, as in C++20 between plain stores; C11 allows less.
 *
 * PROPERTIES, as assertions
 *
 *   torn       an accepted record has all words of one record
 *   written    … and of that record, at its position
 *   invalid    nothing that this writer does is taken for garbage
 *   exact      every position is accepted once or counted as lost once
 *   bounded    a drain tries at most the records that its first look at head showed, whatever the writer does, also when
 *              it died in the middle of a record
 *
 * Defined by the checker: COUNT slots, BATCH records in a call at most, RECORDS in all, DRAINS of the reader; and a
 * mutant, which must violate one of the properties.
 */

#define HEAD         0
#define SEQ(slot)    (3 * (slot) + 1)
#define FIRST(slot)  (3 * (slot) + 2)
#define SECOND(slot) (3 * (slot) + 3)
#define LOCATIONS    (3 * COUNT + 1)
#define STORES       (6 * RECORDS + 1) /* and number 0, the zeros of a fresh file */

byte stores;          /* made so far */
byte where[STORES];   /* their locations, */
byte value[STORES];   /* what they store */
byte carries[STORES]; /* and what they prove to have happened */
bool stopped;         /* the writer, at its end or killed */

/* wideep_i_store(), wideep_i_store_release(), WIDEEP_FENCE_RELEASE() */
inline store(location, number, proves)
{
    d_step {
        stores++;
        where[stores] = location;
        value[stores] = number;
        carries[stores] = proves
    }
}
#define STORE_RELAXED(location, number) store(location, number, fenced)
#define STORE_RELEASE(location, number) store(location, number, stores - 1)

#ifdef MUTANT_NO_RELEASE_FENCE
#define FENCE_RELEASE skip
#else
#define FENCE_RELEASE fenced = stores
#endif
#ifdef MUTANT_RELAXED_HEAD
#define STORE_HEAD STORE_RELAXED
#else
#define STORE_HEAD STORE_RELEASE
#endif

/* The writer may be killed between any two of its steps: what it does next is then never done. */
active proctype writer()
{
    byte fenced; /* stores before the newest release fence */
    byte n;      /* the next record: w->eplb_head */
    byte end;    /* of this call's records */

    do
    :: n == RECORDS -> break
    :: n < RECORDS ->
        /* wideep_record_pass(), wideep_record_eplb(), wideep_record_dbo(): 1 … BATCH records, then head */
        if
        :: end = n + 1
        :: BATCH > 1 && n + BATCH <= RECORDS -> end = n + BATCH
        fi;
#ifdef MUTANT_EARLY_HEAD
        STORE_HEAD(HEAD, end);
#endif
        do
        :: n == end -> break
        :: n < end ->
            STORE_RELAXED(SEQ(n % COUNT), 2 * n + 1); /* wideep_i_ring_begin() */
            FENCE_RELEASE;
            STORE_RELAXED(FIRST(n % COUNT), n + 1); /* wideep_i_payload() */
            STORE_RELAXED(SECOND(n % COUNT), n + 1);
            /* wideep_i_ring_end(). A relaxed store holds too, for a reader like this one: head's release, and the next
             * record's fence, say the same. */
            STORE_RELEASE(SEQ(n % COUNT), 2 * n + 2);
            n++
        :: goto killed
        od;
#ifndef MUTANT_EARLY_HEAD
        STORE_HEAD(HEAD, end) /* wideep_i_ring_publish() */
#endif
    :: break
    od;
killed:
    stopped = true
}

/* What the reader's loads have in common; `seen`, `pending`, `had`, `i` and `newer` are the reader's. */
inline load(location, ret)
{
    /* The oldest that may be returned, … */
    i = (seen > had[location] -> seen : had[location]);
    do
    :: i > had[location] && where[i] != location -> i--
    :: else -> break
    od;
    /* … or any of the newer ones. */
    do
    :: break
    :: true ->
        newer = i + 1;
        do
        :: newer <= stores && where[newer] != location -> newer++
        :: else -> break
        od;
        if
        :: newer <= stores -> i = newer
        :: else -> break
        fi
    od;
    had[location] = i;
    ret = value[i];
    pending = (carries[i] > pending -> carries[i] : pending)
}

/* wideep_load(), wideep_i_slot_word() */
inline load_relaxed(location, ret)
{
    atomic {
        load(location, ret);
        i = 0;
        newer = 0
    }
}

/* wideep_load_acquire() */
inline load_acquire(location, ret)
{
    atomic {
        load(location, ret);
        seen = (carries[i] > seen -> carries[i] : seen);
        i = 0;
        newer = 0
    }
}

#ifdef MUTANT_RELAXED_SEQ
#define LOAD_SEQ load_relaxed
#else
#define LOAD_SEQ load_acquire
#endif
#ifdef MUTANT_NO_ACQUIRE_FENCE
#define FENCE_ACQUIRE skip
#else
#define FENCE_ACQUIRE seen = (pending > seen -> pending : seen)
#endif
#ifdef MUTANT_SHORT_BOUND
#define AHEAD BATCH
#else
#define AHEAD (2 * BATCH)
#endif

/* ring_window() of src/ring.c, wideep_ring_head(), wideep_ring_tail() */
inline window(ret)
{
    load_acquire(HEAD, ret);
    d_step {
        assert(ret >= next); /* invalid */
        if
        :: ret > COUNT - BATCH && next < ret - (COUNT - BATCH) ->
            lost = lost + (ret - (COUNT - BATCH)) - next;
            next = ret - (COUNT - BATCH)
        :: else
        fi
    }
}

/* ring_drain_dbo() of src/ring.c; ring_drain_eplb() does the same and puts passes together. */
active proctype reader()
{
    byte seen, pending, had[LOCATIONS], i, newer;
    byte drains, tries, may_try, next, end, head, seq, first, second, accepted, lost;

    stopped;
    do
    :: drains == DRAINS -> break
    :: drains < DRAINS ->
        drains++;
        window(end);
        tries = 0;
        may_try = end - next;
        do
        :: next >= end -> break
        :: next < end ->
            assert(tries < may_try); /* bounded */
            tries++;
            /* wideep_i_slot_find() */
            LOAD_SEQ(SEQ(next % COUNT), seq);
            if
            :: seq == 2 * next + 2 ->
                load_relaxed(FIRST(next % COUNT), first);
                load_relaxed(SECOND(next % COUNT), second);
                /* wideep_i_slot_check() */
                FENCE_ACQUIRE;
#ifndef MUTANT_NO_RECHECK
                load_relaxed(SEQ(next % COUNT), seq);
#endif
                d_step {
                    if
                    :: seq == 2 * next + 2 ->
                        assert(first == second);                              /* torn */
                        assert(first == next + 1);                            /* written */
                        accepted++
                    :: else -> lost++
                    fi;
                    next++
                }
            :: else ->
#ifdef MUTANT_WAITS_FOR_WRITER
                if
                :: seq % 2 == 1 -> goto again
                :: else
                fi;
#endif
                load_acquire(HEAD, head);
                d_step {
                    assert(seq > 2 * next + 2 && (seq - 1) / 2 < head + AHEAD &&
                           ((seq - 1) / 2) % COUNT == next % COUNT); /* invalid */
                    lost++;
                    next++
                }
            fi;
            if
            :: seq != 2 * next -> window(head) /* the writer lapped us; `end` stays */
            :: else
            fi;
#ifdef MUTANT_FOLLOWS_HEAD
            load_acquire(HEAD, end);
#endif
again:
            skip
        od;
        assert(accepted + lost == next) /* exact */
    od
}
